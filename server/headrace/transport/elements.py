"""From numbers, as a request writes them one by one, to the raw little-endian bytes of a tensor."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.datatypes import DATATYPES
from headrace.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    Array = np.ndarray[Any, np.dtype[Any]]


def raw_numbers(values: Sequence[float], datatype: str, what: str) -> bytes:
    """The raw form of numbers (ints for integers and BOOL) of one datatype. what: names the tensor.

    Raises InvalidRequest for one that the datatype cannot hold. What is between two floats becomes the nearer one.
    """
    dtype = DATATYPES[datatype].numpy
    if datatype == "BF16" or dtype.kind == "f":
        return _raw_floats(values, datatype, what)
    try:
        wide = np.array(values, dtype=np.uint64 if dtype.kind == "u" else np.int64)
    except OverflowError:
        info = np.iinfo(np.uint64 if dtype.kind == "u" else np.int64)
        at = next(at for at, value in enumerate(values) if not info.min <= value <= info.max)
        raise _cannot_hold(at, values[at], datatype, what) from None
    narrow = wide.astype(dtype)
    if not np.array_equal(narrow, wide):
        at = int(np.argmax(narrow != wide))
        raise _cannot_hold(at, int(wide[at]), datatype, what)
    return narrow.tobytes()


def bfloat16(values: Array) -> Array:
    """FP32 as bit patterns of BF16, rounded to the nearest and among two to the even one; NaN stays NaN."""
    bits = values.view(np.uint32)
    rounded = (bits + (0x7FFF + (bits >> 16 & 1))) >> 16
    return np.where(np.isnan(values), bits >> 16 | 0x40, rounded).astype(np.uint16)


def from_bfloat16(patterns: Array) -> Array:
    """Bit patterns of BF16 as FP32."""
    return (patterns.astype(np.uint32) << 16).view(np.float32)


def _raw_floats(values: Sequence[float], datatype: str, what: str) -> bytes:
    try:
        wide = np.array(values, dtype=np.float64)
    except OverflowError:  # an int beyond all floats
        at = next(at for at, value in enumerate(values) if isinstance(value, int) and abs(value) > sys.float_info.max)
        raise _cannot_hold(at, values[at], datatype, what) from None
    with np.errstate(over="ignore"):
        if datatype == "BF16":
            narrow = bfloat16(wide.astype(np.float32))
            read = from_bfloat16(narrow)
        else:
            narrow = read = wide.astype(DATATYPES[datatype].numpy)
    if not np.isfinite(read).all() and (lost := np.isinf(read) & np.isfinite(wide)).any():
        at = int(np.argmax(lost))
        raise _cannot_hold(at, float(wide[at]), datatype, what)
    return narrow.tobytes()


def _cannot_hold(at: int, value: float, datatype: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"element {at} of {what} is {str(value)[:40]}, which {datatype} cannot hold")
