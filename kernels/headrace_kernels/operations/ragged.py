"""Ragged rows to a padded batch, and back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from headrace_kernels.operations.base import LARGEST_GRID, Array, Launch, Operation, array, ceil_div, check_sizes, i32
from headrace_kernels.reference.ragged import gather, scatter

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

BLOCK = (32, 8, 1)
UNITS_A_THREAD = 4
LARGEST_UNIT = 16


@dataclass(frozen=True, slots=True)
class _Rows(Operation):
    rows: int
    items: int
    length: int
    dtype: str
    item: tuple[int, ...] = ()

    source: ClassVar[str] = "ragged"

    def __post_init__(self) -> None:
        check_sizes(rows=self.rows, items=self.items, length=self.length)
        check_sizes(**{f"a row of {self.length} items {list(self.item)}": self.length * math.prod(self.item)})
        if np.dtype(self.dtype).itemsize not in (1, 2, 4, 8):
            raise ValueError(f"elements have 1, 2, 4 or 8 bytes, not {np.dtype(self.dtype).itemsize}")

    def _unit(self) -> int:
        """Bytes that are moved at once: the largest power of two that an item is a multiple of."""
        return math.gcd(math.prod(self.item) * np.dtype(self.dtype).itemsize, LARGEST_UNIT)

    def _units(self) -> int:
        """Of an item."""
        return math.prod(self.item) * np.dtype(self.dtype).itemsize // self._unit()

    def _grid(self) -> tuple[int, int, int]:
        across = ceil_div(max(1, self.length * self._units()), BLOCK[0] * UNITS_A_THREAD)
        return across, min(ceil_div(self.rows, BLOCK[1]), LARGEST_GRID), 1


@dataclass(frozen=True, slots=True)
class GatherRows(_Rows):
    """`reference.gather`. rows: of the batch; items: that the buffer of values holds; item: dimensions of one.

    Arrays: values [items, *item]; offsets INT64 [rows + 1], which must have been checked against it
    (`reference.ragged.check_offsets`), for a kernel cannot; out [rows, length, *item]; mask [rows, length] and lengths
    [rows] of their dtypes, unless these are None. bytes_moved is right if all items are in rows and none is cut off.
    """

    pad: float = 0
    mask_dtype: str | None = "bool"
    lengths_dtype: str | None = None

    def __post_init__(self) -> None:
        _Rows.__post_init__(self)
        _bits(self.mask_dtype, 1)
        if self.lengths_dtype is not None and np.dtype(self.lengths_dtype).kind not in "iu":
            raise ValueError(f"lengths are integers, not {self.lengths_dtype}")

    def arrays(self) -> tuple[Array, ...]:
        """Values, offsets, out, and mask and lengths if asked for."""
        unit = self._unit()
        found = [
            array("values", (self.items, *self.item), self.dtype, "in", unit),
            array("offsets", (self.rows + 1,), np.int64, "in"),
            array("out", (self.rows, self.length, *self.item), self.dtype, "out", unit),
        ]
        if self.mask_dtype is not None:
            found.append(array("mask", (self.rows, self.length), self.mask_dtype, "out"))
        if self.lengths_dtype is not None:
            found.append(array("lengths", (self.rows,), self.lengths_dtype, "out"))
        return tuple(found)

    def launches(self) -> tuple[Launch, ...]:
        """Eight rows a block."""
        if not self.rows:
            return ()
        mask_bytes, mask_one = _bits(self.mask_dtype, 1)
        lengths_bytes = 0 if self.lengths_dtype is None else np.dtype(self.lengths_dtype).itemsize
        one = np.array(self.pad, self.dtype).tobytes()
        pad = np.frombuffer(one * (LARGEST_UNIT // len(one)), np.uint64)
        arguments = (
            *("values", "offsets", "out"),
            None if self.mask_dtype is None else "mask",
            None if self.lengths_dtype is None else "lengths",
            *(i32(self.rows), i32(self.length), i32(self._units())),
            *(i32(mask_bytes), mask_one, i32(lengths_bytes), pad[0], pad[1]),
        )
        return (Launch(f"gather_{self._unit()}", self._grid(), BLOCK, 0, arguments),)

    def compute(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """With NumPy."""
        found = gather(
            arrays["values"],
            arrays["offsets"],
            self.length,
            pad=self.pad,
            mask_dtype=self.mask_dtype or np.bool_,
            lengths_dtype=self.lengths_dtype or np.int64,
        )
        arrays["out"][...] = found.values
        if self.mask_dtype is not None:
            arrays["mask"][...] = found.mask
        if self.lengths_dtype is not None:
            arrays["lengths"][...] = found.lengths


@dataclass(frozen=True, slots=True)
class ScatterRows(_Rows):
    """`reference.scatter`. Arrays: padded [rows, length, *item]; offsets INT64 [rows + 1]; out [items, *item].

    What of out no row covers is left as it is. bytes_moved is right if all items are in rows and none is cut off.
    """

    def arrays(self) -> tuple[Array, ...]:
        """Padded, offsets, out."""
        unit = self._unit()
        return (
            array("padded", (self.rows, self.length, *self.item), self.dtype, "in", unit),
            array("offsets", (self.rows + 1,), np.int64, "in"),
            array("out", (self.items, *self.item), self.dtype, "inout", unit),
        )

    def launches(self) -> tuple[Launch, ...]:
        """Eight rows a block."""
        if not self.rows or not self.length:
            return ()
        arguments = ("padded", "offsets", "out", i32(self.rows), i32(self.length), i32(self._units()))
        return (Launch(f"scatter_{self._unit()}", self._grid(), BLOCK, 0, arguments),)

    def compute(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """With NumPy."""
        scatter(arrays["padded"], arrays["offsets"], arrays["out"])

    def bytes_moved(self) -> int:
        """Padding is not read: each item once in, once out, and the offsets."""
        _, offsets, out = self.arrays()
        return 2 * out.nbytes + offsets.nbytes


def _bits(dtype: str | None, value: int) -> tuple[int, np.uint64]:
    """Bytes of an element of that dtype, and the bits of the value in it. Raises ValueError for, say, 16 bytes."""
    if dtype is None:
        return 0, np.uint64(0)
    octets = np.array(value, dtype).tobytes()
    if len(octets) not in (1, 2, 4, 8):
        raise ValueError(f"a mask has elements of 1, 2, 4 or 8 bytes, not {len(octets)}")
    return len(octets), np.uint64(int.from_bytes(octets, "little"))
