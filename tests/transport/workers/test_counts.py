import json

from prometheus_client import CollectorRegistry

from headrace.telemetry.server_metrics import ServerMetrics
from headrace.telemetry.tls import TlsMetrics
from headrace.transport.workers import counts


def test_counts_are_added_once():
    theirs, tls = ServerMetrics(CollectorRegistry()), TlsMetrics(CollectorRegistry())
    ours, our_tls = ServerMetrics(CollectorRegistry()), TlsMetrics(CollectorRegistry())
    ours.streams_total = 100
    before = {}
    for n in (1, 2):
        theirs.streams_total += 5
        theirs.connections_open = n
        theirs.protocol_errors["PROTOCOL_ERROR"] += 1
        theirs.http2_limits["streams"] = 0
        tls.handshakes["grpc", "TLSv1.3"] += 3
        now = json.loads(json.dumps(counts.snapshot(theirs, tls)))
        counts.add(ours, our_tls, before, now)
        before = now
    assert (ours.streams_total, ours.connections_open) == (110, 2)
    assert ours.protocol_errors == {"PROTOCOL_ERROR": 2}
    assert ours.http2_limits == {"streams": 0}
    assert our_tls.handshakes == {("grpc", "TLSv1.3"): 6}
    assert before["cpu_seconds"] > 0
    assert before["resident_bytes"] > 1 << 20

    counts.take_away_open(ours, before)
    assert (ours.streams_total, ours.connections_open) == (110, 0)


def test_without_tls():
    ours = ServerMetrics(CollectorRegistry())
    counts.add(ours, None, {}, counts.snapshot(ServerMetrics(CollectorRegistry()), None))
    counts.take_away_open(ours, {})
    assert ours.connections_open == 0
