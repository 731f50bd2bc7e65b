import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transport.http2 import wire

from headrace.transport.http2.frames import ErrorCode, ProtocolViolation, StreamViolation
from headrace.transport.http2.outbound import Block, Outbound

HEAD = Block([(b":status", b"200"), (b"content-type", b"application/grpc")])
TAIL = Block([(b"grpc-status", b"0")])
PREFIX = b"12345"
MAX = 2**31 - 1


class FakeStream:
    def __init__(self, stream_id):
        self.id = stream_id
        self.sid = stream_id.to_bytes(4, "big")
        self.send_delta = 0
        self.pending = None
        self.writable = 0

    def on_writable(self):
        self.writable += 1


class Sending:
    """An Outbound and what the peer sees of it."""

    def __init__(self, *, window=65_535, initial_window=65_535):
        self.woken = 0
        self.finished = []
        self.outbound = Outbound(self.wake, self.finished.append)
        self.outbound.window = window
        self.outbound.initial_window = initial_window
        self.reader = wire.Reader()

    def wake(self):
        self.woken += 1

    def lines(self):
        return self.reader.feed(self.outbound.take())

    def respond(self, stream, body):
        self.outbound.respond(stream, HEAD, PREFIX, body, TAIL)


def reply(stream_id, *sizes):
    head = [f"HEADERS {stream_id} 200"] if sizes else []
    return [*head, *(f"DATA {stream_id} {size}" for size in sizes), f"HEADERS {stream_id} trailers END_STREAM"]


@pytest.fixture
def sending():
    return Sending()


def test_a_reply_in_one_go(sending):
    one, two = FakeStream(1), FakeStream(3)
    for stream in (one, two):
        sending.respond(stream, b"abc")
    assert sending.woken == 1
    assert sending.finished == [one, two]
    assert sending.lines() == [*reply(1, 8), *reply(3, 8)]
    assert sending.outbound.window == 65_535 - 16


def test_the_first_block_clears_the_clients_table(sending):
    """So that constant blocks are right whatever table size the client allows (RFC 7541, 4.2)."""
    for stream_id in (1, 3):
        sending.outbound.headers(FakeStream(stream_id), HEAD, end=True)
    first, second = wire.frames_in(sending.outbound.take())
    assert first.data[0] == 0x20
    assert second.data == first.data[1:] == HEAD.encoded
    decoder = hpack.Decoder()
    decoder.max_allowed_table_size = 0
    assert decoder.decode(first.data)[0] == (":status", "200")


def test_wakes_once_for_what_is_taken_together(sending):
    for _ in range(3):
        sending.outbound.write(wire.ping())
    assert sending.woken == 1
    assert sending.outbound.take() == wire.ping() * 3
    assert sending.outbound.take() == b""
    sending.outbound.write(wire.ping())
    assert sending.woken == 2


def test_a_reply_waits_for_the_streams_window():
    sending = Sending(initial_window=7)
    stream = FakeStream(1)
    sending.respond(stream, b"abcdef")
    assert sending.lines() == ["HEADERS 1 200", "DATA 1 7"]
    assert (sending.finished, sending.outbound.pending_octets) == ([], 4)
    sending.outbound.open_stream_window(stream, 1)
    assert sending.lines() == ["DATA 1 1"]
    sending.outbound.open_stream_window(stream, 100)
    assert sending.lines() == ["DATA 1 3", "HEADERS 1 trailers END_STREAM"]
    assert (sending.finished, sending.outbound.pending_octets) == ([stream], 0)
    assert sending.reader.bodies[1] == PREFIX + b"abcdef"
    assert stream.pending is None


def test_replies_wait_for_the_connections_window():
    sending = Sending(window=10)
    one, two, three = (FakeStream(n) for n in (1, 3, 5))
    for stream in (one, two, three):
        sending.respond(stream, b"abc")
    assert sending.lines() == [
        "HEADERS 1 200",
        "DATA 1 8",
        "HEADERS 1 trailers END_STREAM",
        "HEADERS 3 200",
        "DATA 3 2",
        "HEADERS 5 200",
    ]
    sending.outbound.open_stream_window(three, 50)
    assert sending.lines() == []
    sending.outbound.open_window(7)
    assert sending.lines() == ["DATA 3 6", "HEADERS 3 trailers END_STREAM", "DATA 5 1"]
    sending.outbound.open_window(100)
    assert sending.lines() == ["DATA 5 7", "HEADERS 5 trailers END_STREAM"]
    assert sending.finished == [one, two, three]


def test_frames_are_cut_to_the_peers_size(sending):
    sending.respond(FakeStream(1), bytes(20_000))
    assert sending.lines() == reply(1, 5, 16_384, 3_616)
    sending.outbound.max_frame = 40_000
    sending.respond(FakeStream(3), bytes(20_000))
    assert sending.lines() == reply(3, 20_005)


def test_end_stream_goes_with_the_last_octet(sending):
    stream = FakeStream(1)
    sending.outbound.data(stream, b"a" * 16_384 * 2, end=True)
    assert sending.lines() == ["DATA 1 16384", "DATA 1 16384 END_STREAM"]
    assert sending.finished == [stream]


@pytest.mark.parametrize("window", [0, -5, 10])
def test_an_empty_end_needs_no_window(window):
    sending = Sending(initial_window=window)
    stream = FakeStream(1)
    sending.outbound.data(stream, b"")
    assert sending.lines() == []
    sending.outbound.data(stream, b"", end=True)
    assert sending.lines() == ["DATA 1 0 END_STREAM"]
    assert sending.finished == [stream]


def test_order_is_kept_behind_what_waits():
    """Headers, data and trailers of a stream leave in the order in which they were given."""
    sending = Sending(initial_window=1)
    stream = FakeStream(1)
    outbound = sending.outbound
    outbound.headers(stream, HEAD)
    outbound.data(stream, b"ab")
    outbound.headers(stream, HEAD)
    outbound.data(stream, b"cd")
    outbound.headers(stream, HEAD)
    outbound.headers(stream, TAIL, end=True)
    assert sending.lines() == ["HEADERS 1 200", "DATA 1 1"]
    outbound.open_stream_window(stream, 2)
    assert sending.lines() == ["DATA 1 1", "HEADERS 1 200", "DATA 1 1"]
    assert outbound.pending_octets == 1
    outbound.open_stream_window(stream, 1)
    assert sending.lines() == ["DATA 1 1", "HEADERS 1 200", "HEADERS 1 trailers END_STREAM"]
    assert sending.finished == [stream]


def test_a_change_of_the_initial_window_moves_all_streams():
    sending = Sending(initial_window=4)
    stream = FakeStream(1)
    sending.outbound.data(stream, b"abcdefgh", end=True)
    assert sending.lines() == ["DATA 1 4"]
    sending.outbound.set_initial_window(1, [stream])
    sending.outbound.pump()  # the window is -3 now
    sending.outbound.open_stream_window(stream, 3)
    assert sending.lines() == []
    sending.outbound.set_initial_window(2, [stream])
    sending.outbound.pump()
    assert sending.lines() == ["DATA 1 1"]
    sending.outbound.set_initial_window(100, [stream])
    sending.outbound.pump()
    assert sending.lines() == ["DATA 1 3 END_STREAM"]


def test_windows_do_not_overflow():
    sending = Sending()
    stream = FakeStream(1)
    sending.outbound.open_window(MAX - 65_535)
    with pytest.raises(ProtocolViolation) as connection:
        sending.outbound.open_window(1)
    sending.outbound.open_stream_window(stream, MAX - 65_535)
    with pytest.raises(StreamViolation) as violation:
        sending.outbound.open_stream_window(stream, 1)
    with pytest.raises(ProtocolViolation) as change:
        sending.outbound.set_initial_window(65_536, [FakeStream(3), stream])
    assert {connection.value.code, violation.value.code, change.value.code} == {ErrorCode.FLOW_CONTROL_ERROR}


def test_a_forgotten_stream_sends_nothing_more():
    sending = Sending(initial_window=0)
    one, two = FakeStream(1), FakeStream(3)
    for stream in (one, two):
        sending.respond(stream, b"abc")
    sending.lines()
    sending.outbound.forget(one)
    sending.outbound.forget(one)
    assert sending.outbound.pending_octets == 8
    sending.outbound.set_initial_window(100, [two])
    sending.outbound.pump()
    assert sending.lines() == ["DATA 3 8", *reply(3)]
    assert sending.finished == [two]
    assert "0 streams blocked, 0 octets wait" in repr(sending.outbound)


def test_what_counts_as_sent(sending):
    """HEADERS and DATA do, for they forgive pings; control frames do not."""
    sending.outbound.write(wire.ping())
    assert sending.outbound.sent == 0
    stream = FakeStream(1)
    sending.outbound.headers(stream, HEAD)
    assert sending.outbound.sent == 1
    sending.outbound.data(stream, b"x")
    assert sending.outbound.sent == 2
    sending.respond(FakeStream(3), b"")
    assert sending.outbound.sent > 2


def test_a_block_too_large_for_a_frame_is_refused():
    with pytest.raises(ValueError, match="one frame"):
        Block([(b"n", b"v" * 16_384)])


@given(
    st.lists(st.integers(0, 40_000), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(0, 6), st.integers(1, 30_000)), max_size=60),
    st.integers(0, 70_000),
)
def test_everything_leaves_within_the_windows(bodies, updates, initial_window):
    """Stream n of `updates` has its window opened, 0 is the connection; then all are opened wide."""
    sending = Sending(initial_window=initial_window)
    streams = [FakeStream(1 + 2 * n) for n in range(len(bodies))]
    allowed = {0: 65_535} | {stream.id: initial_window for stream in streams}
    for stream, size in zip(streams, bodies, strict=True):
        sending.respond(stream, b"%d" % stream.id * size)
    everything = [(at, 1_000_000) for at in range(len(bodies) + 1)]
    for at, increment in [*updates, *everything]:
        for line in sending.lines():
            kind, stream_id, *rest = line.split()
            if kind == "DATA":
                for window in (0, int(stream_id)):
                    allowed[window] -= int(rest[0])
        assert min(allowed.values()) >= 0
        if at == 0:
            allowed[0] += increment
            sending.outbound.open_window(increment)
        elif at <= len(streams):
            allowed[streams[at - 1].id] += increment
            sending.outbound.open_stream_window(streams[at - 1], increment)
    sending.lines()
    for stream, size in zip(streams, bodies, strict=True):
        assert sending.reader.bodies[stream.id] == PREFIX + b"%d" % stream.id * size
    assert sorted(stream.id for stream in sending.finished) == [stream.id for stream in streams]
    assert sending.outbound.pending_octets == 0
