"""Peers that are slow, and those that ask too much: in virtual time and without sockets."""

import pytest
from transport.http2 import bench as benches
from transport.http2 import wire
from transport.http2.bench import CHAT, COUNT, ECHO, FIRST, INFER, INFER_STREAM
from transport.http2.wire import grpc_call, grpc_head, ping, rst

from headrace.transport.http2.limits import Limit

CALM = "ENHANCE_YOUR_CALM"


@pytest.fixture
def bench():
    with benches.bench() as made:
        yield made


# --- slow -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opened", [0, 1, 90])
def test_windows_that_stay_shut(bench, opened):
    """Or nearly: the reply is given up, not the connection."""
    client = bench.connect()
    client.send(wire.settings((wire.INITIAL_WINDOW, 2)), grpc_call(ECHO, bytes(9_000)))
    for _ in range(60):
        bench.wait(1)
        lines = client.send(wire.window_update(1, opened)) if opened else client.lines()
        assert lines == ([f"DATA 1 {opened}"] if opened else [])
    bench.wait(1)
    assert client.lines() == ["RST_STREAM 1 ENHANCE_YOUR_CALM"]
    assert client.connection.outbound.pending_octets == 0
    assert bench.counts.http2_limits["slow_reader"] == 1
    bench.wait(1000)
    assert not client.socket.lost
    client.send(wire.settings((wire.INITIAL_WINDOW, 100)), grpc_call(ECHO, b"m", 3))
    assert client.messages(3) == [b"m"]


def test_a_slow_reader_is_not_too_slow(bench):
    client = bench.connect()
    bench.infer.answer = lambda sink: sink.reply(bytes(90_000))
    client.send(wire.settings((wire.INITIAL_WINDOW, 5)), grpc_call(INFER))
    for _ in range(900):
        bench.wait(1)
        client.send(wire.window_update(1, 100))
    assert client.messages() == [bytes(90_000)]
    assert bench.counts.http2_limits["slow_reader"] == 0


def test_a_slow_reader_of_replies_that_go_on_to_come_is_not_too_slow(bench):
    client = bench.connect()
    client.send(wire.settings((wire.INITIAL_WINDOW, 5)), grpc_head(INFER_STREAM))
    client.send(wire.data(1, wire.message(b"m") * 70, end=True))
    for work in bench.infer.calls:  # a second each, for one of which the client needs ten
        bench.loop.call_soon(work.sink.reply, bytes(2000))
        bench.wait(1)
        client.send(wire.window_update(1, 200))
    while 1 in client.connection.streams:
        bench.wait(1)
        client.send(wire.window_update(1, 200))
    assert (len(client.messages()), client.status()) == (70, (0, ""))
    assert bench.counts.http2_limits["slow_reader"] == 0


def test_a_slow_reader_of_one_message_after_another_is_not_too_slow(bench):
    """What waits is now less and now more."""
    client = bench.connect()
    client.send(wire.settings((wire.INITIAL_WINDOW, 5)), grpc_call(COUNT, bytes(70)))
    for _ in range(700):
        bench.wait(1)
        client.send(wire.window_update(1, 130))
    assert (len(client.messages()), client.status()) == (70, (0, ""))
    assert bench.counts.http2_limits["slow_reader"] == 0


def test_a_window_that_stays_shut_while_others_are_served(bench):
    client = bench.connect()
    client.send(wire.settings((wire.INITIAL_WINDOW, 6)), grpc_call(ECHO, b"long"))
    for n in range(1, 10):
        bench.wait(10)
        assert client.send(grpc_call(ECHO, b"m", 1 + 2 * n))[-1] == f"HEADERS {1 + 2 * n} trailers END_STREAM"
    assert 1 not in client.connection.streams
    assert not client.socket.lost


@pytest.mark.parametrize(
    "octets",
    [
        grpc_call(ECHO, b"m")[:-3],
        wire.frame(wire.HEADERS, 0, 1, wire.block(*wire.request_fields())),
        ping()[:5],
    ],
    ids=["DATA", "a field block", "PING"],
)
def test_a_frame_that_does_not_end(bench, octets):
    client = bench.connect()
    client.send(octets)
    bench.wait(60)
    assert client.lines() == []
    bench.wait(1)
    (line,) = client.lines()
    assert line.endswith(CALM)
    assert client.socket.ended
    assert bench.counts.http2_limits["slow_frame"] == 1


def test_frames_that_arrive_in_pieces_for_long(bench):
    """Whenever somebody looks there is half a frame, and yet all goes well."""
    client = bench.connect()
    octets = b"".join(grpc_call(ECHO, bytes(2000), 1 + 2 * n) for n in range(100))
    for at in range(0, len(octets), 1001):
        client.send(octets[at : at + 1001])
        bench.wait(1)
    assert len(client.reader.bodies) == 100
    assert not client.socket.ended


def test_a_request_that_stops(bench):
    """With half a message, without any, or with the message but not the end: what was held is let go."""
    client = bench.connect()
    client.send(grpc_head(INFER, 1), grpc_head(INFER, 3), grpc_head(INFER, 5), wire.post(7), grpc_head(CHAT, 9))
    client.send(wire.data(3, wire.message(bytes(100))[:50]) + wire.data(5, wire.message(b"m")))
    client.send(wire.data(9, wire.message(bytes(100))[:50]))
    bench.wait(60)
    assert client.lines() == []
    bench.wait(1)
    lines = client.lines()
    for stream_id in (1, 3, 5, 9):
        assert f"RST_STREAM {stream_id} NO_ERROR" in lines
        assert client.status(stream_id) == (4, "the request's message stopped arriving")
    assert "HEADERS 7 415" in lines
    assert client.peer.buffered == 0
    assert client.connection.streams == {}
    assert bench.counts.http2_limits["slow_request"] == 5
    client.send(grpc_call(ECHO, b"m", 11))
    assert client.messages(11) == [b"m"]


@pytest.mark.parametrize(("step", "arrives"), [(90, False), (100, True)])
def test_a_request_that_dribbles(bench, step, arrives):
    client = bench.connect()
    octets = wire.message(bytes(20_000))
    client.send(grpc_head(ECHO))
    for at in range(0, len(octets), step):
        client.send(wire.data(1, octets[at : at + step]))
        bench.wait(1)
    client.send(wire.data(1, end=True))
    assert client.messages() == ([bytes(20_000)] if arrives else [])
    assert client.status()[0] == (0 if arrives else 4)


@pytest.mark.parametrize("path", [CHAT, INFER_STREAM])
def test_a_stream_may_be_silent_between_messages(bench, path):
    bench.infer.answer = lambda sink: sink.reply(b"reply")
    client = bench.connect()
    client.send(grpc_head(path) + wire.data(1, wire.message(b"one")))
    bench.wait(1000)
    client.send(wire.data(1, wire.message(b"two"), end=True))
    assert len(client.messages()) == 2
    assert client.status()[0] == 0


@pytest.mark.parametrize("path", [CHAT, INFER_STREAM])
def test_a_stream_may_not_stop_within_a_message(bench, path):
    client = bench.connect()
    client.send(grpc_head(path) + wire.data(1, wire.message(b"one")[:-1]))
    bench.wait(61)
    client.lines()
    assert client.status()[0] == 4
    assert client.peer.buffered == 0


def test_a_stream_of_requests_that_waits_for_its_turn_is_not_too_slow():
    """So many are at work that nothing more is credited."""
    with benches.bench(initial_window_bytes=65_535) as made:
        client = made.connect()
        client.send(grpc_head(INFER_STREAM), *[wire.data(1, wire.message(b"m") * 1000) for _ in range(10)])
        client.send(wire.data(1, wire.message(bytes(5_000))[:-1]))
        made.wait(200)
        assert 1 in client.connection.streams
        client.send(rst(1))


def test_a_stream_that_waits_for_its_handler_is_not_too_slow():
    """The client may not send on: that is not its fault."""
    with benches.bench(initial_window_bytes=65_535) as made:
        client = made.connect()
        client.send(grpc_head(FIRST) + wire.data(1, wire.message(bytes(10))))
        client.send(*[wire.data(1, wire.message(bytes(16_000))) for _ in range(4)], wire.data(1, bytes(5)[:3]))
        made.wait(200)
        assert 1 in client.connection.streams
        client.send(rst(1))


def test_the_pace_can_be_set():
    with benches.bench(stall_timeout_s=2, min_bytes_per_s=0) as made:
        client = made.connect()
        client.send(grpc_head(ECHO, 1) + grpc_head(ECHO, 3))
        for _ in range(3):
            client.send(wire.data(1, b"\0"))
            made.wait(1)
        assert list(client.connection.streams) == [1]
        client.send(rst(1))


# --- too much -------------------------------------------------------------------------------------------------------


def test_too_many_connections():
    """The first call of one too many is told so, and the client asked to go; a later connection finds room."""
    with benches.bench(max_connections=2) as made:
        first, second = made.connect(), made.connect()
        late = made.connect()
        lines = late.send(grpc_call(ECHO, b"m"))
        assert late.status() == (14, "2 connections are open, no more are taken (http2.max_connections)")
        trailers = late.reader.fields[1][-1]
        assert (trailers["headrace-reason"], trailers["grpc-retry-pushback-ms"]) == ("overloaded", "1000")
        assert any(line.startswith("GOAWAY") and line.endswith("NO_ERROR") for line in lines)
        assert made.counts.http2_limits["connections"] == 1
        first.hang_up()
        third = made.connect()
        for client in (second, third):
            client.send(grpc_call(ECHO, b"m"))
            assert client.messages() == [b"m"]


def test_one_too_many_is_served_once_there_is_room():
    with benches.bench(max_connections=1) as made:
        first, late = made.connect(), made.connect()
        first.hang_up()
        late.send(grpc_call(ECHO, b"m"))
        assert late.messages() == [b"m"]
        other = made.connect()
        other.send(grpc_call(ECHO, b"m"))
        assert not other.messages()


def test_one_too_many_that_asks_for_nothing_is_asked_to_go():
    with benches.bench(max_connections=1) as made:
        made.connect()
        late = made.connect()
        made.wait(11)
        assert any(line.startswith("GOAWAY") for line in late.lines())


def test_far_too_many_connections():
    with benches.bench(max_connections=1) as made:
        for _ in range(65):
            made.connect()
        late = benches.Client(made)
        assert late.lines() == [*wire.OPENING, f"GOAWAY 0 {CALM}"]
        assert late.socket.lost
        assert len(made.transport.surplus) == 64


@pytest.mark.parametrize(
    ("octets", "limit"),
    [
        (b"".join(wire.post(1 + 2 * n) + rst(1 + 2 * n) for n in range(1001)), "rapid_reset"),
        (ping() * 4, "too_many_pings"),
        (wire.frame(wire.HEADERS, 0, 1) + wire.frame(wire.CONTINUATION, 0, 1) * 17, "field_block"),
        (b"".join(wire.post(1 + 2 * n) for n in range(257)), "streams"),
        (wire.headers(1, wire.request_fields(*[("x", "y")] * 150)), "header_list"),
    ],
)
def test_limits_are_counted(bench, octets, limit):
    assert set(bench.counts.http2_limits) == set(Limit)
    client = bench.connect()
    client.send(octets)
    assert +bench.counts.http2_limits == {limit: 1}


def test_a_client_that_gives_up_every_other_call_is_served(bench):
    """Its deadlines pass, or it asks another server too: however many calls it makes, in no time at all."""
    client = bench.connect()
    for n in range(3000):
        answered, given_up = 1 + 4 * n, 3 + 4 * n
        client.send(wire.grpc_call(ECHO, b"m", answered) + wire.grpc_call(INFER, b"m", given_up))
        client.send(rst(given_up))
        bench.infer.calls.pop().finished = True  # it stops when it is told to
    assert not client.connection.closing
    assert client.messages(answered) == [b"m"]


def test_timeouts_are_counted():
    with benches.bench(idle_timeout_s=40, keepalive_s=5, keepalive_timeout_s=5) as made:
        made.connect(b"")
        made.connect(wire.PREFACE + wire.settings())
        made.connect()
        talks = made.connect()
        for _ in range(50):
            made.wait(1)
            if not talks.socket.ended:
                talks.send(ping(b"keep-hr\0", wire.ACK))
        assert +made.counts.http2_limits == {"handshake_timeout": 2, "keepalive_timeout": 1, "idle_timeout": 1}
