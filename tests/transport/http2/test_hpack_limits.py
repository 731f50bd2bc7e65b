"""What a peer's headers may cost."""

import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transport.http2.blocks import (
    BLOCKS,
    INCREMENTAL,
    NEVER,
    PLAIN,
    TABLE_SIZES,
    Writer,
    indexed,
    is_too_large,
    literal,
    outcome,
    reference_decoder,
    reference_fields,
    reference_table,
)

from headrace.transport.http2 import huffman
from headrace.transport.http2.hpack import Decoder, HeaderListTooLarge, HpackError


@pytest.mark.parametrize("kind", [INCREMENTAL, PLAIN])
def test_limits_are_exact(kind):
    field = literal(kind, b"name", b"value")
    assert len(Decoder(max_list_size=41, max_fields=1).decode(field)) == 1
    block = indexed(2) + field  # 42 + 41 octets
    assert len(Decoder(max_list_size=83, max_fields=2).decode(block)) == 2
    with pytest.raises(HeaderListTooLarge, match="82 octets"):
        Decoder(max_list_size=82).decode(block)
    with pytest.raises(HeaderListTooLarge, match="more than 1 header field"):
        Decoder(max_fields=1).decode(block)


def test_a_list_of_table_entries_is_measured():
    decoder = Decoder()
    decoder.decode(literal(INCREMENTAL, b"name", b"v" * 964))  # 1,000 octets
    assert len(decoder.decode(indexed(62) * 16)) == 16
    with pytest.raises(HeaderListTooLarge, match="16384 octets"):
        decoder.decode(indexed(62) * 17)


@settings(max_examples=200)
@given(TABLE_SIZES, st.lists(BLOCKS, max_size=8), st.integers(0, 800), st.integers(0, 12))
def test_a_list_above_the_limits_leaves_the_decoder_in_step(table_size, blocks, max_list_size, max_fields):
    writer, reference = Writer(table_size), reference_decoder(table_size)
    decoder = Decoder(table_size, max_list_size, max_fields)
    for block in (writer.block(*block) for block in blocks):
        expected = reference_fields(reference, block)
        too_large = is_too_large(expected, max_list_size, max_fields)
        assert outcome(decoder, block) == (HeaderListTooLarge if too_large else expected)
        assert decoder.table == reference_table(reference)


def peak_memory_of_refusal(decoder, block):
    tracemalloc.start()
    try:
        assert outcome(decoder, block) is HeaderListTooLarge
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_bombs_cost_no_more_memory_than_their_octets():
    decoder = Decoder()
    decoder.decode(literal(INCREMENTAL, b"n", b"v" * 4063))
    assert repr(decoder) == "<Decoder entries=1 size=4096/4096 version=1>"
    # A list holds eight octets of reference for each octet of block, and up to an eighth of them in reserve.
    for bomb in (indexed(62) * 10_000, literal(PLAIN, 62, b"") * 5_000, literal(PLAIN, b"", b"") * 3_333):
        assert peak_memory_of_refusal(decoder, bomb) < 10 * len(bomb) + 50_000
    assert peak_memory_of_refusal(decoder, literal(INCREMENTAL, b"a", b"b") * 10_000) < 150_000
    assert len(decoder.table) == 4096 // 34


def test_values_past_the_limit_are_not_decoded(monkeypatch):
    decoded = []
    monkeypatch.setattr(huffman, "decode", lambda octets: decoded.append(octets) or b"v" * 100)
    decoder = Decoder(max_list_size=463)  # two fields of 232 octets are one too many
    unread = literal(PLAIN, b"a", b"1", True, True) + literal(NEVER, 4, b"2", False, True)
    kept = literal(INCREMENTAL, 4, b"3", False, True)
    with pytest.raises(HeaderListTooLarge):
        decoder.decode(literal(PLAIN, b"n" * 100, b"1", False, True) * 2 + unread * 50 + kept)
    assert len(decoded) == 3
    assert decoder.table == [(b":path", b"v" * 100)]


@pytest.mark.parametrize("rest", [literal(PLAIN, 70, b""), literal(PLAIN, b"n", b"value")[:-1], b"\x00\x02a", b"\x04"])
def test_a_block_past_the_limit_is_still_read_to_its_end(rest):
    with pytest.raises(HpackError):
        Decoder(max_list_size=40).decode(literal(PLAIN, b"name", b"value") * 3 + rest)
