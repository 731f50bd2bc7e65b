"""How far a window is from its reference: one number for each feature. Pure functions of counts and quantiles.

Counts are [..., bins] by the same bins, quantiles [..., ranks] at the same ranks; each score is [...]. None says
whether the distance could be chance: that is `significance`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Counts = NDArray[Any]
    Floats = NDArray[np.float64]


def shares(counts: Counts) -> Floats:
    """What part of all is in each bin; zeros where there is nothing."""
    return np.asarray(counts / np.maximum(counts.sum(axis=-1, keepdims=True), 1e-300), np.float64)


def psi(reference: Counts, window: Counts) -> Floats:
    """Population stability index: sum of (q - p) ln(q / p) over bins; 0 if either has seen nothing.

    Siddiqi, Credit Risk Scorecards, 2006: below 0.1 little, above 0.25 much has changed. p and q are shares with half a
    count added to each bin that either has seen (Jeffreys' prior), so that an empty one does not make it infinite.
    Without any change its mean is about (bins - 1) (1/n + 1/m): Yurdakul and Naranjo, Statistical properties of the
    population stability index, 2020.
    """
    used = (reference + window) > 0
    p, q = (shares(np.where(used, counts + 0.5, 0)) for counts in (reference, window))
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(used, (q - p) * np.log(q / p), 0)
    both = (reference.sum(axis=-1) > 0) & (window.sum(axis=-1) > 0)
    return np.where(both, terms.sum(axis=-1), 0.0)


def psi_noise(bins: Counts | int, rows: Counts | float, reference_rows: Counts | float) -> Floats:
    """What `psi` is on average where nothing has changed."""
    rows, reference_rows = np.maximum(rows, 1), np.maximum(reference_rows, 1)
    return np.asarray((np.asarray(bins) - 1) * (1 / rows + 1 / reference_rows), np.float64)


def kolmogorov_smirnov(reference: Counts, window: Counts) -> Floats:
    """The largest distance of the two distribution functions at the edges of the bins, 0 to 1.

    Of the distance over all values it is a lower bound, lower by at most the mass of a bin. It reads as a share: so
    many of a hundred values have moved to the other side of some value.
    """
    distance = np.cumsum(shares(window), axis=-1) - np.cumsum(shares(reference), axis=-1)
    return _of_both(np.abs(distance).max(axis=-1, initial=0.0), reference, window)


def total_variation(reference: Counts, window: Counts) -> Floats:
    """Half the sum of the distances of the shares, 0 to 1: the share that would have to change its bin."""
    return _of_both(np.abs(shares(window) - shares(reference)).sum(axis=-1) / 2, reference, window)


def jensen_shannon(reference: Counts, window: Counts) -> Floats:
    """The Jensen-Shannon distance, 0 to 1: root of the divergence to base 2. Lin, 1991; Endres and Schindelin, 2003."""
    p, q = shares(reference), shares(window)
    middle = (p + q) / 2
    divergence = (_relative_entropy(p, middle) + _relative_entropy(q, middle)) / 2
    return _of_both(np.sqrt(np.clip(divergence, 0, 1)), reference, window)


def wasserstein(reference: Floats, window: Floats) -> Floats:
    """The first Wasserstein distance: the mean distance of the two quantile functions (Vallender, 1974).

    Quantiles are at the middles of equal parts of [0, 1]: what lies beyond the first and last of them is left out, so
    that one outlier does not make it infinite. NaN where one side has none.
    """
    return np.asarray(np.abs(window - reference).mean(axis=-1), np.float64)


def _of_both(score: Floats, reference: Counts, window: Counts) -> Floats:
    """0 where either side has seen nothing."""
    return np.where((reference.sum(axis=-1) > 0) & (window.sum(axis=-1) > 0), score, 0.0)


def _relative_entropy(p: Floats, q: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(p > 0, p * np.log2(p / q), 0).sum(axis=-1))
