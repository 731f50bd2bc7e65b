"""All that is kept of the comparisons of one version with its reference: a handful of numbers and digests, no row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from headrace.guard.distinct import Distinct
from headrace.guard.evidence import Evidence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.guard.comparison import Comparison
    from headrace.guard.evidence import Finding, Totals
    from headrace.guard.settings import GuardSettings

MARGINS = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
"""Edges of the bins of the reference's margin; each holds its lower edge, the last one both."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A record at a moment, for any thread. Means are None before the first row.

    recent: of the last 128 to 255 requests. absolute, largest: mean and greatest absolute difference of elements, of
    rows that have one, see `Comparison`; None without. strange: elements not finite, and not the same in both.
    margins: of each bin of `MARGINS` rows, and the sum of their disagreement; empty where no row has a margin.
    """

    overall: Totals
    recent: Totals
    finding: Finding | None
    rows: int
    absolute: float | None
    largest: float | None
    strange: int
    cosine: float | None
    margins: tuple[tuple[int, float], ...]


class Record:
    """Counts comparisons. distinct: the inputs that count no more. Not for several threads."""

    def __init__(self, settings: GuardSettings) -> None:
        self.distinct = Distinct()
        self._evidence = Evidence(settings)
        self._rows = self._measured = self._strange = 0
        self._absolute = self._largest = self._cosine = 0.0
        self._cosines = False
        self._margin_rows = np.zeros(len(MARGINS) - 1, np.int64)
        self._margin_misses = np.zeros(len(MARGINS) - 1)

    def __repr__(self) -> str:
        return f"<Record of {self._rows} rows, {self._evidence!r}>"

    @np.errstate(over="ignore")
    def add(self, compared: Comparison, counts: Sequence[int]) -> Finding | None:
        """Requests, of so many rows each. What they prove, the first time that anything is proved."""
        rows = sum(counts)
        self._rows += rows
        measured = ~np.isnan(compared.absolute)
        self._measured += int(measured.sum())
        self._absolute += float(compared.absolute.sum(where=measured))
        self._largest = max(self._largest, float(compared.largest.max(initial=0.0, where=measured)))
        self._strange += int(compared.strange.sum())
        if compared.cosine is not None:
            self._cosines = True
            self._cosine += float(compared.cosine.sum())
        if compared.margin is not None:
            bins = np.searchsorted(MARGINS[1:-1], compared.margin, side="right")
            self._margin_rows += np.bincount(bins, minlength=len(self._margin_rows))
            self._margin_misses += np.bincount(bins, 1.0 - compared.agreement, minlength=len(self._margin_misses))
        starts = np.cumsum([0, *counts[:-1]])
        agreements = np.add.reduceat(compared.agreement, starts) / counts
        errors = np.add.reduceat(compared.error, starts) / counts
        return self._evidence.add(agreements.tolist(), errors.tolist())

    def snapshot(self) -> Snapshot:
        """As it is now."""
        seen = self._rows
        margins = zip(self._margin_rows.tolist(), self._margin_misses.tolist(), strict=True)
        return Snapshot(
            self._evidence.totals(),
            self._evidence.totals(recent=True),
            self._evidence.finding,
            seen,
            self._absolute / self._measured if self._measured else None,
            self._largest if self._measured else None,
            self._strange,
            self._cosine / seen if self._cosines else None,
            tuple(margins) if self._margin_rows.any() else (),
        )
