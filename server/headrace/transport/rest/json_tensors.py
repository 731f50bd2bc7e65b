"""Tensors as JSON: an array of elements in row-major order, flat or nested as the shape is; BYTES are strings.

Source: Open Inference Protocol, "Tensor Data". FP16 and BF16, which Triton takes in binary form only, are numbers too.
"""

from __future__ import annotations

from itertools import chain
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.datatypes import DATATYPES
from headrace.errors import InvalidRequest
from headrace.pipeline import bytes_tensor
from headrace.transport.elements import from_bfloat16, raw_numbers
from headrace.transport.rest.json_text import dump, dump_numbers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.messages import Buffer, TensorSpec

_NAMES = {
    str: "a string", bool: "a boolean", int: "an integer", float: "a number with a fraction", list: "an array",
    dict: "an object", type(None): "null",
}  # fmt: skip
_FLOATS = frozenset({"FP16", "BF16", "FP32", "FP64"})


def raw_of(data: list[Any], datatype: str, shape: Sequence[int], what: str) -> bytes:
    """The raw form of a tensor that stands in JSON. what: names it. Raises InvalidRequest.

    shape: with the batch dimension, none negative. Of a datatype that there is not, nothing is made: the datatype will
    be refused.
    """
    elements = _flat(data, shape, what)
    if datatype == "BYTES":
        _check_types(elements, {str}, "a string", what)
        return _raw_strings(elements, what)
    if datatype not in DATATYPES:
        return b""
    if datatype in _FLOATS:
        _check_types(elements, {int, float}, "a number", what)
    elif datatype == "BOOL":
        _check_types(elements, {bool, int}, "true or false", what)
    else:
        _check_types(elements, {int}, "an integer", what)
    return raw_numbers(elements, datatype, what)


def text_of(raw: Buffer, spec: TensorSpec, shape: Sequence[int]) -> bytes:
    """The JSON text of an output. Raises InvalidRequest for BYTES that are not UTF-8."""
    if spec.datatype == "BYTES":
        return dump(_strings(raw, spec, prod(shape)))
    array = np.frombuffer(raw, DATATYPES[spec.datatype].numpy)
    if spec.datatype == "BF16":
        array = from_bfloat16(array)
    return dump_numbers(array if array.flags.aligned else array.copy())


def _flat(data: list[Any], shape: Sequence[int], what: str) -> list[Any]:
    dims = [len(data)]
    level = data
    while level and type(level[0]) is list:
        for at, inner in enumerate(level):
            if type(inner) is not list or len(inner) != len(level[0]):
                got = f"{len(inner)} elements" if type(inner) is list else _NAMES[type(inner)]
                raise InvalidRequest(
                    f"{what}: in 'data', array {at} of level {len(dims)} is {got}, expected {len(level[0])} elements "
                    "as in the first"
                )
        dims.append(len(level[0]))
        level = list(chain.from_iterable(level))
    if len(level) != prod(shape):
        raise InvalidRequest(
            f"{what} has {len(level)} elements in its 'data', but its shape {list(shape)} holds {prod(shape)}"
        )
    if len(dims) > 1 and _without_ones(dims) != _without_ones(shape):
        raise InvalidRequest(
            f"{what} has 'data' nested as {dims}, expected {list(shape)} as its shape is, or a flat array"
        )
    return level


def _without_ones(shape: Sequence[int]) -> list[int]:
    return [dim for dim in shape if dim != 1]


def _check_types(elements: list[Any], expected: set[type], name: str, what: str) -> None:
    if not set(map(type, elements)) <= expected:
        at = next(at for at, element in enumerate(elements) if type(element) not in expected)
        raise InvalidRequest(f"element {at} of {what} is {_NAMES[type(elements[at])]}, expected {name}")


def _raw_strings(elements: list[str], what: str) -> bytes:
    raw = []
    for at, element in enumerate(elements):
        try:
            text = element.encode()
        except UnicodeEncodeError:
            raise InvalidRequest(f"element {at} of {what} has half of a surrogate pair, expected Unicode") from None
        raw.append(len(text).to_bytes(4, "little"))
        raw.append(text)
    return b"".join(raw)


def _strings(raw: Buffer, spec: TensorSpec, count: int) -> list[str]:
    strings = []
    for at, element in enumerate(bytes_tensor.decode(raw, count)):
        try:
            strings.append(element.decode())
        except UnicodeDecodeError:
            raise InvalidRequest(
                f"element {at} of output '{spec.name}' is not UTF-8 and cannot stand in JSON: ask for the output in "
                "binary form, with its parameter 'binary_data'"
            ) from None
    return strings
