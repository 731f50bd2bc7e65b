"""A clock that stands still until it is told to move."""

from __future__ import annotations


class FakeClock:
    """A `clock.Clock` whose time is set by the test. now: monotonic nanoseconds."""

    def __init__(self, now: int = 1_000_000_000) -> None:
        self.now = now

    def __call__(self) -> int:
        """The time."""
        return self.now

    def __repr__(self) -> str:
        return f"<FakeClock {self.now} ns>"

    def advance(self, ns: int) -> None:
        """Time passes. Raises ValueError for a step backwards."""
        if ns < 0:
            raise ValueError(f"a monotonic clock does not go back by {-ns} ns")
        self.now += ns
