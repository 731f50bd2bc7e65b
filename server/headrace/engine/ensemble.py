"""An ensemble: a request that runs through a graph of the server's own models."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from headrace.engine.inner import InnerCall, InnerClient, Tensor
from headrace.engine.replies import record_of
from headrace.errors import Cancelled, HeadraceError, QueueFull, ShuttingDown, reason_of
from headrace.messages import Batch, State
from headrace.pipeline.decode import ModelView
from headrace.pipeline.encode import encode_parameters
from headrace.pipeline.timing import timing_parameters

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from headrace.clock import Clock
    from headrace.engine.served import Served
    from headrace.messages import InferRequest
    from headrace.pipeline.ensemble import Graph, Step
    from headrace.pipeline.rules import Rules
    from headrace.repository.model_config import EnsembleStep, ModelConfig
    from headrace.rpc import model_config_pb2 as mc
    from headrace.telemetry.observer import BatchRecord, ModelObserver
    from headrace.telemetry.statistics import Statistics

    Resolve = Callable[[str, str], Served]

_REASON = "ensemble"
"""Why the 'batch' of an ensemble's request was closed: it is none; its steps join those of their models."""


class _Condition:
    """The `served.Condition` of an ensemble: all its models have to be usable."""

    backend = ""

    def __init__(self, steps: Sequence[EnsembleStep], resolve: Resolve) -> None:
        self._steps = steps
        self._resolve = resolve

    @property
    def usable(self) -> int:
        """See `Condition`."""
        return min((model.condition.usable for model in self._models()), default=0)

    @property
    def note(self) -> str:
        """See `Condition`."""
        notes = {model.name: model.condition.note for model in self._models()}
        return "; ".join(f"{name}: {note}" for name, note in notes.items() if note)

    def count(self) -> dict[tuple[str, str], int]:
        """See `Condition`."""
        return {}

    def _models(self) -> list[Served]:
        """None if one of them does not serve, which the catalog knows as well."""
        try:
            return [self._resolve(step.model, str(step.version) if step.version else "") for step in self._steps]
        except HeadraceError:
            return []


class Ensemble:
    """Runs the requests of one ensemble. Everything happens on the event loop.

    graph: of its models, which are at most on level `level` - 1; drawn: as it follows from them alone. resolve: the
    model of a name and version that serves now. It is asked for each request, so that a model that is loaded again is
    found; raises ModelNotFound or ModelNotReady.
    """

    platform = "ensemble"
    plan = None

    def __init__(
        self,
        name: str,
        version: str,
        config: ModelConfig,
        graph: Graph,
        level: int,
        resolve: Resolve,
        clock: Clock,
        rules: Mapping[str, Rules],
    ) -> None:
        self.name = name
        self.version = version
        self.config = config
        self.stated: mc.ModelConfig | None = None
        self.signature = graph.signature
        self.graph = self.drawn = graph
        self.level = level
        self.observer: ModelObserver
        self.statistics: Callable[[], Statistics]
        self.draining = False
        self.view = ModelView(
            name,
            version,
            self.signature,
            rules,
            self,
            config.split_oversize,
            config.priority_levels,
            config.default_level,
            {spec.name: spec.labels for spec in self.signature.outputs if spec.labels},
        )
        self.condition = _Condition(config.ensemble.steps, resolve)
        self._resolve = resolve
        self._clock = clock
        self._clients: dict[int, InnerClient] = {}
        self._executions: dict[InferRequest, _Execution] = {}
        self._awaited: list[tuple[set[InferRequest], asyncio.Event]] = []

    def __repr__(self) -> str:
        state = "draining" if self.draining else "serving"
        return f"<Ensemble {self.name}/{self.version} {state}, {len(self._executions)} under way>"

    def depth(self) -> tuple[int, int]:
        """(requests, rows) that wait: none do, they wait in the queues of their models."""
        return 0, 0

    def wait_ns(self) -> int:
        """None, for the same reason."""
        return 0

    def submit(self, requests: Sequence[InferRequest]) -> None:
        """Takes decoded requests: starts each, or answers it with the reason why not."""
        for request in requests:
            request.decoded = request.admitted = self._clock()
            limit = self.config.queue.max_requests
            if self.draining:
                self._refuse(request, ShuttingDown("Server is shutting down and has stopped accepting new requests"))
            elif len(self._executions) >= limit:
                self._refuse(
                    request, QueueFull(f"Exceeds maximum queue size: {limit} requests are under way", retry_after_ms=1)
                )
            else:
                request.state = State.RUNNING
                request.sink.under_way = request
                execution = self._executions[request] = _Execution(self, request)
                execution.start()

    def cancel(self, request: InferRequest) -> None:
        """The request's caller has gone away: what has not begun will not run."""
        execution = self._executions.get(request)
        if execution is not None:
            self.ended(request)
            execution.cancel()
            record = record_of([request], self._batch(request, execution.began), 0, 0)
            self.observer.refused(Cancelled.reason, request=request, record=record)

    async def drain(self, seconds: float) -> bool:
        """Takes no more; returns True once all that was accepted is answered, False when `seconds` have passed."""
        self.draining = True
        return await self.settle(seconds)

    async def settle(self, seconds: float) -> bool:
        """Returns True once all that is under way now has ended, False when `seconds` have passed."""
        if not self._executions:
            return True
        ended = asyncio.Event()
        self._awaited.append((set(self._executions), ended))
        try:
            await asyncio.wait_for(ended.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """Fails what is left."""
        self.draining = True
        for execution in list(self._executions.values()):
            execution.failed(ShuttingDown("Server is shutting down and could not finish this request in time"))

    # --- from an execution --------------------------------------------------------------------------------------------

    def client(self, step: Step) -> InnerClient:
        """What makes requests of a step's model. Raises ModelNotFound, ModelNotReady."""
        version = self.config.ensemble.steps[step.index].version
        model = self._resolve(step.model, str(version) if version else "")
        client = self._clients.get(step.index)
        if client is None or client.model is not model:
            client = self._clients[step.index] = InnerClient(model, [name for name, _ in step.outputs], step=True)
        return client

    def now(self) -> int:
        """Monotonic ns."""
        return self._clock()

    def ended(self, request: InferRequest) -> None:
        """A request has been answered, or nobody waits for its answer."""
        del self._executions[request]
        request.state = State.DONE
        request.parts = ()
        for requests, ended in self._awaited:
            requests.discard(request)
            if not requests:
                ended.set()
        if self._awaited:
            self._awaited = [awaited for awaited in self._awaited if awaited[0]]

    def failed(self, request: InferRequest, error: BaseException, began: int) -> None:
        """A request has ended with an error. began: when the first of its steps did."""
        self.ended(request)
        self._refuse(request, error, record_of([request], self._batch(request, began), 0, 0))

    def finished(self, request: InferRequest, tensors: dict[str, Tensor], steps: dict[str, int], began: int) -> None:
        """A request has all its outputs. steps: what each took in ns; began: when the first of them began."""
        self.ended(request)
        template = request.template
        batch = self._batch(request, began)
        try:
            specs = [self.signature.outputs[index] for index in template.outputs]
            outputs = [tensors[spec.name] for spec in specs]
            parameters = b""
            if template.timing:
                trace_id = self.observer.trace_id(request)
                parameters = timing_parameters(request, batch, self._clock(), trace_id) + encode_parameters(
                    {f"headrace_step_{name}_us": spent // 1000 for name, spent in steps.items()}
                )
            message = template.reply.encode(
                request.id_field,
                [tensor.data for tensor in outputs],
                tuple(tensor.shape for tensor in outputs),
                parameters,
            )
        except Exception as error:
            self._refuse(request, error, record_of([request], batch, 0, self._clock()))
            return
        request.sink.reply(message)
        self.observer.batch(record_of([request], batch, 0, self._clock()))

    def _batch(self, request: InferRequest, began: int) -> Batch:
        """What a request has run in until now, as observers know batches."""
        return Batch([request], request.template.rows, _REASON, batched=began, started=began, finished=self._clock())

    def _refuse(self, request: InferRequest, error: BaseException, record: BatchRecord | None = None) -> None:
        request.state = State.DONE
        self.observer.refused(reason_of(error), request=request, record=record)
        request.sink.fail(error)


class _Execution:
    """One request on its way through the graph: each step starts when all that it takes is there.

    The models are those that serve when it begins, whatever is loaded in their place meanwhile.
    """

    __slots__ = (
        "_calls",
        "_clients",
        "_ensemble",
        "_left",
        "_request",
        "_started",
        "_starting",
        "_steps",
        "_tensors",
        "began",
    )

    def __init__(self, ensemble: Ensemble, request: InferRequest) -> None:
        self._ensemble = ensemble
        self._request = request
        signature = ensemble.signature
        template = request.template
        rows = (template.rows,) if signature.max_batch else ()
        self._tensors = {
            spec.name: Tensor(spec.name, spec.datatype, (*rows, *dims), data)
            for spec, dims, data in zip(signature.inputs, template.shapes, request.parts, strict=True)
        }
        wanted = [signature.outputs[index].name for index in template.outputs]
        self._left = list(ensemble.graph.needed(wanted))
        self._steps: dict[str, int] = {}
        self._calls: dict[int, InnerCall] = {}
        self._clients: dict[int, InnerClient] = {}
        self.began = ensemble.now()
        self._started: dict[int, int] = {}
        self._starting = False

    def start(self) -> None:
        """Starts the steps that can; ends the request when nothing is left to do."""
        if not self._clients:
            try:
                self._clients = {step.index: self._ensemble.client(step) for step in self._left}
            except HeadraceError as error:
                self.failed(error)
                return
        if self._starting:  # a step has been answered while it was started: the loop below goes on with what it gave
            return
        self._starting = True
        while ready := [step for step in self._left if all(name in self._tensors for _, name in step.inputs)]:
            for step in ready:
                self._left.remove(step)
                if not self._start(step):
                    return
        self._starting = False
        if not self._left and not self._started:
            self._ensemble.finished(self._request, self._tensors, self._steps, self.began)

    def _start(self, step: Step) -> bool:
        """Has a step's model run; False if the request has failed over it."""
        ensemble = self._ensemble
        tensors = [self._tensors[name]._replace(name=model_name) for model_name, name in step.inputs]
        self._started[step.index] = ensemble.now()
        try:
            call = self._clients[step.index].send(
                tensors, self._request, lambda outputs, _: self._done(step, outputs), self.failed
            )
        except Exception as error:
            self.failed(error)
        if self._request.state is State.DONE:
            return False
        if step.index in self._started:
            self._calls[step.index] = call
        return True

    def _done(self, step: Step, outputs: Sequence[Tensor]) -> None:
        if self._request.state is State.DONE:
            return
        self._calls.pop(step.index, None)
        spent = self._ensemble.now() - self._started.pop(step.index)
        self._steps[step.model] = self._steps.get(step.model, 0) + spent
        for (_, name), tensor in zip(step.outputs, outputs, strict=True):
            self._tensors[name] = tensor
        self.start()

    def failed(self, error: BaseException) -> None:
        """A step has failed, and with it the request."""
        if self._request.state is not State.DONE:
            self._ensemble.failed(self._request, error, self.began)
            self.cancel()

    def cancel(self) -> None:
        """Gives up the steps that are under way."""
        calls, self._calls = self._calls, {}
        for call in calls.values():
            if call.under_way is not None:
                call.under_way.cancel()
