"""The exposition, read back with prometheus_client's own parsers."""

import re

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from headrace import errors
from headrace.messages import PHASES
from headrace.telemetry.metrics import (
    FAILURE_REASON_OF,
    FAILURE_REASONS,
    Metrics,
)
from headrace.telemetry.observer import BatchRecord
from headrace.telemetry.server_metrics import ServerMetrics, register_process_metrics

US, MS = 1_000, 1_000_000


def record(requests=2, rows=3, **changes):
    """Phases of 10 us, 20 us, 3 ms, 40 us, 5 ms, 60 us: 8.13 ms in all."""
    fields = {
        "received": [0] * requests,
        "decoded": [10 * US] * requests,
        "admitted": [30 * US] * requests,
        "rows": [rows] * requests,
        "batched": 3030 * US,
        "started": 3070 * US,
        "finished": 8070 * US,
        "encoded": 8130 * US,
        "batch_rows": requests * rows,
        "close_reason": "full",
        "instance": 1,
    }
    return BatchRecord(**{**fields, **changes})


@pytest.fixture
def registry():
    return CollectorRegistry()


@pytest.fixture
def metrics(registry):
    return Metrics(registry)


def samples(registry, **labels):
    """Every sample of a text-format scrape: {(name, other labels): value}, where the given labels match."""
    found = {}
    for family in parse_text(generate_latest(registry).decode()):
        for sample in family.samples:
            if labels.items() <= sample.labels.items():
                rest = tuple(sorted((k, v) for k, v in sample.labels.items() if k not in labels))
                assert (sample.name, rest) not in found
                found[sample.name, rest] = sample.value
    return found


def test_tritons_names_and_units_are_exact(registry, metrics):
    model = metrics.model("m", "2", lambda: (4, 9))
    model.loaded(1.25)
    model.batch(record())
    found = samples(registry, model="m", version="2")
    expected = {
        "nv_inference_request_success": 2,
        "nv_inference_count": 6,
        "nv_inference_exec_count": 1,
        "nv_inference_request_duration_us": 2 * 8130,
        "nv_inference_queue_duration_us": 2 * 3000,
        "nv_inference_compute_input_duration_us": 2 * 40,
        "nv_inference_compute_infer_duration_us": 2 * 5000,
        "nv_inference_compute_output_duration_us": 2 * 60,
        "nv_inference_pending_request_count": 4,
        "nv_model_load_duration_secs": 1.25,
    }
    assert {name: found.get((name, ())) for name in expected} == expected
    for name, ns in [
        ("request", 8130),
        ("queue", 3000),
        ("compute_input", 40),
        ("compute_infer", 5000),
        ("compute_output", 60),
    ]:
        assert found[f"nv_inference_{name}_duration_histogram_us_sum", ()] == 2 * ns
        assert found[f"nv_inference_{name}_duration_histogram_us_count", ()] == 2


def test_what_a_model_takes_of_devices_is_asked_for_at_each_scrape(registry, metrics):
    model = metrics.model("m", "1", lambda: (0, 0))
    memory = {"cuda:0": 10, "cuda:1": 20}
    model.loaded(1.0, lambda: (memory, {"CUDAExecutionProvider": 7}))
    other = metrics.model("n", "1", lambda: (0, 0))
    other.loaded(1.0)

    def found(name):
        return {rest: value for (family, rest), value in samples(registry, version="1").items() if family == name}

    assert found("headrace_model_memory_bytes") == {
        (("device", "cuda:0"), ("model", "m")): 10,
        (("device", "cuda:1"), ("model", "m")): 20,
    }
    assert found("headrace_model_nodes") == {(("model", "m"), ("provider", "CUDAExecutionProvider")): 7}
    del memory["cuda:1"]
    memory["cuda:0"] = 0
    assert found("headrace_model_memory_bytes") == {(("device", "cuda:0"), ("model", "m")): 0}


def test_the_four_failure_reasons_exist_from_the_start(registry, metrics):
    model = metrics.model("m", "1", lambda: (0, 0))

    def failures():
        return {
            dict(rest)["reason"]: value
            for (name, rest), value in samples(registry, model="m", version="1").items()
            if name == "nv_inference_request_failure"
        }

    assert failures() == {"REJECTED": 0, "CANCELED": 0, "BACKEND": 0, "OTHER": 0}
    for reason in ("queue_full", "deadline_exceeded", "cancelled", "backend_failed", "model_not_ready"):
        model.refused(reason, 2)
    assert failures() == {"REJECTED": 4, "CANCELED": 2, "BACKEND": 2, "OTHER": 2}


def test_every_reason_in_the_map_is_that_of_an_error():
    reasons = {cls.reason for cls in vars(errors).values() if isinstance(cls, type) and hasattr(cls, "reason")}
    assert set(FAILURE_REASON_OF) <= reasons
    assert set(FAILURE_REASON_OF.values()) <= set(FAILURE_REASONS)


def test_phases_add_up_and_lie_in_the_right_buckets(registry, metrics):
    metrics.model("m", "1", lambda: (0, 0)).batch(record())
    found = samples(registry, model="m", version="1")
    seconds = {phase: found["headrace_request_phase_seconds_sum", (("phase", phase),)] for phase in PHASES}
    assert seconds == pytest.approx(
        {"decode": 2e-5, "admit": 4e-5, "queue": 6e-3, "batch": 8e-5, "execute": 1e-2, "encode": 1.2e-4}
    )
    assert sum(seconds.values()) == pytest.approx(found["headrace_request_seconds_sum", ()])

    def bucket(le, phase):
        return found["headrace_request_phase_seconds_bucket", (("le", le), ("phase", phase))]

    assert [bucket(le, "execute") for le in ("0.002", "0.005", "10.0", "+Inf")] == [0, 2, 2, 2]
    assert [bucket(le, "decode") for le in ("5e-06", "1e-05", "2e-05")] == [0, 2, 2]
    whole = [found["headrace_request_seconds_bucket", (("le", le),)] for le in ("0.007", "0.01", "+Inf")]
    assert whole == [0, 2, 2]


def test_batches_by_size_reason_and_instance(registry, metrics):
    model = metrics.model("m", "1", lambda: (2, 5))
    model.batch(record(late=2))
    model.batch(record(instance=0, rows=4))
    model.batch(record(requests=1, rows=2000, close_reason="idle"))
    model.wasted(3, 5 * MS)
    model.refused("queue_full")
    found = samples(registry, model="m", version="1")
    rows = {dict(rest)["le"]: v for (name, rest), v in found.items() if name == "headrace_batch_rows_bucket"}
    assert (rows["4.0"], rows["8.0"], rows["1024.0"], rows["+Inf"]) == (0, 2, 2, 3)
    assert found["headrace_batch_rows_sum", ()] == 2014
    assert {rest: v for (name, rest), v in found.items() if name == "headrace_batches_total"} == {
        (("close_reason", "full"), ("instance", "0")): 1,
        (("close_reason", "full"), ("instance", "1")): 1,
        (("close_reason", "idle"), ("instance", "1")): 1,
    }
    assert found["headrace_refused_total", (("reason", "queue_full"),)] == 1
    assert found["headrace_late_requests_total", ()] == 2
    assert found["headrace_wasted_rows_total", ()] == 3
    assert found["headrace_wasted_seconds_total", ()] == pytest.approx(0.005)
    assert (found["headrace_queue_requests", ()], found["headrace_queue_rows", ()]) == (2, 5)


def test_instances_are_busy_while_they_run_batches(registry, metrics):
    model = metrics.model("m", "1", lambda: (0, 0))
    for instance in (0, 2, 0):
        model.batch(record(instance=instance))
    found = samples(registry, model="m", version="1")
    busy = {
        dict(rest)["instance"]: v for (name, rest), v in found.items() if name == "headrace_instance_busy_seconds_total"
    }
    assert busy == pytest.approx({"0": 0.010, "2": 0.005})


def test_an_ensemble_has_no_instance_that_could_be_busy(registry, metrics):
    metrics.model("e", "1", lambda: (0, 0)).batch(record(instance=0, close_reason="ensemble"))
    assert not [name for name, _ in samples(registry) if name == "headrace_instance_busy_seconds_total"]


def test_padding_is_counted_for_models_with_buckets_alone(registry, metrics):
    metrics.model("plain", "1", lambda: (0, 0)).batch(record())
    model = metrics.model("m", "1", lambda: (0, 0))
    model.padded(30, 0)
    model.padded(12, 6)
    found = samples(registry, model="m", version="1")
    assert found["headrace_elements_total", ()] == 42
    assert found["headrace_padding_elements_total", ()] == 6
    assert ("headrace_elements_total", ()) not in samples(registry, model="plain")


def test_broken_rules_are_counted_by_what_has_become_of_the_request(registry, metrics):
    model = metrics.model("m", "1", lambda: (0, 0))
    model.rule_broken("x", "range", "reject", 2)
    model.rule_broken("x", "finite", "count", 1)
    labels = {"model": "m", "version": "1", "input": "x"}
    name = "headrace_validation_total"
    assert registry.get_sample_value(name, labels | {"rule": "range", "policy": "reject"}) == 2
    assert registry.get_sample_value(name, labels | {"rule": "finite", "policy": "count"}) == 1


def test_queue_depth_is_pulled_at_scrape_time_until_forgotten(registry, metrics):
    depth, pulled = [1, 2], []

    def queue_depth():
        pulled.append(tuple(depth))
        return tuple(depth)

    metrics.model("m", "1", queue_depth)
    assert pulled == []
    assert samples(registry, model="m")["headrace_queue_rows", (("version", "1"),)] == 2
    depth[:] = [0, 0]
    assert samples(registry, model="m")["headrace_queue_rows", (("version", "1"),)] == 0
    metrics.forget("m", "1")
    assert samples(registry, model="m") == {}
    assert len(pulled) == 2
    metrics.forget("m", "1")  # twice is no error


def test_statistics_are_found_by_name_and_version(metrics):
    model = metrics.model("m", "1", lambda: (0, 0))
    metrics.model("m", "2", lambda: (0, 0))
    model.batch(record())
    assert metrics.recorder("m", "1") is model
    assert metrics.statistics("m", "1").success.count == 2
    assert metrics.statistics("m", "2").success.count == 0
    assert metrics.statistics("m", "3") is None
    assert repr(metrics) == "<Metrics 2 model versions>"


def test_a_version_that_is_loaded_again_goes_on_counting_until_it_is_forgotten(metrics):
    model = metrics.model("m", "1", lambda: (0, 0))
    model.batch(record())
    assert metrics.model("m", "1", lambda: (3, 4)) is model
    assert model.read().queue == (3, 4)
    assert metrics.statistics("m", "1").success.count == 2
    metrics.forget("m", "1")
    metrics.model("m", "1", lambda: (0, 0))
    assert metrics.statistics("m", "1").success.count == 0


def test_one_collection_shows_one_moment(registry, metrics):
    model = metrics.model("m", "1", lambda: (0, 0))
    model.batch(record())
    families = iter(metrics.collect())
    first = next(families)
    model.batch(record())
    counts = {s.name: s.value for family in families for s in family.samples if s.name.endswith("_count")}
    assert (first.name, first.samples[0].value) == ("nv_inference_request_success", 2)
    assert counts["nv_inference_exec_count"] == 1
    assert counts["headrace_request_seconds_count"] == 2


def test_the_predicted_wait_is_asked_for_at_each_scrape(registry, metrics):
    recorder = metrics.model("m", "1", lambda: (0, 0))

    def wait():
        return registry.get_sample_value("headrace_queue_wait_seconds", {"model": "m", "version": "1"})

    assert wait() == 0
    recorder.wait_ns = lambda: 250 * MS
    assert wait() == 0.25


def test_both_formats_are_valid(registry, metrics):
    hostile = 'a"b\\c\nd'
    for name in ("m", hostile):
        model = metrics.model(name, "1", lambda: (0, 0))
        model.batch(record())
        model.refused("queue_full")
    server = ServerMetrics(registry)
    server.protocol_errors["PROTOCOL_ERROR"] += 1
    register_process_metrics(registry)
    families = list(parse_openmetrics(generate_openmetrics(registry).decode()))  # a strict parser
    assert {s.labels["model"] for f in families for s in f.samples if "model" in s.labels} == {"m", hostile}
    assert samples(registry, model=hostile, version="1")["nv_inference_count", ()] == 6
    text = generate_latest(registry).decode()
    assert "# TYPE nv_inference_request_success untyped\n" in text
    assert not re.search(r"nv_\w+_total", text)
    names = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ")]
    assert len(names) == len(set(names))
    assert {"python_gc_collections_total", "process_resident_memory_bytes", "python_info"} <= set(names)


def test_server_wide_counts(registry):
    server = ServerMetrics(registry)
    server.connections_open, server.connections_total = 2, 5
    server.streams_open, server.streams_total = 3, 70
    server.bytes_received += 1000
    server.bytes_sent += 2000
    server.protocol_errors["FRAME_SIZE_ERROR"] += 1
    server.http2_limits.update({"rapid_reset": 3, "streams": 0})
    server.refused["model_not_found"] += 4
    server.http_connections_open, server.http_connections_total = 1, 9
    server.http_requests["infer", 200] += 6
    server.http_requests["/v2", 405] += 1
    assert samples(registry) == {
        ("headrace_connections", ()): 2,
        ("headrace_connections_opened_total", ()): 5,
        ("headrace_streams", ()): 3,
        ("headrace_streams_opened_total", ()): 70,
        ("headrace_received_bytes_total", ()): 1000,
        ("headrace_sent_bytes_total", ()): 2000,
        ("headrace_protocol_errors_total", (("code", "FRAME_SIZE_ERROR"),)): 1,
        ("headrace_http2_limits_total", (("limit", "rapid_reset"),)): 3,
        ("headrace_http2_limits_total", (("limit", "streams"),)): 0,
        ("headrace_unrouted_total", (("reason", "model_not_found"),)): 4,
        ("headrace_http_connections", ()): 1,
        ("headrace_http_connections_opened_total", ()): 9,
        ("headrace_http_requests_total", (("route", "infer"), ("status", "200"))): 6,
        ("headrace_http_requests_total", (("route", "/v2"), ("status", "405"))): 1,
    }
    assert repr(server) == "<ServerMetrics connections=2 streams=3>"


def test_each_version_is_in_one_state(registry):
    server = ServerMetrics(registry)
    known = [("m", "1", "ready"), ("broken", "", "failed")]
    server.model_states = lambda: known

    def states():
        return {rest for (name, rest) in samples(registry) if name == "headrace_model_state"}

    assert states() == {
        (("model", "m"), ("state", "ready"), ("version", "1")),
        (("model", "broken"), ("state", "failed"), ("version", "")),
    }
    known[:] = [("m", "1", "stale")]
    assert states() == {(("model", "m"), ("state", "stale"), ("version", "1"))}


def test_sequences_of_stateful_models_alone(registry, metrics):
    recorder = metrics.model("stateful", "1", lambda: (0, 0))
    metrics.model("plain", "1", lambda: (0, 0))
    counts = [2, 1]
    recorder.sequences = lambda: tuple(counts)
    recorder.sequences_expired(3)
    recorder.sequences_expired(1)
    names = ("headrace_sequences_active", "headrace_sequences_waiting", "headrace_sequences_expired_total")
    for expected in ([2, 1, 4], [0, 0, 4]):
        assert [registry.get_sample_value(name, {"model": "stateful", "version": "1"}) for name in names] == expected
        counts[:] = [0, 0]
    assert registry.get_sample_value(names[0], {"model": "plain", "version": "1"}) is None
    recorder.sequences = None  # loaded again, as a model without sequences
    assert registry.get_sample_value(names[0], {"model": "stateful", "version": "1"}) is None


def test_backends_and_their_instances(registry, metrics):
    recorder = metrics.model("m", "1", lambda: (0, 0))
    metrics.model("ensemble", "1", lambda: (0, 0))
    recorder.instances = lambda: {("fast", "idle"): 0, ("fast", "lost"): 2, ("safe", "idle"): 1, ("safe", "running"): 3}
    recorder.fell_back("fast", "safe", "lost")
    recorder.fell_back("fast", "safe", "lost")
    recorder.fell_back("faster", "fast", "load")
    recorder.instances_lost(2)
    recorder.rerun(5)
    ours = {key: n for key, n in samples(registry, model="m", version="1").items() if "_seconds" not in key[0]}
    assert {key: n for key, n in ours.items() if "backend" in key[0] or "instances" in key[0] or "rerun" in key[0]} == {
        ("headrace_backend_info", (("backend", "safe"),)): 1,
        ("headrace_instances", (("backend", "fast"), ("state", "idle"))): 0,
        ("headrace_instances", (("backend", "fast"), ("state", "lost"))): 2,
        ("headrace_instances", (("backend", "safe"), ("state", "idle"))): 1,
        ("headrace_instances", (("backend", "safe"), ("state", "running"))): 3,
        ("headrace_instances_lost_total", ()): 2,
        ("headrace_rerun_requests_total", ()): 5,
        ("headrace_backend_fallbacks_total", (("from", "fast"), ("reason", "lost"), ("to", "safe"))): 2,
        ("headrace_backend_fallbacks_total", (("from", "faster"), ("reason", "load"), ("to", "fast"))): 1,
    }
    assert not [name for name, _ in samples(registry, model="ensemble") if "instances" in name]
