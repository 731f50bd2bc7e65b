"""The bytes of requests, laid into the memory that a model reads."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.datatypes import DATATYPES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from headrace.messages import Buffer, TensorSpec

    Array = np.ndarray[Any, Any]

COPY_EACH_BYTES = 64 << 10
"""From here on, copying a request's rows by themselves costs less than joining all rows first."""


def lay(view: memoryview, parts: Sequence[Buffer]) -> None:
    """Lays the parts one after another. Raises ValueError unless they fill the view exactly."""
    if len(view) < COPY_EACH_BYTES * len(parts):
        view[:] = parts[0] if len(parts) == 1 else b"".join(parts)
    else:
        _copy_parts(view, parts)


def _copy_parts(view: memoryview, parts: Iterable[Buffer]) -> None:
    """By NumPy, which lets go of the interpreter lock while it copies."""
    target = np.frombuffer(view, np.uint8)
    at = 0
    for part in parts:
        end = at + len(part)
        target[at:end] = np.frombuffer(part, np.uint8)
        at = end
    if at != len(target):
        raise ValueError(f"{at} bytes of input, expected {len(target)}")


def row_bytes(spec: TensorSpec) -> int:
    """Bytes of a row of a tensor with fixed dimensions, or of all of it where the model does not batch."""
    return DATATYPES[spec.datatype].itemsize * math.prod(spec.shape)


def typed(buffer: Array, spec: TensorSpec, start: int, shape: tuple[int, ...]) -> Array:
    """The tensor of that shape whose first row is row `start` of a buffer of UINT8."""
    dtype = DATATYPES[spec.datatype].numpy
    first = start * row_bytes(spec)
    return buffer[first : first + dtype.itemsize * math.prod(shape)].view(dtype).reshape(shape)


def aligned_bytes(size: int) -> Array:
    """Uninitialised bytes that begin at a cache line, which the widest vector loads like."""
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size]
