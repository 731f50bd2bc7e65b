"""Calls that stream in either direction, through a whole native connection, without a socket and in virtual time."""

import pytest
from transport.http2 import bench as benches
from transport.http2 import wire
from transport.http2.bench import BREAK, CHAT, COUNT, FIRST, MAX_MESSAGE, PATIENCE, REFUSE, STUBBORN, WATCH
from transport.http2.wire import data, grpc_call, grpc_head, message, rst, window_update, word

OK = (0, "")
NO_ERROR = "RST_STREAM 1 NO_ERROR"
TRAILERS = "HEADERS 1 trailers END_STREAM"
TRAILERS_ONLY = "HEADERS 1 200 END_STREAM"


@pytest.fixture
def bench():
    with benches.bench() as made:
        yield made


@pytest.fixture
def client(bench):
    return bench.connect()


def test_both_ways_message_by_message(client):
    assert client.send(grpc_head(CHAT)) == []
    assert client.send(data(1, message(b"one"))) == ["HEADERS 1 200", "DATA 1 8"]
    assert client.send(data(1, message(b"two") + message(b""))) == ["DATA 1 8", "DATA 1 5"]
    assert client.send(data(1, end=True)) == [TRAILERS]
    assert (client.messages(), client.status()) == ([b"one", b"two", b""], OK)


def test_a_stream_without_messages(client):
    assert client.send(grpc_head(CHAT, end=True)) == [TRAILERS_ONLY]
    assert client.status() == OK


def test_a_server_stream_ends_before_the_client_does(client):
    assert client.send(grpc_head(COUNT) + data(1, message(b"xxx")))[-2:] == [TRAILERS, NO_ERROR]
    assert client.messages() == [b"0" * 1000, b"1" * 1000, b"2" * 1000]


def test_a_stream_is_cancelled(client):
    client.send(grpc_head(WATCH) + data(1, message(b"m"), end=True))
    assert client.messages() == [b"m"]
    assert len(client.peer.tasks) == 1
    assert client.send(rst(1)) == []
    assert not client.peer.tasks


def test_streams_end_with_their_connection(client):
    client.send(grpc_call(WATCH, b"m", 1) + grpc_call(FIRST, b"m", 3) + grpc_head(CHAT, 5))
    assert len(client.peer.tasks) == 3
    client.hang_up()
    assert not client.peer.tasks


def test_a_handler_that_does_not_heed_its_end(client):
    client.send(grpc_head(STUBBORN) + data(1, message(b"one") + message(b"two"), end=True))
    assert client.send(rst(1)) == []
    assert client.peer.buffered == 0
    assert not client.peer.tasks


@pytest.mark.parametrize(
    ("path", "code", "says"),
    [(BREAK, 13, "internal error, correlation id"), (REFUSE, 3, "refused"), (PATIENCE, 13, "internal error")],
)
def test_a_streams_handler_fails(client, caplog, path, code, says):
    client.send(grpc_call(path, b"m"))
    status, text = client.status()
    assert status == code
    assert says in text
    assert "secret" not in text
    assert client.messages() == ([b"m"] if path == BREAK else [])


def test_a_streams_deadline(bench, client):
    client.send(grpc_call(WATCH, b"m", 1, ("grpc-timeout", "1500m")) + grpc_head(FIRST, 3, ("grpc-timeout", "2S")))
    client.lines()
    bench.loop.run_for(1_400_000_000)
    assert client.lines() == []
    bench.loop.run_for(700_000_000)
    assert client.lines() == [TRAILERS, "HEADERS 3 200 END_STREAM", "RST_STREAM 3 NO_ERROR"]
    assert client.status(1) == client.status(3) == (4, "Deadline exceeded")
    assert not client.peer.tasks


@pytest.mark.parametrize(
    ("octets", "code"),
    [(message(b"x", 3), 13), (b"\0" + word(MAX_MESSAGE + 1), 8), (message(b"abc")[:-1], 13)],
)
def test_a_stream_of_malformed_messages(client, octets, code):
    client.send(grpc_head(CHAT) + data(1, message(b"good")))
    lines = client.send(data(1, octets, end=True))
    assert lines[-1] == TRAILERS
    assert client.status()[0] == code
    assert not client.peer.tasks


def test_a_handler_waits_for_the_clients_windows(client):
    """What it makes does not pile up behind a window that the client keeps shut."""
    client.send(wire.settings((wire.INITIAL_WINDOW, 2500)), grpc_call(COUNT, bytes(100)))
    pending = client.connection.outbound.pending_octets
    assert pending < 1005
    for opened in range(1, 98):
        client.send(window_update(1, 1005))
        assert client.connection.outbound.pending_octets == pending, opened
    client.send(window_update(1, 1005))
    assert client.status() == OK
    assert len(client.messages()) == 100


def test_a_handler_waits_for_the_clients_socket(client):
    client.stop_reading()
    client.send(grpc_call(COUNT, bytes(100)))
    assert len(client.connection.outbound.out) < 6
    client.go_on_reading()
    assert len(client.messages()) == 100


def test_a_client_waits_for_the_handler():
    """A stream's window is opened as the handler takes messages, and empty messages cost something too."""
    with benches.bench(initial_window_bytes=65_535) as made:
        client = made.connect()
        sent = 0
        lines = client.send(grpc_head(FIRST))
        for _ in range(2000):
            if sent + 500 > 65_535 + sum(int(line.split()[2]) for line in lines if line.startswith("WINDOW_UPDATE 1")):
                break
            lines += client.send(data(1, message(b"") * 100))
            sent += 500
        assert sent < 3 * 65_535
        assert client.peer.buffered < 40 * 65_535
        assert client.send(rst(1)) == []
        client.send(grpc_head(CHAT, 3))
        for _ in range(300):
            assert client.send(data(3, message(bytes(995)))) != []
        assert client.peer.buffered == 0


def test_what_streams_hold_is_bounded():
    with benches.bench(max_message=50_000, max_buffered_bytes=50_000) as made:
        client = made.connect()
        client.send(grpc_head(FIRST, 1) + data(1, message(bytes(16_000))) * 2)
        assert client.peer.buffered == 16_064  # the first one was taken
        assert client.send(data(1, message(bytes(16_000))) * 3)[0] == TRAILERS_ONLY
        assert client.status()[0] == 8
        assert client.peer.buffered == 0
