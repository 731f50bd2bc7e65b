"""What is counted of TLS: handshakes, why they fail, reloads, and when the certificate expires."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric


class TlsMetrics(Collector):
    """Added to by the ports, read by a scrape.

    handshakes: done, by (port, TLS version). failures: by (port, reason). reloads: by result. not_after: when the
    certificate in use expires, in seconds of Unix time.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.handshakes: Counter[tuple[str, str]] = Counter()
        self.failures: Counter[tuple[str, str]] = Counter()
        self.reloads: Counter[str] = Counter(done=0, failed=0)
        self.not_after = 0
        registry.register(self)

    def __repr__(self) -> str:
        return f"<TlsMetrics {self.handshakes.total()} handshakes, {self.failures.total()} failures>"

    def describe(self) -> Iterable[Metric]:
        """Nothing: registration shall not look for clashes by collecting."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All families."""
        done = CounterMetricFamily(
            "headrace_tls_handshakes",
            "TLS handshakes done, by port (grpc, http) and TLS version",
            labels=["port", "version"],
        )
        for labels, count in sorted(self.handshakes.items()):
            done.add_metric(labels, count)
        yield done
        failed = CounterMetricFamily(
            "headrace_tls_handshake_failures",
            "TLS handshakes that failed, by port and cause",
            labels=["port", "reason"],
        )
        for labels, count in sorted(self.failures.items()):
            failed.add_metric(labels, count)
        yield failed
        reloads = CounterMetricFamily(
            "headrace_tls_reloads",
            "Times that the certificate's files were read again, by result: done, failed",
            labels=["result"],
        )
        for result, count in sorted(self.reloads.items()):
            reloads.add_metric([result], count)
        yield reloads
        yield GaugeMetricFamily(
            "headrace_tls_certificate_expiry_timestamp_seconds",
            "When the certificate in use expires, Unix time",
            self.not_after,
        )
