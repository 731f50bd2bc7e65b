"""One file of JSON and arrays that says what it is, and tells when it is not what was written.

Layout: 8 octets magic, 2 of version, 2 zero, 4 the length of the head, all little-endian; the head, JSON: what was
given, and under "arrays" the name, dtype, shape of each; the arrays' octets one after another, little-endian; BLAKE2b
of all that, 16 octets.
"""

from __future__ import annotations

import json
import os
import struct
from hashlib import blake2b
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.drift.errors import DriftError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

MAGIC = b"HRdrift\0"
VERSION = 1
_HEAD = struct.Struct("<8sHHI")
_DIGEST = 16
_DTYPES = ("<i8", "<f8", "<f4", "|u1")
LARGEST = 1 << 30
"""Octets that are read at most."""


def pack(head: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """The octets of a file. head: JSON without the key "arrays"; arrays: INT64, FP64, FP32 or UINT8."""
    little = {name: np.ascontiguousarray(array, array.dtype.newbyteorder("<")) for name, array in arrays.items()}
    listed = [[name, array.dtype.str, list(array.shape)] for name, array in little.items()]
    text = json.dumps({**head, "arrays": listed}, separators=(",", ":")).encode()
    body = b"".join([_HEAD.pack(MAGIC, VERSION, 0, len(text)), text, *(array.tobytes() for array in little.values())])
    return body + _digest(body)


def unpack(data: bytes) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """What `pack` was given. Raises DriftError for anything else."""
    if len(data) < _HEAD.size + _DIGEST or not data.startswith(MAGIC):
        raise DriftError("no record of drift windows: it does not begin as one")
    _, version, _, length = _HEAD.unpack_from(data)
    if version != VERSION:
        raise DriftError(f"a record of drift windows of version {version}, expected {VERSION}")
    if _digest(memoryview(data)[:-_DIGEST]) != data[-_DIGEST:]:
        raise DriftError("a damaged record of drift windows: its checksum is another")
    end = _HEAD.size + length
    head = json.loads(data[_HEAD.size : end])
    arrays: dict[str, NDArray[Any]] = {}
    for name, dtype, shape in head.pop("arrays"):
        if dtype not in _DTYPES:
            raise DriftError(
                f"a record of drift windows with an array of {dtype}, expected one of {', '.join(_DTYPES)}"
            )
        size = prod(shape) * np.dtype(dtype).itemsize
        arrays[name] = np.frombuffer(data[end : end + size], dtype).reshape(shape)
        end += size
    return head, arrays


def _digest(body: bytes | memoryview) -> bytes:
    return blake2b(body, digest_size=_DIGEST).digest()


def write_atomically(path: Path, data: bytes) -> None:
    """Puts `data` at `path`, so that who reads sees what was there or all of it, after a crash too. Raises OSError.

    What is there and no file, such as /dev/stdout, is written to, not replaced.
    """
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:  # which may name the part, or nothing
        raise OSError(error.errno, f"cannot be written: {error.strerror or error}", str(path)) from error
    finally:
        part.unlink(missing_ok=True)


def read_bounded(path: Path, largest: int = LARGEST) -> bytes:
    """The octets of a file. Raises DriftError if there are more than `largest`, OSError."""
    with path.open("rb") as file:
        data = file.read(largest + 1)
    if len(data) > largest:
        raise DriftError(f"{path}: larger than {largest} octets")
    return data
