"""What was counted of one tensor by its plan: exact counts, moments, and sketches."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

import numpy as np

from headrace.drift.errors import DriftError
from headrace.drift.moments import Moments
from headrace.drift.sketches import ItemSketch, Quantiles

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from numpy.typing import NDArray

    from headrace.drift.extract import Columns
    from headrace.drift.plan import Plan

    Arrays = dict[str, NDArray[Any]]

BYTES_A_FEATURE = 4096
"""What a numeric feature of 20 bins takes in one window, at most: KLL 2.6 KiB, counts and moments 0.4 KiB, overhead."""
BYTES_OF_ITEMS = 128 << 10
"""What a feature of items takes in one window, at most."""


class Tally:
    """Of the rows that it was given.

    rows: how many. moments: of numeric features. histogram: INT64 [F, bins], by the plan's grid. outside: INT64 [F, 2],
    values below the plan's least and above its greatest. items: INT64 [C + 2], by the plan's cells; empty if it has
    none. item_rows: rows whose items were counted. quantiles, sketch: what the plan does not say, with bounded errors.
    """

    __slots__ = ("histogram", "item_rows", "items", "moments", "outside", "plan", "quantiles", "rows", "sketch")

    def __init__(self, plan: Plan) -> None:
        features = plan.grid.features
        self.plan = plan
        self.rows = 0
        self.item_rows = 0
        self.moments = Moments.empty(features)
        self.histogram = np.zeros((features, plan.grid.bins), np.int64)
        self.outside = np.zeros((features, 2), np.int64)
        self.quantiles = Quantiles(features)
        self.items = np.zeros(0 if plan.items is None else len(plan.items.cells) + 2, np.int64)
        self.sketch = None if plan.items is None else ItemSketch()

    def __repr__(self) -> str:
        return f"<Tally of {self.plan.watch.tensor}: {self.rows} rows>"

    def update(self, columns: Columns) -> None:
        """Adds rows, as the plan's extractor gave them. Without items, numbers alone are counted."""
        grid = self.plan.grid
        cells = grid.cells(columns.numbers)
        self.rows += columns.rows
        self.moments = self.moments.merge(Moments.of(grid, cells, np.isinf(columns.numbers)))
        self.histogram += grid.histogram(cells)
        self.outside += np.column_stack([(cells < grid.low).sum(axis=0), (cells > grid.high).sum(axis=0)])
        self.quantiles.update(cells)
        if columns.items is None or self.plan.items is None or self.sketch is None:
            return
        items, counts = np.unique(columns.items, return_counts=True)
        self.item_rows += columns.rows
        self.items += self.plan.items.counts(items, counts)
        self.sketch.update(items, counts)

    def merge(self, other: Tally, counts_alone: bool = False) -> None:
        """Adds what another has counted. Raises DriftError unless by the same plan.

        counts_alone: without the sketches, in a fraction of the time; they are of this one alone then.
        """
        if other.plan is not self.plan and other.plan.fingerprint != self.plan.fingerprint:
            raise DriftError(f"{self.plan.watch.tensor}: counted by different plans, which cannot be merged")
        self.rows += other.rows
        self.item_rows += other.item_rows
        self.moments = self.moments.merge(other.moments)
        self.histogram += other.histogram
        self.outside += other.outside
        self.items += other.items
        if counts_alone:
            return
        self.quantiles.merge(other.quantiles)
        if self.sketch is not None and other.sketch is not None:
            self.sketch.merge(other.sketch)

    def arrays(self) -> Arrays:
        """Everything but the plan, as named arrays."""
        parts = self.quantiles.serialized()
        if self.sketch is not None:
            parts += self.sketch.serialized()
        found: Arrays = {f"moments.{field.name}": getattr(self.moments, field.name) for field in fields(Moments)}
        return found | {
            "rows": np.array([self.rows, self.item_rows], np.int64),
            "histogram": self.histogram,
            "outside": self.outside,
            "sizes": np.array([len(part) for part in parts], np.int64),
            "items": self.items,
            "sketches": np.frombuffer(b"".join(parts), np.uint8),
        }

    @classmethod
    def of(cls, plan: Plan, arrays: Mapping[str, NDArray[Any]]) -> Tally:
        """What `arrays` gave. Raises DriftError for arrays that are not of the plan."""
        result = cls(plan)
        wanted = result.arrays()
        arrays = {"moments.infinite": wanted["moments.infinite"], **arrays}  # older files do not have it
        for name, array in wanted.items():
            found = arrays.get(name)
            if found is None or found.dtype != array.dtype or (name != "sketches" and found.shape != array.shape):
                raise DriftError(f"{plan.watch.tensor}: {name} is not as the plan has it")
        rows, item_rows = arrays["rows"].tolist()
        result.rows, result.item_rows = rows, item_rows
        result.moments = Moments(*(arrays[f"moments.{field.name}"] for field in fields(Moments)))
        result.histogram, result.outside, result.items = (
            arrays[name].copy() for name in ("histogram", "outside", "items")
        )
        parts = _cut(arrays["sketches"].tobytes(), arrays["sizes"].tolist())
        features = plan.grid.features
        result.quantiles = Quantiles.of(parts[:features])
        if result.sketch is not None:
            result.sketch = ItemSketch.of(*parts[features:])
        return result


def _cut(data: bytes, sizes: list[int]) -> list[bytes]:
    ends = np.cumsum(sizes, dtype=np.int64).tolist()
    return [data[end - size : end] for end, size in zip(ends, sizes, strict=True)]
