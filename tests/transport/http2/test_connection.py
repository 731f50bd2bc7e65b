"""What the tables of test_conformance cannot say: windows, limits, floods, and how a connection ends."""

import pytest
from transport.http2 import wire
from transport.http2.wire import data, get, headers, literal, ping, post, rst, window_update

from headrace.transport.http2 import frames
from headrace.transport.http2.connection import Connection
from headrace.transport.http2.frames import ErrorCode
from headrace.transport.http2.limits import Limits
from headrace.transport.http2.outbound import Block
from headrace.transport.http2.stream import Stream

HELLO = wire.hello()
NOW = 10**9
SECOND = 10**9
HEAD = Block([(b":status", b"200")])
TAIL = Block([(b"grpc-status", b"0")])
CALM = "ENHANCE_YOUR_CALM"


class Recorder(Stream):
    """Notes what happens to it."""

    def __init__(self, connection, stream_id, head):
        super().__init__(connection, stream_id, head)
        self.events = []

    def on_headers(self, end):
        self.events.append(("headers", end))

    def on_data(self, data, start, stop, end):
        self.events.append((bytes(data[start:stop]), end))

    def on_reset(self):
        self.events.append("reset")


class Server:
    """A connection whose handshake is done."""

    def __init__(self, hello=HELLO, **limits):
        self.streams = {}
        self.woken = 0
        self.connection = Connection(Limits(**limits), self.open_stream, self.read_head, self.wake)
        self.reader = wire.Reader()
        self.now = NOW
        self.send(hello)

    def open_stream(self, connection, stream_id, head):
        self.streams[stream_id] = Recorder(connection, stream_id, head)
        return self.streams[stream_id]

    def read_head(self, fields):
        return fields

    def wake(self):
        self.woken += 1

    def lines(self):
        return self.reader.feed(self.connection.outbound.take())

    def send(self, *octets):
        for read in octets:
            self.connection.receive(read, self.now)
        return self.lines()

    def answer(self, stream_id, body=b""):
        self.connection.outbound.respond(self.streams[stream_id], HEAD, b"", body, TAIL)

    def events(self, stream_id):
        return self.streams[stream_id].events


@pytest.fixture
def server():
    return Server()


def goaway(code, last=0):
    return [f"GOAWAY {last} {code}"]


# --- requests ---------------------------------------------------------------------------------------------------------


def test_what_a_stream_hears(server):
    server.send(post() + data(1, b"ab") + data(1, b"", padding=3))
    assert server.streams[1].octets == 2
    server.send(data(1, b"c", end=True) + get(3))
    assert server.events(1) == [("headers", False), (b"ab", False), (b"", False), (b"c", True)]
    assert server.events(3) == [("headers", True)]
    server.send(post(5) + headers(5, [("x", "y")]))
    assert server.events(5) == [("headers", False), (b"", True)]


def test_what_ends_a_stream_is_heard_once(server):
    server.send(post(1) + post(3) + post(5) + rst(1) + window_update(3, 0) + rst(1) + window_update(3, 0))
    for stream_id in (1, 3):
        assert server.events(stream_id) == [("headers", False), "reset"]
    server.connection.lost()
    server.connection.lost()
    assert server.events(5) == [("headers", False), "reset"]
    assert server.connection.streams == {}


def test_the_application_gives_a_stream_up(server):
    server.send(post())
    server.connection.reset(server.streams[1], ErrorCode.CANCEL)
    server.connection.reset(server.streams[1], ErrorCode.CANCEL)
    assert server.lines() == ["RST_STREAM 1 CANCEL"]
    assert server.events(1) == [("headers", False)]


def test_a_complete_reply_frees_the_stream(server):
    server.send(get())
    server.answer(1, b"abc")
    assert server.lines() == ["HEADERS 1 200", "DATA 1 3", "HEADERS 1 trailers END_STREAM"]
    assert server.connection.streams == {}


def test_an_early_reply_asks_the_client_to_stop(server):
    server.send(post())
    server.answer(1)
    assert server.lines()[-2:] == ["HEADERS 1 trailers END_STREAM", "RST_STREAM 1 NO_ERROR"]
    assert server.send(data(1, b"late"), data(1, end=True), rst(1)) == []
    assert server.events(1) == [("headers", False)]


def test_a_waiting_reply_keeps_the_stream(server):
    server.send(wire.settings((wire.INITIAL_WINDOW, 0)), get())
    server.answer(1, b"abc")
    assert list(server.connection.streams) == [1]
    assert server.send(rst(1)) == ["HEADERS 1 200"]
    assert server.connection.streams == {}
    assert server.connection.outbound.pending_octets == 0


# --- what may be received --------------------------------------------------------------------------------------------


def test_a_stream_is_credited_by_the_application(server):
    server.send(post() + data(1, bytes(1000)))
    stream = server.streams[1]
    assert stream.recv_window == (1 << 20) - 1000
    server.connection.credit(stream, 600)
    server.connection.credit(stream, 0)
    assert server.lines() == ["WINDOW_UPDATE 1 600"]
    assert stream.recv_window == (1 << 20) - 400
    server.send(data(1, end=True))
    server.connection.credit(stream, 400)
    assert server.lines() == []


def test_the_streams_window_binds():
    server = Server(initial_window=20_000)
    assert server.send(post() + data(1, bytes(10_000)) * 2) == []
    assert server.send(data(1, b"x")) == ["RST_STREAM 1 FLOW_CONTROL_ERROR"]
    assert server.events(1)[-1] == "reset"
    padded = wire.frame(wire.DATA, wire.PADDED, 3, b"\x0a" + bytes(10_009))
    assert server.send(post(3) + data(3, bytes(10_000)) + padded) == ["RST_STREAM 3 FLOW_CONTROL_ERROR"]


def test_the_connections_window_is_opened_by_halves():
    server = Server(connection_window=100_000)
    for stream_id in range(1, 21, 2):
        assert server.send(post(stream_id) + data(stream_id, bytes(4_900))) == []
    assert server.send(data(1, bytes(1_000))) == ["WINDOW_UPDATE 0 50000"]


@pytest.mark.parametrize(
    "ending",
    [
        pytest.param(lambda server: server.send(window_update(1, 0)), id="reset for an error"),
        pytest.param(lambda server: server.answer(1), id="answered early"),
        pytest.param(lambda server: server.connection.reset(server.streams[1], ErrorCode.CANCEL), id="given up"),
        pytest.param(lambda server: server.send(rst(1)), id="reset by the client"),
        pytest.param(lambda server: server.send(data(1, end=True)), id="half-closed"),
    ],
)
def test_data_for_a_stream_that_is_gone_is_credited_to_the_connection(ending):
    server = Server(connection_window=100_000)
    server.send(post())
    ending(server)
    server.lines()
    credited = 0
    for _ in range(20):
        for line in server.send(data(1, bytes(10_000))):
            if line.startswith("WINDOW_UPDATE 0"):
                credited += int(line.split()[2])
    assert credited == 200_000
    assert not server.connection.closing
    assert server.connection.streams == {}


def test_padding_leaks_no_credit():
    server = Server(initial_window=65_535, connection_window=100_000)
    server.send(post())
    for _ in range(2000):
        server.send(data(1, b"x", padding=255))
        server.connection.credit(server.streams[1], 1)
    assert server.streams[1].recv_window == 65_535
    assert not server.connection.closing


# --- limits ----------------------------------------------------------------------------------------------------------


class Work:
    finished = False


def test_streams_over_the_limit_are_refused():
    server = Server(max_streams=2)
    assert server.send(post(1) + post(3) + post(5)) == ["RST_STREAM 5 REFUSED_STREAM"]
    assert 5 not in server.streams
    assert server.send(data(5, b"late") + headers(5, b"") + rst(1) + post(7)) == []
    assert list(server.connection.streams) == [3, 7]


def test_a_refused_streams_block_is_decoded():
    server = Server(max_streams=1)
    server.send(post())
    indexed = literal("n", "v", 0x40)
    assert server.send(headers(3, wire.block(*wire.request_fields()) + indexed)) == ["RST_STREAM 3 REFUSED_STREAM"]
    server.send(rst(1) + headers(5, wire.block(*wire.request_fields()) + b"\xbe"))
    assert server.streams[5].head.app[-1] == (b"n", b"v")


def test_before_the_ack_a_client_may_not_know_the_limit():
    server = Server(wire.PREFACE + wire.settings(), max_streams=2)
    assert server.send(b"".join(post(n) for n in (1, 3, 5, 7, 9))) == ["RST_STREAM 9 REFUSED_STREAM"]
    assert not server.connection.controls.settings_acked
    server.send(wire.frame(wire.SETTINGS, wire.ACK))
    assert server.connection.controls.settings_acked
    assert server.send(rst(1) + rst(3) + post(11)) == ["RST_STREAM 11 REFUSED_STREAM"]


def test_work_for_streams_that_are_gone_counts():
    server = Server(max_streams=2)
    works = [Work(), Work()]
    server.connection.lingering += works
    assert server.send(post(1)) == ["RST_STREAM 1 REFUSED_STREAM"]
    works[0].finished = True
    assert server.send(post(3)) == []
    assert server.connection.lingering == works[1:]


def test_replies_that_nobody_takes_keep_new_streams_out():
    server = Server(wire.hello((wire.INITIAL_WINDOW, 0)), max_unsent=1000)
    for stream_id in (1, 3):
        server.send(get(stream_id))
        server.answer(stream_id, bytes(600))
    server.lines()
    assert server.send(get(5)) == ["RST_STREAM 5 REFUSED_STREAM"]
    assert 5 not in server.streams
    server.send(window_update(1, 600))
    server.send(get(7))
    assert 7 in server.streams


@pytest.mark.parametrize(
    ("flood", "bucket"),
    [
        pytest.param(lambda n: get(1 + 2 * n) + rst(1 + 2 * n), "resets", id="rapid reset"),
        pytest.param(lambda n: post(1 + 2 * n) + window_update(1 + 2 * n, 0), "glitches", id="made to reset"),
        pytest.param(lambda n: post(1 + 2 * n) + wire.priority(1 + 2 * n, 1 + 2 * n), "glitches", id="dependency"),
        pytest.param(lambda n: get(1 + 2 * n, ("connection", "x")), "glitches", id="malformed"),
        pytest.param(lambda n: wire.priority(1, 3), "glitches", id="priority"),
        pytest.param(lambda n: wire.settings((0xFF, 1)), "glitches", id="settings"),
        pytest.param(
            lambda n: (
                wire.frame(wire.HEADERS, wire.END_STREAM, 1 + 2 * n, wire.block(*wire.request_fields()))
                + wire.frame(wire.CONTINUATION, 0, 1 + 2 * n)
                + wire.frame(wire.CONTINUATION, wire.END_HEADERS, 1 + 2 * n)
            ),
            "glitches",
            id="empty continuation",
        ),
        pytest.param(lambda n: (post() if n == 0 else b"") + data(1), "glitches", id="empty data"),
        pytest.param(
            lambda n: (post() if n == 0 else b"") + data(1, b"", padding=200), "glitches", id="data of padding alone"
        ),
        pytest.param(
            lambda n: (get() + rst(1) if n == 0 else b"") + data(1, b"x"), "glitches", id="data on a closed stream"
        ),
    ],
)
def test_patience_ends(flood, bucket):
    """A burst is borne, and a rate; what is beyond ends the connection."""
    server = Server(**{bucket: 20, f"{bucket}_per_second": 10})
    sent = 0
    while not server.connection.closing:
        assert sent < 25
        lines = server.send(flood(sent))
        sent += 1
    assert sent >= 19
    assert lines[-1].endswith(CALM)
    assert server.connection.closed_with is ErrorCode.ENHANCE_YOUR_CALM
    server = Server(**{bucket: 20, f"{bucket}_per_second": 10})
    for n in range(200):
        server.now += SECOND // 10
        server.send(flood(n))
    assert not server.connection.closing


def test_pings_without_end():
    server = Server()
    assert server.send(ping() * 3) == ["PING 12345678 ACK"] * 3
    assert server.send(ping()) == ["PING 12345678 ACK", *goaway(CALM)]


def test_a_ping_for_each_reply_is_free(server):
    for stream_id in range(1, 101, 2):
        server.send(get(stream_id) + ping() * 2)
        server.answer(stream_id, b"abc")
    assert not server.connection.closing


@pytest.mark.parametrize("piece", [b"", b"\0" * 16_000])
def test_continuations_without_end(piece):
    server = Server()
    flood = wire.frame(wire.HEADERS, 0, 1, b"") + wire.frame(wire.CONTINUATION, 0, 1, piece) * 40
    assert server.send(flood) == goaway(CALM)


def test_a_field_block_that_grows_large(server):
    """By reference to one large entry: the application sees that it was too large, the table stays in step."""
    bomb = wire.block(*wire.request_fields()) + literal("n", "v" * 4000, 0x40) + b"\xbe" * 16_000
    assert len(bomb) < 20_100
    opening = wire.frame(wire.HEADERS, wire.END_STREAM, 1, bomb[:10_000])
    server.send(opening + wire.frame(wire.CONTINUATION, wire.END_HEADERS, 1, bomb[10_000:]))
    assert server.streams[1].head.app is None
    server.send(headers(3, wire.block(*wire.request_fields()) + b"\xbe"))
    assert server.streams[3].head.app[-1] == (b"n", b"v" * 4000)


# --- the end ----------------------------------------------------------------------------------------------------------


def test_a_violation_ends_everything(server):
    server.send(post(1) + post(3))
    assert server.send(ping() + window_update(0, 0) + ping()) == ["PING 12345678 ACK", *goaway("PROTOCOL_ERROR", 3)]
    assert server.events(1)[-1] == server.events(3)[-1] == "reset"
    assert server.connection.closed_with is ErrorCode.PROTOCOL_ERROR
    assert server.send(ping(), b"anything") == []
    assert "closing PROTOCOL_ERROR" in repr(server.connection)
    server.connection.fail(ErrorCode.INTERNAL_ERROR)
    server.connection.drain()
    assert server.lines() == []


def test_draining(server):
    server.send(post(1))
    server.connection.drain()
    server.connection.drain()
    assert server.lines() == [f"GOAWAY {2**31 - 1} NO_ERROR", "PING headrace"]
    assert not server.connection.drained
    assert server.send(post(3)) == []  # was under way when the client heard of it
    assert server.send(ping(frames.DRAIN_PING, wire.ACK)) == goaway("NO_ERROR", 3)
    assert server.send(ping(frames.DRAIN_PING, wire.ACK)) == []
    assert server.send(post(5) + data(5, b"x", end=True)) == []
    assert list(server.connection.streams) == [1, 3]
    for stream_id in (1, 3):
        server.send(data(stream_id, end=True))
        server.answer(stream_id)
    assert server.connection.drained


def test_streams_behind_the_last_goaway_are_dropped_in_silence(server):
    server.connection.drain()
    server.connection.last_goaway()
    server.lines()
    indexed = wire.block(*wire.request_fields(method="POST")) + literal("n", "v", 0x40)
    late = headers(1, indexed, end=False) + data(1, bytes(100)) + headers(1, b"\xbe") + rst(1) + window_update(1, 1)
    assert server.send(late) == []
    assert server.streams == {}
    assert server.send(headers(3, b"\xbf")) == goaway("COMPRESSION_ERROR", 3)


def test_an_ack_that_nobody_asked_for_is_no_drain(server):
    assert server.send(ping(frames.DRAIN_PING, wire.ACK)) == []
    assert not server.connection.drained


def test_the_client_leaves(server):
    server.send(post(1))
    assert server.send(wire.goaway() + ping()) == ["PING 12345678 ACK"]
    assert not server.connection.drained
    server.send(data(1, end=True))
    server.answer(1)
    assert server.connection.drained


def test_keep_alive(server):
    server.connection.keep_alive()
    (line,) = server.lines()
    assert line.startswith("PING keep-hr")
    assert server.send(ping(frames.KEEPALIVE_PING, wire.ACK)) == []


def test_memory_of_what_is_gone_is_bounded():
    server = Server(resets=10**6, glitches=10**6)
    for n in range(5000):
        server.send(get(1 + 6 * n) + rst(1 + 6 * n))
        server.streams.clear()
    ids = server.connection.ids
    assert (len(ids._reset), len(ids._skipped)) == (1024, 16)
    assert server.connection.streams == {}


def test_octets_wake_the_shell_once(server):
    woken = server.woken
    server.connection.receive(ping(), NOW)
    server.connection.receive(ping(), NOW)
    assert server.woken == woken + 1
    server.lines()
    server.connection.receive(ping(), NOW)
    assert server.woken == woken + 2
