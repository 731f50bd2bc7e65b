"""The cost of a model whose rows are padded to buckets: a row of another bucket is another amount of work."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from headrace.pipeline.cost import CostModel, Curve, SizeRange

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from headrace.messages import Fit

_RATE = 0.1
"""Step of the running estimate of the spread, as in `CostModel`."""
_FIRST_SPREAD = 1.25
"""What a batch may take of its mean, before anything is known."""
_REFRESH = 16
"""Batches of a bucket between two looks at what it has learned: there are fewer of each than of a model without."""


class BucketCosts(CostModel):
    """One `CostModel` for each bucket; itself, it is that of the mix.

    How time grows with length is the model's affair (a convolution's does in proportion, attention's with the square,
    what is small not at all), so that the mean is learned for each bucket. Two things are learned from the runs of all
    buckets together, as each by itself has few. spread: how far a run may exceed its mean, which is the machine's
    affair. gains: by range of batch sizes as in `CostModel`, the cost of a row by that of a row alone, for the sizes
    that a bucket has not run with yet. One that has not run at all is taken to cost as the one next to it in size, in
    proportion to the elements.
    """

    __slots__ = ("_by_sizes", "_guesses", "gains", "spread")

    def __init__(self, max_rows: int, quantile: float = 0.95, inline_below_ns: int = 0) -> None:
        super().__init__(max_rows, quantile, inline_below_ns)
        self.spread = _FIRST_SPREAD
        self.gains = {0: 1.0}
        self._by_sizes: dict[tuple[int, ...], _OneBucket] = {}
        self._guesses: dict[tuple[int, ...], _OneBucket] = {}

    def __repr__(self) -> str:
        known = ", ".join(f"{list(sizes)} {cost.mean(1)} ns" for sizes, cost in sorted(self._by_sizes.items()))
        return f"<BucketCosts {self.observed} batches, spread {self.spread:.2f}, 1 row of {known or 'nothing yet'}>"

    def of(self, fit: Fit | None) -> CostModel:
        """That of the bucket."""
        if fit is None:
            return self
        known = self._by_sizes.get(fit.sizes)
        return self._guess(fit.sizes) if known is None else known

    def observe(self, rows: int, elapsed: int, fit: Fit | None = None) -> None:
        """See `CostModel`; of the bucket of `fit`, and so of the mix."""
        super().observe(rows, elapsed)
        if fit is None:
            return
        self._stale = self._stale or self.observed % _REFRESH == 0
        own = self._by_sizes.get(fit.sizes)
        if own is None:
            own = self._by_sizes[fit.sizes] = self._new()
            self._guesses.clear()
        else:
            # Robbins and Monro, on a logarithmic scale: see `CostModel`
            exceeded = elapsed > own.mean(rows) * self.spread
            self.spread *= 1.0 + _RATE * self._quantile if exceeded else 1.0 - _RATE * (1.0 - self._quantile)
        own.observe(rows, elapsed)
        gain = own.gain(rows, elapsed)
        if gain:
            index = (rows - 1).bit_length()
            known = self.gains.get(index, gain)
            self.gains[index] = known + _RATE * (gain - known)

    @property
    def slowest(self) -> int:
        """See `CostModel`: of all buckets that have run."""
        return max((cost.slowest for cost in self._by_sizes.values()), default=0)

    def _new(self) -> _OneBucket:
        return _OneBucket(self, self._max_rows, self._quantile, self._inline_below_ns)

    def _guess(self, sizes: tuple[int, ...]) -> CostModel:
        guess = self._guesses.get(sizes)
        if guess is None:
            if not self._by_sizes:
                return self
            volume = prod(sizes)
            near = min(self._by_sizes, key=lambda known: max(prod(known) / volume, volume / prod(known)))
            guess = self._guesses[sizes] = self._new()
            guess.learn_from(self._by_sizes[near], volume / prod(near))
        return guess  # the same each time: it may be doubted


class _OneBucket(CostModel):
    """The cost of batches of one bucket: its own mean, times the spread of all."""

    __slots__ = ("_all", "_doubt")

    def __init__(self, everything: BucketCosts, max_rows: int, quantile: float, inline_below_ns: int) -> None:
        super().__init__(max_rows, quantile, inline_below_ns)
        self._all = everything
        self._doubt = 1.0

    def observe(self, rows: int, elapsed: int, fit: Fit | None = None) -> None:
        """See `CostModel`."""
        super().observe(rows, elapsed)
        self._doubt = 1.0
        if self.observed < _REFRESH or self.observed % _REFRESH == 0:
            self._stale = True

    def gain(self, rows: int, elapsed: int) -> float:
        """What a row costs in a run, by what one alone does; 0 if that is not known, or is what ran."""
        alone = self._buckets.get(0)
        return 0.0 if alone is None or rows == 1 else elapsed / rows / alone.row_cost

    def doubt(self, rows: int) -> None:
        """See `CostModel`: of all sizes, until there is a run."""
        self._doubt *= 1.0 - _RATE * (1.0 - self._quantile)

    def predict(self, rows: int) -> int:
        """See `CostModel`."""
        return int(super().predict(rows) * self._all.spread * self._doubt)

    @property
    def slowest(self) -> int:
        """See `CostModel`."""
        return max(self.predict(self._max_rows), super().slowest)

    def _known(self) -> Mapping[int, SizeRange]:
        """Its own ranges of sizes, and what others have learned of those that it has not run with."""
        gains = self._all.gains
        least = min(self._buckets, default=0)
        if least not in gains or not self._buckets:
            return self._buckets
        alone = self._buckets[least].row_cost / gains[least]
        known = dict(self._buckets)
        for index, gain in gains.items():
            if index not in known:
                rows = (3 << index) / 4 if index else 1.0  # the middle of the range
                known[index] = SizeRange(rows, alone * gain * rows, 0)
        return known

    def _bound(self, rows: Sequence[float], buckets: Sequence[SizeRange]) -> Curve:
        """See `CostModel`."""
        return Curve(rows, [bucket.mean for bucket in buckets], rising=True)
