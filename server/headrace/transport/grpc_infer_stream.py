"""A ModelStreamInfer call of the native transport: no task, no future, a few steps a message."""

from __future__ import annotations

import asyncio
from struct import Struct
from typing import TYPE_CHECKING

from headrace.errors import DeadlineExceeded, HeadraceError, ProtocolError, ShuttingDown
from headrace.transport import grpc_messages
from headrace.transport.grpc_call import Call
from headrace.transport.grpc_head import REPLY_HEAD, status_block
from headrace.transport.infer_stream import InferStream
from headrace.transport.status import Code, Status, grpc_status

if TYPE_CHECKING:
    from headrace.messages import Buffer
    from headrace.transport.grpc_peer import Peer
    from headrace.transport.http2.heads import RequestHead

_prefix = Struct(">xI").pack
_read_prefix = Struct(">BI").unpack_from


class InferStreamCall(Call):
    """Requests in, replies out in their order.

    The client waits when `infer_stream.MAX_IN_FLIGHT` requests are at work, or when it does not read its replies.
    """

    __slots__ = ("_answered", "_asked", "_leaving", "_requests", "_sent", "_timer")

    def __init__(self, peer: Peer, stream_id: int, head: RequestHead) -> None:
        super().__init__(peer, stream_id, head)
        self._requests = InferStream(peer.infer, self._wake, self.deadline, breaks=head.app.breaks)
        self._requests.traceparent, self._requests.tracestate = head.traceparent, head.tracestate
        self._answered = False
        self._asked = False  # whether the client has sent all
        self._leaving = False
        self._sent = 0  # octets of DATA, with those that wait
        self._timer: asyncio.TimerHandle | None = None

    # --- from the connection ------------------------------------------------------------------------------------------

    def on_headers(self, end: bool) -> None:
        """See `Stream`."""
        timeout = self.head.varied
        if self.head.app.refusal is not None or timeout == 0:
            super().on_headers(end)
            return
        if self.peer.draining:
            self.shut_down()
            return
        if timeout > 0:
            self._timer = asyncio.get_running_loop().call_later(timeout / 1e9, self._expired)
        if end:
            self._asked = True
            self._wake()

    def on_data(self, data: bytes | memoryview, start: int, stop: int, end: bool) -> None:
        """See `Stream`."""
        if self._ended or self.head.app.refusal is not None:
            super().on_data(data, start, stop, end)
            return
        try:
            if self._reader is None or not self._reader.within:
                start = self._take_whole(data, start, stop)
            if start < stop:
                self._gather(memoryview(data)[start:stop], end=end)
            elif not end and self._hold(0):
                self._credit()
        except HeadraceError as error:
            self.fail(error)
            return
        if end and not self._ended:
            if self._reader is not None and self._reader.within:
                self.fail(ProtocolError("the call ended inside a message"))
            else:
                self._asked = True
                self._wake()

    def on_reset(self) -> None:
        """See `Stream`."""
        self._end()
        super().on_reset()

    def on_writable(self) -> None:
        """See `Stream`: the client reads again."""
        self._wake()

    # --- requests -----------------------------------------------------------------------------------------------------

    def _take_whole(self, data: bytes | memoryview, start: int, stop: int) -> int:
        """Takes the messages that lie whole in data[start:stop]; returns where the rest begins."""
        requests = self._requests
        held = requests.waiting_octets
        now = self.connection.now
        most = self.peer.max_message
        while stop - start >= grpc_messages.PREFIX_SIZE:
            flag, size = _read_prefix(data, start)
            after = start + grpc_messages.PREFIX_SIZE + size
            if flag or after > stop or size > most:  # for the reader
                break
            if not self._leaving:
                requests.take(bytes(data[start + grpc_messages.PREFIX_SIZE : after]), now)
            start = after
        self.peer.buffered += requests.waiting_octets - held
        return start

    def _take(self, messages: list[Buffer]) -> None:
        for message in messages:
            if not self._leaving:
                self._requests.take(message, self.connection.now)

    def _waiting_octets(self) -> int:
        return self._requests.waiting_octets

    def _credit(self) -> None:
        """Only what is at work is credited, so that a fast sender waits for it."""
        if self._requests.waiting_octets * 2 < self.connection.limits.initial_window:
            super()._credit()

    @property
    def receiving(self) -> bool:
        """See `Call`: between messages a client may take its time, and while enough of them wait it has to."""
        begun = self._reader is not None and self._reader.within
        return begun and super().receiving and self._requests.waiting_octets * 2 < self.connection.limits.initial_window

    # --- replies ------------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        self.peer.answer(self)

    def flush(self) -> None:
        """Sends what is ready, at the end of a turn of the event loop, and has requests go on in its place."""
        if self._ended:
            return
        requests = self._requests
        if requests.ready:
            self._send(requests.ready)
            requests.ready = []
        requests.held = self.pending is not None
        if requests.error is not None:
            self.fail(requests.error)
        elif not requests.held:
            held = requests.waiting_octets
            requests.pump()
            self.peer.buffered += requests.waiting_octets - held
            if requests.idle and (self._asked or self._leaving):
                self._finish(
                    Status(Code.OK, "", ()) if self._asked else grpc_status(ShuttingDown("Server is shutting down"))
                )
            elif not self.remote_closed:
                self._credit()

    def _send(self, messages: list[bytes]) -> None:
        outbound = self.connection.outbound
        if not self._answered:
            self._answered = True
            outbound.headers(self, REPLY_HEAD)
        # clients open their windows for each message, however many of them a frame holds (see `limits.SmallFrames`)
        outbound.sent += len(messages) - 1
        octets = b"".join([part for message in messages for part in (_prefix(len(message)), message)])
        self._sent += len(octets)
        outbound.data(self, octets)

    @property
    def octets_taken(self) -> int:
        """See `Call`."""
        return self._sent + super().octets_taken

    # --- the end ------------------------------------------------------------------------------------------------------

    def expire(self, now: int) -> None:
        """See `Call`: this one has a timer of its own."""

    def _expired(self) -> None:
        self.fail(DeadlineExceeded("Deadline exceeded"))

    def shut_down(self) -> None:
        """The server leaves: what is at work is answered, nothing more is taken."""
        self._leaving = True
        held = self._requests.waiting_octets
        self._requests.forget_waiting()
        self.peer.buffered -= held
        self._wake()

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        held = self._requests.waiting_octets
        self.connection.lingering += self._requests.cancel()
        self.peer.buffered -= held
        self._requests.ready.clear()

    def _finish(self, status: Status) -> None:
        self._ended = True
        self._end()
        self._forget_messages()
        self.connection.outbound.headers(self, status_block(status, opening=not self._answered), end=True)
