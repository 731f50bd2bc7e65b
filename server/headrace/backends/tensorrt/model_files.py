"""An ONNX file and what belongs to it: its bytes, the files that hold its large weights, and a digest of all.

The file is walked as a protocol-buffer message, so the onnx package is not needed, and nothing is copied.
Source: onnx.proto (ONNX 1.23), "External Data" in its documentation.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from headrace.errors import ModelLoadError
from headrace.pipeline.wire import LENGTH_DELIMITED, Malformed, read_varint, skip_field

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_INSIDE: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 11: "Value", 12: "Value", 15: "SparseTensor"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "Entry"},
}
"""Message -> number of a field -> message in it, on the way to tensors and to what a graph takes and gives."""
_STRING = 8  # onnx.TensorProto.STRING
_DEPTH = 64
"""Graphs in graphs; protobuf's own parsers give up at 100 messages."""


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model file that was read. external: the files beside it that hold weights. digest: SHA-256 over all, hex.

    external_tensors: how many tensors are in such files.
    """

    path: Path
    model: bytes
    external: tuple[Path, ...]
    digest: str
    marks: tuple[tuple[int, int, int], ...]
    external_tensors: int = 0

    @property
    def nbytes(self) -> int:
        """Of all files."""
        return len(self.model) + sum(size for _, size, _ in self.marks)

    def check_unchanged(self) -> None:
        """Raises ModelLoadError where a file of weights is not the one any more that was read."""
        try:
            same = _marks(self.external) == self.marks
        except OSError:  # it is not even there
            same = False
        if not same:
            raise ModelLoadError(f"files of {self.path.parent} changed while an engine was built from them")


@dataclass(frozen=True, slots=True)
class Mentions:
    """What a file says. locations: of external data. strings: names of inputs and outputs that hold texts.

    external_tensors: those that have a location.
    """

    locations: tuple[str, ...]
    strings: tuple[str, ...]
    external_tensors: int


def read(path: Path) -> ModelFiles:
    """Reads a model. Raises ModelLoadError unless it is an ONNX file, and all that it wants lies beside it."""
    try:
        model = path.read_bytes()
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        mentions = walk(model)
    except Malformed as error:
        raise ModelLoadError(f"{path} is not an ONNX file: {error}") from error
    if mentions.strings:
        raise ModelLoadError(f"{mentions.strings[0]!r} of {path} is of datatype BYTES, which TensorRT does not have")
    external = []
    for location in mentions.locations:
        inside = PurePosixPath(location)
        if inside.is_absolute() or ".." in inside.parts or not inside.name:
            raise ModelLoadError(f"{path} wants weights from {location!r}, which is no file beside it")
        external.append(path.parent / inside)
    digest = hashlib.sha256(len(model).to_bytes(8, "big"))
    digest.update(model)
    try:
        marks = _marks(tuple(external))
        for location, file in zip(mentions.locations, external, strict=True):
            with file.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").digest()
            name = location.encode()
            digest.update(len(name).to_bytes(8, "big") + name + content)
    except OSError as error:
        raise ModelLoadError(f"{error.filename}, which {path} wants weights from, cannot be read: {error}") from error
    return ModelFiles(path, model, tuple(external), digest.hexdigest(), marks, mentions.external_tensors)


def walk(model: bytes) -> Mentions:
    """What a serialised ModelProto mentions. Raises Malformed."""
    locations: list[str] = []
    strings: list[str] = []
    pending = [("Model", memoryview(model), 0)]
    while pending:
        kind, message, depth = pending.pop()
        if depth > _DEPTH * 3:  # a graph in a graph is three messages deeper
            raise Malformed(f"graphs are more than {_DEPTH} deep")
        for number, content in _fields(message):
            inside = _INSIDE[kind].get(number)
            if inside == "Entry":
                if _text(content, 1) == "location":
                    locations.append(_text(content, 2))
            elif inside == "Value":
                if _element_type(content) == _STRING:
                    strings.append(_text(content, 1))
            elif inside is not None:
                pending.append((inside, content, depth + 1))
    return Mentions(tuple(sorted(set(locations))), tuple(strings), len(locations))


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The length-delimited fields of a message: number and content."""
    at = 0
    while at < len(message):
        key, at = read_varint(message, at)
        end = skip_field(message, at, key & 7)
        if key & 7 == LENGTH_DELIMITED:
            length, start = read_varint(message, at)
            yield key >> 3, message[start : start + length]
        at = end


def _find(message: memoryview, wanted: int) -> memoryview:
    return next((content for number, content in _fields(message) if number == wanted), memoryview(b""))


def _text(message: memoryview, number: int) -> str:
    return bytes(_find(message, number)).decode(errors="replace")


def _element_type(value: memoryview) -> int:
    """Of a ValueInfoProto: type, tensor_type, elem_type; 0 if it is none of a tensor."""
    tensor = _find(_find(value, 2), 1)
    if len(tensor) > 1 and tensor[0] == 1 << 3:
        element, _ = read_varint(tensor, 1)
        return element
    return 0


def _marks(files: tuple[Path, ...]) -> tuple[tuple[int, int, int], ...]:
    """What changes when a file does."""
    found = (file.stat() for file in files)
    return tuple((status.st_ino, status.st_size, status.st_mtime_ns) for status in found)
