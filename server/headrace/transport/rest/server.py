"""The HTTP port: its socket, and what its connections share."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from headrace.clock import Clock, monotonic_ns
from headrace.transport.rest.answer import Openings
from headrace.transport.rest.connection import Connection
from headrace.transport.rest.known_heads import KnownHeads

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Coroutine

    from starlette.types import ASGIApp

    from headrace.config import HttpSettings
    from headrace.telemetry.server_metrics import ServerMetrics
    from headrace.transport.rest.infer import RestCall
    from headrace.transport.tls.layer import TlsPort

DRAIN_SECONDS = 2
"""How long `HttpServer.close` waits for requests that are being answered, and for replies that do not move."""

_TICK_SECONDS = 1.0
_READ_BUFFER = 256 << 10
_BACKLOG = 1024

_SURPLUS = 64
"""So many connections beyond the limit are told so; the next one is closed without a word."""


class HttpServer:
    """Serves inference and an ASGI application on a socket that is bound already, in the running event loop.

    There is no access log. infer: takes `RestCall`s. max_message: octets of a body. counts: telemetry's. tls: if the
    port speaks TLS. traced: whether the traces of callers are told from their headers.

    buffered: octets of the requests of all connections that have not begun. leaving: connections are to close.
    """

    def __init__(
        self,
        app: ASGIApp,
        sock: socket.socket,
        infer: Callable[[RestCall], None],
        *,
        settings: HttpSettings,
        max_message_bytes: int,
        counts: ServerMetrics,
        tls: TlsPort | None = None,
        traced: bool = False,
        clock: Clock = monotonic_ns,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.app: Any = app  # uvicorn has types of its own for ASGI
        self.infer = infer
        self.settings = settings
        self.max_message = max_message_bytes
        self.counts = counts
        self.traced = traced
        self.clock = clock
        self.openings = Openings(wall())
        self.heads = KnownHeads(traced=traced)
        self.read_buffer = memoryview(bytearray(_READ_BUFFER))
        self.buffered = 0
        self.leaving = False
        self._tls = tls
        self.scheme = "http" if tls is None else "https"
        if tls is not None:
            tls.most = settings.max_connections
        self._wall = wall
        self._sock = sock
        self._server: asyncio.Server | None = None
        self._ticker: asyncio.TimerHandle | None = None
        self._connections: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._empty = asyncio.Event()

    def __repr__(self) -> str:
        state = "serving" if self._server else "closed"
        return f"<HttpServer {state}, {len(self._connections)} connections>"

    async def start(self) -> int:
        """Returns the port once connections are accepted. OSError: the socket cannot listen."""
        loop = asyncio.get_running_loop()

        def protocol() -> asyncio.BaseProtocol:
            connection = Connection(self, loop)
            return connection if self._tls is None else self._tls.protect(connection)

        self._server = await loop.create_server(protocol, sock=self._sock, backlog=_BACKLOG)
        self._tick()
        port: int = self._sock.getsockname()[1]
        return port

    def drain(self) -> None:
        """Has connections closed behind their next reply, so that clients look elsewhere. New ones are still taken."""
        self.leaving = True

    async def close(self, seconds: float = DRAIN_SECONDS) -> bool:
        """Stops listening, finishes what is being answered within `DRAIN_SECONDS`, and cuts off the rest: False then.

        Replies that clients are still taking get as long as they move, and no longer than `seconds`.
        """
        if self._server is None:
            return True
        server, self._server = self._server, None
        self.leaving = True
        server.close()
        if self._tls is not None:
            self._tls.close()
        for connection in list(self._connections):
            connection.shutdown()
        try:
            await self._emptied(seconds)
        finally:
            cut_off = list(self._connections)
            for connection in cut_off:
                connection.transport.abort()
            if self._ticker is not None:
                self._ticker.cancel()
            for task in self._tasks:
                task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await server.wait_closed()
        return not cut_off

    async def _emptied(self, seconds: float) -> None:
        """Returns when no connection is left, or when they are not to be waited for any longer."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        left = self._unsent()
        while self._connections:
            try:
                async with asyncio.timeout(DRAIN_SECONDS):
                    while self._connections:
                        self._empty.clear()
                        await self._empty.wait()
            except TimeoutError:
                before, left = left, self._unsent()
                if left >= before or loop.time() >= end:
                    return

    def _unsent(self) -> int:
        """Octets of replies that clients have still to take."""
        return sum(connection.transport.get_write_buffer_size() for connection in self._connections)

    # --- for connections ----------------------------------------------------------------------------------------------

    def admit(self, connection: Connection) -> bool:
        """Takes note of a connection; False: it is one too many. Far too many are closed at once."""
        self._connections.add(connection)
        self.counts.http_connections_open += 1
        self.counts.http_connections_total += 1
        surplus = len(self._connections) - self.settings.max_connections
        if surplus > _SURPLUS or self._server is None:
            connection.transport.abort()
        return surplus <= 0

    def forget(self, connection: Connection) -> None:
        """The connection is no more."""
        self._connections.discard(connection)
        self.counts.http_connections_open -= 1
        if not self._connections:
            self._empty.set()

    def run(self, loop: asyncio.AbstractEventLoop, call: Coroutine[Any, Any, None]) -> None:
        """Runs a call of the application."""
        task = loop.create_task(call)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _tick(self) -> None:
        self.openings.refresh(self._wall())
        now = self.clock()
        for connection in list(self._connections):
            connection.tick(now)
        self._ticker = asyncio.get_running_loop().call_later(_TICK_SECONDS, self._tick)
