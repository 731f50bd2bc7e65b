"""Traces end to end: real clients bring theirs, and a real OTLP receiver gets the spans, on both transports."""

import grpc
import httpx
import numpy as np
import pytest
from e2e.calls import SECONDS, floats, request
from e2e.collector import Collector, attributes
from e2e.onnx_models import identity, pick, write
from e2e.rest_calls import ask, infer
from e2e.server_process import Server, eventually, plain_environment
from opentelemetry.instrumentation.grpc import client_interceptor
from opentelemetry.instrumentation.grpc.grpcext import intercept_channel
from opentelemetry.sdk.trace import TracerProvider
from tritonclient.grpc import service_pb2_grpc

STAGES = {"decode", "admit", "queue", "batch", "execute", "encode"}
SERVER, INTERNAL = 2, 1
ERROR = 2


@pytest.fixture(scope="module")
def collector():
    with Collector() as collector:
        yield collector


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    root = tmp_path_factory.mktemp("traced")
    write(root, "echo_fp32", identity("FP32", "N", 4))
    write(root, "pick", pick())
    (root / "picks" / "1").mkdir(parents=True)
    (root / "picks" / "model.toml").write_text(
        '[[ensemble.steps]]\nmodel = "pick"\ninputs = {index = "index"}\noutputs = {value = "value"}\n'
    )
    write(root, "kept", identity("FP32", "N", 4), "response_cache = true")
    write(root, "checked", identity("FP32", "N", 4), "max_batch = 2\n[inputs.x]\nmax = 4")
    return root


@pytest.fixture(scope="module")
def traced(transport, repository, collector):
    """A server that traces what is sampled by callers, asked for, or fails, and nothing else."""
    with Server(
        repository, "--transport", transport, "--tracing-endpoint", collector.grpc, "--tracing-ratio", 0,
        "--response-cache-bytes", 1 << 20,
    ) as server:  # fmt: skip
        yield server
        assert server.stop() == 0, server.log
        assert "an observer failed" not in server.log


@pytest.fixture
def calls(traced):
    with grpc.insecure_channel(traced.address) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def parent(number, flags="01"):
    return f"00-{number:032x}-{number + 1:016x}-{flags}"


def one(model="echo_fp32", **more):
    return request(model, x=floats([1, 2, 3, 4]), **more)


def test_a_sampled_call_is_a_server_span_with_its_stages_and_its_batch(calls, traced, collector):
    number = 0xA11CE0 + (traced.transport == "native")
    calls.ModelInfer(one(), metadata=[("traceparent", parent(number)), ("tracestate", "v=1")], timeout=SECONDS)
    spans = collector.trace(f"{number:032x}", 7)
    server = spans.pop("inference.GRPCInferenceService/ModelInfer")
    assert server.parent_span_id.hex() == f"{number + 1:016x}"
    assert server.kind == SERVER
    assert server.trace_state == "v=1"
    assert server.status.code == 0
    said = attributes(server)
    assert said["rpc.system.name"] == "grpc"
    assert said["rpc.response.status_code"] == "OK"
    assert said["headrace.model.name"] == "echo_fp32"
    assert said["headrace.sampled_for"] == "head"
    assert set(spans) == STAGES
    for span in spans.values():
        assert span.parent_span_id == server.span_id
        assert server.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= server.end_time_unix_nano
    batch = collector.linked(server)
    assert batch.trace_id != server.trace_id
    assert spans["execute"].links[0].span_id == batch.span_id
    assert attributes(batch)["headrace.batch.rows"] == 1
    assert attributes(batch)["headrace.batch.close_reason"] == "idle"
    assert attributes(batch)["headrace.batch.predicted_us"] >= 0
    assert collector.resources[-1]["service.name"] == "headrace"


def test_many_calls_with_traces_and_deadlines_of_their_own(calls, traced, collector):
    base = 0xB0B000 + 0x1000 * (traced.transport == "native")
    futures = [
        calls.ModelInfer.future(one(), metadata=[("traceparent", parent(base + n))], timeout=SECONDS + n / 100)
        for n in range(20)
    ]
    for future in futures:
        future.result()
    for n in range(20):
        server = collector.trace(f"{base + n:032x}", 7)["inference.GRPCInferenceService/ModelInfer"]
        assert server.parent_span_id.hex() == f"{base + n + 1:016x}"


def test_a_stream_is_a_server_span_for_each_request(calls, traced, collector):
    number = 0x57EA0 + (traced.transport == "native")
    replies = calls.ModelStreamInfer(iter([one(), one()]), metadata=[("traceparent", parent(number))], timeout=SECONDS)
    assert len(list(replies)) == 2
    collector.trace(f"{number:032x}", 14)
    names = [span.name for span in collector.spans if span.trace_id.hex() == f"{number:032x}"]
    assert names.count("inference.GRPCInferenceService/ModelStreamInfer") == 2


def test_what_its_caller_does_not_sample_is_not_exported(calls, traced, collector):
    number = 0x0FF00 + (traced.transport == "native")
    calls.ModelInfer(one(), metadata=[("traceparent", parent(number, "00"))], timeout=SECONDS)
    calls.ModelInfer(one(), timeout=SECONDS)
    calls.ModelInfer(one(), metadata=[("traceparent", parent(number + 16))], timeout=SECONDS)
    collector.trace(f"{number + 16:032x}", 7)
    assert not [span for span in collector.spans if span.trace_id.hex() == f"{number:032x}"]


def test_a_failure_is_traced_even_if_its_caller_does_not_sample(calls, traced, collector):
    number = 0xFA11 + (traced.transport == "native")
    with pytest.raises(grpc.RpcError):
        calls.ModelInfer(one("no_such_model"), metadata=[("traceparent", parent(number, "00"))], timeout=SECONDS)
    spans = collector.trace(f"{number:032x}", 2)
    assert spans.keys() == {"inference.GRPCInferenceService/ModelInfer", "decode"}  # which is where it ended
    span = spans["inference.GRPCInferenceService/ModelInfer"]
    said = attributes(span)
    assert said["error.type"] == "model_not_found"
    assert said["rpc.response.status_code"] == "NOT_FOUND"
    assert span.status.code == 0  # of the caller, by the conventions for gRPC


def test_a_model_that_fails_is_an_error_and_the_log_has_its_trace(calls, traced, collector):
    number = 0xDEAD0 + (traced.transport == "native")
    with pytest.raises(grpc.RpcError):
        calls.ModelInfer(
            request("pick", index=np.array([[13]])), metadata=[("traceparent", parent(number))], timeout=SECONDS
        )
    spans = collector.trace(f"{number:032x}", 6)
    span = spans.pop("inference.GRPCInferenceService/ModelInfer")
    assert spans.keys() == STAGES - {"encode"}  # it ended while the model ran
    batch = collector.linked(span)
    assert (batch.status.code, spans["execute"].links[0].span_id) == (ERROR, batch.span_id)
    assert span.status.code == ERROR
    assert attributes(span)["rpc.response.status_code"] == "INTERNAL"
    assert f"trace_id={number:032x}" in traced.log


def test_an_ensemble_whose_step_fails_ends_while_it_runs(calls, traced, collector):
    number = 0xE5B00 + 2 * (traced.transport == "native")
    with pytest.raises(grpc.RpcError):
        calls.ModelInfer(
            request("picks", index=np.array([[13]])), metadata=[("traceparent", parent(number))], timeout=SECONDS
        )
    collector.trace(f"{number:032x}", 12)  # its own, and those of the step
    spans = [span for span in collector.spans if span.trace_id.hex() == f"{number:032x}"]
    (server,) = [span for span in spans if span.kind == SERVER]
    stages = {span.name for span in spans if span.parent_span_id == server.span_id and span.name in STAGES}
    assert stages == STAGES - {"encode"}


def test_a_request_that_breaks_a_rule_is_a_failure_as_well(calls, traced, collector):
    number = 0xFA15E + 2 * (traced.transport == "native")
    with pytest.raises(grpc.RpcError):
        calls.ModelInfer(
            request("checked", x=floats([1, 2, 3, 5])), metadata=[("traceparent", parent(number))], timeout=SECONDS
        )
    span = collector.trace(f"{number:032x}", 2)["inference.GRPCInferenceService/ModelInfer"]
    assert attributes(span)["error.type"] == "rule_broken"
    assert attributes(span)["headrace.model.name"] == "checked"


def test_a_request_that_is_split_is_one_span(calls, traced, collector):
    number = 0x5B117 + 2 * (traced.transport == "native")
    rows = np.ones((5, 4), np.float32)  # three batches of at most two
    calls.ModelInfer(request("checked", x=rows), metadata=[("traceparent", parent(number))], timeout=SECONDS)
    span = collector.trace(f"{number:032x}", 7)["inference.GRPCInferenceService/ModelInfer"]
    assert attributes(span)["headrace.rows"] == 5
    assert "an observer failed" not in traced.log


def test_a_reply_with_its_timing_names_its_trace(calls, collector):
    reply = calls.ModelInfer(one(parameters={"headrace_timing": True}), timeout=SECONDS)
    trace_id = reply.parameters["headrace_trace_id"].string_param
    server = collector.trace(trace_id, 7)["inference.GRPCInferenceService/ModelInfer"]
    assert attributes(server)["headrace.sampled_for"] == "asked"
    assert not server.parent_span_id


HEADER = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}


def test_an_answer_from_the_cache_is_a_server_span_without_a_batch(calls, traced, collector):
    calls.ModelInfer(one("kept"), timeout=SECONDS)
    number = 0xCACE0 + (traced.transport == "native")
    asks = one("kept", parameters={"headrace_timing": True})
    reply = calls.ModelInfer(asks, metadata=[("traceparent", parent(number, "00"))], timeout=SECONDS)
    assert reply.parameters["headrace_close_reason"].string_param == "cached"
    assert reply.parameters["headrace_trace_id"].string_param == f"{number:032x}"
    spans = collector.trace(f"{number:032x}", 3)
    said = attributes(spans.pop("inference.GRPCInferenceService/ModelInfer"))
    assert (said["headrace.cached"], said["headrace.sampled_for"]) == (True, "asked")
    assert "headrace.batch.rows" not in said
    assert set(spans) == {"decode", "admit"}


def test_http_requests_are_told_apart_by_their_traces(traced, collector):
    base = 0x177000 + 0x1000 * (traced.transport == "native")
    with httpx.Client(base_url=traced.http) as client:
        for n in range(5):
            reply = client.post(
                "/v2/models/echo_fp32/infer",
                json=HEADER,
                headers={"traceparent": parent(base + n), "tracestate": "a=b"},
            )
            assert reply.status_code == 200
    for n in range(5):
        server = collector.trace(f"{base + n:032x}", 7)["POST /v2/models/{model_name}/infer"]
        assert server.parent_span_id.hex() == f"{base + n + 1:016x}"
        assert server.trace_state == "a=b"
        said = attributes(server)
        assert said["http.response.status_code"] == 200
        assert (said["url.scheme"], said["url.path"]) == ("http", "/v2/models/echo_fp32/infer")


def test_an_http_request_that_fails(traced, collector):
    number = 0xBAD00 + (traced.transport == "native")
    assert infer(traced, "no_such_model", HEADER, traceparent=parent(number)).status == 404
    span = collector.trace(f"{number:032x}", 2)["POST /v2/models/{model_name}/infer"]
    assert attributes(span)["http.response.status_code"] == 404


def test_opentelemetrys_own_client_is_the_parent(traced, collector):
    provider = TracerProvider()
    with grpc.insecure_channel(traced.address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(intercept_channel(channel, client_interceptor(provider)))
        with provider.get_tracer("test").start_as_current_span("caller") as caller:
            stub.ModelInfer(one(), timeout=SECONDS)
    trace_id = f"{caller.get_span_context().trace_id:032x}"
    server = collector.trace(trace_id, 7)["inference.GRPCInferenceService/ModelInfer"]
    assert server.parent_span_id


def test_metrics_count_traces_and_buckets_name_one(calls, traced):
    calls.ModelInfer(one(parameters={"headrace_timing": True}), timeout=SECONDS)
    assert eventually(lambda: traced.metric("headrace_traced_requests_total", cause="asked") >= 1)
    assert traced.metric("headrace_traces_dropped_total") == 0
    text = ask(traced, "/metrics", accept="application/openmetrics-text; version=1.0.0").body.decode()
    lines = [
        line for line in text.splitlines() if line.startswith("headrace_request_seconds_bucket") and " # {" in line
    ]
    assert any('trace_id="' in line for line in lines)
    assert " # {" not in ask(traced, "/metrics").body.decode()


def test_over_http_and_by_opentelemetrys_variables_and_the_last_ones_are_sent_at_the_end(repository, collector):
    environment = plain_environment(
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.http,
        OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf",
        OTEL_SERVICE_NAME="classifier",
    )
    with Server(repository, environment=environment) as server:
        assert infer(server, "echo_fp32", HEADER, traceparent=parent(0xE4D)).status == 200
        assert server.stop() == 0
    spans = [span for span in collector.spans if span.trace_id.hex() == f"{0xE4D:032x}"]
    assert len(spans) == 7
    assert collector.resources[-1]["service.name"] == "classifier"
    assert "/v1/traces" in collector.paths


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_collector_that_is_gone_costs_traces_and_nothing_else(protocol, repository):
    once = plain_environment(OTEL_EXPORTER_OTLP_TIMEOUT="0.5")  # seconds: no second try
    where = ("--tracing-endpoint", "http://127.0.0.1:9", "--tracing-protocol", protocol)
    with Server(repository, *where, environment=once) as server:
        for _ in range(3):
            assert infer(server, "echo_fp32", HEADER, traceparent=parent(1)).status == 200
        assert eventually(lambda: server.metric("headrace_traces_dropped_total", reason="export") == 3)
        assert server.metric("headrace_traced_requests_total") == 0
        server.signal()
        assert server.wait() == 0
        assert "Traceback" not in server.log
        (line,) = [line for line in server.log.splitlines() if "traces could not be exported" in line]
        assert "127.0.0.1:9" in line
        assert "refused" in line


def test_without_an_endpoint_nothing_is_traced(repository):
    with Server(repository) as server:
        assert infer(server, "echo_fp32", HEADER, traceparent=parent(1)).status == 200
        assert "headrace_traced" not in server.get("/metrics")[1]
        assert eventually(lambda: server.metric("nv_inference_request_success", model="echo_fp32"))
