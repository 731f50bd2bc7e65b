"""The weights of an ONNX file: how many bytes they take, and a digest of them. Pure, but for reading.

The file is walked as a protocol-buffer message: the onnx package is not needed, and nothing is copied.
Source: onnx.proto3 (ONNX 1.23), "External Data" in its documentation.
"""

from __future__ import annotations

import hashlib
import mmap
from dataclasses import dataclass
from math import prod
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from headrace.errors import ModelLoadError
from headrace.pipeline.wire import LENGTH_DELIMITED, Malformed, read_varint, skip_field

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_INSIDE: dict[str, dict[int, str]] = {
    "Model": {7: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
}
"""Message -> number of a field -> message in it, on the way to tensors."""
_DIMS, _DATA_TYPE, _EXTERNAL = 1, 2, 13  # fields of TensorProto
_KEY, _VALUE = 1, 2  # of StringStringEntryProto
_BITS = {
    **dict.fromkeys((2, 3, 9, 17, 18, 19, 20, 24), 8),  # UINT8, INT8, BOOL, the FP8s
    **dict.fromkeys((4, 5, 10, 16), 16),  # UINT16, INT16, FLOAT16, BFLOAT16
    **dict.fromkeys((1, 6, 12), 32),  # FLOAT, INT32, UINT32
    **dict.fromkeys((7, 11, 13, 14), 64),  # INT64, DOUBLE, UINT64, COMPLEX64
    15: 128,
    **dict.fromkeys((21, 22, 23), 4),  # UINT4, INT4, FLOAT4E2M1
    **dict.fromkeys((25, 26), 2),  # UINT2, INT2
    **dict.fromkeys((27, 28), 6),  # the FP6s
}
"""TensorProto.DataType -> bits of an element; strings stay on the processor."""
_DEPTH = 200
"""Messages in messages; protobuf's own parsers give up at 100."""


@dataclass(frozen=True, slots=True)
class Weights:
    """nbytes: of all tensors in the file. external: other files that hold some of them, relative to the file."""

    nbytes: int
    external: tuple[str, ...]


def read_weights(file: Path) -> Weights:
    """The weights of a model file. One in ONNX Runtime's own format counts as a whole. Raises ModelLoadError."""
    try:
        if file.suffix == ".ort" or not file.stat().st_size:
            return Weights(file.stat().st_size, ())
        with file.open("rb") as stream:
            return weights_in(memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)))
    except Malformed as error:
        raise ModelLoadError(f"{file} is not an ONNX file: {error}") from error
    except OSError as error:
        raise ModelLoadError(f"{file} cannot be read: {error.strerror or error}") from error


def weights_in(model: memoryview) -> Weights:
    """The weights of a serialised ModelProto. Raises Malformed."""
    nbytes = 0
    external: dict[str, None] = {}
    pending = [("Model", model, 0)]
    while pending:
        kind, message, depth = pending.pop()
        if depth > _DEPTH:
            raise Malformed(f"messages are more than {_DEPTH} deep")
        if kind == "Tensor":
            size, location = _tensor(message)
            nbytes += size
            if location:
                external[location] = None
            continue
        for number, content in _fields(message):
            inside = _INSIDE[kind].get(number)
            if inside is not None and isinstance(content, memoryview):
                pending.append((inside, content, depth + 1))
    return Weights(nbytes, tuple(sorted(external)))


def digest_of(file: Path, *more: str) -> str:
    """SHA-256 (hex) over a model file, the files that hold weights of it, and texts. Raises ModelLoadError."""
    digest = hashlib.sha256()
    for text in more:
        digest.update(len(text.encode()).to_bytes(8, "big") + text.encode())
    for path in (file, *external_files(file)):
        try:
            with path.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        except OSError as error:
            raise ModelLoadError(f"{path} cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()


def external_files(file: Path) -> list[Path]:
    """The other files that hold weights. Raises ModelLoadError for one that does not lie beside the model."""
    found = []
    for location in read_weights(file).external:
        inside = PurePosixPath(location)
        if inside.is_absolute() or ".." in inside.parts or not inside.name:
            raise ModelLoadError(f"{file} wants weights from {location!r}, which is no file beside it")
        found.append(file.parent / inside)
    return found


def _tensor(message: memoryview) -> tuple[int, str]:
    """Bytes of a tensor once it is loaded, and the other file that holds them."""
    dims: list[int] = []
    data_type = 0
    location = ""
    for number, content in _fields(message):
        if number == _DIMS:
            dims += [content] if isinstance(content, int) else _packed(content)
        elif number == _DATA_TYPE and isinstance(content, int):
            data_type = content
        elif number == _EXTERNAL and isinstance(content, memoryview) and _text(content, _KEY) == "location":
            location = _text(content, _VALUE)
    return (prod(dims) * _BITS.get(data_type, 0) + 7) // 8, location


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The fields of a message that are integers or length-delimited: number and content."""
    at = 0
    while at < len(message):
        key, at = read_varint(message, at)
        end = skip_field(message, at, key & 7)
        if key & 7 == LENGTH_DELIMITED:
            length, start = read_varint(message, at)
            yield key >> 3, message[start : start + length]
        elif key & 7 == 0:
            yield key >> 3, read_varint(message, at)[0]
        at = end


def _packed(content: memoryview) -> list[int]:
    found, at = [], 0
    while at < len(content):
        value, at = read_varint(content, at)
        found.append(value)
    return found


def _text(message: memoryview, wanted: int) -> str:
    for number, content in _fields(message):
        if number == wanted and isinstance(content, memoryview):
            return bytes(content).decode(errors="replace")
    return ""
