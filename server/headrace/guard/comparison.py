"""An output of a version beside that of its reference, row by row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from headrace.guard.settings import GuardSettings

    Array = NDArray[Any]
    Floats = NDArray[np.float64]
    _Distance = tuple[Floats, Floats, NDArray[np.int64]]

_SUMS_TO_ONE = 1e-2
_GREATEST = 2.0**1000
"""Of scores: an infinite one counts as this, so that it is above or below all others and distances are numbers."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Of each row [rows], in [0, 1]: agreement, error, and for kind classes margin; for kind values cosine.

    agreement: for classes the share of places with the same top-1 (one place, unless there are more dimensions than
    that of the classes); for values 1 or 0; for equal the share of elements that are. error: for classes the total
    variation of the two distributions, mean over places; for values the relative error, Euclidean, at most 1; for equal
    1 less the agreement. margin: probability of the reference's first class less that of its second, mean over places.
    absolute, largest: of each row, mean and greatest absolute difference of the elements that are finite in both; NaN
    where there is none, or nothing is subtracted, as for equal. strange: of each row, elements that are not finite in
    one of the two, and not the same in the other.
    """

    agreement: Floats
    error: Floats
    absolute: Floats
    largest: Floats
    strange: NDArray[np.int64]
    margin: Floats | None = None
    cosine: Floats | None = None


@np.errstate(over="ignore", invalid="ignore")
def compare(settings: GuardSettings, found: Array, expected: Array) -> Comparison:
    """found, expected: [rows, ...], of one dtype: numbers, or objects for kind equal.

    Rows of other dimensions than the reference's agree in nothing.
    """
    rows = len(expected)
    if found.shape != expected.shape:
        return Comparison(np.zeros(rows), np.ones(rows), *_no_distance(rows))
    if not expected.size:
        return Comparison(np.ones(rows), np.zeros(rows), *_no_distance(rows))
    if settings.kind == "equal":
        return _equal(found.reshape(rows, -1), expected.reshape(rows, -1))
    distance = _distance(found.astype(np.float64).reshape(rows, -1), expected.astype(np.float64).reshape(rows, -1))
    if settings.kind == "values":
        found, expected = _finite(found, expected)
        return _values(settings, found.reshape(rows, -1), expected.reshape(rows, -1), distance)
    found, expected = (_scores(one).reshape(-1, one.shape[-1]) for one in (found, expected))
    compared = _classes(found, expected)
    agreement, error, margin = (of_places.reshape(rows, -1).mean(axis=1) for of_places in compared)
    sound = distance[-1] == 0
    return Comparison(agreement * sound, np.where(sound, error, 1.0), *distance, margin=margin)


def _finite(found: Array, expected: Array) -> tuple[Floats, Floats]:
    """Both as doubles, 0 where they are not finite; found also where the reference is not."""
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(expected)
    return np.where(finite & np.isfinite(found), found, 0.0), np.where(finite, expected, 0.0)


def _scores(scores: Array) -> Floats:
    """As doubles: classes that are masked out, by minus infinity, are below all others, and so is NaN."""
    doubles = scores.astype(np.float64)
    return np.clip(np.where(np.isnan(doubles), -np.inf, doubles), -_GREATEST, _GREATEST)


def _classes(found: Floats, expected: Floats) -> tuple[Floats, Floats, Floats]:
    """Agreement, error and margin of each place; [places, classes]. Of several greatest scores, any is right."""
    places = np.arange(len(expected))
    agreement = (expected[places, found.argmax(axis=1)] == expected.max(axis=1)).astype(np.float64)
    sure = expected[(np.abs(expected) < _GREATEST).all(axis=1)]  # a row that is not finite says nothing of the others
    sums_to_one = np.abs(sure.clip(-1, 2).sum(axis=1) - 1) < _SUMS_TO_ONE
    distributions = sure.min(initial=0.0) >= 0 and len(sure) > 0 and bool(sums_to_one.all())
    p, q = (expected, found) if distributions else (_softmax(expected), _softmax(found))
    error = np.minimum(np.abs(p - q).sum(axis=1) / 2, 1.0)
    if p.shape[1] == 1:
        return agreement, error, np.ones(len(p))
    two = np.partition(p, -2, axis=1)[:, -2:]
    return agreement, error, np.clip(two[:, 1] - two[:, 0], 0.0, 1.0)


def _values(settings: GuardSettings, found: Floats, expected: Floats, distance: _Distance) -> Comparison:
    """[rows, elements]."""
    scale = np.maximum(np.abs(found).max(axis=1), np.abs(expected).max(axis=1))[:, None]
    scale[scale == 0] = 1.0
    found, expected = found / scale, expected / scale  # else squares may be beyond all numbers, or nothing
    off = np.linalg.norm(found - expected, axis=1)
    length, other = np.linalg.norm(expected, axis=1), np.linalg.norm(found, axis=1)
    with np.errstate(divide="ignore"):
        relative = np.where(off == 0, 0.0, off / length)
        cosine = np.where(length * other > 0, (found * expected).sum(axis=1) / (length * other), 1.0 * (off == 0))
    sound = distance[-1] == 0
    agreement = (relative <= settings.tolerance) & sound
    error = np.where(sound, np.minimum(relative, 1.0), 1.0)
    return Comparison(agreement.astype(np.float64), error, *distance, cosine=cosine)


def _equal(found: Array, expected: Array) -> Comparison:
    """[rows, elements]."""
    same = (found == expected).astype(bool)
    if expected.dtype.kind == "f":
        same |= np.isnan(found) & np.isnan(expected)
    agreement = same.mean(axis=1)
    return Comparison(agreement, 1.0 - agreement, *_no_distance(len(found)))


def _distance(found: Floats, expected: Floats) -> _Distance:
    """`absolute`, `largest` and `strange` of a comparison; [rows, elements]."""
    finite = np.isfinite(found) & np.isfinite(expected)
    off = np.abs(found - expected)
    if finite.all():
        return off.mean(axis=1), off.max(axis=1), np.zeros(len(found), np.int64)
    same = finite | (found == expected) | (np.isnan(found) & np.isnan(expected))
    count = finite.sum(axis=1)
    off = np.where(finite, off, 0.0)
    some = np.where(count > 0, 1.0, np.nan)
    return off.sum(axis=1) / np.maximum(count, 1) * some, off.max(axis=1) * some, (~same).sum(axis=1)


def _no_distance(rows: int) -> _Distance:
    unknown = np.full(rows, np.nan)
    return unknown, unknown, np.zeros(rows, np.int64)


def _softmax(scores: Floats) -> Floats:
    """[places, classes]."""
    powers: Floats = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares: Floats = powers / powers.sum(axis=1, keepdims=True)
    return shares
