import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import HeadraceError, InvalidRequest
from headrace.messages import InferMessage, InputTensor, Region, RequestedOutput
from headrace.transport import infer_message
from headrace.transport.rest.infer_json import IN_JSON, IN_MEMORY, InputForm, describe, take_out

X = {"name": "x", "datatype": "FP32", "shape": [1, 2]}
WHAT = "input 'x' for model 'm'"


def described(request):
    """What is made of a request, and the elements that were in it."""
    request = copy.deepcopy(request)
    request_id, data = take_out(request)
    return describe(request, request_id, "m", "3"), data


def test_a_whole_request():
    request = {
        "id": "7",
        "unknown": {"is": "not looked at"},
        "parameters": {"priority": 1, "rate": 0.5, "who": "me", "sequence_start": True, "binary_data_output": True},
        "inputs": [
            {**X, "data": [1, 2]},
            {"name": "b", "datatype": "INT8", "shape": [], "parameters": {"binary_data_size": 1}},
            {"name": "s", "datatype": "BYTES", "shape": [2], "parameters": {
                "shared_memory_region": "r", "shared_memory_byte_size": 8, "shared_memory_offset": 4}},
            {"name": "none", "datatype": "FP32", "shape": [0]},
        ],
        "outputs": [
            {"name": "y"},
            {"name": "z", "parameters": {"binary_data": False, "classification": 2}},
            {"name": "q", "parameters": {"shared_memory_region": "r", "shared_memory_byte_size": 8}},
        ],
    }  # fmt: skip
    (message, forms, binary), data = described(request)
    assert message == InferMessage(
        "m",
        "3",
        "7",
        {"priority": 1, "rate": 0.5, "who": "me", "sequence_start": True},
        (
            InputTensor("x", "FP32", (1, 2)),
            InputTensor("b", "INT8", ()),
            InputTensor("s", "BYTES", (2,), None, Region("r", 4, 8)),
            InputTensor("none", "FP32", (0,)),
        ),
        (
            RequestedOutput("y", binary=True),
            RequestedOutput("z", 2, binary=False),
            RequestedOutput("q", 0, Region("r", 0, 8), binary=True),
        ),
    )
    assert binary
    assert forms == (
        InputForm("x", "m", "FP32", (1, 2), IN_JSON),
        InputForm("b", "m", "INT8", (), 1),
        InputForm("s", "m", "BYTES", (2,), IN_MEMORY),
        InputForm("none", "m", "FP32", (0,), IN_JSON),
    )
    assert data == [[1, 2], None, None, None]


def test_the_least_request():
    (message, forms, binary), _ = described({"inputs": []})
    assert (message, forms, binary) == (InferMessage("m", "3", "", {}, (), ()), (), False)


def test_null_is_nothing():
    request = {"id": None, "parameters": None, "outputs": None, "inputs": [{**X, "parameters": None, "data": [1, 2]}]}
    (message, _, binary), _ = described(request)
    assert (message.id, message.parameters, message.outputs, binary) == ("", {}, (), False)


def test_what_is_left_is_the_same_whatever_the_id_and_the_elements():
    one, two = {"id": "1", "inputs": [{**X, "data": [1, 2]}]}, {"inputs": [{**X, "data": [[3, 4]]}]}
    assert take_out(one) == ("1", [[1, 2]])
    assert take_out(two) == ("", [[[3, 4]]])
    assert one == two == {"inputs": [X]}


def with_input(**members):
    return {"inputs": [{**X, "data": [1, 2], **members}]}


def with_parameters(**parameters):
    return {"inputs": [{**X, "parameters": parameters}]}


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ([], "the request's JSON is an array, expected an object"),
        (None, "the request's JSON is null, expected an object"),
        ({}, "Unable to parse 'inputs': there are none, expected an array of tensors"),
        ({"inputs": {}}, "Unable to parse 'inputs' of the request: it is an object, expected an array"),
        ({"inputs": [1]}, "Unable to parse 'inputs': input 0 of the request to model 'm' is a number, expected an"),
        ({"inputs": [], "id": 7}, "Unable to parse 'id' of the request: it is a number, expected a string"),
        ({"inputs": [], "outputs": {}}, "Unable to parse 'outputs' of the request: it is an object, expected an array"),
        ({"inputs": [], "outputs": ["y"]}, "Unable to parse 'outputs': output 0 that is requested of model 'm' is a s"),
        ({"inputs": [], "outputs": [{}]}, "Unable to parse 'name' of output 0 that is requested of model 'm': it is m"),
        ({"inputs": [], "outputs": [{"name": "y", "parameters": {"binary_data": 1}}]},
         "Unable to parse 'binary_data' of output 'y' of model 'm': it is a number, expected true or false"),
        ({"inputs": [], "outputs": [{"name": "y", "parameters": {"classification": 0}}]},
         "output 'y' of model 'm': parameter 'classification' is 0, expected an integer above 0"),
        ({"inputs": [], "parameters": []}, "Unable to parse 'parameters' of the request: it is an array, expected"),
        ({"inputs": [], "parameters": {"p": [1]}},
         "the request: parameter 'p' is an array, expected a string, a number, true or false"),
        ({"inputs": [], "parameters": {"binary_data_output": "yes"}},
         "Unable to parse 'binary_data_output' of the request: it is a string, expected true or false"),
        ({"inputs": [{"datatype": "FP32", "shape": [1]}]},
         "Unable to parse 'name' of input 0 of the request to model 'm': it is missing, expected a string"),
        (with_input(name=1), "Unable to parse 'name' of input 0 of the request to model 'm': it is a number, expected"),
        (with_input(datatype=None), f"Unable to parse 'datatype' of {WHAT}: it is missing, expected a string"),
        (with_input(shape="1"), f"Unable to parse 'shape' of {WHAT}: it is a string, expected an array"),
        (with_input(shape=[1.0, 2]), f"Unable to parse 'shape' of {WHAT}: got [1.0, 2], expected an array of integers"),
        (with_input(shape=[True]), f"Unable to parse 'shape' of {WHAT}: got [True], expected an array of integers"),
        (with_input(shape=[1] * 65), f"{WHAT} has 65 dimensions, expected at most 64"),
        (with_parameters(binary_data_size=-1),
         f"Unable to parse 'binary_data_size' of {WHAT}: got -1, expected a number of bytes"),
        (with_parameters(binary_data_size=True), f"Unable to parse 'binary_data_size' of {WHAT}: got True, expected a"),
        (with_parameters(binary_data_size=8, shared_memory_region="r", shared_memory_byte_size=8),
         f"{WHAT} has 'binary_data_size' and a shared memory region, expected one of them"),
        (with_parameters(shared_memory_region="r"),
         f"{WHAT} has the parameter 'shared_memory_region' without 'shared_memory_byte_size', expected both"),
    ],
)  # fmt: skip
def test_what_is_wrong(request_, says):
    with pytest.raises(InvalidRequest) as caught:
        described(request_)
    assert str(caught.value).startswith(says)


@pytest.mark.parametrize(
    ("size", "shape", "elements", "raw"),
    [
        (IN_JSON, (1, 2), [[1, 2]], np.array([1, 2], np.float32).tobytes()),
        (IN_JSON, (1, 0), None, b""),
        (IN_JSON, (1, 0), [], b""),
        (8, (1, 2), None, b"anything"),
        (IN_MEMORY, (1, 2), None, None),
    ],
)
def test_the_raw_tensor(size, shape, elements, raw):
    assert InputForm("x", "m", "FP32", shape, size).raw(b"anything", elements) == raw


@pytest.mark.parametrize(
    ("size", "elements", "says"),
    [
        (IN_JSON, None, "unable to find data for input tensor 'x' for model 'm' in request."),
        (IN_JSON, {}, f"Unable to parse 'data' of {WHAT}: it is an object, expected an array"),
        (IN_JSON, 5, f"Unable to parse 'data' of {WHAT}: it is a number, expected an array"),
        (IN_JSON, [5], f"{WHAT} has 1 elements in its 'data', but its shape [1, 2] holds 2"),
        (8, [1, 2], f"{WHAT} has 'data' and 'binary_data_size', expected one of them"),
        (IN_MEMORY, [], f"{WHAT} has 'data' and a shared memory region, expected one of them"),
    ],
)
def test_data_that_is_wrong(size, elements, says):
    with pytest.raises(InvalidRequest) as caught:
        InputForm("x", "m", "FP32", (1, 2), size).raw(b"", elements)
    assert str(caught.value) == says


@pytest.mark.parametrize("many", ["inputs", "outputs", "parameters"])
def test_too_many(monkeypatch, many):
    monkeypatch.setattr("headrace.transport.rest.infer_json.MAX_TENSORS", 2)
    request = {"inputs": [], "outputs": [], "parameters": {}}
    request[many] = {str(n): n for n in range(3)} if many == "parameters" else [X] * 3
    with pytest.raises(InvalidRequest, match="the request has 3 inputs, outputs or parameters, at most 2 are taken"):
        described(request)
    assert infer_message.MAX_TENSORS == 65_536


SCALARS = st.none() | st.booleans() | st.integers(-2, 5) | st.floats() | st.sampled_from(["", "x", "FP32", "r"])
NAMES = st.sampled_from(
    ["name", "datatype", "shape", "parameters", "data", "inputs", "outputs", "id", "binary_data_size", "binary_data",
     "binary_data_output", "shared_memory_region", "shared_memory_byte_size", "shared_memory_offset", "classification"]
)  # fmt: skip
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=5),
    max_leaves=25,
)


@given(
    ANYTHING
    | st.fixed_dictionaries(
        {"inputs": st.lists(st.fixed_dictionaries(
            {"name": st.just("x"), "datatype": st.just("FP32"), "shape": st.lists(st.integers(-1, 3), max_size=2)},
            optional={"parameters": ANYTHING, "data": ANYTHING}), max_size=2)},
        optional={"outputs": ANYTHING, "parameters": ANYTHING, "id": ANYTHING},
    )
)  # fmt: skip
def test_whatever_comes_only_errors_of_ours_go(request_):
    try:
        (message, forms, _), data = described(request_)
        for form, elements in zip(forms, data, strict=True):
            form.raw(b"", elements)
    except HeadraceError:
        return
    assert len(message.inputs) == len(forms) == len(data)
