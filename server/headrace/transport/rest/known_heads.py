"""Heads of requests for inference that have been seen before: they are recognised by their octets, and not parsed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.transport.rest.head import cut_parent

if TYPE_CHECKING:
    from headrace.transport.rest.head import InferHead

_MOST = 1024
"""Heads that are known, a few hundred octets each; with one more all are forgotten."""

_LONGEST = 2048
"""Octets of a head that is remembered."""


class KnownHeads:
    """What the connections of a port know. traced: a head is the same whatever trace its caller says it is part of."""

    def __init__(self, *, traced: bool) -> None:
        self._traced = traced
        self._heads: dict[bytes, InferHead] = {}

    def __len__(self) -> int:
        return len(self._heads)

    def clear(self) -> None:
        """Forgets all."""
        self._heads.clear()

    def find(self, data: bytes) -> tuple[InferHead | None, int]:
        """(The head of a request that is all of `data`, None if it is not known; where its body begins)."""
        end = data.find(b"\r\n\r\n") + 4
        head = self._heads.get(data[:end])
        if head is None and self._traced:
            known, parent = cut_parent(data[:end])
            head = self._heads.get(known) if parent else None
            if head is not None:
                head = head._replace(traceparent=parent)
        return (None if head is None or len(data) - end != head.length else head), end

    def learn(self, data: bytes, head: InferHead) -> None:
        """`data` was one whole request with this head: it is recognised from now on, if that is worth its while."""
        end = data.find(b"\r\n\r\n") + 4
        if end + head.length == len(data) and end <= _LONGEST and head.keep_alive and not head.expects:
            known = data[:end]
            if head.traceparent:
                known, _ = cut_parent(known)
                head = head._replace(traceparent=b"")
            if self._traced and b"\ntraceparent:" in known.lower():  # malformed, or there twice
                return
            if len(self._heads) >= _MOST:
                self._heads.clear()
            self._heads[known] = head
