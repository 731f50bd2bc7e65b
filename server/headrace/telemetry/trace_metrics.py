"""What /metrics shows of traces: how many there are, and in which buckets of a histogram."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily
from prometheus_client.samples import Exemplar

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prometheus_client.core import Metric

    from headrace.telemetry.sampling import Exemplar as Traced
    from headrace.telemetry.sampling import TailSampling


def exemplars_of(traced: Mapping[int, Traced]) -> dict[int, Exemplar]:
    """Traced requests in buckets of seconds, as OpenMetrics has them: shown in that format alone."""
    return {
        bucket: Exemplar({"trace_id": f"{one.trace_id:032x}"}, one.ns / 1e9, one.wall_ms / 1e3)
        for bucket, one in traced.items()
    }


def trace_families(sampling: TailSampling) -> Iterator[Metric]:
    """Where traces are exported."""
    traced = CounterMetricFamily(
        "headrace_traced_requests", "Requests whose spans a collector has taken", labels=["cause"]
    )
    for cause, count in sampling.exported.traced.items():
        traced.add_metric([cause], count)
    dropped = CounterMetricFamily(
        "headrace_traces_dropped", "Requests whose spans were to be exported and are not", labels=["reason"]
    )
    for reason, count in sampling.dropped().items():
        dropped.add_metric([reason], count)
    failures = CounterMetricFamily(
        "headrace_trace_export_failures", "Exports of spans that failed", value=sampling.exported.failures
    )
    yield from (traced, dropped, failures)
