"""What the features of one tensor are counted by: a grid, items that are counted one by one, a salt.

A plan is drawn from a sample of rows, once. What was counted by the same plan, whenever and wherever, can be merged and
compared exactly; what was counted by another cannot.
"""

from __future__ import annotations

import base64
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.drift.errors import DriftError
from headrace.drift.extract import Columns, Extractor
from headrace.drift.grid import Grid, grid_of
from headrace.drift.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Items = NDArray[np.int64]
    Counts = NDArray[np.int64]

ITEM_CELLS = 64
"""Items that are counted one by one; the others are counted together."""
KNOWN_ITEMS = 1 << 16
"""Items that are told from unseen ones: the most frequent of the sample, 8 octets each."""
SALT_BYTES = 16
_LEAST_COUNT = 10  # of an item in the sample, to be counted by itself


@dataclass(frozen=True, slots=True, eq=False)
class ItemCells:
    """Items that are told apart.

    cells: INT64 [C], counted one by one, the most frequent first. known: INT64, ascending, those and all others that
    were in the sample.
    """

    cells: Items
    known: Items

    def counts(self, items: Items, counts: Counts) -> Counts:
        """INT64 [C + 2] of different items [n] and how often each occurred: by cell, other known ones, unseen ones."""
        order = np.argsort(self.cells)
        at, found = _places(self.cells[order], items)
        result = np.zeros(len(self.cells) + 2, np.int64)
        np.add.at(result, order[at[found]], counts[found])
        rest, left = items[~found], counts[~found]
        _, known = _places(self.known, rest)
        result[-2], result[-1] = left[known].sum(), left[~known].sum()
        return result


def _places(ascending: Items, wanted: Items) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    if not len(ascending):
        return np.zeros(len(wanted), np.intp), np.zeros(len(wanted), np.bool_)
    at = np.minimum(np.searchsorted(ascending, wanted), len(ascending) - 1)
    return at, ascending[at] == wanted


@dataclass(frozen=True, eq=False)
class Plan:
    """Of one tensor. salt: SALT_BYTES octets, see `Extractor`. rows: how many it was drawn from."""

    watch: Watch
    salt: bytes
    grid: Grid
    items: ItemCells | None
    rows: int

    @cached_property
    def fingerprint(self) -> str:
        """Equal for equal plans alone."""
        return blake2b(json.dumps(plan_json(self), sort_keys=True).encode(), digest_size=16).hexdigest()

    def extractor(self) -> Extractor:
        """From rows of the tensor to its features."""
        return Extractor(self.watch, self.salt)


def draw_plan(watch: Watch, salt: bytes, sample: Columns) -> Plan:
    """A plan for data of which `sample` holds some rows. Raises DriftError if there are none."""
    if not sample.rows:
        raise DriftError(f"{watch.tensor}: no rows to draw a plan from")
    items = None
    if watch.items:
        found, counts = np.unique(_items(sample), return_counts=True)
        order = np.argsort(-counts, kind="stable")[:KNOWN_ITEMS]
        cells = order[:ITEM_CELLS]
        items = ItemCells(found[cells[counts[cells] >= _LEAST_COUNT]], np.sort(found[order]))
    return Plan(watch, salt, grid_of(sample.numbers, watch.bins), items, sample.rows)


def _items(columns: Columns) -> Items:
    return np.zeros(0, np.int64) if columns.items is None else columns.items


def plan_json(plan: Plan) -> dict[str, Any]:
    """As JSON: numbers and text alone."""
    grid = plan.grid
    edges = [row[np.isfinite(row)].tolist() for row in grid.edges]
    drawn = {"origin": grid.origin.tolist(), "step": grid.step.tolist(), "edges": edges}
    range_ = {"low": grid.low.tolist(), "high": grid.high.tolist()}
    items = plan.items
    counted = None if items is None else {"cells": items.cells.tolist(), "known": _text(items.known)}
    return {
        "watch": asdict(plan.watch),
        "salt": plan.salt.hex(),
        "grid": drawn | range_,
        "items": counted,
        "rows": plan.rows,
    }


def plan_from_json(value: Mapping[str, Any]) -> Plan:
    """What `plan_json` gave. Raises DriftError."""
    try:
        watch: dict[str, Any] = {key: _frozen(part) for key, part in value["watch"].items()}
        items = value["items"]
        plan = Plan(
            Watch(**watch),
            bytes.fromhex(value["salt"]),
            _grid(value["grid"]),
            items and ItemCells(np.array(items["cells"], np.int64), _known(items["known"])),
            int(value["rows"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DriftError(f"no plan of a tensor: {type(error).__name__}: {error}") from None
    if plan.grid.features != len(plan.watch.features) or (plan.items is None) != (not plan.watch.items):
        raise DriftError(f"the plan of {plan.watch.tensor} does not have the features of kind {plan.watch.kind}")
    return plan


def _frozen(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _grid(value: Mapping[str, Any]) -> Grid:
    rows = value["edges"]
    edges = np.full((len(rows), max(map(len, rows), default=0)), np.inf, np.float32)
    for target, row in zip(edges, rows, strict=True):
        target[: len(row)] = row
    columns = [
        np.array(value[name], dtype)
        for name, dtype in (("origin", "f8"), ("step", "f8"), ("low", "f4"), ("high", "f4"))
    ]
    if any(column.shape != (len(rows),) for column in columns) or not (columns[1] > 0).all():
        raise ValueError("the columns of the grid do not fit one another")
    if not (edges[:, :-1] <= edges[:, 1:]).all():
        raise ValueError("the edges of the grid do not ascend")
    origin, step, low, high = columns
    return Grid(origin, step, edges, low, high)


def _text(known: Items) -> str:
    return base64.b64encode(known.astype("<i8").tobytes()).decode()


def _known(text: str) -> Items:
    return np.sort(np.frombuffer(base64.b64decode(text, validate=True), "<i8").astype(np.int64))
