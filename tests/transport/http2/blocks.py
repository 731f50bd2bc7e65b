"""Header blocks by hand, and by the reference."""

import hpack
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.table import HeaderTable
from hypothesis import strategies as st

from headrace.transport.http2.hpack import Decoder, HeaderListTooLarge, HpackError

UNLIMITED = 1 << 30
INDEXED, INCREMENTAL, SIZE_UPDATE, NEVER, PLAIN = 0x80, 0x40, 0x20, 0x10, 0x00
huffman_encode = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH).encode


def integer(value, bits, pattern=0):
    octets = hpack.hpack.encode_integer(value, bits)
    octets[0] |= pattern
    return bytes(octets)


def indexed(index):
    return integer(index, 7, INDEXED)


def size_update(size):
    return integer(size, 5, SIZE_UPDATE)


def string(octets, coded=False):
    if coded:
        octets = huffman_encode(octets)
    return integer(len(octets), 7, 0x80 if coded else 0) + octets


def literal(kind, name, value, coded_name=False, coded_value=False):
    """A literal; `name` is an index or octets."""
    if isinstance(name, int):
        start = integer(name, 6 if kind == INCREMENTAL else 4, kind)
    else:
        start = bytes((kind,)) + string(name, coded_name)
    return start + string(value, coded_value)


def reference_decoder(table_size=4096):
    decoder = hpack.Decoder(max_header_list_size=UNLIMITED)
    decoder.max_allowed_table_size = decoder.header_table_size = table_size
    return decoder


def reference_table(coder):
    return [(bytes(name), bytes(value)) for name, value in coder.header_table.dynamic_entries]


def reference_fields(decoder, block):
    return [tuple(field) for field in decoder.decode(block, raw=True)]


def unlimited_decoder(table_size=4096):
    return Decoder(table_size, max_list_size=UNLIMITED, max_fields=UNLIMITED)


TABLE_SIZES = st.sampled_from([0, 31, 32, 40, 64, 100, 256, 1000, 4096])
COMMON = st.sampled_from([b"", b"a", b"grpc-timeout", b":path", b"x" * 126, b"y" * 127, b"z" * 400])
OCTETS = COMMON | st.binary(max_size=40)
FIELDS = st.lists(st.tuples(OCTETS, OCTETS) | st.sampled_from(HeaderTable.STATIC_TABLE), max_size=12)
INDICES = st.integers(0, 200)
REPRESENTATIONS = st.tuples(st.just(INDEXED), INDICES) | st.tuples(
    st.sampled_from([INCREMENTAL, INCREMENTAL, PLAIN, NEVER]), OCTETS | INDICES, OCTETS, st.booleans(), st.booleans()
)
BLOCKS = st.tuples(st.lists(st.integers(0, 4096), max_size=2), st.lists(REPRESENTATIONS, max_size=12))


class Writer:
    """Writes blocks whose indices exist, by means of a reference decoder that reads along field by field."""

    def __init__(self, table_size):
        self.table_size = table_size
        self.along = reference_decoder(table_size)

    def block(self, sizes, representations):
        parts = [size_update(size % (self.table_size + 1)) for size in sizes]
        for part in parts:
            self.along.decode(part)
        for kind, *rest in representations:
            if isinstance(rest[0], int):
                rest[0] = 1 + rest[0] % (61 + len(reference_table(self.along)))
            parts.append(indexed(*rest) if kind == INDEXED else literal(kind, *rest))
            self.along.decode(parts[-1], raw=True)
        return b"".join(parts)


def outcome(decoder, block):
    try:
        return decoder.decode(block)
    except (HpackError, HeaderListTooLarge) as error:
        return type(error)


def is_too_large(fields, max_list_size, max_fields):
    return len(fields) > max_fields or sum(32 + len(name) + len(value) for name, value in fields) > max_list_size
