"""A reference from data: training data, or windows that were recorded while all was well."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.drift.errors import DriftError
from headrace.drift.extract import Columns, Extractor
from headrace.drift.plan import draw_plan
from headrace.drift.reference import Reference
from headrace.drift.summary import summary_of
from headrace.drift.tally import Tally
from headrace.drift.text import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from headrace.drift.watch import Watch
    from headrace.drift.windows import Record

    Rows = NDArray[Any]
    Progress = Callable[[str, int, int | None], None]

LEAST_ROWS = 100
"""Of a reference: what fewer say of any window is next to nothing."""
PLAN_SAMPLE = 16_384
"""Rows that a plan is drawn from, at most, and never more than half of all."""
PLAN_ITEMS = 1 << 22
"""Items that it is drawn from, at most."""
TABLE_ROWS = 4096
"""Rows that are looked at together."""


@dataclass(frozen=True, slots=True)
class Source:
    """Rows of a tensor, to be read twice. chunks: each call begins anew. rows: how many, if that is known.

    names: of the columns, if they have any.
    """

    name: str
    chunks: Callable[[], Iterator[Rows]]
    rows: int | None = None
    names: tuple[str, ...] = ()


def fit_reference(
    sources: Iterable[tuple[Watch, Source]],
    salt: bytes,
    source: str,
    created_ms: int,
    progress: Progress = lambda what, done, of: None,
) -> Reference:
    """A reference of data for each tensor. Raises DriftError for data that are not of it, or too few.

    The first reading draws the plan from a part of the rows, the second counts by it. Items are not counted in rows
    that the plan was drawn from: those that happened to be frequent there would look rarer everywhere else, and there
    would be no unseen ones.
    """
    tensors = {}
    for watch, data in sources:
        named = replace(watch, labels=data.names) if watch.kind == "numeric" and data.names else watch
        extractor = Extractor(watch, salt)
        sample = _Sample(bool(watch.items))
        try:
            for start, rows in _numbered(data, f"{watch.key}: plan", progress):
                sample.add(start, rows, extractor)
            if sample.rows_seen < LEAST_ROWS:
                raise DriftError(f"{sample.rows_seen} rows, expected at least {LEAST_ROWS}")
            columns = sample.columns()
            _check_finite(columns, named)
            plan = draw_plan(named, salt, columns)
            tally = Tally(plan)
            for start, rows in _numbered(data, f"{watch.key}: count", progress):
                _count(tally, extractor, rows, start, sample.stride)
        except DriftError as error:
            said = str(error).removeprefix(f"{data.name}: ")  # readers name the file themselves
            raise DriftError(f"{data.name}, for {watch.key}: {said}") from None
        tensors[watch.key] = plan, summary_of(tally)
    return Reference(tensors, source, created_ms)


def reference_of_record(record: Record, source: str, created_ms: int) -> Reference:
    """A reference of all windows of a record. Raises DriftError where they are too few."""
    if not record.windows:
        raise DriftError("the record has no windows")
    end = max(record.windows) + record.window_ms
    whole = record.merged(end, (end - min(record.windows)) // record.window_ms)
    few = [f"{key} has {tally.rows}" for key, tally in whole.tallies.items() if tally.rows < LEAST_ROWS]
    if few or not whole.tallies:
        raise DriftError(f"too few rows, expected at least {LEAST_ROWS}: {', '.join(few) or 'there are none'}")
    return Reference({key: (tally.plan, summary_of(tally)) for key, tally in whole.tallies.items()}, source, created_ms)


def _check_finite(sample: Columns, watch: Watch) -> None:
    """Raises DriftError for a feature that has infinities and no number: there is no grid for it. One may be NaN."""
    numbers = sample.numbers
    nowhere = np.isinf(numbers).any(axis=0) & ~np.isfinite(numbers).any(axis=0)
    if nowhere.any():
        names = [shown(watch.features[at]) for at in np.flatnonzero(nowhere)]
        raise DriftError(f"no finite number in feature {', '.join(names)}: expected some to draw its bins from")


def _numbered(data: Source, what: str, progress: Progress) -> Iterator[tuple[int, Rows]]:
    """Pieces of at most TABLE_ROWS rows, with the number of their first row."""
    done = 0
    for chunk in data.chunks():
        for start in range(0, len(chunk), TABLE_ROWS):
            piece = chunk[start : start + TABLE_ROWS]
            yield done, piece
            done += len(piece)
            progress(what, done, data.rows)


def _count(tally: Tally, extractor: Extractor, rows: Rows, start: int, stride: int) -> None:
    planned = _drawn(start + np.arange(len(rows)), stride)
    if not tally.plan.watch.items:
        tally.update(extractor(rows))
        return
    if planned.any():
        tally.update(Columns(extractor(rows[planned]).numbers))
    if not planned.all():
        tally.update(extractor(rows[~planned]))


def _drawn(places: NDArray[np.int64], stride: int) -> NDArray[np.bool_]:
    """Which rows the plan is drawn from: one of `stride`, a power of two, as if by chance, whatever the data's order.

    All that are drawn with a stride are so with a smaller one. By the bits of SplitMix64 (Steele et al., 2014).
    """
    bits = (places.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray((bits ^ (bits >> np.uint64(31))) & np.uint64(stride - 1) == 0)


class _Sample:
    """One of stride rows of a stream whose length nobody knows: the stride doubles when there are too many."""

    def __init__(self, with_items: bool) -> None:
        self.stride = 2
        self.rows_seen = 0
        self._with_items = with_items
        self._kept: list[tuple[int, Columns]] = []  # row by row

    def add(self, start: int, rows: Rows, extractor: Extractor) -> None:
        self.rows_seen = start + len(rows)
        places = start + np.arange(len(rows))
        drawn = _drawn(places, self.stride)
        chosen = rows[drawn]
        if self._with_items:
            columns = [extractor(chosen[at : at + 1]) for at in range(len(chosen))]
        else:
            columns = [Columns(row) for row in extractor(chosen).numbers[:, None, :]]
        self._kept += zip(places[drawn].tolist(), columns, strict=True)
        while len(self._kept) > PLAN_SAMPLE or (len(self._kept) > 1 and self._items() > PLAN_ITEMS):
            self.stride *= 2
            still = _drawn(np.array([place for place, _ in self._kept]), self.stride)
            self._kept = [kept for kept, stays in zip(self._kept, still, strict=True) if stays]

    def _items(self) -> int:
        return sum(len(columns.items) for _, columns in self._kept if columns.items is not None)

    def columns(self) -> Columns:
        parts = [columns for _, columns in self._kept]
        items = [columns.items for columns in parts if columns.items is not None]
        return Columns(np.concatenate([part.numbers for part in parts]), np.concatenate(items) if items else None)
