import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from headrace.datatypes import DATATYPES
from headrace.errors import HeadraceError, InvalidRequest
from headrace.messages import TensorSpec
from headrace.pipeline import bytes_tensor
from headrace.transport.elements import bfloat16
from headrace.transport.rest.json_tensors import raw_of, text_of

WHAT = "input 'x' for model 'm'"
NUMBERS = [name for name in DATATYPES if name not in ("BYTES", "BF16")]


def raw(array, datatype):
    return bytes_tensor.encode(array) if datatype == "BYTES" else array.tobytes()


@st.composite
def tensors(draw):
    """(datatype, array): of BYTES one of objects."""
    datatype = draw(st.sampled_from([*NUMBERS, "BYTES"]))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3))
    if datatype == "BYTES":
        flat = draw(st.lists(st.text(max_size=5), min_size=int(np.prod(shape)), max_size=int(np.prod(shape))))
        array = np.empty(len(flat), object)
        array[:] = flat
        return datatype, array.reshape(shape)
    return datatype, draw(hnp.arrays(DATATYPES[datatype].numpy, shape))


@given(tensors())
def test_there_and_back(tensor):
    datatype, array = tensor
    text = text_of(raw(array, datatype), TensorSpec("y", datatype, array.shape), array.shape)
    again = raw_of(json.loads(text), datatype, array.shape, WHAT)
    if DATATYPES[datatype].numpy.kind == "f":
        np.testing.assert_array_equal(np.frombuffer(again, array.dtype), array.ravel())  # all NaN are alike
    else:
        assert again == raw(array, datatype)


@given(tensors())
def test_flat_or_nested_is_the_same(tensor):
    datatype, array = tensor
    flat, nested = array.ravel().tolist(), array.tolist()
    nested = nested if isinstance(nested, list) else [nested]
    if 0 not in array.shape:
        assert raw_of(nested, datatype, array.shape, WHAT) == raw_of(flat, datatype, array.shape, WHAT)


def test_bfloat16_is_written_as_numbers():
    patterns = bfloat16(np.array([1.5, -2, np.inf], np.float32))
    assert text_of(patterns.tobytes(), TensorSpec("y", "BF16", (3,)), (3,)) == b"[1.5,-2.0,Infinity]"
    assert raw_of([1.5, -2, float("inf")], "BF16", (3,), WHAT) == patterns.tobytes()


def test_memory_that_is_not_aligned():
    octets = memoryview(b"x" + np.array([1, 2], np.float32).tobytes())[1:]
    assert text_of(octets, TensorSpec("y", "FP32", (2,)), (2,)) == b"[1.0,2.0]"


@pytest.mark.parametrize("data", [[[1, 2], [3, 4]], [1, 2, 3, 4], [[[1, 2]], [[3, 4]]], [[[[1], [2]], [[3], [4]]]]])
def test_dimensions_of_one_make_no_difference(data):
    assert raw_of(data, "UINT8", (1, 2, 1, 2), WHAT) == bytes([1, 2, 3, 4])


@pytest.mark.parametrize(
    ("data", "datatype", "shape", "says"),
    [
        ([1, 2, 3], "FP32", (2, 2), f"{WHAT} has 3 elements in its 'data', but its shape [2, 2] holds 4"),
        ([[1, 2], [3]], "FP32", (2, 2),
         f"{WHAT}: in 'data', array 1 of level 1 is 1 elements, expected 2 elements as in the first"),
        ([[1, 2], 3], "FP32", (2, 2),
         f"{WHAT}: in 'data', array 1 of level 1 is an integer, expected 2 elements as in the first"),
        ([[[1], [2]], [[3], []]], "FP32", (2, 2), f"{WHAT}: in 'data', array 3 of level 2 is 0 elements, expected 1 "
                                                   "elements as in the first"),
        ([1, [2]], "FP32", (2,), f"element 1 of {WHAT} is an array, expected a number"),
        ([[1, 2], [3, 4], [5, 6]], "FP32", (2, 3),
         f"{WHAT} has 'data' nested as [3, 2], expected [2, 3] as its shape is, or a flat array"),
        ([1, "2"], "FP32", (2,), f"element 1 of {WHAT} is a string, expected a number"),
        ([1, True], "FP64", (2,), f"element 1 of {WHAT} is a boolean, expected a number"),
        ([1, None], "FP16", (2,), f"element 1 of {WHAT} is null, expected a number"),
        ([1, {}], "BF16", (2,), f"element 1 of {WHAT} is an object, expected a number"),
        ([1, 2.0], "INT8", (2,), f"element 1 of {WHAT} is a number with a fraction, expected an integer"),
        ([True], "INT8", (1,), f"element 0 of {WHAT} is a boolean, expected an integer"),
        ([128], "INT8", (1,), f"element 0 of {WHAT} is 128, which INT8 cannot hold"),
        ([-1], "UINT64", (1,), f"element 0 of {WHAT} is -1, which UINT64 cannot hold"),
        ([1e39], "FP32", (1,), f"element 0 of {WHAT} is 1e+39, which FP32 cannot hold"),
        ([1.0], "BOOL", (1,), f"element 0 of {WHAT} is a number with a fraction, expected true or false"),
        ([2], "BOOL", (1,), f"element 0 of {WHAT} is 2, which BOOL cannot hold"),
        ([1], "BYTES", (1,), f"element 0 of {WHAT} is an integer, expected a string"),
        (["\ud800"], "BYTES", (1,), f"element 0 of {WHAT} has half of a surrogate pair, expected Unicode"),
    ],
)  # fmt: skip
def test_what_is_wrong(data, datatype, shape, says):
    with pytest.raises(InvalidRequest) as caught:
        raw_of(data, datatype, shape, WHAT)
    assert str(caught.value) == says


def test_of_a_datatype_that_there_is_not_nothing_is_made():
    assert raw_of([1], "FLOAT", (1,), WHAT) == b""


def test_text_that_is_not_utf_8_is_told_where_to_go():
    with pytest.raises(InvalidRequest, match="element 1 of output 'y' is not UTF-8 and cannot stand in JSON"):
        text_of(b"\1\0\0\0a\1\0\0\0\xff", TensorSpec("y", "BYTES", (2,)), (2,))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=12,
)


@given(st.lists(JSON, max_size=4), st.sampled_from(sorted(DATATYPES)), st.lists(st.integers(-1, 4), max_size=3))
def test_whatever_comes_only_errors_of_ours_go(data, datatype, shape):
    try:
        made = raw_of(data, datatype, shape, WHAT)
    except HeadraceError:
        return
    itemsize = DATATYPES[datatype].itemsize
    assert not itemsize or len(made) == itemsize * np.prod(shape, dtype=int)
