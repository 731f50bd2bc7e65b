import gzip
import resource
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transport.http2.wire import message, word

from headrace.errors import MessageTooLarge, ProtocolError, Unimplemented
from headrace.transport.grpc_messages import MessageReader, only

MAX = 200_000


def read(octets, *, cuts=(), max_message=MAX, encoding=b""):
    reader = MessageReader(max_message, encoding)
    found = []
    for start, stop in zip([0, *cuts], [*cuts, len(octets)], strict=True):
        found += reader.feed(memoryview(octets)[start:stop])
    return [bytes(one) for one in found], reader


def test_messages():
    found, reader = read(message(b"one") + message(b"") + message(b"two"))
    assert found == [b"one", b"", b"two"]
    assert not reader.within
    assert reader.filled == 0


@given(st.lists(st.one_of(st.binary(max_size=20), st.integers(0, 70_000).map(bytes)), max_size=4), st.data())
def test_any_split(messages, data):
    octets = b"".join(map(message, messages))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(octets)), max_size=6)))
    found, reader = read(octets, cuts=cuts)
    assert found == messages
    assert not reader.within


def test_the_inside_of_a_large_message_is_laid_down_by_others():
    payload = np.random.default_rng(0).integers(0, 256, 200_000, np.uint8).tobytes()
    octets = message(payload)
    reader = MessageReader(MAX, b"")
    assert reader.room == 0
    reader.feed(memoryview(octets)[:105])
    assert reader.room == len(payload) - 100 - 1
    reader.buffer[100:160_100] = payload[100:160_100]
    reader.filled = 160_100
    assert reader.room == len(payload) - 160_100 - 1
    assert reader.feed(memoryview(octets)[160_105:]) == [payload]
    assert reader.room == 0


def test_a_small_message_has_no_room_for_rows():
    reader = MessageReader(MAX, b"")
    reader.feed(memoryview(message(bytes(1000)))[:100])
    assert reader.within
    assert reader.room == 0


def test_where_a_message_ends():
    octets = message(b"abc")
    for stop in range(len(octets) + 1):
        reader = read(octets[:stop])[1]
        assert reader.within == (0 < stop < len(octets))
        assert reader.filled == (max(0, stop - 5) if stop < len(octets) else 0)


def test_the_limit_is_decided_on_the_prefix():
    assert len(read(message(bytes(MAX)))[0][0]) == MAX
    with pytest.raises(MessageTooLarge, match=rf"larger than max \({MAX + 1} vs. {MAX}\)"):
        read(b"\0" + word(MAX + 1))


def resident():
    """Octets of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="how much is resident is read from Linux's /proc")
def test_an_announced_length_costs_nothing():
    before = resident()
    readers = [MessageReader(64 << 20, b"") for _ in range(8)]
    for reader in readers:
        reader.feed(memoryview(b"\0" + word(64 << 20)))
    assert resident() - before < 8 << 20
    assert "0 of 67108864 octets" in repr(readers[0])


@pytest.mark.parametrize("flag", [2, 3, 128, 255])
def test_a_flag_that_does_not_exist(flag):
    with pytest.raises(ProtocolError, match=f"message flag {flag}"):
        read(message(b"abc", flag), encoding=b"gzip")


def test_compression_must_have_been_declared():
    with pytest.raises(ProtocolError, match="no grpc-encoding"):
        read(message(gzip.compress(b"abc"), 1))


def test_gzip():
    octets = message(gzip.compress(b"abc" * 1000), 1) + message(b"plain") + message(gzip.compress(b""), 1)
    assert read(octets, encoding=b"gzip")[0] == [b"abc" * 1000, b"plain", b""]


def test_deflate():
    octets = message(zlib.compress(b"abc" * 1000), 1) + message(b"plain")
    assert read(octets, encoding=b"deflate")[0] == [b"abc" * 1000, b"plain"]
    raw = zlib.compressobj(wbits=-15)
    for wrong in (gzip.compress(b"abc"), raw.compress(b"abc") + raw.flush(), zlib.compress(b"abc") + b"more"):
        with pytest.raises(ProtocolError, match="deflate"):
            read(message(wrong, 1), encoding=b"deflate")


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"abc",
        gzip.compress(b"abc")[:-1],
        gzip.compress(b"abc") + b"more",
        gzip.compress(b"abc") * 2,
        zlib.compress(b"abc"),
        gzip.compress(b"abc")[:-8] + bytes(8),
    ],
    ids=["nothing", "plain", "cut short", "with a tail", "two members", "deflate", "wrong checksum"],
)
def test_what_is_not_one_gzip_member(payload):
    with pytest.raises(ProtocolError, match="gzip"):
        read(message(payload, 1), encoding=b"gzip")


def test_inflation_stops_at_the_limit():
    assert read(message(gzip.compress(bytes(MAX)), 1), encoding=b"gzip")[0] == [bytes(MAX)]
    bomb = message(gzip.compress(bytes(50_000_000)), 1)
    tracemalloc.start()
    try:
        with pytest.raises(MessageTooLarge):
            read(bomb, encoding=b"gzip")
        assert tracemalloc.get_traced_memory()[1] < 4 * MAX
    finally:
        tracemalloc.stop()


def test_a_large_message_ends_aligned():
    """So that a tensor at its end can be run where it lies."""
    for size in (70_000, 70_001, 99_999):
        (large,) = MessageReader(MAX, b"").feed(memoryview(message(bytes(size))))
        view = np.frombuffer(large, np.uint8)
        assert (view.ctypes.data + size) % 64 == 0


def test_only():
    assert only([b"one"]) == b"one"
    for messages in ([], [b"one", b"two"]):
        with pytest.raises(Unimplemented, match="request message"):
            only(messages)
