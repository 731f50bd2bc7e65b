"""A model whose replies are kept: a request whose inputs have been seen is answered without running it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Protocol

from headrace.engine.inner import InnerCall, InnerClient, Tensor
from headrace.engine.replies import timing
from headrace.errors import ShuttingDown
from headrace.messages import Batch, State
from headrace.pipeline.response_cache import Outputs, key_of

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from headrace.clock import Clock
    from headrace.engine.scheduler import Scheduler
    from headrace.messages import InferRequest
    from headrace.pipeline.response_cache import ResponseCache
    from headrace.telemetry.observer import ModelObserver
    from headrace.telemetry.statistics import Statistics


class CacheObserver(Protocol):
    """Hears of lookups."""

    def cache_hit(self, request_ns: int, lookup_ns: int, request: InferRequest | None = None) -> None:
        """A request was answered from the cache: in so much time, of which so much for the lookup."""

    def cache_miss(self, lookup_ns: int) -> None:
        """A request was not: the lookup took so much time."""


class CachedModel:
    """Answers from `cache` what is there, and has `scheduler` run the rest. On the event loop.

    ttl_ns: how long a reply is kept, 0 for as long as there is room.
    """

    level = 0
    plan = None

    def __init__(self, scheduler: Scheduler, cache: ResponseCache, ttl_ns: int, clock: Clock) -> None:
        self.name = scheduler.name
        self.version = scheduler.version
        self.platform = scheduler.platform
        self.signature = scheduler.signature
        self.config = scheduler.config
        self.condition = scheduler.condition
        self.stated = scheduler.stated
        self.view = dataclasses.replace(scheduler.view, owner=self, pads=False)
        buckets = self.view.buckets
        self._optional = buckets.optional if buckets is not None else frozenset()
        self.statistics: Callable[[], Statistics]
        self.lookups: CacheObserver
        self._scheduler = scheduler
        self._cache = cache
        self._ttl_ns = ttl_ns
        self._clock = clock
        self._clients: dict[tuple[int, ...], InnerClient] = {}
        self._calls: dict[InferRequest, InnerCall] = {}

    def __repr__(self) -> str:
        return f"<CachedModel {self._scheduler!r}, {len(self._calls)} missed>"

    @property
    def observer(self) -> ModelObserver:
        """Of what runs."""
        return self._scheduler.observer

    @observer.setter
    def observer(self, observer: ModelObserver) -> None:
        self._scheduler.observer = observer

    @property
    def draining(self) -> bool:
        """Whether nothing more is taken."""
        return self._scheduler.draining

    def depth(self) -> tuple[int, int]:
        """(requests, rows) that wait."""
        return self._scheduler.depth()

    def wait_ns(self) -> int:
        """See `served.Served`; of a request that is not in the cache."""
        return self._scheduler.wait_ns()

    def submit(self, requests: Sequence[InferRequest]) -> None:
        """See `served.Served`."""
        for request in requests:
            if self.draining:
                request.sink.fail(ShuttingDown("Server is shutting down and has stopped accepting new requests"))
                self.observer.refused(ShuttingDown.reason, request=request)
                continue
            began = self._clock()
            template = request.template
            # what is kept for others is of the bytes that were looked up: a client may write to shared memory meanwhile
            request.parts = [bytes(part) for part in request.parts]
            key = key_of(self, (template.rows, template.shapes, template.outputs), request.parts)
            request.decoded = request.admitted = began
            outputs = self._cache.get(key, began)
            looked = self._clock()
            if outputs is not None:
                self._hit(request, outputs, looked)
                self.lookups.cache_hit(self._clock() - request.received, looked - began, request)
            else:
                self.lookups.cache_miss(looked - began)
                self._miss(request, key)

    def cancel(self, request: InferRequest) -> None:
        """See `served.Served`."""
        call = self._calls.pop(request, None)
        if call is not None:
            request.state = State.DONE
            if call.under_way is not None:
                call.under_way.cancel()

    async def drain(self, seconds: float) -> bool:
        """See `served.Served`."""
        return await self._scheduler.drain(seconds)

    def close(self) -> None:
        """See `served.Served`."""
        self._scheduler.close()
        self._cache.forget(self)

    def _hit(self, request: InferRequest, outputs: Outputs, now: int) -> None:
        template, parts = request.template, request.parts
        request.state = State.DONE
        request.parts = ()
        parameters = b""
        if template.timing:
            batch = Batch([request], template.rows, "cached", batched=now, started=now, finished=now)
            parameters = timing(request, batch, self._clock, self.observer)
        try:
            message = template.reply.encode(request.id_field, outputs.raw, outputs.shapes, parameters)
        except Exception as error:  # such as no room in shared memory
            request.sink.fail(error)
            return
        request.sink.reply(message)
        for watcher in self._scheduler.watchers:
            watcher.cached(request, parts, outputs)

    def _miss(self, request: InferRequest, key: Hashable) -> None:
        template = request.template
        client = self._clients.get(template.outputs)
        if client is None:
            names = [self.signature.outputs[index].name for index in template.outputs]
            client = self._clients[template.outputs] = InnerClient(self._scheduler, names, screened=True)
        batched = (template.rows,) if self.signature.max_batch else ()
        tensors = [
            Tensor(spec.name, spec.datatype, (*batched, *dims), part)
            for spec, dims, part in zip(self.view.signature.inputs, template.shapes, request.parts, strict=True)
            if part or spec.name not in self._optional
        ]
        request.state = State.RUNNING
        request.sink.under_way = request

        def done(found: list[Tensor], parameters: bytes) -> None:
            outputs = Outputs(tuple(bytes(tensor.data) for tensor in found), tuple(tensor.shape for tensor in found))
            now = self._clock()
            self._cache.put(key, outputs, now + self._ttl_ns if self._ttl_ns else 0)
            if self._end(request):
                self._reply(request, outputs, parameters)

        def failed(error: BaseException) -> None:
            if self._end(request):
                request.sink.fail(error)

        self._calls[request] = call = client.send(tensors, request, done, failed)
        if request.state is State.DONE:  # it was answered at once
            self._calls.pop(request, call)

    def _end(self, request: InferRequest) -> bool:
        """Whether somebody still waits for the answer."""
        self._calls.pop(request, None)
        waited = request.state is not State.DONE
        request.state = State.DONE
        request.parts = ()
        return waited

    def _reply(self, request: InferRequest, outputs: Outputs, parameters: bytes) -> None:
        try:
            message = request.template.reply.encode(request.id_field, outputs.raw, outputs.shapes, parameters)
        except Exception as error:
            request.sink.fail(error)
            return
        request.sink.reply(message)
