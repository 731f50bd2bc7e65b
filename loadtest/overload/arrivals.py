"""When calls are made, whatever becomes of those before: an open loop, as many independent callers are. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    Array = np.ndarray[Any, np.dtype[Any]]

Pattern = Literal["poisson", "bursts"]

BURST_EVERY_S = 0.25
BURST_S = 0.01
BURST_SHARE = 0.5


def arrivals(pattern: Pattern, rate: float, seconds: float, seed: int) -> Array:
    """Moments in [0, seconds), ascending, FP64 [N], where N is rate x seconds on average.

    poisson: independent of one another. bursts: the same for one half; the other half comes at the beginning of each
    quarter of a second, within 10 ms.
    """
    draw = np.random.default_rng(seed)
    count = draw.poisson(rate * seconds)
    moments = draw.uniform(0, seconds, count)
    if pattern == "bursts":
        in_bursts = draw.random(count) < BURST_SHARE
        begins = np.floor(moments / BURST_EVERY_S) * BURST_EVERY_S
        moments = np.where(in_bursts, begins + draw.uniform(0, BURST_S, count), moments)
        moments = moments[moments < seconds]
    moments.sort()
    return moments


def choices(count: int, of: int, seed: int) -> Array:
    """For each of `count` calls one of so many kinds, each as likely as the others: INT64 [count]."""
    return np.random.default_rng(seed + 1).integers(0, of, count)
