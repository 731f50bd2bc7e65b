import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.datatypes import DATATYPES
from headrace.errors import InvalidRequest
from headrace.messages import Region, RequestedOutput
from headrace.pipeline import bytes_tensor
from headrace.rpc import inference_pb2 as pb
from headrace.transport.infer_message import CONTENTS_FIELD, MAX_DIMS, MAX_TENSORS, infer_message


def request(datatype="FP32", shape=(1, 2), **contents):
    message = pb.ModelInferRequest(model_name="m", model_version="3", id="seven")
    tensor = message.inputs.add(name="x", datatype=datatype, shape=shape)
    for field, values in contents.items():
        getattr(tensor.contents, field).extend(values)
    return message


def contents(*args, **kwargs):
    return infer_message(request(*args, **kwargs)).inputs[0].contents


def refusal(message):
    with pytest.raises(InvalidRequest) as caught:
        infer_message(message)
    return str(caught.value)


def test_everything_but_the_raw_tensors():
    message = request()
    message.inputs.add(name="t", datatype="BYTES", shape=())
    message.outputs.add(name="y")
    message.outputs.add(name="z")
    message.raw_input_contents.append(b"left alone")
    for key, kind, value in (
        ("b", "bool_param", False),
        ("i", "int64_param", -1),
        ("u", "uint64_param", (1 << 64) - 1),
        ("d", "double_param", 0.5),
        ("s", "string_param", ""),
    ):
        setattr(message.parameters[key], kind, value)
    message.parameters["nothing"].SetInParent()
    found = infer_message(message)
    assert (found.model_name, found.model_version, found.id) == ("m", "3", "seven")
    assert [(tensor.name, tensor.datatype, tensor.shape, tensor.contents) for tensor in found.inputs] == [
        ("x", "FP32", (1, 2), None),
        ("t", "BYTES", (), None),
    ]
    assert found.outputs == (RequestedOutput("y"), RequestedOutput("z"))
    assert found.parameters == {"b": False, "i": -1, "u": (1 << 64) - 1, "d": 0.5, "s": "", "nothing": ""}
    assert type(found.parameters["b"]) is bool


@pytest.mark.parametrize("datatype", sorted(set(CONTENTS_FIELD) - {"BYTES"}))
def test_typed_contents_of_every_datatype(datatype):
    dtype = DATATYPES[datatype].numpy
    info = np.iinfo(dtype) if dtype.kind in "iu" else None
    values = [info.min, info.max] if info else [False, True] if datatype == "BOOL" else [-0.5, 3.0]
    raw = contents(datatype, (2, 1), **{CONTENTS_FIELD[datatype]: values})
    assert np.frombuffer(raw, dtype).tolist() == values


def test_typed_text():
    raw = contents("BYTES", (3,), bytes_contents=[b"", b"ab", "ä".encode()])
    assert bytes_tensor.decode(raw, 3) == [b"", b"ab", "ä".encode()]


@given(st.lists(st.floats(width=32), max_size=20))
def test_typed_floats_keep_their_bits(values):
    raw = contents("FP32", (len(values),), fp32_contents=values)
    assert (raw or b"") == np.array(values, "<f4").tobytes()


@pytest.mark.parametrize(
    ("datatype", "field", "values", "at", "value"),
    [
        ("INT8", "int_contents", [127, 128], 1, 128),
        ("INT8", "int_contents", [-129], 0, -129),
        ("INT16", "int_contents", [0, 0, 40_000], 2, 40_000),
        ("UINT8", "uint_contents", [256], 0, 256),
        ("UINT16", "uint_contents", [1 << 20], 0, 1 << 20),
    ],
)
def test_a_value_that_its_datatype_cannot_hold(datatype, field, values, at, value):
    assert refusal(request(datatype, (len(values),), **{field: values})) == (
        f"element {at} of input 'x' for model 'm' is {value}, which {datatype} cannot hold"
    )


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_halves_travel_raw_only(datatype):
    assert refusal(request(datatype, fp32_contents=[1, 2])) == (
        f"input 'x' for model 'm' has fp32_contents, but datatype '{datatype}' takes raw_input_contents"
    )


def test_contents_in_the_wrong_field():
    assert refusal(request("INT64", int_contents=[1, 2])) == (
        "input 'x' for model 'm' has int_contents, but datatype 'INT64' takes 'int64_contents'"
    )
    assert refusal(request("FP32", fp32_contents=[1, 2], bool_contents=[True])) == (
        "input 'x' for model 'm' has bool_contents, fp32_contents, but datatype 'FP32' takes 'fp32_contents'"
    )


def test_an_unknown_datatype_is_left_to_decoding():
    assert contents("FLOAT", fp32_contents=[1, 2]) is None


@pytest.mark.parametrize("count", [1, 3])
def test_contents_of_the_wrong_number(count):
    assert refusal(request("FP32", fp32_contents=[0.5] * count)) == (
        f"input 'x' for model 'm' has {count} elements in its contents, but its shape [1, 2] holds 2"
    )


def test_empty_contents_mean_none_unless_there_are_no_elements():
    message = request()
    message.inputs[0].contents.SetInParent()
    assert infer_message(message).inputs[0].contents is None
    message = request(shape=(1, 0))
    message.inputs[0].contents.SetInParent()
    assert infer_message(message).inputs[0].contents == b""


def test_a_shape_beyond_all_bounds():
    assert refusal(request(shape=[1] * (MAX_DIMS + 1))) == (
        f"input 'x' for model 'm' has {MAX_DIMS + 1} dimensions, expected at most {MAX_DIMS}"
    )
    assert contents("FP32", [(1 << 62)] * MAX_DIMS) is None
    assert refusal(request("FP32", [1 << 62] * 2, fp32_contents=[1])).endswith(f"holds {1 << 124}")


def test_inputs_beyond_all_bounds():
    message = pb.ModelInferRequest(model_name="m", inputs=[{}] * (MAX_TENSORS + 1))
    assert refusal(message) == (
        f"the request has {MAX_TENSORS + 1} inputs, outputs or parameters, at most {MAX_TENSORS} are taken"
    )


def test_tensors_in_shared_memory():
    message = request()
    message.outputs.add(name="y")
    for tensor in (message.inputs[0], message.outputs[0]):
        tensor.parameters["shared_memory_region"].string_param = "r"
        tensor.parameters["shared_memory_byte_size"].int64_param = 8
    message.inputs[0].parameters["shared_memory_offset"].int64_param = 64
    message.inputs[0].contents.SetInParent()
    found = infer_message(message)
    assert (found.inputs[0].region, found.inputs[0].contents) == (Region("r", 64, 8), None)
    assert found.outputs == (RequestedOutput("y", region=Region("r", 0, 8)),)
    message.inputs[0].contents.fp32_contents.extend([1, 2])
    assert refusal(message) == "input 'x' for model 'm' has contents and a shared memory region, expected one of them"


def test_half_a_region_names_the_tensor():
    message = request()
    message.inputs[0].parameters["shared_memory_offset"].int64_param = 64
    assert refusal(message).startswith("input 'x' for model 'm' has the parameter 'shared_memory_offset' without")
    message = request()
    message.outputs.add(name="y").parameters["shared_memory_region"].string_param = "r"
    assert refusal(message).startswith("output 'y' of model 'm' has the parameter 'shared_memory_region' without")


def test_classification():
    message = request()
    message.outputs.add(name="y").parameters["classification"].int64_param = 3
    assert infer_message(message).outputs == (RequestedOutput("y", classes=3),)
    message.outputs[0].parameters["classification"].string_param = "3"
    assert refusal(message) == "output 'y' of model 'm': parameter 'classification' is '3', expected an integer above 0"


def test_other_tensor_parameters_are_ignored():
    message = request()
    message.inputs[0].parameters["binary_data_size"].int64_param = 8
    message.outputs.add(name="y").parameters["binary_data"].bool_param = True
    assert infer_message(message).outputs == (RequestedOutput("y"),)
