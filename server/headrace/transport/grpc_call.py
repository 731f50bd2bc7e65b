"""One gRPC call on an HTTP/2 stream: messages out of DATA, the RPC, the reply."""

from __future__ import annotations

import asyncio
from struct import Struct
from typing import TYPE_CHECKING

from headrace.errors import (
    DeadlineExceeded,
    HeadraceError,
    MessageTooLarge,
    ProtocolError,
    RequestTooSlow,
    ShuttingDown,
)
from headrace.transport import grpc_messages
from headrace.transport.grpc_head import REPLY_HEAD, REPLY_TAIL, status_block
from headrace.transport.grpc_messages import MessageReader
from headrace.transport.http2.limits import Limit
from headrace.transport.http2.stream import Stream
from headrace.transport.status import Code, Status, grpc_status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from headrace.messages import Buffer, Cancellable
    from headrace.transport.grpc_peer import Peer
    from headrace.transport.http2.heads import RequestHead
    from headrace.transport.service import StreamHandler

_prefix = Struct(">xI").pack  # an uncompressed message: flag 0, length
_MESSAGE_COST = 64
"""Octets that a message in memory takes beside its own: five octets on the wire may carry an empty one."""


class Call(Stream):
    """A unary call: also the `ReplySink` of its inference.

    A request that came in one DATA frame, as nearly all do, touches little of this: `on_data` hands it over.
    """

    __slots__ = (
        "_ended",
        "_messages",
        "_reader",
        "deadline",
        "peer",
        "received",
        "request",
        "under_way",
    )

    door = "grpc"

    def __init__(self, peer: Peer, stream_id: int, head: RequestHead) -> None:
        super().__init__(peer.connection, stream_id, head)
        self.peer = peer
        self.under_way: Cancellable | None = None
        self.request: Buffer | None = None
        self.received: int  # with the request
        timeout = head.varied
        self.deadline = peer.connection.now + timeout if timeout >= 0 else 0
        self._ended = False
        self._reader: MessageReader | None = None
        self._messages: tuple[Buffer, ...] = ()

    def __repr__(self) -> str:
        state = "ended" if self._ended else "under way" if self.under_way else "receiving"
        return f"<{type(self).__name__} {self.id} {self.head.app.path} {state}>"

    @property
    def traceparent(self) -> bytes:
        """See `messages.ReplySink`."""
        return self.head.traceparent

    @property
    def tracestate(self) -> bytes:
        """See `messages.ReplySink`."""
        return self.head.tracestate

    # --- from the connection ------------------------------------------------------------------------------------------

    def on_headers(self, end: bool) -> None:
        """See `Stream`."""
        head = self.head.app
        if head.refusal is not None:
            # whoever does not speak gRPC is answered after it has said all: it may not read before that
            if end or head.plain is None:
                self._refuse()
        elif self.head.varied == 0:
            self.fail(DeadlineExceeded("Deadline exceeded before the request was read"))
        elif end:
            self._end_of_request()

    def on_data(self, data: bytes | memoryview, start: int, stop: int, end: bool) -> None:
        """See `Stream`."""
        reader = self._reader
        if reader is None:
            size = stop - start - 5
            if (
                end
                and not self._ended
                and self.head.app.refusal is None
                and size >= 0
                and data[start : start + 5] == _prefix(size)
            ):
                # the whole request in one frame
                if size > self.peer.max_message:
                    self.fail(grpc_messages.too_large(size, self.peer.max_message))
                else:
                    self._call(bytes(data[start + 5 : stop]))
                return
        refused = self.head.app.refusal is not None
        if not end and (refused or self._ended):
            self.connection.without_message(stop - start)
        if self._ended:
            return
        if refused:
            if end or self.recv_window * 2 <= self.connection.limits.initial_window:
                self._refuse()  # or not quite all, if that is very much
            return
        try:
            self._gather(memoryview(data)[start:stop], end=end)
        except HeadraceError as error:
            self.fail(error)
            return
        if end and not self._ended:
            self._end_of_request()

    def on_inside(self, octets: int) -> None:
        """See `Stream`."""
        self._hold(octets)

    def on_reset(self) -> None:
        """See `Stream`: the caller has gone away."""
        self._ended = True
        self.request = None
        self._forget_messages()
        if self.under_way is not None:
            self.under_way.cancel()
            if not self.under_way.finished:
                self.connection.lingering.append(self.under_way)
            self.under_way = None

    # --- the request --------------------------------------------------------------------------------------------------

    def _gather(self, chunk: memoryview, *, end: bool) -> None:
        reader = self._reader
        if reader is None:
            peer = self.peer
            reader = self._reader = MessageReader(peer.max_message, self.head.app.encoding, peer.server.large_buffer)
        held = self._held()
        try:
            if whole := reader.feed(chunk):
                self._take(whole)
            elif not end:
                self.connection.without_message(len(chunk))
        finally:
            self.peer.buffered += self._held() - held
        if self._hold(0) and not end:
            self._credit()
            if reader.room:
                self.connection.lend(self, reader, reader.room)

    def _held(self) -> int:
        """Octets that are kept of the request: they count as the peer's `buffered`."""
        return (self._reader.filled if self._reader is not None else 0) + self._waiting_octets()

    def _hold(self, octets: int) -> bool:
        """Accounts for so many more; False: the connection keeps too much, and the call has failed."""
        peer = self.peer
        peer.buffered += octets
        if peer.buffered <= peer.max_buffered:
            return True
        peer.server.limited(Limit.BUFFERED_OCTETS)
        self.fail(
            MessageTooLarge(f"the unfinished requests of this connection hold more than {peer.max_buffered} octets")
        )
        return False

    def _take(self, messages: list[Buffer]) -> None:
        self._messages = (*self._messages, *messages)
        grpc_messages.only(self._messages)

    def _waiting_octets(self) -> int:
        """Of whole messages."""
        return sum(map(len, self._messages))

    def _credit(self) -> None:
        """Opens the stream's window again once half is used: a message may be larger than the window."""
        window = self.connection.limits.initial_window
        if self.recv_window * 2 <= window:
            self.connection.credit(self, window - self.recv_window)

    def _forget_messages(self) -> None:
        self.peer.buffered -= self._held()
        self.connection.take_back(self)
        self._reader = None
        self._messages = ()

    def _end_of_request(self) -> None:
        try:
            if self._reader is not None and self._reader.within:
                raise ProtocolError("the call ended inside a message")
            message = grpc_messages.only(self._messages)
        except HeadraceError as error:
            self.fail(error)
            return
        self._forget_messages()
        self._call(message)

    def _call(self, message: Buffer) -> None:
        unary = self.head.app.unary
        if unary is None:
            self.request = message
            self.received = self.connection.now
            self.head.app.later(self)
            return
        try:
            reply = unary(bytes(message))
        except Exception as error:
            self.fail(error)
        else:
            self.reply(reply)

    def expire(self, now: int) -> None:
        """Ends the call if its deadline has passed before its request was complete. now: monotonic ns."""
        if self.deadline and now >= self.deadline and self.under_way is None:
            self.fail(DeadlineExceeded("Deadline exceeded before the request was read"))

    @property
    def receiving(self) -> bool:
        """Whether something of the request is still to come, without which nothing can be done."""
        return not (self._ended or self.remote_closed)

    @property
    def octets_taken(self) -> int:
        """Grows as the client takes what waits for it: by as many octets of DATA."""
        return -self.connection.outbound.waiting(self)

    def too_slow(self) -> None:
        """Ends the call: what is still to come does not, or next to nothing of it."""
        self.peer.server.limited(Limit.SLOW_REQUEST)
        if self.head.app.refusal is not None:
            self._refuse()
        else:
            self.fail(RequestTooSlow("the request's message stopped arriving"))

    # --- the reply ----------------------------------------------------------------------------------------------------

    def reply(self, message: bytes) -> None:
        """Sends the one reply and status OK. Without effect once the call has ended."""
        if not self._ended:
            self._ended = True
            self.under_way = None
            self.connection.outbound.respond(self, REPLY_HEAD, _prefix(len(message)), message, REPLY_TAIL)

    def fail(self, error: BaseException) -> None:
        """Ends the call with the error's status. Without effect once it has ended."""
        if not self._ended:
            self._finish(grpc_status(error))

    def _finish(self, status: Status) -> None:
        self._ended = True
        self.under_way = None
        self.request = None
        self._forget_messages()
        self.connection.outbound.headers(self, status_block(status, opening=True), end=True)

    def _refuse(self) -> None:
        head = self.head.app
        self._ended = True
        if head.too_large:
            self.peer.server.limited(Limit.HEADER_LIST)
        outbound = self.connection.outbound
        outbound.headers(self, head.refusal, end=not head.plain)
        if head.plain:
            outbound.data(self, head.plain, end=True)


class StreamCall(Call):
    """A call that streams in either direction: a task that runs its handler, off the hot path."""

    __slots__ = ("_answered", "_handler", "_incoming", "_sent", "_task", "_unblocked", "_waiting")

    def __init__(self, peer: Peer, stream_id: int, head: RequestHead, handler: StreamHandler) -> None:
        super().__init__(peer, stream_id, head)
        self._handler = handler
        self._incoming: asyncio.Queue[Buffer | None] = asyncio.Queue()
        self._waiting = 0
        self._answered = False
        self._sent = 0  # octets of DATA, with those that wait
        self._unblocked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def on_headers(self, end: bool) -> None:
        """See `Stream`."""
        head = self.head.app
        if head.refusal is not None or self.head.varied == 0:
            super().on_headers(end)
            return
        if self.peer.draining:
            self.shut_down()
            return
        if end:
            self._incoming.put_nowait(None)
        self._task = asyncio.get_running_loop().create_task(self._run())
        self.peer.tasks.add(self._task)
        self._task.add_done_callback(self.peer.tasks.discard)

    def on_data(self, data: bytes | memoryview, start: int, stop: int, end: bool) -> None:
        """See `Stream`."""
        if self._ended or self.head.app.refusal is not None:
            super().on_data(data, start, stop, end)
            return
        try:
            self._gather(memoryview(data)[start:stop], end=end)
        except HeadraceError as error:
            self.fail(error)
            return
        if end:
            if self._reader is not None and self._reader.within:
                self.fail(ProtocolError("the call ended inside a message"))
            else:
                self._incoming.put_nowait(None)

    def on_reset(self) -> None:
        """See `Stream`."""
        super().on_reset()
        if self._task is not None:
            self._task.cancel()

    @property
    def receiving(self) -> bool:
        """See `Call`: between messages a client may take its time, and while the handler has enough it has to wait."""
        begun = self._reader is not None and self._reader.within
        return begun and super().receiving and self._waiting * 2 < self.connection.limits.initial_window

    @property
    def octets_taken(self) -> int:
        """See `Call`."""
        return self._sent + super().octets_taken

    def shut_down(self) -> None:
        """The server leaves: ends the call."""
        self.fail(ShuttingDown("Server is shutting down"))

    def _take(self, messages: list[Buffer]) -> None:
        for message in messages:
            self._waiting += len(message) + _MESSAGE_COST
            self._incoming.put_nowait(message)

    def _waiting_octets(self) -> int:
        return self._waiting

    def _forget_messages(self) -> None:
        super()._forget_messages()
        self._waiting = 0

    def _credit(self) -> None:
        """Only what the handler has taken is credited, so that a fast sender waits for it."""
        if self._waiting * 2 < self.connection.limits.initial_window:
            super()._credit()

    async def _messages_in(self) -> AsyncIterator[bytes]:
        while (message := await self._incoming.get()) is not None:
            if not self._ended:
                size = len(message) + _MESSAGE_COST
                self._waiting -= size
                self.peer.buffered -= size
                self._credit()
            yield bytes(message)

    async def _run(self) -> None:
        timeout = self.head.varied
        limit = asyncio.timeout(timeout / 1e9 if timeout >= 0 else None)
        try:
            async with limit:
                async for message in self._handler(self._messages_in()):
                    if self._ended:
                        return
                    self._send(message)
                    await self._writable()
        except Exception as error:
            self.fail(DeadlineExceeded("Deadline exceeded") if limit.expired() else error)
        else:
            if not self._ended:
                self._finish(Status(Code.OK, "", ()))

    def _send(self, message: bytes) -> None:
        outbound = self.connection.outbound
        if not self._answered:
            self._answered = True
            outbound.headers(self, REPLY_HEAD)
        self._sent += grpc_messages.PREFIX_SIZE + len(message)
        outbound.data(self, _prefix(len(message)) + message)

    async def _writable(self) -> None:
        """Returns once the client has let all out that was sent: its pace is the handler's."""
        while self.pending is not None:
            self._unblocked.clear()
            await self._unblocked.wait()
        await self.peer.writable()

    def on_writable(self) -> None:
        """See `Stream`."""
        self._unblocked.set()

    def _finish(self, status: Status) -> None:
        self._ended = True
        self._forget_messages()
        self.connection.outbound.headers(self, status_block(status, opening=not self._answered), end=True)
        task = self._task
        if task is not None and task is not asyncio.current_task():
            task.cancel()
