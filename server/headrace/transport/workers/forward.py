"""A worker's doors: calls that have arrived go to the engine as records, and what comes back ends them."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from headrace.transport.grpc_messages import SMALL
from headrace.transport.workers import records
from headrace.transport.workers.link import Link
from headrace.transport.workers.records import INLINE, Kind, Malformed, head
from headrace.transport.workers.told import told

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.engine.turn import Turn
    from headrace.messages import Buffer, Template
    from headrace.transport.service import InferCall, TaskHandler
    from headrace.transport.workers.region import Region

    Data = bytes | memoryview

_PLAIN = cast("Template", SimpleNamespace(final=False))
_FINAL = cast("Template", SimpleNamespace(final=True))
"""All that a stream asks of the template of a request."""


class Forwarded:
    """A call that is at work in the engine: `messages.Cancellable`. call: who waits for it; None: nobody."""

    __slots__ = ("_desk", "_id", "call", "finished", "template")

    def __init__(self, desk: Forwarding, number: int, call: InferCall | _Asked) -> None:
        self._desk = desk
        self._id = number
        self.call: InferCall | _Asked | None = call
        self.finished = False
        self.template = _PLAIN

    def __repr__(self) -> str:
        return f"<Forwarded {self._id} {'finished' if self.finished else 'under way' if self.call else 'cancelled'}>"

    def cancel(self) -> None:
        """See `messages.Cancellable`; the engine says when it is over."""
        if self.call is not None and not self.finished:
            self.call = None
            self._desk.link.send(head(Kind.CANCEL, self._id, 0))


class _Asked:
    """Who waits for a call with a future: a task of a stream."""

    def __init__(self, answer: asyncio.Future[bytes]) -> None:
        self._answer = answer

    def reply(self, message: bytes) -> None:
        if not self._answer.done():
            self._answer.set_result(message)

    def fail(self, error: BaseException) -> None:
        if not self._answer.done():
            self._answer.set_exception(error)


class Forwarding:
    """The calls of this worker that the engine has. region: where large messages lie.

    notice: hears what the engine says of the server. lost: the engine is gone. paused: see `Link`. load: asked before
    each write for what to say of the sockets, if there is anything new.
    """

    def __init__(
        self,
        turn: Turn,
        region: Region,
        *,
        notice: Callable[[dict[str, Any]], None],
        lost: Callable[[Exception | None], None],
        paused: Callable[[bool], None],
        load: Callable[[], tuple[int, int] | None],
    ) -> None:
        self.calls: dict[int, Forwarded] = {}
        self.region = region
        self._next = 0
        self._notice = notice
        self._load = load
        handlers = {
            int(Kind.REPLY): self._on_reply,
            int(Kind.ERROR): self._on_error,
            int(Kind.GONE): self._on_gone,
            int(Kind.FREED): self._on_freed,
            int(Kind.NOTICE): self._on_notice,
        }
        self.link = Link(turn, handlers, lost, paused, self._gather)

    def __repr__(self) -> str:
        return f"<Forwarding {len(self.calls)} calls, {self.region!r}>"

    def tell(self, **notice: object) -> None:
        """Says something to the engine."""
        self.link.send(*records.notice(**notice))

    # --- doors --------------------------------------------------------------------------------------------------------

    def infer(self, call: InferCall) -> None:
        """See `service.Infer`."""
        message = call.request
        assert message is not None
        call.request = None
        number = self._next
        self._next = number + 1
        size = len(message)
        offset = self._share(message) if size > SMALL else INLINE
        link = self.link
        link.wake()
        link.out.append(
            records.request(
                number,
                call.door == "grpc_stream",
                call.received,
                call.deadline,
                offset,
                size,
                call.traceparent,
                call.tracestate,
            )
        )
        if offset == INLINE:
            link.out.append(message)
        call.under_way = self.calls[number] = Forwarded(self, number, call)

    def _share(self, message: Buffer) -> int:
        """Where a large message lies in the region; one that lies elsewhere is copied there, if there is room."""
        offset = self.region.share(message)
        if offset < 0:
            buffer = self.region.buffer(len(message))
            offset = self.region.share(buffer)
            if offset < 0:
                return INLINE
            buffer[:] = message
        return offset

    def unary(self, path: str) -> Callable[[InferCall], None]:
        """What answers the calls of another method, as in `ServiceTable.later`."""
        name = path.encode("latin-1")

        def ask(call: InferCall) -> None:
            message, call.request = call.request, None
            assert message is not None
            call.under_way = self._ask(name, message, call)

        return ask

    def task(self, path: str) -> TaskHandler:
        """What answers those of a method that takes its time, as in `ServiceTable.tasks`."""
        name = path.encode("latin-1")

        async def ask(message: bytes) -> bytes:
            answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
            asked = self._ask(name, message, _Asked(answer))
            try:
                return await answer
            finally:
                asked.cancel()

        return ask

    def _ask(self, path: bytes, message: Buffer, call: InferCall | _Asked) -> Forwarded:
        number = self._next
        self._next = number + 1
        self.link.send(records.ask(number, path, message))
        forwarded = self.calls[number] = Forwarded(self, number, call)
        return forwarded

    # --- records in ---------------------------------------------------------------------------------------------------

    def _end(self, number: int) -> Forwarded:
        forwarded = self.calls.pop(number, None)
        if forwarded is None:
            raise Malformed(f"call {number} has ended")
        forwarded.finished = True
        return forwarded

    def _on_reply(self, flags: int, number: int, data: Data, start: int, stop: int) -> None:
        forwarded = self._end(number)
        call = forwarded.call
        if call is not None:
            if flags & records.FINAL:
                forwarded.template = _FINAL
            call.reply(bytes(data[start:stop]))

    def _on_error(self, flags: int, number: int, data: Data, start: int, stop: int) -> None:
        error = told(bytes(data[start:stop]))
        call = self._end(number).call
        if call is not None:
            call.fail(error)

    def _on_gone(self, flags: int, number: int, data: Data, start: int, stop: int) -> None:
        self._end(number)

    def _on_freed(self, flags: int, number: int, data: Data, start: int, stop: int) -> None:
        try:
            self.region.let_go(records.read_numbers(data, start, stop))
        except KeyError as error:
            raise Malformed("a slot was freed that is not in use") from error

    def _on_notice(self, flags: int, number: int, data: Data, start: int, stop: int) -> None:
        self._notice(records.read_notice(data, start, stop))

    # --- records out --------------------------------------------------------------------------------------------------

    def _gather(self) -> None:
        load = self._load()
        if load is not None:
            self.link.out.append(records.numbers(Kind.LOAD, load))
