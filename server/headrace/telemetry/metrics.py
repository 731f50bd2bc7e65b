"""What /metrics shows: the recorded counts as Prometheus families, built when somebody scrapes.

Two sets of names for one set of counts: Triton's `nv_inference_*`, so that its dashboards and autoscalers work, and
`headrace_*`, by phase. Triton's compute_input is our phase batch, compute_infer is execute, compute_output is encode,
queue is queue; decode and admit are in the request's duration alone.

Triton's counters lack the suffix `_total` that OpenMetrics demands of a counter and that prometheus_client adds to
each. They are exposed with the type unknown (`untyped` in the text format), which keeps their names exact and both
formats valid; rate() and increase() do not look at the type.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    UnknownMetricFamily,
)
from prometheus_client.registry import Collector

from headrace.clock import monotonic_ns, wall_ms
from headrace.messages import PHASES
from headrace.telemetry.histograms import Histograms, bound
from headrace.telemetry.recorder import REQUEST_EDGES, Histogram, ModelRecorder, Reading
from headrace.telemetry.sampling import ModelSampler
from headrace.telemetry.trace_metrics import exemplars_of, trace_families
from headrace.telemetry.traces import Tracer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from prometheus_client import CollectorRegistry

    from headrace.clock import Clock
    from headrace.telemetry.observer import QueueDepth
    from headrace.telemetry.sampling import TailSampling
    from headrace.telemetry.statistics import Statistics

LABELS: Final = ("model", "version")

FAILURE_REASONS: Final = ("REJECTED", "CANCELED", "BACKEND", "OTHER")
"""Triton's values of the label `reason`; all four exist from the moment a model is loaded."""

_REJECTIONS = (
    "queue_full",
    "state_full",
    "deadline_unreachable",
    "overloaded",
    "shutting_down",
    "invalid_request",
    "rule_broken",
    "queue_timeout",
    "deadline_exceeded",
)
FAILURE_REASON_OF: Final = {
    **dict.fromkeys(_REJECTIONS, "REJECTED"),
    "cancelled": "CANCELED",
    **dict.fromkeys(("backend_failed", "state_lost"), "BACKEND"),
}
"""Triton's reason by `HeadraceError.reason`; what is not here is OTHER."""

FORESEEN: Final = (*_REJECTIONS, "cancelled", "backend_failed", "internal")
"""Reasons of headrace_refused_total that exist from the start: of a series that appears at its first event, rate() and
increase() do not see that event."""

BATCH_ROWS_EDGES: Final = tuple(2**k for k in range(11))
"""Upper bounds of headrace_batch_rows: the powers of two to 1024."""

_TRITON_COUNTERS: Final[tuple[tuple[str, str, Callable[[Statistics], int]], ...]] = (
    ("nv_inference_request_success", "Requests answered with success", lambda s: s.success.count),
    (
        "nv_inference_count",
        "Rows of the requests answered with success; divided by nv_inference_exec_count, the mean batch",
        lambda s: s.inference_count,
    ),
    ("nv_inference_exec_count", "Batches executed", lambda s: s.execution_count),
    (
        "nv_inference_request_duration_us",
        "Time from receipt to reply, summed over requests answered with success",
        lambda s: _us(s.success.ns),
    ),
    ("nv_inference_queue_duration_us", "Time in the queue, summed over requests that ran", lambda s: _us(s.queue.ns)),
    (
        "nv_inference_compute_input_duration_us",
        "Time in which inputs were prepared, summed over requests that ran",
        lambda s: _us(s.compute_input.ns),
    ),
    (
        "nv_inference_compute_infer_duration_us",
        "Time in which the model ran, summed over requests that ran",
        lambda s: _us(s.compute_infer.ns),
    ),
    (
        "nv_inference_compute_output_duration_us",
        "Time in which outputs were encoded, summed over requests that ran",
        lambda s: _us(s.compute_output.ns),
    ),
)

_CACHE_COUNTERS: Final[tuple[tuple[str, str, Callable[[Statistics], int]], ...]] = (
    ("nv_cache_num_hits_per_model", "Requests answered from the response cache", lambda s: s.cache_hit.count),
    ("nv_cache_num_misses_per_model", "Requests looked up in the response cache in vain", lambda s: s.cache_miss.count),
    ("nv_cache_hit_duration_per_model", "Time of lookups that found a reply", lambda s: _us(s.cache_hit.ns)),
    ("nv_cache_miss_duration_per_model", "Time of lookups that found none", lambda s: _us(s.cache_miss.ns)),
)
"""Of the models that look anything up."""

_TRITON_HISTOGRAMS: Final[tuple[tuple[str, str, Callable[[Reading], Histogram]], ...]] = (
    (
        "nv_inference_request_duration_histogram_us",
        "Time from receipt to reply of requests answered with success",
        lambda r: r.request,
    ),
    ("nv_inference_queue_duration_histogram_us", "Time in the queue", lambda r: r.phases["queue"]),
    (
        "nv_inference_compute_input_duration_histogram_us",
        "Time in which inputs were prepared",
        lambda r: r.phases["batch"],
    ),
    ("nv_inference_compute_infer_duration_histogram_us", "Time in which the model ran", lambda r: r.phases["execute"]),
    (
        "nv_inference_compute_output_duration_histogram_us",
        "Time in which outputs were encoded",
        lambda r: r.phases["encode"],
    ),
)


class Metrics(Collector):
    """The `Observer` behind /metrics and ModelStatistics: one `ModelRecorder` per loaded model version.

    tracer: has them trace requests in the log, if somebody asks for it. sampling: chooses what is exported of them, if
    anything is.

    Registers itself with `registry`. It must be collected on the event loop, which is where batches are recorded; the
    families of one collection show one moment, even if batches go on between them.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        clock: Clock = monotonic_ns,
        wall: Callable[[], int] = wall_ms,
        sampling: TailSampling | None = None,
    ) -> None:
        self.sampling = sampling
        self._clock = clock
        self._wall = wall
        self._models: dict[tuple[str, str], ModelRecorder] = {}
        self.tracer = Tracer()
        registry.register(self)

    def __repr__(self) -> str:
        return f"<Metrics {len(self._models)} model versions>"

    def model(self, name: str, version: str, queue_depth: QueueDepth) -> ModelRecorder:
        """The recorder of a version. One that is loaded again goes on counting: counters only grow while it serves."""
        recorder = self._models.get((name, version))
        if recorder is None:
            recorder = ModelRecorder(name, version, queue_depth, clock=self._clock, wall=self._wall)
            self._models[name, version] = recorder
            if self.sampling is not None:
                recorder.sampler = ModelSampler(self.sampling, name, version, REQUEST_EDGES.tolist())
            self.tracer.attach(recorder)
        else:
            recorder.queue_depth = queue_depth
        return recorder

    def forget(self, name: str, version: str) -> None:
        """Drops all series of the version: a server that loads and unloads for months does not grow."""
        self._models.pop((name, version), None)
        self.tracer.detach(name, version)

    def recorder(self, name: str, version: str) -> ModelRecorder | None:
        """The recorder of a version that is loaded."""
        return self._models.get((name, version))

    def statistics(self, name: str, version: str) -> Statistics | None:
        """Everything that is known of a version that is loaded."""
        recorder = self.recorder(name, version)
        return None if recorder is None else recorder.statistics()

    def describe(self) -> Iterable[Metric]:
        """Nothing: registration shall not look for clashes by collecting."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All families. Each is built when it is asked for, so that a scrape can be spread over turns of the loop."""
        readings = [recorder.read() for _, recorder in sorted(self._models.items())]
        yield from _triton_families(readings)
        yield from _request_families(readings)
        yield from _batch_families(readings)
        yield from _sequence_families(readings)
        yield from _backend_families(readings)
        yield from _device_families(readings)
        if self.sampling is not None:
            yield from trace_families(self.sampling)


def _triton_families(readings: Sequence[Reading]) -> Iterator[Metric]:
    for name, text, value in _TRITON_COUNTERS:
        counter = UnknownMetricFamily(name, text, labels=LABELS)
        for reading in readings:
            counter.add_metric((reading.model, reading.version), value(reading.statistics))
        yield counter
    cached = [
        reading for reading in readings if reading.statistics.cache_hit.count + reading.statistics.cache_miss.count
    ]
    for name, text, value in _CACHE_COUNTERS if cached else ():
        counter = UnknownMetricFamily(name, text, labels=LABELS)
        for reading in cached:
            counter.add_metric((reading.model, reading.version), value(reading.statistics))
        yield counter
    failures = UnknownMetricFamily(
        "nv_inference_request_failure",
        "Requests that ended in an error; reason: REJECTED, CANCELED, BACKEND, OTHER",
        labels=(*LABELS, "reason"),
    )
    pending = GaugeMetricFamily("nv_inference_pending_request_count", "Requests that wait for execution", labels=LABELS)
    load = GaugeMetricFamily("nv_model_load_duration_secs", "Time that loading took", labels=LABELS)
    for reading in readings:
        labels = (reading.model, reading.version)
        by_reason: Counter[str] = Counter()
        for reason, count in reading.refused.items():
            by_reason[FAILURE_REASON_OF.get(reason, "OTHER")] += count
        for reason in FAILURE_REASONS:
            failures.add_metric((*labels, reason), by_reason[reason])
        pending.add_metric(labels, reading.queue[0])
        load.add_metric(labels, reading.load_seconds)
    yield from (failures, pending, load)
    for name, text, histogram_of in _TRITON_HISTOGRAMS:
        histogram = Histograms(name, text, LABELS)
        for reading in readings:
            histogram.add((reading.model, reading.version), histogram_of(reading), 1e3)
        yield histogram


def _request_families(readings: Sequence[Reading]) -> Iterator[Metric]:
    whole = Histograms(
        "headrace_request_seconds",
        "Time from the read of a request to its reply, of requests answered with success, by the cache or by a run",
        labels=LABELS,
    )
    for reading in readings:
        whole.add((reading.model, reading.version), reading.request, 1e9, exemplars_of(reading.exemplars))
    yield whole
    phases = Histograms(
        "headrace_request_phase_seconds",
        "Time in each phase of requests that ran and were answered with success: decode, admit, queue, batch, execute, "
        "encode",
        labels=(*LABELS, "phase"),
    )
    for reading in readings:
        for phase in PHASES:
            phases.add((reading.model, reading.version, phase), reading.phases[phase], 1e9)
    yield phases
    refused = CounterMetricFamily(
        "headrace_refused", "Requests that ended without success, by cause", labels=(*LABELS, "reason")
    )
    late = CounterMetricFamily(
        "headrace_late_requests", "Requests answered with success, but after their deadline", labels=LABELS
    )
    waiting = GaugeMetricFamily("headrace_queue_requests", "Requests that wait for execution", labels=LABELS)
    rows = GaugeMetricFamily("headrace_queue_rows", "Rows that wait for execution", labels=LABELS)
    wait = GaugeMetricFamily(
        "headrace_queue_wait_seconds",
        "Predicted wait of a request that arrives now, behind all that waits: what to scale by",
        labels=LABELS,
    )
    for reading in readings:
        labels = (reading.model, reading.version)
        for reason in sorted({*FORESEEN, *reading.refused}):
            refused.add_metric((*labels, reason), reading.refused.get(reason, 0))
        late.add_metric(labels, reading.late)
        waiting.add_metric(labels, reading.queue[0])
        rows.add_metric(labels, reading.queue[1])
        wait.add_metric(labels, reading.wait_ns / 1e9)
    yield from (refused, late, waiting, rows, wait)
    broken = CounterMetricFamily(
        "headrace_validation",
        "Requests in which an input broke a rule, by what has become of them: reject, clip, count",
        labels=(*LABELS, "input", "rule", "policy"),
    )
    for reading in readings:
        for how, count in sorted(reading.rules.items()):
            broken.add_metric((reading.model, reading.version, *how), count)
    yield broken


def _batch_families(readings: Sequence[Reading]) -> Iterator[Metric]:
    rows = HistogramMetricFamily("headrace_batch_rows", "Rows of the executed batches", labels=LABELS)
    closed = CounterMetricFamily(
        "headrace_batches",
        "Executed batches, by what closed them and who ran them",
        labels=(*LABELS, "close_reason", "instance"),
    )
    busy = CounterMetricFamily(
        "headrace_instance_busy_seconds",
        "Time in which an instance ran batches that were answered; its rate is the share of time, 1 is all of it",
        labels=(*LABELS, "instance"),
    )
    wasted_rows = CounterMetricFamily(
        "headrace_wasted_rows", "Rows computed although their caller had gone away", labels=LABELS
    )
    wasted = CounterMetricFamily("headrace_wasted_seconds", "Compute time of the wasted rows", labels=LABELS)
    elements = CounterMetricFamily(
        "headrace_elements",
        "Elements that callers sent of inputs with buckets, as they ran; masks and lengths not counted",
        labels=LABELS,
    )
    padding = CounterMetricFamily(
        "headrace_padding_elements", "Elements that were added to those to fill buckets", labels=LABELS
    )
    for reading in readings:
        labels = (reading.model, reading.version)
        sizes = [(batch.batch_size, batch.compute_infer.count) for batch in reading.statistics.batches]
        buckets = [(bound(edge), sum(n for size, n in sizes if size <= edge)) for edge in BATCH_ROWS_EDGES]
        buckets.append(("+Inf", reading.statistics.execution_count))
        rows.add_metric(labels, buckets, sum(size * n for size, n in sizes))
        for (reason, instance), count in sorted(reading.closed.items()):
            closed.add_metric((*labels, reason, str(instance)), count)
        for instance, ns in sorted(reading.busy.items()):
            if ("ensemble", instance) not in reading.closed:  # an ensemble has none
                busy.add_metric((*labels, str(instance)), ns / 1e9)
        wasted_rows.add_metric(labels, reading.wasted_rows)
        wasted.add_metric(labels, reading.wasted_ns / 1e9)
        if reading.elements or reading.padding:  # it has buckets
            elements.add_metric(labels, reading.elements)
            padding.add_metric(labels, reading.padding)
    yield from (rows, closed, busy, wasted_rows, wasted, elements, padding)


def _sequence_families(readings: Sequence[Reading]) -> Iterator[Metric]:
    """Of stateful models alone."""
    active = GaugeMetricFamily(
        "headrace_sequences_active", "Sequences of a stateful model that hold a state", labels=LABELS
    )
    waiting = GaugeMetricFamily("headrace_sequences_waiting", "Sequences that wait to become active", labels=LABELS)
    expired = CounterMetricFamily(
        "headrace_sequences_expired", "Sequences that were over because no request came for too long", labels=LABELS
    )
    for reading in readings:
        labels, counts = (reading.model, reading.version), reading.sequences
        if counts is not None:
            active.add_metric(labels, counts.active)
            waiting.add_metric(labels, counts.waiting)
            expired.add_metric(labels, counts.expired)
    yield from (active, waiting, expired)


def _backend_families(readings: Sequence[Reading]) -> Iterator[Metric]:
    """Who runs the models; of ensembles nobody does."""
    info = GaugeMetricFamily("headrace_backend_info", "1: the backend runs the model now", labels=(*LABELS, "backend"))
    instances = GaugeMetricFamily(
        "headrace_instances",
        "Instances, by the backend that has made them and what they do: idle, running, lost",
        labels=(*LABELS, "backend", "state"),
    )
    lost = CounterMetricFamily(
        "headrace_instances_lost", "Instances whose device was lost, or had no memory left", labels=LABELS
    )
    reruns = CounterMetricFamily(
        "headrace_rerun_requests",
        "Requests that waited again because the instance that ran them was lost",
        labels=LABELS,
    )
    fallbacks = CounterMetricFamily(
        "headrace_backend_fallbacks",
        "Backends (from) that another one (to) was taken for, or tried, by reason: fallback.md",
        labels=(*LABELS, "from", "to", "reason"),
    )
    for reading in readings:
        labels = (reading.model, reading.version)
        for backend in sorted({backend for (backend, state), n in reading.instances.items() if n and state != "lost"}):
            info.add_metric((*labels, backend), 1)
        for (backend, state), count in sorted(reading.instances.items()):
            instances.add_metric((*labels, backend, state), count)
        for (backend, to, reason), count in sorted(reading.fallbacks.items()):
            fallbacks.add_metric((*labels, backend, to, reason), count)
        if reading.instances:
            lost.add_metric(labels, reading.instances_lost)
            reruns.add_metric(labels, reading.reruns)
    yield from (info, instances, lost, reruns, fallbacks)


def _device_families(readings: Sequence[Reading]) -> Iterator[Metric]:
    """Of models on devices with memory of their own."""
    memory = GaugeMetricFamily(
        "headrace_model_memory_bytes",
        "Memory of a device, such as cuda:0, that loading a model was measured to take",
        labels=(*LABELS, "device"),
    )
    nodes = GaugeMetricFamily(
        "headrace_model_nodes",
        "Nodes of the graph of a model on GPUs, by the execution provider that runs them, where ONNX Runtime tells",
        labels=(*LABELS, "provider"),
    )
    for reading in readings:
        labels = (reading.model, reading.version)
        for device, nbytes in sorted(reading.memory.items()):
            memory.add_metric((*labels, device), nbytes)
        for provider, count in sorted(reading.nodes.items()):
            nodes.add_metric((*labels, provider), count)
    yield from (memory, nodes)


def _us(ns: int) -> int:
    return ns // 1000
