import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transport.http2.wire import literal, request_fields

from headrace.transport.http2.frames import ErrorCode, ProtocolViolation, StreamViolation
from headrace.transport.http2.heads import HeadReader, PartialBlock
from headrace.transport.http2.limits import Limits

PLAIN = b"".join(literal(*field) for field in request_fields())
INDEX_62 = b"\xbe"


class Heads:
    """A HeadReader whose application keeps the fields, and counts how often it was asked."""

    def __init__(self, **limits):
        self.asked = 0
        self.reader = HeadReader(Limits(**limits), self.read_head)

    def read_head(self, fields):
        self.asked += 1
        return fields

    def app(self, block):
        return self.reader.request(block).app


def malformed(call, block):
    with pytest.raises(StreamViolation) as raised:
        call(block)
    assert raised.value.code is ErrorCode.PROTOCOL_ERROR


def test_a_block_is_read_once():
    heads = Heads()
    first = heads.reader.request(PLAIN)
    assert heads.reader.request(bytes(bytearray(PLAIN))) is first
    assert heads.asked == 1
    assert first.app[0] == (b":method", b"GET")
    assert first.content_length == -1


def test_content_length_is_kept():
    assert Heads().reader.request(PLAIN + literal("content-length", "17")).content_length == 17


def test_a_block_that_changes_the_table_is_read_again():
    heads = Heads()
    for _ in range(3):
        heads.app(PLAIN + literal("n", "v", 0x40))
    assert heads.asked == 3


@pytest.mark.parametrize(
    "change",
    [
        lambda heads: heads.app(PLAIN + literal("n", "other", 0x40)),
        lambda heads: heads.reader.trailers(literal("n", "other", 0x40)),
        lambda heads: heads.reader.discard(literal("n", "other", 0x40)),
        lambda heads: heads.app(PLAIN + literal("n", "other", 0x40) + literal("big", "x" * 200) * 100),
        lambda heads: malformed(heads.app, literal("n", "other", 0x40)),
        lambda heads: malformed(heads.reader.trailers, literal("N", "other", 0x40)),
    ],
    ids=["request", "trailers", "discarded", "over the limits", "malformed request", "malformed trailers"],
)
def test_a_change_of_the_table_forgets_what_blocks_meant(change):
    """The same octets mean another field after any insertion, whatever became of the block that made it."""
    heads = Heads()
    heads.app(PLAIN + literal("n", "v", 0x40))
    assert heads.app(PLAIN + INDEX_62)[-1] == (b"n", b"v")
    change(heads)
    try:
        fields = heads.app(PLAIN + INDEX_62)
    except StreamViolation:
        return  # the malformed field itself
    assert fields[-1] == (b"n", b"other")


def test_a_malformed_block_is_malformed_each_time():
    heads = Heads()
    for _ in range(3):
        malformed(heads.app, literal("n", "v"))
    assert heads.asked == 0


def test_over_the_limits_the_application_sees_none():
    heads = Heads()
    for _ in range(2):
        assert heads.app(PLAIN + literal("n", "v" * 100) * 125) is None
        assert heads.app(PLAIN + literal("n", "v" * 17_000)) is None
    assert heads.app(PLAIN + literal("n", "v") * 124) is not None


def test_an_undecodable_block_ends_the_connection():
    for call in (Heads().reader.request, Heads().reader.trailers, Heads().reader.discard):
        with pytest.raises(ProtocolViolation) as raised:
            call(b"\x80")
        assert raised.value.code is ErrorCode.COMPRESSION_ERROR


def test_what_is_remembered_is_bounded():
    heads = Heads()
    for n in range(2000):
        heads.app(PLAIN + literal("n", str(n)))
    assert len(heads.reader._heads) <= 512
    long = PLAIN + literal("n", "v" * 2000)
    heads.app(long)
    assert long not in heads.reader._heads


NAMES = st.sampled_from(["a", "b", "grpc-timeout", "N"])
FIELDS = st.lists(st.tuples(NAMES, st.sampled_from(["1", "2", "x" * 100])), max_size=4)


@given(st.lists(st.tuples(FIELDS, st.sampled_from([None, 0, 60, 4096])), max_size=30))
def test_as_hpack_understands_it(requests):
    """An indexing client with a small table, good and malformed requests mixed: each head is that of its own block."""
    heads, encoder, oracle = Heads(), hpack.Encoder(), hpack.Decoder()
    for more, table_size in requests:
        if table_size is not None:
            encoder.header_table_size = table_size
        block = encoder.encode([*request_fields(), *more], huffman=False)
        expected = [(name.encode(), value.encode()) for name, value in oracle.decode(block)]
        if any(name == b"N" for name, _ in expected):
            malformed(heads.app, block)
        else:
            assert heads.app(block) == expected


def test_a_partial_block():
    block = PartialBlock(3, 1, b"ab", Limits())
    block.add(b"")
    block.add(b"cd")
    assert (block.stream_id, block.flags, block.whole()) == (3, 1, b"abcd")


@pytest.mark.parametrize(("piece", "pieces"), [(b"", 4), (b"x" * 30, 3)])
def test_a_partial_block_is_bounded(piece, pieces):
    """In frames, so that empty ones count too, and in octets."""
    block = PartialBlock(1, 0, b"x" * 10, Limits(max_block=100, max_continuations=4))
    for _ in range(pieces):
        block.add(piece)
    with pytest.raises(ProtocolViolation) as raised:
        block.add(piece)
    assert raised.value.code is ErrorCode.ENHANCE_YOUR_CALM
