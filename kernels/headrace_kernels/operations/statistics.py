"""Running statistics of each feature."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from headrace_kernels.operations.base import Array, Launch, Operation, array, ceil_div, check_sizes, i32
from headrace_kernels.reference.statistics import LARGEST_BINS, FeatureStatistics, feature_statistics

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

BLOCK = (32, 16, 1)
ROWS_OF_BLOCK = 256  # at least: fewer are not worth a block
BLOCKS = 264  # that occupy a large GPU; more would only leave more to merge
MERGED = 8  # features of a block that merges
PARTIAL = 7  # words of 4 bytes: struct Partial
REAL = {"float32": "f32", "float16": "f16"}


@dataclass(frozen=True, slots=True)
class UpdateStatistics(Operation):
    """Merges a batch into running `reference.FeatureStatistics`.

    Arrays: x [rows, features]; low, high FP32 [features], the ranges of the histograms; factor FP32 [features],
    `reference.statistics.bin_factors` of them; the fields of FeatureStatistics under their names, which start as
    `FeatureStatistics.empty`; partials, scratch. The kernel adds up in FP32 within a block's rows, as
    distances from one of them, and in FP64 beyond: it is for features below 1e15 in magnitude, and mean and m2 have the
    digits of FP32.
    """

    rows: int
    features: int
    bins: int
    dtype: str = "float32"

    source: ClassVar[str] = "statistics"

    def __post_init__(self) -> None:
        check_sizes(rows=self.rows, features=self.features)
        if not 1 <= self.bins <= LARGEST_BINS:
            raise ValueError(f"a histogram has 1 to {LARGEST_BINS} bins, not {self.bins}")
        if self.dtype not in REAL:
            raise ValueError(f"features are {' or '.join(REAL)}, not {self.dtype}")

    def _rows_of_block(self) -> int:
        pieces = max(1, BLOCKS // max(1, ceil_div(self.features, BLOCK[0])))
        return max(ROWS_OF_BLOCK, ceil_div(self.rows, pieces))

    def arrays(self) -> tuple[Array, ...]:
        """X, low, high, factor, the statistics, partials."""
        empty = FeatureStatistics.empty(self.features, self.bins)
        state = ((field.name, getattr(empty, field.name)) for field in fields(empty))
        pieces = ceil_div(self.rows, self._rows_of_block())
        return (
            array("x", (self.rows, self.features), self.dtype, "in"),
            *(array(name, (self.features,), np.float32, "in") for name in ("low", "high", "factor")),
            *(array(name, value.shape, value.dtype, "inout") for name, value in state),
            array("partials", (self.features, pieces, PARTIAL), np.float32, "scratch"),
        )

    def launches(self) -> tuple[Launch, ...]:
        """What the blocks find, then all of it together."""
        if not self.rows or not self.features:
            return ()
        of_block = self._rows_of_block()
        pieces = ceil_div(self.rows, of_block)
        numbers = (i32(self.rows), i32(self.features), i32(of_block), i32(self.bins))
        state = ("count", "missing", "mean", "m2", "minimum", "maximum")
        return (
            Launch(
                f"feature_partials_{REAL[self.dtype]}",
                (ceil_div(self.features, BLOCK[0]), pieces, 1),
                BLOCK,
                BLOCK[0] * (self.bins + 2) * 4,
                ("x", "low", "high", "factor", "histogram", "partials", *numbers),
            ),
            Launch(
                "feature_merge",
                (ceil_div(self.features, MERGED), 1, 1),
                (BLOCK[0], MERGED, 1),
                0,
                ("partials", *state, i32(pieces), i32(self.features)),
            ),
        )

    def compute(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """With NumPy."""
        names = [field.name for field in fields(FeatureStatistics)]
        before = FeatureStatistics(*(arrays[name] for name in names))
        after = before.merge(feature_statistics(arrays["x"], arrays["low"], arrays["high"], self.bins))
        for name in names:
            arrays[name][...] = getattr(after, name)
