"""The engine's side of a worker: its calls, from records to the door of inference and back."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from headrace.errors import Unimplemented
from headrace.transport.workers import records
from headrace.transport.workers.link import Link
from headrace.transport.workers.records import INLINE, Kind, Malformed, head
from headrace.transport.workers.told import tell

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.engine.turn import Turn
    from headrace.messages import Buffer, Cancellable
    from headrace.transport.service import Infer, ServiceTable
    from headrace.transport.workers.region import Borrowed

    Data = bytes | memoryview

_LOOK_SECONDS = 0.02
"""Between looks at whether a cancelled call is still at work; each write of records looks as well."""
_DOORS = ("grpc", "grpc_stream")


class RemoteCall:
    """A call of a worker's: the `service.InferCall` of a request, and the sink of any."""

    __slots__ = ("_desk", "_id", "deadline", "door", "received", "request", "traceparent", "tracestate", "under_way")

    def __init__(self, desk: Desk, call: int, request: Buffer | None, received: int, deadline: int, door: str) -> None:
        self._desk = desk
        self._id = call
        self.request = request
        self.received = received
        self.deadline = deadline
        self.door = door
        self.traceparent = self.tracestate = b""
        self.under_way: Cancellable | None = None

    def __repr__(self) -> str:
        return f"<RemoteCall {self._id} {'under way' if self.under_way else 'arriving'}>"

    def reply(self, message: bytes) -> None:
        """See `messages.ReplySink`."""
        desk = self._desk
        if desk.calls.pop(self._id, None) is not None:
            under_way = self.under_way
            final = under_way is not None and under_way.template.final
            self.under_way = None
            desk.link.send(records.reply(self._id, len(message), final), message)

    def fail(self, error: BaseException) -> None:
        """See `messages.ReplySink`."""
        desk = self._desk
        if desk.calls.pop(self._id, None) is not None:
            self.under_way = None
            octets = tell(error)
            desk.link.send(head(Kind.ERROR, self._id, len(octets)), octets)


class _Task:
    """A call that takes its time, as what is under way."""

    template: Any = None

    def __init__(self, task: asyncio.Task[None]) -> None:
        self._task = task

    @property
    def finished(self) -> bool:
        return self._task.done()

    def cancel(self) -> None:
        self._task.cancel()


class Desk:
    """Takes the calls of one worker.

    table: what answers them. infer: takes requests for models that have arrived. region: where large ones lie.
    notice, lost: hear what the worker says of itself, and that it is gone, with what was wrong, if anything; a load is
    how many sockets it has taken, and how many of them are open.
    """

    def __init__(
        self,
        turn: Turn,
        table: ServiceTable,
        infer: Infer,
        region: Borrowed,
        *,
        notice: Callable[[dict[str, Any]], None],
        load: Callable[[int, int], None],
        lost: Callable[[Exception | None], None],
    ) -> None:
        self.calls: dict[int, RemoteCall] = {}
        self._table = table
        self._infer = infer
        self._region = region
        self._notice = notice
        self._load = load
        self._told_lost = lost
        self._lingering: list[tuple[int, Cancellable]] = []
        self._looking: asyncio.TimerHandle | None = None
        handlers = {
            int(Kind.REQUEST): self._on_request,
            int(Kind.ASK): self._on_ask,
            int(Kind.CANCEL): self._on_cancel,
            int(Kind.LOAD): self._on_load,
            int(Kind.NOTICE): self._on_notice,
        }
        self.link = Link(turn, handlers, self._lost, gather=self._gather)

    def __repr__(self) -> str:
        return f"<Desk {len(self.calls)} calls, {len(self._lingering)} lingering>"

    def tell(self, **notice: object) -> None:
        """Says something to the worker."""
        self.link.send(*records.notice(**notice))

    # --- records in ---------------------------------------------------------------------------------------------------

    def _on_request(self, flags: int, call: int, data: Data, start: int, stop: int) -> None:
        received, deadline, offset, size, parent, state, message = records.read_request(data, start, stop)
        if offset != INLINE:
            try:
                message = self._region.view(offset, size)
            except (ValueError, TypeError, OverflowError) as error:
                raise Malformed("a REQUEST outside the region") from error
        arrived = RemoteCall(self, call, message, received, deadline, _DOORS[flags & records.STREAMED])
        if parent:
            arrived.traceparent, arrived.tracestate = parent, state
        self.calls[call] = arrived
        self._infer(arrived)

    def _on_ask(self, flags: int, call: int, data: Data, start: int, stop: int) -> None:
        path, message = records.read_ask(data, start, stop)
        arrived = self.calls[call] = RemoteCall(self, call, None, 0, 0, "")
        unary = self._table.unary.get(path)
        task = self._table.tasks.get(path)
        if unary is not None:
            try:
                reply = unary(message)
            except Exception as error:
                arrived.fail(error)
            else:
                arrived.reply(reply)
        elif task is not None:
            arrived.under_way = _Task(asyncio.ensure_future(self._run(arrived, task, message)))
        else:
            arrived.fail(Unimplemented(f"unknown method {path}"))

    async def _run(self, call: RemoteCall, handler: Callable[[bytes], Any], message: bytes) -> None:
        try:
            reply = await handler(message)
        except Exception as error:
            call.fail(error)
        else:
            call.under_way = None
            call.reply(reply)

    def _on_cancel(self, flags: int, call: int, data: Data, start: int, stop: int) -> None:
        cancelled = self.calls.pop(call, None)
        if cancelled is None:
            return  # its answer is on the way
        under_way = self._cancel(cancelled)
        if under_way is None:
            self.link.send(head(Kind.GONE, call, 0))
        else:
            self._lingering.append((call, under_way))
            self._look_later()

    def _cancel(self, call: RemoteCall) -> Cancellable | None:
        """Gives a call up; returns what is still at work for it."""
        call.request = None
        under_way, call.under_way = call.under_way, None
        if under_way is not None:
            under_way.cancel()
            if not under_way.finished:
                return under_way
        return None

    def _on_load(self, flags: int, call: int, data: Data, start: int, stop: int) -> None:
        taken, left = records.read_numbers(data, start, stop)
        self._load(taken, left)

    def _on_notice(self, flags: int, call: int, data: Data, start: int, stop: int) -> None:
        self._notice(records.read_notice(data, start, stop))

    # --- records out --------------------------------------------------------------------------------------------------

    def _gather(self) -> None:
        """Adds what has become known without a record of its own; called before each write."""
        if self._lingering:
            over = [call for call, work in self._lingering if work.finished]
            if over:
                self._lingering = [(call, work) for call, work in self._lingering if not work.finished]
                self.link.out += (head(Kind.GONE, call, 0) for call in over)
        if self._region.freed:
            self.link.out.append(records.numbers(Kind.FREED, self._region.take_freed()))

    def tick(self) -> None:
        """Now and then: what nothing else has told the worker is told."""
        if self._region.freed:
            self.link.wake()

    def _look_later(self) -> None:
        if self._looking is None:
            self._looking = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._look)

    def _look(self) -> None:
        self._looking = None
        if self._lingering:
            self.link.wake()
            self._look_later()

    def _lost(self, error: Exception | None) -> None:
        """The worker is gone: nobody waits for its calls any more."""
        if self._looking is not None:
            self._looking.cancel()
        calls, self.calls = self.calls, {}
        for call in calls.values():
            self._cancel(call)
        self._lingering.clear()
        self._region.close()
        self._told_lost(error)
