"""Statistics of each feature of a batch, which can be merged: what a drift sketch is fed with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

AT_ONCE = 1 << 17  # elements that are looked at together
LARGEST_BINS = 256
"""Bins that a histogram may have: the kernel counts in shared memory."""


@dataclass(frozen=True, slots=True, eq=False)
class FeatureStatistics:
    """Of F features: what was seen, as columns.

    count: INT64 [F], finite values. missing: INT64 [F], NaNs. mean, m2: FP64 [F], of the finite values their mean and
    the sum of squares of their distances from it. minimum, maximum: FP32 [F], of the finite ones; inf and -inf if there
    is none. histogram: INT64 [F, bins + 2], first what is below `low`, last what is above `high`, infinities included.
    """

    count: NDArray[np.int64]
    missing: NDArray[np.int64]
    mean: NDArray[np.float64]
    m2: NDArray[np.float64]
    minimum: NDArray[np.float32]
    maximum: NDArray[np.float32]
    histogram: NDArray[np.int64]

    @classmethod
    def empty(cls, features: int, bins: int) -> FeatureStatistics:
        """Of nothing: what is merged with it stays as it is."""
        return cls(
            np.zeros(features, np.int64),
            np.zeros(features, np.int64),
            np.zeros(features, np.float64),
            np.zeros(features, np.float64),
            np.full(features, np.inf, np.float32),
            np.full(features, -np.inf, np.float32),
            np.zeros((features, bins + 2), np.int64),
        )

    @property
    def variance(self) -> NDArray[np.float64]:
        """FP64 [F], of the finite values as a population (divided by their number); NaN if there is none."""
        with np.errstate(invalid="ignore"):
            return self.m2 / np.where(self.count, self.count, np.nan)

    @property
    def infinite(self) -> NDArray[np.int64]:
        """INT64 [F], infinities of either sign."""
        return np.asarray(self.histogram.sum(axis=1) - self.count)

    def merge(self, other: FeatureStatistics) -> FeatureStatistics:
        """Of what both have seen. Chan, Golub and LeVeque, Updating Formulae, 1979."""
        total = self.count + other.count
        share = other.count / np.maximum(total, 1)
        delta = other.mean - self.mean
        return FeatureStatistics(
            total,
            self.missing + other.missing,
            self.mean + delta * share,
            self.m2 + other.m2 + delta * delta * self.count * share,
            np.minimum(self.minimum, other.minimum),
            np.maximum(self.maximum, other.maximum),
            self.histogram + other.histogram,
        )


def bin_factors(low: NDArray[np.float32], high: NDArray[np.float32], bins: int) -> NDArray[np.float32]:
    """FP32 [F], bins / (high - low): what a value above low is multiplied with to find its bin.

    Raises ValueError unless both are FP32 [F] and finite, high above low by what FP32 can divide, and bins 1 to 256.
    """
    if not 1 <= bins <= LARGEST_BINS:
        raise ValueError(f"a histogram has 1 to {LARGEST_BINS} bins, not {bins}")
    if low.ndim != 1 or low.shape != high.shape or not low.dtype == high.dtype == np.float32:
        raise ValueError(
            f"low and high are float32 [features], not {low.dtype} {list(low.shape)} and "
            f"{high.dtype} {list(high.shape)}"
        )
    with np.errstate(all="ignore"):
        factors = (bins / (high.astype(np.float64) - low)).astype(np.float32)
    bad = ~(np.isfinite(low) & np.isfinite(high) & (low < high) & np.isfinite(factors) & (factors > 0))
    if bad.any():
        feature = int(np.argmax(bad))
        raise ValueError(f"feature {feature}: {low[feature]} to {high[feature]} is no range for {bins} bins")
    return factors


def feature_statistics(
    x: NDArray[Any], low: NDArray[np.float32], high: NDArray[np.float32], bins: int
) -> FeatureStatistics:
    """The statistics of a batch. x: float32 or float16 [rows, features].

    low, high: FP32 [features], the range of each histogram. A value falls into bin floor((x - low) * bins / (high -
    low)), computed in FP32; one that is exactly `high` falls into the last. Raises ValueError for a range that is none,
    or shapes that do not fit.
    """
    factors = bin_factors(low, high, bins)
    if x.ndim != 2 or x.dtype not in (np.float32, np.float16) or x.shape[1] != len(low):
        raise ValueError(f"x is float32 or float16 [rows, {len(low)}], not {x.dtype} {list(x.shape)}")
    result = FeatureStatistics.empty(len(low), bins)
    step = max(1, AT_ONCE // max(1, len(low)))
    for start in range(0, len(x), step):
        result = result.merge(_of_part(x[start : start + step].astype(np.float32), low, high, factors, bins))
    return result


def _of_part(
    x: NDArray[np.float32],
    low: NDArray[np.float32],
    high: NDArray[np.float32],
    factors: NDArray[np.float32],
    bins: int,
) -> FeatureStatistics:
    features = x.shape[1]
    finite = np.isfinite(x)
    sound = bool(finite.all())
    missing = np.zeros(1, np.bool_) if sound else np.isnan(x)
    count = finite.sum(axis=0)
    real, above, below = (x, x, x) if sound else (np.where(finite, x, fill) for fill in (0, np.inf, -np.inf))
    mean = real.sum(axis=0, dtype=np.float64) / np.maximum(count, 1)
    distance = real - mean
    if not sound:
        distance *= finite
    with np.errstate(invalid="ignore", over="ignore"):
        place = np.minimum((x - low) * factors, np.float32(bins - 1))
    place[x < low] = -1
    place[x > high] = bins
    if not sound:
        place[missing] = bins + 1  # counted, and cut off
    slots = place.astype(np.int32)
    slots += 1 + np.arange(features, dtype=np.int32) * (bins + 3)
    histogram = np.bincount(slots.reshape(-1), minlength=features * (bins + 3)).reshape(features, bins + 3)
    return FeatureStatistics(
        count,
        np.broadcast_to(missing.sum(axis=0), features).astype(np.int64),
        mean,
        np.einsum("ij,ij->j", distance, distance),
        above.min(axis=0, initial=np.inf).astype(np.float32),
        below.max(axis=0, initial=-np.inf).astype(np.float32),
        histogram[:, : bins + 2],
    )
