"""A report as two tables of rows, for Evidently and whatever else wants rows. No row of them was ever a request.

A column is drawn from its feature's histogram and quantiles alone, at even ranks, and shuffled by itself: it has the
distribution that was recorded, and nothing of how features go together, which was not.
"""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from headrace.drift.report import Bin, DriftReport, FeatureReport, Statistics

MOST_ROWS = 5000
"""Rows of a table, at most; it has no more than were counted, so that who tests it is no surer than the data allow."""


def tables(report: DriftReport, seed: int = 0) -> tuple[str, str]:
    """The reference and the window as CSV, a column for each feature that has both; empty cells are missing values."""
    random = np.random.default_rng(seed)
    features = [one for one in report.features if one.reference is not None and (one.window.rows or one.window.missing)]
    sides = []
    for side in ("reference", "window"):
        counts = [statistics.rows for one in features if (statistics := _side(one, side)) is not None]
        rows = min((min(MOST_ROWS, count) for count in counts if count), default=0)  # a column may be of gaps alone
        columns = [_column(one, side, rows, random) for one in features]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([f"{one.direction}.{one.tensor}.{one.feature}" for one in features])
        writer.writerows(zip(*columns, strict=True))
        sides.append(text.getvalue())
    return sides[0], sides[1]


def _side(feature: FeatureReport, side: str) -> Statistics | None:
    return feature.window if side == "window" else feature.reference


def _column(feature: FeatureReport, side: str, rows: int, random: np.random.Generator) -> Sequence[str]:
    statistics = _side(feature, side)
    shares = np.array([one.window if side == "window" else one.reference or 0.0 for one in feature.histogram])
    if not rows or statistics is None or not shares.sum():
        return [""] * rows
    ranks = (np.arange(rows) + 0.5) / rows
    ends = np.cumsum(shares / shares.sum())
    place = np.minimum(np.searchsorted(ends, ranks), len(shares) - 1)
    if feature.histogram[0].label:
        values = [feature.histogram[at].label for at in place]
    else:
        within = (ranks - (ends - shares / shares.sum())[place]) / np.maximum(shares[place] / shares.sum(), 1e-12)
        low, high = _ends(feature.histogram, statistics)
        values = [f"{value:.15g}" for value in low[place] + within * (high - low)[place]]
    order = random.permutation(rows)
    lost = round(statistics.missing * rows)
    return ["" if at < lost else values[index] for at, index in enumerate(order)]


def _ends(bins: Sequence[Bin], statistics: Statistics) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where each bin begins and ends; an open one is as wide as its neighbour, or reaches to the outermost quantile."""
    low = np.array([np.nan if one.low is None else one.low for one in bins])
    high = np.array([np.nan if one.high is None else one.high for one in bins])
    known = statistics.quantiles or (0.0, 0.0)
    if len(bins) == 1:
        return np.array([known[0]]), np.array([known[-1]])
    first = (high[1] - low[1]) if len(bins) > 2 else abs(high[0]) or 1.0
    last = (high[-2] - low[-2]) if len(bins) > 2 else abs(low[-1]) or 1.0
    low[0] = min(high[0] - first, known[0])
    high[-1] = max(low[-1] + last, known[-1])
    return low, high
