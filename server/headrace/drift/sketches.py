"""Sketches of what flows by, from Apache DataSketches: quantiles (KLL), frequent items, distinct items (HLL).

They see cells of a grid or items, never a value as it came (`grid`, `extract`). Sizes are fixed, so are the bounds of
their errors; all can be merged, and the merged one keeps the bounds. datasketches is optional (extra `drift`).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.drift.errors import DriftError, MissingPackage

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    from numpy.typing import NDArray

    Cells = NDArray[np.float32]
    Items = NDArray[np.int64]

KLL_K = 200
"""Rank error below 1.33 % of one query, with 99 % confidence (`normalized_rank_error`); about 600 cells are kept."""
FREQUENT_LG = 10
"""Log2 of the map of frequent items: no count is off by more than 0.35 % of all (3.5 / 1024); 768 items are kept."""
DISTINCT_LG = 11
"""Log2 of HLL's registers: 2.3 % standard error (1.04 / sqrt(2048)); 2 KiB."""
_AT_ONCE = 2048  # values: a call into datasketches keeps the interpreter's lock, and the event loop waits for its end


def datasketches() -> ModuleType:
    """The package. Raises MissingPackage."""
    try:
        return import_module("datasketches")
    except ImportError:
        raise MissingPackage("drift monitoring needs the package datasketches: pip install 'headrace[drift]'") from None


class Quantiles:
    """A KLL sketch for each of F features. Karnin, Lang, Liberty, Optimal quantile approximation in streams, 2016."""

    __slots__ = ("_sketches", "features")

    def __init__(self, features: int) -> None:
        self.features = features
        self._sketches: Any = datasketches().vector_of_kll_floats_sketches(KLL_K, features) if features else None

    def update(self, cells: Cells) -> None:
        """Adds cells [rows, F]; NaNs are left out."""
        if not self.features:
            return
        rows = max(1, _AT_ONCE // self.features)
        for start in range(0, len(cells), rows):
            self._sketches.update(np.ascontiguousarray(cells[start : start + rows]))

    def merge(self, other: Quantiles) -> None:
        """Adds what the other has seen."""
        if self.features:
            self._sketches.merge(other._sketches)

    @property
    def seen(self) -> NDArray[np.int64]:
        """INT64 [F], values that each has seen."""
        return np.asarray(self._sketches.get_n(), np.int64) if self.features else np.zeros(0, np.int64)

    @property
    def retained(self) -> int:
        """The most cells that one of them keeps."""
        return int(self._sketches.get_num_retained().max()) if self.features else 0

    def quantiles(self, ranks: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
        """FP64 [F, ranks], the cells at ranks from 0 to 1; NaN for a feature that has seen nothing."""
        result = np.full((self.features, len(ranks)), np.nan)
        known = np.flatnonzero(self.seen).tolist()  # datasketches 5.2 takes an array of INT64 for one of INT32
        if known:
            result[known] = self._sketches.get_quantiles(np.asarray(ranks, np.float64), known)
        return result

    def serialized(self) -> list[bytes]:
        """Each sketch in DataSketches' own format."""
        return list(self._sketches.serialize()) if self.features else []

    @classmethod
    def of(cls, parts: Sequence[bytes]) -> Quantiles:
        """From what `serialized` gave. Raises DriftError."""
        result = cls(len(parts))
        for feature, part in enumerate(parts):
            with _Readable("quantiles"):
                k = datasketches().kll_floats_sketch.deserialize(part).k
                result._sketches.deserialize(part, feature)
            if k != KLL_K:
                raise DriftError(f"a sketch of quantiles has k = {k}, expected {KLL_K}")
        return result


class ItemSketch:
    """Which items are frequent, and how many there are.

    Frequent items (Anderson et al., A high-performance algorithm for identifying frequent items, 2017) and how many
    different ones there are (Flajolet et al., HyperLogLog, 2007).
    """

    __slots__ = ("_distinct", "_frequent")

    def __init__(self) -> None:
        package = datasketches()
        self._frequent: Any = package.frequent_items_sketch(FREQUENT_LG)
        self._distinct: Any = package.hll_sketch(DISTINCT_LG, package.HLL_8)

    def update(self, items: Items, counts: Items) -> None:
        """Adds different items [n] and how often each occurred."""
        frequent, distinct = self._frequent.update, self._distinct.update
        for item, count in zip(items.tolist(), counts.tolist(), strict=True):
            frequent(item, count)
            distinct(item)

    def merge(self, other: ItemSketch) -> None:
        """Adds what the other has seen."""
        package = datasketches()
        self._frequent.merge(other._frequent)
        union = package.hll_union(DISTINCT_LG)
        union.update(self._distinct)
        union.update(other._distinct)
        self._distinct = union.get_result(package.HLL_8)

    @property
    def total(self) -> int:
        """Items seen."""
        return int(self._frequent.total_weight)

    @property
    def distinct(self) -> float:
        """An estimate of how many different ones."""
        return float(self._distinct.get_estimate())

    def frequent(self, most: int) -> list[tuple[int, int]]:
        """The most frequent items and an estimate of how often each occurred, the most frequent first."""
        found = self._frequent.get_frequent_items(datasketches().NO_FALSE_NEGATIVES)
        pairs = ((int(item), int(estimate)) for item, estimate, _, _ in found)
        return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))[:most]

    def serialized(self) -> tuple[bytes, bytes]:
        """The two sketches in DataSketches' own formats."""
        return self._frequent.serialize(datasketches().PyLongsSerDe()), self._distinct.serialize_compact()

    @classmethod
    def of(cls, frequent: bytes, distinct: bytes) -> ItemSketch:
        """From what `serialized` gave. Raises DriftError."""
        package = datasketches()
        result = cls()
        with _Readable("items"):
            result._frequent = package.frequent_items_sketch.deserialize(frequent, package.PyLongsSerDe())
            result._distinct = package.hll_sketch.deserialize(distinct)
        return result


class _Readable:
    """Makes a DriftError of what DataSketches raises for octets that are no sketch."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ValueError | IndexError | RuntimeError | OverflowError):
            raise DriftError(f"a sketch of {self._what} cannot be read: {error}") from None
