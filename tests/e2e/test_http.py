"""The HTTP port of a server that serves: health, and metrics that say what ModelStatistics say."""

import json

import pytest
from e2e.calls import SECONDS, failure, floats, request, statistics
from prometheus_client.parser import text_string_to_metric_families


def test_health(server):
    assert server.get_json("/v2/health/live") == (200, {"live": True})
    assert server.get_json("/v2/health/ready") == (200, {"ready": True})


@pytest.mark.parametrize("path", ["/nothing", "/v2/health", "/v2/health/live/", "/v2/models"])
def test_an_unknown_path(server, path):
    status, body = server.get(path)
    assert status == 404
    assert json.loads(body).keys() == {"error"}


def samples(server):
    """{(name, labels without the model's): value} of one model's metrics."""
    text = server.get("/metrics")[1]
    return {
        (
            sample.name,
            *sorted(pair for pair in sample.labels.items() if pair[0] not in ("model", "version")),
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.labels.get("model") == "levels"
    }


def test_metrics_agree_with_statistics(server, stub):
    for rows in (1, 2, 2, 100):
        stub.ModelInfer(request("levels", x=floats(*range(rows))), timeout=SECONDS)
    failure(stub.ModelInfer, request("levels", x=floats(1), parameters={"timeout": 1}))
    stats, found = statistics(stub, "levels"), samples(server)
    success = stats.inference_stats.success
    assert success.count >= 4
    assert found["nv_inference_request_success",] == success.count
    assert found["nv_inference_count",] == stats.inference_count
    assert found["nv_inference_exec_count",] == stats.execution_count
    assert found["nv_inference_request_duration_us",] == success.ns // 1000
    for phase in ("queue", "compute_input", "compute_infer", "compute_output"):
        assert found[f"nv_inference_{phase}_duration_us",] == getattr(stats.inference_stats, phase).ns // 1000
    failures = [value for key, value in found.items() if key[0] == "nv_inference_request_failure"]
    assert len(failures) == 4
    assert sum(failures) == stats.inference_stats.fail.count >= 1
    assert found["nv_inference_pending_request_count",] == 0
    assert found["headrace_request_seconds_count",] == success.count
    assert found["headrace_request_phase_seconds_count", ("phase", "execute")] == success.count
    assert found["headrace_batch_rows_count",] == stats.execution_count
    batches = [value for key, value in found.items() if key[0] == "headrace_batches_total"]
    assert sum(batches) == stats.execution_count
    busy = sum(value for key, value in found.items() if key[0] == "headrace_instance_busy_seconds_total")
    assert busy == pytest.approx(sum(batch.compute_infer.ns for batch in stats.batch_stats) / 1e9)


def test_metrics_of_the_process(server):
    text = server.get("/metrics")[1]
    names = {family.name for family in text_string_to_metric_families(text)}
    assert {"process_resident_memory_bytes", "python_info", "headrace_connections", "headrace_unrouted"} <= names


def test_requests_without_a_model_are_counted(server, stub):
    before = server.metric("headrace_unrouted_total", reason="model_not_found")
    failure(stub.ModelInfer, request("nobody", x=floats(1)))
    assert server.metric("headrace_unrouted_total", reason="model_not_found") == before + 1
