"""JSON in and out, by orjson: quick, strict about UTF-8, and bounded before anything is built.

Clients and servers of the protocol write NaN and infinity as `NaN`, `Infinity` and `-Infinity`, which JSON does not
have (RFC 8259, 6) and orjson neither reads nor writes: texts that hold them go through the standard library.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from headrace.errors import InvalidRequest, MessageTooLarge

if TYPE_CHECKING:
    from headrace.messages import Buffer

_NOT_BRACKETS = bytes(octet for octet in range(256) if octet not in b"[]{}")
_NO_NUMBERS = (b"NaN", b"Inf")


@dataclass(frozen=True)
class JsonLimits:
    """depth: of arrays and objects inside one another. elements: of all of them together.

    An element costs up to twenty times its octets while it is an object of Python. They are counted by commas and
    brackets before any of them is made, those inside of strings too.
    """

    depth: int
    elements: int


def parse(text: Buffer, limits: JsonLimits, what: str = "the request") -> Any:  # noqa: ANN401
    """The value of a JSON text. what: names it. Raises InvalidRequest, and MessageTooLarge above `limits.elements`."""
    text = bytes(text)
    brackets = text.count(b"[") + text.count(b"{")
    elements = text.count(b",") + brackets
    if elements > limits.elements:
        raise MessageTooLarge(f"{what} has {elements} elements of JSON, at most {limits.elements} are taken")
    value = _value(text, what)
    if brackets > limits.depth and _depth_at_most(text) > limits.depth and _deeper_than(value, limits.depth):
        raise InvalidRequest(f"{what} has more than {limits.depth} JSON arrays and objects inside one another")
    return value


def dump(value: Any) -> bytes:  # noqa: ANN401
    """The JSON text of a value; of arrays of numbers too, one dimension of them. Floats must be finite."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def dump_numbers(array: np.ndarray[Any, np.dtype[Any]]) -> bytes:
    """The JSON text of a one-dimensional array of numbers or booleans, with NaN and infinity as the protocol has them.

    A float has as many digits as tell it from its neighbours of the same datatype.
    """
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return json.dumps(array.tolist(), separators=(",", ":")).encode()
    return orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY)


def _value(text: bytes, what: str) -> Any:  # noqa: ANN401
    """Neither parser follows more than about a thousand levels."""
    try:
        return orjson.loads(text)
    except ValueError as error:
        if not any(word in text for word in _NO_NUMBERS):
            raise InvalidRequest(f"{what} is not valid JSON: {error}") from None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{what} is not valid JSON: {error}") from None


def _depth_at_most(text: bytes) -> int:
    """Brackets that are open at the same time; those inside of strings count as well."""
    brackets = np.frombuffer(text.translate(None, _NOT_BRACKETS), np.uint8)
    steps = np.where((brackets == ord("[")) | (brackets == ord("{")), np.int8(1), np.int8(-1))
    return int(np.cumsum(steps, dtype=np.int32).max(initial=0))


def _deeper_than(value: object, depth: int) -> bool:
    level: list[object] = [value]
    while level and depth >= 0:
        depth -= 1
        level = [
            inner
            for outer in level
            if isinstance(outer, list | dict)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        level = [inner for inner in level if isinstance(inner, list | dict)]
    return depth < 0
