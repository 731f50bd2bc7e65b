"""How much a connection takes, and how long it waits."""

import pytest
from transport.rest.inferences import SECOND, Slow, get, infer, refused, value
from transport.rest.world import World, request

from headrace.testing.backend import FakeModel
from headrace.transport.rest import connection as connection_module
from headrace.transport.rest.body import SMALL


@pytest.mark.parametrize("piece", [1000, 1 << 20])
@pytest.mark.parametrize("start", [b"GET /", b"GET / HTTP/1.1\r\nx: "])
def test_a_head_without_end(start, piece):
    with World(max_head_bytes=4096) as world:
        answer = refused(world, start + b"a" * 5000, piece)
        assert (answer.status, "larger than 4096 octets" in answer.json["error"]) == (431, True)


LONG_HEADS = {
    "target": b"GET /%s HTTP/1.1\r\n\r\n" % (b"a" * 5000),
    "a field": b"GET / HTTP/1.1\r\nx: %s\r\n\r\n" % (b"a" * 5000),
    "many fields": b"GET / HTTP/1.1\r\n%s\r\n" % (b"a: b\r\n" * 1000),
}


@pytest.mark.parametrize("piece", [1000, 1 << 20])
@pytest.mark.parametrize("head", LONG_HEADS)
def test_a_whole_head_above_the_limit(head, piece):
    with World(max_head_bytes=4096) as world:
        answer = refused(world, LONG_HEADS[head], piece)
        assert (answer.status, "larger than 4096 octets" in answer.json["error"]) == (431, True)


def test_a_head_below_the_limit_behind_a_long_body():
    with World(max_head_bytes=4096) as world:
        client = world.client()
        first = client.ask(request(b"x" * 5000, "/a") + b"GET /b HTT")
        assert [answer.status for answer in first] == [200]
        assert client.ask(b"P/1.1\r\nhost: x\r\n\r\n")[0].body == b"GET /b "


@pytest.mark.parametrize(
    "around", [b"1\r\nx\r\n0\r\n" + b"a: b\r\n" * 1000, b"0\r\na: %s" % (b"b" * 6000), b"1;%s" % (b"c" * 6000)]
)
def test_what_stands_around_chunks_without_end(around):
    with World(max_head_bytes=4096) as world:
        head = request(content_length=None, transfer_encoding="chunked")
        answer = refused(world, head + around, 1000)
        assert (answer.status, "larger than 4096 octets" in answer.json["error"]) == (431, True)


def test_chunks_that_arrive_in_pieces():
    with World(max_head_bytes=1024) as world:
        client = world.client()
        client.ask(request(path="/a", content_length=None, transfer_encoding="chunked"))
        for _ in range(1000):
            assert client.ask(b"5\r\n") == client.ask(b"abcde") == client.ask(b"\r\n") == []
        assert client.ask(b"0\r\n\r\n")[0].status == 200


def test_a_head_behind_the_rest_of_a_long_body_in_chunks():
    with World(max_head_bytes=4096) as world:
        client = world.client()
        assert client.ask(request(path="/a", content_length=None, transfer_encoding="chunked") + b"1388\r\n") == []
        first = client.ask(b"x" * 5000 + b"\r\n0\r\n\r\n" + b"GET /b HTT")
        assert [answer.status for answer in first] == [200]
        assert client.ask(b"P/1.1\r\nhost: x\r\n\r\n")[0].body == b"GET /b "


@pytest.mark.parametrize("piece", [100, 1 << 20])
def test_a_body_in_chunks_without_end(piece):
    with World(max_message_bytes=2000) as world:
        head = request(content_length=None, transfer_encoding="chunked")
        assert refused(world, head + b"100\r\n" + (b"x" * 256 + b"\r\n100\r\n") * 10, piece).status == 413


def test_what_all_connections_hold_together(world):
    world = World(max_message_bytes=5000, max_buffered_bytes=10_000)
    with world:
        world.serve(FakeModel())
        clients = [world.client() for _ in range(4)]
        octets = request(b"x" * 4000, "/else")
        for client in clients[:2]:
            assert client.ask(octets[:-1], 1000) == []
        assert 7900 < world.http.buffered < 10_000
        (answer,) = clients[2].ask(octets[:-1], 1000)
        assert (answer.status, answer.fields["retry-after"]) == (503, "1")
        assert "hold more than 10000 octets" in answer.json["error"]
        assert value(clients[3].ask(infer(1))[0]) == 1  # what comes whole takes nothing of it
        for client in clients[:2]:
            assert client.ask(octets[-1:])[0].status == 200
        assert world.http.buffered == 0


def test_what_is_received_past_the_parser_counts_as_well():
    with World(max_message_bytes=200_000, max_buffered_bytes=200_000) as world:
        first, second = world.client(), world.client()
        first.ask(request(b"x" * 150_000, "/else")[:-1], 10_000)
        (answer,) = second.ask(request(b"x" * 150_000, "/else"), 10_000)
        assert answer.status == 503
        assert first.ask(b"x")[0].status == 200
        assert world.http.buffered == 0


def test_short_requests_behind_one_that_is_slow_count_as_well():
    app = Slow()
    with World(app, max_message_bytes=10_000, max_buffered_bytes=10_000) as world:
        client = world.client()
        client.ask(get("/a") + get("/b") * 20)
        app.let_go("/a")
        app.let_go("/b")
        world.loop.run_until_idle()
        answers = client.replies()
        assert [answer.status for answer in answers[:5] + answers[-1:]] == [200] * 5 + [503]
        assert len(answers) < 12
        assert world.http.buffered == 0


def test_connections_above_the_limit_are_told():
    with World(max_connections=2) as world:
        clients = [world.client() for _ in range(3)]
        assert [client.ask(get())[0].status for client in clients] == [200, 200, 503]
        assert clients[2].wire.state == "half closed"
        clients[0].connection.connection_lost(None)
        clients[2].connection.connection_lost(None)
        assert world.ask(get())[0].status == 200
        assert (world.counts.http_connections_open, world.counts.http_connections_total) == (2, 4)


def test_connections_far_above_the_limit_are_not(monkeypatch):
    monkeypatch.setattr("headrace.transport.rest.server._SURPLUS", 1)
    with World(max_connections=1) as world:
        assert [world.client().wire.state for _ in range(3)] == ["open", "open", "aborted"]


def tick(world, seconds):
    """Time passes, and all connections are looked at once."""
    world.loop.run_for(int(seconds * SECOND))
    for connection in list(world.http._connections):
        connection.tick(world.loop.clock())
    world.loop.run_until_idle()


@pytest.mark.parametrize(
    ("octets", "status"), [(b"", None), (b"GET /slow", 408), (b"GET / HTTP/1.1\r\nhost: x\r\n", 408)]
)
def test_a_head_that_does_not_come(octets, status):
    with World(head_timeout_s=10) as world:
        client = world.client()
        client.ask(octets)
        tick(world, 9.9)
        assert (client.wire.state, client.replies()) == ("open", [])
        tick(world, 0.2)
        assert client.wire.state == ("closed" if status is None else "half closed")
        assert [answer.status for answer in client.replies()] == ([] if status is None else [status])


def test_a_second_head_is_awaited_no_longer_than_the_first():
    with World(head_timeout_s=10) as world:
        client = world.client()
        client.ask(get())
        tick(world, 5)
        assert client.ask(b"GET /slow") == []
        tick(world, 9.9)
        assert client.replies() == []
        tick(world, 0.2)
        assert client.replies()[0].status == 408


@pytest.mark.parametrize("size", [100, 2 * SMALL])
def test_a_body_that_does_not_come(size):
    with World(body_timeout_s=60) as world:
        client = world.client()
        client.ask(request(b"x" * size, "/else")[:-1])
        for _ in range(5):
            tick(world, 11)
            client.send(b"")
        assert client.replies() == []
        tick(world, 6)
        (answer,) = client.replies()
        assert (answer.status, answer.json["error"]) == (408, "the request's body has not arrived within 60 s")
        assert world.http.buffered == 0


def test_a_client_that_waits_for_us_is_given_the_time(world, held):
    client = world.client()
    octets = infer(5, expect="100-continue")
    head, body = octets[: octets.index(b"\r\n\r\n") + 4], octets[octets.index(b"\r\n\r\n") + 4 :]
    client.ask(infer(4) + head)
    tick(world, 1000)
    assert client.wire.state == "open"
    held.release()
    world.loop.run_until_idle()
    assert [answer.status for answer in client.replies()] == [200, 100]
    assert value(client.ask(body)[0]) == 5
    held.hold()
    client.ask(infer(0) * connection_module._PIPELINED + infer(6)[:20])
    assert not client.wire.reading
    tick(world, 1000)
    held.release()
    world.loop.run_until_idle()
    assert value(client.ask(infer(6)[20:])[-1]) == 6


def test_an_idle_connection_is_closed_and_one_that_waits_is_not(world, held):
    idle, waiting = world.client(), world.client()
    waiting.ask(infer(1))
    held_up = world.client()
    held.release()
    idle.ask(infer(2))
    world.loop.run_until_idle()
    waiting.replies()
    held.hold()
    waiting.ask(infer(3))
    tick(world, 1)
    tick(world, 59)
    assert (idle.wire.state, waiting.wire.state, held_up.wire.state) == ("open", "open", "closed")
    tick(world, 2)
    assert (idle.wire.state, waiting.wire.state) == ("closed", "open")
    held.release()


def test_a_client_that_does_not_read(world):
    client = world.client()
    client.ask(infer(1))
    client.connection.pause_writing()
    assert not client.wire.reading
    tick(world, 59)
    assert client.wire.state == "open"
    client.connection.resume_writing()
    assert client.wire.reading
    tick(world, 30)
    client.connection.pause_writing()
    tick(world, 59)
    assert client.wire.state == "open"
    tick(world, 2)
    assert client.wire.state == "aborted"


def test_a_client_that_reads_slowly(world):
    client = world.client()
    client.ask(infer(1))
    client.wire.unsent = 6_000 * 100
    client.connection.pause_writing()
    for _ in range(90):
        client.wire.take(6_000)
        tick(world, 60)
    client.connection.resume_writing()
    client.wire.unsent = 6_000 * 200  # more than before, and all that was there has been taken
    client.connection.pause_writing()
    tick(world, 59)
    assert client.wire.state == "open"
    client.wire.take(5_999)
    tick(world, 1)
    assert client.wire.state == "aborted"


def test_an_application_waits_for_a_client_that_does_not_read():
    sent = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        for more in (True, False):
            await send({"type": "http.response.body", "body": b"x", "more_body": more})
            sent.append(more)

    with World(app) as world:
        client = world.client()
        client.connection.pause_writing()
        client.send(get())
        world.loop.run_until_idle()
        assert sent == []
        client.connection.resume_writing()
        world.loop.run_until_idle()
        assert (sent, client.replies()[0].body) == ([True, False], b"xx")
