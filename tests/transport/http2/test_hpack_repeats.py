"""Blocks that repeat but for one value."""

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transport.http2.blocks import INCREMENTAL, indexed, literal, outcome, size_update, string

from headrace.transport.http2.hpack import Decoder, HeaderListTooLarge, HpackError


class Repeating:
    """A decoder that is asked to repeat first, beside one that is not."""

    def __init__(self, table_size=4096, **limits):
        self.decoder, self.plain = Decoder(table_size, **limits), Decoder(table_size, **limits)
        self.repeated = 0

    def decode(self, block):
        """What came out of both, which must be the same: a list or a class of error."""
        expected = outcome(self.plain, block)
        try:
            value = self.decoder.repeat(block)
        except HpackError:
            assert expected is HpackError
            return expected
        if value is not None:
            self.repeated += 1
            assert expected == [(name, value if name == b"t" else text) for name, text in self.fields]
        else:
            fields = outcome(self.decoder, block)
            assert fields == expected
            if isinstance(fields, list) and self.decoder.expect(block, fields, b"t"):
                self.fields = fields
        if expected is not HpackError:
            assert self.decoder.table == self.plain.table
        return expected


def timed(encoder, *values, huffman=True, fields=((":path", "/a"), ("a", "b"), ("t", None), ("c", "d"))):
    """Blocks of the same fields, `t` with one value after another."""
    for value in values:
        yield encoder.encode([(name, value if text is None else text) for name, text in fields], huffman=huffman)


@pytest.mark.parametrize("huffman", [True, False])
@pytest.mark.parametrize("table_size", [300, 4096, 16384])
def test_blocks_that_repeat_are_told_from_the_last(table_size, huffman):
    """Through evictions, and past the indices that fit an octet."""
    encoder, coders = hpack.Encoder(), Repeating(table_size)
    encoder.header_table_size = min(table_size, 4096)
    if table_size > 4096:
        encoder.header_table_size = table_size
    for block in timed(encoder, *map(str, range(1_000_000, 1_000_500)), huffman=huffman):
        coders.decode(block)
    assert coders.repeated > (290 if table_size == 300 else 470)


@pytest.mark.parametrize("before", [(), ((":path", "/a"),)])
@pytest.mark.parametrize("behind", [(), ((":scheme", "http"),), (("c", "d"),)])
def test_static_fields_are_never_evicted(before, behind):
    encoder, coders = hpack.Encoder(), Repeating()
    fields = ((":method", "POST"), *before, ("t", None), *behind)
    for block in timed(encoder, *map(str, range(1_000_000, 1_000_500)), fields=fields):
        assert isinstance(coders.decode(block), list)
    static = all(name == ":scheme" for name, _ in (*before, *behind))
    assert coders.repeated > (497 if static else 470)


def test_a_value_may_have_a_code_of_its_own():
    coders = Repeating()
    """Coded or not, long or short; and none that is good but for its end."""
    blocks = list(timed(hpack.Encoder(), "1", "2", "3"))
    before = blocks[2][: blocks[2].index(0x7E)].translate(MOVED)
    after = blocks[2][-1:].translate(MOVED)
    for value in (b"", b"x", b"x" * 20):
        for coded in (False, True):
            coders = Repeating()
            for block in blocks:
                coders.decode(block)
            coders.decode(before + literal(INCREMENTAL, 62, value, coded_value=coded) + after)
            assert coders.repeated == 2
    for bad in (b"\x7e\x82\xff\xff", b"\x7e\x81\x00", b"\x7e\x05ab", b"\x7e", b"\x7e\x7f\x00" + b"x" * 127):
        for end in (b"", after):
            coders = Repeating()
            for block in blocks:
                coders.decode(block)
            coders.decode(before + bad + end)
            assert coders.repeated == 1


MOVED = bytes(octet + (0xBE <= octet < 0xFE) for octet in range(256))


def test_what_does_not_repeat_is_decoded():
    for fields, repeats in [
        (((":method", "GET"), ("t", None)), 3),
        ((("t", None),), 3),
        (((":method", "GET"), ("t", None), ("t", "x")), 0),
        (((":method", "GET"), ("u", None)), 0),
        (((":method", "GET"), ("t", "x"), ("u", None)), 0),
    ]:
        coders = Repeating()
        for block in timed(hpack.Encoder(), "1", "2", "3", "4", fields=fields):
            coders.decode(block)
        assert coders.repeated == repeats, fields


@pytest.mark.parametrize(("room", "repeats"), [(10, 0), (100, 3)])
def test_a_list_that_a_longer_value_takes_over_the_limit(room, repeats):
    fields = ((":method", "GET"), ("t", None))
    size = sum(32 + len(name) + len(text or "") for name, text in fields)
    encoder, coders = hpack.Encoder(), Repeating(max_list_size=size + room)
    values = ("1", "2", "x" * 10, "3", "x" * (room + 1), "4")
    results = [coders.decode(block) for block in timed(encoder, *values, fields=fields)]
    assert [type(result) for result in results[:4]] == [list, list, list, list]
    assert results[4] is HeaderListTooLarge
    assert type(results[5]) is list
    assert coders.repeated == repeats


REPEATED_FIELDS = st.lists(
    st.tuples(st.sampled_from([":path", "a", "b", "t"]), st.sampled_from(["", "1", "x" * 30, None])), max_size=5
)


@given(
    st.sampled_from([0, 40, 100, 150, 4096]),
    st.lists(
        st.tuples(REPEATED_FIELDS, st.integers(1, 80), st.booleans(), st.sampled_from([None, None, 0, 90, 4096])),
        max_size=6,
    ),
    st.lists(st.tuples(st.integers(0, 100), st.integers(0, 200), st.integers(0, 255)), max_size=2),
)
def test_with_and_without_repeating_it_is_the_same(table_size, runs, damages):
    """Any clients, some of their octets damaged: the same fields, the same errors, the same table."""
    encoder, coders = hpack.Encoder(), Repeating(table_size)
    encoder.header_table_size = table_size
    sent = 0
    for fields, times, coded, resize in runs:
        if resize is not None:
            encoder.header_table_size = min(resize, table_size)
        for block in timed(encoder, *(str(sent + n) for n in range(times)), huffman=coded, fields=fields):
            octets = bytearray(block)
            for at, position, octet in damages:
                if at == sent and position < len(octets):
                    octets[position] = octet
            result = coders.decode(bytes(octets))
            if result is HpackError:
                return
            sent += 1


LONG = "x" * 30


@pytest.mark.parametrize(
    ("fields", "between", "wrong"),
    [
        ((("a", LONG), ("t", None)), [], 3),
        ((("t", None), ("a", LONG)), [], 3),
        ((("a", "x"), ("t", None), ("c", "d")), [], 4),
        ((("a", LONG), ("t", None)), [size_update(80) + indexed(2)], 0),
        ((("t", None),), [size_update(0) + size_update(80) + indexed(2)], 0),
        ((("a", LONG), ("t", None)), [literal(INCREMENTAL, b"u", b"v")], 0),
    ],
    ids=["before", "behind", "both", "shrunk", "emptied", "moved"],
)
def test_what_is_expected_ends_with_what_it_refers_to(fields, between, wrong):
    """A client that repeats its fields for ever, also when they have been evicted from its table of 150 octets."""
    encoder, coders = hpack.Encoder(), Repeating(150)
    encoder.header_table_size = 150
    for block in timed(encoder, "1", "2", fields=fields):
        coders.decode(block)
    before, after = coders.decoder._expected, coders.decoder._expected_end
    assert before is not None
    for block in between:
        coders.decode(block)
    for _ in range(wrong):
        if coders.decode(before + string(b"1") + after) is HpackError:
            return
        before, after = before.translate(MOVED), after.translate(MOVED)
    if not wrong:
        coders.decode(before + string(b"1") + after)
    else:
        assert coders.decode(before + string(b"1") + after) is HpackError


def test_a_value_that_the_table_cannot_hold_empties_it():
    encoder, coders = hpack.Encoder(), Repeating(40)
    encoder.header_table_size = 40
    for block in timed(encoder, "1", "2", fields=((":method", "GET"), ("t", None))):
        coders.decode(block)
    assert coders.decode(b"\x82\x7e" + string(b"x" * 10)) != HpackError
    assert coders.decode(b"\x82\x7e" + string(b"1")) is HpackError


@pytest.mark.parametrize("end", [b"\x82", b"\x00\x01a\x01b", b"\x80", b"\x40"])
def test_a_block_that_goes_on_is_not_repeated(end):
    coders = Repeating()
    for block in timed(hpack.Encoder(), "1", "2", "3"):
        coders.decode(block)
    repeated = coders.repeated
    coders.decode(coders.decoder._expected + string(b"4") + coders.decoder._expected_end + end)
    assert coders.repeated == repeated


def test_entries_that_were_repeated_are_measured():
    coders = Repeating(max_list_size=620)
    fields = ((":method", "GET"), ("t", None))
    for block in timed(hpack.Encoder(), "2", "1" * 30, "2" * 30, fields=fields):
        coders.decode(block)
    assert coders.repeated == 2
    assert isinstance(coders.decode(indexed(62) * 9), list)
    assert coders.decode(indexed(62) * 10) is HeaderListTooLarge
