import numpy as np
import pytest

from headrace.messages import TensorSpec
from headrace.pipeline.agreement import Tolerance, difference

FP32 = np.float32


def compare(datatype, found, expected, **tolerance):
    spec = TensorSpec("y", datatype, (-1,))
    return difference([spec], [np.asarray(found)], [np.asarray(expected)], [Tolerance(**tolerance)])


def array(*values, dtype=FP32):
    return np.array([values], dtype)


def bf16(*values):
    return (np.array([values], FP32).view(np.uint32) >> 16).astype(np.uint16)


def test_equal_is_equal():
    assert compare("FP32", array(1, -2, 0), array(1, -2, 0)) == ""
    assert compare("FP32", np.zeros((3, 0), FP32), np.zeros((3, 0), FP32)) == ""


def test_what_is_allowed_is_a_share_of_the_greatest_magnitude():
    expected = array(0.001, -100)
    assert compare("FP32", array(0.9, -100), expected, relative=0.01) == ""
    assert compare("FP32", array(0.002, -99.1), expected, relative=0.01) == ""
    assert compare("FP32", array(1.2, -100), expected, relative=0.01) == (
        "output 'y', element [0, 0]: 1.2, expected 0.001, off by 1.199, allowed 1"
    )


def test_the_absolute_part_adds_to_it():
    assert compare("FP32", array(1.5), array(0), absolute=1.5) == ""
    assert "allowed 1.5" in compare("FP32", array(1.6), array(0), absolute=1.5)
    assert compare("FP32", array(12.4), array(10), absolute=1.5, relative=0.1) == ""


def test_the_worst_element_is_named():
    assert compare("FP32", np.array([[1, 2], [3, 9]], FP32), np.array([[1, 2], [4, 5]], FP32)).startswith(
        "output 'y', element [1, 1]: 9, expected 5"
    )


def test_infinity_and_nan_have_to_be_where_they_are_expected():
    strange = array(np.nan, np.inf, -np.inf, 1)
    assert compare("FP32", strange, strange) == ""
    wide = {"absolute": 1e30, "relative": 1e30}
    assert compare("FP32", array(np.nan, 1), array(1, 1), **wide) == "output 'y', element [0, 0]: nan, expected 1"
    assert compare("FP32", array(1, np.inf), array(1, 1), **wide) == "output 'y', element [0, 1]: inf, expected 1"
    assert compare("FP32", array(1, 1), array(1, np.nan), **wide) == "output 'y', element [0, 1]: 1, expected nan"
    assert "-inf, expected inf" in compare("FP32", array(-np.inf), array(np.inf), **wide)
    assert compare("FP32", array(np.inf, 5), array(np.inf, 1), absolute=1) != "", "infinity does not allow everything"


def test_fp16_is_compared_without_overflow():
    found, expected = np.array([60000], np.float16), np.array([-60000], np.float16)
    assert "off by 120000" in compare("FP16", found, expected, relative=1)


def test_bf16_is_compared_as_numbers():
    assert compare("BF16", bf16(1.0), bf16(1.0078125), absolute=0.01) == ""
    assert "1.5, expected 1" in compare("BF16", bf16(1.5), bf16(1.0), absolute=0.01)


@pytest.mark.parametrize(
    ("datatype", "dtype", "found", "expected"),
    [
        ("INT64", np.int64, 2**62, -(2**62)),
        ("UINT64", np.uint64, 2**64 - 1, 2**64 - 4096),
        ("UINT8", np.uint8, 0, 255),
        ("BOOL", np.bool_, True, False),
    ],
)
def test_integers_are_equal_or_not(datatype, dtype, found, expected):
    assert compare(datatype, array(expected, dtype=dtype), array(expected, dtype=dtype)) == ""
    assert compare(datatype, array(found, dtype=dtype), array(expected, dtype=dtype)) != ""


def test_integers_may_differ_where_that_is_said():
    assert compare("INT32", array(7, dtype=np.int32), array(8, dtype=np.int32), absolute=1) == ""
    assert compare("INT32", array(6, dtype=np.int32), array(8, dtype=np.int32), absolute=1) != ""


def test_text_is_compared_whatever_its_type():
    texts = np.array(["a", "é"], object)
    assert compare("BYTES", texts, np.array([b"a", "é".encode()], object)) == ""
    assert compare("BYTES", texts, np.array(["a", "b"], object)) == "output 'y', element [1]: é, expected b"


def test_shape_and_type():
    assert compare("FP32", np.zeros((2, 1), FP32), np.zeros((1, 2), FP32)) == (
        "output 'y' has shape [2, 1], expected [1, 2]"
    )
    assert compare("FP32", np.zeros(1, np.float64), np.zeros(1, FP32)) == "output 'y' is float64, expected float32"


def test_each_output_has_its_own_tolerance():
    specs = [TensorSpec("a", "FP32", (1,)), TensorSpec("b", "INT64", (1,))]
    found = [array(1.5), array(3, dtype=np.int64)]
    expected = [array(1), array(4, dtype=np.int64)]
    loose, strict = Tolerance(absolute=1), Tolerance()
    assert difference(specs, found, expected, [loose, loose]) == ""
    assert difference(specs, found, expected, [loose, strict]).startswith("output 'b', element [0, 0]: 3, expected 4")
    assert difference(specs, found, expected, [strict, loose]).startswith("output 'a'")
