"""How many rows of a batch to look at, so that looking costs no more than its share of a core."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SAVED_NS = 1_000_000_000  # of elapsed time: what an idle spell may save up for the burst that follows
_WORTH = 0.1  # of what can be saved: worth waking up for, since a batch costs much before its first row
_WEIGHT = 0.2  # of the last batch in what is known of costs
_FIRST_ROWS = 16  # of a model whose cost nobody knows
_ENOUGH = 0.01  # relative variance of sizes from which a line can be drawn


class Budget:
    """A share of a core, in nanoseconds of CPU time, that accrues while time passes and is spent on batches.

    share: of a core, such as 0.03. What was not used is saved for a second. It may be overdrawn by one batch, whose
    cost nobody knew; nothing is taken until that is paid for. Not for several threads.
    """

    def __init__(self, share: float, now_ns: int) -> None:
        self.share = share
        self.spent_ns = 0
        self._most = share * _SAVED_NS
        self._balance = self._most
        self._at = now_ns

    def __repr__(self) -> str:
        return f"<Budget of {self.share:.1%} of a core: {self._balance / 1e6:.1f} ms left>"

    def available(self, now_ns: int) -> float:
        """CPU nanoseconds that may be spent now; negative while overdrawn."""
        self._balance = min(self._most, self._balance + self.share * max(0, now_ns - self._at))
        self._at = max(self._at, now_ns)
        return self._balance

    def full(self, now_ns: int) -> bool:
        """Whether no more can be saved: what is too dear now, is so for ever."""
        return self.available(now_ns) >= self._most

    def spend(self, cpu_ns: int) -> None:
        """So many were spent."""
        self._balance -= cpu_ns
        self.spent_ns += cpu_ns

    def rest_ns(self, now_ns: int) -> int:
        """How long until there is enough again to be worth it."""
        return int(max(0.0, _WORTH * self._most - self.available(now_ns)) / self.share)


class RowCost:
    """What looking at a batch costs, so much and so much for each row: a line through the last batches."""

    def __init__(self) -> None:
        self._weight = 0.0
        self._rows = self._cost = self._squares = self._products = 0.0

    def __repr__(self) -> str:
        batch, row = self._line()
        return f"<RowCost: {batch / 1e3:.1f} us and {row / 1e3:.2f} us a row>"

    def rows(self, available_ns: float, rows: int) -> int:
        """How many of `rows` can be looked at for `available_ns`."""
        if available_ns <= 0 or rows <= 0:
            return 0
        if not self._weight:
            return min(rows, _FIRST_ROWS)
        batch, row = self._line()
        return max(0, min(rows, int((available_ns - batch) / row)))

    def learn(self, rows: int, cpu_ns: int) -> None:
        """So many rows cost so much."""
        keep = 1 - _WEIGHT
        self._weight = self._weight * keep + 1
        self._rows = self._rows * keep + rows
        self._cost = self._cost * keep + cpu_ns
        self._squares = self._squares * keep + rows * rows
        self._products = self._products * keep + rows * cpu_ns

    def _line(self) -> tuple[float, float]:
        """Nanoseconds of a batch and of a row; neither below 0, and a row at least 1."""
        weight = self._weight or 1.0
        rows, cost = self._rows / weight, self._cost / weight
        variance = self._squares / weight - rows * rows
        row = (self._products / weight - rows * cost) / variance if variance > _ENOUGH * rows * rows else 0.0
        if not 0 < row <= cost / max(rows, 1e-9):  # sizes that tell nothing, or noise: all of it to the rows
            row = cost / max(rows, 1e-9)
        return max(0.0, cost - row * rows), max(1.0, row)


def choose_rows(rows: int, take: int, random: np.random.Generator) -> NDArray[np.intp]:
    """`take` of `rows` rows, ascending: a simple random sample.

    Rows at even distances would be cheaper, and no sample of a batch in which every other row is of another kind.
    """
    if take >= rows:
        return np.arange(rows)
    return np.sort(random.choice(rows, take, replace=False)).astype(np.intp)
