"""The least that a result must be worth of its source. Pure."""

from __future__ import annotations

from math import ceil, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.quantize.errors import QuantizeError
from headrace.quantize.report import Measure

if TYPE_CHECKING:
    from headrace.quantize.report import Metric

    Scores = np.ndarray[Any, np.dtype[np.float64]]

DEFAULT_GATE = 0.99
"""MLPerf Inference's rule for most tasks: 99 % of what the FP32 reference reaches."""
_NORMAL = 1.96
_ROUNDING = 1e-6
"""By which a number of rows may be off that is computed in floating point: 1 / (1 - 0.99) is above 100."""
_NAMES = {"accuracy": "accuracy", "r2": "R2", "top1_agreement": "top-1 agreement", "cosine": "cosine similarity"}


def measured(metric: Metric, labelled: bool, output: str, source: Scores, result: Scores) -> Measure:
    """The measure of FP64 [rows] scores of the same rows, which the metric is the mean of.

    The interval is that of a ratio of means of pairs, by the delta method. Where no row differs it is what that leaves
    open: of all such rows, 3 of as many may (the rule of three). Raises QuantizeError for a source that is itself worth
    nothing.
    """
    rows = len(source)
    base, reached = float(source.mean()), float(result.mean())
    if not base > 0:
        raise QuantizeError(
            f"the source's own {_NAMES[metric]} on these data is {base:.4g}: nothing to hold a result against; "
            "are data and labels of this model, and in its order?"
        )
    relative = reached / base
    differences = result - relative * source
    deviation = sqrt(float(np.square(differences).sum()) / max(1, rows - 1) / rows) / base
    margin = _NORMAL * deviation if np.any(result != source) else 3 / rows / base
    return Measure(metric, labelled, rows, base, reached, relative, relative - margin, relative + margin, output)


def holds(measure: Measure, gate: float) -> bool:
    """Whether a result may be served."""
    return measure.relative >= gate


def verdict(measure: Measure, gate: float) -> str:
    """A line of what was measured, and of the gate."""
    against = "labels" if measure.labelled else "the source, without labels"
    name = _NAMES[measure.metric]
    figures = f"{measure.result:.4f}" + (f" of {measure.source:.4f}" if measure.labelled else "")
    return (
        f"{name} {figures} on {measure.rows:,} rows, against {against}: relative {measure.relative:.4f} "
        f"(95 % interval {measure.low:.4f} to {measure.high:.4f}), gate {gate:g}"
    )


def chance(measure: Measure, commonest: float) -> str:
    """A warning where a source does no better than its commonest label alone would; else empty."""
    if measure.metric != "accuracy" or measure.source > commonest:
        return ""
    return (
        f"the source's own accuracy, {measure.source:.4f}, is no better than always the commonest label, "
        f"{commonest:.4f}: are the labels in the order of the rows?"
    )


def coarse(metric: Metric, source: float, rows: int, gate: float) -> str:
    """A warning where so few rows cannot tell the gate from a miss by one row; else empty. source: its own mean."""
    by_rows = gate < 1 and metric in ("accuracy", "top1_agreement")
    least = ceil(1 / ((1 - gate) * source) - _ROUNDING) if by_rows else 0
    if rows >= least:
        return ""
    return f"{rows} rows for evaluation: one row is more than the gate allows; give {least:,} or more"
