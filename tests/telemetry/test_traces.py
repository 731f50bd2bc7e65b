import logging

import pytest
from prometheus_client import CollectorRegistry
from telemetry.test_metrics import record

from headrace.errors import InvalidRequest
from headrace.telemetry.metrics import Metrics
from headrace.telemetry.traces import Tracer, TraceSettings


@pytest.fixture
def metrics():
    return Metrics(CollectorRegistry())


@pytest.fixture
def traces(caplog):
    caplog.set_level(logging.INFO, "headrace.telemetry.traces")
    return lambda: [r for r in caplog.records if r.name == "headrace.telemetry.traces"]


def model(metrics, name="m"):
    return metrics.model(name, "1", lambda: (0, 0))


def refusal(tracer, key, *values):
    with pytest.raises(InvalidRequest) as caught:
        tracer.update({key: values})
    return str(caught.value)


def test_nothing_is_traced_unless_asked_for(metrics, traces):
    recorder = model(metrics)
    recorder.batch(record())
    assert recorder.trace is None
    assert traces() == []


def test_every_nth_request_across_batches(metrics, traces):
    recorder = model(metrics)
    metrics.tracer.update({"trace_level": ["TIMESTAMPS"], "trace_rate": ["3"]})
    for _ in range(6):  # of two requests each
        recorder.batch(record())
    assert len(traces()) == 4


def test_a_trace_tells_the_phases(metrics, traces):
    recorder = model(metrics)
    metrics.tracer.update({"trace_level": ["TIMESTAMPS"], "trace_rate": ["1"]})
    batch = record()
    recorder.batch(batch)
    first = vars(traces()[0])
    phases = [first[f"{name}_us"] for name in ("decode", "admit", "queue", "batch", "execute", "encode")]
    assert sum(phases) == first["total_us"] == (batch.encoded - batch.received[0]) // 1000
    assert (first["model"], first["batch_requests"], first["closed"]) == ("m", 2, batch.close_reason)


def test_so_many_and_no_more(metrics, traces):
    recorder = model(metrics)
    metrics.tracer.update({"trace_level": ["TIMESTAMPS"], "trace_rate": ["1"], "trace_count": ["3"]})
    for _ in range(5):
        recorder.batch(record())
    assert len(traces()) == 3


def test_a_model_may_have_its_own(metrics, traces):
    tracer = metrics.tracer
    one, other = model(metrics, "one"), model(metrics, "other")
    tracer.update({"trace_level": ["TIMESTAMPS"], "trace_rate": ["1"]}, "one")
    assert (one.trace is not None, other.trace) == (True, None)
    assert tracer.settings("one") == TraceSettings("TIMESTAMPS", 1)
    assert tracer.settings() == tracer.settings("other") == TraceSettings()
    tracer.update({"trace_rate": ["7"]})
    assert (tracer.settings("one").rate, tracer.settings("other").rate) == (1, 7)
    tracer.update({"trace_rate": []}, "one")
    assert tracer.settings("one") == TraceSettings("TIMESTAMPS", 7)
    tracer.update({"trace_level": [], "trace_rate": []})
    assert tracer.settings() == TraceSettings()
    assert repr(tracer) == "<Tracer OFF, 1 models of their own>"


def test_models_that_come_later_are_traced_too(metrics):
    metrics.tracer.update({"trace_level": ["TIMESTAMPS"]})
    recorder = model(metrics)
    assert recorder.trace is not None
    metrics.forget("m", "1")
    metrics.tracer.update({"trace_level": ["OFF"]})
    assert recorder.trace is not None  # nobody's any more


def test_what_is_wrong_changes_nothing():
    tracer = Tracer()
    assert refusal(tracer, "trace_level", "TENSORS").endswith("expected one of OFF, TIMESTAMPS")
    assert refusal(tracer, "trace_rate", "0").endswith("is '0', expected an integer of at least 1")
    assert refusal(tracer, "trace_count", "many").endswith("is 'many', expected an integer of at least -1")
    assert refusal(tracer, "trace_count", "9" * 30).endswith("expected an integer of at least -1")
    assert "it cannot be changed" in refusal(tracer, "trace_file", "/etc/passwd")
    assert refusal(tracer, "trace_speed", "1").startswith("unknown trace setting 'trace_speed', expected one of")
    with pytest.raises(InvalidRequest):
        tracer.update({"trace_level": ["TIMESTAMPS"], "trace_rate": ["x"]})
    assert tracer.settings() == TraceSettings()
    tracer.update({"trace_file": [""], "trace_mode": ["log"], "log_frequency": []})
    assert tracer.settings().shown()["trace_mode"] == ["log"]
