"""What /metrics shows of worker processes for gRPC's connections: how many there are, and what each uses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric


class WorkerMetrics(Collector):
    """Added to by the transport, read by a scrape.

    wanted: workers that there should be. ready: those that take connections, and respond. restarts: workers that were
    started in the place of others, whether they got ready or not. cpu_seconds, memory: by the place of the worker, from
    0 on; the former of all that have been in that place.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.wanted = 0
        self.ready = 0
        self.restarts = 0
        self.cpu_seconds: dict[int, float] = {}
        self.memory: dict[int, int] = {}
        registry.register(self)

    def __repr__(self) -> str:
        return f"<WorkerMetrics {self.ready} ready, {self.restarts} restarts>"

    def describe(self) -> Iterable[Metric]:
        """Nothing, as in `Metrics`."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All families."""
        yield GaugeMetricFamily(
            "headrace_grpc_workers", "Worker processes for gRPC that take connections, and respond", self.ready
        )
        yield GaugeMetricFamily("headrace_grpc_workers_wanted", "Of them, those that there should be", self.wanted)
        yield CounterMetricFamily(
            "headrace_grpc_worker_restarts", "Starts of one in the place of another that had ended", self.restarts
        )
        cpu = CounterMetricFamily(
            "headrace_grpc_worker_cpu_seconds", "Processor time of each, user and system", labels=["worker"]
        )
        for place, seconds in sorted(self.cpu_seconds.items()):
            cpu.add_metric([str(place)], seconds)
        yield cpu
        memory = GaugeMetricFamily(
            "headrace_grpc_worker_resident_memory_bytes",
            "Memory of each, with what it shares with the server's process",
            labels=["worker"],
        )
        for place, octets in sorted(self.memory.items()):
            memory.add_metric([str(place)], octets)
        yield memory
