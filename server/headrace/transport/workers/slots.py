"""Which parts of a shared region are in use: a pure allocator."""

from __future__ import annotations

from bisect import bisect_left

PAGE = 4096


class Slots:
    """Hands out whole pages of a region, the lowest that are free: those were used before, and are in memory.

    size: of the region in octets, whole pages.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.free_octets = size
        self._starts = [0] if size else []  # of what is free, ascending; no two touch
        self._sizes = [size] if size else []
        self._taken: dict[int, int] = {}

    def __repr__(self) -> str:
        return f"<Slots {len(self._taken)} taken, {self.free_octets} of {self.size} octets free>"

    def take(self, length: int) -> int:
        """The offset of a slot for so many octets, at a page's beginning; -1: there is no room."""
        wanted = -(-length // PAGE) * PAGE
        at = next((at for at, size in enumerate(self._sizes) if size >= wanted), -1)
        if at < 0:
            return -1
        start, size = self._starts[at], self._sizes[at]
        if size == wanted:
            del self._starts[at], self._sizes[at]
        else:
            self._starts[at] = start + wanted
            self._sizes[at] = size - wanted
        self._taken[start] = wanted
        self.free_octets -= wanted
        return start

    def give_back(self, start: int) -> None:
        """The slot that begins there is free again. Raises KeyError: none does."""
        size = self._taken.pop(start)
        self.free_octets += size
        starts, sizes = self._starts, self._sizes
        at = bisect_left(starts, start)
        joins_next = at < len(starts) and starts[at] == start + size
        if at and starts[at - 1] + sizes[at - 1] == start:
            sizes[at - 1] += size + (sizes[at] if joins_next else 0)
            if joins_next:
                del starts[at], sizes[at]
        elif joins_next:
            starts[at] = start
            sizes[at] += size
        else:
            starts.insert(at, start)
            sizes.insert(at, size)
