"""How quickly ONNX files run on one thread of the processor, by batch size, against the first of them.

The files take turns, in rounds: what else the machine does meets all of them, and ratios are taken within a round. A
ratio's interval is that of the median of rounds by order statistics (sign test; Conover, Practical Nonparametric
Statistics, 3.2), which assumes nothing about the noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import comb
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.backends.onnxruntime.sessions import SessionSettings, open_session
from headrace.errors import ModelLoadError
from headrace.quantize.errors import QuantizeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from headrace.clock import Clock

    Feeds = Mapping[str, np.ndarray[Any, Any]]
    Progress = Callable[[str, int, int], None]
    """What is being done, how much is done, of how much."""

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
BUDGET_S = 30.0
LEAST_ROUNDS, MOST_ROUNDS = 3, 31
"""Of a batch size. Beyond the most, a longer round is worth more than another one."""
_CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Side:
    """One file at one batch size. rows_per_second, latency_ms (of a batch): medians.

    ratio: of rows/s to the first file's, the median of the rounds' ratios. [low, high]: see `median_interval`.
    """

    rows_per_second: float
    latency_ms: float
    ratio: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class BatchSpeed:
    """All files at one batch size, in their order."""

    batch: int
    rounds: int
    sides: tuple[Side, ...]


@dataclass(frozen=True, slots=True)
class Speed:
    """What was measured, and (batch size, reason) for what was not."""

    batches: tuple[BatchSpeed, ...]
    left_out: tuple[tuple[int, str], ...]

    def best(self, side: int) -> BatchSpeed:
        """The batch size at which that file, by its place, makes the most rows a second. Raises ValueError if none."""
        return max(self.batches, key=lambda one: one.sides[side].rows_per_second)


def measure(
    files: Sequence[Path],
    feeds: Callable[[int], Feeds],
    clock: Clock,
    batches: Iterable[int] = BATCHES,
    budget_s: float = BUDGET_S,
    progress: Progress = lambda what, done, of: None,
) -> Speed:
    """Runs the files as the server would open them, on one thread each.

    feeds: inputs for so many rows, by name. budget_s: for all batch sizes together, kept roughly: what is known not to
    fit is left out, but the first batch size always gets its least number of rounds. Raises QuantizeError if a file
    cannot be loaded, or runs at no batch size.
    """
    try:
        sessions = [open_session(file, 1, SessionSettings(), ["CPUExecutionProvider"]) for file in files]
    except ModelLoadError as error:
        raise QuantizeError(str(error)) from error

    def runs(batch: int) -> list[Callable[[], object]]:
        inputs = dict(feeds(batch))
        return [partial(session.run, None, inputs) for session in sessions]

    return race(runs, clock, batches, budget_s, progress)


def race(
    runs: Callable[[int], Sequence[Callable[[], object]]],
    clock: Clock,
    batches: Iterable[int],
    budget_s: float,
    progress: Progress = lambda what, done, of: None,
) -> Speed:
    """What `measure` does, of anything that can be run. runs: for so many rows, a call of each side."""
    sizes = sorted(set(batches))
    found: list[BatchSpeed] = []
    left_out: list[tuple[int, str]] = []
    ends = clock() + int(budget_s * 1e9)
    for place, batch in enumerate(sizes):
        progress("timing", place, len(sizes))
        left_ns = max(0, ends - clock())
        if found and _estimate_ns(found[-1], batch) > left_ns:
            left_out.append((batch, f"it does not fit the {budget_s:g} s that there are for timing"))
            continue
        try:
            found.append(_batch(batch, runs(batch), clock, left_ns // (len(sizes) - place)))
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            left_out.append((batch, f"a model does not run: {' '.join(str(error).split())}"))
    progress("timing", len(sizes), len(sizes))
    if not found:
        raise QuantizeError("; ".join(dict.fromkeys(reason for _, reason in left_out)) or "no batch size to measure")
    return Speed(tuple(found), tuple(left_out))


def repeated(feeds: Feeds, rows: int) -> Feeds:
    """So many rows, the given ones over and over. Arrays [N, ...] with N of at least 1, the same for all."""
    return {name: np.take(array, np.arange(rows) % len(array), axis=0) for name, array in feeds.items()}


def _batch(batch: int, runs: Sequence[Callable[[], object]], clock: Clock, share_ns: int) -> BatchSpeed:
    began = clock()
    for run in runs:  # the first run of a shape allocates
        run()
    calls = [_calls(run, clock, share_ns // (len(runs) * MOST_ROUNDS)) for run in runs]
    rounds: list[list[float]] = []
    last_ns = 0
    while len(rounds) < LEAST_ROUNDS or (len(rounds) < MOST_ROUNDS and clock() - began + last_ns <= share_ns):
        start = clock()
        seconds = [0.0] * len(runs)
        for side in sorted(range(len(runs)), reverse=len(rounds) % 2 == 1):  # nobody always comes after the same one
            seconds[side] = _timed(runs[side], calls[side], clock) / calls[side] / 1e9
        rounds.append(seconds)
        last_ns = clock() - start
    sides = list(zip(*rounds, strict=True))
    return BatchSpeed(batch, len(rounds), tuple(_side(batch, side, sides[0]) for side in sides))


def _calls(run: Callable[[], object], clock: Clock, wanted_ns: int) -> int:
    """How many calls take about `wanted_ns`."""
    return max(1, wanted_ns // max(1, _timed(run, 1, clock)))


def _timed(run: Callable[[], object], calls: int, clock: Clock) -> int:
    """Nanoseconds of so many calls; at least 1, whatever the clock's steps are."""
    began = clock()
    for _ in range(calls):
        run()
    return max(1, clock() - began)


def _side(batch: int, seconds: Sequence[float], base: Sequence[float]) -> Side:
    ratios = sorted(first / own for own, first in zip(seconds, base, strict=True))
    low, high = median_interval(ratios)
    typical = median(seconds)
    return Side(batch / typical, typical * 1e3, median(ratios), low, high)


def median_interval(ordered: Sequence[float]) -> tuple[float, float]:
    """Where the median of what these are a sample of lies, with at least 95 % confidence; of fewer than 6, all of it.

    ordered: at least one number, ascending.
    """
    count = len(ordered)
    tail, outside = 0.0, 0
    while outside < count // 2:
        tail += comb(count, outside) / 2**count
        if 2 * tail > 1 - _CONFIDENCE:
            break
        outside += 1
    outside = max(1, outside)
    return ordered[outside - 1], ordered[-outside]


def _estimate_ns(known: BatchSpeed, batch: int) -> float:
    """What the least rounds, a warm-up and a trial of this batch size will take, by a smaller one's time per row."""
    rows = (LEAST_ROUNDS + 2) * batch
    return sum(side.latency_ms * 1e6 * rows / known.batch for side in known.sides)
