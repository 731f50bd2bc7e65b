import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from headrace.datatypes import DATATYPES
from headrace.errors import InvalidRequest
from headrace.messages import TensorSpec
from headrace.pipeline.checks import checks_for
from headrace.repository.model_config import InputConfig


def check(raw, datatype, shape, rules=None):
    """Runs the checks; the message of the refusal, or None."""
    spec = TensorSpec("x", datatype, shape[1:])
    try:
        for one in checks_for(spec, shape, rules, "m"):
            one(raw)
    except InvalidRequest as error:
        return str(error)
    return None


def floats(*values, dtype="<f4"):
    return np.array(values, dtype).tobytes()


def test_numbers_without_rules_are_not_looked_at():
    for datatype in set(DATATYPES) - {"BOOL", "BYTES"}:
        assert checks_for(TensorSpec("x", datatype, (2,)), (1, 2), None, "m") == []
        assert checks_for(TensorSpec("x", datatype, (2,)), (1, 2), InputConfig(), "m") == []


def test_a_bool_is_0_or_1():
    assert check(b"\0\1\1", "BOOL", (3,)) is None
    assert check(memoryview(b"\0\1\2\3"), "BOOL", (4,)) == (
        "element 2 of input 'x' for model 'm' is 2, expected a BOOL: 0 or 1"
    )
    assert check(b"", "BOOL", (1, 0)) is None


def test_text_has_the_elements_of_its_shape():
    two = b"\1\0\0\0a\2\0\0\0\xc3\xa4"
    assert check(two, "BYTES", (1, 2)) is None
    assert check(two, "BYTES", (2, 1)) is None
    assert check(two, "BYTES", (3,)) == "input 'x' for model 'm': BYTES tensor has 2 elements, expected 3"
    assert check(two[:-1], "BYTES", (2,)) == (
        "input 'x' for model 'm': BYTES tensor: element 1 of 2 has a length of 2 bytes, 1 are left"
    )
    assert check(b"\0\0\0\0", "BYTES", ()) is None
    assert check(b"", "BYTES", (5, 0)) is None


def test_text_is_utf8():
    assert check(b"\1\0\0\0a\3\0\0\0ab\xff", "BYTES", (2,)) == (
        "element 1 of input 'x' for model 'm' is not UTF-8: byte 2 is 0xff"
    )


def test_finite():
    rules = InputConfig(finite=True)
    assert check(floats(1, -2, 3e38), "FP32", (3,), rules) is None
    for bad, shown in ((math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf")):
        for at in range(3):
            values = [1.0, 2.0, 3.0]
            values[at] = bad
            assert check(floats(*values), "FP32", (3,), rules) == (
                f"element {at} of input 'x' for model 'm' is {shown}, expected a finite number"
            )


def test_a_range():
    rules = InputConfig(min=0, max=16)
    assert check(floats(0, 16, 8), "FP32", (3,), rules) is None
    text = "element 1 of input 'x' for model 'm' is 17.0, expected a value from 0 to 16"
    assert check(floats(3, 17, -1), "FP32", (3,), rules) == text
    assert check(floats(1, math.nan), "FP32", (2,), rules) == (
        "element 1 of input 'x' for model 'm' is nan, expected a value from 0 to 16"
    )
    assert check(floats(-5), "FP32", (1,), InputConfig(max=0)) is None
    assert check(floats(100), "FP32", (1,), InputConfig(max=0)) == (
        "element 0 of input 'x' for model 'm' is 100.0, expected a value from -inf to 0"
    )
    assert check(b"", "FP32", (0,), rules) is None


def test_integers_and_halves_have_a_range_too():
    rules = InputConfig(min=-1, max=5, finite=True)
    assert check(np.array([-1, 5], "<i8").tobytes(), "INT64", (2,), rules) is None
    assert check(np.array([-1, 6], "<i8").tobytes(), "INT64", (2,), rules) == (
        "element 1 of input 'x' for model 'm' is 6, expected a value from -1 to 5"
    )
    assert check(np.array([200], "u1").tobytes(), "UINT8", (1,), rules) is not None
    assert check(floats(5, dtype="<f2"), "FP16", (1,), rules) is None
    assert check(floats(math.inf, dtype="<f2"), "FP16", (1,), rules) is not None


@given(
    st.lists(st.floats(width=32), min_size=1, max_size=8),
    st.booleans(),
    st.one_of(st.none(), st.floats(-100, 0)),
    st.one_of(st.none(), st.floats(0, 100)),
)
def test_the_quick_look_agrees_with_a_look_at_each_value(values, finite, low, high):
    values = np.array(values, "<f4")
    bad = ~np.isfinite(values) if finite else np.zeros(len(values), bool)
    with np.errstate(invalid="ignore"):
        if low is not None:
            bad |= ~(values >= low)
        if high is not None:
            bad |= ~(values <= high)
    message = check(values.tobytes(), "FP32", (len(values),), InputConfig(finite=finite, min=low, max=high))
    assert (message is not None) == bad.any()
