"""What /metrics shows of the server as a whole: connections, streams, replies, states of models, and its process."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from headrace.telemetry.metrics import LABELS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from prometheus_client import CollectorRegistry


class ServerMetrics(Collector):
    """What is counted for the server as a whole. Transports add to the plain attributes; a scrape reads them.

    protocol_errors: by error code, such as PROTOCOL_ERROR. http2_limits: what was closed, refused or given up because a
    peer asked too much, by the limit that it met. refused: requests that ended before their model was known,
    by `HeadraceError.reason`. http_requests: replies of the HTTP port, by route and status. Keys become label values:
    they come from fixed sets, never from a client. model_states: asked at a scrape for (model, version, state) of all
    versions that the repository is known to hold.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.connections_open = 0
        self.connections_total = 0
        self.streams_open = 0
        self.streams_total = 0
        self.bytes_received = 0
        self.bytes_sent = 0
        self.protocol_errors: Counter[str] = Counter()
        self.http2_limits: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.http_connections_open = 0
        self.http_connections_total = 0
        self.http_requests: Counter[tuple[str, int]] = Counter()
        self.model_states: Callable[[], Iterable[tuple[str, str, str]]] = tuple
        registry.register(self)

    def __repr__(self) -> str:
        return f"<ServerMetrics connections={self.connections_open} streams={self.streams_open}>"

    def describe(self) -> Iterable[Metric]:
        """Nothing, as in `Metrics`."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All families."""
        states = GaugeMetricFamily(
            "headrace_model_state",
            "1: the version is in this state: loading, ready, stale, unloading, unloaded, failed",
            labels=(*LABELS, "state"),
        )
        for labels in self.model_states():
            states.add_metric(labels, 1)
        yield states
        yield GaugeMetricFamily(
            "headrace_connections", "Connections that are open, on the native transport", self.connections_open
        )
        yield CounterMetricFamily("headrace_connections_opened", "Connections that it accepted", self.connections_total)
        yield GaugeMetricFamily("headrace_streams", "Its streams (calls) that are open", self.streams_open)
        yield CounterMetricFamily("headrace_streams_opened", "Its streams (calls) opened", self.streams_total)
        yield CounterMetricFamily("headrace_received_bytes", "Bytes read from its sockets", self.bytes_received)
        yield CounterMetricFamily("headrace_sent_bytes", "Bytes written to its sockets", self.bytes_sent)
        errors = CounterMetricFamily(
            "headrace_protocol_errors", "Connections ended for a violation, by HTTP/2 error code", labels=["code"]
        )
        for code, count in sorted(self.protocol_errors.items()):
            errors.add_metric([code], count)
        yield errors
        limits = CounterMetricFamily(
            "headrace_http2_limits",
            "Connections, streams and calls that were ended, by the limit that they met",
            labels=["limit"],
        )
        for limit, count in sorted(self.http2_limits.items()):
            limits.add_metric([limit], count)
        yield limits
        refused = CounterMetricFamily(
            "headrace_unrouted", "Requests that ended in an error before their model was known", labels=["reason"]
        )
        for reason, count in sorted(self.refused.items()):
            refused.add_metric([reason], count)
        yield refused
        yield GaugeMetricFamily(
            "headrace_http_connections", "Connections of the HTTP port that are open", self.http_connections_open
        )
        yield CounterMetricFamily(
            "headrace_http_connections_opened", "Connections that it accepted", self.http_connections_total
        )
        requests = CounterMetricFamily(
            "headrace_http_requests",
            "Replies of the HTTP port, by route and status; route `infer` is inference, `none` what has no route",
            labels=["route", "status"],
        )
        for (route, status), count in sorted(self.http_requests.items()):
            requests.add_metric([route, str(status)], count)
        yield requests


def register_process_metrics(registry: CollectorRegistry) -> None:
    """Adds memory, CPU time, open files, the interpreter's version and its garbage collector."""
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
