"""What is due at the end of a turn of the event loop, in order: intake, batches, writes.

A turn begins with what the sockets brought. All of it is decoded before a batch is formed, so that whatever has
arrived can join; what is answered by then is written before a batch runs, which on the event loop takes its time; and
what that batch answers is written at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    Step = Callable[[], None]


class Turn:
    """The steps that follow the reads of a turn of `loop`. Each is called once for each time that it is asked for."""

    __slots__ = ("_batches", "_due", "_intake", "_loop", "_queueing", "_writes")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._intake: list[Step] = []
        self._queueing: list[Step] = []
        self._batches: list[Step] = []
        self._writes: list[Step] = []
        self._due = False

    def __repr__(self) -> str:
        return f"<Turn {len(self._intake)} to take, {len(self._batches)} to run, {len(self._writes)} to write>"

    def take(self, step: Step) -> None:
        """Has `step` take in what has arrived. Asked for by another step, it comes in the next turn."""
        self._intake.append(step)
        self._wake()

    def queue(self, step: Step) -> None:
        """Has `step` queue what has become due by the intake, or by the replies of the turn before."""
        self._queueing.append(step)
        self._wake()

    def run(self, step: Step) -> None:
        """Has `step` form and run batches, after all intake."""
        self._batches.append(step)
        self._wake()

    def write(self, step: Step) -> None:
        """Has `step` write what is ready: before the batches run, and after them what is ready by then."""
        self._writes.append(step)
        self._wake()

    def _wake(self) -> None:
        if not self._due:
            self._due = True
            self._loop.call_soon(self._end)

    def _end(self) -> None:
        if self._intake:
            steps, self._intake = self._intake, []
            self._call(steps)
        if self._queueing:
            steps, self._queueing = self._queueing, []
            self._call(steps)
        if self._writes:
            steps, self._writes = self._writes, []
            self._call(steps)
        if self._batches:
            steps, self._batches = self._batches, []
            self._call(steps)
        if self._writes:
            steps, self._writes = self._writes, []
            self._call(steps)
        self._due = False
        if self._intake or self._queueing or self._batches or self._writes:
            self._wake()

    def _call(self, steps: list[Step]) -> None:
        for step in steps:
            try:
                step()
            except Exception as error:  # the others are as due as before
                self._loop.call_exception_handler({"message": f"{step} failed", "exception": error})
