import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.datatypes import DATATYPES
from headrace.messages import Fit, TensorSpec
from headrace.pipeline.padding import MASK, Filling, Padding, number


def fit(own, length, size=4):
    return Fit((length,), (size,), (own,), 0, 0)


def laid(padding, parts, members, shape, dtype):
    (part,) = padding.lay(0, parts, members, shape)
    return np.frombuffer(part, dtype).reshape(shape).tolist()


def test_rows_are_laid_one_after_another_and_filled_up():
    padding = Padding(TensorSpec("x", "INT16", (-1,)), ((0, 0),), -1, None)
    parts = [np.array([[1, 2, 3], [4, 5, 6]], "<i2").tobytes(), np.array([[7]], "<i2").tobytes(), b""]
    members = [(fit((3,), 3), 2), (fit((1,), 1), 1), (fit((0,), 0), 1)]
    assert laid(padding, parts, members, (4, 4), "<i2") == [[1, 2, 3, -1], [4, 5, 6, -1], [7, -1, -1, -1], [-1] * 4]
    assert repr(padding) == "<Padding of x along {0: 0} by -1>"


def test_what_fills_its_bucket_is_left_where_it_is():
    padding = Padding(TensorSpec("x", "INT16", (-1,)), ((0, 0),), 0, None)
    parts = [memoryview(bytes(8)), b"12345678"]
    assert padding.lay(0, parts, [(fit((4,), 4), 1)] * 2, (2, 4)) is parts
    fixed = Padding(TensorSpec("t", "BYTES", (2,)), (), 0, None)
    assert fixed.lay(0, parts, [(fit((2,), 1), 1), (fit((2,), 3), 1)], (2, 2)) is parts


def test_a_dimension_in_the_middle_and_two_at_once():
    padding = Padding(TensorSpec("x", "UINT8", (2, -1, 1, -1)), ((1, 0), (3, 1)), 9, None)
    assert padding.shape((2, 1, 1, 2), (2, 3)) == (2, 2, 1, 3)
    member = Fit((1, 2), (2, 3), ((2, 1, 1, 2),), 0, 0)
    found = laid(padding, [bytes([1, 2, 3, 4])], [(member, 1)], (1, 2, 2, 1, 3), np.uint8)
    assert found == [[[[[1, 2, 9]], [[9, 9, 9]]], [[[3, 4, 9]], [[9, 9, 9]]]]]


@pytest.mark.parametrize("datatype", sorted(set(DATATYPES) - {"BYTES"}))
def test_a_mask_of_every_datatype(datatype):
    dtype = DATATYPES[datatype].numpy
    padding = Padding(TensorSpec("mask", datatype, (1, -1)), ((1, 0),), 0, MASK)
    own = np.array([[number(1, datatype), number(0, datatype)]], dtype).tobytes()  # a client's own, of length 2
    members = [(fit(None, 3), 2), (fit((1, 2), 2), 1), (fit(None, 0), 1)]
    one = number(1, datatype).item()
    assert laid(padding, [b"", own, b""], members, (4, 1, 4), dtype) == [
        [[one, one, one, 0]], [[one, one, one, 0]], [[one, 0, 0, 0]], [[0, 0, 0, 0]],
    ]  # fmt: skip
    assert one == (0x3F80 if datatype == "BF16" else 1)


def test_a_mask_of_two_lengths():
    padding = Padding(TensorSpec("mask", "BOOL", (-1, -1)), ((0, 0), (1, 1)), 0, MASK)
    member = Fit((1, 2), (2, 3), (None,), 0, 0)
    assert laid(padding, [b""], [(member, 1)], (1, 2, 3), np.bool_) == [[[True, True, False], [False] * 3]]


@pytest.mark.parametrize("dims", [(), (1,)])
def test_the_lengths_of_rows(dims):
    padding = Padding(TensorSpec("lengths", "INT64", dims), (), 0, Filling(0))
    own = np.array([7, 8], "<i8").tobytes()
    members = [(fit(None, 3), 2), (fit(dims, 1), 2), (fit(None, 0), 1)]
    found = laid(padding, [b"", own, b""], members, (5, *dims), "<i8")
    assert np.ravel(found).tolist() == [3, 3, 7, 8, 0]


def test_numbers_of_a_datatype():
    assert number(255, "UINT8") == 255
    assert number(1, "BOOL") is np.True_
    assert number(-math.inf, "FP16") == -math.inf
    assert math.isnan(number(math.nan, "FP32"))
    assert number(0.1, "FP32") == np.float32(0.1)


@pytest.mark.parametrize(
    ("value", "datatype"),
    [(256, "UINT8"), (-1, "UINT64"), (0.5, "INT32"), (2, "BOOL"), (70_000, "FP16"), (math.nan, "INT8"),
     (math.inf, "INT64"), (1e39, "FP32")],
)  # fmt: skip
def test_numbers_that_a_datatype_does_not_have(value, datatype):
    with pytest.raises(ValueError, match=f"is no {datatype}"):
        number(value, datatype)


@given(st.floats(width=32))
def test_bf16_is_the_nearest(value):
    found = (np.array(int(number(value, "BF16")), np.uint32) << 16).view(np.float32)
    if math.isnan(value):
        assert np.isnan(found)
    elif math.isinf(value) or abs(value) > 3.3e38:
        assert abs(found) > 3.3e38
        assert (found > 0) == (value > 0)
    else:
        around = [
            (np.array((int(number(value, "BF16")) + step) & 0xFFFF, np.uint32) << 16).view(np.float32)
            for step in (-1, 1)
        ]
        distances = [abs(float(other) - value) for other in around if np.isfinite(other)]
        assert abs(float(found) - value) <= min(distances)
