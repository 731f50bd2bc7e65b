"""The native transport without sockets: peers over transports that only note what is done to them, in virtual time."""

import asyncio
import contextlib
from types import SimpleNamespace

from prometheus_client import CollectorRegistry
from transport.http2 import wire

from headrace.config import Http2Settings
from headrace.engine.turn import Turn
from headrace.errors import InvalidRequest
from headrace.telemetry.server_metrics import ServerMetrics
from headrace.testing.loop import VirtualTimeLoop
from headrace.transport.grpc_native import NativeTransport
from headrace.transport.grpc_peer import Peer
from headrace.transport.service import INFER_PATH, INFER_STREAM_PATH, ServiceTable

ECHO, FAIL, CRASH = "/test.Unary/Echo", "/test.Unary/Fail", "/test.Unary/Crash"
CHAT, COUNT, WATCH, FIRST = "/test.Stream/Chat", "/test.Stream/Count", "/test.Stream/Watch", "/test.Stream/First"
BREAK, REFUSE, PATIENCE = "/test.Stream/Break", "/test.Stream/Refuse", "/test.Stream/Patience"
STUBBORN = "/test.Stream/Stubborn"
INFER, INFER_STREAM = INFER_PATH, INFER_STREAM_PATH
MAX_MESSAGE = 100_000
SECOND = 10**9
HELLO = wire.hello((wire.INITIAL_WINDOW, 1 << 20)) + wire.window_update(0, 16 << 20)


def fail(message):
    raise InvalidRequest("bad value ☃\n")


def crash(message):
    raise RuntimeError("a secret")


async def chat(messages):
    """Each message back at once."""
    async for message in messages:
        yield message


async def count(messages):
    """As many messages as the first one is long, each of 1000 octets."""
    async for message in messages:
        for n in range(len(message)):
            yield b"%d" % (n % 10) * 1000
        return


async def watch(messages):
    """One message, then silence."""
    async for message in messages:
        yield message
        await asyncio.get_running_loop().create_future()


async def first(messages):
    """Takes one message and stays."""
    async for _ in messages:
        await asyncio.get_running_loop().create_future()
    yield b"never"


async def stubborn(messages):
    """Goes on reading although it was cancelled."""
    try:
        await asyncio.get_running_loop().create_future()
    except asyncio.CancelledError:
        async for _ in messages:
            yield b""


async def broken(messages):
    async for message in messages:
        yield message
        raise RuntimeError("a secret")


async def refuse(messages):
    raise InvalidRequest("refused")
    yield b""


async def patience(messages):
    raise TimeoutError("of its own")
    yield b""


class Work:
    """An inference under way. `finished` is what its owner says."""

    def __init__(self, call):
        self.message, self.sink, self.received, self.deadline = bytes(call.request), call, call.received, call.deadline
        self.cancelled = 0
        self.finished = False
        self.template = SimpleNamespace(final=False)

    def cancel(self):
        self.cancelled += 1


class Infer:
    """Takes each call at once, and notes it; `answer`, if set, answers it. While `slow`, calls are not taken."""

    def __init__(self):
        self.calls = []
        self.answer = None
        self.slow = False

    def __call__(self, call):
        self.calls.append(Work(call))
        if self.slow:
            return
        call.request = None
        call.under_way = self.calls[-1]
        if self.answer is not None:
            self.answer(call)


def service(infer):
    return ServiceTable(
        unary={ECHO: lambda message: message, FAIL: fail, CRASH: crash},
        streams={
            CHAT: chat,
            COUNT: count,
            WATCH: watch,
            FIRST: first,
            STUBBORN: stubborn,
            BREAK: broken,
            REFUSE: refuse,
            PATIENCE: patience,
        },
        infer=infer,
        service_names=("test.Unary", "test.Stream"),
    )


def native(loop, clock, infer, *, table=None, max_message=MAX_MESSAGE, port=0, tls=None, **http2):
    return NativeTransport(
        table or service(infer),
        "127.0.0.1",
        port,
        turn=Turn(loop),
        http2=Http2Settings(**http2),
        max_message_bytes=max_message,
        counts=ServerMetrics(CollectorRegistry()),
        tls=tls,
        clock=clock,
    )


class Socket(asyncio.Transport):
    """What asyncio's transports promise, without a socket. `unsent` stands for what the peer has not read."""

    def __init__(self, loop, protocol):
        super().__init__()
        self.loop, self.protocol = loop, protocol
        self.written = b""
        self.unsent = 0
        self.reading = True
        self.ended = self.closing = self.lost = False

    def write(self, data):
        if self.ended:
            raise RuntimeError("Cannot call write() after write_eof()")
        assert not self.lost
        self.written += data

    def write_eof(self):
        self.ended = True

    def get_write_buffer_size(self):
        return self.unsent

    def pause_reading(self):
        self.reading = False

    def resume_reading(self):
        self.reading = True

    def is_closing(self):
        return self.closing

    def close(self):
        self.abort()

    def abort(self):
        if not self.closing:
            self.closing = True
            self.loop.call_soon(self._lose)

    def _lose(self):
        self.lost = True
        self.protocol.connection_lost(None)


class Client:
    """One connection and what has come back on it."""

    def __init__(self, bench):
        self.loop = bench.loop
        self.peer = Peer(bench.transport, bench.loop)
        self.socket = Socket(bench.loop, self.peer)
        self.reader = wire.Reader()
        self.peer.connection_made(self.socket)
        self.connection = self.peer.connection

    def send(self, *octets):
        """What comes back, as lines, until the loop is idle. Each argument is a read of its own."""
        for read in octets:
            self.loop.call_soon(self.peer.data_received, read)
        return self.lines()

    def lines(self):
        self.loop.run_until_idle()
        written, self.socket.written = self.socket.written, b""
        return self.reader.feed(written)

    def status(self, stream_id=1):
        return self.reader.status(stream_id)

    def messages(self, stream_id=1):
        return self.reader.messages(stream_id)

    def stop_reading(self):
        self.loop.call_soon(self.peer.pause_writing)
        return self.lines()

    def go_on_reading(self):
        self.loop.call_soon(self.peer.resume_writing)
        return self.lines()

    def hang_up(self):
        self.socket.abort()
        self.loop.run_until_idle()


class Bench:
    """A native transport on a virtual loop. settings: of HTTP/2."""

    def __init__(self, *, max_message=MAX_MESSAGE, **settings):
        self.loop = VirtualTimeLoop()
        self.infer = Infer()
        self.transport = native(self.loop, self.loop.clock, self.infer, max_message=max_message, **settings)
        self.counts = self.transport.counts

    def connect(self, hello=HELLO):
        """A client whose handshake is done; with an empty `hello`, one that has not said anything."""
        client = Client(self)
        if hello:
            assert client.send(hello)[-1] == "SETTINGS ACK"
        return client

    def call(self, path, payload=b"", *more):
        """A unary call on a connection of its own; the client, when the loop is idle."""
        client = self.connect()
        client.send(wire.grpc_call(path, payload, 1, *more))
        return client

    def wait(self, seconds):
        """Time passes, in ticks of the transport."""
        for _ in range(seconds):
            self.loop.run_for(SECOND)
            for peer in list(self.transport.peers):
                self.loop.call_soon(peer.tick, self.loop.clock.now)
            self.loop.run_until_idle()


@contextlib.contextmanager
def bench(**settings):
    """A Bench. At the end nothing may be left: no connection, no octet held, no task, no exception."""
    made = Bench(**settings)
    problems = []
    made.loop.set_exception_handler(lambda loop, context: problems.append(context))
    try:
        yield made
        peers = list(made.transport.peers)
        for peer in peers:
            peer.abort()
        made.loop.run_until_idle()
        assert not made.transport.peers
        for peer in peers:
            assert not peer.connection.streams
            assert not peer.tasks
            assert peer.buffered == 0
            assert peer.connection.outbound.pending_octets == 0
        assert made.counts.connections_open == 0
        assert not problems, problems
    finally:
        made.loop.run_until_complete(made.loop.shutdown_asyncgens())
        made.loop.close()
