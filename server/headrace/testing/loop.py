"""An asyncio event loop in virtual time: where a real one would sleep, its clock jumps."""

from __future__ import annotations

import asyncio
import selectors
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple

from headrace.testing.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from contextvars import Context

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_PATIENCE_S = 30.0
"""Real time that a thread outside may take before the test is given up."""


class Deadlock(RuntimeError):
    """The loop has nothing to run, nothing scheduled and nobody outside to wait for: a real one would hang."""


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Runs callbacks as ever, but time passes only when nothing else is left to do: then it jumps to the next timer.

    clock: the loop's time as a `clock.Clock`, for what is tested. resolution_ns: timers are rounded as libuv rounds
    them (1_000_000 for uvloop); 0: they are exact. tick_ns: what each turn of the loop takes, so that code that asks
    for a timer of no length over and over gets somewhere.

    What runs in a thread by `run_in_executor` takes no virtual time: the loop waits for it, with its clock stopped.
    Reads and writes of real sockets work as long as they never make the loop wait.
    """

    def __init__(self, *, now: int = 1_000_000_000, resolution_ns: int = 0, tick_ns: int = 0) -> None:
        self.clock = FakeClock(now)
        self._resolution_ns = resolution_ns
        self._tick_ns = tick_ns
        self._outside = 0
        self._until_idle = False
        super().__init__(_Selector(self))
        self._clock_resolution = 1e-9

    def time(self) -> float:
        """Seconds, as asyncio wants them."""
        return self.clock.now / 1e9

    def call_later(
        self,
        delay: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """See asyncio; rounded to the resolution, from the last full one on."""
        step = self._resolution_ns or 1
        when = self.clock.now // step * step + round(delay * 1e9 / step) * step
        return self.call_at(when / 1e9, callback, *args, context=context)

    def run_in_executor(  # type: ignore[override]
        self,
        executor: Any,  # noqa: ANN401
        func: Callable[..., T],
        *args: Any,  # noqa: ANN401
    ) -> asyncio.Future[T]:
        """See asyncio; the clock stands still until the thread is done."""
        self._outside += 1
        future = super().run_in_executor(executor, func, *args)
        future.add_done_callback(self._back)
        return future

    async def shutdown_default_executor(self, *args: Any) -> None:  # noqa: ANN401
        """See asyncio; the same."""
        self._outside += 1
        await super().shutdown_default_executor(*args)
        self._outside -= 1

    def _back(self, _: asyncio.Future[Any]) -> None:
        self._outside -= 1

    def run_until_idle(self) -> None:
        """Runs what is ready, and what that makes ready, without any time passing."""
        self._until_idle = True
        try:
            self.run_forever()
        finally:
            self._until_idle = False

    def run_for(self, ns: int) -> None:
        """Runs all that happens within the next `ns` nanoseconds, the last of them included."""
        end = self.clock.now + ns
        stop = self.call_at(end / 1e9, self.stop)
        self.run_forever()
        stop.cancel()
        self.clock.now = max(self.clock.now, end)
        self.run_until_idle()

    def _wait(self, timeout: float | None, select: Callable[[float | None], list[Any]]) -> list[Any]:
        """What the selector does in the place of waiting `timeout` seconds; None: without end."""
        ready = select(0)
        if ready or timeout == 0:
            self.clock.advance(self._tick_ns)
            return ready
        if self._outside:
            ready = select(_PATIENCE_S)
            if not ready:
                raise Deadlock(f"a thread has not come back within {_PATIENCE_S:g} s")
        elif self._until_idle:
            self.stop()
        elif timeout is None:
            raise Deadlock("nothing is ready and nothing is scheduled")
        else:
            self.clock.advance(max(round(timeout * 1e9), self._tick_ns))
        return ready


class _Selector(selectors.SelectSelector):
    """Asks the loop what to do in the place of waiting."""

    def __init__(self, loop: VirtualTimeLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return self._loop._wait(timeout, super().select)


def run_virtual(main: Coroutine[Any, Any, T], *, resolution_ns: int = 0, tick_ns: int = 0) -> T:
    """`asyncio.run` in virtual time."""
    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(resolution_ns=resolution_ns, tick_ns=tick_ns)) as runner:
        return runner.run(main)
