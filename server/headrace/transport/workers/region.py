"""Memory that a worker shares with the engine: large messages are received into it, and read where they lie.

A slot is in use as long as one of the two refers to it: the worker, which has given it a message, and the engine,
from the record that names it until whatever it was handed to, a batch or a sample, is collected. Both notice by a
finalizer of the object that the memoryviews are of.
"""

from __future__ import annotations

import mmap
import os
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

import numpy as np

from headrace.transport.workers.slots import PAGE, Slots

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from headrace.messages import Buffer

_OCTETS = np.dtype(np.uint8)
_SHARE = 4
"""No message takes more than this part of a region, so that one that is announced does not leave others without."""


def make_region(size: int) -> int:
    """A file descriptor of so many octets that no file system shows; they take memory once they are written to."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("headrace-worker", os.MFD_CLOEXEC)
    else:
        with TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor


class _Slot(np.ndarray):
    """The octets of a slot. Only memoryviews of it are handed out; `ended` hears when the last has gone."""

    __slots__ = ("ended", "start")

    ended: Callable[[int], None]
    start: int

    def __del__(self) -> None:
        self.ended(self.start)


def _slot(memory: mmap.mmap | bytes, start: int, size: int, ended: Callable[[int], None], at: int) -> memoryview:
    slot = _Slot(size, _OCTETS, memory, start)
    slot.ended = ended
    slot.start = at
    return slot.data


class Borrowed:
    """The engine's side: reads what a worker has written.

    freed: offsets that nobody reads any more, until somebody tells the worker; added to from any thread.
    """

    def __init__(self, descriptor: int, size: int) -> None:
        self._memory: mmap.mmap | bytes = mmap.mmap(descriptor, size, access=mmap.ACCESS_READ) if size else b""
        self.freed: list[int] = []

    def view(self, offset: int, size: int) -> memoryview:
        """The octets of a message. Raises ValueError: they do not lie in the region."""
        return _slot(self._memory, offset, size, self.freed.append, offset)

    def close(self) -> None:
        """The worker is gone: the memory goes with the last of its messages, and does not wait for the collector."""
        self._memory = b""

    def take_freed(self) -> list[int]:
        """What has been freed since the last call."""
        freed, count = self.freed, len(self.freed)
        taken = freed[:count]
        del freed[:count]  # not another list: slots under way know this one
        return taken


class Region:
    """The worker's side: gives memory to messages.

    fallback: makes buffers for those that there is no room for.
    """

    def __init__(self, descriptor: int, size: int, fallback: Callable[[int], memoryview]) -> None:
        size -= size % PAGE
        self._memory = mmap.mmap(descriptor, size) if size else None
        self._slots = Slots(size)
        self._most = size // _SHARE
        self._fallback = fallback
        self._holders: dict[int, int] = {}  # of each slot: the message here, the engine

    def __repr__(self) -> str:
        return f"<Region {self._slots!r}>"

    def buffer(self, length: int) -> memoryview:
        """Octets for a message; its end is that of a page, for the sake of alignment (see `large_buffer`)."""
        start = self._slots.take(length) if length <= self._most else -1
        if start < 0 or self._memory is None:
            return self._fallback(length)
        self._holders[start] = 1
        return _slot(self._memory, start + -length % PAGE, length, self._let_go, start)

    def share(self, message: Buffer) -> int:
        """Where `message` lies; it counts as the engine's from now on until `let_go`. -1: not in the region."""
        slot: object = message.obj if isinstance(message, memoryview) else None
        if type(slot) is not _Slot or len(message) != len(slot):
            return -1
        self._holders[slot.start] += 1
        return slot.start + -len(message) % PAGE

    def let_go(self, offsets: Iterable[int]) -> None:
        """The engine has read what it was told to lie there."""
        for offset in offsets:
            self._let_go(offset - offset % PAGE)

    def _let_go(self, start: int) -> None:
        self._holders[start] -= 1
        if not self._holders[start]:
            del self._holders[start]
            self._slots.give_back(start)
