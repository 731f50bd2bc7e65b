"""A window held against its reference: the scores of each feature, and how likely each would be by chance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from headrace.drift import scores
from headrace.drift.significance import differs_in_share, homogeneity, more_often

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from headrace.drift.plan import Plan
    from headrace.drift.summary import Summary

What = Literal["distribution", "missing", "range", "unseen"]


@dataclass(frozen=True, slots=True)
class Check:
    """One question about a feature: p_value by chance, and the size of the effect as a share, 0 to 1."""

    what: What
    p_value: float
    effect: float


@dataclass(frozen=True, slots=True)
class Assessment:
    """One feature, window against reference.

    kolmogorov_smirnov and wasserstein (in standard deviations of the reference): of numeric features with values, else
    None. missing, outside, unseen: shares in the window, and in the reference.
    """

    key: str
    feature: str
    index: int | None
    rows: int
    psi: float
    psi_noise: float
    jensen_shannon: float
    total_variation: float
    kolmogorov_smirnov: float | None = None
    wasserstein: float | None = None
    missing: tuple[float, float] = (0.0, 0.0)
    outside: tuple[float, float] = (0.0, 0.0)
    unseen: tuple[float, float] = (0.0, 0.0)
    tests: tuple[Check, ...] = ()


def assess(plan: Plan, reference: Summary, window: Summary, design_effect: float = 1.0) -> list[Assessment]:
    """Every feature of one tensor, items last. design_effect: so many rows say as much as one that is independent."""
    found = _numeric(plan, reference, window, design_effect)
    if plan.items is not None:
        found.append(_items(plan, reference, window, design_effect))
    return found


def _numeric(plan: Plan, reference: Summary, window: Summary, design_effect: float) -> list[Assessment]:
    before, now = reference.histogram, window.histogram
    rows, rows_before = now.sum(axis=1), before.sum(axis=1)
    bins = np.array([plan.grid.bins_of(feature) for feature in range(plan.grid.features)])
    psi, noise = scores.psi(before, now), scores.psi_noise(bins, rows / design_effect, rows_before)
    js, tv = scores.jensen_shannon(before, now), scores.total_variation(before, now)
    ks, moved = scores.kolmogorov_smirnov(before, now), _moved(plan, reference, window)
    found = []
    for index, name in enumerate(plan.watch.features):
        missing = [(int(one.moments.missing[index]), int(one.moments.missing[index] + one.moments.count[index]))
                   for one in (window, reference)]  # fmt: skip
        outside = [(int(one.outside[index].sum()), int(one.moments.count[index])) for one in (window, reference)]
        shift = None if np.isnan(moved[index]) else float(moved[index])
        lost, out = (_shares(pair) for pair in (missing, outside))
        tests = (
            Check(
                "distribution", homogeneity(before[index], now[index] / design_effect, ordered=True), float(ks[index])
            ),
            Check("missing", _differs(missing, design_effect), abs(lost[0] - lost[1])),
            Check("range", _beyond(reference, window, index, design_effect), max(0.0, out[0] - out[1])),
        )
        found.append(
            Assessment(
                key=plan.watch.key, feature=name, index=index, rows=int(rows[index]), psi=float(psi[index]),
                psi_noise=float(noise[index]), jensen_shannon=float(js[index]), total_variation=float(tv[index]),
                kolmogorov_smirnov=float(ks[index]), wasserstein=shift, missing=lost, outside=out,
                tests=tests,
            )
        )  # fmt: skip
    return found


def _moved(plan: Plan, reference: Summary, window: Summary) -> NDArray[np.float64]:
    """The Wasserstein distances in standard deviations of the reference; of a constant one, in steps of the grid."""
    before, now = (plan.grid.values(one.quantiles.T).T for one in (reference, window))
    deviation = reference.moments.deviation
    with np.errstate(over="ignore", invalid="ignore"):  # of values near the ends of FP64
        return np.asarray(scores.wasserstein(before, now) / np.where(deviation > 0, deviation, plan.grid.step))


def _items(plan: Plan, reference: Summary, window: Summary, design_effect: float) -> Assessment:
    """Items of one row are no independent sample: together they count as one."""
    before = reference.items * _independent(reference.items, reference.item_rows)
    now = window.items * (_independent(window.items, window.item_rows) / design_effect)
    unseen = _shares([(int(counts[-1]), int(counts.sum())) for counts in (window.items, reference.items)])
    variation = float(scores.total_variation(before, now))
    strange = [(int(counts[-1]), int(counts.sum())) for counts in (before, now)]
    tests = (
        Check("distribution", homogeneity(before, now, ordered=False), variation),
        Check("unseen", more_often(*strange[0], *strange[1]), max(0.0, unseen[0] - unseen[1])),
    )
    noise = scores.psi_noise(int(((before + now) > 0).sum()), float(now.sum()), float(before.sum()))
    return Assessment(
        key=plan.watch.key, feature=plan.watch.items, index=None, rows=window.item_rows,
        psi=float(scores.psi(before, now)), psi_noise=float(noise),
        jensen_shannon=float(scores.jensen_shannon(before, now)), total_variation=variation, unseen=unseen, tests=tests,
    )  # fmt: skip


def _independent(counts: NDArray[np.int64], rows: int) -> float:
    """What the counts are multiplied with so that a row weighs at most one."""
    return min(1.0, rows / max(1, int(counts.sum())))


def _shares(pairs: list[tuple[int, int]]) -> tuple[float, float]:
    window, reference = (part / whole if whole else 0.0 for part, whole in pairs)
    return window, reference


def _differs(pairs: list[tuple[int, int]], design_effect: float) -> float:
    (part, whole), before = pairs
    return differs_in_share(*before, int(part / design_effect), int(whole / design_effect))


def _beyond(reference: Summary, window: Summary, index: int, design_effect: float) -> float:
    """Both ends of the range at once: twice the smaller p-value."""
    rows, rows_before = (int(one.moments.count[index]) for one in (window, reference))
    ends = (
        more_often(int(reference.outside[index, end]), rows_before, int(window.outside[index, end] / design_effect),
                   int(rows / design_effect))
        for end in (0, 1)
    )  # fmt: skip
    return min(1.0, 2 * min(ends))
