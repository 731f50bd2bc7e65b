"""Tensors between what a person types or reads and what the wire carries. For the command line alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.datatypes import DATATYPES
from headrace.messages import PHASES
from headrace.pipeline import bytes_tensor

if TYPE_CHECKING:
    from collections.abc import Iterable

    Array = np.ndarray[Any, Any]


class UsageError(Exception):
    """What was typed on the command line cannot be used. The message says what was wrong and what was expected."""


def read(name: str, text: str) -> object:
    """The value of an input: the array of a .npy file, or the content of a .json file or of the text itself.

    Raises UsageError that names the input.
    """
    try:
        if text.endswith(".npy"):
            with Path(text).open("rb") as file:
                return np.lib.format.read_array(file, allow_pickle=False)
        return json.loads(Path(text).read_bytes() if text.endswith(".json") else text)
    except OSError as error:
        raise UsageError(f"input {name!r}: cannot read {text}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"input {name!r}: {text[:60]!r} is no .npy file, .json file or JSON: {error}") from error


def convert(name: str, value: object, datatype: str, shape: tuple[int, ...]) -> Array:
    """The value as an array of a datatype; a batch dimension is put before a single row.

    shape: as ModelMetadata gives it, -1 for any size. Returns the NumPy dtype of the datatype, float32 for BF16 and
    objects for BYTES. Raises UsageError for what cannot be converted without changing it (floats may be rounded).
    """
    try:
        array = np.array(value, dtype=object) if datatype == "BYTES" else _convert_numbers(name, value, datatype)
    except ValueError as error:
        raise UsageError(f"input {name!r}: the lists are not of equal lengths") from error
    if datatype == "BYTES" and not all(isinstance(element, str | bytes) for element in array.ravel()):
        raise UsageError(f"input {name!r} is BYTES: expected strings")
    return array[np.newaxis] if shape[:1] == (-1,) and array.ndim == len(shape) - 1 else array


def _convert_numbers(name: str, value: object, datatype: str) -> Array:
    array = np.asarray(value)
    target = np.dtype(np.float32) if datatype == "BF16" else DATATYPES[datatype].numpy
    if array.size and array.dtype.kind not in "biuf":
        raise UsageError(f"input {name!r} is {datatype}: expected numbers, in lists of equal lengths")
    if target.kind in "iu" and array is not value and array.dtype.kind == "f":
        # as they were typed: NumPy rounds integers beyond 2**53 that stand beside others
        array = np.array(value, dtype=object)
        limits = np.iinfo(target.name)
        lost = np.array([not (limits.min <= one <= limits.max and one % 1 == 0) for one in array.flat], bool)
        lost = lost.reshape(array.shape)
        converted = np.where(lost, 0, array).astype(target)
    else:
        with np.errstate(all="ignore"):
            converted = array.astype(target)
        if target.kind == "f":
            held = from_wire(to_wire(converted, datatype), datatype, converted.shape)
            lost = np.isfinite(array) & ~np.isfinite(held)
        else:
            lost = converted != array
    if lost.any():
        raise UsageError(f"input {name!r} is {datatype}, which cannot hold {array[lost][0]}")
    return converted


def to_wire(array: Array, datatype: str) -> bytes:
    """The bytes of an array that `convert` made."""
    if datatype == "BYTES":
        return bytes_tensor.encode(array)
    if datatype == "BF16":  # the upper half of a float32, rounded to nearest, ties to even
        bits = np.ascontiguousarray(array).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
    return array.tobytes()


def from_wire(data: bytes, datatype: str, shape: tuple[int, ...]) -> Array:
    """The array that bytes from the wire hold: float32 for BF16, objects of `bytes` for BYTES."""
    if datatype == "BYTES":
        count = int(np.prod(shape))
        array = np.empty(count, dtype=object)
        array[:] = bytes_tensor.decode(data, count)
        return array.reshape(shape)
    if datatype == "BF16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
    return np.frombuffer(data, DATATYPES[datatype].numpy).reshape(shape)


def readable(array: Array) -> Array:
    """The array with `bytes` elements as text; what is no UTF-8 in escapes."""
    if array.dtype != object:
        return array
    text = np.empty(array.size, dtype=object)
    text[:] = [element.decode(errors="backslashreplace") for element in array.ravel()]
    return text.reshape(array.shape)


def in_phase_order(names: Iterable[str]) -> list[str]:
    """Names of durations in the order of a request's way, others (the total) after them."""
    return sorted(names, key=lambda name: (PHASES.index(name) if name in PHASES else len(PHASES), name))
