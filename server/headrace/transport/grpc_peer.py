"""One connection of gRPC on our own HTTP/2: an asyncio protocol, on which calls are objects and not tasks."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from headrace.errors import Overloaded
from headrace.transport.grpc_call import Call, StreamCall
from headrace.transport.grpc_head import VARYING, CallHead, status_block
from headrace.transport.grpc_infer_stream import InferStreamCall
from headrace.transport.http2.connection import Connection
from headrace.transport.http2.frames import MAX_STREAM_ID, ErrorCode
from headrace.transport.http2.limits import Limit
from headrace.transport.pace import IN, OUT, Pace
from headrace.transport.status import grpc_status
from headrace.transport.unsent import unsent

if TYPE_CHECKING:
    from headrace.config import Http2Settings
    from headrace.transport.grpc_native import NativeTransport
    from headrace.transport.http2.fields import Fields
    from headrace.transport.http2.heads import RequestHead
    from headrace.transport.http2.stream import Stream
    from headrace.transport.pace import Flow


_COPIED_READ = 32 << 10
_LAST_IDS = MAX_STREAM_ID // 4 * 3
"""Beyond this stream a client is asked to go: ids run out, and there are no others on this connection (5.1.1)."""
_DRAIN_PING_NS = 5 * 10**9
"""A client that has not answered the PING behind our first GOAWAY by then is sent the last one all the same."""
_SURPLUS = 64
"""So many connections beyond the limit are told so, call by call; the next one is closed without a word to a call."""
_LINGER_SECONDS = 1.0
"""After the last octets, the client gets this long to close: closing first may destroy what it has not yet got."""


class Peer(asyncio.BufferedProtocol):
    """One connection: the socket's callbacks on one side, its HTTP/2 state on the other.

    All connections read into one buffer of the server's: what a read brought is taken out of it before the next read.

    buffered: octets of incomplete messages. tasks: of its streaming calls.
    """

    def __init__(self, server: NativeTransport, loop: asyncio.AbstractEventLoop) -> None:
        self.server = server
        self.infer = server.table.infer
        self.max_message = server.max_message
        self.max_buffered = server.http2.max_buffered_bytes
        self.buffered = 0
        self.tasks: set[asyncio.Task[None]] = set()
        self._answering: dict[InferStreamCall, None] = {}
        self._loop = loop
        self._transport: asyncio.Transport
        self._flush_due = False
        self._ending: asyncio.TimerHandle | None = None
        self._paused: asyncio.Event | None = None
        self._began = 0
        self._received = 0  # octets
        self._last_read = 0
        self._last_call = 0
        self._last_id = 0  # of a stream, at the last tick
        stall_s = server.http2.stall_timeout_s
        self._pace = Pace(int(stall_s * 1e9), max(1, int(stall_s * server.http2.min_bytes_per_s)))
        self._pinged_at = self._draining_since = 0
        self._surplus = False
        self._clock = server.clock
        self._counts = server.counts
        self.connection: Connection  # begins with the socket

    def __repr__(self) -> str:
        return f"<Peer {self.connection!r}>"

    @property
    def draining(self) -> bool:
        """Whether the server leaves."""
        return self.server.draining

    @property
    def owes(self) -> bool:
        """Whether a call is under way, or the client has yet to take what was written."""
        return bool(self.connection.streams) or unsent(self._transport) > 0

    # --- asyncio.Protocol ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.BufferedProtocol."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's does not derive from asyncio's
        server = self.server
        self._surplus = not server.has_room
        read_head = self._read_head if self._surplus else server.read_head
        self.connection = Connection(
            server.limits, self._open, read_head, self._wake, VARYING, server.limited, server.head_reader
        )
        self._began = self._last_read = self._last_call = self._clock()
        server.peers.add(self)
        self._counts.connections_open += 1
        self._counts.connections_total += 1
        if server.draining:
            self.abort()
        elif self._surplus and len(server.surplus) >= _SURPLUS:
            self._surplus = False
            self.connection.calm_down(Limit.CONNECTIONS)
            self._write()
            self._transport.close()  # without the time that others get to read the last words
        elif self._surplus:
            server.surplus.add(self)
            server.limited(Limit.CONNECTIONS)

    def get_buffer(self, sizehint: int) -> memoryview:
        """See asyncio.BufferedProtocol."""
        return self.server.read_buffer

    def buffer_updated(self, nbytes: int) -> None:
        """See asyncio.BufferedProtocol."""
        data = self.server.read_buffer[:nbytes]
        # slices of bytes are what the parser is quickest with; large tensors are copied once, to where they belong
        self.data_received(bytes(data) if nbytes <= _COPIED_READ else data)

    def data_received(self, data: bytes | memoryview) -> None:
        """What one read brought; `data` is good for the time of the call only."""
        now = self._clock()
        self._last_read = now
        self._received += len(data)
        self._counts.bytes_received += len(data)
        connection = self.connection
        connection.receive(data, now)
        if connection.closing:
            self._end()

    def eof_received(self) -> bool:
        """See asyncio.BufferedProtocol: a client that half-closes has gone; gRPC ends calls by END_STREAM, not FIN."""
        return False

    def pause_writing(self) -> None:
        """See asyncio.BufferedProtocol: the peer does not read. Nothing more is taken from it until it does."""
        self._paused = asyncio.Event()
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """See asyncio.BufferedProtocol."""
        if self._paused is not None:
            self._paused.set()
            self._paused = None
        self._pace.forget((0, OUT))
        self.read()
        if self.connection.outbound.out or self._answering:
            self._wake()

    def read(self) -> None:
        """Has the peer read from, unless it does not read itself, or the server is held: then it is not."""
        if self.server.held:
            self._transport.pause_reading()
        elif self._paused is None and not self._transport.is_closing():
            self._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.BufferedProtocol."""
        if self._paused is not None:
            self._paused.set()
            self._paused = None
        if self._ending is not None:
            self._ending.cancel()
        self.connection.lost()
        self.server.peers.discard(self)
        self.server.surplus.discard(self)
        self._counts.connections_open -= 1
        if self.connection.closed_with is not ErrorCode.NO_ERROR:
            self._counts.protocol_errors[self.connection.closed_with.name] += 1
        self.server.check_empty()

    # --- writing ------------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        if not self._flush_due:
            self._flush_due = True
            self.server.schedule_flush(self)

    def answer(self, call: InferStreamCall) -> None:
        """Has a stream flushed at the end of this turn of the loop; when the peer reads, if it does not."""
        self._answering[call] = None
        self._wake()

    def flush(self) -> None:
        """Writes what has gathered; while the peer does not read it stays here."""
        if self._answering and self._paused is None:
            answering, self._answering = self._answering, {}
            for call in answering:
                call.flush()
        self._flush_due = False
        if self._answering and self._paused is None:
            self._wake()
        if self._ending is not None or self._transport.is_closing():
            self.connection.outbound.out.clear()
        elif self._paused is None:
            self._write()
            if self._draining_since:
                self._end_if_drained()

    def _write(self) -> None:
        data = self.connection.outbound.take()
        if data:
            self._counts.bytes_sent += len(data)
            self._transport.write(data)

    async def writable(self) -> None:
        """Returns once the peer reads again; at once if it does."""
        if self._paused is not None:
            await self._paused.wait()

    # --- the life of the connection -----------------------------------------------------------------------------------

    def _read_head(self, fields: Fields | None) -> CallHead:
        """The head of a call of a connection that was one too many: refused, unless there is room now."""
        server = self.server
        head = server.read_head(fields)
        if self._surplus and server.has_room:
            server.surplus.discard(self)
            self._surplus = False
        if self._surplus and head.refusal is None:
            most = server.http2.max_connections
            error = Overloaded(f"{most} connections are open, no more are taken (http2.max_connections)", 1000)
            head.refusal = status_block(grpc_status(error), opening=True)
        return head

    def _open(self, connection: Connection, stream_id: int, head: RequestHead) -> Stream:
        self._counts.streams_total += 1
        app = head.app
        if self._surplus and not self._draining_since:
            self.drain()  # its first call has been told; the next one may find room on another connection
        if app.stream is not None:
            return StreamCall(self, stream_id, head, app.stream)
        if app.infers:
            return InferStreamCall(self, stream_id, head)
        return Call(self, stream_id, head)

    def tick(self, now: int) -> None:
        """Once a second: is the peer still there, and does it behave? now: monotonic ns."""
        settings = self.server.http2
        connection = self.connection
        self._end_if_drained()
        if self._ending is not None or self._transport.is_closing():
            return
        if not connection.controls.settings_acked and now - self._began > settings.handshake_timeout_s * 1e9:
            self.server.limited(Limit.HANDSHAKE_TIMEOUT)
            if not connection.started:
                self.abort()
            else:
                connection.fail(ErrorCode.SETTINGS_TIMEOUT, "no SETTINGS ACK")
                self._end()
            return
        if self._surplus and not self._draining_since and now - self._began > settings.handshake_timeout_s * 1e9:
            self.drain()
        if not self._moves(now):
            return
        if connection.ids.last > _LAST_IDS and not self._draining_since:
            self._draining_since = now
            connection.drain()
        if self._draining_since and now - self._draining_since > _DRAIN_PING_NS:
            connection.last_goaway()
        for stream in list(connection.streams.values()):
            cast("Call", stream).expire(now)
        if connection.streams or connection.ids.last != self._last_id:
            self._last_call, self._last_id = now, connection.ids.last
        elif settings.idle_timeout_s and now - self._last_call > settings.idle_timeout_s * 1e9:
            self.server.limited(Limit.IDLE_TIMEOUT)
            connection.fail(ErrorCode.NO_ERROR, "max_idle")
            self._end()
            return
        self._keep_alive(now, settings)

    def _moves(self, now: int) -> bool:
        """Whether the connection goes on; what has not moved for too long is given up (CVE-2019-9511, 9517).

        A peer that does not read its socket is cut off, for its connection can take no other end. One that leaves a
        frame unfinished has lost its way. A call that stands still costs the call.
        """
        connection = self.connection
        stalled = self._pace.stalled(self._moved(), now)
        if (0, OUT) in stalled:
            self.server.limited(Limit.SLOW_READER)
            self.abort()
            return False
        if (0, IN) in stalled:
            connection.calm_down(Limit.SLOW_FRAME)
            self._end()
            return False
        for stream_id, way in stalled:
            stream = connection.streams.get(stream_id)
            if stream is None:
                continue  # it has stalled both ways
            if way == IN:
                cast("Call", stream).too_slow()
            else:
                connection.give_up(stream, Limit.SLOW_READER)
        return True

    def _moved(self) -> dict[Flow, int]:
        """Octets so far of all that has to move, by stream and direction."""
        connection = self.connection
        if self._paused is not None:  # nothing is read meanwhile
            return {(0, OUT): -self._transport.get_write_buffer_size()}
        moved: dict[Flow, int] = {(0, IN): self._received} if connection.within else {}
        for stream in connection.streams.values():
            if cast("Call", stream).receiving:
                moved[stream.id, IN] = stream.octets_received
            if stream.pending is not None:
                moved[stream.id, OUT] = cast("Call", stream).octets_taken
        return moved

    def _keep_alive(self, now: int, settings: Http2Settings) -> None:
        """Pings a peer that has been silent, and drops it if it stays so (gRFC A8)."""
        if self._paused is not None:  # nothing is read of it, and no PING goes out; `_moves` sees whether it reads
            self._pinged_at = 0
            return
        if self._last_read > self._pinged_at:
            self._pinged_at = 0
        if self._pinged_at and now - self._pinged_at > settings.keepalive_timeout_s * 1e9:
            self.server.limited(Limit.KEEPALIVE_TIMEOUT)
            self.abort()
        elif not self._pinged_at and now - self._last_read > settings.keepalive_s * 1e9:
            self._pinged_at = now
            self.connection.keep_alive()

    def drain(self) -> None:
        """Asks the client to go; the connection closes when the last call has ended."""
        self._draining_since = self._clock()
        if not self.connection.started:
            self.abort()
            return
        for stream in list(self.connection.streams.values()):
            if isinstance(stream, StreamCall | InferStreamCall):
                stream.shut_down()
        self.connection.drain()

    def _end_if_drained(self) -> None:
        if self.connection.drained and self._paused is None:
            self._end()

    def _end(self) -> None:
        """The connection is over by our doing: sends the rest and lets the client close. What it sends is dropped."""
        if self._ending is None and not self._transport.is_closing():
            self._write()
            self._transport.write_eof()
            self._linger()

    def _linger(self, before: int | None = None) -> None:
        """Leaves the client time to close, as long as it goes on to take what is left: the last reply may be long."""
        left = unsent(self._transport)
        if before is None or left < before:
            self._ending = self._loop.call_later(_LINGER_SECONDS, self._linger, left)
        else:
            self.abort()

    def abort(self) -> None:
        """Closes at once."""
        self._transport.abort()
