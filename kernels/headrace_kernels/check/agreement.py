"""Whether a kernel has found what the reference finds: exactly, but for sums that are added up in another order."""

from __future__ import annotations

from functools import singledispatch
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace_kernels.operations import Operation, SelectTop, TransformImages, UpdateStatistics

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[Any]]

LEVELS = 0.004
"""Of a pixel's 255 levels, what the order of a filter's sums may make of one; Pillow's own rounding is 0.5."""
PROBABILITY = 2e-5
"""Relative: of exponentials, and their sum, in FP32."""
SPREAD = 1e-5
"""Of a mean, in parts of the range of the values: sums of distances in FP32."""
SQUARES = 2e-4
"""Relative, of the sum of squares."""


@singledispatch
def bounds(operation: Operation, name: str, expected: Arrays) -> NDArray[np.float64] | float:
    """By how much each element of an array may differ from the expected one; broadcasts to it."""
    return 0.0


@bounds.register(TransformImages)
def _(operation: TransformImages, name: str, expected: Arrays) -> NDArray[np.float64] | float:
    factor = np.abs(operation.transform.factors()[0]).astype(np.float64)[:, None, None]
    last_place = 2.0**-10 if operation.transform.dtype == "float16" else 2.0**-23
    size = np.where(np.isfinite(expected[name]), np.abs(expected[name]), 0).astype(np.float64)
    return np.asarray(LEVELS * factor + last_place * size)


@bounds.register(SelectTop)
def _(operation: SelectTop, name: str, expected: Arrays) -> NDArray[np.float64] | float:
    if name == "indices" or not operation.softmax:
        return 0.0
    return np.asarray(PROBABILITY * np.abs(expected[name]).astype(np.float64) + 1e-37)


@bounds.register(UpdateStatistics)
def _(operation: UpdateStatistics, name: str, expected: Arrays) -> NDArray[np.float64] | float:
    if name not in ("mean", "m2"):
        return 0.0
    some = expected["count"] > 0
    reach = np.where(some, expected["maximum"].astype(np.float64) - expected["minimum"], 0)
    size = np.where(some, np.maximum(np.abs(expected["maximum"]), np.abs(expected["minimum"])), 0).astype(np.float64)
    if name == "mean":
        return np.asarray(SPREAD * reach + 1e-14 * size)
    return np.asarray(SQUARES * expected["m2"] + expected["count"] * (1e-14 * size) ** 2)


def disagreement(operation: Operation, expected: Arrays, found: Arrays) -> str | None:
    """What differs by more than it may, in words; None if nothing does. NaNs are equal to one another."""
    for each in operation.arrays():
        if each.role not in ("out", "inout"):
            continue
        wanted, given = expected[each.name], found[each.name]
        may = np.broadcast_to(bounds(operation, each.name, expected), wanted.shape)
        if wanted.dtype.kind == "f":
            with np.errstate(invalid="ignore"):
                far = np.abs(given.astype(np.float64) - wanted.astype(np.float64)) > may
            same = (given == wanted) | (np.isnan(given) & np.isnan(wanted))
            differs = ~same & (far | ~np.isfinite(given) | ~np.isfinite(wanted))
        else:
            differs = given != wanted
        if differs.any():
            at = np.unravel_index(int(np.argmax(differs)), differs.shape)
            return (
                f"{each.name}: {int(differs.sum())} of {differs.size} elements differ; the first, at "
                f"{[int(i) for i in at]}, is {given[at]}, not {wanted[at]}"
            )
    return None
