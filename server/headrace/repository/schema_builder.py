"""A schema from data: rules that all of it keeps. Nobody is refused by them before somebody has said so."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.datatypes import DATATYPES
from headrace.pipeline.rules import image_layout
from headrace.repository.schema_config import LARGEST_SIDE, SCHEMA_FORMAT, InputRules, Schema

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from headrace.messages import TensorSpec

    Rows = np.ndarray[Any, np.dtype[Any]]

MARGIN = 0.1
"""By so much of its width a range is made wider at each end: data to come have other extremes than those at hand."""
MOST_VALUES = 16
"""Different values, of integers or texts, up to which they become rules one by one."""
ROWS_PER_VALUE = 20
"""Rows that there must have been for each, or there may be more of them."""
MOST_FEATURES = 4096


class SchemaBuilder:
    """Looks at rows of one input. names: of its features, the places in its last dimension, if they have any."""

    def __init__(self, spec: TensorSpec, names: Sequence[str] = ()) -> None:
        self._spec = spec
        self._by_feature = len(spec.shape) == 1 and 1 <= spec.shape[0] <= MOST_FEATURES
        self._names = tuple(names) if self._by_feature and len(names) == spec.shape[0] else ()
        self._is_text = spec.datatype == "BYTES"
        self._is_float = spec.datatype == "BF16" or DATATYPES[spec.datatype].numpy.kind == "f"
        features = spec.shape[0] if self._by_feature else 1
        self._low = np.full(features, np.inf) if self._is_float else np.full(features, None)
        self._high = -self._low if self._is_float else np.full(features, None)
        self._missing = 0.0
        self._infinite = np.zeros((2, features), np.bool_)  # which features were below, or above, all numbers
        self._values: set[Any] | None = None if self._is_float else set()
        self._lengths: list[int] = []
        self._sides: tuple[list[int], list[int]] = ([], [])
        self.rows = 0

    def __repr__(self) -> str:
        return f"<SchemaBuilder of {self._spec.name}, {self.rows} rows>"

    def add(self, rows: Rows) -> None:
        """Rows [rows, *shape] of any numbers, NaN where one is missing; BF16 as such, texts as objects, or None."""
        if not len(rows):
            return
        self.rows += len(rows)
        if self._spec.datatype == "BF16" and rows.dtype == np.uint16:  # bit patterns
            rows = (rows.astype(np.uint32) << 16).view(np.float32)
        if self._is_text:
            self._add_texts(rows)
        elif self._spec.datatype != "BOOL":
            layout = image_layout(self._spec.shape)
            if layout is not None and not self._spec.fixed:
                self._add_size(rows.shape[2:] if layout == "NCHW" else rows.shape[1:3])
            self._add_numbers(rows)

    def _add_size(self, size: Sequence[int]) -> None:
        for sides, side in zip(self._sides, size, strict=True):
            sides[:] = [min([*sides, side]), max([*sides, side])]

    def _add_texts(self, rows: Rows) -> None:
        given = [one for one in rows.ravel().tolist() if one is not None]
        texts = [one if isinstance(one, str) else bytes(one).decode(errors="replace") for one in given]
        sizes = [*self._lengths, *map(len, texts)]
        self._lengths = [min(sizes), max(sizes)] if sizes else []
        self._add_values(texts)

    def _add_values(self, values: Iterable[Any]) -> None:
        if self._values is not None:
            self._values.update(values)
            if len(self._values) > MOST_VALUES:
                self._values = None

    def _add_numbers(self, rows: Rows) -> None:
        table = rows.reshape(-1, len(self._low))
        if not table.size:
            return
        if not self._is_float:
            if table.dtype.kind == "f":  # of a table with gaps: an integer is never missing in a request
                table = table[np.isfinite(table).all(axis=1)].astype(np.int64)
            if not len(table):
                return
            for end, found, choose in ((self._low, table.min(axis=0), min), (self._high, table.max(axis=0), max)):
                for at, value in enumerate(found.tolist()):
                    end[at] = value if end[at] is None else choose(end[at], value)
            self._add_values(np.unique(table).tolist())
            return
        numbers = table.astype(np.float64)
        nan = np.isnan(rows)
        self._missing = max(self._missing, float(nan.reshape(len(rows), -1).mean(axis=1).max()))
        for side, infinity in enumerate((-np.inf, np.inf)):
            self._infinite[side] |= (numbers == infinity).any(axis=0)
        finite = np.isfinite(numbers)
        self._low = np.minimum(self._low, np.where(finite, numbers, np.inf).min(axis=0))
        self._high = np.maximum(self._high, np.where(finite, numbers, -np.inf).max(axis=0))

    def rules(self) -> InputRules:
        """What all rows keep, each with policy `count`."""
        given: dict[str, Any] = {}
        policy: dict[str, str] = {}
        if self._is_text:
            self._text_rules(given, policy)
        elif self._spec.datatype != "BOOL" and self.rows:
            self._number_rules(given, policy)
            self._size_rules(given, policy)
        if policy and self._names and not self._is_text:  # texts have no features to name
            given["names"] = self._names
        return InputRules.model_validate(given | ({"policy": policy} if policy else {}))

    def _few_values(self) -> list[Any] | None:
        few = self._values is not None and 0 < len(self._values) * ROWS_PER_VALUE <= self.rows
        return sorted(self._values or ()) if few else None

    def _text_rules(self, given: dict[str, Any], policy: dict[str, str]) -> None:
        values = self._few_values()
        if values is not None:
            given["values"], policy["values"] = values, "count"
        elif self._lengths:
            margin = math.ceil(MARGIN * (self._lengths[1] - self._lengths[0]))
            given["min_length"], given["max_length"] = max(self._lengths[0] - margin, 0), self._lengths[1] + margin
            policy["length"] = "count"

    def _number_rules(self, given: dict[str, Any], policy: dict[str, str]) -> None:
        if self._is_float and not self._infinite.any():
            given["finite"], policy["finite"] = True, "count"
        if self._missing:
            given["max_missing"], policy["missing"] = min(math.ceil(self._missing * 1000) / 1000, 1.0), "count"
        values = None if self._is_float or (self._by_feature and len(self._low) > 1) else self._few_values()
        if values is not None:
            given["values"], policy["values"] = values, "count"
            return
        bounds = [self._span(low, high) for low, high in zip(self._low, self._high, strict=True)]
        for side, (key, infinity) in enumerate((("min", -math.inf), ("max", math.inf))):
            free = self._infinite[side].tolist()
            ends = [infinity if some else bound[side] for some, bound in zip(free, bounds, strict=True)]
            if any(math.isfinite(end) for end in ends):
                given[key], policy["range"] = ends if len(ends) > 1 else ends[0], "count"

    def _span(self, low: Any, high: Any) -> tuple[float, float]:  # noqa: ANN401
        """A range with its margin; infinity where there is no bound that the datatype has not."""
        if low is None or low > high:
            return -math.inf, math.inf
        dtype = DATATYPES[self._spec.datatype].numpy
        if not self._is_float:
            margin = math.ceil(MARGIN * (high - low))
            low, high = low - margin, high + margin
            least, most = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
        else:
            digits = 17 if self._spec.datatype == "FP64" else 9
            low, high = float(low), float(high)
            margin = MARGIN * high - MARGIN * low  # which the range itself may be too wide for
            low, high = float(f"{low - margin:.{digits}g}"), float(f"{high + margin:.{digits}g}")
            limits = np.finfo(np.float32 if self._spec.datatype == "BF16" else dtype)
            least, most = float(limits.min), float(limits.max)  # type: ignore[assignment]
        return low if low > least else -math.inf, high if high < most else math.inf

    def _size_rules(self, given: dict[str, Any], policy: dict[str, str]) -> None:
        for what, sides in zip(("height", "width"), self._sides, strict=True):
            if sides:
                given[f"min_{what}"] = max(math.floor(sides[0] * (1 - MARGIN)), 1)
                given[f"max_{what}"] = min(math.ceil(sides[1] * (1 + MARGIN)), LARGEST_SIDE)
                policy["size"] = "count"


def infer_schema(inputs: Iterable[tuple[TensorSpec, Sequence[str], Iterable[Rows]]], source: str = "") -> Schema:
    """A schema of data: for each input its specification, the names of its features if any, and its rows in pieces."""
    found = {}
    for spec, names, chunks in inputs:
        builder = SchemaBuilder(spec, names)
        for rows in chunks:
            builder.add(rows)
        rules = builder.rules()
        if rules.model_fields_set:
            found[spec.name] = rules
    return Schema(format=SCHEMA_FORMAT, source=source, inputs=found)


def gaps(schema: Schema, inputs: Iterable[tuple[TensorSpec, Sequence[str]]]) -> Iterator[str]:
    """What the data that a schema was made of have not bounded, a line each. inputs: as for `infer_schema`."""
    for spec, names in inputs:
        rules = schema.inputs.get(spec.name)
        if rules is None:
            yield f"no rules for {spec.name}: its data bound nothing beyond {spec.datatype}"
        elif spec.datatype in ("FP16", "FP32", "FP64", "BF16"):
            free = _free(rules)
            whose = names if len(names) == len(free) else [f"feature {at}" for at in range(len(free))]
            where = ", ".join(name for name, is_free in zip(whose, free, strict=True) if is_free)
            if where:
                yield f"no range for {spec.name}{f', {where}' if len(free) > 1 else ''}: its data have no finite ends"


def _free(rules: InputRules) -> list[bool]:
    """Of each feature that has bounds of its own, or of all together, whether there is none."""
    count = max(len(end) if isinstance(end, tuple) else 1 for end in (rules.min, rules.max))
    lows, highs = (end if isinstance(end, tuple) else (end,) * count for end in (rules.min, rules.max))
    nothing = (None, -math.inf, math.inf)
    return [low in nothing and high in nothing for low, high in zip(lows, highs, strict=True)]
