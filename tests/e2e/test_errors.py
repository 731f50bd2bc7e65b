"""The wire contract's table of errors, as far as the RPCs of this server can meet it: code, text and reason."""

import grpc
import numpy as np
import pytest
from e2e.calls import SECONDS, failure, floats, output, request
from grpc import StatusCode
from grpc_health.v1 import health_pb2
from tritonclient.grpc import service_pb2 as pb

ROW = floats([1, 2, 3, 4])
A, B = floats([1, 2]), np.ones((1, 3), np.int32)


def changed(message, change):
    """The message after `change(message)`."""
    change(message)
    return message


def named(model, message=None):
    """`message` as a request to another model."""
    return changed(message or request("echo_fp32", x=ROW), lambda m: setattr(m, "model_name", model))


def versioned(version):
    return request("versions", x=floats(1), version=version)


def with_contents(change, datatype="FP32"):
    """A request without raw entries, whose input `change` has filled."""
    message = pb.ModelInferRequest(model_name=f"echo_{datatype.lower()}")
    change(message.inputs.add(name="x", datatype=datatype, shape=[1, 4]).contents)
    return message


def both(message):
    message.inputs[0].contents.fp32_contents.extend([1, 2, 3, 4])


def first_twice(message):
    message.inputs.append(message.inputs[0])
    message.raw_input_contents.append(message.raw_input_contents[0])


def parameter(key, **value):
    return changed(request("echo_fp32", x=ROW), lambda m: m.parameters[key].CopyFrom(pb.InferParameter(**value)))


NOT_FOUND = [
    (named("nobody"), "Request for unknown model: 'nobody' is not found"),
    (named(""), "Request for unknown model: '' is not found"),
    (versioned("9"), "Request for unknown model: 'versions' version 9 is not found"),
    (named("broken"), "Request for unknown model: 'broken' has no available versions"),
]
BROKEN = [
    (request("checked", x=floats([0, 0], [0, np.nan])),
     "element [1, 1] of input 'x' for model 'checked' is nan, expected a finite number (rule 'finite')"),
    (request("checked", x=floats([2, 0])),
     "element [0, 0] of input 'x' for model 'checked' is 2.0, expected a value from -1 to 1 (rule 'range')"),
]  # fmt: skip
INVALID = [
    (versioned("x"), "failed to get model version from specified version string 'x' (details: not an integer), "
                     "version should be an integral value > 0"),
    (versioned("0"), "failed to get model version from specified version string '0'"),
    (request("pair", id="7", a=A), "[request id: 7] expected 2 inputs but got 1 inputs for model 'pair'. Got input(s) "
                                   "['a'], but missing required input(s) ['b']. Please provide all required input(s)."),
    (request("echo_fp32"), "[request id: <id_unknown>] expected 1 inputs but got 0 inputs for model 'echo_fp32'."),
    (request("echo_fp32", z=ROW), "unexpected inference input 'z' for model 'echo_fp32'"),
    (request("echo_fp32", x=ROW, outputs=["z"]), "unexpected inference output 'z' for model 'echo_fp32'"),
    (request("echo_fp32", x=ROW, outputs=["y", "y"]), "an output is requested twice"),
    (changed(request("echo_fp32", x=ROW), first_twice),
     "[request id: <id_unknown>] input 'x' already exists in request"),
    (request("echo_fp32", x=ROW.astype(np.float64)),
     "[request id: <id_unknown>] inference input 'x' data-type is 'FP64', but model 'echo_fp32' expects 'FP32'"),
    (changed(request("echo_fp32", x=ROW), lambda m: setattr(m.inputs[0], "datatype", "FLOAT")), "'FLOAT'"),
    (request("echo_fp32", x=floats([1, 2, 3, 4, 5])),
     "[request id: <id_unknown>] unexpected shape for input 'x' for model 'echo_fp32'. Expected [-1,4], got [1,5]."),
    (request("echo_fp32", x=ROW[0]), "Expected [-1,4], got [4]. NOTE: Setting a non-zero max_batch_size"),
    (request("echo_fp32", x=ROW[:0]), "Expected [-1,4], got [0,4]."),
    (request("fixed", x=np.zeros((3, 2), np.float32)), "Expected [2,3], got [3,2]."),
    (changed(request("free", x=A), lambda m: m.inputs[0].shape.__setitem__(slice(None), [-1, -2])), "got [-1,-2]"),
    (changed(request("free", x=A), lambda m: m.inputs[0].shape.__setitem__(slice(None), [2**40, 2**40])), "unexpected"),
    (changed(request("echo_fp32", id="7", x=ROW), lambda m: m.raw_input_contents.__setitem__(0, b"x" * 12)),
     "[request id: 7] input byte size mismatch for input 'x' for model 'echo_fp32'. Expected 16, got 12"),
    (changed(request("echo_fp32", x=ROW), lambda m: m.ClearField("raw_input_contents")),
     "unable to find data for input tensor 'x' for model 'echo_fp32' in request."),
    (changed(request("echo_fp32", x=ROW), lambda m: m.raw_input_contents.append(b"more")), "2 entries, expected one"),
    (changed(request("echo_fp32", x=ROW), both),
     "contents field must not be specified when using raw_input_contents for 'x'"),
    (with_contents(lambda c: c.fp32_contents.extend([1, 2, 3])), "3 elements in its contents, but its shape [1, 4]"),
    (with_contents(lambda c: c.int_contents.extend([1, 2, 3, 4])), "int_contents, but datatype 'FP32' takes"),
    (with_contents(lambda c: c.int_contents.extend([1, 2, 3, 128]), "INT8"), "which INT8 cannot hold"),
    (with_contents(lambda c: c.fp32_contents.extend([1, 2, 3, 4]), "FP16"), "takes raw_input_contents"),
    (request("whole", x=np.zeros((9, 4), np.float32)),
     "[request id: <id_unknown>] inference request batch-size must be <= 8 for 'whole'"),
    (request("pair", a=floats([1, 2], [3, 4]), b=B),
     "[request id: <id_unknown>] input 'b' batch size does not match other inputs for 'pair'"),
    (parameter("triton_mine", int64_param=1), "parameter keys starting with 'triton_' are reserved for Triton usage."),
    (parameter("timeout", string_param="soon"), "parameter 'timeout' is 'soon', expected a non-negative integer"),
    (parameter("timeout", int64_param=-1), "parameter 'timeout' is -1"),
    (parameter("priority", int64_param=-1), "parameter 'priority' is -1"),
    (parameter("sequence_id", bool_param=True), "parameter 'sequence_id' is True"),
    (parameter("sequence_start", int64_param=1), "parameter 'sequence_start' is 1, expected a boolean"),
    (parameter("headrace_timing", int64_param=1), "parameter 'headrace_timing' is 1, expected a boolean"),
    (changed(request("echo_bool", x=np.zeros((1, 4), bool)),
             lambda m: m.raw_input_contents.__setitem__(0, b"\0\1\2\0")),
     "element [0, 2] of input 'x' for model 'echo_bool' is 2, expected a BOOL: 0 or 1"),
]  # fmt: skip


def text_tensor(raw):
    message = pb.ModelInferRequest(model_name="echo_bytes", raw_input_contents=[raw])
    message.inputs.add(name="x", datatype="BYTES", shape=[1, 4])
    return message


INVALID += [
    (text_tensor(b"\1\0\0\0a" * 3), "input 'x' for model 'echo_bytes'"),
    (text_tensor(b"\1\0\0\0a" * 5), "input 'x' for model 'echo_bytes'"),
    (text_tensor(b"\1\0\0\0a" * 3 + b"\xff\xff\xff\xffa"), "input 'x' for model 'echo_bytes'"),
    (
        text_tensor(b"\1\0\0\0a" * 3 + b"\1\0\0\0\xff"),
        "element [0, 3] of input 'x' for model 'echo_bytes' is not UTF-8",
    ),
]


def test_the_requests_that_are_spoilt_are_right_before(stub):
    assert output(stub.ModelInfer(request("echo_fp32", x=ROW), timeout=SECONDS)).tolist() == ROW.tolist()


@pytest.mark.parametrize(
    ("message", "code", "reason", "text"),
    [
        *((message, StatusCode.NOT_FOUND, "model_not_found", text) for message, text in NOT_FOUND),
        *((message, StatusCode.INVALID_ARGUMENT, "invalid_request", text) for message, text in INVALID),
        *((message, StatusCode.INVALID_ARGUMENT, "rule_broken", text) for message, text in BROKEN),
    ],
    ids=lambda value: value[:60] if isinstance(value, str) else "",
)
def test_refused(stub, message, code, reason, text):
    for _ in range(2):  # a refusal leaves nothing behind that the next request could stumble over
        refused = failure(stub.ModelInfer, message)
        assert (refused.code, refused.reason) == (code, reason)
        assert text in refused.text
    assert output(stub.ModelInfer(request("echo_fp32", x=ROW), timeout=SECONDS)).tolist() == ROW.tolist()


def test_a_version_that_failed_to_load(stub):
    refused = failure(stub.ModelInfer, request("broken", x=ROW, version="1"))
    assert (refused.code, refused.reason) == (StatusCode.UNAVAILABLE, "model_not_ready")
    assert refused.text == "Request for unknown model: 'broken' version 1 is not at ready state"


def region(tensor):
    tensor.parameters["shared_memory_region"].string_param = "r"
    tensor.parameters["shared_memory_byte_size"].int64_param = 16


@pytest.mark.parametrize(
    "change", [lambda m: region(m.inputs[0]), lambda m: region(m.outputs.add(name="y"))], ids=["input", "output"]
)
def test_shared_memory_is_off(stub, change):
    refused = failure(stub.ModelInfer, changed(request("echo_fp32", x=ROW), change))
    assert (refused.code, refused.reason) == (StatusCode.UNIMPLEMENTED, "unimplemented")
    assert refused.text.startswith("Client shared memory is disabled. Start the server with '--allow-client-shm true'")


@pytest.mark.parametrize("count", [0, -1])
def test_a_number_of_classes_that_is_none(stub, count):
    message = request("echo_fp32", x=ROW)
    message.outputs.add(name="y").parameters["classification"].int64_param = count
    refused = failure(stub.ModelInfer, message)
    assert (refused.code, refused.reason) == (StatusCode.INVALID_ARGUMENT, "invalid_request")


@pytest.mark.parametrize(
    ("rpc", "message", "code", "text"),
    [
        ("ModelReady", pb.ModelReadyRequest(name="nobody"), StatusCode.NOT_FOUND, "'nobody' is not found"),
        ("ModelReady", pb.ModelReadyRequest(name="broken", version="1"), StatusCode.UNAVAILABLE, "not at ready state"),
        ("ModelMetadata", pb.ModelMetadataRequest(name="nobody"), StatusCode.NOT_FOUND, "'nobody' is not found"),
        ("ModelMetadata", pb.ModelMetadataRequest(name="digits", version="x"), StatusCode.INVALID_ARGUMENT, "'x'"),
        ("ModelConfig", pb.ModelConfigRequest(name="nobody"), StatusCode.NOT_FOUND, "'nobody' is not found"),
        ("ModelStatistics", pb.ModelStatisticsRequest(name="nobody"), StatusCode.INVALID_ARGUMENT,
         "requested model 'nobody' is not available"),
        ("RepositoryIndex", pb.RepositoryIndexRequest(repository_name="r"), StatusCode.UNIMPLEMENTED,
         "'repository_name' specification is not supported"),
        ("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="m"), StatusCode.UNAVAILABLE, "not allowed"),
        ("SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest(), StatusCode.UNIMPLEMENTED, "is disabled"),
        ("TraceSetting", pb.TraceSettingRequest(model_name="nobody"), StatusCode.NOT_FOUND, "'nobody' is not found"),
    ],
)  # fmt: skip
def test_other_rpcs(stub, rpc, message, code, text):
    refused = failure(getattr(stub, rpc), message)
    assert refused.code is code
    assert text in refused.text


@pytest.mark.parametrize(
    "path",
    [
        "/inference.GRPCInferenceService/ModelInfre",
        "/inference.GRPCInferenceServic/ModelInfer",
        "/grpc.health.v1.Health/",
    ],
)
def test_an_unknown_method(channel, path):
    refused = failure(channel.unary_unary(path), b"")
    assert refused.code is StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("garbage", [b"\xff", b"\x0a\xff\xff", b"\x00" * 20, b"\x0a\x05digits", b"\x3a\x08ab"])
def test_bytes_that_are_no_message(channel, garbage):
    for path in ("/inference.GRPCInferenceService/ModelInfer", "/inference.GRPCInferenceService/ModelMetadata"):
        refused = failure(channel.unary_unary(path), garbage)
        assert refused.code is StatusCode.INVALID_ARGUMENT
        assert refused.reason == "invalid_request"
        assert "is not a valid inference.Model" in refused.text


def test_an_unknown_service_has_no_health(channel):
    check = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    refused = failure(check, health_pb2.HealthCheckRequest(service="nobody"))
    assert (refused.code, refused.reason) == (StatusCode.NOT_FOUND, "service_not_found")


def test_a_text_in_any_language_comes_back_whole(stub):
    refused = failure(stub.ModelInfer, named("größtes 模型 100%\n"))
    assert refused.code is grpc.StatusCode.NOT_FOUND
    assert refused.text == "Request for unknown model: 'größtes 模型 100%\n' is not found"
