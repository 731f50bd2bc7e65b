"""A stateful model: the requests of a sequence run one after another, each with the state that the last has left."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from headrace.engine.failures import could_not_run
from headrace.engine.inner import inner_template
from headrace.engine.sequence_plan import Kept, id_bytes
from headrace.engine.waiting import Quiet, Wakeup
from headrace.errors import Cancelled, HeadraceError, InvalidRequest, ShuttingDown, StateLost, reason_of
from headrace.messages import InferRequest, State
from headrace.pipeline.admission import QueueLimits, set_deadlines
from headrace.pipeline.sequences import Sequences
from headrace.telemetry.logs import of_model

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from headrace.clock import Clock
    from headrace.engine.scheduler import Scheduler
    from headrace.engine.sequence_plan import SequencePlan
    from headrace.engine.turn import Turn
    from headrace.messages import Cancellable, SequenceFlags, Template
    from headrace.pipeline import sequences
    from headrace.pipeline.decode import RequestTemplate
    from headrace.pipeline.sequences import Dropped
    from headrace.pipeline.split import Piece
    from headrace.rpc import model_config_pb2 as mc
    from headrace.telemetry.observer import ModelObserver
    from headrace.telemetry.statistics import Statistics

    Shape = tuple[int, ...]

logger = logging.getLogger(__name__)

_MAX_TEMPLATES = 256
_NOBODY = "nobody waits for this reply"


class SequenceScheduler:
    """Runs the requests of one stateful model version, as requests of its own to the model's scheduler.

    What clients see is the model without its states and controls. model: what batches and runs; it is owned, and counts
    what ends in it. turn: at whose end the next requests of sequences are queued.
    """

    def __init__(self, model: Scheduler, plan: SequencePlan, clock: Clock, turn: Turn) -> None:
        self.name = model.name
        self.version = model.version
        self.platform = model.platform
        self.level = model.level
        self.config = model.config
        self.condition = model.condition
        self.signature = plan.signature
        self.plan = plan
        self.view = replace(model.view, signature=plan.signature, owner=self, split_oversize=True)
        self.stated: mc.ModelConfig | None = None
        self.statistics: Callable[[], Statistics]
        self.draining = False
        queue = model.config.queue
        limits = QueueLimits(queue.max_requests, queue.max_rows, queue.max_bytes)
        self.sequences = Sequences(self.name, plan.limits, limits)
        self._model = model
        model.reruns = bool(plan.states)  # else the model keeps the state itself, whatever a run has made of it
        self._templates: dict[tuple[object, ...], RequestTemplate] = {}
        self._clock = clock
        self._turn = turn
        self._advance_due = False
        self._wakeup = Wakeup(asyncio.get_running_loop(), clock, self._advance)
        self._quiet = Quiet(self._is_over)
        self._closed = False

    def __repr__(self) -> str:
        state = "draining" if self.draining else "serving"
        return f"<SequenceScheduler {self.name}/{self.version} {state}, {self.sequences!r}, {self._model!r}>"

    @property
    def observer(self) -> ModelObserver:
        """The model's: each request is counted once, where it ends."""
        return self._model.observer

    @observer.setter
    def observer(self, observer: ModelObserver) -> None:
        self._model.observer = observer

    def depth(self) -> tuple[int, int]:
        """(requests, rows) that wait, for their turn in the sequence or for an instance."""
        requests = self.sequences.requests + self._model.depth()[0]
        return requests, requests

    def wait_ns(self) -> int:
        """See `served.Served`; what waits for its turn in a sequence is not counted."""
        return self._model.wait_ns()

    def counts(self) -> tuple[int, int]:
        """(active sequences, sequences that wait to become active)."""
        return self.sequences.active, self.sequences.backlog

    # --- events -------------------------------------------------------------------------------------------------------

    def submit(self, requests: Sequence[InferRequest]) -> None:
        """Takes decoded requests of one template: admits each to its sequence, or says why not."""
        now = self._clock()
        set_deadlines(requests, now, self._model.slo_ns)
        queue, step_ns = self._model.queue, self._model.cost.mean(1)
        for request in requests:
            request.admitted = now
            refusal = self._refusal(request.template.sequence) or self.sequences.admit(
                request, now, (queue.requests, queue.nbytes), step_ns, draining=self.draining
            )
            if refusal is None:
                request.sink.under_way = request
            else:
                self._refuse_all([(request, refusal)])
        self._advance_soon()

    def cancel(self, request: InferRequest) -> None:
        """The request's caller has gone away: its reply is dropped.

        It runs all the same, for the next of its sequence; unless that has not begun, and nobody waits for any of it.
        """
        if request.state in (State.WAITING, State.RUNNING):
            for given_up in self.sequences.cancel(request):
                self._abandon(given_up)
            self._quiet.check()

    def _refusal(self, flags: SequenceFlags | None) -> HeadraceError | None:
        """Why the model cannot take the id of the sequence."""
        if self.plan.id_input is not None and flags is not None:
            try:
                id_bytes(flags.id, self.plan.id_input)
            except InvalidRequest as error:
                return error
        return None

    def _advance_soon(self) -> None:
        """Has the next requests run at the end of this turn, or looks again when it may be time."""
        if self._closed:
            return
        if not self.sequences.pending and not self.draining:
            self._wakeup.at(self.sequences.wake_at)
        elif not self._advance_due:
            self._advance_due = True
            self._turn.queue(self._advance)

    def _advance(self) -> None:
        """Runs the requests whose turn it is, and answers those whose time is over."""
        self._advance_due = False
        if self._closed:
            return
        decision = self.sequences.decide(self._clock(), draining=self.draining)
        batches: dict[Template, list[InferRequest]] = {}
        for sequence, request in decision.take:
            if request.state is State.WAITING:
                request.state = State.RUNNING
            step = _Step(self, sequence, request)
            try:
                inner = self._inner_request(step)
            except Exception as error:
                decision.drop.append((request, self._unfit(error)))
                step.give_up()
            else:
                batches.setdefault(inner.template, []).append(inner)
        if decision.expired:
            self.observer.sequences_expired(decision.expired)
        self._refuse_all(decision.drop)  # first: what the model answers at once may cancel them
        for inners in batches.values():
            self._model.submit(inners)
            for inner in inners:
                if inner.state is not State.DONE:  # the moments of the client's request are those that count
                    step = inner.sink  # type: ignore[assignment]
                    inner.decoded, inner.admitted = step.request.decoded, step.request.admitted
        self._wakeup.at(decision.wake_at)
        self._quiet.check()

    # --- one request of the model -------------------------------------------------------------------------------------

    def _inner_request(self, step: _Step) -> InferRequest:
        """The model's request for a client's: with states and controls. Raises InvalidRequest if they do not fit."""
        request = step.request
        kept = step.sequence.state or self.plan.initial
        template = self._template(request, kept)
        flags = request.template.sequence
        assert flags is not None
        pool = (*request.parts, *kept.data, *self.plan.controls(flags))
        parts = [pool[at] for at in self.plan.order]
        return InferRequest(
            template, parts, request.nbytes, step, b"", request.received, rpc_deadline=request.rpc_deadline
        )

    def _template(self, request: InferRequest, kept: Kept) -> RequestTemplate:
        outer = request.template
        look = (outer.key, outer.priority, outer.timeout_ns, outer.timing, kept.shapes)
        template = self._templates.get(look)
        if template is None:
            plan, model = self.plan, self._model.signature
            batch = (1,) if model.max_batch else ()
            extra = [(*batch, *(1 for _ in spec.shape)) for spec in plan.extra]
            shapes = (*((*batch, *dims) for dims in outer.shapes), *kept.shapes, *extra)
            inputs = [(spec.name, spec.datatype, shapes[at]) for spec, at in zip(model.inputs, plan.order, strict=True)]
            wanted = [plan.signature.outputs[index].name for index in outer.outputs]
            wanted += [after.name for _, after in plan.states]
            template = inner_template(self._model, inputs, wanted, outer)
            if len(self._templates) >= _MAX_TEMPLATES:
                self._templates.clear()
            self._templates[look] = template
        return template

    def _unfit(self, error: Exception) -> HeadraceError:
        """What a client sends has been checked; a state that the model itself has given may not fit."""
        failure, ids = could_not_run(self.name, error)
        logger.error(
            "version %s of %s: it does not take the states that it gave: %s",
            self.version,
            failure,
            error,
            extra={**of_model(self.name, self.version), **ids},
        )
        return failure

    # --- from a step --------------------------------------------------------------------------------------------------

    def stepped(self, step: _Step, message: Piece) -> None:
        """A request has run: keeps the states, and answers it. Raises what it could not be answered for."""
        raw, shapes, parameters = message
        request = step.request
        template = request.template
        count = len(template.outputs)
        data = tuple([one if type(one) is bytes else bytes(one) for one in raw[count:]])  # no view of a whole batch
        kept = Kept(shapes[count:], data, sum(map(len, data)))
        error = self.sequences.done(step.sequence, kept, kept.nbytes, self._clock())
        step.over = True
        gone = request.state is State.ABANDONED
        self._end(request)
        self._advance_soon()
        if gone:
            raise Cancelled(_NOBODY)
        if error is not None:
            raise error
        request.sink.reply(template.reply.encode(request.id_field, raw[:count], shapes[:count], parameters))

    def failed(self, step: _Step, error: BaseException) -> None:
        """A request has not run to its end, or could not be answered. The model's scheduler has counted it."""
        gone = isinstance(error, Cancelled) or step.request.state is State.ABANDONED
        if not step.over:
            step.give_up(ends=isinstance(error, StateLost))
            self._end(step.request)
        if not gone:
            step.request.sink.fail(error)

    def gave_up(self, step: _Step, *, ends: bool) -> None:
        """A step has ended without a new state. ends: and the sequence with it."""
        self.sequences.failed(step.sequence, self._clock(), over=ends)
        self._advance_soon()

    # --- ends ---------------------------------------------------------------------------------------------------------

    def _refuse_all(self, dropped: Sequence[Dropped]) -> None:
        """Ends requests that are in no sequence any more. The answer to one may cancel others, which get none then."""
        for request, _ in dropped:
            if request.state is State.WAITING:
                request.state = State.RUNNING
        for request, error in dropped:
            if request.state is State.ABANDONED:
                self._abandon(request)
            else:
                self._end(request)
                self.observer.refused(reason_of(error), request=request)
                request.sink.fail(error)

    def _abandon(self, request: InferRequest) -> None:
        self._end(request)
        self.observer.refused(Cancelled.reason, request=request)

    def _end(self, request: InferRequest) -> None:
        request.state = State.DONE
        request.parts = ()

    async def drain(self, seconds: float) -> bool:
        """Takes no more; returns True once all that was accepted is answered, False when `seconds` have passed."""
        self.draining = True
        self._advance()
        try:
            async with asyncio.timeout(seconds):
                return await self._quiet.wait(seconds) and await self._model.drain(seconds)
        except TimeoutError:
            return False

    def close(self) -> None:
        """Fails what is left and frees the model."""
        if self._closed:
            return
        self._closed = self.draining = True
        self._wakeup.cancel()
        self._model.close()
        error = ShuttingDown("Server is shutting down and could not finish this request in time")
        self._refuse_all([(request, error) for request in self.sequences.close()])
        self._quiet.check()

    def _is_over(self) -> bool:
        return not len(self.sequences)


class _Step:
    """A client's request while the model works on it: the `messages.ReplySink` of the model's request.

    over: its sequence has gone on.
    """

    __slots__ = ("_scheduler", "over", "request", "sequence", "under_way")

    def __init__(self, scheduler: SequenceScheduler, sequence: sequences.Sequence, request: InferRequest) -> None:
        self.under_way: Cancellable | None = None
        self.sequence = sequence
        self.request = request
        self.over = False
        self._scheduler = scheduler

    @property
    def door(self) -> str:
        """That of the client's request, of which this is the part that runs."""
        return self.request.sink.door

    @property
    def traceparent(self) -> bytes:
        """The same."""
        return self.request.sink.traceparent

    @property
    def tracestate(self) -> bytes:
        """The same."""
        return self.request.sink.tracestate

    def reply(self, message: Piece) -> None:
        """See `messages.ReplySink`; the message is what `split.PIECES` makes."""
        self._scheduler.stepped(self, message)

    def fail(self, error: BaseException) -> None:
        """See `messages.ReplySink`."""
        self._scheduler.failed(self, error)

    def give_up(self, *, ends: bool = False) -> None:
        """Nothing comes of it. ends: the sequence is over."""
        self.over = True
        self._scheduler.gave_up(self, ends=ends)
