"""The native transport on a real socket of the loopback, and clients made of nothing but a socket."""

import asyncio
import contextlib
import socket
import struct
import threading
import time

import uvloop
from transport.http2 import bench, wire

SECONDS = 20
"""Longest wait for anything; no test waits that long unless it fails."""


class Clock:
    """The transport's clock: it stands still until the test lets time pass."""

    def __init__(self):
        self.now = 10**12

    def __call__(self):
        return self.now

    def second(self):
        """One passes."""
        self.now += 10**9


class Native:
    """A running transport, its event loop on a thread of its own. A context manager; nothing may go wrong unseen.

    table: what it serves, by default what `transport.http2.bench` has. settings: of HTTP/2.
    """

    def __init__(self, table=None, *, new_loop=uvloop.new_event_loop, **settings):
        self.clock = Clock()
        self.infer = bench.Infer()
        self.problems = []
        self.tasks = []
        self.loop = new_loop()
        self.loop.set_exception_handler(lambda loop, context: self.problems.append(context))
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.transport = bench.native(self.loop, self.clock, self.infer, table=table, **settings)
        self.counts = self.transport.counts

    def __enter__(self):
        self._thread.start()
        self.port = self.run(self.transport.start())
        return self

    def __exit__(self, *error):
        peers = self.on_loop(lambda: list(self.transport.peers))
        self.run(self.transport.close())
        self.run(self.loop.shutdown_asyncgens())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(SECONDS)
        self.loop.close()
        if error[0] is None:
            assert not self.problems, self.problems
            assert [peer for peer in peers if peer.buffered or peer.connection.streams] == []

    def run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(SECONDS)

    def on_loop(self, function):
        """What `function` returns on the transport's thread, where its state may be looked at."""

        async def call():
            return function()

        return self.run(call())

    def pass_time(self, seconds):
        """A tick of the transport for each second."""

        def tick():
            self.clock.second()
            for peer in list(self.transport.peers):
                peer.tick(self.clock.now)

        for _ in range(seconds):
            self.on_loop(tick)

    def drain(self):
        """Begins to drain the transport."""
        self.on_loop(lambda: self.tasks.append(self.loop.create_task(self.transport.drain(SECONDS))))

    def connect(self, hello=bench.HELLO):
        return Raw(self.port, hello)

    def peer(self, client):
        """The transport's side of a client's connection; None once it is gone."""
        address = client.socket.getsockname()
        return next((p for p in self.transport.peers if p._transport.get_extra_info("peername") == address), None)

    def limits(self):
        """The limits that peers have met so far, and how often."""
        return self.on_loop(lambda: {str(limit): n for limit, n in self.counts.http2_limits.items() if n})

    def footprint(self, client):
        """Octets that a connection makes the transport hold, and objects for its streams. 0 once it is gone."""

        def measure():
            peer = self.peer(client)
            if peer is None:
                return 0, 0
            connection, outbound = peer.connection, peer.connection.outbound
            octets = (
                peer.buffered
                + len(connection._tail)
                + (connection._block._size if connection._block is not None else 0)
                + outbound.pending_octets
                + sum(map(len, outbound.out))
                + peer._transport.get_write_buffer_size()
            )
            return octets, len(connection.streams) + len(connection.lingering)

        return self.on_loop(measure)

    def read_all(self, client):
        """Returns when the transport has read what the client sent; whether the connection goes on."""

        def state():
            peer = self.peer(client)
            return peer is None or peer.connection.closing, peer is None or peer._received == client.sent

        closing, _ = self.eventually(lambda: any(found := state()) and found)
        return not closing

    def eventually(self, condition):
        """The value of `condition()`, asked on the transport's thread in turn after turn until it is true."""
        deadline = time.monotonic() + SECONDS
        while not (value := self.on_loop(condition)):
            assert time.monotonic() < deadline
        return value

    def hold(self):
        """Keeps the loop from turning until the returned function is called."""
        held, go = threading.Event(), threading.Event()

        def wait():
            held.set()
            go.wait(SECONDS)

        self.loop.call_soon_threadsafe(wait)
        assert held.wait(SECONDS)
        return go.set


class Raw:
    """A socket, and the transcript of what came out of it. A context manager."""

    def __init__(self, port, hello=b""):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.reader = wire.Reader()
        self.lines = []
        self.ended = False
        self.sent = 0
        self._next = 1
        self._pings = 0
        self.send(hello)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def __repr__(self):
        return f"<Raw {self.lines[-5:]}{' ended' if self.ended else ''}>"

    def send(self, *octets):
        joined = b"".join(octets)
        self.sent += len(joined)
        self.socket.sendall(joined)

    def flood(self, octets):
        """Sends what the server may stop reading in the middle, by closing the connection."""
        with contextlib.suppress(ConnectionError):
            self.send(octets)

    def receive(self):
        """One read of whatever is there."""
        try:
            octets = self.socket.recv(1 << 16)
        except ConnectionError:
            octets = b""
        self.ended = not octets
        new = self.reader.feed(octets)
        self.lines += new
        return new

    def until(self, line):
        """The transcript, when `line` has come, or the end."""
        while line not in self.lines and not self.ended:
            self.receive()
        return self.lines

    def end(self):
        """The transcript, when the server has closed the connection."""
        while not self.ended:
            self.receive()
        return self.lines

    def ping(self):
        """The transcript since the last ping, when the server has answered this one: it has read all before it."""
        self._pings += 1
        mark = f"ping{self._pings:04}"
        self.send(wire.ping(mark.encode()))
        self.until(f"PING {mark} ACK")
        assert not self.ended, self
        at = self.lines.index(f"PING {mark} ACK")
        before, self.lines = self.lines[:at], self.lines[at + 1 :]
        return before

    def call(self, path, payload=b"", *more, at=0):
        """A unary call, on stream `at` or the next after the last one: (status, message or None)."""
        stream_id = at or self._next
        self._next = stream_id + 2
        self.send(wire.grpc_call(path, payload, stream_id, *more))
        return self.reply(stream_id)

    def reply(self, stream_id):
        """(status, message or None) of the reply on a stream."""
        while "grpc-status" not in self.reader.fields.get(stream_id, [{}])[-1]:
            assert not self.ended, self
            self.receive()
        messages = self.reader.messages(stream_id)
        return self.reader.status(stream_id)[0], messages[0] if messages else None

    def vanish(self):
        """Ends the connection as a killed process does: with RST, not FIN."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()
