import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.datatypes import DATATYPES
from headrace.errors import InvalidRequest
from headrace.transport.elements import bfloat16, from_bfloat16, raw_numbers

WHOLE = ["UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"]


@pytest.mark.parametrize("datatype", WHOLE)
def test_whole_numbers_up_to_their_bounds(datatype):
    dtype = DATATYPES[datatype].numpy
    info = np.iinfo(dtype)
    values = [int(info.min), 0, 1, int(info.max)]
    assert raw_numbers(values, datatype, "x") == np.array(values, dtype).tobytes()
    for beyond in (info.min - 1, info.max + 1, 1 << 100):
        with pytest.raises(InvalidRequest, match=f"^element 1 of x is {int(beyond)}, which {datatype} cannot hold$"):
            raw_numbers([0, int(beyond)], datatype, "x")


def test_booleans():
    assert raw_numbers([True, False, 1, 0], "BOOL", "x") == b"\1\0\1\0"
    with pytest.raises(InvalidRequest, match="element 1 of x is 2, which BOOL cannot hold"):
        raw_numbers([True, 2], "BOOL", "x")


@pytest.mark.parametrize(
    ("datatype", "greatest", "beyond"),
    [
        ("FP16", 65504.0, 65520.0),
        ("BF16", 3.3895313892515355e38, 3.4e38),
        ("FP32", 3.4028234663852886e38, 3.5e38),
        ("FP64", 1.7976931348623157e308, 10**309),
    ],
)
def test_floats_up_to_their_bounds(datatype, greatest, beyond):
    raw = raw_numbers([greatest, -greatest, 1, float("inf"), float("-inf")], datatype, "x")
    array = np.frombuffer(raw, DATATYPES[datatype].numpy)
    array = from_bfloat16(array) if datatype == "BF16" else array
    assert array.tolist() == [greatest, -greatest, 1, float("inf"), float("-inf")]
    assert np.isnan(np.frombuffer(raw_numbers([float("nan")], "FP16", "x"), np.float16)).all()
    with pytest.raises(InvalidRequest, match=f"^element 1 of x is .*, which {datatype} cannot hold$"):
        raw_numbers([float("nan"), beyond], datatype, "x")


@given(st.lists(st.floats(width=32)))
def test_bfloat16_is_that_of_a_library(values):
    array = np.array(values, np.float32)
    with np.errstate(invalid="ignore"):
        expected = array.astype(ml_dtypes.bfloat16)
    got = from_bfloat16(bfloat16(array))
    np.testing.assert_array_equal(got, expected.astype(np.float32))


@given(st.lists(st.integers(0, 0xFFFF)))
def test_bfloat16_there_and_back(patterns):
    array = np.array(patterns, np.uint16)
    back = bfloat16(from_bfloat16(array))
    nan = np.isnan(from_bfloat16(array))
    np.testing.assert_array_equal(back[~nan], array[~nan])
    assert np.isnan(from_bfloat16(back[nan])).all()
