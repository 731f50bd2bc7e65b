"""The only source of time. Everything else takes `now` as an argument or a `Clock` in its constructor."""

import time
from collections.abc import Callable

Clock = Callable[[], int]
"""Returns monotonic nanoseconds. Calling it is on the hot path: it is a bare function, not an object."""

monotonic_ns: Clock = time.monotonic_ns


Rest = Callable[[int], None]
"""Lets so many nanoseconds pass on the calling thread, never on the event loop's."""


def rest_ns(nanoseconds: int) -> None:
    """A `Rest` in real time."""
    time.sleep(nanoseconds / 1e9)


def no_rest(nanoseconds: int) -> None:
    """A `Rest` where nobody needs the time."""


def wall_ms() -> int:
    """Milliseconds since the Unix epoch: for timestamps that leave the process (`last_inference`), never for delays."""
    return time.time_ns() // 1_000_000


def wall_ns() -> int:
    """Nanoseconds since the Unix epoch: for the times of spans, which other processes read beside their own."""
    return time.time_ns()
