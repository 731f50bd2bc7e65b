"""The grid of numeric features: what values are rounded to before anything keeps them, and the bins that count them.

A value becomes the number of its cell, `rint((x - origin) / step)`. The step is a power of two, about a thirtieth of a
normal feature's standard deviation, so that what is kept of a value is its place in the distribution, not its digits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Cells = NDArray[np.float32]
    Counts = NDArray[np.int64]

LIMIT = float(1 << 23)
"""Cells are cut off here on either side, infinities too: FP32, which the sketches take, holds all of these exactly."""
_CELLS_OF_A_GAP = 4
_RANGE_CELLS = float(1 << 20)
_LARGEST = 2.0**1022  # what is greater is taken for this: all distances are numbers then
_PROBES = np.arange(1, 20) / 20


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Of F features. origin, step: FP64 [F]. edges: FP32 [F, E], in cells, ascending, filled up with inf.

    A cell c is in bin b if edges[b - 1] < c < edges[b]; edges lie between cells. low, high: FP32 [F], the least and
    greatest cell that was seen when it was made.
    """

    origin: Floats
    step: Floats
    edges: Cells
    low: Cells
    high: Cells

    @property
    def features(self) -> int:
        """How many."""
        return len(self.origin)

    @property
    def bins(self) -> int:
        """Bins of a feature; one that has fewer has empty ones behind."""
        return int(self.edges.shape[1]) + 1

    def bins_of(self, feature: int) -> int:
        """How many bins a feature really has."""
        return int(np.isfinite(self.edges[feature]).sum()) + 1

    def cells(self, numbers: NDArray[Any]) -> Cells:
        """The cells of numbers [rows, F], NaN where there is none."""
        with np.errstate(over="ignore"):
            places = np.rint((np.clip(numbers, -_LARGEST, _LARGEST) - self.origin) / self.step)
        return np.asarray(np.clip(places, -LIMIT, LIMIT), np.float32)

    def values(self, cells: NDArray[Any]) -> Floats:
        """What cells [..., F] stand for."""
        return np.asarray(self.origin + cells * self.step, np.float64)

    def histogram(self, cells: Cells) -> Counts:
        """INT64 [F, bins], how many of cells [rows, F] fall into each bin; NaNs into none."""
        counts = np.zeros((self.features, self.bins), np.int64)
        for feature, edges in enumerate(self.edges):
            column = cells[:, feature]
            column = column[~np.isnan(column)]
            counts[feature] = np.bincount(np.searchsorted(edges, column), minlength=self.bins)
        return counts


def grid_of(numbers: Floats, bins: int) -> Grid:
    """A grid for features of which numbers [rows, F] are a sample, with about `bins` bins of equal mass.

    A value that alone fills a bin gets one of its own. A feature without a finite value gets one bin for everything.
    """
    parts = [_of_feature(column[np.isfinite(column)], bins) for column in numbers.T]
    width = max((len(edges) for _, _, edges, _, _ in parts), default=0)
    filled = np.full((len(parts), width), np.inf, np.float32)
    for row, (_, _, edges, _, _) in zip(filled, parts, strict=True):
        row[: len(edges)] = edges
    return Grid(
        np.array([origin for origin, *_ in parts], np.float64),
        np.array([step for _, step, *_ in parts], np.float64),
        filled,
        np.array([low for *_, low, _ in parts], np.float32),
        np.array([high for *_, high in parts], np.float32),
    )


def _of_feature(values: Floats, bins: int) -> tuple[float, float, Floats, float, float]:
    if not len(values):
        return 0.0, 1.0, np.zeros(0), 0.0, 0.0
    values = np.clip(values, -_LARGEST, _LARGEST)
    step = _step(values)
    origin = float(np.rint(np.median(values) / step) * step)
    cells = np.clip(np.rint((values - origin) / step), -LIMIT, LIMIT)
    tops = np.quantile(cells, np.arange(1, bins) / bins, method="inverted_cdf")
    heavy = tops[1:][tops[1:] == tops[:-1]]
    if tops[0] == cells.min():
        heavy = np.append(heavy, tops[0])
    if tops[-1] == cells.max():
        heavy = np.append(heavy, tops[-1])
    edges = np.unique(np.concatenate([tops + 0.5, heavy - 0.5]))
    return origin, step, edges, float(cells.min()), float(cells.max())


def _step(values: Floats) -> float:
    """A power of two: a quarter of the smallest gap between twentieths of the values, as far as their range allows."""
    probes = np.quantile(values, _PROBES, method="inverted_cdf")
    gaps = np.diff(probes)
    gaps = gaps[gaps > 0]
    spread = float(values.max() - values.min())
    if len(gaps):
        step = max(float(gaps.min()) / _CELLS_OF_A_GAP, float(probes[-1] - probes[0]) / _RANGE_CELLS)
    elif spread:
        step = spread / 1024
    else:
        step = abs(float(values[0])) / 1024 or 1.0
    least = max(float(np.abs(values).max()) * 2.0**-48, 2.0**-1000)  # so that the origin and a cell can be told apart
    return float(2.0 ** np.floor(np.log2(max(step, least))))
