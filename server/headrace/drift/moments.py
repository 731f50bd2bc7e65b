"""Moments of numeric features, which can be merged: the columns of headrace_kernels' FeatureStatistics, and one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from headrace.drift.grid import Cells, Grid

    Floats = NDArray[np.float64]
    Counts = NDArray[np.int64]


_MOST = float(np.finfo(np.float64).max)


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Of F features, as columns [F].

    count: INT64, values that are numbers, infinities among them. missing: INT64, NaNs. mean, m2: FP64, the mean and the
    sum of squares of the distances from it, which stops at the greatest number (of values beyond 1e154). minimum,
    maximum: FP64; inf and -inf if there is no value. These four are of the finite values, as rounded to the grid: one
    infinity would be all that they tell. infinite: INT64, how many were left out.
    """

    count: Counts
    missing: Counts
    mean: Floats
    m2: Floats
    minimum: Floats
    maximum: Floats
    infinite: Counts

    @classmethod
    def empty(cls, features: int) -> Moments:
        """Of nothing: what is merged with it stays as it is."""
        zeros, none = np.zeros(features), np.zeros(features, np.int64)
        return cls(none, none, zeros, zeros, np.full(features, np.inf), np.full(features, -np.inf), none)

    @classmethod
    def of(cls, grid: Grid, cells: Cells, infinite: NDArray[np.bool_]) -> Moments:
        """Of cells [rows, F], NaN where a value is missing. infinite: which are of infinities."""
        if not len(cells):
            return cls.empty(grid.features)
        missing = np.isnan(cells)
        left_out = missing | infinite
        finite = (~left_out).sum(axis=0)
        real = np.where(left_out, 0, cells).astype(np.float64)
        mean = real.sum(axis=0) / np.maximum(finite, 1)
        with np.errstate(over="ignore"):  # the step is a power of two: to scale before the square rounds nothing
            distance = np.where(left_out, 0, real - mean) * grid.step
            m2 = np.minimum(np.einsum("ij,ij->j", distance, distance), _MOST)
        least = np.where(left_out, np.inf, cells).min(axis=0)
        greatest = np.where(left_out, -np.inf, cells).max(axis=0)
        return cls(
            (~missing).sum(axis=0),
            missing.sum(axis=0),
            np.where(finite > 0, grid.values(mean), 0.0),
            m2,
            grid.values(least),
            grid.values(greatest),
            infinite.sum(axis=0),
        )

    @property
    def finite(self) -> Counts:
        """INT64 [F], the values that mean, deviation, minimum and maximum are of."""
        return self.count - self.infinite

    @property
    def deviation(self) -> Floats:
        """FP64 [F], the standard deviation of the values as a population; 0 where there are none."""
        return np.sqrt(self.m2 / np.maximum(self.finite, 1))

    def merge(self, other: Moments) -> Moments:
        """Of what both have seen. Chan, Golub and LeVeque, Updating Formulae, 1979."""
        here, there = self.finite, other.finite
        share = there / np.maximum(here + there, 1)
        delta = np.where((here > 0) & (there > 0), other.mean - self.mean, 0.0)
        with np.errstate(over="ignore"):
            m2 = np.minimum(self.m2 + other.m2 + delta * delta * here * share, _MOST)
        return Moments(
            self.count + other.count,
            self.missing + other.missing,
            np.where(here > 0, self.mean + delta * share, other.mean),
            m2,
            np.minimum(self.minimum, other.minimum),
            np.maximum(self.maximum, other.maximum),
            self.infinite + other.infinite,
        )
