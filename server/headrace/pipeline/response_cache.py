"""Replies that are kept for requests with the same inputs: bounded in bytes, the least recently used leave first."""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from headrace.messages import Buffer

ENTRY_COST = 512
"""Bytes that an entry takes beside its tensors."""


class Outputs(NamedTuple):
    """What a model gave: the bytes of each output, and its whole shape."""

    raw: tuple[bytes, ...]
    shapes: tuple[tuple[int, ...], ...]


class _Entry(NamedTuple):
    outputs: Outputs
    nbytes: int
    expires: int


def key_of(model: Hashable, look: Hashable, parts: Sequence[Buffer]) -> Hashable:
    """What requests have in common that get the same reply. look: shapes and requested outputs. parts: input bytes.

    The bytes enter as a digest of 128 bits: two that differ share one with a chance of 1 in 10^38.
    """
    digest = blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return model, look, digest.digest()


class ResponseCache:
    """The replies of all models that ask for it. max_bytes: of their outputs together."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.nbytes = 0
        self.evictions = 0
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()

    def __repr__(self) -> str:
        return f"<ResponseCache {len(self._entries)} replies, {self.nbytes} of {self.max_bytes} bytes>"

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable, now: int) -> Outputs | None:
        """What is kept for a key; None if nothing is, or its time is over. now: monotonic ns."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if 0 < entry.expires <= now:
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return entry.outputs

    def put(self, key: Hashable, outputs: Outputs, expires: int) -> None:
        """Keeps outputs until `expires` (monotonic ns, 0: for ever), or until others need their place."""
        nbytes = ENTRY_COST + sum(map(len, outputs.raw))
        if nbytes > self.max_bytes:
            return
        if key in self._entries:
            self._drop(key)
        while self.nbytes + nbytes > self.max_bytes:
            self._drop(next(iter(self._entries)))
            self.evictions += 1
        self._entries[key] = _Entry(outputs, nbytes, expires)
        self.nbytes += nbytes

    def forget(self, model: Hashable) -> None:
        """Drops what is kept of a model."""
        for key in [key for key in self._entries if isinstance(key, tuple) and key[0] is model]:
            self._drop(key)

    def _drop(self, key: Hashable) -> None:
        self.nbytes -= self._entries.pop(key).nbytes
