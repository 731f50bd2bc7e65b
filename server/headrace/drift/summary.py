"""What is compared of one tensor: counts and a table of quantiles. A reference is made of them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.drift.errors import DriftError
from headrace.drift.moments import Moments

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from headrace.drift.plan import Plan
    from headrace.drift.tally import Tally

    Counts = NDArray[np.int64]
    Floats = NDArray[np.float64]

RANKS: NDArray[np.float64] = (np.arange(100) + 0.5) / 100
"""Of the quantiles: the middles of a hundred equal parts."""
FREQUENT = 20
"""Frequent items that a report names."""
_NAMED_COUNT = 10  # an item that occurred less often is nobody's business
_NAMED_SHARE = 0.001


@dataclass(frozen=True, slots=True, eq=False)
class Summary:
    """Of the rows of a tally, see there. quantiles: FP64 [F, ranks], cells. frequent: items and counts."""

    rows: int
    item_rows: int
    moments: Moments
    histogram: Counts
    outside: Counts
    quantiles: Floats
    items: Counts
    distinct: float = 0.0
    frequent: tuple[tuple[int, int], ...] = ()


def summary_of(tally: Tally) -> Summary:
    """What of a tally is compared, and may leave the process."""
    sketch = tally.sketch
    least = max(_NAMED_COUNT, _NAMED_SHARE * sketch.total) if sketch is not None else 0
    named = () if sketch is None else tuple(pair for pair in sketch.frequent(FREQUENT) if pair[1] >= least)
    return Summary(
        tally.rows,
        tally.item_rows,
        tally.moments,
        tally.histogram,
        tally.outside,
        tally.quantiles.quantiles(RANKS),
        tally.items,
        0.0 if sketch is None else sketch.distinct,
        named,
    )


def summary_json(summary: Summary) -> dict[str, Any]:
    """As JSON: numbers and lists alone, null for what is not a number."""
    moments = {field.name: _plain(getattr(summary.moments, field.name)) for field in fields(Moments)}
    return {
        "rows": summary.rows,
        "item_rows": summary.item_rows,
        "moments": moments,
        "histogram": summary.histogram.tolist(),
        "outside": summary.outside.tolist(),
        "quantiles": _plain(summary.quantiles),
        "items": summary.items.tolist(),
        "distinct": summary.distinct,
        "frequent": [list(pair) for pair in summary.frequent],
    }


def summary_from_json(value: Mapping[str, Any], plan: Plan) -> Summary:
    """What `summary_json` gave, of a tensor counted by `plan`. Raises DriftError."""
    features, bins = plan.grid.features, plan.grid.bins
    try:
        said = {"infinite": [0] * features, **value["moments"]}  # older files do not have it
        moments = Moments(*(_array(said[field.name], field.name, features) for field in fields(Moments)))
        summary = Summary(
            int(value["rows"]),
            int(value["item_rows"]),
            moments,
            np.array(value["histogram"], np.int64).reshape(features, bins),
            np.array(value["outside"], np.int64).reshape(features, 2),
            np.array(value["quantiles"], np.float64).reshape(features, len(RANKS)),
            np.array(value["items"], np.int64).reshape(0 if plan.items is None else len(plan.items.cells) + 2),
            float(value["distinct"]),
            tuple((int(item), int(count)) for item, count in value["frequent"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DriftError(f"{plan.watch.tensor}: no summary by its plan: {type(error).__name__}: {error}") from None
    return summary


def _plain(array: Floats) -> list[Any]:
    """JSON has no infinity: None stands for what is not finite."""
    exact = array.astype(object)
    exact[~np.isfinite(array)] = None
    listed: list[Any] = exact.tolist()
    return listed


def _array(value: list[Any], name: str, features: int) -> NDArray[Any]:
    if name in ("count", "missing", "infinite"):
        return np.array(value, np.int64).reshape(features)
    nothing = {"minimum": np.inf, "maximum": -np.inf}.get(name, 0.0)
    return np.array([nothing if one is None else one for one in value], np.float64).reshape(features)
