"""Data that are not of the tensor's datatype."""

import numpy as np
import pytest
from drift.conftest import SALT, WINDOW_MS, monitor_of, watch

from headrace.drift.errors import DriftError
from headrace.drift.fit import Source, fit_reference
from headrace.drift.values import checked


def read(datatype, *chunks, names=()):
    return list(checked(Source("a.npy", lambda: iter(chunks), None, names), datatype).chunks())


@pytest.mark.parametrize(
    ("datatype", "rows"),
    [
        ("FP64", np.array([[1e300]])),
        ("BF16", np.array([[0xFFFF]], np.uint16)),
        ("INT8", np.array([[-128.0, 127.0]])),
        ("INT64", np.array([[-(2.0**63), 2.0**63 - 1024]])),
        ("UINT64", np.array([[0, 2**64 - 1]], np.uint64)),
        ("UINT8", np.array([[True, False]])),
        ("BOOL", np.array([[0, 1.0]])),
        ("BYTES", np.array([[b"a"]], object)),
    ],
)
def test_what_the_datatype_has(datatype, rows):
    assert read(datatype, rows)[0] is rows


@pytest.mark.parametrize(
    ("datatype", "rows", "held"),
    [
        ("FP32", [np.nan, np.inf, 1e-300, 3e38, 2.0**24 + 1], [np.nan, np.inf, 0, np.float32(3e38), 2.0**24]),
        ("FP16", np.array([65504, -65504, 1001], np.int32), [65504, -65504, 1001]),
        ("FP16", [1000.1, 1000.3], [1000, 1000.5]),
        ("BF16", [3.38e38, 257, 259, -np.inf, np.nan, True], [3.37624e38, 256, 260, -np.inf, np.nan, 1]),
    ],
)
def test_floating_point_is_rounded_as_in_a_request(datatype, rows, held):
    found = read(datatype, np.array([rows]))[0][0]
    np.testing.assert_allclose(found.astype(np.float64), held, rtol=1e-5 if datatype == "BF16" else 0)


def test_a_reference_of_unrounded_data_raises_no_alarm_of_rounding():
    """Thousands in FP16 are rounded to halves: the same numbers, and other places of the distribution."""
    random = np.random.default_rng(7)
    data = Source("a.csv", lambda: iter([random.normal(1000, 1, (5000, 1))]), 5000)
    spec = watch((1,), "FP16")
    monitor = monitor_of(fit_reference([(spec, checked(data, "FP16"))], SALT, "a.csv", 0))
    monitor.count(0, {spec.key: random.normal(1000, 1, (1000, 1)).astype(np.float16)}, 1000)
    assert monitor.tick(WINDOW_MS) == []


@pytest.mark.parametrize(
    ("datatype", "value", "expected"),
    [
        ("FP32", 1e39, "1e+39, expected a number that FP32 can hold"),
        ("FP16", 65520, "65520.0, expected a number that FP16 can hold"),
        ("BF16", 3.4e38, "3.4e+38, expected a number that BF16 can hold"),
        ("INT64", np.nan, "nan, expected an integer from -9223372036854775808 to 9223372036854775807 for INT64"),
        ("INT64", 2.0**63, "9.223372036854776e+18, expected an integer from -9223372036854775808 to"),
        ("INT8", np.inf, "inf, expected an integer from -128 to 127 for INT8"),
        ("UINT8", 0.5, "0.5, expected an integer from 0 to 255 for UINT8"),
        ("UINT8", np.int32(-1), "-1, expected an integer from 0 to 255 for UINT8"),
        ("INT64", np.uint64(2**63), "9223372036854775808, expected an integer from"),
        ("BOOL", 2, "2.0, expected 0 or 1 for BOOL"),
    ],
)
def test_what_it_has_not_is_named_with_its_place(datatype, value, expected):
    dtype = value.dtype if isinstance(value, np.generic) else np.float64
    good, bad = np.ones((4, 2), dtype), np.ones((3, 2), dtype)
    bad[1, 1] = value
    with pytest.raises(DriftError) as caught:
        read(datatype, good, bad)
    assert str(caught.value).startswith(f"a.npy: row 6, element [1]: {expected}")
    with pytest.raises(DriftError, match="row 6, column 'b': "):
        read(datatype, good, bad, names=("a", "b"))
