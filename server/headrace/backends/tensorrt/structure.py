"""Which ONNX files differ in their weights alone: those of equal structure. Pure.

A weight here is a constant in floating point that only layers' parameters are made of, and that has more elements than
a tensor has dimensions: everything that may decide on a shape, an axis or an epsilon is structure. So is what TensorRT
may fold into something that cannot be given other values: if in doubt, an engine is built.

Source: onnx.proto and Operators.md (ONNX 1.23); TensorRT's OnnxParserRefitter, which finds weights by these names.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, NamedTuple

from headrace.pipeline.wire import LENGTH_DELIMITED, read_varint, skip_field

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from headrace.backends.tensorrt.model_files import ModelFiles

_PARAMETERS = {
    "Add": (0, 1),
    "BatchNormalization": (1, 2, 3, 4),
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gather": (0,),
    "Gemm": (1, 2),
    "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "MatMul": (0, 1),
    "Mul": (0, 1),
}
"""Operator -> its inputs that can be weights."""
_FLOATS = frozenset({1, 10, 11, 16})  # onnx.TensorProto: FLOAT, FLOAT16, DOUBLE, BFLOAT16
_MOST_DIMENSIONS = 8  # of a tensor in TensorRT
_VALUES = frozenset({4, 5, 9, 10, 12, 13, 14})
"""Of a TensorProto: float_data, int32_data, raw_data, double_data, doc_string, external_data, data_location."""
_GRAPH = 7  # of a ModelProto
_NODE, _INITIALIZER, _OUTPUT = 1, 5, 12  # of a GraphProto
_DIMS, _DATA_TYPE, _NAME, _EXTERNAL = 1, 2, 8, 13  # of a TensorProto


class _Field(NamedTuple):
    """number, what it holds if it is length-delimited, its number if it is a varint, and all of its bytes."""

    number: int
    content: memoryview
    value: int
    whole: memoryview


def structure(files: ModelFiles) -> str:
    """SHA-256 of an ONNX file without the values of its weights, hex. Raises Malformed.

    Where a tensor that is no weight lies in another file, that of all files.
    """
    digest = hashlib.sha256()
    external = 0
    for field in _fields(memoryview(files.model)):
        if field.number == _GRAPH:
            external += _add_graph(digest, field.content)
        else:
            _add(digest, field.whole)
    return digest.hexdigest() if external == files.external_tensors else files.digest


def weights(graph: memoryview) -> set[str]:
    """Names of the weights of a GraphProto."""
    parts: set[str] = set()
    others: set[str] = set()
    found: set[str] = set()
    for field in _fields(graph):
        if field.number == _NODE:
            _sort_inputs(field.content, parts, others)
        elif field.number == _OUTPUT:
            others.add(_text(field.content, 1))
        elif field.number == _INITIALIZER and _is_large_float(field.content):
            found.add(_text(field.content, _NAME))
    return found & parts - others


def _sort_inputs(node: memoryview, parts: set[str], others: set[str]) -> None:
    """Adds the names that a node reads: those that are its parameters, and all others."""
    names = [bytes(field.content).decode(errors="replace") for field in _fields(node) if field.number == 1]
    at = _PARAMETERS.get(_text(node, 4), ()) if _text(node, 7) in ("", "ai.onnx") else ()
    parts.update(names[place] for place in at if place < len(names))
    others.update(name for place, name in enumerate(names) if place not in at)
    for attribute in (field.content for field in _fields(node) if field.number == 5):
        for field in _fields(attribute):
            if field.number in (6, 11):  # a graph inside sees the names of the one around it
                others.update(_names_in(field.content))


def _names_in(graph: memoryview) -> Iterator[str]:
    inside: set[str] = set()
    for field in _fields(graph):
        if field.number == _NODE:
            _sort_inputs(field.content, inside, inside)
        elif field.number == _OUTPUT:
            inside.add(_text(field.content, 1))
    return iter(inside)


def _is_large_float(tensor: memoryview) -> bool:
    dims: list[int] = []
    kind = 0
    for field in _fields(tensor):
        if field.number == _DATA_TYPE:
            kind = field.value
        elif field.number == _DIMS:
            dims += _packed(field)
    return kind in _FLOATS and math.prod(dims) > _MOST_DIMENSIONS


def _packed(field: _Field) -> list[int]:
    if not field.content:
        return [field.value]
    numbers, at = [], 0
    while at < len(field.content):
        number, at = read_varint(field.content, at)
        numbers.append(number)
    return numbers


def _add_graph(digest: hashlib._Hash, graph: memoryview) -> int:
    """Returns how many weights lie in other files."""
    names = weights(graph)
    external = 0
    for field in _fields(graph):
        if field.number == _INITIALIZER and _text(field.content, _NAME) in names:
            parts = list(_fields(field.content))
            external += any(part.number == _EXTERNAL for part in parts)
            _add(digest, b"weight", *(part.whole for part in parts if part.number not in _VALUES))
        else:
            _add(digest, field.whole)
    return external


def _add(digest: hashlib._Hash, *parts: bytes | memoryview) -> None:
    """Lengths go first, so that no two lists of parts look alike."""
    digest.update(b"".join(len(part).to_bytes(8, "big") for part in parts) + b"|")
    for part in parts:
        digest.update(part)


def _fields(message: memoryview) -> Iterable[_Field]:
    at = 0
    while at < len(message):
        began = at
        key, at = read_varint(message, at)
        end = skip_field(message, at, key & 7)
        value, content = 0, message[:0]
        if key & 7 == LENGTH_DELIMITED:
            length, start = read_varint(message, at)
            content = message[start : start + length]
        elif not key & 7:
            value, _ = read_varint(message, at)
        yield _Field(key >> 3, content, value, message[began:end])
        at = end


def _text(message: memoryview, number: int) -> str:
    found = next((field.content for field in _fields(message) if field.number == number), b"")
    return bytes(found).decode(errors="replace")
