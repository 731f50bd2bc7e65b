"""Whether the numbers of an input keep their rules: quickly where they do, and exactly where not."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.datatypes import DATATYPES
from headrace.pipeline.rules import some, span

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from headrace.messages import Buffer
    from headrace.pipeline.rules import NumberRules, Policy, RuleName

    Numbers = np.ndarray[Any, np.dtype[Any]]
    Mask = np.ndarray[Any, np.dtype[np.bool_]]

_TILED = 4096
"""Bounds of features are repeated up to so many: with a few requests they are as many as the numbers."""


class NumberCheck:
    """Of one input of a whole shape. batched: its first dimension is that of rows."""

    def __init__(
        self,
        rules: NumberRules,
        policies: Mapping[str, Policy],
        datatype: str,
        shape: tuple[int, ...],
        batched: bool,
    ) -> None:
        self._rules = rules
        self._policies = policies
        self._bf16 = datatype == "BF16"
        self._dtype = DATATYPES[datatype].numpy
        self._float = self._bf16 or self._dtype.kind == "f"
        self._row = prod(shape[1:]) if batched else prod(shape)
        low, high = rules.low, rules.high
        if rules.finite and self._float:
            greatest = np.finfo(low.dtype).max
            low, high = np.maximum(low, -greatest), np.minimum(high, greatest)
        self._looks = rules.ranged or (self._float and (rules.finite or rules.max_missing is not None))
        self._by_feature = self._looks and low.ndim > 0
        self._least: Any = None
        self._most: Any = None
        if self._by_feature:
            times = max(_TILED // low.size, 1)
            self._low, self._high = np.tile(low, times), np.tile(high, times)
            self._width = low.size * _most_that_divides(max(self._row // low.size, 1), times)
        else:
            self._least, self._most = low[()], high[()]
        # these two give the bound where one side is NaN
        self._cut = (np.fmin, np.fmax) if self._float else (np.minimum, np.maximum)

    def view(self, raw: Buffer) -> Numbers:
        """The numbers, flat; of BF16 as FP32."""
        values = np.frombuffer(raw, self._dtype)
        return (values.astype(np.uint32) << 16).view(np.float32) if self._bf16 else values

    def passes(self, raw: Buffer) -> bool:
        """Whether all numbers keep all rules; NaN that is allowed may be told from no other."""
        values = self.view(raw)
        if not values.size:
            return True
        if self._by_feature:
            if self._cut_to_bounds(values).tobytes() != (values.tobytes() if self._bf16 else raw):
                return False
        elif self._looks and not (  # NaN goes through minimum and maximum, so that every comparison with it fails
            self._least <= np.minimum.reduce(values) and np.maximum.reduce(values) <= self._most
        ):
            return False
        return self._rules.values is None or bool(self._is_allowed(values).all())

    def _cut_to_bounds(self, values: Numbers) -> Numbers:
        """The numbers, of which this changes nothing but what is out of bounds, or NaN."""
        size = values.size
        if size > self._low.size:
            size = self._width
            values = values.reshape(-1, size)
        kept: Numbers = self._cut[0](values, self._high[:size])
        self._cut[1](kept, self._low[:size], out=kept)
        return kept

    def broken(self, values: Numbers) -> Iterator[tuple[RuleName, Mask]]:
        """Of each rule, where numbers [requests, elements] break it; in the order in which rules are named."""
        rules = self._rules
        if not self._float:
            if rules.ranged:
                yield "range", ~self._inside(values)
            if rules.values is not None:
                yield "values", ~self._is_allowed(values)
            return
        nan = np.isnan(values)
        left = None  # where the rules below do not look: they have been told of by the ones above
        if rules.max_missing is not None and self._row:
            by_row = nan.reshape(len(values), -1, self._row)
            too_many = by_row.sum(axis=2) > rules.max_missing * self._row * (1 + 1e-9)
            yield "missing", (by_row & too_many[:, :, None]).reshape(values.shape)
            left = nan
        if rules.finite:
            infinite = np.isinf(values)
            allowed = rules.max_missing is not None and "finite" not in rules.strict
            yield "finite", (infinite if allowed else infinite | nan)
            left = infinite | nan if self._fills else nan
        if rules.ranged:
            yield "range", _but(~self._inside(values), None if "range" in rules.strict else left)
        if rules.values is not None:
            yield "values", _but(~self._is_allowed(values), None if "values" in rules.strict else left)

    @property
    def _fills(self) -> bool:
        return self._rules.finite and self._policies.get("finite") == "clip"

    def unfilled(self, values: Numbers) -> list[int]:
        """Which requests [requests, elements] have NaN that breaks no rule, and is to be filled all the same."""
        if not self._fills or self._rules.max_missing is None:
            return []
        places: list[int] = np.flatnonzero(np.isnan(values).any(axis=1)).tolist()
        return places

    def _is_allowed(self, values: Numbers) -> Mask:
        allowed = self._rules.values
        assert allowed is not None
        return np.asarray(allowed.take(allowed.searchsorted(values), mode="clip") == values)

    def _inside(self, values: Numbers) -> Mask:
        low, high = self._bounds()
        table = values.reshape(-1, low.size) if low.ndim else values
        return np.asarray((table >= low) & (table <= high)).reshape(values.shape)

    def _bounds(self) -> tuple[Numbers, Numbers]:
        """As the rules say, without what follows from `finite`."""
        return self._rules.low, self._rules.high

    def wrong(self, rule: RuleName, values: Numbers, at: int) -> str:
        """What is wrong with element `at` of one request's numbers, and what was expected."""
        rules = self._rules
        if rule == "missing":
            start = at - at % self._row
            missing = int(np.isnan(values[start : start + self._row]).sum())
            return (
                f"is missing (NaN), as are {missing} of the {self._row} elements of its row in all, expected at most "
                f"{rules.max_missing:.4g} of them"
            )
        shown = f"is {values[at]}, expected"
        if rule == "finite":
            return f"{shown} a finite number"
        if rule == "values" and rules.values is not None:
            return f"{shown} {some(rules.values.tolist())}"
        low: Any
        high: Any
        low, high = (bound[at % bound.size] if bound.ndim else bound[()] for bound in self._bounds())
        ends = (-np.inf, np.inf) if self._float else (np.iinfo(low.dtype).min, np.iinfo(high.dtype).max)
        return f"{shown} a value {span(None if low == ends[0] else low, None if high == ends[1] else high)}"

    def clipped(self, values: Numbers) -> list[bytes]:
        """The numbers of requests [requests, elements] as they keep the rules whose policy is `clip`.

        They are at the nearest bound, or filled.
        """
        rules = self._rules
        low, high = self._bounds()
        width = max(low.size, 1 if rules.fill is None else rules.fill.size)
        table = np.array(values).reshape(-1, width)
        if self._fills and rules.fill is not None:
            # infinity to the bound of its side, if there is one
            for side, bound in ((np.inf, high), (-np.inf, low)):
                table = np.where(table == side, np.where(np.isinf(bound), rules.fill, bound), table)
            table = np.where(np.isnan(table), rules.fill, table)
        if self._policies.get("range") == "clip":
            table = np.clip(table, low, high)
        table = table.astype(values.dtype, copy=False).reshape(values.shape)
        if self._bf16:
            table = (table.view(np.uint32) >> 16).astype("<u2")
        return [row.tobytes() for row in table]


def _but(bad: Mask, left: Mask | None) -> Mask:
    return bad if left is None else bad & ~left


def _most_that_divides(number: int, most: int) -> int:
    return max(count for count in range(1, min(number, most) + 1) if number % count == 0)
