"""The shell around one model version: it feeds the pipeline with events and carries out what the pipeline decides."""

from __future__ import annotations

import asyncio
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

from headrace.backends.base import InstanceLost
from headrace.engine.failures import FailureLog
from headrace.engine.instances import Instances, NoSupply
from headrace.engine.policies import batch_limits, make_buckets, model_view, queue_limits
from headrace.engine.processed import ragged_inputs
from headrace.engine.replies import (
    no_instance,
    output_shapes,
    record_of,
    state_lost,
    timing,
    whole_requests,
)
from headrace.engine.waiting import Quiet, Wakeup
from headrace.engine.worker import Job, Worker
from headrace.errors import Cancelled, DeadlineUnreachable, QueueFull, ShuttingDown, reason_of
from headrace.messages import Batch, State
from headrace.pipeline.admission import admit, admit_all, expired, given_up, set_deadlines
from headrace.pipeline.alone import Alone
from headrace.pipeline.batching import decide
from headrace.pipeline.buckets import elements_of, members_of
from headrace.pipeline.queue import RequestQueue
from headrace.pipeline.split import Split

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from headrace.backends.base import Instance, LoadedModel
    from headrace.clock import Clock
    from headrace.engine.instances import Supply
    from headrace.engine.turn import Turn
    from headrace.engine.watching import Watcher
    from headrace.errors import HeadraceError
    from headrace.messages import InferRequest, Template
    from headrace.pipeline.cost import CostModel
    from headrace.pipeline.rules import Rules
    from headrace.repository.model_config import ModelConfig
    from headrace.rpc import model_config_pb2 as mc
    from headrace.telemetry.observer import BatchRecord, ModelObserver
    from headrace.telemetry.statistics import Statistics

_MAX_LOSSES = 3
"""Instances that a request may lose: so often it is run, at most."""
_LARGE_BYTES = 256 << 10
"""Input bytes that push one another out of the processor's cache while they wait."""


class Scheduler:
    """Runs the requests of one model version on its instances. Everything happens on the event loop.

    model, instances: what the backend has opened. cost: as the warm-up has left it. turn: when batches are formed.
    worker: what runs an instance; tests have one without a thread. supply: makes instances in the place of lost ones.
    reruns: whether a request can be run again if its instance is lost. slo_ns: deadline of those that bring none.
    rules: for inputs; None: those of `config`.
    """

    level = 0
    plan = None

    def __init__(
        self,
        name: str,
        version: str,
        model: LoadedModel,
        config: ModelConfig,
        instances: Sequence[Instance],
        cost: CostModel,
        clock: Clock,
        turn: Turn,
        worker: type[Worker] = Worker,
        supply: Supply | None = None,
        rules: Mapping[str, Rules] | None = None,
    ) -> None:
        self.name = name
        self.version = version
        self.platform = model.platform
        self._takes = model.signature
        self._buckets = make_buckets(config, model.signature, ragged_inputs(model))
        self.signature = model.signature if self._buckets is None else self._buckets.offered
        self.config = config
        self.cost = cost
        self.observer: ModelObserver
        self.statistics: Callable[[], Statistics]
        self.watchers: Sequence[Watcher] = ()
        self.stated: mc.ModelConfig | None = None  # what its config.pbtxt says, for clients that ask
        self.view = model_view(name, version, self._takes, config, self, rules, self._buckets)
        self.queue = RequestQueue()
        self.draining = False
        self.reruns = True
        self._wary = False  # whether each request is looked at: others run alone, no instance is left, or it drains
        self._clock = clock
        self._turn = turn
        self._loop = asyncio.get_running_loop()
        batched = self.signature.max_batch > 0
        self.instances = Instances(
            name,
            version,
            instances,
            supply or NoSupply(config.chain[0]),
            cost,
            clock,
            lambda index, instance: worker(index, instance, self._loop, clock, self._on_done, batched=batched),
            self._on_instances,
            lambda: self.observer,
        )
        self.condition = self.instances
        self._idle, self._running = self.instances.idle, self.instances.running
        self._alone = Alone()
        self._failures = FailureLog(name, version, clock)
        self._max_rows = max(self.signature.max_batch, 1)
        self._limits = batch_limits(config, self._max_rows)
        self._queue_limits = queue_limits(config)
        self._least_batch = 1 if self._limits.policy == "single" else self._max_rows  # rows, while more wait
        self.slo_ns = int(config.slo_ms * 1e6)
        self._splits = False  # whether there ever was one: only then are batches searched for pieces
        self._dispatch_due = False
        self._wakeup = Wakeup(self._loop, clock, self._dispatch_soon)
        self._quiet = Quiet(self._is_over)
        self._closed = False

    def __repr__(self) -> str:
        state = "draining" if self.draining else "serving"
        return f"<Scheduler {self.name}/{self.version} {state}, {len(self._running)} running, {self.queue!r}>"

    def depth(self) -> tuple[int, int]:
        """(requests, rows) that wait."""
        return self.queue.requests + len(self._alone), self.queue.rows + self._alone.rows

    def wait_ns(self) -> int:
        """See `served.Served`."""
        return self.instances.wait_ns(self.queue, self._limits, self._alone.run_ns(self.cost))

    # --- events -------------------------------------------------------------------------------------------------------

    def submit(self, requests: Sequence[InferRequest]) -> None:
        """Takes decoded requests of one template: admits each, or answers it with the reason why not."""
        now = self._clock()
        soonest = set_deadlines(requests, now, self.slo_ns)
        template = requests[0].template
        rows = template.rows * len(requests)
        nbytes = sum([request.nbytes for request in requests])
        if template.rows <= self._max_rows and admit_all(
            len(requests),
            rows,
            nbytes,
            soonest,
            now,
            self.queue,
            self._queue_limits,
            self.cost,
            max_rows=self._least_batch,
            wary=self._wary,
        ):
            admitted = self._clock()
            for request in requests:
                request.admitted = admitted
                request.sink.under_way = request
            self.queue.extend(requests, rows, nbytes, soonest)
        else:
            for request in requests:
                self._admit(request, now)
        if not self._idle:
            if soonest and not self._dispatch_due:
                self._wakeup.at(self.queue.next_expiry)
        elif (
            self.queue.nbytes >= _LARGE_BYTES
            and self.queue.rows >= self.cost.enough_rows
            and self._limits.policy == "slot"
        ):
            # as good a batch as there will be, and large: run it while its bytes are in the processor's cache
            self._dispatch()
        else:
            self._dispatch_soon()

    def _admit(self, request: InferRequest, now: int) -> None:
        """Has one request enter the queue, or answers it."""
        rows = request.template.rows
        refusal = self._refusal(request, now)
        if isinstance(refusal, QueueFull) and self._idle:  # of what arrived with it, and need not wait
            self._dispatch()
            refusal = self._refusal(request, now)
        if refusal is not None:
            if not self._running and not self.queue.requests and isinstance(refusal, DeadlineUnreachable):
                self.cost.of(request.template.fit).doubt(rows)
            self._refuse(request, refusal)
            return
        request.admitted = self._clock()
        if rows > self._max_rows:
            self._splits = True
            split = Split(request, self._takes, self._max_rows, partial(self._count, request))
            request.sink.under_way = split
            for piece in split.pieces:
                piece.admitted = request.admitted
                self.queue.push(piece)
        else:
            request.sink.under_way = request
            self.queue.push(request)

    def _refusal(self, request: InferRequest, now: int) -> HeadraceError | None:
        """Why a request may not enter the queue; None if it may."""
        if self.instances.hopeless and not self.draining:
            return no_instance(self.name, self.version)
        return admit(
            request,
            now,
            self.queue,
            self._queue_limits,
            self.cost,
            max_rows=max(self._least_batch, min(request.template.rows, self._max_rows)),
            instances=max(self.instances.usable, 1),
            running=self._running.values(),
            alone_ns=self._alone.run_ns(self.cost),
            draining=self.draining,
        )

    def cancel(self, request: InferRequest) -> None:
        """The request's caller has gone away: it will not run, or its result is dropped."""
        if request.state is State.WAITING:
            if not self.queue.remove(request):
                self._alone.remove(request)
                self._be_wary()
            self._abandon(request)
            self._quiet.check()
        elif request.state is State.RUNNING:
            request.state = State.ABANDONED

    def _dispatch_soon(self) -> None:
        if not self._dispatch_due:
            self._dispatch_due = True
            self._turn.run(self._dispatch)

    def _dispatch(self) -> None:
        """Drops what has expired, or all if no instance is there nor will be soon; gives each idle one a batch."""
        self._dispatch_due = False
        now = self._clock()
        if self._wary and self.instances.hopeless:
            self._refuse_all(self._pop_waiting(), lambda _: no_instance(self.name, self.version))
        if self._alone:
            self._dispatch_alone(now)
        decision = decide(
            self.queue,
            now,
            self._limits,
            len(self._idle),
            self.cost,
            instances=max(self.instances.usable, 1),
            draining=self.draining,
        )
        for request in chain(decision.give_up, *[batch.requests for batch in decision.take]):
            request.state = State.RUNNING  # before anybody is answered: an answer may cancel others
        if decision.drop:
            self._refuse_all(decision.drop, lambda request: expired(request, now))
        if decision.give_up:
            self._refuse_all(decision.give_up, lambda request: given_up(request, now, self.cost))
        for batch in decision.take:
            if self._idle:
                self._run(self._idle.pop(), batch)
            else:  # a batch before it has lost what it was to run on
                self._put_back(batch)
        self._wakeup.at(decision.wake_at)
        self._quiet.check()

    def _dispatch_alone(self, now: int) -> None:
        """The same for those that are run again, one by one."""
        over = self._alone.pop_expired(now)
        if over:
            self._refuse_all(over, lambda request: expired(request, now))
        while self._alone and self._idle:
            self._run(self._idle.pop(), self._alone.pop(now))
        self._be_wary()
        self._wakeup.at(self._alone.next_expiry)

    def _put_back(self, batch: Batch) -> None:
        for request in batch.requests:
            if request.state is State.ABANDONED:
                self._abandon(request)
            else:
                request.state = State.WAITING
                self.queue.push(request)

    # --- execution ----------------------------------------------------------------------------------------------------

    def _run(self, worker: Worker, batch: Batch) -> None:
        requests = batch.requests
        template = requests[0].template
        if self.signature.max_batch:
            shapes = [(batch.rows, *dims) for dims in template.shapes]
        else:
            shapes = list(template.shapes)
        inputs = [[request.parts[index] for request in requests] for index in range(len(shapes))]
        specs = [self.signature.outputs[index] for index in template.outputs]
        job = Job(batch, inputs, shapes, template.outputs, specs)
        if self._buckets is not None:
            job.pack = partial(self._buckets.pack, members_of(batch))
        self._running[worker] = batch
        if self.cost.of(template.fit).inline(batch.rows):
            worker.run(job)
            self._on_done(worker, job)
        else:
            worker.start(job)

    def _on_done(self, worker: Worker, job: Job) -> None:
        """A batch has run. The instance gets its next batch before the replies of this one are written."""
        del self._running[worker]
        if self._closed:  # everybody has been answered
            self._quiet.check()
            return
        error = job.error
        if error is None and not worker.leaving:
            self._idle.append(worker)
        else:
            self.instances.ended(worker, error)
        batch = job.batch
        if self.queue.requests or self._alone:
            self._dispatch_soon()
        if error is not None:
            self._fail(worker, job, error)
        else:
            worker.cost.observe(batch.rows, batch.finished - batch.started, batch.fit)
            if self._buckets is not None:
                self.observer.padded(*elements_of(members_of(batch)))
            self._reply(worker, job)
        self._quiet.check()

    def _reply(self, worker: Worker, job: Job) -> None:
        batch = job.batch
        outputs = job.outputs
        cuts = [output.cut for output in outputs]
        lost: set[InferRequest] = set()
        record: BatchRecord | None = None  # of all that are lost: it is as long as the batch
        template: Template | None = None
        rows = start = wasted = 0
        shapes: tuple[tuple[int, ...], ...] = ()
        opening: bytes | None = None
        for request in batch.requests:
            if request.template is not template:
                template = request.template
                rows = template.rows
                shapes = output_shapes(rows, outputs, batched=self.signature.max_batch > 0)
                opening = None if template.timing else template.reply.opening(shapes)
            stop = start + rows
            if request.state is State.ABANDONED:
                wasted += rows
                lost.add(request)
                record = record or record_of(batch.requests, batch, worker.index, self._clock(), worker.cost)
                self._abandon(request, record)
            else:
                request.state = State.DONE
                request.parts = ()
                try:
                    if opening is not None and not request.id_field:
                        request.sink.reply(opening + cuts[0](start, stop))
                    else:
                        parameters = timing(request, batch, self._clock, self.observer) if template.timing else b""
                        raw = [cut(start, stop) for cut in cuts]
                        request.sink.reply(template.reply.encode(request.id_field, raw, shapes, parameters))
                except Exception as error:  # whatever is wrong with this one, the others get their replies
                    lost.add(request)
                    wasted += rows if isinstance(error, Cancelled) else 0
                    record = record or record_of(batch.requests, batch, worker.index, self._clock(), worker.cost)
                    self._refuse(request, error, record)
            start = stop
        if wasted:
            self.observer.wasted(wasted, (batch.finished - batch.started) * wasted // batch.rows)
        answered = [request for request in batch.requests if request not in lost] if lost else batch.requests
        if answered:
            whole = whole_requests(answered) if self._splits else answered
            now = self._clock()
            self.observer.batch(record_of(whole, batch, worker.index, now, worker.cost))
            for watcher in self.watchers:
                watcher.batch(batch, job.inputs, job.indices, outputs)

    def _fail(self, worker: Worker, job: Job, error: Exception) -> None:
        """A batch failed. Its members are run one by one, so that only the one at fault is answered with it.

        So they are if its instance was lost. One that loses another, alone, and yet another is taken to be at fault: it
        shall not take them all, one after the other.
        """
        requests = job.batch.requests
        losses = job.batch.losses + 1
        lost = isinstance(error, InstanceLost)
        record = record_of(requests, job.batch, worker.index, 0, worker.cost)
        if lost and not self.reruns:
            self._refuse_all(requests, lambda _: state_lost(self.name), record)
        elif len(requests) > 1 or (lost and losses < _MAX_LOSSES):
            self._run_again(requests, error, losses if lost else 0)
        else:
            failure = self._failures.request(error, self.observer.trace_id(requests[0]))
            self._refuse_all(requests, lambda _: failure, record)
        if lost:
            self._on_instances()

    def _run_again(self, requests: Sequence[InferRequest], error: Exception, losses: int) -> None:
        """Queues the members of a batch before all others, but for those whose callers have gone away.

        losses: how many instances they have lost, with the one that was lost just now, if one was.
        """
        again = []
        for request in requests:
            if request.state is State.ABANDONED:
                self._abandon(request)
            else:
                request.state = State.WAITING
                again.append(request)
        if losses:
            self._alone.put_first(again, losses)
            self.observer.rerun(len(again))
        else:
            self._alone.append(again)
        self._be_wary()
        self._failures.batch(error, len(requests))
        self._dispatch_soon()

    def _on_instances(self) -> None:
        """There are other instances than before."""
        self.cost = self.instances.cost
        self._be_wary()
        if not self._closed:
            self._dispatch_soon()

    def _be_wary(self) -> None:
        self._wary = self.draining or self.instances.hopeless or len(self._alone) > 0

    def _pop_waiting(self) -> list[InferRequest]:
        """Takes out all that wait."""
        waiting = [*self._alone, *self.queue]
        self._alone.clear()
        self.queue = RequestQueue()
        return waiting

    def _refuse(self, request: InferRequest, error: Exception, record: BatchRecord | None = None) -> None:
        """Ends a request with an error. record: of its batch, if that was run."""
        self._end(request)
        self._count(request, reason_of(error), record)
        request.sink.fail(error)

    def _refuse_all(
        self,
        requests: Sequence[InferRequest],
        error: Callable[[InferRequest], HeadraceError],
        record: BatchRecord | None = None,
    ) -> None:
        """Ends requests that are out of the queue. The answer to one may cancel others, which are then not answered."""
        for request in requests:
            if request.state is State.WAITING:
                request.state = State.RUNNING
        for request in requests:
            if request.state is State.ABANDONED:
                self._abandon(request, record)
            else:
                self._refuse(request, error(request), record)

    def _abandon(self, request: InferRequest, record: BatchRecord | None = None) -> None:
        """Ends a request whose caller has gone away."""
        self._end(request)
        self._count(request, Cancelled.reason, record)

    def _count(self, request: InferRequest, reason: str, record: BatchRecord | None = None) -> None:
        """Counts a request that ended without success; `Split` does so for the request that a piece belongs to."""
        if request.template.whole is None:
            self.observer.refused(reason, request=request, record=record)

    def _end(self, request: InferRequest) -> None:
        request.state = State.DONE
        request.parts = ()

    # --- the end ------------------------------------------------------------------------------------------------------

    async def drain(self, seconds: float) -> bool:
        """Takes no more; returns True once all that was accepted is answered, False when `seconds` have passed."""
        self.draining = self._wary = True
        self._dispatch_soon()
        return await self._quiet.wait(seconds)

    def close(self) -> None:
        """Fails what is left and frees the instances; one whose thread runs a batch, when that is done."""
        if self._closed:
            return
        self._closed = self.draining = self._wary = True
        self._wakeup.cancel()
        left = self._pop_waiting()
        for batch in self._running.values():
            left += batch.requests
        error = ShuttingDown("Server is shutting down and could not finish this request in time")
        self._refuse_all(left, lambda _: error)
        self.instances.close()

    def _is_over(self) -> bool:
        return not self._running and not self.queue.requests and not self._alone
