"""The protocol's errors as Triton's clients know them: gRPC code, HTTP status and text of each, in each way."""

import queue
import threading
from contextlib import ExitStack, closing
from urllib.parse import unquote

import grpc
import numpy as np
import pytest
from conformance.contract.ways import WAYS, Grpc, Rest, changed, with_parameter
from e2e.calls import SECONDS, floats, occupy, request
from e2e.gated import HELD, let_go, write_gated
from e2e.h2_client import H2Client
from e2e.server_process import Server, eventually
from tritonclient.grpc import service_pb2 as pb

NONE = "[request id: <id_unknown>] "
ROW = floats([1, 2, 3, 4])
STATUS = {
    "NOT_FOUND": 404, "INVALID_ARGUMENT": 400, "UNAVAILABLE": 503, "UNIMPLEMENTED": 501, "INTERNAL": 500,
    "ALREADY_EXISTS": 400, "DEADLINE_EXCEEDED": 504,
}  # fmt: skip
"""The HTTP status of each gRPC code."""


def infer(model="m", **arrays):
    return request(model, **(arrays or {"x": ROW}))


def without_data(message):
    message.ClearField("raw_input_contents")


def cut_short(message):
    message.raw_input_contents[0] = b"x" * 12


def twice(message):
    message.inputs.append(message.inputs[0])
    message.raw_input_contents.append(message.raw_input_contents[0])


def both(message):
    message.inputs[0].contents.fp32_contents.extend([1, 2, 3, 4])


def in_memory(tensor, size=16, offset=None, name="r"):
    tensor.parameters["shared_memory_region"].string_param = name
    tensor.parameters["shared_memory_byte_size"].int64_param = size
    if offset is not None:
        tensor.parameters["shared_memory_offset"].int64_param = offset


def input_in_memory(**more):
    return lambda message: (message.ClearField("raw_input_contents"), in_memory(message.inputs[0], **more))


def output_in_memory(**more):
    return lambda message: in_memory(message.outputs.add(name="y"), **more)


def contents(model, field, values, datatype):
    message = pb.ModelInferRequest(model_name=model)
    tensor = message.inputs.add(name="x", datatype=datatype, shape=[1, 4])
    getattr(tensor.contents, field).extend(values)
    return message


INFER = {
    "unknown model": (infer("nobody"), "NOT_FOUND", "Request for unknown model: 'nobody' is not found"),
    "unknown version": (
        request("versions", version="9", x=floats(1)), "NOT_FOUND",
        "Request for unknown model: 'versions' version 9 is not found"),
    "no version ready, none asked for": (
        infer("broken"), "NOT_FOUND", "Request for unknown model: 'broken' has no available versions"),
    "version asked for could not be loaded": (
        request("broken", version="1", x=ROW), "UNAVAILABLE",
        "Request for unknown model: 'broken' version 1 is not at ready state"),
    "version is not an integer": (
        request("versions", version="x", x=floats(1)), "INVALID_ARGUMENT",
        "failed to get model version from specified version string 'x' (details: "),
    "wrong number of inputs": (
        request("pair", id="7", a=floats([1, 2])), "INVALID_ARGUMENT",
        "[request id: 7] expected 2 inputs but got 1 inputs for model 'pair'. Got input(s) ['a'], but missing required "
        "input(s) ['b']. Please provide all required input(s)."),
    "unknown input": (infer(z=ROW), "INVALID_ARGUMENT", "unexpected inference input 'z' for model 'm'"),
    "unknown output": (
        request("m", x=ROW, outputs=["z"]), "INVALID_ARGUMENT", "unexpected inference output 'z' for model 'm'"),
    "duplicate input": (
        changed(infer(), twice), "INVALID_ARGUMENT", NONE + "input 'x' already exists in request"),
    "wrong dtype": (
        infer(x=ROW.astype(np.int64)), "INVALID_ARGUMENT",
        NONE + "inference input 'x' data-type is 'INT64', but model 'm' expects 'FP32'"),
    "wrong shape": (
        infer(x=floats([1, 2, 3, 4, 5])), "INVALID_ARGUMENT",
        NONE + "unexpected shape for input 'x' for model 'm'. Expected [-1,4], got [1,5]."),
    "wrong shape, without the batch dimension": (
        infer(x=ROW[0]), "INVALID_ARGUMENT",
        NONE + "unexpected shape for input 'x' for model 'm'. Expected [-1,4], got [4]. NOTE: "),
    "no data for an input": (
        changed(infer(), without_data), "INVALID_ARGUMENT",
        "unable to find data for input tensor 'x' for model 'm' in request."),
    "batch above the maximum": (
        request("whole", x=np.zeros((9, 4), np.float32)), "INVALID_ARGUMENT",
        NONE + "inference request batch-size must be <= 8 for 'whole'"),
    "batch differs between inputs": (
        request("pair", a=floats([1, 2], [3, 4]), b=np.ones((1, 3), np.int32)), "INVALID_ARGUMENT",
        NONE + "input 'b' batch size does not match other inputs for 'pair'"),
    "reserved parameter key": (
        with_parameter(infer(), "triton_mine", int64_param=1), "INVALID_ARGUMENT",
        "parameter keys starting with 'triton_' are reserved for Triton usage."),
    "shared memory switched off, input": (
        changed(infer(), input_in_memory()), "UNIMPLEMENTED",
        "Client shared memory is disabled. Start the server with '--allow-client-shm"),
    "shared memory switched off, output": (
        changed(infer(), output_in_memory()), "UNIMPLEMENTED",
        "Client shared memory is disabled. Start the server with '--allow-client-shm"),
}  # fmt: skip
"""Row: request, gRPC code, how the message begins."""


@pytest.mark.parametrize(
    ("way", "row"), [pytest.param(way, row, id=f"error {row}, {way}") for row in INFER for way in WAYS]
)
def test_inference(ways, way, row):
    message, code, text = INFER[row]
    way = ways(way)
    refused = way.infer(message)
    assert refused.status == (code if way.protocol == "grpc" else STATUS[code])
    assert refused.text.startswith(text)
    assert refused.reason


GRPC_ALONE = {
    "wrong byte size": (
        changed(request("m", id="7", x=ROW), cut_short),
        "[request id: 7] input byte size mismatch for input 'x' for model 'm'. Expected 16, got 12"),
    "contents and raw together": (
        changed(infer(), both), "contents field must not be specified when using raw_input_contents for 'x'"),
    "more raw entries than inputs": (
        changed(infer(), lambda message: message.raw_input_contents.append(b"")), "raw_input_contents has 2 entries"),
    "FP16 in typed contents": (contents("half", "fp32_contents", [1, 2, 3, 4], "FP16"), "input 'x' for model 'half'"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("way", "row"), [pytest.param(way, row, id=f"error {row}, {way}") for row in GRPC_ALONE for way in WAYS[:2]]
)
def test_inference_on_grpc(ways, way, row):
    message, text = GRPC_ALONE[row]
    refused = ways(way).infer(message)
    assert (refused.status, refused.text.startswith(text), refused.reason) == (
        "INVALID_ARGUMENT", True, "invalid_request",
    )  # fmt: skip


BINARY = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"parameters":{"binary_data_size":16}}]}'
HTTP_ALONE = {
    "binary data too short": (BINARY + b"x" * 12, {"inference_header_content_length": len(BINARY)}, 400),
    "binary data too long": (BINARY + b"x" * 20, {"inference_header_content_length": len(BINARY)}, 400),
    "header length negative": (BINARY + b"x" * 16, {"inference_header_content_length": -1}, 400),
    "header length not a number": (BINARY + b"x" * 16, {"inference_header_content_length": "a"}, 400),
    "header length above Content-Length": (BINARY + b"x" * 16, {"inference_header_content_length": 999}, 400),
    "not JSON": (b"{", {}, 400),
    "no inputs": (b"{}", {}, 400),
    "unknown compression": (b"{}", {"content_encoding": "br"}, 501),
}


@pytest.mark.parametrize("row", [pytest.param(row, id=f"error {row}, rest") for row in HTTP_ALONE])
def test_inference_on_http(ways, row):
    body, fields, status = HTTP_ALONE[row]
    refused = ways("rest").ask("/v2/models/m/infer", body, **fields)
    assert (refused.status, refused.fields["content-type"]) == (status, "application/json")
    assert refused.reply.keys() == {"error"}
    assert refused.text


# --- other RPCs -------------------------------------------------------------------------------------------------------

ADMIN = {
    "ModelReady, unknown model": (
        "ModelReady", pb.ModelReadyRequest(name="nobody"), "GET", "/v2/models/nobody/ready", None, "NOT_FOUND",
        "Request for unknown model: 'nobody' is not found"),
    "ModelReady, version that could not be loaded": (
        "ModelReady", pb.ModelReadyRequest(name="broken", version="1"), "GET", "/v2/models/broken/versions/1/ready",
        None, "UNAVAILABLE", "Request for unknown model: 'broken' version 1 is not at ready state"),
    "ModelMetadata, unknown model": (
        "ModelMetadata", pb.ModelMetadataRequest(name="nobody"), "GET", "/v2/models/nobody", None, "NOT_FOUND",
        "Request for unknown model: 'nobody' is not found"),
    "ModelConfig, unknown model": (
        "ModelConfig", pb.ModelConfigRequest(name="nobody"), "GET", "/v2/models/nobody/config", None, "NOT_FOUND",
        "Request for unknown model: 'nobody' is not found"),
    "statistics of an unknown model": (
        "ModelStatistics", pb.ModelStatisticsRequest(name="nobody"), "GET", "/v2/models/nobody/stats", None,
        "INVALID_ARGUMENT", "requested model 'nobody' is not available"),
    "load outside explicit mode": (
        "RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="m"), "POST", "/v2/repository/models/m/load",
        {}, "UNAVAILABLE", "explicit model load / unload is not allowed"),
    "unload outside explicit mode": (
        "RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="m"), "POST",
        "/v2/repository/models/m/unload", {}, "UNAVAILABLE", "explicit model load / unload is not allowed"),
    "RepositoryIndex, repository_name is set": (
        "RepositoryIndex", pb.RepositoryIndexRequest(repository_name="r"), "POST", "/v2/repository/index",
        {"repository_name": "r"}, "UNIMPLEMENTED", "'repository_name' specification is not supported"),
    "shared memory switched off, status": (
        "SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest(), "GET", "/v2/systemsharedmemory/status", None,
        "UNIMPLEMENTED", "Client shared memory is disabled."),
    "shared memory switched off, register": (
        "SystemSharedMemoryRegister", pb.SystemSharedMemoryRegisterRequest(name="r", key="/k", byte_size=8), "POST",
        "/v2/systemsharedmemory/region/r/register", {"key": "/k", "byte_size": 8}, "UNIMPLEMENTED",
        "Client shared memory is disabled."),
}  # fmt: skip
OPEN = {
    "load of a missing model": (
        "RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="nobody"), "POST",
        "/v2/repository/models/nobody/load", {}, "INTERNAL",
        "failed to load 'nobody', failed to poll from model repository"),
    "shared memory region unknown, status": (
        "SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest(name="nowhere"), "GET",
        "/v2/systemsharedmemory/region/nowhere/status", None, "NOT_FOUND",
        "Unable to find shared memory region: 'nowhere'"),
    "CUDA shared memory, there is none": (
        "CudaSharedMemoryRegister", pb.CudaSharedMemoryRegisterRequest(name="r", raw_handle=b"h", byte_size=8), "POST",
        "/v2/cudasharedmemory/region/r/register", {"raw_handle": {"b64": "aA=="}, "device_id": 0, "byte_size": 8},
        "UNIMPLEMENTED", "failed to register CUDA shared memory region: 'r', GPUs not supported"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("way", "row", "kind"),
    [
        pytest.param(way, row, kind, id=f"error {row}, {way}")
        for kind, rows in (("plain", ADMIN), ("open", OPEN))
        for row in rows
        for way in WAYS
    ],
)
def test_other_rpcs(ways, way, row, kind):
    rpc, message, method, path, body, code, text = (ADMIN | OPEN)[row]
    way = ways(way, kind)
    refused = way.call(rpc, message) if way.protocol == "grpc" else way.ask(path, body, method)
    assert refused.status == (code if way.protocol == "grpc" else STATUS[code])
    assert refused.text.startswith(text)


@pytest.mark.parametrize(
    "way", [pytest.param(way, id=f"error load, unload: repository_name is set, {way}") for way in WAYS[:2]]
)
def test_repository_name(ways, way):
    for rpc, kind in (
        ("RepositoryModelLoad", pb.RepositoryModelLoadRequest),
        ("RepositoryModelUnload", pb.RepositoryModelUnloadRequest),
    ):
        refused = ways(way, "open").call(rpc, kind(repository_name="r", model_name="m"))
        assert (refused.status, refused.text) == ("UNIMPLEMENTED", "'repository_name' specification is not supported")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        pytest.param(method, path, status, id=f"error {method} {path}, rest: {status}")
        for method, path, status in (
            ("GET", "/v2/models/m/infer", 405),
            ("POST", "/v2", 405),
            ("DELETE", "/v2/models/m", 405),
            ("GET", "/v2/repository/index", 405),
            ("GET", "/v2/nothing", 404),
            ("GET", "/", 200),
        )
        if status != 200
    ],
)
def test_verbs_and_paths(ways, method, path, status):
    refused = ways("rest").ask(path, None if method == "GET" else {}, method)
    assert (refused.status, refused.reply.keys()) == (status, {"error"})


# --- shared memory ----------------------------------------------------------------------------------------------------

MEMORY = {
    "shared memory region unknown": (
        changed(infer(), input_in_memory(name="nowhere")), "NOT_FOUND",
        "Unable to find shared memory region: 'nowhere'"),
    "shared memory region twice": (None, "ALREADY_EXISTS", "shared memory region 'r' already in manager"),
    "shared memory offset beyond the region": (
        changed(infer(), input_in_memory(offset=65)), "INVALID_ARGUMENT",
        "Invalid offset for shared memory region: 'r'"),
    "shared memory too small for an output": (
        changed(infer(), output_in_memory(size=8)), "INTERNAL",
        "shared memory size specified with the request for output 'y' (8 bytes) should be at least 16 bytes to hold "
        "the results"),
    "shared memory without its byte size": (
        changed(infer(), lambda message: message.inputs[0].parameters["shared_memory_region"].CopyFrom(
            pb.InferParameter(string_param="r"))), "INVALID_ARGUMENT", "input 'x'"),
    "shared memory byte size without a region": (
        changed(infer(), lambda message: message.inputs[0].parameters["shared_memory_byte_size"].CopyFrom(
            pb.InferParameter(int64_param=16))), "INVALID_ARGUMENT", "input 'x'"),
    "shared memory with classification": (
        changed(infer(), lambda message: (
            output_in_memory()(message),
            message.outputs[0].parameters["classification"].CopyFrom(pb.InferParameter(int64_param=1)))),
        "INVALID_ARGUMENT", "output 'y'"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("way", "row"), [pytest.param(way, row, id=f"error {row}, {way}") for row in MEMORY for way in WAYS]
)
def test_memory(ways, way, row, region):
    message, code, text = MEMORY[row]
    way = ways(way, "open")
    register = region(way)
    refused = register() if message is None else way.infer(message)
    assert refused.status == (code if way.protocol == "grpc" else STATUS[code])
    assert refused.text.startswith(text)


# --- what takes its time ----------------------------------------------------------------------------------------------


def in_background(call, *arguments):
    """Starts a call; returns what waits for its answer."""
    answers = queue.SimpleQueue()
    threading.Thread(target=lambda: answers.put(call(*arguments)), daemon=True).start()
    return lambda: answers.get(timeout=SECONDS)


def busy(ways, way, model, kind="plain"):
    """The way and the model's call that runs; it is occupied over gRPC, on the same server."""
    asked = ways(way, kind)
    stub = ways("native" if way == "rest" else way, kind).stub
    return asked, occupy(asked.server, stub, model, 3 * SECONDS)


@pytest.mark.parametrize("way", [pytest.param(way, id=f"error queue full, {way}") for way in WAYS])
def test_queue_full(ways, way):
    asked, held = busy(ways, way, "queue")
    waiting = [in_background(asked.infer, request("queue", x=floats(n))) for n in range(2)]
    eventually(lambda: asked.server.waiting("queue") == 2)
    refused = asked.infer(request("queue", id="7", x=floats(3)))
    held.result()
    assert refused.status == ("UNAVAILABLE" if asked.protocol == "grpc" else 503)
    assert (refused.reason, "Exceeds maximum queue size" in refused.text) == ("queue_full", True)
    assert int(refused.fields["grpc-retry-pushback-ms" if asked.protocol == "grpc" else "retry-after"]) >= 1
    assert {answer().status for answer in waiting} == {"OK" if asked.protocol == "grpc" else 200}


@pytest.mark.parametrize("way", [pytest.param(way, id=f"error timeout in the queue, {way}") for way in WAYS])
def test_timeout_in_the_queue(ways, way):
    asked, held = busy(ways, way, "held")
    refused = asked.infer(with_parameter(request("held", x=floats(1)), "timeout", int64_param=100_000))
    assert not held.done()
    held.result()
    assert refused.status == ("UNAVAILABLE" if asked.protocol == "grpc" else 503)
    assert (refused.reason, refused.text) == ("queue_timeout", "Request timeout expired")
    if asked.protocol == "grpc":
        assert refused.fields["grpc-retry-pushback-ms"] == "-1"
    else:
        assert "retry-after" not in refused.fields


@pytest.mark.parametrize("way", [pytest.param(way, id=f"error deadline, {way}") for way in WAYS])
def test_deadline(ways, way):
    asked, held = busy(ways, way, "held")
    refused = asked.infer(request("held", x=floats(1)), timeout=0.2)
    eventually(lambda: asked.server.waiting("held") == 0)
    assert not held.done()
    held.result()
    assert refused.status == ("DEADLINE_EXCEEDED" if asked.protocol == "grpc" else 504)


@pytest.mark.parametrize("way", [pytest.param(way, id=f"error cancelled, {way}") for way in WAYS[:2]])
def test_cancelled(ways, way):
    asked, held = busy(ways, way, "held")
    waiting = asked.stub.ModelInfer.future(request("held", x=floats(1)), timeout=SECONDS)
    eventually(lambda: asked.server.waiting("held") == 1)
    waiting.cancel()
    eventually(lambda: asked.server.waiting("held") == 0)
    assert (waiting.cancelled(), held.done()) == (True, False)
    held.result()


@pytest.mark.parametrize("way", [pytest.param(way, id=f"error version is loading, {way}") for way in WAYS])
def test_loading(ways, way):
    asked = ways(way, "open")
    grpc_way = ways("native" if way == "rest" else way, "open")
    ready = pb.ModelReadyRequest(name="loading", version="1")

    def state():
        models = grpc_way.call("RepositoryIndex", pb.RepositoryIndexRequest()).reply.models
        return next((one.state for one in models if one.name == "loading"), None)

    loaded = in_background(grpc_way.call, "RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="loading"))
    eventually(lambda: state() == "LOADING")
    refused = [asked.infer(request("loading", version="1", x=floats(1)))]
    if asked.protocol == "grpc":
        refused.append(asked.call("ModelReady", ready))
    else:
        refused.append(asked.ask("/v2/models/loading/versions/1/ready"))
    let_go(asked.server.repository, "loading")
    assert loaded().status == "OK"
    for one in refused:
        assert one.status == ("UNAVAILABLE" if asked.protocol == "grpc" else 503)
        assert one.text.startswith("Request for unknown model: 'loading' version 1 is not at ready state")
    grpc_way.call("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="loading"))
    eventually(lambda: state() == "UNAVAILABLE")


@pytest.mark.parametrize("way", [pytest.param(way, id=f"error server is leaving, {way}") for way in WAYS])
def test_leaving(tmp_path, way):
    write_gated(tmp_path, "held")
    transport = "native" if way == "rest" else way
    late = request("held", x=floats(1))
    with Server(tmp_path, "--transport", transport, "--inline-below-us", 0) as server, ExitStack() as stack:
        by_hand = [stack.enter_context(H2Client(server.port)) for _ in range(0 if way == "rest" else 2)]
        client = stack.enter_context(closing(Grpc(server)))
        held = occupy(server, client.stub, "held")
        waiting = [one.call(late.SerializeToString()) for one in by_hand]  # they keep their connections
        eventually(lambda: server.waiting("held") == len(waiting))
        server.signal()
        server.await_log(lambda line: "draining for at most" in line)
        # what comes in the moment before the models take no more is accepted, and waits: hence the deadlines
        if not by_hand:
            refused = eventually(lambda: _leaving(Rest(server).infer(late, timeout=0.3)))
            assert refused.status == 503
            assert [Rest(server).ask(f"/v2/health/{which}").status for which in ("ready", "live")] == [503, 200]
        else:
            call = late.SerializeToString()
            replies = (one.reply(one.call(call, grpc_timeout="300m")) for one in by_hand)
            refused = next(filter(_leaving, replies))
            assert refused.status == 14
            assert "shutting down and has stopped accepting new requests" in unquote(refused.fields["grpc-message"])
        assert held.result().raw_output_contents[0] == np.float32(HELD).tobytes()
        assert [one.reply(stream).status for one, stream in zip(by_hand, waiting, strict=True)] == [0] * len(by_hand)
        stack.close()  # grpcio waits for 20 s for connections that say nothing
        assert server.wait() == 0


def _leaving(answer):
    """The answer, if it is that of a server that leaves."""
    return answer if answer.fields.get("headrace-reason") == "shutting_down" else None


# --- streams ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [pytest.param(way, id=f"error in a stream, {way}") for way in WAYS[:2]])
def test_an_error_in_a_stream(ways, way):
    """It goes into `error_message`, with the id, and the stream goes on."""
    messages = [request("m", id="1", x=ROW), request("nobody", id="2", x=ROW), request("m", id="3", x=ROW)]
    replies = list(ways(way).stub.ModelStreamInfer(iter(messages), timeout=SECONDS))
    assert [reply.infer_response.id for reply in replies] == ["1", "2", "3"]
    texts = [reply.error_message for reply in replies]
    assert texts == ["", "Request for unknown model: 'nobody' is not found", ""]


@pytest.mark.parametrize(
    "way", [pytest.param(way, id=f"error in a stream with triton_grpc_error, {way}") for way in WAYS[:2]]
)
def test_an_error_that_ends_a_stream(ways, way):
    messages = [request("m", id="1", x=ROW), request("nobody", id="2", x=ROW)]
    stream = ways(way).stub.ModelStreamInfer(iter(messages), timeout=SECONDS, metadata=[("triton_grpc_error", "true")])
    assert next(stream).infer_response.id == "1"
    with pytest.raises(grpc.RpcError) as caught:
        next(stream)
    assert (caught.value.code(), "'nobody' is not found" in caught.value.details()) == (grpc.StatusCode.NOT_FOUND, True)
