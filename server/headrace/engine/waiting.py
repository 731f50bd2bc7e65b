"""What a model waits for besides requests: the next moment at which something is due, and the end of all work."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.clock import Clock


_EXACT_NS = 10_000_000
"""Waits up to this are as exact as the loop's clock. Longer ones are not: Linux lets a wait for sockets last longer by
a thousandth (fs/select.c, select_estimate_accuracy), so that they are cut short and waited out anew."""


class Wakeup:
    """Calls `step` at the soonest of the moments that were asked for. After that call there are none."""

    __slots__ = ("_at", "_clock", "_loop", "_step", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Clock, step: Callable[[], None]) -> None:
        self._loop = loop
        self._clock = clock
        self._step = step
        self._timer: asyncio.TimerHandle | None = None
        self._at = 0

    @property
    def moment(self) -> int:
        """When it will call (monotonic ns); 0: it will not."""
        return 0 if self._timer is None else self._at

    def at(self, moment: int) -> None:
        """Asks for `moment` (monotonic ns; 0: none)."""
        if not moment or (self._timer is not None and self._at <= moment):
            return
        self.cancel()
        self._at = moment
        self._arm()

    def cancel(self) -> None:
        """Forgets the moment, if there is one."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        left = max(self._at - self._clock(), 0)
        if left > _EXACT_NS:
            left -= left >> 8
        self._timer = self._loop.call_later(left / 1e9, self._on_timer)

    def _on_timer(self) -> None:
        if self._clock() < self._at:
            self._arm()
            return
        self._timer = None
        self._step()


class Quiet:
    """Lets somebody wait until `over` says that no work is left. Whoever ends a piece of work calls `check`."""

    __slots__ = ("_event", "_over")

    def __init__(self, over: Callable[[], bool]) -> None:
        self._over = over
        self._event: asyncio.Event | None = None

    def check(self) -> None:
        """Tells those who wait, if it is so now."""
        if self._event is not None and self._over():
            self._event.set()

    async def wait(self, seconds: float) -> bool:
        """Returns True once no work is left, False when `seconds` have passed."""
        if self._event is None:
            self._event = asyncio.Event()
        self.check()
        if self._event.is_set():
            return True
        try:
            await asyncio.wait_for(self._event.wait(), seconds)
        except TimeoutError:
            return False
        return True
