"""How long a batch of so many rows will run: learned online, with a quantile, for one model version."""

from __future__ import annotations

_RATE = 0.1
"""Step of the running estimates: a change of speed is followed within some dozen batches."""


class CostModel:
    """Latency of a batch by its size.

    Sizes are gathered in buckets (1, 2, 3-4, 5-8, ...). Each keeps an exponentially weighted mean of rows and time,
    and two quantiles of the time, the median among them, by stochastic approximation on a logarithmic scale (Robbins
    and Monro 1951; the step is bounded, so that one stall of the machine does not spoil the estimate). Between buckets the estimate is
    linear in rows; below the first and above the last it is proportional to the nearest, never less than it below.

    quantile: in (0, 1), of the predictions by `predict`; `mean` predicts the mean, `median` what is usual. All times
    are nanoseconds.
    """

    __slots__ = ("_buckets", "_max_rows", "_mean", "_median", "_quantile", "_stale", "_upper", "observed")

    def __init__(self, max_rows: int, quantile: float = 0.95) -> None:
        if not 0.0 < quantile < 1.0:
            raise ValueError(f"quantile {quantile} is not between 0 and 1")
        self._quantile = quantile
        self._max_rows = max(max_rows, 1)
        self._buckets: dict[int, list[float]] = {}  # bucket -> [mean rows, mean ns, quantile ns, median ns]
        self._mean: list[int] = []
        self._upper: list[int] = []
        self._median: list[int] = []
        self._stale = True
        self.observed = 0

    def observe(self, rows: int, elapsed: int) -> None:
        """Learns from one run: `rows` rows took `elapsed` ns."""
        self.observed += 1
        bucket = self._buckets.get((rows - 1).bit_length())
        if bucket is None:
            self._buckets[(rows - 1).bit_length()] = [float(rows), *[float(elapsed)] * 3]
            self._stale = True
            return
        bucket[0] += _RATE * (rows - bucket[0])
        bucket[1] += _RATE * (elapsed - bucket[1])
        quantile = self._quantile
        bucket[2] *= 1.0 + _RATE * quantile if elapsed > bucket[2] else 1.0 - _RATE * (1.0 - quantile)
        bucket[3] *= 1.0 + _RATE / 2 if elapsed > bucket[3] else 1.0 - _RATE / 2
        if self.observed & 31 == 0:
            self._stale = True

    def predict(self, rows: int) -> int:
        """The quantile of the time that a batch of `rows` rows takes; 0 while nothing was observed."""
        if self._stale:
            self._tabulate()
        return self._upper[min(rows, self._max_rows)]

    def mean(self, rows: int) -> int:
        """The mean time that a batch of `rows` rows takes; 0 while nothing was observed."""
        if self._stale:
            self._tabulate()
        return self._mean[min(rows, self._max_rows)]

    def median(self, rows: int) -> int:
        """The time that a batch of `rows` rows usually takes; 0 while nothing was observed."""
        if self._stale:
            self._tabulate()
        return self._median[min(rows, self._max_rows)]

    def largest_within(self, budget: int, rows: int) -> int:
        """The most rows, at most `rows`, that are predicted to run within `budget` ns; 0 if not even one."""
        if self._stale:
            self._tabulate()
        upper = self._upper
        rows = min(rows, self._max_rows)
        while rows and upper[rows] > budget:
            rows -= 1
        return rows

    def _tabulate(self) -> None:
        points = sorted(self._buckets.values())
        sizes = range(1, self._max_rows + 1)
        self._mean, upper, self._median = ([0, *(int(_interpolate(points, n, c)) for n in sizes)] for c in (1, 2, 3))
        for rows in range(1, len(upper)):  # a larger batch is never predicted to be quicker
            upper[rows] = max(upper[rows], upper[rows - 1])
        self._upper = upper
        self._stale = False

    def __repr__(self) -> str:
        largest = self._max_rows
        return f"<CostModel {self.observed} batches, 1 row {self.predict(1)} ns, {largest} rows {self.predict(largest)} ns>"


def _interpolate(points: list[list[float]], rows: int, column: int) -> float:
    """Linear between neighbouring points; beyond the last, proportional to it; before the first, its value."""
    if not points:
        return 0.0
    before: list[float] | None = None
    for point in points:
        if rows <= point[0]:
            if before is None or point[0] == before[0]:
                return point[column]
            share = (rows - before[0]) / (point[0] - before[0])
            return before[column] + share * (point[column] - before[column])
        before = point
    last = points[-1]
    return last[column] * rows / last[0]
