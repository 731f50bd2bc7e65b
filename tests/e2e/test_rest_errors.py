"""The wire contract's table of errors over HTTP, overload, deadlines, clients that go away, and the end."""

import json
import signal
import threading
import time
from contextlib import contextmanager

import grpc
import pytest
from e2e.calls import SECONDS, connect, occupy
from e2e.conftest import shared
from e2e.gated import HELD, let_go, write_gated
from e2e.onnx_models import scale, write, write_slow_repository
from e2e.rest_calls import Raw, ask, infer, octets
from e2e.server_process import Server, eventually
from tritonclient.grpc import service_pb2_grpc
from tritonclient.http import InferenceServerClient
from tritonclient.utils import InferenceServerException

X = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
GOOD = {"inputs": [X]}
A = {"name": "a", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}
B = {"name": "b", "datatype": "INT32", "shape": [1, 3], "data": [1, 2, 3]}


@pytest.fixture(scope="module")
def server(repository):
    yield from shared(repository, "native")


@pytest.fixture(scope="module")
def busy_server(tmp_path_factory):
    """Of models that are busy for as long as a test says."""
    root = tmp_path_factory.mktemp("busy")
    write_slow_repository(root)
    yield from shared(root, "native", "--inline-below-us", 0, "--http-body-timeout-s", 1, "--http-head-timeout-s", 1)


def with_x(**members):
    """A request to echo_fp32 whose input is spoilt."""
    return {"inputs": [{**X, **members}]}


def with_parameter(key, value):
    return {**GOOD, "parameters": {key: value}}


BINARY = {"name": "x", "datatype": "FP32", "shape": [1, 4], "parameters": {"binary_data_size": 16}}
INVALID = [
    ("pair", {"id": "7", "inputs": [A]},
     "[request id: 7] expected 2 inputs but got 1 inputs for model 'pair'. Got input(s) ['a'], but missing required "
     "input(s) ['b']. Please provide all required input(s)."),
    ("echo_fp32", {"inputs": []}, "[request id: <id_unknown>] expected 1 inputs but got 0 inputs for model 'echo_f"),
    ("echo_fp32", with_x(name="z"), "unexpected inference input 'z' for model 'echo_fp32'"),
    ("echo_fp32", {**GOOD, "outputs": [{"name": "z"}]}, "unexpected inference output 'z' for model 'echo_fp32'"),
    ("echo_fp32", {**GOOD, "outputs": [{"name": "y"}] * 2}, "an output is requested twice"),
    ("echo_fp32", {"inputs": [X, X]}, "[request id: <id_unknown>] input 'x' already exists in request"),
    ("echo_fp32", with_x(datatype="FP64"),
     "[request id: <id_unknown>] inference input 'x' data-type is 'FP64', but model 'echo_fp32' expects 'FP32'"),
    ("echo_fp32", with_x(datatype="FLOAT"), "'FLOAT' is not a datatype of the protocol"),
    ("echo_fp32", with_x(shape=[1, 5], data=[0] * 5),
     "[request id: <id_unknown>] unexpected shape for input 'x' for model 'echo_fp32'. Expected [-1,4], got [1,5]."),
    ("echo_fp32", with_x(shape=[4]), "Expected [-1,4], got [4]. NOTE: Setting a non-zero max_batch_size"),
    ("echo_fp32", with_x(shape=[0, 4], data=[]), "Expected [-1,4], got [0,4]."),
    ("fixed", with_x(shape=[3, 2], data=[0] * 6), "Expected [2,3], got [3,2]."),
    ("free", with_x(shape=[-1, -2]), "got [-1,-2]"),
    ("free", with_x(shape=[2**40, 2**40]), "unexpected"),
    ("echo_fp32", with_x(data=None), "unable to find data for input tensor 'x' for model 'echo_fp32' in request."),
    ("echo_fp32", with_x(data=[1, 2, 3]), "has 3 elements in its 'data', but its shape [1, 4] holds 4"),
    ("echo_fp32", with_x(data=[1, 2, 3, "4"]), "element 3 of input 'x' for model 'echo_fp32' is a string, expected a"),
    ("echo_int8", with_x(datatype="INT8", data=[1, 2, 3, 128]), "which INT8 cannot hold"),
    ("echo_bytes", with_x(datatype="BYTES"), "element 0 of input 'x' for model 'echo_bytes' is an integer, expected"),
    ("whole", with_x(shape=[9, 4], data=[0] * 36),
     "[request id: <id_unknown>] inference request batch-size must be <= 8 for 'whole'"),
    ("pair", {"inputs": [{**A, "shape": [2, 2], "data": [0] * 4}, B]},
     "[request id: <id_unknown>] input 'b' batch size does not match other inputs for 'pair'"),
    ("echo_fp32", with_parameter("triton_mine", 1), "parameter keys starting with 'triton_' are reserved"),
    ("echo_fp32", with_parameter("timeout", "soon"), "parameter 'timeout' is 'soon', expected a non-negative integer"),
    ("echo_fp32", with_parameter("timeout", -1), "parameter 'timeout' is -1"),
    ("echo_fp32", with_parameter("priority", -1), "parameter 'priority' is -1"),
    ("echo_fp32", with_parameter("sequence_id", True), "parameter 'sequence_id' is True"),
    ("echo_fp32", with_parameter("sequence_start", 1), "parameter 'sequence_start' is 1, expected a boolean"),
    ("echo_fp32", with_parameter("binary_data_output", 1), "Unable to parse 'binary_data_output'"),
    ("echo_fp32", [], "the request's JSON is an array, expected an object"),
    ("echo_fp32", {}, "Unable to parse 'inputs'"),
    ("echo_bytes", {"inputs": [{**X, "datatype": "BYTES", "data": ["a"] * 4}],
                    "outputs": [{"name": "y", "parameters": {"classification": 1}}]}, "classification of output 'y'"),
]  # fmt: skip
OTHERS = [
    ("checked", with_x(shape=[1, 2], data=[2, 0]), 400, "rule_broken",
     "element [0, 0] of input 'x' for model 'checked' is 2.0, expected a value from -1 to 1 (rule 'range')"),
    ("nobody", GOOD, 404, "model_not_found", "Request for unknown model: 'nobody' is not found"),
    ("gr%C3%B6%C3%9Ftes%20%E6%A8%A1", GOOD, 404, "model_not_found",
     "Request for unknown model: 'größtes 模' is not found"),
    ("versions/versions/9", GOOD, 404, "model_not_found",
     "Request for unknown model: 'versions' version 9 is not found"),
    ("versions/versions/x", GOOD, 400, "invalid_request",
     "failed to get model version from specified version string 'x' (details: not an integer)"),
    ("broken", GOOD, 404, "model_not_found", "Request for unknown model: 'broken' has no available versions"),
    ("broken/versions/1", GOOD, 503, "model_not_ready",
     "Request for unknown model: 'broken' version 1 is not at ready state"),
    ("echo_fp32", with_x(data=None, parameters={"shared_memory_region": "r", "shared_memory_byte_size": 16}), 501,
     "unimplemented", "Client shared memory is disabled."),
]  # fmt: skip


@pytest.mark.parametrize(
    ("model", "header", "status", "reason", "text"),
    [*OTHERS, *((model, header, 400, "invalid_request", text) for model, header, text in INVALID)],
    ids=lambda value: value[:60] if isinstance(value, str) else "",
)
def test_refused(server, model, header, status, reason, text):
    for _ in range(2):
        reply = infer(server, model, header)
        assert (reply.status, reply.fields["headrace-reason"]) == (status, reason)
        assert reply.fields["content-type"] == "application/json"
        assert text in reply.json["error"]
        assert reply.json.keys() == {"error"}
    assert infer(server, "echo_fp32", GOOD).json["outputs"][0]["data"] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("tensors", "length", "text"),
    [
        (b"x" * 12, None, "missing input data for model 'echo_fp32': 12 octets follow the JSON, expected 16"),
        (b"x" * 20, None, "unexpected additional input data for model 'echo_fp32'"),
        (b"x" * 16, "1000", "inference header size should be in range (0, "),
        (b"x" * 16, "-1", "Unable to parse Inference-Header-Content-Length"),
        (b"x" * 16, "a", "Unable to parse Inference-Header-Content-Length"),
        (b"x" * 16, "10", "the request is not valid JSON"),
    ],
)
def test_binary_that_is_wrong(server, tensors, length, text):
    body = json.dumps({"inputs": [BINARY]}).encode()
    reply = ask(
        server,
        "/v2/models/echo_fp32/infer",
        body + tensors,
        inference_header_content_length=len(body) if length is None else length,
    )
    assert (reply.status, text in reply.json["error"]) == (400, True)


@pytest.mark.parametrize(
    ("fields", "status", "text"),
    [
        ({"content_encoding": "br"}, 501, "Unsupported compression type"),
        ({"content_encoding": "gzip"}, 400, "the body is not gzip"),
    ],
)
def test_codings(server, fields, status, text):
    reply = infer(server, "echo_fp32", GOOD, **fields)
    assert (reply.status, text in reply.json["error"]) == (status, True)


@pytest.mark.parametrize(
    ("method", "path", "status", "text"),
    [
        ("GET", "/v2/models/nobody", 404, "'nobody' is not found"),
        ("GET", "/v2/models/nobody/config", 404, "'nobody' is not found"),
        ("GET", "/v2/models/digits/versions/x", 400, "'x'"),
        ("GET", "/v2/models/nobody/stats", 400, "requested model 'nobody' is not available"),
        ("POST", "/v2/repository/index", 501, "'repository_name' specification is not supported"),
        ("POST", "/v2/repository/models/digits/load", 503, "explicit model load / unload is not allowed"),
        ("POST", "/v2/repository/models/digits/unload", 503, "explicit model load / unload is not allowed"),
        ("GET", "/v2/systemsharedmemory/status", 501, "Client shared memory is disabled."),
        ("GET", "/v2/models/digits/infer", 405, "Method Not Allowed"),
        ("GET", "/v2/nothing", 404, "Not Found"),
        ("POST", "/v2/models/digits/generate", 404, "this server has no generate"),
    ],
)
def test_other_routes(server, method, path, status, text):
    body = {"repository_name": "r"} if path == "/v2/repository/index" else None
    reply = ask(server, path, body, method)
    assert (reply.status, text in reply.json["error"]) == (status, True)


# --- raw sockets ------------------------------------------------------------------------------------------------------


INFER = "/v2/models/echo_fp32/infer"


def test_pipelined_requests_of_all_kinds_are_answered_in_order(server):
    with Raw(server) as raw:
        body = json.dumps(GOOD).encode()
        raw.send(
            octets(INFER, body) + octets("/v2", method="GET") + octets("/v2/models/nobody/infer", body)
            + octets("/nothing", method="GET") + octets(INFER, body) + octets("/v2/health/live", method="GET")
            + octets(INFER, body, connection="close")
        )  # fmt: skip
        assert [raw.reply()[0] for _ in range(7)] == [200, 200, 404, 404, 200, 200, 200]
        assert raw.reply() is None


def test_a_body_too_large_is_refused_before_it_comes(server):
    with Raw(server) as raw:
        raw.send(octets(INFER, content_length=10**12))
        status, fields, body = raw.reply()
        assert (status, fields["connection"]) == (413, "close")
        assert "the body is larger than 67108864 octets" in json.loads(body)["error"]
        assert raw.reply() is None


def test_chunks_too_large_are_refused_when_they_are(server):
    with Raw(server) as raw:
        raw.send(octets(INFER, content_length=None, transfer_encoding="chunked"))
        chunk = b"100000\r\n" + b"x" * (1 << 20) + b"\r\n"

        def send():
            try:
                for _ in range(80):
                    raw.send(chunk)
            except OSError:
                pass  # the server has closed

        sending = threading.Thread(target=send)
        sending.start()
        assert raw.reply()[0] == 413
        sending.join()


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        octets(INFER, content_length="ten"),
        octets(INFER, b"123", content_length=3, transfer_encoding="chunked"),
        octets(INFER, content_length=None, transfer_encoding="chunked") + b"zz\r\n",
    ],
)
def test_what_is_not_http(server, sent):
    with Raw(server) as raw:
        raw.send(sent)
        status, fields, body = raw.reply()
        assert (status, fields["connection"], "error" in json.loads(body)) == (400, "close", True)
        assert raw.reply() is None
    assert ask(server, "/v2/health/live").status == 200


@pytest.mark.parametrize("sent", [b"POST /v2/mod", octets(INFER, b"x" * 99)[:-1], octets(INFER, b"x" * 99999)[:-1]])
def test_slow_writers_are_dropped(busy_server, sent):
    with Raw(busy_server) as raw:
        raw.send(sent)
        assert raw.reply()[0] == 408
        assert raw.reply() is None


# --- overload, deadlines, clients that go away ------------------------------------------------------------------------


@pytest.fixture
def stub(busy_server):
    with grpc.insecure_channel(busy_server.address) as channel:
        connect(channel)
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def one(value=1.0, **more):
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [value]}], **more}


def in_background(call, *arguments, **fields):
    """Starts a call; returns what waits for its reply."""
    replies = []
    thread = threading.Thread(target=lambda: replies.append(call(*arguments, **fields)), daemon=True)
    thread.start()

    def result():
        thread.join(SECONDS)
        (reply,) = replies
        return reply

    return result


def test_a_full_queue(busy_server, stub):
    held = occupy(busy_server, stub, "queue")
    waiting = in_background(infer, busy_server, "queue", one(2))
    eventually(lambda: busy_server.waiting("queue") == 1)
    refused = infer(busy_server, "queue", one(3))
    assert (refused.status, refused.fields["headrace-reason"]) == (503, "queue_full")
    assert int(refused.fields["retry-after"]) >= 1
    assert "Exceeds maximum queue size" in refused.json["error"]
    held.let_go()
    assert waiting().json["outputs"][0]["data"] == [2]


@pytest.mark.parametrize(
    ("model", "more", "fields", "status", "reason"),
    [
        ("timeout", {"parameters": {"timeout": 200_000}}, {}, 503, "queue_timeout"),
        ("objective", {}, {}, 503, "queue_timeout"),
        ("deadline", {}, {"prefer": "wait=1"}, 504, "deadline_exceeded"),
        ("deadline", {}, {"x_envoy_expected_rq_timeout_ms": 200}, 504, "deadline_exceeded"),
    ],
)
def test_time_that_is_over(busy_server, stub, model, more, fields, status, reason):
    held = occupy(busy_server, stub, model)
    began = time.monotonic()
    refused = infer(busy_server, model, one(**more), **fields)
    assert (refused.status, refused.fields["headrace-reason"]) == (status, reason)
    assert "retry-after" not in refused.fields
    assert time.monotonic() - began > 0.15
    held.let_go()
    assert held.call.result()


def test_a_client_that_goes_away_is_not_served(busy_server, stub):
    def cancelled():
        return busy_server.metric("headrace_refused_total", model="cancel", reason="cancelled")

    before = cancelled()
    held = occupy(busy_server, stub, "cancel")
    with Raw(busy_server) as raw:
        raw.send(octets("/v2/models/cancel/infer", json.dumps(one(5)).encode()) * 2)
        eventually(lambda: busy_server.waiting("cancel") == 2)
    eventually(lambda: busy_server.waiting("cancel") == 0)
    held.let_go()
    assert held.call.result()
    assert cancelled() == before + 2


# --- the end ----------------------------------------------------------------------------------------------------------


@contextmanager
def two_accepted(server):
    """A connection with two requests on it: the first runs until it is let go, the second waits."""
    with Raw(server) as raw:
        raw.send(b"".join(octets("/v2/models/slow/infer", json.dumps(one(value)).encode()) for value in (HELD, 2)))
        eventually(lambda: server.waiting("slow") == 1)
        yield raw


def test_drain(tmp_path):
    """What was accepted is answered; what comes meanwhile is told; the health says so."""
    write_gated(tmp_path, "slow")
    with Server(tmp_path, "--transport", "native", "--inline-below-us", 0) as server:
        with two_accepted(server) as raw:
            server.signal(signal.SIGTERM)
            server.await_log(lambda line: "draining for at most" in line)
            late = infer(server, "slow", one(3))
            assert (late.status, late.fields["headrace-reason"]) == (503, "shutting_down")
            assert "retry-after" not in late.fields
            assert ask(server, "/v2/health/ready").status == 503
            let_go(tmp_path, "slow")
            for value in (HELD, 2):
                status, _, body = raw.reply()
                assert (status, json.loads(body)["outputs"][0]["data"]) == (200, [value])
            assert raw.reply() is None
        assert server.wait() == 0
    assert "cut off" not in server.log


def test_what_cannot_be_finished_is_told(tmp_path):
    write_gated(tmp_path, "slow")
    with Server(tmp_path, "--transport", "native", "--inline-below-us", 0, "--drain-seconds", 0.5) as server:
        with two_accepted(server) as raw:
            server.signal(signal.SIGTERM)
            for _ in range(2):
                status, fields, _ = raw.reply()
                assert (status, fields["headrace-reason"]) == (503, "shutting_down")
        assert server.wait() == 1


def test_models_come_and_go(serve, tmp_path):
    """Repository control over HTTP, as tritonclient makes it."""
    write(tmp_path, "m", scale(2, "N", 1))
    server = serve(tmp_path, "--model-control-mode", "explicit")
    with InferenceServerClient(server.http.removeprefix("http://")) as client:
        assert client.get_model_repository_index() == [{"name": "m", "state": "UNAVAILABLE", "reason": "not loaded"}]
        assert infer(server, "m", one()).status == 404
        client.load_model("m")
        assert client.get_model_repository_index() == [{"name": "m", "version": "1", "state": "READY"}]
        for _ in range(2):
            assert infer(server, "m", one(3)).json["outputs"][0]["data"] == [6]
        client.unload_model("m")
        eventually(lambda: infer(server, "m", one()).status == 404)
        write(tmp_path, "m", scale(5, "N", 1), version=2)
        client.load_model("m")
        assert infer(server, "m", one(3)).json["outputs"][0]["data"] == [15]
        with pytest.raises(InferenceServerException, match="parameter 'config' of a load is switched off") as caught:
            client.load_model("m", config="{}")
        assert caught.value.status() == "501"


def test_a_model_that_comes_with_the_request(serve, tmp_path):
    """Files in base64, as tritonclient sends them."""
    server = serve(
        tmp_path, "--model-control-mode", "explicit", "--allow-file-override", "true", "--allow-config-override", "true"
    )
    with InferenceServerClient(server.http.removeprefix("http://")) as client:
        config = json.dumps({"name": "m", "backend": "onnxruntime", "max_batch_size": 4})
        client.load_model("m", config=config, files={"file:1/model.onnx": scale(7, "N", 1)})
        assert infer(server, "m", one(3)).json["outputs"][0]["data"] == [21]
        assert client.get_model_config("m")["max_batch_size"] == 4
