"""The shell around one model version: it feeds the pipeline with events and carries out what the pipeline decides."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

from headrace.engine.policies import batch_limits, make_buckets, model_view, queue_limits
from headrace.engine.processed import ragged_inputs
from headrace.engine.rules import input_rules
from headrace.engine.worker import Job, Worker
from headrace.errors import BackendFailed, Cancelled, DeadlineUnreachable, QueueFull, ShuttingDown, reason_of
from headrace.messages import Batch, State
from headrace.pipeline.admission import admit, admit_all, expired
from headrace.pipeline.batching import decide
from headrace.pipeline.buckets import elements_of, members_of
from headrace.pipeline.queue import RequestQueue, is_over, order_of
from headrace.pipeline.split import Split
from headrace.pipeline.timing import timing_parameters
from headrace.telemetry.observer import BatchRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from headrace.backends.base import Instance, LoadedModel
    from headrace.clock import Clock
    from headrace.engine.turn import Turn
    from headrace.engine.worker import OutputRows
    from headrace.errors import HeadraceError
    from headrace.messages import InferRequest, Template
    from headrace.pipeline.cost import CostModel
    from headrace.pipeline.rules import Rules
    from headrace.repository.model_config import ModelConfig
    from headrace.rpc import model_config_pb2 as mc
    from headrace.telemetry.observer import ModelObserver
    from headrace.telemetry.statistics import Statistics

logger = logging.getLogger(__name__)

_LARGE_BYTES = 256 << 10
"""Input bytes that push one another out of the processor's cache while they wait."""


class Scheduler:
    """Runs the requests of one model version on its instances. Everything happens on the event loop.

    model, instances: what the backend has opened. cost: as the warm-up has left it. turn: when batches are formed.
    worker: what runs an instance; tests have one without a thread. rules: for inputs; None: those of `config`.
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
        self.stated: mc.ModelConfig | None = None  # what its config.pbtxt says, for clients that ask
        rules = input_rules(config, self._takes) if rules is None else rules
        self.view = model_view(name, version, self._takes, config, self, rules, self._buckets)
        self.queue = RequestQueue()
        self.draining = False
        self._clock = clock
        self._turn = turn
        self._loop = asyncio.get_running_loop()
        batched = self.signature.max_batch > 0
        self._workers = [
            worker(index, instance, self._loop, clock, self._on_done, batched=batched)
            for index, instance in enumerate(instances)
        ]
        self._idle = list(self._workers)
        self._running: dict[Worker, Batch] = {}
        self._isolated: deque[InferRequest] = deque()
        self._max_rows = max(self.signature.max_batch, 1)
        self._limits = batch_limits(config, self._max_rows)
        self._queue_limits = queue_limits(config)
        self._least_batch = 1 if self._limits.policy == "single" else self._max_rows  # rows, while more wait
        self._slo_ns = int(config.slo_ms * 1e6)
        self._splits = False  # whether there ever was one: only then are batches searched for pieces
        self._dispatch_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0
        self._quiet: asyncio.Event | None = None
        self._closed = False

    def __repr__(self) -> str:
        state = "draining" if self.draining else "serving"
        return f"<Scheduler {self.name}/{self.version} {state}, {len(self._running)} running, {self.queue!r}>"

    def depth(self) -> tuple[int, int]:
        """(requests, rows) that wait."""
        return self.queue.requests, self.queue.rows

    # --- events -------------------------------------------------------------------------------------------------------

    def submit(self, requests: Sequence[InferRequest]) -> None:
        """Takes decoded requests of one template: admits each, or answers it with the reason why not."""
        now = self._clock()
        soonest = self.set_deadlines(requests, now)
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
            draining=self.draining,
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
                self._wake_at(self.queue.next_expiry)
        elif (
            self.queue.nbytes >= _LARGE_BYTES
            and self.queue.rows >= self.cost.enough_rows
            and self._limits.policy == "slot"
        ):
            # as good a batch as there will be, and large: run it while its bytes are in the processor's cache
            self._dispatch()
        else:
            self._dispatch_soon()

    def set_deadlines(self, requests: Sequence[InferRequest], now: int) -> int:
        """Sets when requests of one template expire and what orders them; returns the first such moment, 0 for none."""
        template = requests[0].template
        own_limit, slo, priority = template.timeout_ns, self._slo_ns, template.priority
        without_deadline = order_of(priority, 0, now)
        soonest = 0
        for request in requests:
            request.decoded = now
            expires = request.rpc_deadline
            if own_limit:
                limit = request.received + own_limit
                expires = min(expires, limit) if expires else limit
            elif slo and not expires:
                expires = request.received + slo
            if expires:
                request.expires = expires
                request.order = order_of(priority, expires, now)
                if not 0 < soonest <= expires:
                    soonest = expires
            else:
                request.order = without_deadline
        return soonest

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
            split = Split(request, self._takes, self._max_rows, self.observer.refused)
            request.sink.under_way = split
            for piece in split.pieces:
                piece.admitted = request.admitted
                self.queue.push(piece)
        else:
            request.sink.under_way = request
            self.queue.push(request)

    def _refusal(self, request: InferRequest, now: int) -> HeadraceError | None:
        """Why a request may not enter the queue; None if it may."""
        return admit(
            request,
            now,
            self.queue,
            self._queue_limits,
            self.cost,
            max_rows=max(self._least_batch, min(request.template.rows, self._max_rows)),
            instances=len(self._workers),
            running=self._running.values(),
            draining=self.draining,
        )

    def cancel(self, request: InferRequest) -> None:
        """The request's caller has gone away: it will not run, or its result is dropped."""
        if request.state is State.WAITING:
            if not self.queue.remove(request):
                self._isolated.remove(request)
            self._abandon(request)
            self._check_quiet()
        elif request.state is State.RUNNING:
            request.state = State.ABANDONED

    def _dispatch_soon(self) -> None:
        if not self._dispatch_due:
            self._dispatch_due = True
            self._turn.run(self._dispatch)

    def _dispatch(self) -> None:
        """Drops what has expired, and gives each idle instance a batch."""
        self._dispatch_due = False
        now = self._clock()
        while self._isolated and self._idle:
            request = self._isolated.popleft()
            if 0 < request.expires <= now and is_over(request, now):
                self._refuse(request, expired(request, now))
            else:
                request.state = State.RUNNING
                self._run(self._idle.pop(), Batch([request], request.template.rows, "isolated", batched=now))
        decision = decide(self.queue, now, self._limits, len(self._idle), self.cost, draining=self.draining)
        for batch in decision.take:
            for request in batch.requests:  # before anybody is answered: an answer may cancel others
                request.state = State.RUNNING
        if decision.drop:
            self._refuse_all(decision.drop, lambda request: expired(request, now))
        for batch in decision.take:
            self._run(self._idle.pop(), batch)
        self._wake_at(decision.wake_at)
        self._check_quiet()

    def _wake_at(self, moment: int) -> None:
        """Dispatches again at `moment` (monotonic ns; 0: no need), unless that is due earlier already."""
        if not moment or (self._timer is not None and self._timer_at <= moment):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = moment
        self._timer = self._loop.call_later(max(moment - self._clock(), 0) / 1e9, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._dispatch_soon()

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
            self._check_quiet()
            return
        self._idle.append(worker)
        batch = job.batch
        if self.queue.requests or self._isolated:
            self._dispatch_soon()
        if job.error is not None:
            self._fail(job, job.error)
        else:
            self.cost.observe(batch.rows, batch.finished - batch.started, batch.fit)
            if self._buckets is not None:
                self.observer.padded(*elements_of(members_of(batch)))
            self._reply(worker, job)
        self._check_quiet()

    def _reply(self, worker: Worker, job: Job) -> None:
        batch = job.batch
        outputs = job.outputs
        cuts = [output.cut for output in outputs]
        lost: list[InferRequest] = []
        template: Template | None = None
        rows = start = wasted = 0
        shapes: tuple[tuple[int, ...], ...] = ()
        opening: bytes | None = None
        for request in batch.requests:
            if request.template is not template:
                template = request.template
                rows = template.rows
                shapes = self._output_shapes(rows, outputs)
                opening = None if template.timing else template.reply.opening(shapes)
            stop = start + rows
            if request.state is State.ABANDONED:
                wasted += rows
                lost.append(request)
                self._abandon(request)
            else:
                request.state = State.DONE
                request.parts = ()
                try:
                    if opening is not None and not request.id_field:
                        request.sink.reply(opening + cuts[0](start, stop))
                    else:
                        parameters = timing_parameters(request, batch, self._clock()) if template.timing else b""
                        raw = [cut(start, stop) for cut in cuts]
                        request.sink.reply(template.reply.encode(request.id_field, raw, shapes, parameters))
                except Exception as error:  # whatever is wrong with this one, the others get their replies
                    lost.append(request)
                    wasted += rows if isinstance(error, Cancelled) else 0
                    self._refuse(request, error)
            start = stop
        if wasted:
            self.observer.wasted(wasted, (batch.finished - batch.started) * wasted // batch.rows)
        answered = [request for request in batch.requests if request not in lost] if lost else batch.requests
        if answered:
            self._record(worker, batch, _whole(answered) if self._splits else answered)

    def _output_shapes(self, rows: int, outputs: Sequence[OutputRows]) -> tuple[tuple[int, ...], ...]:
        if not self.signature.max_batch:
            return tuple(output.dims for output in outputs)
        return tuple((rows, *output.dims) for output in outputs)

    def _record(self, worker: Worker, batch: Batch, answered: list[InferRequest]) -> None:
        self.observer.batch(
            BatchRecord(
                received=[request.received for request in answered],
                decoded=[request.decoded for request in answered],
                admitted=[request.admitted for request in answered],
                rows=[request.template.rows for request in answered],
                batched=batch.batched,
                started=batch.started,
                finished=batch.finished,
                encoded=self._clock(),
                batch_rows=batch.rows,
                close_reason=batch.reason,
                instance=worker.index,
            )
        )

    def _fail(self, job: Job, error: Exception) -> None:
        """A batch failed. Its members are run one by one, so that only the one at fault is answered with it."""
        requests = job.batch.requests
        if len(requests) > 1:
            for request in requests:
                if request.state is State.ABANDONED:
                    self._abandon(request)
                else:
                    request.state = State.WAITING
                    self._isolated.append(request)
            logger.warning(
                "model %s version %s failed a batch of %d requests, which are run one by one: %s",
                self.name,
                self.version,
                len(requests),
                error,
            )
            self._dispatch_soon()
            return
        correlation_id = secrets.token_hex(8)
        logger.error(
            "model %s version %s failed, correlation id %s", self.name, self.version, correlation_id, exc_info=error
        )
        failure = BackendFailed(
            f"model '{self.name}' could not run this request, correlation id {correlation_id}", str(error)
        )
        self._refuse_all(requests, lambda _: failure)

    def _refuse(self, request: InferRequest, error: Exception) -> None:
        """Ends a request with an error."""
        self._end(request)
        self._count(request, reason_of(error))
        request.sink.fail(error)

    def _refuse_all(self, requests: Sequence[InferRequest], error: Callable[[InferRequest], HeadraceError]) -> None:
        """Ends requests that are out of the queue. The answer to one may cancel others, which are then not answered."""
        for request in requests:
            if request.state is State.WAITING:
                request.state = State.RUNNING
        for request in requests:
            if request.state is State.ABANDONED:
                self._abandon(request)
            else:
                self._refuse(request, error(request))

    def _abandon(self, request: InferRequest) -> None:
        """Ends a request whose caller has gone away."""
        self._end(request)
        self._count(request, Cancelled.reason)

    def _count(self, request: InferRequest, reason: str) -> None:
        """Counts a request that ended without success; `Split` does so for the request that a piece belongs to."""
        if request.template.whole is None:
            self.observer.refused(reason)

    def _end(self, request: InferRequest) -> None:
        request.state = State.DONE
        request.parts = ()

    # --- the end ------------------------------------------------------------------------------------------------------

    async def drain(self, seconds: float) -> bool:
        """Takes no more; returns True once all that was accepted is answered, False when `seconds` have passed."""
        self.draining = True
        self._dispatch_soon()
        if self._quiet is None:
            self._quiet = asyncio.Event()
        self._check_quiet()
        if self._quiet.is_set():
            return True
        try:
            await asyncio.wait_for(self._quiet.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """Fails what is left and frees the instances; one whose thread runs a batch, when that is done."""
        if self._closed:
            return
        self._closed = self.draining = True
        if self._timer is not None:
            self._timer.cancel()
        left = [*self.queue, *self._isolated]
        self.queue = RequestQueue()
        self._isolated.clear()
        for batch in self._running.values():
            left += batch.requests
        error = ShuttingDown("Server is shutting down and could not finish this request in time")
        self._refuse_all(left, lambda _: error)
        for worker in self._workers:
            worker.close()

    def _check_quiet(self) -> None:
        if self._quiet is not None and not self._running and not self.queue.requests and not self._isolated:
            self._quiet.set()


def _whole(answered: Sequence[InferRequest]) -> list[InferRequest]:
    """The requests that are now answered: of a split one, each piece but the last is not yet an answer."""
    wholes = [request.template.whole or request for request in answered]
    return [whole for whole, request in zip(wholes, answered, strict=True) if whole.state is State.DONE]
