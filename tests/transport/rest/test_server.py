"""The HTTP port over real loopback sockets, on uvloop as it is served."""

import asyncio
import contextlib
import signal
import socket

import pytest
import uvloop
from transport.rest.world import answer, hello, make_server, parse, request

from headrace.transport.rest import server as server_module

LIMIT_SECONDS = 15
GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


def bind():
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    return sock


def serve(scenario, app=hello, **options):
    """Runs `scenario(port, server)` against a served application and returns what it returns."""

    async def main():
        server = make_server(app, bind(), **{"infer": answer} | options)
        port = await server.start()
        try:
            async with asyncio.timeout(LIMIT_SECONDS):
                return await scenario(port, server)
        finally:
            await server.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main())


async def send(port, data):
    """All that the server says to these bytes until it closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        return await reader.read()
    finally:
        writer.close()


async def get(port, path="/"):
    """The reply to one request on a connection of its own."""
    (reply,) = parse(await send(port, request(path=path, method="GET", content_length=None, connection="close")))
    return reply


async def connect_forever(port):
    while True:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()


@pytest.mark.parametrize("size", [10, 1000, 200_000, 5_000_000])
def test_bodies_of_every_size(size):
    async def scenario(port, _):
        octets = request(b"x" * size) + request(b"x" * size, connection="close")
        return [int(reply.body) for reply in parse(await send(port, octets))]

    assert serve(scenario) == [size, size]


def test_no_signal_handler_and_a_date_but_no_server_header():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    async def scenario(port, server):
        assert (signal.getsignal(signal.SIGTERM), repr(server)) == (before[1], "<HttpServer serving, 0 connections>")
        return await get(port)

    fields = serve(scenario).fields
    assert "date" in fields
    assert "server" not in fields
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_close_frees_the_port_finishes_what_runs_and_may_be_repeated():
    inside, leave = asyncio.Event(), asyncio.Event()

    async def app(scope, receive, send):
        inside.set()
        await leave.wait()
        await hello(scope, receive, send)

    async def scenario(port, server):
        running = asyncio.create_task(get(port, "/late"))
        await inside.wait()
        closing = asyncio.create_task(server.close())
        with pytest.raises((ConnectionRefusedError, ConnectionResetError)):
            await connect_forever(port)
        leave.set()  # not before it has stopped listening
        await closing
        await server.close()
        with pytest.raises(ConnectionRefusedError):
            await connect_forever(port)
        assert repr(server) == "<HttpServer closed, 0 connections>"
        return await running

    reply = serve(scenario, app=app)
    assert (reply.status, reply.body) == (200, b"GET /late ")


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nx: ", GET, request(b"never answered")])
def test_close_cuts_off_what_does_not_end(monkeypatch, sent):
    monkeypatch.setattr(server_module, "DRAIN_SECONDS", 0.01)

    async def app(scope, receive, send):
        if scope["path"] == "/":
            await asyncio.Event().wait()
        await hello(scope, receive, send)

    async def scenario(port, server):
        cut_off = asyncio.create_task(send(port, sent))
        await get(port, "/quick")  # by now the other bytes are read as well
        await server.close()
        with contextlib.suppress(ConnectionResetError):
            assert b"200 OK" not in await cut_off
        return repr(server)

    assert serve(scenario, app=app, infer=lambda call: None).startswith("<HttpServer closed")


def test_close_cuts_off_a_client_that_does_not_read(monkeypatch):
    monkeypatch.setattr(server_module, "DRAIN_SECONDS", 0.01)
    size, answered = 32 << 20, asyncio.Event()  # more than the sockets' buffers hold

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % size)]})
        await send({"type": "http.response.body", "body": b"x" * size})
        answered.set()

    async def scenario(port, server):
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(GET)
            await answered.wait()
            await server.close()
            await asyncio.sleep(0)  # the loop's turn in which an aborted transport closes
            client.settimeout(LIMIT_SECONDS)
            received = 0
            with contextlib.suppress(ConnectionResetError):
                while data := await asyncio.to_thread(client.recv, 1 << 20):
                    received += len(data)
        return received

    assert serve(scenario, app=app) < size


def test_a_client_that_does_not_read_is_read_no_further():
    size = 32 << 20

    async def scenario(port, server):
        def flood(call):
            call.reply(b"Content-Length: %d\r\n\r\n%b" % (size, b"x" * size))

        server.infer = flood
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.setblocking(False)
            sending = asyncio.get_running_loop().sock_sendall(client, request(b"y" * 100_000) * 500)
            sending = asyncio.ensure_future(sending)
            while not any(connection.flow.write_paused for connection in server._connections):  # noqa: ASYNC110
                await asyncio.sleep(0)
            (connection,) = server._connections
            state = repr(connection.flow)
            sending.cancel()
            return state

    assert serve(scenario) == "<Flow does not read, write_paused=True>"


def test_what_is_sent_behind_a_refusal_does_not_destroy_it():
    """The reply arrives although the client still sends: the connection is not reset under it."""

    async def scenario(port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request(content_length=10**9))
        for _ in range(50):
            writer.write(b"x" * 100_000)
            await asyncio.sleep(0)
        received = await reader.read()
        writer.close()
        return next(parse(received)).status

    assert serve(scenario) == 413


def test_a_head_that_does_not_come_ends_the_connection(monkeypatch):
    monkeypatch.setattr(server_module, "_TICK_SECONDS", 0.01)

    async def scenario(port, _):
        return await send(port, b""), await send(port, b"GET /slow")

    silent, slow = serve(scenario, head_timeout_s=0.05)
    assert (silent, slow[:12]) == (b"", b"HTTP/1.1 408")


def test_a_socket_that_cannot_listen_says_so():
    async def main():
        sock = bind()
        sock.close()
        await make_server(hello, sock).start()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner, pytest.raises(OSError, match="file descriptor"):
        runner.run(main())
