"""How long a batch of so many rows will run, and how large a batch pays: learned online, for one model version."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from math import ceil, floor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from headrace.messages import Fit

_RATE = 0.1
"""Step of the running estimates: a change of speed is followed within some dozen batches."""
_REFRESH = 64
"""Batches between two looks at the buckets: what was asked for since is remembered, so that asking costs a lookup."""
_TRY_AGAIN = 64
"""One batch in so many is not held to the size that pays, so that what has become wrong is noticed."""
_BLOCKED = 10
"""A run of so many times the limit for the event loop has blocked it: batches of that size leave it at once, and come
back when some dozen runs have been short again."""
_WORTH = 1.1
"""A larger batch is preferred as long as its rows cost at most this much more than the cheapest size's: estimates are
noisy, and fewer batches are the better mistake when more waits than fits one."""
_GAP = 16
"""Batches of other sizes after which what was known of a size is worth half."""
INLINE_OVERHEAD_NS = 75_000
"""About what forming a batch and answering it cost next to its run, on the event loop, its writes included."""
THREAD_OVERHEAD_NS = 150_000
"""The same for a batch that crosses to a thread and back."""


class SizeRange:
    """What is known of a range of sizes. Times are ns."""

    __slots__ = ("mean", "median", "row_cost", "rows", "seen", "upper")

    def __init__(self, rows: float, elapsed: float, seen: int) -> None:
        self.rows = float(rows)
        self.mean = self.upper = self.median = float(elapsed)
        self.row_cost = elapsed / rows
        self.seen = seen

    def scaled(self, factor: float) -> SizeRange:
        """The same, had everything taken `factor` times as long."""
        other = SizeRange(1, 1, self.seen)
        other.rows, other.mean, other.row_cost = self.rows, self.mean * factor, self.row_cost * factor
        other.upper, other.median = self.upper * factor, self.median * factor
        return other

    def observe(self, rows: int, elapsed: int, quantile: float, seen: int) -> None:
        """Learns from a run. seen: how many there have been, of all sizes."""
        self.rows += _RATE * (rows - self.rows)
        self.mean += _RATE * (elapsed - self.mean)
        # compared with that of other sizes: on a machine that has become slower since, an old one says nothing
        self.row_cost += min(_RATE * (1 + (seen - self.seen) / _GAP), 0.5) * (elapsed / rows - self.row_cost)
        self.seen = seen
        self.upper *= 1.0 + _RATE * quantile if elapsed > self.upper else 1.0 - _RATE * (1.0 - quantile)
        self.median *= 1.0 + _RATE / 2 if elapsed > self.median else 1.0 - _RATE / 2


class Curve(dict[int, int]):
    """Estimates by rows, of which each is made when it is asked for: there may be a million of them.

    rows, values: of what is known, rows ascending. rising: no estimate is below that of fewer rows.
    """

    __slots__ = ("_ends", "_peaks", "_rows", "_values")

    def __init__(self, rows: Sequence[float], values: Sequence[float], *, rising: bool = False) -> None:
        self[0] = 0
        self._rows = rows
        self._values = values
        # it is greatest at one of these, or at its end: between two of them it is a line
        self._ends = sorted({size for known in rows for size in (floor(known), ceil(known))})
        self._peaks = list(accumulate(map(self._estimate, self._ends), max)) if rising else None

    def __missing__(self, size: int) -> int:
        estimate = self._estimate(size)
        if self._peaks is not None:
            before = bisect_right(self._ends, size)
            estimate = max(estimate, self._peaks[before - 1] if before else 0.0)
        self[size] = whole = int(estimate)
        return whole

    def greatest(self, most: int) -> int:
        """The greatest of the estimates for up to `most` rows."""
        return max(self[size] for size in (*self._ends, most) if size <= most)

    def _estimate(self, size: int) -> float:
        rows, values = self._rows, self._values
        at = bisect_right(rows, size)
        if not at:
            return values[0]
        if rows[at - 1] == size:
            return values[at - 1]
        if at == len(rows):
            return values[-1] * size / rows[-1]
        slope = (values[at] - values[at - 1]) / (rows[at] - rows[at - 1])
        return slope * (size - rows[at - 1]) + values[at - 1]


_NOTHING = ((1.0,), (0.0,))
"""What a curve is of while nothing was observed."""


class CostModel:
    """Latency of a batch by its size.

    Sizes are gathered in buckets (1, 2, 3-4, 5-8, ...). Each keeps an exponentially weighted mean of rows and time,
    and two quantiles of the time, the median among them, by stochastic approximation on a logarithmic scale (Robbins
    and Monro 1951; the step is bounded, so that one stall of the machine does not spoil the estimate). Between
    buckets the estimate is linear in rows, before the first it is that of the first, beyond the last proportional.

    quantile: in (0, 1), of the predictions by `predict`. inline_below_ns: a batch that usually runs shorter is to run
    on the event loop. All times are nanoseconds; `rows` is from 1 to max_rows everywhere.
    """

    __slots__ = (
        "_buckets",
        "_doubts",
        "_efficient",
        "_inline_below_ns",
        "_max_rows",
        "_mean",
        "_median",
        "_quantile",
        "_slowest",
        "_stale",
        "_upper",
        "observed",
    )

    def __init__(self, max_rows: int, quantile: float = 0.95, inline_below_ns: int = 0) -> None:
        if not 0.0 < quantile < 1.0:
            raise ValueError(f"quantile {quantile} is not between 0 and 1")
        self._quantile = quantile
        self._inline_below_ns = inline_below_ns
        self._max_rows = max(max_rows, 1)
        self._buckets: dict[int, SizeRange] = {}
        self._mean = self._upper = self._median = Curve(*_NOTHING)
        self._slowest = 0
        self._efficient = [self._max_rows] * (self._max_rows.bit_length() + 1)
        self._stale = False
        self._doubts = 0
        self.observed = 0

    def __repr__(self) -> str:
        rows = self._max_rows
        known = f"1 row {self.predict(1)} ns, {rows} rows {self.predict(rows)} ns"
        return f"<CostModel {self.observed} batches, {known}, sizes that pay {self._efficient}>"

    def of(self, fit: Fit | None) -> CostModel:
        """The cost of batches of such requests: the same of all, where rows are alike."""
        return self

    def learn_from(self, other: CostModel, factor: float) -> None:
        """Takes over what another has learned, as if everything had taken `factor` times as long."""
        self._buckets = {index: bucket.scaled(factor) for index, bucket in other._buckets.items()}
        self.observed = other.observed
        self._stale = True

    def observe(self, rows: int, elapsed: int, fit: Fit | None = None) -> None:
        """Learns from one run: `rows` rows took `elapsed` ns."""
        elapsed = max(elapsed, 1)  # the estimates are multiplied: none would leave 0 again
        self.observed += 1
        bucket = self._buckets.get((rows - 1).bit_length())
        if bucket is None:
            self._buckets[(rows - 1).bit_length()] = SizeRange(rows, elapsed, self.observed)
            self._stale = True
        else:
            bucket.observe(rows, elapsed, self._quantile, self.observed)
            if bucket.median < self._inline_below_ns < elapsed / _BLOCKED:
                bucket.median = float(elapsed)
                self._stale = True
            if self.observed % _REFRESH == 0:
                self._doubts = 0
                self._stale = True
            elif self._doubts:  # its answer is awaited
                self._stale = True

    def doubt(self, rows: int) -> None:
        """Takes the refusal of `rows` rows by an idle server, for what `predict` said alone, as a quicker run.

        Otherwise a model that was slow for a while, and of which every request has a deadline, would never run again.
        Of what is really too slow, about 1 - quantile is let through.
        """
        self._doubts += 1
        for index in sorted(self._buckets):
            self._buckets[index].upper *= 1.0 - _RATE * (1.0 - self._quantile)
            if index >= (rows - 1).bit_length():
                break
        if self._doubts % _REFRESH == 0:
            self._stale = True

    def predict(self, rows: int) -> int:
        """The quantile of the time that a batch of `rows` rows takes; 0 while nothing was observed."""
        if self._stale:
            self._tabulate()
        return self._upper[rows]

    def mean(self, rows: int) -> int:
        """The mean time that a batch of `rows` rows takes; 0 while nothing was observed."""
        if self._stale:
            self._tabulate()
        return self._mean[rows]

    def inline(self, rows: int) -> bool:
        """Whether a batch of `rows` rows usually runs so short that it had better run on the event loop."""
        if self._stale:
            self._tabulate()
        return 0 < self._median[rows] < self._inline_below_ns

    def efficient_rows(self, waiting: int) -> int:
        """The size beyond which a batch should not grow: its rows would wait without becoming cheaper.

        waiting: rows that there are to choose from; larger batches are not considered. What a batch costs beside its
        run counts too. The most rows there may be while little is known.
        """
        if self._stale:
            self._tabulate()
        if self.observed % _TRY_AGAIN == 0:
            return self._max_rows
        return self._efficient[(min(waiting, self._max_rows) - 1).bit_length()]

    @property
    def slowest(self) -> int:
        """No batch, of whatever size, is predicted to take longer, by its mean or by its quantile; ns."""
        if self._stale:
            self._tabulate()
        return self._slowest

    @property
    def enough_rows(self) -> int:
        """Rows that make a batch for which waiting for more, however many come, is not worth it."""
        if self._stale:
            self._tabulate()
        return self._efficient[(self._max_rows - 1).bit_length()]

    def _tabulate(self) -> None:
        self._stale = False
        known = self._known()
        buckets = [known[index] for index in sorted(known)]
        rows = [bucket.rows for bucket in buckets]
        self._mean = Curve(rows, [bucket.mean for bucket in buckets])
        self._median = Curve(rows, [bucket.median for bucket in buckets])
        self._upper = self._bound(rows, buckets)  # a larger batch is never predicted to be quicker
        self._slowest = max(self._upper[self._max_rows], self._mean.greatest(self._max_rows))
        self._efficient = self._sizes_that_pay(known)

    def _bound(self, rows: Sequence[float], buckets: Sequence[SizeRange]) -> Curve:
        """What predictions are made of."""
        return Curve(rows, [bucket.upper for bucket in buckets], rising=True)

    def _known(self) -> Mapping[int, SizeRange]:
        """What there is to go by."""
        return self._buckets

    def _sizes_that_pay(self, known: Mapping[int, SizeRange]) -> list[int]:
        """For each bucket of waiting rows: the upper end of the largest cheap bucket not above it, or no bound."""
        sizes = []
        costs: list[tuple[int, float]] = []
        for index in range(self._max_rows.bit_length() + 1):
            bucket = known.get(index)
            if bucket is not None:
                overhead = INLINE_OVERHEAD_NS if bucket.median < self._inline_below_ns else THREAD_OVERHEAD_NS
                costs.append((index, bucket.row_cost + overhead / bucket.rows))
            limit = _WORTH * min((cost for _, cost in costs), default=0.0)
            largest = max((size for size, cost in costs if cost <= limit), default=index)
            unbounded = bucket is None or largest == index  # what was never tried may pay
            sizes.append(self._max_rows if unbounded else min(1 << largest, self._max_rows))
        return sizes
