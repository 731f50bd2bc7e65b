"""Which requests are traced: sampled at their head, asked for, slow, or failed. Decided when they have ended.

Until then a request carries what its caller said of the trace and the moments that it has anyway; the decision is a few
comparisons a batch. What is chosen is a record of integers (`RequestTrace`, `BatchTrace`), handed to `offer`.

Everything here runs on the event loop; nothing is locked.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from headrace.clock import Clock
    from headrace.messages import InferRequest, ReplySink
    from headrace.telemetry.observer import BatchRecord

HEAD, ASKED, SLOW, FAILED = "head", "asked", "slow", "failed"
CAUSES = (HEAD, ASKED, SLOW, FAILED)
"""Why a request is traced. head: its caller's trace is sampled, or without one the ratio says so. asked: it asks for
its timing. slow: it took longer than nearly all before it. failed: it ended in an error."""
DROPS = ("rate", "queue", "export")
"""Why one that was chosen is not exported. rate: there were too many. queue: the exporter does not keep up. export: the
collector did not take it."""

_LEARNING = 200
"""Requests of a model before any of them is called slow."""
_RATE = 0.05
_MOST_STEP = 0.5
"""Of a batch, in units of the logarithm: one slow batch of many requests does not throw the estimate away."""
_MOST_GAP = 1e18
_SLOW_OF_A_BATCH = 2
_NAMED = 4096
"""Requests under way that are traced for sure."""
_SAMPLED = 0x01
_FLAGS = 54
_ODD = b"13579bdf"
"""Where a traceparent has the hexadecimal digit of the flag `sampled`, and what it is then."""


class Parent(NamedTuple):
    """What a traceparent says. Source: W3C Trace Context, 3.2.2."""

    trace_id: int
    span_id: int
    sampled: bool


NO_PARENT = Parent(0, 0, sampled=False)


def read_parent(traceparent: bytes) -> Parent:
    """The caller's span of a well-formed traceparent; `NO_PARENT` for none, or one of zeros (3.2.2.3, 3.2.2.4)."""
    if not traceparent:
        return NO_PARENT
    trace_id, span_id = int(traceparent[3:35], 16), int(traceparent[36:52], 16)
    if not trace_id or not span_id:
        return NO_PARENT
    return Parent(trace_id, span_id, sampled=bool(int(traceparent[53:55], 16) & _SAMPLED))


@dataclass(slots=True)
class BatchTrace:
    """A batch of which requests are traced. Times are monotonic ns; predicted_ns: of its run, 0 for unknown.

    padding_percent: of what ran, -1 where the model has no buckets. error: `HeadraceError.reason` of a run that failed.
    """

    model: str
    version: str
    span_id: int
    trace_id: int
    batched: int
    started: int
    finished: int
    encoded: int
    rows: int
    requests: int
    close_reason: str
    instance: int
    padding_percent: int
    predicted_ns: int
    traced: list[RequestTrace]
    error: str = ""


@dataclass(slots=True)
class RequestTrace:
    """A request that is traced, and no part of its tensors. Times are monotonic ns, 0 where it did not get there.

    door: how it came, see `messages.ReplySink`. cause: one of CAUSES. error: `HeadraceError.reason`, empty for success.
    ended: when it was answered. cached: from the response cache.
    """

    model: str
    version: str
    door: str
    cause: str
    trace_id: int
    span_id: int
    parent_id: int
    tracestate: bytes
    received: int
    decoded: int
    admitted: int
    ended: int
    rows: int
    error: str = ""
    cached: bool = False
    batched: int = 0
    started: int = 0
    finished: int = 0


class Exemplar(NamedTuple):
    """A traced request in a bucket of a histogram. ns: what it took. wall_ms: when it ended, since the Unix epoch."""

    trace_id: int
    ns: int
    wall_ms: int


class Budget:
    """Requests that may be traced: so many a second, and as many at once, or one. Slow ones leave half to others."""

    __slots__ = ("_kept", "_left", "_most", "_rate", "_since", "dropped")

    def __init__(self, per_second: float) -> None:
        self._rate = per_second
        self._left = self._most = max(per_second, 1.0)
        self._kept = min(per_second / 2, self._most - 1)  # from slow ones, who may have one too
        self._since = 0
        self.dropped: Counter[str] = Counter(dict.fromkeys(DROPS, 0))

    def __repr__(self) -> str:
        return f"<Budget {self._left:.0f} of {self._rate:.0f} left>"

    def take(self, now: int, cause: str) -> bool:
        """Whether one more may be traced. now: monotonic ns."""
        if now > self._since:
            self._left = min(self._most, self._left + (now - self._since) * self._rate / 1e9)
            self._since = now
        if self._left - 1 < (self._kept if cause == SLOW else 0):
            self.dropped["rate"] += 1
            return False
        self._left -= 1
        return True


class SlowThreshold:
    """A rolling quantile of request times, by stochastic approximation on a logarithmic scale, as `pipeline/cost.py`.

    Robbins and Monro 1951: each time above moves it up by q, each below down by 1 - q, in small steps.
    """

    __slots__ = ("_quantile", "_seen", "ns")

    def __init__(self, quantile: float) -> None:
        self._quantile = quantile
        self._seen = 0
        self.ns = 0

    def __repr__(self) -> str:
        return f"<SlowThreshold {self.ns} ns, {self._seen} seen>"

    def slow(self, ended: int, received: Sequence[int]) -> list[int]:
        """The slowest of the requests that were answered together and took longer; learns from all of them.

        At most `_SLOW_OF_A_BATCH`: what held up one of a batch held up the others.
        """
        oldest = min(received)
        count = len(received)
        if not self.ns:
            self.ns = max(ended - oldest, 1)
        limit = ended - self.ns
        above = [index for index, moment in enumerate(received) if moment < limit] if oldest < limit else []
        step = _RATE * (len(above) - (1 - self._quantile) * count)
        self.ns = max(int(self.ns * math.exp(max(-_MOST_STEP, min(step, _MOST_STEP)))), 1)
        known = self._seen >= _LEARNING
        self._seen += count
        if not known:
            return []
        return sorted(above, key=received.__getitem__)[:_SLOW_OF_A_BATCH]


class HeadSample:
    """Takes each request with the same probability, by drawing how many to leave out before the next."""

    __slots__ = ("_left", "_log", "_random", "_ratio")

    def __init__(self, ratio: float, draw: Callable[[], float]) -> None:
        self._ratio = ratio
        self._random = draw
        self._log = math.log1p(-ratio) if 0 < ratio < 1 else 0.0
        self._left = self._gap()

    def take(self, count: int) -> list[int]:
        """Which of the next `count` requests are sampled."""
        if not self._ratio:
            return []
        taken = []
        at = self._left
        while at < count:
            taken.append(at)
            at += 1 + self._gap()
        self._left = at - count
        return taken

    def _gap(self) -> int:
        return int(min(math.log(1.0 - self._random()) / self._log, _MOST_GAP)) if self._log else 0


class Exported:
    """What has become of requests that were offered. Written on the exporter's thread alone.

    traced: exported, by cause. lost: not taken by the collector. failures: exports in which those were.
    """

    __slots__ = ("failures", "lost", "traced")

    def __init__(self) -> None:
        self.traced = dict.fromkeys(CAUSES, 0)
        self.lost = 0
        self.failures = 0


class Offer(Protocol):
    """Where what is traced goes. False: there is no room for it."""

    def __call__(self, batch: BatchTrace | None, requests: Sequence[RequestTrace], /) -> bool: ...  # noqa: D102


class TailSampling:
    """What the samplers of all models share: settings, budget, the way out, and where ids come from."""

    def __init__(
        self,
        offer: Offer,
        clock: Clock,
        wall_ms: Callable[[], int],
        *,
        ratio: float,
        slow_quantile: float,
        per_second: float,
        rng: random.Random | None = None,
    ) -> None:
        self.offer = offer
        self.clock = clock
        self.wall_ms = wall_ms
        self.ratio = ratio
        self.slow_quantile = slow_quantile
        self.budget = Budget(per_second)
        self.rng = rng or random.Random()
        self.exported = Exported()
        self._unrouted = ModelSampler(self, "", "", ())

    def new_id(self, bits: int) -> int:
        """A random id, not 0."""
        return self.rng.getrandbits(bits) or 1

    def unrouted(self, sink: ReplySink, received: int, reason: str) -> None:
        """A request has failed before its model was known."""
        self._unrouted.unfit(sink, received, reason)

    def send(self, batch: BatchTrace | None, requests: Sequence[RequestTrace]) -> bool:
        """Hands over what was chosen; counts it where there is no room."""
        if self.offer(batch, requests):
            return True
        self.budget.dropped["queue"] += len(requests)
        return False

    def dropped(self) -> dict[str, int]:
        """Requests that were chosen and are not exported, by one of DROPS."""
        return {**self.budget.dropped, "export": self.exported.lost}


class ModelSampler:
    """Chooses among the requests of one model version. edges: of the histogram that exemplars are for, ns."""

    def __init__(self, shared: TailSampling, model: str, version: str, edges: Sequence[int]) -> None:
        self._shared = shared
        self._model = model
        self._version = version
        self._edges = edges
        self._head = HeadSample(shared.ratio, shared.rng.random)
        self.threshold = SlowThreshold(shared.slow_quantile)
        self._named: dict[InferRequest, tuple[int, int]] = {}
        self.exemplars: dict[int, Exemplar] = {}

    def __repr__(self) -> str:
        return f"<ModelSampler {self._model}/{self._version} slow above {self.threshold.ns} ns>"

    def name(self, request: InferRequest) -> str:
        """The id of the trace, in hexadecimal, under which a request that has not ended will be exported; empty: none.

        It is for the reply, or for the log, of a request that is traced for sure.
        """
        request = request.template.whole or request
        known = self._named.get(request)
        if known is None:
            if not self._shared.budget.take(self._shared.clock(), ASKED):
                return ""
            if len(self._named) >= _NAMED:  # of requests that came to no end
                self._named.clear()
            parent = read_parent(request.sink.traceparent)
            known = parent.trace_id or self._shared.new_id(128), self._shared.new_id(64)
            self._named[request] = known
        return f"{known[0]:032x}"

    def batch(self, record: BatchRecord) -> None:
        """A batch was answered: sends those of its requests that are traced, and itself with them."""
        requests = record.requests
        count = len(requests)
        if not count:  # pieces of requests alone, whose last ones are yet to run
            return
        chosen = dict.fromkeys(self.threshold.slow(record.encoded, record.received), SLOW)
        head = self._head.take(count)
        parents = [request.sink.traceparent for request in requests]
        if any(parents):
            head = [index for index in head if read_parent(parents[index]) is NO_PARENT]
            maybe = [index for index, parent in enumerate(parents) if parent and parent[_FLAGS] in _ODD]
            head += [index for index in maybe if read_parent(parents[index]).sampled]
        if head:
            chosen.update(dict.fromkeys(head, HEAD))
        if self._named:
            chosen.update({index: ASKED for index, request in enumerate(requests) if request in self._named})
        if chosen:
            self._send(record, chosen, parents)

    def hit(self, request: InferRequest) -> None:
        """A request was answered from the response cache. None is slow: the threshold is of those that are run."""
        shared = self._shared
        parent = request.sink.traceparent
        named = self._named.pop(request, None)
        if named is None:
            known = read_parent(parent)
            if not (self._head.take(1) if known is NO_PARENT else known.sampled):
                return
        ended = shared.clock()
        if named is not None or shared.budget.take(ended, HEAD):
            trace = self._trace(request, HEAD if named is None else ASKED, parent, ended, named)
            trace.cached, trace.admitted = True, 0  # it came into no queue
            if shared.send(None, [trace]):
                self._exemplar(trace, shared.wall_ms())

    def failed(self, request: InferRequest, reason: str, record: BatchRecord | None = None) -> None:
        """A request has ended without success, the whole of it. record: of its batch, if that was run.

        A batch of its own goes along; of another, the moments alone: it may be exported with its other requests.
        """
        now = self._shared.clock()
        named = self._named.pop(request, None)
        if named is not None or self._shared.budget.take(now, FAILED):
            trace = self._trace(request, FAILED, request.sink.traceparent, now, named, record)
            trace.error = reason
            batch = None
            if record is not None and len(record.requests) == 1:
                batch = self._batch(record, [trace], now)
                batch.error = "" if record.encoded else reason
            self._shared.send(batch, [trace])

    def unfit(self, sink: ReplySink, received: int, reason: str) -> None:
        """A request has failed before it was one for the model: it says nothing that could be taken."""
        shared = self._shared
        now = shared.clock()
        if shared.budget.take(now, FAILED):
            parent = read_parent(sink.traceparent)
            trace = RequestTrace(
                self._model, self._version, sink.door, FAILED, parent.trace_id or shared.new_id(128),
                shared.new_id(64), parent.span_id, sink.tracestate if parent.span_id else b"", received, 0, 0, now, 0,
                reason,
            )  # fmt: skip
            shared.send(None, [trace])

    def _send(self, record: BatchRecord, chosen: dict[int, str], parents: Sequence[bytes]) -> None:
        shared = self._shared
        ended = record.encoded
        traces = []
        for index in sorted(chosen):
            request, cause = record.requests[index], chosen[index]
            named = self._named.pop(request, None)
            if named is not None or shared.budget.take(ended, cause):
                traces.append(self._trace(request, cause, parents[index], ended, named, record))
        if traces and shared.send(self._batch(record, traces, ended), traces):
            wall = shared.wall_ms()
            for trace in traces:
                self._exemplar(trace, wall)

    def _batch(self, record: BatchRecord, traces: list[RequestTrace], ended: int) -> BatchTrace:
        shared = self._shared
        fit = record.requests[0].template.fit
        return BatchTrace(
            self._model, self._version, shared.new_id(64), shared.new_id(128), record.batched, record.started,
            record.finished, ended, record.batch_rows, len(record.requests), record.close_reason, record.instance,
            -1 if fit is None else fit.padding_percent, record.predicted, traces,
        )  # fmt: skip

    def _exemplar(self, trace: RequestTrace, wall_ms: int) -> None:
        spent = trace.ended - trace.received
        self.exemplars[bisect_left(self._edges, spent)] = Exemplar(trace.trace_id, spent, wall_ms)

    def _trace(
        self,
        request: InferRequest,
        cause: str,
        traceparent: bytes,
        ended: int,
        named: tuple[int, int] | None,
        record: BatchRecord | None = None,
    ) -> RequestTrace:
        shared = self._shared
        parent = read_parent(traceparent)
        trace_id, span_id = named or (parent.trace_id or shared.new_id(128), shared.new_id(64))
        sink = request.sink
        state = sink.tracestate if parent.span_id else b""  # alone it says nothing (3.3)
        trace = RequestTrace(
            self._model, self._version, sink.door, cause, trace_id, span_id, parent.span_id, state, request.received,
            getattr(request, "decoded", 0), getattr(request, "admitted", 0), ended, request.template.rows,
        )  # fmt: skip
        if record is not None:
            trace.batched, trace.started = record.batched, record.started
            trace.finished = record.finished if record.encoded else 0
        return trace
