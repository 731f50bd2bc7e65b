from prometheus_client import CollectorRegistry, generate_latest

from headrace.telemetry.tls import TlsMetrics


def test_what_is_exposed():
    registry = CollectorRegistry()
    metrics = TlsMetrics(registry)
    metrics.handshakes["grpc", "TLSv1.3"] += 2
    metrics.failures["http", "alert"] += 1
    metrics.reloads["failed"] += 1
    metrics.not_after = 1_800_000_000
    lines = [line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")]
    assert lines == [
        'headrace_tls_handshakes_total{port="grpc",version="TLSv1.3"} 2.0',
        'headrace_tls_handshake_failures_total{port="http",reason="alert"} 1.0',
        'headrace_tls_reloads_total{result="done"} 0.0',
        'headrace_tls_reloads_total{result="failed"} 1.0',
        "headrace_tls_certificate_expiry_timestamp_seconds 1.8e+09",
    ]
    assert repr(metrics) == "<TlsMetrics 2 handshakes, 1 failures>"
