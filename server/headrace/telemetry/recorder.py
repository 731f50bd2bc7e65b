"""What happened to one model version: columns while nobody looks, exact counts when somebody does.

`ModelRecorder.batch` runs once per batch on the event loop, so it only extends lists. They are folded into histograms
and sums with NumPy when `FOLD_AT` requests are pending, which bounds the memory and the pause that a fold makes, and
whenever somebody reads, so that a reader never sees less than what has happened.

Everything here runs on the event loop; nothing is locked.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from headrace.clock import monotonic_ns, wall_ms
from headrace.messages import PHASES
from headrace.telemetry.statistics import BatchStatistics, Duration, Statistics

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from headrace.clock import Clock
    from headrace.messages import InferRequest, ReplySink
    from headrace.telemetry.diary import Diary
    from headrace.telemetry.observer import BatchRecord, QueueDepth
    from headrace.telemetry.sampling import Exemplar, ModelSampler

    Int64s = NDArray[np.int64]
    Resources = Callable[[], tuple[Mapping[str, int], Mapping[str, int]]]
    """Bytes by device and nodes by execution provider, at the moment."""

FOLD_AT = 1024
"""Pending requests at which they are folded. More would not make a request cheaper, only the fold's pause longer."""

PHASE_EDGES: Int64s = np.array([m * 10**k for k in range(3, 10) for m in (1, 2, 5)] + [10**10], np.int64)
"""Upper bounds in ns, 1 us to 10 s in steps of 1, 2, 5: 22 buckets tell in which phase the time of requests went."""

REQUEST_EDGES: Int64s = np.array(
    [m * 10**k for k in range(2, 9) for m in (10, 15, 20, 30, 50, 70)] + [10**10], np.int64
)
"""Upper bounds in ns, 1 us to 10 s in steps of 1, 1.5, 2, 3, 5, 7: 43 buckets for the percentiles of the whole."""

BATCH_COLUMNS = 7
"""Entries of one batch in the flat list of batches: requests, rows, instance, batched, started, finished, encoded."""


class Histogram:
    """Counts of nanosecond values by bucket, and their exact sum.

    edges: upper bounds, ascending; a value equal to a bound belongs below it, as Prometheus' `le` has it. `counts` has
    one entry more, for what lies above the last. Sums are Python integers: they do not overflow.
    """

    __slots__ = ("counts", "edges", "total")

    def __init__(self, edges: Int64s) -> None:
        self.edges = edges
        self.counts: Int64s = np.zeros(len(edges) + 1, np.int64)
        self.total = 0

    def add(self, values: Int64s) -> None:
        """Counts each value once."""
        self.counts += np.bincount(self.edges.searchsorted(values), minlength=len(self.counts))
        self.total += int(values.sum())

    def add_weighted(self, values: Int64s, weights: Int64s) -> None:
        """Counts each value `weights` times."""
        # bincount adds weights as doubles: exact, for they are counts of requests.
        counts = np.bincount(self.edges.searchsorted(values), weights, len(self.counts))
        self.counts += counts.astype(np.int64)
        self.total += int(values @ weights)

    def copy(self) -> Histogram:
        """The same counts, which no longer change."""
        other = Histogram(self.edges)
        other.counts += self.counts
        other.total = self.total
        return other

    @property
    def count(self) -> int:
        """How many values there were."""
        return int(self.counts.sum())

    @property
    def duration(self) -> Duration:
        """Count and sum."""
        return Duration(self.count, self.total)


@dataclass(frozen=True, slots=True)
class SequenceCounts:
    """Sequences of a stateful model: active now, waiting to become active, and those that were over for being idle."""

    active: int
    waiting: int
    expired: int


def no_resources() -> tuple[Mapping[str, int], Mapping[str, int]]:
    """The `Resources` of a model that takes none of devices."""
    return {}, {}


@dataclass(frozen=True, slots=True)
class Reading:
    """All that is known of one model version at one moment. It does not change while it is being written out.

    phases: by name (`messages.PHASES`). refused: requests by `HeadraceError.reason`. closed: batches by close reason
    and instance. queue: requests and rows that wait now. wait_ns: predicted of a request that arrives now.
    sequences: of a stateful model. elements, padding: of inputs with buckets, as they ran. late: requests that were
    answered after they were due. rules: requests that broke one, by input, rule and policy. memory: bytes by device.
    nodes: of the graph, by execution provider. busy: nanoseconds in which each instance ran batches. instances: how
    many there are by backend and state. fallbacks: by backend, what was taken in its place, and reason. exemplars: by
    bucket of `request`.
    """

    model: str
    version: str
    statistics: Statistics
    request: Histogram
    phases: Mapping[str, Histogram]
    refused: Mapping[str, int]
    late: int
    closed: Mapping[tuple[str, int], int]
    queue: tuple[int, int]
    wait_ns: int
    sequences: SequenceCounts | None
    wasted_rows: int
    wasted_ns: int
    elements: int
    padding: int
    rules: Mapping[tuple[str, str, str], int]
    load_seconds: float
    instances: Mapping[tuple[str, str], int]
    fallbacks: Mapping[tuple[str, str, str], int]
    instances_lost: int
    reruns: int
    memory: Mapping[str, int]
    nodes: Mapping[str, int]
    busy: Mapping[int, int]
    exemplars: Mapping[int, Exemplar] = field(default_factory=dict)


class ModelRecorder:
    """Counts what happens to one model version: the `ModelObserver` behind /metrics and ModelStatistics.

    queue_depth: of whatever serves the version now. trace: hears of each batch too, if anybody asked for traces.
    sampler: chooses what is exported of them, if anything is. diary: of how requests came and went, if it is kept.
    sequences: of a stateful model, (active, waiting to become active). instances: how many there are now, by backend
    and state. wait_ns: predicted wait of a request that arrives now.
    """

    __slots__ = (
        "_admitted", "_batches", "_busy", "_clock", "_closed", "_decoded", "_elements", "_executions",
        "_expired_sequences", "_fallbacks", "_hit_lookups", "_hits", "_instances_lost", "_last_ms", "_late",
        "_load_seconds", "_misses", "_padding", "_phases", "_received", "_refused", "_request", "_reruns", "_resources",
        "_rows", "_rules", "_wall_ms", "_wasted_ns", "_wasted_rows", "diary", "instances", "model", "queue_depth",
        "sampler", "sequences", "trace", "version", "wait_ns",
    )  # fmt: skip

    def __init__(
        self,
        model: str,
        version: str,
        queue_depth: QueueDepth,
        *,
        clock: Clock = monotonic_ns,
        wall: Callable[[], int] = wall_ms,
    ) -> None:
        self.model = model
        self.version = version
        self.queue_depth = queue_depth
        self.sequences: Callable[[], tuple[int, int]] | None = None
        self.wait_ns: Callable[[], int] = int
        self.instances: Callable[[], Mapping[tuple[str, str], int]] = dict
        self._clock = clock
        self._wall_ms = wall
        # Pending: one entry per request, and BATCH_COLUMNS entries per batch.
        self._received: list[int] = []
        self._decoded: list[int] = []
        self._admitted: list[int] = []
        self._batches: list[int] = []
        # Counted.
        self._rows = 0
        self._closed: Counter[tuple[str, int]] = Counter()
        self._busy: Counter[int] = Counter()  # instance -> ns of execute
        self._refused: Counter[str] = Counter()
        self._request = Histogram(REQUEST_EDGES)
        self._phases = {phase: Histogram(PHASE_EDGES) for phase in PHASES}
        self._executions: dict[int, list[int]] = {}  # batch rows -> executions, ns of batch, of execute, of encode
        self._last_ms = 0
        self._late = 0
        self._wasted_rows = 0
        self._wasted_ns = 0
        self._elements = 0
        self._padding = 0
        self._expired_sequences = 0
        self._rules: Counter[tuple[str, str, str]] = Counter()
        self._load_seconds = 0.0
        self._fallbacks: Counter[tuple[str, str, str]] = Counter()
        self._instances_lost = 0
        self._reruns = 0
        self._resources: Resources = no_resources
        self.trace: Callable[[BatchRecord], None] | None = None
        self.sampler: ModelSampler | None = None
        self.diary: Diary | None = None
        self._hits: list[int] = []  # the time of each request that the cache answered, not folded yet
        self._hit_lookups = Duration()
        self._misses = Duration()

    def __repr__(self) -> str:
        pending, requests = len(self._received), self._request.count
        return f"<ModelRecorder {self.model}/{self.version} requests={requests} pending={pending}>"

    def batch(self, record: BatchRecord) -> None:
        """A batch was run and its requests were answered with success. The record is not kept."""
        rows = record.rows
        self._received.extend(record.received)
        self._decoded.extend(record.decoded)
        self._admitted.extend(record.admitted)
        self._batches.extend(
            (
                len(rows),
                record.batch_rows,
                record.instance,
                record.batched,
                record.started,
                record.finished,
                record.encoded,
            )
        )
        self._rows += sum(rows)
        self._late += record.late
        closed = self._closed
        how = (record.close_reason, record.instance)
        # A subscript of a Counter that misses is a Python call; get is not.
        closed[how] = closed.get(how, 0) + 1
        if self.diary is not None:
            self.diary.batch(record)
        if self.trace is not None:
            self.trace(record)
        if self.sampler is not None:
            self.sampler.batch(record)
        if len(self._received) >= FOLD_AT:
            self.fold()

    def refused(
        self, reason: str, requests: int = 1, request: InferRequest | None = None, record: BatchRecord | None = None
    ) -> None:
        """See `observer.ModelObserver`."""
        self._refused[reason] += requests
        if self.sampler is not None and request is not None:
            self.sampler.failed(request, reason, record)
        if self.diary is not None and request is not None:
            self.diary.ended(request, reason)

    def unfit(self, sink: ReplySink, received: int, reason: str) -> None:
        """A request for the model ended before it was one: it does not fit its signature, say."""
        self._refused[reason] += 1
        if self.sampler is not None:
            self.sampler.unfit(sink, received, reason)

    def trace_id(self, request: InferRequest) -> str:
        """See `observer.ModelObserver`."""
        return "" if self.sampler is None else self.sampler.name(request)

    def wasted(self, rows: int, execute_ns: int) -> None:
        """Rows that were computed although their caller had gone away, and the compute time that they took."""
        self._wasted_rows += rows
        self._wasted_ns += execute_ns

    def cache_hit(self, request_ns: int, lookup_ns: int, request: InferRequest | None = None) -> None:
        """A request was answered from the response cache: in so much time, of which so much for the lookup."""
        self._hits.append(request_ns)
        if self.sampler is not None and request is not None:
            self.sampler.hit(request)
        self._hit_lookups = Duration(self._hit_lookups.count + 1, self._hit_lookups.ns + lookup_ns)
        if len(self._hits) >= FOLD_AT:
            self.fold()

    def cache_miss(self, lookup_ns: int) -> None:
        """A request was looked up in vain."""
        self._misses = Duration(self._misses.count + 1, self._misses.ns + lookup_ns)

    def padded(self, elements: int, padding: int) -> None:
        """A batch of a model with buckets was run on so many input elements of its callers, and so many of padding."""
        self._elements += elements
        self._padding += padding

    def rule_broken(self, name: str, rule: str, policy: str, requests: int) -> None:
        """Requests broke a rule for an input."""
        self._rules[name, rule, policy] += requests

    def sequences_expired(self, sequences: int) -> None:
        """Sequences are over because no request of theirs came for too long."""
        self._expired_sequences += sequences

    def fell_back(self, backend: str, to: str, reason: str) -> None:
        """A backend of the model's chain does not run it, now or at all: another is taken, or tried."""
        self._fallbacks[backend, to, reason] += 1

    def instances_lost(self, instances: int) -> None:
        """Instances cannot be used any more."""
        self._instances_lost += instances

    def rerun(self, requests: int) -> None:
        """Requests wait again because the instance that ran them was lost."""
        self._reruns += requests

    def loaded(self, seconds: float, resources: Resources = no_resources) -> None:
        """The version has become ready; loading and warming it took this long, and it takes `resources`."""
        self._load_seconds = seconds
        self._resources = resources

    def statistics(self) -> Statistics:
        """Everything until now, as ModelStatistics reports it."""
        self.fold()
        phases = self._phases
        return Statistics(
            last_inference_ms=self._last_ms,
            inference_count=self._rows,
            execution_count=sum(executions[0] for executions in self._executions.values()),
            success=self._request.duration,
            fail=Duration(self._refused.total()),
            queue=Duration(self._request.count, phases["queue"].total),
            compute_input=phases["batch"].duration,
            compute_infer=phases["execute"].duration,
            compute_output=phases["encode"].duration,
            cache_hit=self._hit_lookups,
            cache_miss=self._misses,
            batches=[
                BatchStatistics(
                    size, Duration(count, batch_ns), Duration(count, execute_ns), Duration(count, encode_ns)
                )
                for size, (count, batch_ns, execute_ns, encode_ns) in sorted(self._executions.items())
            ],
        )

    def read(self) -> Reading:
        """Everything until now, as a copy that later batches leave alone."""
        memory, nodes = self._resources()
        return Reading(
            model=self.model,
            version=self.version,
            statistics=self.statistics(),
            request=self._request.copy(),
            phases={phase: histogram.copy() for phase, histogram in self._phases.items()},
            refused=dict(self._refused),
            late=self._late,
            closed=dict(self._closed),
            queue=self.queue_depth(),
            wait_ns=self.wait_ns(),
            sequences=None if self.sequences is None else SequenceCounts(*self.sequences(), self._expired_sequences),
            wasted_rows=self._wasted_rows,
            wasted_ns=self._wasted_ns,
            elements=self._elements,
            padding=self._padding,
            rules=dict(self._rules),
            load_seconds=self._load_seconds,
            instances=self.instances(),
            fallbacks=dict(self._fallbacks),
            instances_lost=self._instances_lost,
            reruns=self._reruns,
            memory=dict(memory),
            nodes=dict(nodes),
            busy=dict(self._busy),
            exemplars={} if self.sampler is None else dict(self.sampler.exemplars),
        )

    def fold(self) -> None:
        """Moves what is pending into the counts.

        Raises ValueError if a record's columns were of different lengths; what was pending is then lost, so that the
        next fold works again.
        """
        if self._hits:
            hits, self._hits = self._hits, []
            self._request.add(_int64s(hits))
        if not self._batches:
            return
        columns = (self._received, self._decoded, self._admitted)
        batches = self._batches
        self._received, self._decoded, self._admitted, self._batches = [], [], [], []
        received, decoded, admitted = map(_int64s, columns)
        requests, rows, instances, batched, started, finished, encoded = (
            _int64s(batches).reshape(-1, BATCH_COLUMNS).T.copy()
        )
        if not len(received) == len(decoded) == len(admitted) == requests.sum():
            raise ValueError(
                f"columns of {len(received)}, {len(decoded)}, {len(admitted)} for {requests.sum()} requests"
            )
        decode, admit = decoded - received, admitted - decoded
        queue, whole = batched.repeat(requests) - admitted, encoded.repeat(requests) - received
        batch, execute, encode = started - batched, finished - started, encoded - finished

        phases = self._phases
        phases["decode"].add(decode)
        phases["admit"].add(admit)
        phases["queue"].add(queue)
        phases["batch"].add_weighted(batch, requests)
        phases["execute"].add_weighted(execute, requests)
        phases["encode"].add_weighted(encode, requests)
        self._request.add(whole)
        self._count_executions(rows, (batch, execute, encode))
        for instance in np.unique(instances).tolist():
            self._busy[instance] += int(execute[instances == instance].sum())
        self._last_ms = self._wall_ms() - (self._clock() - int(encoded.max())) // 1_000_000

    def _count_executions(self, rows: Int64s, phases: tuple[Int64s, ...]) -> None:
        """Adds each batch to the executions of its size."""
        sizes, index = np.unique(rows, return_inverse=True)
        # Sums of one fold stay below 2**53 ns, 104 days: the doubles that bincount adds in are exact.
        columns = [np.bincount(index), *(np.bincount(index, ns).astype(np.int64) for ns in phases)]
        for size, *more in zip(sizes.tolist(), *(column.tolist() for column in columns), strict=True):
            known = self._executions.get(size, (0, 0, 0, 0))
            self._executions[size] = [a + b for a, b in zip(known, more, strict=True)]


def _int64s(values: Sequence[int]) -> Int64s:
    return np.fromiter(values, np.int64, len(values))
