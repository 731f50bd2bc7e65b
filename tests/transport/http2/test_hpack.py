import re

import hpack
import pytest
from hpack.table import HeaderTable
from hypothesis import given, settings
from hypothesis import strategies as st
from transport.http2.blocks import (
    BLOCKS,
    FIELDS,
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
    size_update,
    unlimited_decoder,
)

from headrace.transport.http2.hpack import (
    TABLE_SIZE_ZERO,
    Decoder,
    HeaderListTooLarge,
    HpackError,
    _integer,
    encode_stateless,
)


def test_static_table_is_that_of_appendix_a():
    assert Decoder().decode(b"".join(map(indexed, range(1, 62)))) == list(HeaderTable.STATIC_TABLE)


@pytest.mark.parametrize(("octets", "mask", "value"), [("0a", 0x1F, 10), ("1f9a0a", 0x1F, 1337), ("2a", 0xFF, 42)])
def test_c1_integers(octets, mask, value):
    block = bytes.fromhex(octets)
    assert _integer(block, 0, mask) == (value, len(block))


@pytest.mark.parametrize(
    ("block", "field", "table"),
    [
        ("400a637573746f6d2d6b65790d637573746f6d2d686561646572", (b"custom-key", b"custom-header"), True),
        ("040c2f73616d706c652f70617468", (b":path", b"/sample/path"), False),
        ("100870617373776f726406736563726574", (b"password", b"secret"), False),
        ("82", (b":method", b"GET"), False),
    ],
)
def test_c2_representations(block, field, table):
    decoder = Decoder()
    assert decoder.decode(bytes.fromhex(block)) == [field]
    assert decoder.table == ([field] if table else [])


AUTHORITY = (b":authority", b"www.example.com")
GET = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), AUTHORITY]
GET_HTTPS = [(b":method", b"GET"), (b":scheme", b"https"), (b":path", b"/index.html"), AUTHORITY]
NO_CACHE = (b"cache-control", b"no-cache")
CUSTOM = (b"custom-key", b"custom-value")
REQUESTS = [GET, [*GET, NO_CACHE], [*GET_HTTPS, CUSTOM]]
REQUEST_TABLES = [[AUTHORITY], [NO_CACHE, AUTHORITY], [CUSTOM, NO_CACHE, AUTHORITY]]

LOCATION = (b"location", b"https://www.example.com")
DATES = [(b"date", b"Mon, 21 Oct 2013 20:13:21 GMT"), (b"date", b"Mon, 21 Oct 2013 20:13:22 GMT")]
PRIVATE = (b"cache-control", b"private")
GZIP = (b"content-encoding", b"gzip")
COOKIE = (b"set-cookie", b"foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1")
RESPONSES = [
    [(b":status", b"302"), PRIVATE, DATES[0], LOCATION],
    [(b":status", b"307"), PRIVATE, DATES[0], LOCATION],
    [(b":status", b"200"), PRIVATE, DATES[1], LOCATION, GZIP, COOKIE],
]
RESPONSE_TABLES = [
    [LOCATION, DATES[0], PRIVATE, (b":status", b"302")],
    [(b":status", b"307"), LOCATION, DATES[0], PRIVATE],
    [COOKIE, GZIP, DATES[1]],
]
REQUEST_BLOCKS = """
828684410f7777772e6578616d706c652e636f6d

828684be58086e6f2d6361636865

828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565
"""
REQUEST_BLOCKS_CODED = """
828684418cf1e3c2e5f23a6ba0ab90f4ff

828684be5886a8eb10649cbf

828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf
"""
RESPONSE_BLOCKS = """
4803333032580770726976617465611d4d6f6e2c203231204f637420323031332032303a31333a323120474d546e1768747470733a2f2f7777772e
6578616d706c652e636f6d

4803333037c1c0bf

88c1611d4d6f6e2c203231204f637420323031332032303a31333a323220474d54c05a04677a69707738666f6f3d4153444a4b48514b425a584f51
57454f50495541585157454f49553b206d61782d6167653d333630303b2076657273696f6e3d31
"""
RESPONSE_BLOCKS_CODED = """
488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b97c8e9ae82ae43d3

4883640effc1c0bf

88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335dfdfcd5b3960
d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007
"""


REQUEST_STEPS = (4096, REQUESTS, REQUEST_TABLES, [57, 110, 164])
RESPONSE_STEPS = (256, RESPONSES, RESPONSE_TABLES, [222, 222, 215])


@pytest.mark.parametrize(
    ("blocks", "steps"),
    [
        pytest.param(REQUEST_BLOCKS, REQUEST_STEPS, id="C.3"),
        pytest.param(REQUEST_BLOCKS_CODED, REQUEST_STEPS, id="C.4"),
        pytest.param(RESPONSE_BLOCKS, RESPONSE_STEPS, id="C.5"),
        pytest.param(RESPONSE_BLOCKS_CODED, RESPONSE_STEPS, id="C.6"),
    ],
)
def test_c3_to_c6_blocks_that_share_a_table(blocks, steps):
    table_size, lists, tables, sizes = steps
    decoder = Decoder(table_size)
    for block, fields, table, size in zip(blocks.split("\n\n"), lists, tables, sizes, strict=True):
        assert decoder.decode(bytes.fromhex(block)) == fields
        assert decoder.table == table
        assert f" entries={len(table)} size={size}/{table_size} " in repr(decoder)


@settings(max_examples=300)
@given(TABLE_SIZES, st.lists(BLOCKS, max_size=8))
def test_any_mix_of_representations_is_read_as_the_reference_does(table_size, blocks):
    writer, reference, decoder = Writer(table_size), reference_decoder(table_size), unlimited_decoder(table_size)
    for sizes, representations in blocks:
        block = writer.block(sizes, representations)
        version = decoder.version
        assert decoder.decode(block) == reference_fields(reference, block)
        assert decoder.table == reference_table(reference)
        assert f"/{reference.header_table_size} " in repr(decoder)
        changes = bool(sizes) or any(kind == INCREMENTAL for kind, *_ in representations)
        assert (decoder.version > version) == changes


@settings(max_examples=100)
@given(st.lists(st.tuples(st.none() | TABLE_SIZES, FIELDS, st.booleans()), max_size=8))
def test_what_the_reference_encodes_is_read_with_its_table(blocks):
    encoder, decoder = hpack.Encoder(), unlimited_decoder()
    for size, fields, coded in blocks:
        if size is not None:
            encoder.header_table_size = size
        assert decoder.decode(encoder.encode(fields, huffman=coded)) == fields
        assert decoder.table == reference_table(encoder)


@settings(max_examples=100)
@given(FIELDS)
def test_what_is_encoded_is_read_by_both_and_stays_out_of_the_table(fields):
    reference, decoder = reference_decoder(), unlimited_decoder()
    block = encode_stateless(fields)
    assert block == encode_stateless(iter(fields))
    assert reference_fields(reference, TABLE_SIZE_ZERO + block) == fields
    assert decoder.decode(TABLE_SIZE_ZERO + block) == fields
    assert decoder.decode(block) == fields
    assert decoder.table == reference_table(reference) == []


def test_the_encoder_uses_the_static_table():
    assert encode_stateless([(b":status", b"200"), (b":status", b"404")]) == b"\x88\x8d"
    assert encode_stateless([(b"content-type", b"application/grpc")]) == b"\x0f\x10\x10application/grpc"
    assert encode_stateless([(b":status", b"302")]) == b"\x08\x03302"  # the first of the name's indices
    fields = [(b"n", b"v" * length) for length in (126, 127, 254, 255, 256, 16510)]
    assert reference_fields(reference_decoder(), encode_stateless(fields)) == fields
    assert encode_stateless([(b"grpc-status", b"0")]) == b"\x00\x0bgrpc-status\x010"


def damage(octets, edits):
    damaged = bytearray(octets)
    for at, removed, put in edits:
        start = at % (len(damaged) + 1)
        damaged[start : start + removed] = put
    return bytes(damaged)


THREE_SIZE_UPDATES = re.compile(rb"([\x20-\x3e]|\x3f[\x80-\xff]*[\x00-\x7f]){3}", re.DOTALL)
EDITS = st.lists(st.tuples(st.integers(0, 500), st.integers(0, 3), st.binary(max_size=3)), max_size=3)


@settings(max_examples=500)
@given(TABLE_SIZES, st.lists(BLOCKS, max_size=2), BLOCKS, EDITS)
def test_a_damaged_block_is_refused_or_read_as_the_reference_does(table_size, before, last, edits):
    writer, reference, decoder = Writer(table_size), reference_decoder(table_size), unlimited_decoder(table_size)
    small = Decoder(table_size, max_list_size=200, max_fields=4)
    for block in (writer.block(*block) for block in before):
        reference.decode(block, raw=True)
        decoder.decode(block)
        outcome(small, block)
    damaged = damage(writer.block(*last), edits)
    read, read_small = outcome(decoder, damaged), outcome(small, damaged)
    try:
        expected = reference_fields(reference, damaged)
    except hpack.HPACKError:
        assert read is HpackError
        # Past its limits a decoder no longer checks the Huffman code of strings that it does not keep.
        assert read_small in (HpackError, HeaderListTooLarge)
        return
    if read is HpackError:
        # The reference takes any number of size updates; RFC 7541 4.2 knows of two at most.
        assert THREE_SIZE_UPDATES.match(damaged)
        return
    assert read == expected
    assert decoder.table == small.table == reference_table(reference)
    assert read_small == (HeaderListTooLarge if is_too_large(expected, 200, 4) else expected)


@settings(max_examples=300)
@given(st.lists(st.binary(max_size=60), max_size=4))
def test_random_octets_raise_nothing_else(blocks):
    decoder = Decoder(max_list_size=300, max_fields=5)
    for block in blocks:
        if outcome(decoder, block) is HpackError:
            return


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(indexed(70), id="h2spec 2.3.3/1: index past the table"),
        pytest.param(literal(INCREMENTAL, 70, b""), id="h2spec 2.3.3/2: name index past the table"),
        pytest.param(literal(PLAIN, 70, b""), id="the same, not indexed"),
        pytest.param(indexed(1) + size_update(0), id="h2spec 4.2/1: size update after a field"),
        pytest.param(literal(PLAIN, 4, b"")[:-1] + b"\x83\x1c\x64\xff", id="h2spec 5.2/1: padding of eight bits"),
        pytest.param(literal(PLAIN, 4, b"")[:-1] + b"\x81\x18", id="h2spec 5.2/2: padding of zeros"),
        pytest.param(literal(PLAIN, 4, b"")[:-1] + b"\x85\x1f\xff\xff\xff\xff", id="h2spec 5.2/3: EOS"),
        pytest.param(indexed(0), id="h2spec 6.1/1: index 0"),
        pytest.param(size_update(4097), id="h2spec 6.3/1: size update above the limit"),
        pytest.param(size_update(0) + size_update(4097), id="the second size update above the limit"),
        pytest.param(b"\xff\x80\x80\x80\x80\x80\x00", id="integer of seven octets, all padding"),
        pytest.param(b"\x0f\x80\x80\x80\x80\x80\x00\x01a", id="the same for an index that exists"),
        pytest.param(b"\xff" + b"\xff" * 5000, id="integer without end"),
        pytest.param(b"\xff\xff\xff\xff\xff\x0f", id="index above 2^32"),
        pytest.param(b"\x00\x7f\xff\xff\xff\xff\x0f", id="name longer than 2^32"),
        pytest.param(b"\x04\x02/", id="value longer than the rest of the block"),
        pytest.param(b"\x00\x02a", id="name longer than the rest of the block"),
        pytest.param(b"\x00\x01a", id="name and no value"),
        pytest.param(b"\xff", id="index without its second octet"),
        pytest.param(b"\x3f\xe1", id="size update without its third octet"),
    ],
)
def test_refused_by_both(block):
    with pytest.raises(HpackError):
        Decoder().decode(block)
    with pytest.raises(hpack.HPACKError):
        reference_decoder().decode(block)


def test_a_third_size_update_is_refused():
    # The reference accepts it. RFC 7541 4.2 lets an encoder signal the smallest and the final size: two.
    block = size_update(0) * 2 + size_update(4096)
    assert reference_fields(reference_decoder(), block) == []
    with pytest.raises(HpackError, match="third"):
        Decoder().decode(block)


@pytest.mark.parametrize("start", [b"", size_update(128), size_update(128) + size_update(4096)])
@pytest.mark.parametrize("kind", [INCREMENTAL, PLAIN, NEVER])
@pytest.mark.parametrize("name", [58, b"user-agent"])
@pytest.mark.parametrize("coded", [False, True])
def test_each_literal_after_size_updates(start, kind, name, coded):
    decoder = Decoder()
    field = (b"user-agent", b"h2spec")
    assert decoder.decode(start + literal(kind, name, b"h2spec", coded, coded)) == [field]
    assert decoder.table == ([field] if kind == INCREMENTAL else [])
    assert ("/128 " in repr(decoder)) == (start == size_update(128))


def test_odd_but_allowed():
    assert Decoder().decode(b"") == []
    # An integer padded to six octets; Section 5.1 leaves the limit to the implementation.
    assert Decoder().decode(b"\x0f\x80\x80\x80\x80\x00\x01a") == [(b"accept-charset", b"a")]


def test_an_entry_larger_than_the_table_empties_it_and_is_delivered():
    decoder = Decoder(64)
    decoder.decode(literal(INCREMENTAL, b"a", b"1"))
    large = literal(INCREMENTAL, b"name", b"v" * 29)  # 4 + 29 + 32 octets
    assert decoder.decode(large) == [(b"name", b"v" * 29)]
    assert decoder.table == []
    assert decoder.decode(literal(INCREMENTAL, b"name", b"v" * 28)) == [(b"name", b"v" * 28)]
    assert repr(decoder) == "<Decoder entries=1 size=64/64 version=3>"


def test_a_name_is_taken_before_its_entry_is_evicted():
    decoder = Decoder(40)
    decoder.decode(literal(INCREMENTAL, b"name", b"old"))
    assert decoder.decode(literal(INCREMENTAL, 62, b"new")) == [(b"name", b"new")]
    assert decoder.table == [(b"name", b"new")]
    assert decoder.decode(literal(INCREMENTAL, 62, b"too long")) == [(b"name", b"too long")]
    assert decoder.table == []


def test_long_indices():
    decoder = Decoder()
    fields = [(b"", b"%02d" % i) for i in range(99)]
    decoder.decode(b"".join(literal(INCREMENTAL, *field) for field in fields))
    assert decoder.decode(b"".join(indexed(62 + i) for i in range(99))) == fields[::-1]
    assert decoder.decode(literal(NEVER, 160, b"v")) == [(b"", b"v")]


def test_a_smaller_table_evicts_the_oldest_entries():
    decoder = Decoder()
    decoder.decode(b"".join(literal(INCREMENTAL, b"n", b"%d" % i) for i in range(4)))  # 34 octets each
    decoder.decode(size_update(68) + size_update(4096))
    assert decoder.table == [(b"n", b"3"), (b"n", b"2")]
    decoder.decode(TABLE_SIZE_ZERO)
    assert decoder.table == []


def test_a_lowered_limit_demands_a_size_update():
    decoder = Decoder()
    version = decoder.version
    decoder.limit_table(4096)
    assert decoder.decode(indexed(2)) == [(b":method", b"GET")]
    decoder.limit_table(100)
    assert decoder.version > version + 1  # or a cache would answer for the block that lacks the update
    for block in (indexed(2), b""):
        with pytest.raises(HpackError, match="no table size update"):
            decoder.decode(block)
    with pytest.raises(HpackError, match="above 100"):
        decoder.decode(size_update(101))
    decoder.limit_table(4096)  # the encoder owes the smallest size all the same
    with pytest.raises(HpackError, match="no table size update"):
        decoder.decode(indexed(2))
    for block in (size_update(100) + indexed(2), indexed(2)):
        assert decoder.decode(block) == [(b":method", b"GET")]


def test_a_raised_limit_is_used_when_the_peer_says_so():
    decoder = Decoder(65536)
    assert "/4096 " in repr(decoder)  # until then the peer's encoder, too, has the initial size
    decoder.decode(size_update(65536))
    assert "/65536 " in repr(decoder)
