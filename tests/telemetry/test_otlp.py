"""The queue between the event loop and the exporter's thread; which settings export anything."""

import logging
import sys
import threading

import pytest

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
        self.answer = True

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


def test_what_waits_is_sent_at_the_end(sender):
    made = export(sender)
    assert made.offer(None, ["a"])
    assert made.offer("batch", ["b", "c"])
    made.stop(SECONDS)
    assert sender.got == [(None, ["a"]), ("batch", ["b", "c"])]
    assert not made.offer(None, ["d"])  # nobody would send it


def test_many_are_sent_without_waiting_for_the_time(sender):
    made = export(sender)
    for n in range(256):
        made.offer(None, [n])
    assert sender.began.wait(SECONDS)
    made.stop(SECONDS)
    assert len(sender.got) == 256


def test_a_batch_of_many_is_not_torn_apart(sender):
    made = TraceExport(sender)
    for n in range(5):
        made.offer(n, ["a"] * 100)
    made._export()
    assert [batch for batch, _ in sender.got] == [0, 1, 2]


def test_a_sender_that_hangs_costs_what_finds_no_room_and_no_time(sender, caplog):
    sender.may_go.clear()
    made = export(sender, most=262)
    for n in range(256):
        made.offer(None, [n])
    assert sender.began.wait(SECONDS)
    assert [made.offer(None, [n]) for n in range(10)] == [True] * 6 + [False] * 4
    made.stop(0.01)
    assert "262 requests were not exported" in caplog.text
    sender.may_go.set()
    made._thread.join(SECONDS)
    assert len(sender.got) == 262


@pytest.mark.parametrize("answer", [False, ValueError("x")])
def test_failures_are_counted_and_logged_once_in_a_while(sender, caplog, answer):
    now = [10**9]
    sender.answer = answer
    made = TraceExport(sender, clock=lambda: now[0])
    for moment in (1, 2, 62):
        now[0] = moment * 10**9
        made.offer(None, ["a"])
        made._export()
    assert made.failures == 3
    assert len(caplog.records) == 2
    assert made.offer(None, ["a"] * 4096)  # what failed takes no room


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
