"""The native transport over real sockets, on both event loops, in plain text and over TLS."""

import asyncio
import contextlib

import pytest
import uvloop
from prometheus_client import CollectorRegistry
from transport.http2 import bench as benches
from transport.http2 import wire
from transport.http2.bench import COUNT, ECHO, INFER, WATCH, Infer
from transport.http2.wire import data, grpc_call, grpc_head, message, ping, rst
from transport.tls.certificates import client_context, issue

from headrace.clock import monotonic_ns
from headrace.config import TlsSettings
from headrace.telemetry.tls import TlsMetrics
from headrace.transport.tls.files import load
from headrace.transport.tls.layer import TlsPort

LEAVING = "PING headrace"
LEFT = ping(b"headrace", wire.ACK)
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
def tls(request, tmp_path):
    """What the transport under test is made with for TLS; None: plain text."""
    if not request.param:
        return None
    context = load(TlsSettings(**issue(tmp_path, "server").settings())).context("h2")
    return TlsPort("grpc", context, TlsMetrics(CollectorRegistry()), alpn="h2", timeout_s=10)


@pytest.fixture(params=LOOPS)
def run(request, tls):
    """Runs a scenario with a transport that listens; nothing may be left over, nothing may go wrong unseen."""

    def run(scenario, **settings):
        problems = []

        async def main():
            asyncio.get_running_loop().set_exception_handler(lambda loop, context: problems.append(context))
            infer = Infer()
            transport = benches.native(asyncio.get_running_loop(), monotonic_ns, infer, tls=tls, **settings)
            port = await transport.start()
            try:
                async with asyncio.timeout(30):
                    await scenario(Port(port, transport, infer, tls and client_context()))
            finally:
                await transport.close()
                await transport.close()

        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            runner.run(main())
        assert not problems, problems

    return run


class Port:
    def __init__(self, port, transport, infer, context):
        self.port, self.transport, self.infer, self.context = port, transport, infer, context

    async def asked(self):
        """The requests that have arrived, once there are any."""
        while not self.infer.calls:  # noqa: ASYNC110 - it gives no notice
            await asyncio.sleep(0)
        return self.infer.calls

    @contextlib.asynccontextmanager
    async def connect(self, hello=benches.HELLO):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=self.context)
        client = SocketClient(reader, writer)
        try:
            writer.write(hello)
            yield client
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


class SocketClient:
    def __init__(self, reader, writer):
        self.octets, self.writer = reader, writer
        self.reader = wire.Reader()
        self.lines = []

    async def until(self, line):
        """Reads on until `line` comes, or the end."""
        while line not in self.lines:
            read = await self.octets.read(1 << 16)
            if not read:
                break
            self.lines += self.reader.feed(read)
        return self.lines

    async def call(self, path, payload, stream_id=1):
        self.writer.write(grpc_call(path, payload, stream_id))
        await self.until(f"HEADERS {stream_id} trailers END_STREAM")
        return self.reader.messages(stream_id)


def test_a_call_over_a_socket(run):
    async def scenario(port):
        async with port.connect() as client:
            assert await client.call(ECHO, b"hello") == [b"hello"]

    run(scenario)


def test_large_messages_over_a_socket(run):
    """Both ways, more than any buffer on the way holds at once; the client reads late."""

    async def scenario(port):
        payload = bytes(range(256)) * (12 << 12)
        async with port.connect() as client:
            client.writer.write(wire.window_update(0, 1 << 30) + wire.settings((wire.INITIAL_WINDOW, 1 << 30)))
            client.writer.write(grpc_head(ECHO))
            octets = message(payload)
            sent = 0
            credit = 1 << 20
            seen = 0
            while sent < len(octets):
                while credit < 16_384:
                    client.lines += client.reader.feed(await client.octets.read(1 << 16))
                    news, seen = client.lines[seen:], len(client.lines)
                    credit += sum(int(line.split()[2]) for line in news if line.startswith("WINDOW_UPDATE 1 "))
                client.writer.write(data(1, octets[sent : sent + 16_384]))
                sent += 16_384
                credit -= 16_384
            client.writer.write(data(1, end=True))
            await client.until("HEADERS 1 trailers END_STREAM")
            assert client.reader.messages(1) == [payload]

    run(scenario, max_message=64 << 20)


def test_a_client_that_does_not_read(run):
    """Its replies stop at the socket's buffer, and so does what is read from it; then it reads, and nothing is lost."""

    async def scenario(port):
        count = 4000
        async with port.connect() as client, port.connect() as other:
            client.writer.transport.pause_reading()
            client.writer.write(wire.window_update(0, 1 << 30) + wire.settings((wire.INITIAL_WINDOW, 1 << 30)))
            await other.call(ECHO, b"m")
            (peer,) = (peer for peer in port.transport.peers if peer.connection.outbound.window > 1 << 29)
            stream_id = 1
            while peer._paused is None:
                assert stream_id < 2 * count
                client.writer.write(grpc_call(ECHO, bytes(16_000), stream_id))
                stream_id += 2
                if stream_id % 64 == 1:
                    await other.call(ECHO, b"m", other_id := len(other.lines) * 2 + 1)
                    assert other.reader.messages(other_id) == [b"m"]
            client.writer.transport.resume_reading()
            await client.until(f"HEADERS {stream_id - 2} trailers END_STREAM")
            assert sum(line.endswith("trailers END_STREAM") for line in client.lines) == stream_id // 2

    run(scenario)


def test_an_error_reaches_the_client_before_the_end(run):
    """Although it goes on sending what nobody reads any more."""

    async def scenario(port):
        async with port.connect() as client:
            client.writer.write(wire.window_update(0, 0) + ping() * 10_000)
            lines = await client.until("never")
            assert lines[-1] == "GOAWAY 0 PROTOCOL_ERROR"
        await port.transport.drain(20)
        assert not port.transport.peers

    run(scenario)


def test_draining_over_a_socket(run):
    async def scenario(port):
        async with port.connect() as client, port.connect() as idle:
            client.writer.write(grpc_call(INFER, b"m") + grpc_call(WATCH, b"m", 3))
            await client.until("DATA 3 6")
            await idle.until("SETTINGS ACK")
            drained = asyncio.ensure_future(port.transport.drain(20))
            for each in (client, idle):
                await each.until(LEAVING)
                each.writer.write(LEFT)
            assert (await idle.until("never"))[-1] == "GOAWAY 0 NO_ERROR"
            idle.writer.close()
            await client.until("GOAWAY 3 NO_ERROR")
            assert client.reader.status(3)[0] == 14
            assert not drained.done()
            with pytest.raises(OSError, match=r"[Cc]onnect"):
                await asyncio.open_connection("127.0.0.1", port.port)
            port.infer.calls[0].sink.reply(b"reply")
            assert (await client.until("never"))[-1] == "HEADERS 1 trailers END_STREAM"
            assert client.reader.messages(1) == [b"reply"]
            client.writer.close()
            assert await drained

    run(scenario)


def test_a_silent_client_that_is_owed_nothing_is_not_cut_off(run):
    """It does not answer the PING, as if its host had gone."""

    async def scenario(port):
        async with port.connect() as client:
            assert await client.call(ECHO, b"m") == [b"m"]
            assert await port.transport.drain(0.2)
            assert port.transport.peers

    run(scenario)


def test_a_call_that_nobody_has_answered_is_cut_off(run):
    async def scenario(port):
        async with port.connect() as client:
            client.writer.write(grpc_call(INFER, b"m"))
            await client.until("SETTINGS ACK")
            await port.asked()
            assert not await port.transport.drain(0.2)

    run(scenario)


def test_a_client_that_has_yet_to_take_its_reply_is_cut_off(run):
    async def scenario(port):
        async with port.connect(hello=benches.HELLO + wire.window_update(0, 1 << 30)) as client:
            await client.until("SETTINGS ACK")
            client.writer.transport.pause_reading()
            client.writer.write(grpc_call(INFER, b"m") + wire.window_update(1, 1 << 30))
            (work,) = await port.asked()
            work.sink.reply(bytes(64 << 20))
            assert not await port.transport.drain(0.2)
            client.writer.transport.abort()

    run(scenario)


def test_closing_with_calls_under_way(run):
    async def scenario(port):
        async with port.connect() as client:
            client.writer.write(grpc_call(WATCH, b"m") + grpc_call(INFER, b"m", 3) + grpc_call(COUNT, b"m", 5))
            await client.until("HEADERS 5 trailers END_STREAM")
            await port.transport.close()
            with contextlib.suppress(ConnectionError):
                await client.until("never")
        assert port.infer.calls[0].cancelled == 1

    run(scenario)


def test_closing_right_after_an_error(run):
    """No timer of a connection that lingers is left."""

    async def scenario(port):
        async with port.connect() as client:
            client.writer.write(wire.window_update(0, 0))
            await client.until("GOAWAY 0 PROTOCOL_ERROR")

    run(scenario)


def test_clients_that_go_away(run):
    """With a call under way, in the middle of a frame, by half-closing."""

    async def scenario(port):
        for octets in (grpc_call(INFER), grpc_call(INFER)[:-3], grpc_call(INFER) + rst(1), b""):
            async with port.connect() as client:
                client.writer.write(octets)
                await client.until("SETTINGS ACK")
                # over TLS, asyncio's clients cannot end one half alone
                client.writer.write_eof() if port.context is None else client.writer.close()
                await client.until("never")
        await port.transport.drain(20)
        assert not port.transport.peers
        assert [work.cancelled for work in port.infer.calls] == [1, 1]

    run(scenario)


def test_an_address_that_is_taken(run):
    async def scenario(port):
        second = benches.native(asyncio.get_running_loop(), monotonic_ns, Infer(), port=port.port)
        with pytest.raises(OSError, match="in use"):
            await second.start()
        await second.close()

    run(scenario)
