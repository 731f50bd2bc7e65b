import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import MessageTooLarge
from headrace.transport.rest.body import IN_CHUNKS, SMALL, Body


def test_in_one_piece_it_is_not_copied():
    body, chunk = Body(3, 10), b"abc"
    body.feed(chunk)
    assert (body.filled, body.take()) == (3, b"abc")
    assert body.take() == b""


def test_nothing():
    assert Body(0, 10).take() == b""
    assert Body(IN_CHUNKS, 10).take() == b""


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=10))
def test_in_pieces(chunks):
    whole = b"".join(chunks)
    for length in (len(whole), IN_CHUNKS):
        body = Body(length, 1000)
        for chunk in chunks:
            body.feed(chunk)
        assert (body.filled, bytes(body.take())) == (len(whole), whole)
        assert body.room is None


def test_chunks_above_the_limit():
    body = Body(IN_CHUNKS, 5)
    body.feed(b"abc")
    with pytest.raises(MessageTooLarge, match="the body is larger than 5 octets, which is the limit"):
        body.feed(b"def")
    body.feed(b"de")
    assert body.take() == b"abcde"


@pytest.mark.parametrize("first", [b"", b"abc"])
def test_a_large_one_is_received_where_it_stays(first):
    length = SMALL + 100
    body = Body(length, 1 << 20)
    if first:
        body.feed(first)
    room = body.room
    assert len(room) == length - len(first)
    room[:5] = b"defgh"
    body.filled += 5
    rest = b"x" * (length - body.filled)
    assert len(body.room) == len(rest)
    body.room[:] = rest
    body.filled += len(rest)
    assert body.room is None
    assert repr(body) == f"<Body {length} of {length} octets>"
    whole = body.take()
    assert isinstance(whole, memoryview)
    assert whole == first + b"defgh" + rest


def test_only_an_announced_one_has_room():
    assert len(Body(5, 1 << 20).room) == 5
    assert Body(IN_CHUNKS, 1 << 20).room is None
    assert Body(0, 1 << 20).room is None


def test_a_large_one_in_chunks_is_not_copied_again():
    body = Body(IN_CHUNKS, 1 << 20)
    body.feed(b"x" * SMALL)
    body.feed(b"x")
    assert isinstance(body.take(), memoryview)
    assert repr(body) == f"<Body {SMALL + 1} of unknown octets>"
