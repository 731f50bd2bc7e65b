import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace import tensor_text
from headrace.datatypes import DATATYPES
from headrace.tensor_text import UsageError


def test_values_are_read_from_files_or_the_text_itself(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(3))
    (tmp_path / "a.json").write_text("[[1, 2]]")
    assert tensor_text.read("x", str(tmp_path / "a.npy")).tolist() == [0, 1, 2]
    assert tensor_text.read("x", str(tmp_path / "a.json")) == [[1, 2]]
    assert tensor_text.read("x", '["a"]') == ["a"]


def test_what_cannot_be_read_is_said(tmp_path):
    (tmp_path / "bad.npy").write_bytes(b"not numpy at all")
    np.save(tmp_path / "pickled.npy", np.array([{}], dtype=object))
    (tmp_path / "empty.npy").touch()
    with (tmp_path / "several.npy").open("wb") as file:
        np.savez(file, a=np.arange(3))
    for text, message in [
        (f"{tmp_path}/absent.npy", "input 'x': cannot read .*absent.npy: No such file"),
        (f"{tmp_path}/absent.json", "input 'x': cannot read .*absent.json: No such file"),
        (f"{tmp_path}/bad.npy", "is no .npy file, .json file or JSON"),
        (f"{tmp_path}/pickled.npy", "is no .npy file, .json file or JSON"),
        (f"{tmp_path}/empty.npy", "is no .npy file, .json file or JSON"),
        (f"{tmp_path}/several.npy", "is no .npy file, .json file or JSON"),
        ("[" * 100_000, "is no .npy file, .json file or JSON"),
        ("[1", "input 'x': '\\[1' is no .npy file, .json file or JSON"),
    ]:
        with pytest.raises(UsageError, match=message):
            tensor_text.read("x", text)


@pytest.mark.parametrize(
    ("value", "datatype", "shape", "expected"),
    [
        ([[1, 2]], "FP32", (-1, 2), [[1.0, 2.0]]),
        ([1, 2], "FP32", (-1, 2), [[1.0, 2.0]]),
        ([1, 2], "FP32", (2,), [1.0, 2.0]),
        (3, "INT64", (-1,), [3]),
        (np.array([1.0, 2.0]), "UINT8", (-1,), [1, 2]),
        ([0, 1, True], "BOOL", (-1,), [False, True, True]),
        ([2**64 - 1, 1, 2**53 + 1], "UINT64", (-1,), [2**64 - 1, 1, 2**53 + 1]),
        ([2**63 - 1, 1.0], "INT64", (-1,), [2**63 - 1, 1]),
        ([float("inf"), 65504], "FP16", (-1,), [float("inf"), 65504]),
        (["a", "b"], "BYTES", (-1, 2), [["a", "b"]]),
        (np.array([b"a\0b"]), "BYTES", (-1,), [b"a\0b"]),
        ([[]], "FP32", (-1, -1), [[]]),
    ],
)
def test_values_are_converted_to_the_datatype(value, datatype, shape, expected):
    array = tensor_text.convert("x", value, datatype, shape)
    assert array.tolist() == expected
    assert array.dtype == DATATYPES[datatype].numpy


@pytest.mark.parametrize(
    ("value", "datatype", "message"),
    [
        ([1.5], "INT64", "input 'x' is INT64, which cannot hold 1.5"),
        ([300], "UINT8", "input 'x' is UINT8, which cannot hold 300"),
        ([-1], "UINT64", "input 'x' is UINT64, which cannot hold -1"),
        ([2**64, 1], "UINT64", "input 'x' is UINT64: expected numbers"),
        ([2**63, 1.5], "UINT64", "input 'x' is UINT64, which cannot hold 1.5"),
        ([1e39, 1], "FP32", r"input 'x' is FP32, which cannot hold 1e\+39"),
        ([70000], "FP16", "input 'x' is FP16, which cannot hold 70000"),
        ([3.4e38], "BF16", r"input 'x' is BF16, which cannot hold 3.4e\+38"),
        ([2], "BOOL", "input 'x' is BOOL, which cannot hold 2"),
        ([float("nan")], "INT8", "input 'x' is INT8, which cannot hold nan"),
        (["a"], "FP32", "input 'x' is FP32: expected numbers"),
        ([2**70], "INT64", "input 'x' is INT64: expected numbers"),
        ({"a": 1}, "FP32", "input 'x' is FP32: expected numbers"),
        ([[1], [1, 2]], "FP32", "input 'x': the lists are not of equal lengths"),
        ([1], "BYTES", "input 'x' is BYTES: expected strings"),
    ],
)
def test_what_would_be_changed_by_it_is_refused(value, datatype, message):
    with pytest.raises(UsageError, match=message):
        tensor_text.convert("x", value, datatype, (-1,))


@pytest.mark.parametrize("datatype", DATATYPES)
def test_wire_round_trip(datatype):
    value = ["a", "", "\u20ac"] if datatype == "BYTES" else [0, 1, 1]
    array = tensor_text.convert("x", value, datatype, (-1,))
    back = tensor_text.from_wire(tensor_text.to_wire(array, datatype), datatype, (3,))
    assert tensor_text.readable(back).tolist() == value
    json.dumps(tensor_text.readable(back).tolist())


@given(st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**100), max_value=2.0**100))
def test_bfloat16_is_the_nearest(value):
    """Source of the bound: 8 significant bits, so half a unit in the last place is 2**-9 of the value's binade."""
    array = np.array([value], np.float32)
    (back,) = tensor_text.from_wire(tensor_text.to_wire(array, "BF16"), "BF16", (1,))
    assert abs(float(back) - value) <= 2.0**-8 * abs(value) + 2.0**-133


def test_bytes_that_are_no_text_are_escaped():
    assert tensor_text.readable(tensor_text.from_wire(b"\2\0\0\0\xffa", "BYTES", (1,))).tolist() == ["\\xffa"]


def test_phase_order():
    assert tensor_text.in_phase_order(["total", "execute", "queue", "decode"]) == [
        "decode",
        "queue",
        "execute",
        "total",
    ]
