"""The trace that a request is part of, as its caller says it: W3C Trace Context, in header fields and gRPC metadata.

Source: https://www.w3.org/TR/trace-context/, 3.2 (traceparent) and 3.3 (tracestate). What is read here is only told
from what is malformed; `telemetry/sampling.py` reads the ids, of those requests that are exported.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

TRACEPARENT, TRACESTATE = b"traceparent", b"tracestate"
PARENT = rb"(?!ff)[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}"
"""A traceparent of version 00; of a later version, all that may be read of it."""
PARENT_SIZE = 55

_PARENT = re.compile(rb"(?!00.{53}-)(" + PARENT + rb")(?:-[!-~]*)?")
_MEMBER = re.compile(rb"([a-z0-9][a-z0-9_\-*/@]{0,255})=[ -+\--<>-~]{0,255}[!-+\--<>-~]")
"""An entry of a tracestate, of Level 2, whose keys may begin with a digit and hold any number of `@`."""
_MOST_MEMBERS = 32
_LONGEST_STATE = 512
"""Octets that have to be passed on (3.3.1.5); a longer one is left out."""


def take_out(fields: Sequence[tuple[bytes, bytes]]) -> tuple[list[tuple[bytes, bytes]], bytes, bytes]:
    """(The other fields, traceparent, tracestate); what is malformed stays where it is, and is none.

    So is a traceparent that is there twice; fields `tracestate` are one list (3.3, RFC 9110, 5.3).
    Without a traceparent the tracestate says nothing yet: a head that is known may be asked for with one.
    """
    parents = [value for name, value in fields if name == TRACEPARENT]
    match = _PARENT.fullmatch(parents[0]) if len(parents) == 1 else None
    state = _state([value for name, value in fields if name == TRACESTATE])
    taken = {TRACEPARENT} if state is None else {TRACEPARENT, TRACESTATE}
    state = state or b""
    if match is None:
        return list(fields), b"", state
    return [field for field in fields if field[0] not in taken], match[1], state


def _state(values: Sequence[bytes]) -> bytes | None:
    """The list that fields `tracestate` make up, empty for none or one that is too long; None: it is malformed."""
    members = [member for value in values for each in value.split(b",") if (member := each.strip(b" \t"))]
    found = [_MEMBER.fullmatch(member) for member in members[: _MOST_MEMBERS + 1]]
    keys = {match[1] for match in found if match is not None}
    if len(members) > _MOST_MEMBERS or len(keys) < len(
        members
    ):  # malformed ones have none; the same may not come twice
        return None
    state = b",".join(members)
    return state if len(state) <= _LONGEST_STATE else b""
