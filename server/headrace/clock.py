"""The only source of time. Everything else takes `now` as an argument or a `Clock` in its constructor."""

import time
from collections.abc import Callable

Clock = Callable[[], int]
"""Returns monotonic nanoseconds. Calling it is on the hot path: it is a bare function, not an object."""

monotonic_ns: Clock = time.monotonic_ns


def wall_ms() -> int:
    """Milliseconds since the Unix epoch: for timestamps that leave the process (`last_inference`), never for delays."""
    return time.time_ns() // 1_000_000
