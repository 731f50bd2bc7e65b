"""How long a batch of so many rows will run, and how large a batch pays: learned online, for one model version."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headrace.messages import Fit

_RATE = 0.1
"""Step of the running estimates: a change of speed is followed within some dozen batches."""
_REFRESH = 64
"""Batches between two looks at the buckets: predictions are tables, so that asking costs an index."""
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
        self._mean = self._upper = self._median = [0] * (self._max_rows + 1)
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
        self._mean = self._table([bucket.rows for bucket in buckets], [bucket.mean for bucket in buckets])
        self._median = self._table([bucket.rows for bucket in buckets], [bucket.median for bucket in buckets])
        upper = self._table([bucket.rows for bucket in buckets], [bucket.upper for bucket in buckets])
        self._upper = np.maximum.accumulate(upper).tolist()  # a larger batch is never predicted to be quicker
        self._slowest = max(self._upper[-1], *self._mean)
        self._efficient = self._sizes_that_pay(known)

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

    def _table(self, rows: list[float], values: list[float]) -> list[int]:
        """Estimates for 0 to the most rows."""
        sizes = np.arange(self._max_rows + 1)
        table = np.interp(sizes, rows, values)
        beyond = sizes > rows[-1]
        table[beyond] = values[-1] * sizes[beyond] / rows[-1]
        table[0] = 0
        whole: list[int] = table.astype(np.int64).tolist()
        return whole
