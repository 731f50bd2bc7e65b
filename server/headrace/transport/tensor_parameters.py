"""The parameters of one input or output of a request, whichever transport brought it.

Source: Triton's protocol extensions for shared memory and classification.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.errors import InvalidRequest
from headrace.messages import Region

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headrace.messages import ParameterValue

REGION, BYTE_SIZE, OFFSET = "shared_memory_region", "shared_memory_byte_size", "shared_memory_offset"
CLASSIFICATION = "classification"

_MAX_INT64 = (1 << 63) - 1


def region_of(parameters: Mapping[str, ParameterValue], what: str) -> Region | None:
    """Where in shared memory a tensor lies; None: it does not. what: names the tensor. Raises InvalidRequest."""
    given = [key for key in (REGION, BYTE_SIZE, OFFSET) if key in parameters]
    if not given:
        return None
    missing = [key for key in (REGION, BYTE_SIZE) if key not in parameters]
    if missing:
        raise InvalidRequest(f"{what} has the parameter '{given[0]}' without '{missing[0]}', expected both")
    name = parameters[REGION]
    if not isinstance(name, str) or not name:
        raise InvalidRequest(f"{what}: parameter '{REGION}' is {name!r}, expected the name of a region")
    return Region(name, _size(parameters, OFFSET, what), _size(parameters, BYTE_SIZE, what))


def classes_of(parameters: Mapping[str, ParameterValue], what: str) -> int:
    """How many classes of an output are asked for; 0: the tensor itself. what: names it. Raises InvalidRequest."""
    count = parameters.get(CLASSIFICATION)
    if count is None:
        return 0
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise InvalidRequest(f"{what}: parameter '{CLASSIFICATION}' is {count!r}, expected an integer above 0")
    if REGION in parameters:
        raise InvalidRequest(f"{what}: '{CLASSIFICATION}' and shared memory exclude each other")
    return count


def _size(parameters: Mapping[str, ParameterValue], key: str, what: str) -> int:
    value = parameters.get(key, 0)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MAX_INT64:
        raise InvalidRequest(f"{what}: parameter '{key}' is {value!r}, expected a number of bytes")
    return value
