"""Lines of a log that callers can cause at will: so many of a kind as tell the story, and the others as a number."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable

    from headrace.clock import Clock

_EVERY_NS = 10**9
KINDS = 256
"""Kinds that are known at a time; with one more all are forgotten, so that nobody can fill the memory."""


class Sparing:
    """Lets one line of a kind through in a second, and counts the others."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._kinds: dict[Hashable, tuple[int, int]] = {}  # when one was let through, and how many were not since

    def __repr__(self) -> str:
        return f"<Sparing {len(self._kinds)} kinds, {sum(left for _, left in self._kinds.values())} left out>"

    def left_out(self, kind: Hashable) -> int | None:
        """How many of a kind were left out since the last that was not; None: leave this one out, too."""
        now = self._clock()
        known = self._kinds.get(kind)
        if known is not None and now - known[0] < _EVERY_NS:
            self._kinds[kind] = known[0], known[1] + 1
            return None
        if known is None and len(self._kinds) >= KINDS:
            self._kinds.clear()
        self._kinds[kind] = now, 0
        return 0 if known is None else known[1]
