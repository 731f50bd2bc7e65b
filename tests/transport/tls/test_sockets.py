"""TLS on real sockets and both event loops: the HTTP port, clients that are not ours, and those that fail."""

import asyncio
import contextlib
import shutil
import socket
import ssl
from http.client import HTTPSConnection

import pytest
import uvloop
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from transport.http2 import bench as benches
from transport.http2 import wire
from transport.http2.bench import ECHO, Infer
from transport.http2.wire import grpc_call
from transport.rest.world import answer, make_server
from transport.tls.certificates import client_context, issue

from headrace.clock import monotonic_ns
from headrace.config import Settings
from headrace.transport.tls.layer import PLAIN_TEXT_ANSWER
from headrace.transport.tls.security import Security

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture
def files(tmp_path):
    return issue(tmp_path, "server")


async def echo(request):
    return Response(await request.body())


PIECES = 400
STREAMED = []


async def stream(request):
    async def pieces():
        for n in range(PIECES):
            STREAMED.append(n)
            yield b"x" * 65_536

    return StreamingResponse(pieces())


async def scheme(request):
    return PlainTextResponse(request.url.scheme)


APP = Starlette(routes=[Route("/echo", echo, methods=["POST"]), Route("/stream", stream), Route("/scheme", scheme)])


@pytest.fixture(params=LOOPS)
def run(request, files):
    """Runs a scenario with both ports; nothing may be left over, nothing may go wrong unseen."""

    def run(scenario, **tls):
        problems = []

        async def main():
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda loop, context: problems.append(context))
            security = Security(Settings(tls=files.settings(**tls)), CollectorRegistry())
            grpc = benches.native(loop, monotonic_ns, Infer(), tls=security.grpc)
            http = make_server(APP, socket.create_server(("127.0.0.1", 0)), answer, tls=security.http)
            ports = Ports(security, grpc, http)
            ports.grpc, ports.http = await grpc.start(), await http.start()
            try:
                async with asyncio.timeout(30):
                    await scenario(ports)
            finally:
                await http.close()
                await grpc.close()
            assert not security.grpc.handshakes
            assert not security.http.handshakes

        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            runner.run(main())
        assert not problems, problems

    return run


class Ports:
    def __init__(self, security, grpc, http):
        self.security, self.native, self.server = security, grpc, http
        self.grpc = self.http = 0

    @property
    def failures(self):
        counted = self.security.grpc.counts.failures
        return {key: count for key, count in counted.items() if count}

    async def streamed(self):
        """How many pieces had gone out before the loop had many a turn."""
        before = len(STREAMED)
        for _ in range(100):
            await asyncio.sleep(0)
        return before

    async def raw(self, port):
        return await asyncio.open_connection("127.0.0.1", port)

    async def request(self, method, path, body=None):
        """The reply to a request on a connection of its own: status, content. In a thread, by a client of no loop."""
        return await asyncio.to_thread(self._request, method, path, body)

    def _request(self, method, path, body):
        client = HTTPSConnection("127.0.0.1", self.http, context=client_context(alpn=("http/1.1",)), timeout=30)
        try:
            client.request(method, path, body, {"Connection": "close"})
            response = client.getresponse()
            return response.status, response.read()
        finally:
            client.close()

    async def serves(self):
        """A call on a new connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.grpc, ssl=client_context())
        writer.write(benches.HELLO + grpc_call(ECHO, b"hello"))
        frames, lines = wire.Reader(), []
        while "HEADERS 1 trailers END_STREAM" not in lines:
            lines += frames.feed(await reader.read(1 << 16))
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        return frames.messages(1) == [b"hello"]


# --- the HTTP port ----------------------------------------------------------------------------------------------------


def test_https(run):
    async def scenario(ports):
        assert await ports.request("GET", "/scheme") == (200, b"https")

    run(scenario)


def test_large_bodies_over_https(run):
    """More than any buffer on the way holds, both ways."""

    async def scenario(ports):
        body = bytes(range(256)) * (8 << 12)
        status, content = await ports.request("POST", "/echo", body)
        assert status == 200
        assert content == body

    run(scenario)


@pytest.mark.parametrize("size", [10, 5_000_000])
def test_inference_over_https(run, size):
    async def scenario(ports):
        assert await ports.request("POST", "/v2/models/m/infer", b"x" * size) == (200, b"%d" % size)

    run(scenario)


def test_a_client_that_reads_late_over_https(run):
    """What it does not read stops its reply, and nobody else's; then it reads, and nothing is lost."""

    async def scenario(ports):
        STREAMED.clear()
        context = client_context(alpn=("http/1.1",))
        plain = socket.create_connection(("127.0.0.1", ports.http))
        with await asyncio.to_thread(context.wrap_socket, plain, server_hostname="localhost") as late:
            late.sendall(b"GET /stream HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            seen = 0
            while not seen or seen != len(STREAMED):
                seen = await ports.streamed()
            assert seen < PIECES
            assert await ports.request("GET", "/scheme") == (200, b"https")
            body = await asyncio.to_thread(lambda: b"".join(iter(lambda: late.recv(1 << 16), b"")))
            assert body.replace(b"\r\n10000\r\n", b"").count(b"x") == PIECES << 16

    run(scenario)


# --- those that fail --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("octets", [b"GET / HTTP/1.1\r\n\r\n", benches.HELLO, b"\x80\x2e\x01\x00\x02"])
def test_plain_text_on_a_port_that_speaks_tls(run, octets):
    """The client is told in words that it can read, and let go."""

    async def scenario(ports):
        for port in (ports.grpc, ports.http):
            reader, writer = await ports.raw(port)
            writer.write(octets)
            assert await reader.read() == PLAIN_TEXT_ANSWER
            writer.close()
        assert ports.failures == {("grpc", "plain_text"): 1, ("http", "plain_text"): 1}
        assert await ports.serves()

    run(scenario)


def test_half_a_handshake_holds_up_nobody(run):
    """Many clients that stop in the middle, some that say nothing: the others are served, and closing ends them."""

    async def scenario(ports):
        hello = client_hello()
        halves = []
        for n in range(50):
            _, writer = await ports.raw((ports.grpc, ports.http)[n % 2])
            writer.write(hello[: n * 5])
            halves.append(writer)
        assert await ports.serves()
        assert await ports.request("GET", "/scheme") == (200, b"https")
        for writer in halves[:20]:
            writer.close()
        assert await ports.serves()
        assert len(ports.security.grpc.handshakes) + len(ports.security.http.handshakes) >= 30
        await ports.server.close()
        await ports.native.close()
        for writer in halves:
            writer.close()

    run(scenario)


def test_a_handshake_that_takes_too_long(run):
    async def scenario(ports):
        for port in (ports.grpc, ports.http):
            reader, writer = await ports.raw(port)
            writer.write(client_hello()[:50])
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()
        assert ports.failures == {("grpc", "timeout"): 1, ("http", "timeout"): 1}

    run(scenario, handshake_timeout_s=0.05)


def client_hello():
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        client_context().wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    return outgoing.read()


def test_tls_on_a_port_that_speaks_plain_text(files):
    """It ends at once, and cleanly."""

    async def main():
        grpc = benches.native(asyncio.get_running_loop(), monotonic_ns, Infer())
        http = make_server(APP, socket.create_server(("127.0.0.1", 0)))
        for port in (await grpc.start(), await http.start()):
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port, ssl=client_context()), 20)
        assert len(grpc.peers) <= 1  # it may linger for a second
        await http.close()
        await grpc.close()

    asyncio.run(main())


# --- OpenSSL's own client ---------------------------------------------------------------------------------------------

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="the openssl command is not there")


class SClient:
    """`openssl s_client`, and what it prints of the messages that it sends (>>>) and receives (<<<)."""

    def __init__(self, child):
        self.child = child
        self.printed = b""

    async def until(self, text):
        while text not in self.printed:
            read = await self.child.stdout.read(1 << 16)
            assert read, self.printed.decode(errors="replace")
            self.printed += read
        self.printed = self.printed.partition(text)[2]


@contextlib.asynccontextmanager
async def s_client(files, *flags):
    """Connected to a gRPC port of its own."""
    security = Security(Settings(tls=files.settings()), CollectorRegistry())
    grpc = benches.native(asyncio.get_running_loop(), monotonic_ns, Infer(), tls=security.grpc)
    port = await grpc.start()
    child = await asyncio.create_subprocess_exec(
        "openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-CAfile", str(files.ca), "-alpn", "h2", "-msg", *flags,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        async with asyncio.timeout(20):
            client = SClient(child)
            await client.until(b"Verify return code: 0 (ok)")
            yield client
    finally:
        child.kill()
        await child.communicate()
        await grpc.close()


@needs_openssl
def test_a_key_update_is_answered(files):
    """With keys of our own that are new (RFC 8446, 4.6.3), by when something is sent."""

    async def main():
        async with s_client(files, "-tls1_3") as client:
            client.child.stdin.write(b"K\n")  # a command of s_client's
            await client.until(b">>> TLS 1.3, Handshake [length 0005], KeyUpdate")
            client.child.stdin.write(benches.HELLO)
            await client.until(b"<<< TLS 1.3, Handshake [length 0005], KeyUpdate")
            await client.until(b"<<< TLS 1.3, InnerContent")

    asyncio.run(main())


@needs_openssl
def test_renegotiation_is_refused(files):
    """RFC 9113, 9.2.1."""

    async def main():
        async with s_client(files, "-tls1_2") as client:
            client.child.stdin.write(b"R\n")
            await client.until(b"<<< TLS 1.2, Alert [length 0002], warning no_renegotiation")

    asyncio.run(main())
