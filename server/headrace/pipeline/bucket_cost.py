"""The cost of a model whose rows are padded to buckets: a row of another bucket is another amount of work."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from headrace.pipeline.cost import CostModel

if TYPE_CHECKING:
    from headrace.messages import Fit


class BucketCosts(CostModel):
    """One `CostModel` for each bucket; itself, it is that of the mix.

    How time grows with length is the model's affair (a convolution's does in proportion, attention's with the square,
    what is small not at all), so that it is learned for each bucket. A bucket that has not run yet is taken to cost as
    the one next to it in size, in proportion to the elements.
    """

    __slots__ = ("_by_sizes", "_guesses")

    def __init__(self, max_rows: int, quantile: float = 0.95, inline_below_ns: int = 0) -> None:
        super().__init__(max_rows, quantile, inline_below_ns)
        self._by_sizes: dict[tuple[int, ...], CostModel] = {}
        self._guesses: dict[tuple[int, ...], CostModel] = {}

    def __repr__(self) -> str:
        known = ", ".join(f"{list(sizes)} {cost.predict(1)} ns" for sizes, cost in sorted(self._by_sizes.items()))
        return f"<BucketCosts {self.observed} batches, 1 row of {known or 'nothing yet'}>"

    def of(self, fit: Fit | None) -> CostModel:
        """That of the bucket."""
        if fit is None:
            return self
        known = self._by_sizes.get(fit.sizes)
        return self._guess(fit.sizes) if known is None else known

    def observe(self, rows: int, elapsed: int, fit: Fit | None = None) -> None:
        """See `CostModel`; of the bucket of `fit`, and so of the mix."""
        super().observe(rows, elapsed)
        if fit is not None:
            own = self._by_sizes.get(fit.sizes)
            if own is None:
                own = self._by_sizes[fit.sizes] = CostModel(self._max_rows, self._quantile, self._inline_below_ns)
                self._guesses.clear()
            own.observe(rows, elapsed)

    @property
    def slowest(self) -> int:
        """See `CostModel`: of all buckets that have run."""
        return max((cost.slowest for cost in self._by_sizes.values()), default=0)

    def _guess(self, sizes: tuple[int, ...]) -> CostModel:
        guess = self._guesses.get(sizes)
        if guess is None:
            if not self._by_sizes:
                return self
            volume = prod(sizes)
            near = min(self._by_sizes, key=lambda known: max(prod(known) / volume, volume / prod(known)))
            guess = self._guesses[sizes] = self._by_sizes[near].scaled(volume / prod(near))
        return guess  # the same each time: it may be doubted
