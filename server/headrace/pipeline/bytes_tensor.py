"""BYTES tensors: each element a 4-byte little-endian length, then that many bytes.

Source: Open Inference Protocol, binary tensor data extension.
"""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from headrace.errors import InvalidRequest

if TYPE_CHECKING:
    import numpy as np

    from headrace.messages import Buffer

_LENGTH = struct.Struct("<I")


def offsets(buffer: Buffer, count: int) -> list[int]:
    """Where each element begins (at its length), and last where the data ends: count + 1 integers.

    `offsets(...)[::elements_per_row]` are the bounds of rows. Raises InvalidRequest when the data is not exactly
    `count` elements.
    """
    size = len(buffer)
    at = 0
    result = [0]
    unpack = _LENGTH.unpack_from
    for index in range(count):
        if at + 4 > size:
            raise InvalidRequest(
                f"BYTES tensor has {index} elements, expected {count}"
                if at == size
                else f"BYTES tensor: element {index} of {count} needs 4 bytes for its length, {size - at} are left"
            )
        (length,) = unpack(buffer, at)
        at += 4 + length
        if at > size:
            left = size - at + length
            raise InvalidRequest(
                f"BYTES tensor: element {index} of {count} has a length of {length} bytes, {left} are left"
            )
        result.append(at)
    if at != size:
        raise InvalidRequest(f"BYTES tensor has {size - at} bytes after its last element, expected {count} elements")
    return result


def decode(buffer: Buffer, count: int) -> list[bytes]:
    """The elements. Raises InvalidRequest when the data is not exactly `count` of them."""
    bounds = offsets(buffer, count)
    return [bytes(buffer[start + 4 : end]) for start, end in pairwise(bounds)]


def encode(array: np.ndarray[Any, Any]) -> bytes:
    """The wire form of an array of `bytes` or `str` (as UTF-8), in C order."""
    return b"".join(map(_encode_element, array.ravel().tolist()))


def encode_rows(array: np.ndarray[Any, Any]) -> list[bytes]:
    """The wire form of each row of the first dimension."""
    elements = array.ravel().tolist()
    per_row = array.size // max(len(array), 1)
    return [b"".join(map(_encode_element, elements[row * per_row : (row + 1) * per_row])) for row in range(len(array))]


def _encode_element(element: bytes | str) -> bytes:
    data = element.encode() if isinstance(element, str) else element
    return _LENGTH.pack(len(data)) + data
