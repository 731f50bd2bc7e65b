"""Parameters of requests, inputs and outputs, and the forms of tensors: what is taken, and what is refused."""

import json
import struct

import numpy as np
import pytest
from conformance.contract.ways import WAYS, changed, with_parameter
from e2e.calls import floats, output, request
from tritonclient.grpc import service_pb2 as pb

ROW = floats([1, 2, 3, 4])
BAD = {"grpc": "INVALID_ARGUMENT", "rest": 400}
GOOD = {"grpc": "OK", "rest": 200}


def rows(kinds):
    return pytest.mark.parametrize(
        ("way", "row"), [pytest.param(way, row, id=f"parameter {row}, {way}") for row in kinds for way in WAYS]
    )


def given(key, **value):
    return with_parameter(request("m", x=ROW), key, **value)


TAKEN = {
    "sequence_id as an integer": given("sequence_id", int64_param=7),
    "sequence_id as a string": given("sequence_id", string_param="s"),
    "sequence_start, sequence_end as booleans": with_parameter(
        given("sequence_start", bool_param=True), "sequence_end", bool_param=True
    ),
    "priority 0: the default level": with_parameter(request("levels", x=floats(1)), "priority", uint64_param=0),
    "priority above the number of levels: the default level": with_parameter(
        request("levels", x=floats(1)), "priority", uint64_param=9
    ),
    "priority as a signed integer": with_parameter(request("levels", x=floats(1)), "priority", int64_param=2),
    "timeout in microseconds": given("timeout", int64_param=5_000_000),
    "triton_enable_empty_final_response": given("triton_enable_empty_final_response", bool_param=True),
    "any other, an integer": given("mine", int64_param=1),
    "any other, a boolean": given("mine", bool_param=True),
    "any other, a string": given("mine", string_param="x"),
    "any other, a double": given("mine", double_param=0.5),
}


@rows(TAKEN)
def test_taken(ways, way, row):
    way = ways(way)
    assert way.infer(TAKEN[row]).status == GOOD[way.protocol]


REFUSED = {
    "sequence_id as a boolean": given("sequence_id", bool_param=True),
    "sequence_start as an integer": given("sequence_start", int64_param=1),
    "sequence_end as a string": given("sequence_end", string_param="yes"),
    "priority below 0": given("priority", int64_param=-1),
    "priority as a string": given("priority", string_param="high"),
    "timeout as a string": given("timeout", string_param="soon"),
    "timeout below 0": given("timeout", int64_param=-1),
    "triton_ with any other key": given("triton_mine", int64_param=1),
    "classification of 0": changed(
        request("m", x=ROW, outputs=["y"]),
        lambda message: message.outputs[0].parameters["classification"].CopyFrom(pb.InferParameter(int64_param=0)),
    ),
    "classification as a string": changed(
        request("m", x=ROW, outputs=["y"]),
        lambda message: message.outputs[0].parameters["classification"].CopyFrom(pb.InferParameter(string_param="1")),
    ),
}


@rows(REFUSED)
def test_refused(ways, way, row):
    way = ways(way)
    refused = way.infer(REFUSED[row])
    assert refused.status == BAD[way.protocol]
    key = row.split()[0].rstrip("_")
    assert f"'{key}" in refused.text


def in_every_way(row):
    return pytest.mark.parametrize("way", [pytest.param(way, id=f"parameter {row}, {way}") for way in WAYS])


@in_every_way("classification: value:index, the greatest first")
def test_classification(ways, way):
    way = ways(way)
    message = request("m", x=floats([1, 9, 3, 4]), outputs=["y"])
    message.outputs[0].parameters["classification"].int64_param = 2
    told = way.infer(message)
    if way.protocol == "grpc":
        (tensor,) = told.reply.outputs
        assert (tensor.datatype, list(tensor.shape)) == ("BYTES", [1, 2])
        texts = [b"9.000000:1", b"4.000000:3"]
        assert told.reply.raw_output_contents[0] == b"".join(struct.pack("<I", len(one)) + one for one in texts)
    else:
        assert told.reply["outputs"] == [
            {"name": "y", "datatype": "BYTES", "shape": [1, 2], "data": ["9.000000:1", "4.000000:3"]}
        ]


@in_every_way("headrace_timing: phases in the reply's parameters")
def test_timing(ways, way):
    way = ways(way)
    told = way.infer(given("headrace_timing", bool_param=True))
    phases = way.parameters(told)
    assert phases["headrace_total_us"] > 0
    assert {"headrace_decode_us", "headrace_queue_us", "headrace_execute_us", "headrace_encode_us"} <= set(phases)


@in_every_way("shared_memory_offset: default 0, and elsewhere")
def test_shared_memory(ways, way, region):
    way = ways(way, "open")
    region(way)
    for offset in (None, 32):
        region.memory.buf[:64] = bytes(64)
        start = offset or 0
        region.memory.buf[start : start + 16] = ROW.tobytes()
        message = request("m", x=ROW, outputs=["y"])
        message.ClearField("raw_input_contents")
        for tensor, at in ((message.inputs[0], offset), (message.outputs[0], 16)):
            tensor.parameters["shared_memory_region"].string_param = "r"
            tensor.parameters["shared_memory_byte_size"].int64_param = 16
            if at is not None:
                tensor.parameters["shared_memory_offset"].int64_param = at
        told = way.infer(message)
        assert told.status == GOOD[way.protocol]
        assert bytes(region.memory.buf[16:32]) == ROW.tobytes()
        if way.protocol == "grpc":  # an entry for each output, which is empty
            assert list(told.reply.raw_output_contents) == [b""]
        else:  # and no parameters, or Triton's C++ client looks for binary data
            assert told.reply["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [1, 4]}]


@in_every_way("raw entries are of the inputs that are not in shared memory, in order")
def test_raw_entries(ways, way, region):
    way = ways(way, "open")
    region(way)
    a, b = floats([1, 2]), np.array([[1, 2, 3]], np.int32)
    region.memory.buf[:8] = a.tobytes()
    message = request("pair", a=a, b=b)
    del message.raw_input_contents[0]
    message.inputs[0].parameters["shared_memory_region"].string_param = "r"
    message.inputs[0].parameters["shared_memory_byte_size"].int64_param = 8
    told = way.infer(message)
    if way.protocol == "grpc":
        assert output(told.reply).tolist() == [[3]]
        assert output(told.reply, 1, np.int32).tolist() == (2 * b).tolist()
    else:
        assert [one["data"] for one in told.reply["outputs"]] == [[3.0], [2, 4, 6]]


@in_every_way("BYTES: a length of four octets, little-endian, before each element")
def test_bytes(ways, way):
    way = ways(way)
    texts = ["", "a", "\u00e4", "x" * 300]
    raw = b"".join(struct.pack("<I", len(one.encode())) + one.encode() for one in texts)
    message = pb.ModelInferRequest(model_name="text", raw_input_contents=[raw])
    message.inputs.add(name="x", datatype="BYTES", shape=[1, 4])
    told = way.infer(message)
    if way.protocol == "grpc":
        assert told.reply.raw_output_contents[0] == raw
    else:
        assert told.reply["outputs"][0]["data"] == texts


@pytest.mark.parametrize("way", [pytest.param(way, id=f"parameter typed contents, {way}") for way in WAYS[:2]])
def test_typed_contents(ways, way):
    """They are taken, and answered raw."""
    message = pb.ModelInferRequest(model_name="m")
    message.inputs.add(name="x", datatype="FP32", shape=[1, 4]).contents.fp32_contents.extend([1, 2, 3, 4])
    told = ways(way).infer(message)
    assert list(told.reply.raw_output_contents) == [ROW.tobytes()]
    assert not told.reply.outputs[0].HasField("contents")


# --- the binary extension of HTTP -------------------------------------------------------------------------------------

IN_BINARY = {"name": "x", "datatype": "FP32", "shape": [1, 4], "parameters": {"binary_data_size": 16}}
IN_JSON = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}


def post(http, header, binary=b"", **fields):
    text = json.dumps(header).encode()
    if binary:
        fields["inference_header_content_length"] = len(text)
    return http.ask("/v2/models/m/infer", text + binary, **fields)


def is_binary(told):
    return "inference-header-content-length" in told.fields


@pytest.mark.parametrize("row", [pytest.param("", id="parameter binary_data_size, rest")])
def test_binary_input(ways, row):
    told = post(ways("rest"), {"inputs": [IN_BINARY]}, ROW.tobytes())
    assert (is_binary(told), told.reply["outputs"][0]["data"]) == (False, [1, 2, 3, 4])


@pytest.mark.parametrize("row", [pytest.param("", id="parameter binary_data_output, rest")])
def test_binary_output(ways, row):
    told = post(ways("rest"), {"inputs": [IN_JSON], "parameters": {"binary_data_output": True}})
    assert told.fields["content-type"] == "application/octet-stream"
    assert told.reply["outputs"][0]["parameters"] == {"binary_data_size": 16}
    assert int(told.fields["content-length"]) == int(told.fields["inference-header-content-length"]) + 16


@pytest.mark.parametrize(
    "wanted", [pytest.param(one, id=f"parameter binary_data {one}, rest") for one in (True, False)]
)
def test_binary_of_an_output(ways, wanted):
    """An output's own word counts before the request's."""
    header = {
        "inputs": [IN_JSON],
        "outputs": [{"name": "y", "parameters": {"binary_data": wanted}}],
        "parameters": {"binary_data_output": not wanted},
    }
    told = post(ways("rest"), header)
    assert (is_binary(told), "data" in told.reply["outputs"][0]) == (wanted, not wanted)


@pytest.mark.parametrize("row", [pytest.param("", id="parameter Inference-Header-Content-Length 0, rest")])
def test_octets_alone(ways, row):
    told = ways("rest").ask("/v2/models/m/infer", ROW.tobytes(), inference_header_content_length=0)
    assert (told.status, is_binary(told)) == (200, True)
    assert told.reply["outputs"][0]["shape"] == [1, 4]


@pytest.mark.parametrize(
    "model", [pytest.param(one, id=f"parameter data of {one} in JSON, rest") for one in ("FP16", "BF16")]
)
def test_half_precision_in_json(ways, model):
    """Triton refuses it; here it is taken, as numbers."""
    name = {"FP16": "half", "BF16": "brain"}[model]
    tensor = {"name": "x", "datatype": model, "shape": [1, 4], "data": [1, 2, 3, 4]}
    told = ways("rest").ask(f"/v2/models/{name}/infer", {"inputs": [tensor]})
    assert told.reply["outputs"][0]["data"] == [1, 2, 3, 4]
