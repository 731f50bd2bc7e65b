"""The parameters that say which sequence a request is part of, as they lie in a serialised ModelInferRequest.

They differ from sequence to sequence where nothing else does: cut out, the requests of all sequences look alike, and
what is known of one look holds for all (transport/infer.py).
"""

from __future__ import annotations

from headrace.pipeline.decode import SEQUENCE_PARAMETERS
from headrace.pipeline.wire import length_prefixed, skip_field

_PARAMETERS_TAG = 0x22
_KEYS = tuple(length_prefixed(1, name.encode()) for name in SEQUENCE_PARAMETERS)
_COMMON = b"sequence_"
"""What all of these keys begin with."""


def cut_sequence(look: bytes) -> tuple[bytes, bytes]:
    """(look without those parameters, those alone); each is fields of a ModelInferRequest, all length-delimited.

    A parameter whose key does not stand before its value, as libraries write it, is left where it is.
    """
    if _COMMON not in look:
        return look, b""
    kept: list[bytes] = []
    cut: list[bytes] = []
    at = 0
    while at < len(look):
        stop = skip_field(look, at + 1, 2)
        key = at + (2 if look[at + 1] < 0x80 else 3)
        ours = look[at] == _PARAMETERS_TAG and look.startswith(_KEYS, key, stop)
        (cut if ours else kept).append(look[at:stop])
        at = stop
    return b"".join(kept), b"".join(cut)
