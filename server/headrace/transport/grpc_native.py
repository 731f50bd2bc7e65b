"""gRPC on our own HTTP/2 over asyncio protocols: the default transport.

One object a connection, one a call, no task and no future for a unary call. What one read brought is parsed in one go;
replies gather on the connection and are written once for each turn of the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING

from headrace.clock import Clock, monotonic_ns
from headrace.transport.grpc_head import read_head
from headrace.transport.grpc_messages import large_buffer
from headrace.transport.grpc_peer import Peer
from headrace.transport.http2.heads import HeadReader
from headrace.transport.http2.limits import Limit, Limits
from headrace.transport.http2.traced_heads import TracedHeadReader

if TYPE_CHECKING:
    from headrace.config import Http2Settings
    from headrace.engine.turn import Turn
    from headrace.telemetry.server_metrics import ServerMetrics
    from headrace.transport.service import ServiceTable
    from headrace.transport.tls.layer import TlsPort

logger = logging.getLogger(__name__)

_READ_BUFFER = 256 << 10
_TICK_SECONDS = 1.0


class NativeTransport:
    """A `GrpcTransport`.

    turn: when replies are written. counts: telemetry's counters of connections, octets and protocol errors. tls: if the
    port speaks TLS. traced: whether the traces of callers are told from their metadata.
    """

    def __init__(
        self,
        table: ServiceTable,
        host: str,
        port: int,
        *,
        turn: Turn,
        http2: Http2Settings,
        max_message_bytes: int,
        counts: ServerMetrics,
        tls: TlsPort | None = None,
        traced: bool = False,
        clock: Clock = monotonic_ns,
    ) -> None:
        self.table = table
        self.read_head = partial(read_head, table)
        self.http2 = http2
        self.large_buffer = large_buffer
        self.held = False  # nothing is read of any peer: what is behind this transport does not keep up
        self.limits = Limits.of(http2)
        self.max_message = max_message_bytes
        self.counts = counts
        self.counts.http2_limits.update(dict.fromkeys(Limit, 0))  # a series that appears at its first event has no rate
        self.max_connections = http2.max_connections
        if tls is not None:
            tls.most = self.max_connections
        self.clock = clock
        self.head_reader = TracedHeadReader if traced else HeadReader
        self.read_buffer = memoryview(bytearray(_READ_BUFFER))
        self.peers: set[Peer] = set()
        self.surplus: set[Peer] = set()  # of those, the ones beyond max_connections, whose calls are refused
        self._turn = turn
        self._tls = tls
        self._dirty: list[Peer] = []
        self._host = host
        self._port = port
        self._server: asyncio.Server | None = None
        self._ticker: asyncio.TimerHandle | None = None
        self._empty: asyncio.Event | None = None

    def __repr__(self) -> str:
        return f"<NativeTransport {self._host}:{self._port}, {len(self.peers)} connections>"

    @property
    def has_room(self) -> bool:
        """Whether another connection may be served."""
        return len(self.peers) - len(self.surplus) < self.max_connections

    async def start(self) -> int:
        """See `base.GrpcTransport`."""
        loop = asyncio.get_running_loop()

        def connection() -> asyncio.BaseProtocol:
            peer = Peer(self, loop)
            return peer if self._tls is None else self._tls.protect(peer)

        self._server = await loop.create_server(connection, self._host, self._port, backlog=1024)
        self._port = self._server.sockets[0].getsockname()[1]
        self._ticker = loop.call_later(_TICK_SECONDS, self._tick)
        return self._port

    async def drain(self, seconds: float) -> bool:
        """See `base.GrpcTransport`."""
        if self._server is not None:
            self._server.close()
        self._empty = asyncio.Event()
        for peer in list(self.peers):
            peer.drain()
        self.check_empty()
        try:
            await asyncio.wait_for(self._empty.wait(), seconds)
        except TimeoutError:
            owed = sum(peer.owes for peer in self.peers)
            logger.log(
                logging.WARNING if owed else logging.INFO,
                "time to drain is over: %d connections have calls under way or replies to take, %d more are open",
                owed,
                len(self.peers) - owed,
            )
            return not owed
        return True

    async def close(self) -> None:
        """See `base.GrpcTransport`."""
        if self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None
        if self._server is not None:
            self._server.close()
        if self._tls is not None:
            self._tls.close()
        for peer in list(self.peers):
            peer.abort()
        if self._server is not None:
            await self._server.wait_closed()
            self._server = None

    def limited(self, limit: Limit) -> None:
        """A peer has met a limit."""
        self.counts.http2_limits[limit] += 1

    def schedule_flush(self, peer: Peer) -> None:
        """Has `peer` written to at the end of this turn of the loop."""
        if not self._dirty:
            self._turn.write(self._flush)
        self._dirty.append(peer)

    def _flush(self) -> None:
        dirty, self._dirty = self._dirty, []
        for peer in dirty:
            peer.flush()

    @property
    def draining(self) -> bool:
        """Whether no more connections are taken."""
        return self._empty is not None

    def check_empty(self) -> None:
        """While draining: notices that nothing is under way any more."""
        if self._empty is not None and not self.peers:
            self._empty.set()

    def _tick(self) -> None:
        now = self.clock()
        for peer in list(self.peers):
            peer.tick(now)
        self.counts.streams_open = sum(len(peer.connection.streams) for peer in self.peers)
        self._ticker = asyncio.get_running_loop().call_later(_TICK_SECONDS, self._tick)
