"""Writes the tables of docs/metrics.md from the collectors; --check compares and exits 1 where they differ.

Each collector is made as the server makes it, has one of everything recorded, and is collected: names, types, labels
and texts are those of a scrape. The prose around the tables is written by hand, between the marks.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Final, cast

import numpy as np
from prometheus_client import CollectorRegistry
from prometheus_client.registry import Collector

from headrace.clock import monotonic_ns, wall_ms
from headrace.drift.report import Statistics
from headrace.engine.drift_metrics import SCORES, DriftMetrics
from headrace.engine.guard_metrics import GuardMetrics
from headrace.guard.comparison import compare
from headrace.guard.record import Record
from headrace.guard.settings import GuardSettings
from headrace.telemetry.gpu import GpuMetrics, GpuReader
from headrace.telemetry.metrics import Metrics
from headrace.telemetry.observer import BatchRecord
from headrace.telemetry.sampling import TailSampling
from headrace.telemetry.server_metrics import ServerMetrics
from headrace.telemetry.tls import TlsMetrics
from headrace.telemetry.workers import WorkerMetrics

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client.metrics_core import Metric

    from headrace.engine.drifting import DriftMonitoring
    from headrace.engine.guarding import Guards

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"
TABLE_HEAD = "| name | type | unit | labels | |\n|---|---|---|---|---|\n"

UNIT_BY_SUFFIX: Final = {
    "_timestamp_seconds": "Unix time, seconds",
    "_seconds": "seconds",
    "_secs": "seconds",
    "_us": "microseconds",
    "_duration_per_model": "microseconds",
    "_bytes": "bytes",
    "_rows": "rows",
    "_elements": "elements",
    "_batches": "batches",
    "_nodes": "nodes",
    "_state": "0 or 1",
    "_info": "1",
    "_drift_score": "of the score",
    "_drift_psi_noise": "of the score",
    "_drift_share": "0 to 1",
    "_guard_absolute_error": "of the output",
    "_agreement": "0 to 1",
    "_agreement_limit": "0 to 1",
    "_agreement_recent": "0 to 1",
    "_guard_error": "0 to 1",
    "_disagreement": "0 to 1",
    "_alarm": "0 or 1",
    "_instances": "instances",
    "_grpc_workers": "workers",
    "_grpc_workers_wanted": "workers",
    "_restarts": "times",
    "_instances_lost": "instances",
    "_fallbacks": "times",
    "_utilization": "0 to 1",
    "_power_usage": "watts",
    "_power_limit": "watts",
    "_energy_consumption": "joules",
    "_exec_count": "batches",
    "_inference_count": "rows",
    "_requests": "requests",
    "_request_count": "requests",
    "_request_success": "requests",
    "_request_failure": "requests",
    "_hits_per_model": "requests",
    "_misses_per_model": "requests",
    "_refused": "requests",
    "_validation": "requests",
    "_unrouted": "requests",
    "_traces_dropped": "requests",
    "_export_failures": "times",
    "_connections": "connections",
    "_connections_opened": "connections",
    "_streams": "calls",
    "_streams_opened": "calls",
    "_protocol_errors": "connections",
    "_http2_limits": "times",
    "_handshakes": "handshakes",
    "_handshake_failures": "handshakes",
    "_reloads": "times",
    "_sequences_active": "sequences",
    "_sequences_waiting": "sequences",
    "_sequences_expired": "sequences",
}
"""By the end of the name without `_total`; the first that fits."""


def models(registry: CollectorRegistry) -> None:
    """A model to which everything has happened."""
    recorder = Metrics(registry).model("m", "1", lambda: (0, 0))
    recorder.batch(BatchRecord([0], [1], [2], [1], 3, 4, 5, 6, 1, "idle", 0))
    recorder.refused("queue_full")
    recorder.wasted(1, 1)
    recorder.cache_hit(1, 1)
    recorder.cache_miss(1)
    recorder.padded(1, 1)
    recorder.rule_broken("x", "range", "clip", 1)
    recorder.sequences = lambda: (1, 1)
    recorder.instances = lambda: {("onnxruntime", "idle"): 1}
    recorder.fell_back("onnxruntime-cuda", "onnxruntime", "lost")
    recorder.loaded(1.0, lambda: ({"cuda:0": 1}, {"CUDAExecutionProvider": 1}))


def drift(registry: CollectorRegistry) -> None:
    """A watched feature."""
    feature = SimpleNamespace(
        tensor="x", direction="inputs", feature="0", state="alarm", window=Statistics(rows=1),
        psi_noise=1.0, **dict.fromkeys(SCORES, 1.0),
    )  # fmt: skip
    watched = SimpleNamespace(looked_at=1, skipped=1, failed=1)
    model = SimpleNamespace(watched=watched, latest=SimpleNamespace(features=[feature]))
    registry.register(DriftMetrics(cast("DriftMonitoring", SimpleNamespace(models={("m", "1"): model}))))


def guard(registry: CollectorRegistry) -> None:
    """A guarded version that has been moved back."""
    settings = GuardSettings("y", "classes")
    record = Record(settings)
    record.add(compare(settings, np.eye(2), np.eye(2)), [1, 1])
    worker = SimpleNamespace(
        settings=settings, snapshot=record.snapshot(), blind=False, failed=0, cpu_ns=0, skipped=Counter()
    )
    model = SimpleNamespace(worker=worker, proof=None)
    guards = SimpleNamespace(models={("m", "1"): model}, state=lambda name, guard: "watching")
    registry.register(GuardMetrics(cast("Guards", guards)))


def server(registry: CollectorRegistry) -> None:
    """A server to which everything has happened."""
    counts = ServerMetrics(registry)
    for counter in (counts.protocol_errors, counts.http2_limits, counts.refused):
        counter["x"] += 1
    counts.http_requests["infer", 200] += 1
    counts.model_states = lambda: [("m", "1", "ready")]


def traces(registry: CollectorRegistry) -> None:
    """A server that exports traces."""
    sampling = TailSampling(
        lambda batch, requests: True, monotonic_ns, wall_ms, ratio=0, slow_quantile=0.99, per_second=1
    )
    alone = CollectorRegistry()
    families = Metrics(alone, sampling=sampling).collect()
    registry.register(_Some([family for family in families if family.name.startswith("headrace_trace")]))


class _Some(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def tls(registry: CollectorRegistry) -> None:
    """TLS on both ports."""
    counts = TlsMetrics(registry)
    counts.handshakes["grpc", "TLSv1.3"] += 1
    counts.failures["grpc", "alert"] += 1


def workers(registry: CollectorRegistry) -> None:
    """One worker."""
    counts = WorkerMetrics(registry)
    counts.cpu_seconds[0] = 1.0
    counts.memory[0] = 1


def gpus(registry: CollectorRegistry) -> None:
    """One GPU."""
    two = SimpleNamespace(gpu=1, total=1, used=1)
    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetUUID=lambda handle: f"GPU-{handle}",
        nvmlDeviceGetUtilizationRates=lambda handle: two,
        nvmlDeviceGetMemoryInfo=lambda handle: two,
        nvmlDeviceGetPowerUsage=int,
        nvmlDeviceGetEnforcedPowerLimit=int,
        nvmlDeviceGetTotalEnergyConsumption=int,
    )

    async def here(read: Callable[[], list[Metric]]) -> list[Metric]:
        return read()

    asyncio.run(GpuMetrics(registry, here, GpuReader(lambda: nvml)).refresh())


SECTIONS: Final[dict[str, Callable[[CollectorRegistry], None]]] = {
    "models": models,
    "drift": drift,
    "guard": guard,
    "server": server,
    "traces": traces,
    "tls": tls,
    "workers": workers,
    "gpus": gpus,
}
"""The marks of the page, and what fills a registry with the families of each."""


def unit(name: str) -> str:
    """Raises ValueError where the name does not say."""
    found = next((unit for suffix, unit in UNIT_BY_SUFFIX.items() if name.endswith(suffix)), None)
    if found is None:
        raise ValueError(f"the name {name} tells no unit: expected one of the ends in UNIT_BY_SUFFIX")
    return found


def line(family: Metric) -> str:
    """One line of a table. Raises ValueError for a family without a sample, whose labels nobody knows."""
    if not family.samples:
        raise ValueError(f"{family.name} has no sample: have one recorded in {Path(__file__).name}")
    labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
    labels.sort(key=("model", "version").count, reverse=True)
    # Triton's counters have no `_total` and are exposed as untyped
    kind = "counter" if family.type == "unknown" else family.type
    name = f"{family.name}_total" if family.type == "counter" else family.name
    cells = (f"`{name}`", kind, unit(family.name), ", ".join(f"`{label}`" for label in labels), family.documentation)
    return "".join(f"| {cell} " if cell else "| " for cell in cells) + "|\n"


def table(fill: Callable[[CollectorRegistry], None]) -> str:
    """The table of a section."""
    registry = CollectorRegistry()
    fill(registry)
    return TABLE_HEAD + "".join(map(line, registry.collect()))


def page(before: str) -> str:
    """The page with its tables written anew. Raises ValueError where a section's marks are missing."""
    for name, fill in SECTIONS.items():
        marks = re.compile(rf"(<!-- {name}: .*?-->\n).*?(<!-- end -->\n)", re.DOTALL)
        before, count = marks.subn(lambda found, fill=fill: found[1] + table(fill) + found[2], before)  # type: ignore[misc]
        if count != 1:
            raise ValueError(f"{PAGE.name} has {count} tables `{name}`, expected 1")
    return before


def main() -> int:
    """Writes the page, or compares it."""
    before = PAGE.read_text(encoding="utf-8")
    after = page(before)
    if "--check" in sys.argv[1:]:
        return int(after != before)
    PAGE.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
