"""The TLS layer without sockets: OpenSSL's own client on the one side, protocols that note what comes on the other."""

import asyncio
import contextlib
import ssl

from prometheus_client import CollectorRegistry
from transport.http2.bench import Socket
from transport.tls.certificates import client_context, issue

from headrace.config import TlsSettings
from headrace.telemetry.tls import TlsMetrics
from headrace.testing.loop import VirtualTimeLoop
from headrace.transport.tls.files import load
from headrace.transport.tls.layer import TlsPort

SECOND = 10**9


class App:
    """What a protocol sees. `script` is called with each piece of data."""

    def __init__(self):
        self.transport = None
        self.data = b""
        self.pieces = []
        self.events = []
        self.script = lambda data: None

    def connection_made(self, transport):
        self.transport = transport

    def connection_lost(self, exc):
        self.events.append("lost")

    def eof_received(self):
        self.events.append("eof")

    def pause_writing(self):
        self.events.append("pause")

    def resume_writing(self):
        self.events.append("resume")

    def _take(self, data):
        assert "lost" not in self.events
        self.data += data
        self.pieces.append(len(data))
        self.script(data)


class Plain(App, asyncio.Protocol):
    def data_received(self, data):
        assert type(data) is bytes
        self._take(data)


class Buffered(App, asyncio.BufferedProtocol):
    def __init__(self, size=256 << 10):
        super().__init__()
        self.buffer = bytearray(size)

    def get_buffer(self, sizehint):
        return self.buffer

    def buffer_updated(self, nbytes):
        self._take(bytes(self.buffer[:nbytes]))


class Client:
    """One connection: OpenSSL's client in memory, and the server's end of it."""

    def __init__(self, port, app, loop, context):
        self.app, self.loop = app, loop
        self.received = b""
        self.closed = False
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")
        self.connection = port.protect(app)
        self.socket = Socket(loop, self.connection)
        self.connection.connection_made(self.socket)

    def put(self, octets):
        """Octets as they are, in one read of the server's after another."""
        while octets:
            room = memoryview(self.connection.get_buffer(-1))
            part, octets = octets[: len(room)], octets[len(room) :]
            room[: len(part)] = part
            self.loop.call_soon(self.connection.buffer_updated, len(part))
            self.loop.run_until_idle()

    def pump(self):
        """Carries both ways what is there; reads what the client can read."""
        while True:
            self.put(self.outgoing.read())
            self.loop.run_until_idle()
            written, self.socket.written = self.socket.written, b""
            if not written:
                return self
            self.incoming.write(written)
            try:
                self.tls.do_handshake()
                while not self.closed:
                    read = self.tls.read(1 << 20)
                    self.closed = not read
                    self.received += read
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLZeroReturnError:  # a close_notify in answer to ours
                self.closed = True

    def shake(self):
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()
        return self.pump()

    def send(self, data):
        self.tls.write(data)
        return self.pump()

    def hang_up(self):
        """Ends the connection without a word."""
        if not self.connection.eof_received():
            self.socket.abort()
        self.loop.run_until_idle()


class Bench:
    def __init__(self, directory, alpn="h2", **settings):
        self.loop = VirtualTimeLoop()
        self.clients = []
        self.metrics = TlsMetrics(CollectorRegistry())
        self.files = issue(directory, "server")
        self.credentials = load(TlsSettings(**self.files.settings(**settings)))
        self.port = TlsPort("grpc", self.credentials.context("h2"), self.metrics, alpn=alpn, timeout_s=10)

    def connect(self, app=None, context=None):
        async def made():
            return Client(self.port, app or Buffered(), self.loop, context or client_context())

        self.clients.append(self.loop.run_until_complete(made()))
        return self.clients[-1]

    @property
    def failures(self):
        return {reason: count for (_, reason), count in self.metrics.failures.items() if count}


@contextlib.contextmanager
def benches(directory, **settings):
    made = Bench(directory, **settings)
    problems = []
    made.loop.set_exception_handler(lambda loop, context: problems.append(context))
    try:
        yield made
        made.port.close()
        for client in made.clients:
            client.socket.abort()
        made.loop.run_for(2 * SECOND)
        assert not made.port.handshakes
        assert made.port.open == 0
        assert not problems, problems
    finally:
        made.loop.close()
