"""The queue between the event loop and the exporter's thread; which settings export anything."""

import logging
import socket
import sys
import threading
from types import SimpleNamespace

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from headrace.config import TracingSettings
from headrace.errors import ConfigError
from headrace.telemetry.otlp import TraceExport, open_export

SECONDS = 20


class Sender:
    """What an exporter does, as far as the queue sees it: it can be held, and it can fail."""

    def __init__(self):
        self.got = []
        self.may_go = threading.Event()
        self.may_go.set()
        self.began = threading.Event()
        self.answer = ""

    def __call__(self, traces):
        self.began.set()
        assert self.may_go.wait(SECONDS)
        self.got += traces
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def sender():
    return Sender()


def export(sender, **options):
    made = TraceExport(sender, every_seconds=SECONDS, **options)
    made.start()
    return made


def asked(count):
    return [SimpleNamespace(cause="asked")] * count


def test_what_waits_is_sent_at_the_end(sender):
    made = export(sender)
    assert made.offer(None, asked(1))
    assert made.offer("batch", asked(2))
    made.stop(SECONDS)
    assert [(batch, len(requests)) for batch, requests in sender.got] == [(None, 1), ("batch", 2)]
    assert made.exported.traced == {"head": 0, "asked": 3, "slow": 0, "failed": 0}
    assert not made.offer(None, asked(1))  # nobody would send it


def test_many_are_sent_without_waiting_for_the_time(sender):
    made = export(sender)
    for _ in range(256):
        made.offer(None, asked(1))
    assert sender.began.wait(SECONDS)
    made.stop(SECONDS)
    assert len(sender.got) == 256


def test_a_batch_of_many_is_not_torn_apart(sender):
    made = TraceExport(sender)
    for n in range(5):
        made.offer(n, asked(100))
    made._export()
    assert [batch for batch, _ in sender.got] == [0, 1, 2]


def test_a_sender_that_hangs_costs_what_finds_no_room_and_no_time(sender, caplog):
    sender.may_go.clear()
    sender.answer = "CANCELLED: closed"  # as it ends when it is given up
    made = export(sender, most=262, where="c:4317")
    for _ in range(256):
        made.offer(None, asked(1))
    assert sender.began.wait(SECONDS)
    assert [made.offer(None, asked(1)) for _ in range(10)] == [True] * 6 + [False] * 4
    made.stop(0.01)
    sender.may_go.set()
    made._thread.join(SECONDS)
    assert len(sender.got) == 262
    assert caplog.messages == ["traces of 262 requests were not exported to c:4317 before the end"]


@pytest.mark.parametrize(
    ("answer", "told"),
    [("UNAVAILABLE: not\nthere", "UNAVAILABLE: not there"), (ValueError("x"), "ValueError: x")],
)
def test_failures_are_counted_and_logged_once_in_a_while(sender, caplog, answer, told):
    now = [10**9]
    sender.answer = answer
    made = TraceExport(sender, clock=lambda: now[0], where="c:4317")
    for moment in (1, 2, 62):
        now[0] = moment * 10**9
        made.offer(None, asked(2))
        made._export()
    assert (made.exported.failures, made.exported.lost, sum(made.exported.traced.values())) == (3, 6, 0)
    assert caplog.messages == [
        f"traces could not be exported to c:4317: {told}; of {lost} requests so far, in {exports} exports"
        for lost, exports in ((2, 1), (6, 3))
    ]
    assert made.offer(None, asked(4096))  # what failed takes no room


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_the_cause_is_that_of_the_connection(protocol):
    from headrace.telemetry.senders import sender

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    of_http = ("me:secret@", "/v1/traces?key=secret") if protocol == "http" else ("", "")
    made = sender(protocol, f"http://{of_http[0]}127.0.0.1:{port}{of_http[1]}")
    (made._shutdown_in_progress if protocol == "grpc" else made._client._shutdown_event).set()  # no second try
    request = ExportTraceServiceRequest()
    request.resource_spans.add().scope_spans.add()
    why = made.send(request)
    assert "refused" in why
    assert made.where.startswith(f"127.0.0.1:{port}")
    assert "secret" not in made.where + why
    made.shutdown()


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http", None)
    monkeypatch.delitem(sys.modules, "headrace.telemetry.senders", raising=False)
    with pytest.raises(ConfigError, match=r"is not installed: expected pip install headrace\[otel\]"):
        open_export(TracingSettings(endpoint="http://c:4317"), {}, "1", {})


def test_what_only_the_sdk_finds_wrong_is_told_without_a_traceback(monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "zip")
    with pytest.raises(ConfigError, match="no traces can be exported with the OTEL_EXPORTER_OTLP_"):
        open_export(TracingSettings(endpoint="http://127.0.0.1:9"), {}, "1", {})


def test_the_sdks_own_log_is_left_out():
    open_export(TracingSettings(endpoint="http://127.0.0.1:9"), {}, "1", {})._close()
    assert not logging.getLogger("opentelemetry.exporter").isEnabledFor(logging.ERROR)
