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
_STATE = re.compile(rb"[!-~](?:[ -~]*[!-~])?")
_LONGEST_STATE = 512
"""Octets that have to be passed on (3.3.1.5); a longer one is left out."""


def take_out(fields: Sequence[tuple[bytes, bytes]]) -> tuple[list[tuple[bytes, bytes]], bytes, bytes]:
    """(The other fields, traceparent, tracestate); what is malformed or there twice stays where it is, and is none.

    Without a traceparent the tracestate says nothing yet: a head that is known may be asked for with one.
    """
    parents = [value for name, value in fields if name == TRACEPARENT]
    match = _PARENT.fullmatch(parents[0]) if len(parents) == 1 else None
    states = [value for name, value in fields if name == TRACESTATE]
    taken = {TRACEPARENT}
    state = b""
    if len(states) == 1 and _STATE.fullmatch(states[0]):
        taken.add(TRACESTATE)
        state = states[0] if len(states[0]) <= _LONGEST_STATE else b""
    if match is None:
        return list(fields), b"", state
    return [field for field in fields if field[0] not in taken], match[1], state
