"""Whether a difference between two samples could be chance: tests that take the reference for a sample, which it is.

The window is compared with the reference's counts, not with the distribution that these suggest: a reference of few
rows then proves little, and one that is off by chance does not alarm on every window.
"""

from __future__ import annotations

from math import exp, inf, lgamma, log
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Counts = NDArray[Any]

LEAST_EXPECTED = 10.0
"""Rows to be expected of a bin in either sample.

Cochran, Some methods for strengthening the common chi-square tests, 1954, asks for 5; but levels here are far out in
the tail, where p-values of a thousandth were found twice as often as that with 5.
"""
_PRECISION = 1e-15
_ITERATIONS = 10_000


def homogeneity(reference: Counts, window: Counts, ordered: bool) -> float:
    """The p-value of Pearson's chi-square test that two rows of counts [bins] are samples of one distribution.

    Bins in which either sample leads to expect fewer than LEAST_EXPECTED are joined with a neighbour (`ordered`) or
    with one another. Where fewer than two are left, it is Fisher's test of the fullest bin against all others.
    scipy.stats.chi2_contingency without correction.
    """
    table = np.stack([reference, window]).astype(np.float64)
    rows = table.sum(axis=1)
    if not rows.all():
        return 1.0
    least = LEAST_EXPECTED * rows.sum() / rows.min()
    joined = (_join_neighbours if ordered else _join_small)(table, float(least))
    if joined.shape[1] < 2:
        fullest = table[:, table.sum(axis=0).argmax()]
        return differs_in_share(int(fullest[0]), int(rows[0]), int(fullest[1]), int(rows[1]))
    return _pearson(joined)


def _pearson(table: Floats) -> float:
    rows, columns = table.sum(axis=1), table.sum(axis=0)
    expected = np.outer(rows, columns) / rows.sum()
    statistic = float(((table - expected) ** 2 / expected).sum())
    return chi_square_tail(statistic, len(columns) - 1)


def _join_neighbours(table: Floats, least: float) -> Floats:
    joined: list[Floats] = []
    for column in table.T:
        if joined and joined[-1].sum() < least:
            joined[-1] = joined[-1] + column
        else:
            joined.append(column)
    if len(joined) > 1 and joined[-1].sum() < least:
        last = joined.pop()
        joined[-1] = joined[-1] + last
    return np.array(joined).T


def _join_small(table: Floats, least: float) -> Floats:
    totals = table.sum(axis=0)
    order = np.argsort(-totals, kind="stable")
    table, totals = table[:, order], totals[order]
    keep = int((totals >= least).sum())
    rest = table[:, keep:].sum(axis=1, keepdims=True)
    if keep and rest.sum() < least:  # too few even together: they go with the smallest that is kept
        return np.concatenate([table[:, : keep - 1], table[:, keep - 1 : keep] + rest], axis=1)
    return np.concatenate([table[:, :keep], rest], axis=1)


def chi_square_tail(statistic: float, freedom: int) -> float:
    """The probability that chi-square with so many degrees of freedom is above `statistic`; scipy.stats.chi2.sf.

    The regularized incomplete gamma function Q(freedom / 2, statistic / 2), by its series or its continued fraction:
    Abramowitz and Stegun, 6.5.29 and 6.5.31; Lentz's method.
    """
    a, x = freedom / 2, statistic / 2
    if x <= 0:
        return 1.0
    scale = a * log(x) - x - lgamma(a)
    if x < a + 1:
        term = total = 1 / a
        for n in range(1, _ITERATIONS):
            term *= x / (a + n)
            total += term
            if term < total * _PRECISION:
                break
        return max(0.0, 1 - total * exp(scale))
    b = x + 1 - a
    c, d = inf, 1 / b
    fraction = d
    for n in range(1, _ITERATIONS):
        factor = n * (a - n)
        b += 2
        d = 1 / (factor * d + b)
        c = b + factor / c
        fraction *= c * d
        if abs(c * d - 1) < _PRECISION:
            break
    return exp(scale) * fraction if scale > -740 else 0.0


def more_often(reference: int, reference_rows: int, window: int, window_rows: int) -> float:
    """The p-value that something is not more frequent in the window: Fisher's exact test, one-sided.

    `reference` of reference_rows and `window` of window_rows have it. The upper tail of the hypergeometric
    distribution. It is exact also where "it" is to lie above all of the reference: Rosenbaum's test, 1954.
    """
    if not window_rows or not reference_rows or not window:
        return 1.0
    total, rows = reference + window, reference_rows + window_rows
    if window * rows > total * window_rows:
        return _upper_tail(window, total, window_rows, rows)
    # below the mean the terms would begin too small to be added up: all but what is fewer, seen from the other side
    return max(0.0, 1 - _upper_tail(total - window + 1, total, reference_rows, rows))


def _upper_tail(least: int, total: int, drawn: int, rows: int) -> float:
    """The probability of at least `least` of `total` marked ones among `drawn` of `rows`."""
    most = min(total, drawn)
    if least > most:
        return 0.0
    chosen = _log_choose(drawn, least) + _log_choose(rows - drawn, total - least) - _log_choose(rows, total)
    term = tail = exp(min(0.0, chosen))
    for k in range(least, most):
        term *= (total - k) / (k + 1) * (drawn - k) / (rows - drawn - total + k + 1)
        tail += term
        if term < tail * _PRECISION:
            break
    return min(1.0, tail)


def differs_in_share(reference: int, reference_rows: int, window: int, window_rows: int) -> float:
    """The p-value that something is as frequent in both: twice the smaller one-sided one, at most 1."""
    more = more_often(reference, reference_rows, window, window_rows)
    less = more_often(window, window_rows, reference, reference_rows)
    return min(1.0, 2 * min(more, less))


def _log_choose(n: int, k: int) -> float:
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values: those at most alpha may be rejected, and the chance of any false rejection is at most alpha.

    Holds however the tests depend on one another. Holm, A simple sequentially rejective multiple test procedure, 1979.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted = [1.0] * len(p_values)
    least = 0.0
    for place, index in enumerate(order):
        least = max(least, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = least
    return adjusted
