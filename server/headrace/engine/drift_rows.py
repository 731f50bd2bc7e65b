"""The tensors of a batch as drift monitoring takes them: by reference, and laid out only where rows are looked at."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.datatypes import DATATYPES
from headrace.pipeline import bytes_tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.messages import Buffer, TensorSpec

    Array = np.ndarray[Any, Any]


class LazyRows:
    """Rows of one tensor that lie in several buffers, for `drift.worker`: an array as far as it uses one.

    parts, counts: buffers, and the rows in each. dims: of a row. own: how much of each of them is no padding, if not
    all. Rows are taken on another thread than these were made on; the buffers must not be written to meanwhile.
    """

    __slots__ = ("_counts", "_dims", "_own", "_parts", "_spec", "nbytes")

    def __init__(
        self,
        spec: TensorSpec,
        parts: Sequence[Buffer],
        counts: Sequence[int],
        dims: tuple[int, ...],
        own: tuple[int, ...] | None = None,
    ) -> None:
        self._spec = spec
        self._parts = parts
        self._counts = counts
        self._dims = dims
        self._own = (slice(None), *map(slice, dims if own is None else own))
        self.nbytes = sum(map(len, parts))

    def __repr__(self) -> str:
        return f"<LazyRows {self._spec.name} {sum(self._counts)} x {list(self._dims)}>"

    def __getitem__(self, index: slice | Array) -> Array:
        """The rows of a slice from the beginning, or of these numbers; [rows, *own], objects for BYTES."""
        if isinstance(index, slice):
            return np.concatenate([self._array(at) for at in range(len(self._parts))])[index]
        ends = np.cumsum(self._counts)
        where = np.searchsorted(ends, index, side="right")
        found = []
        for at in np.unique(where):
            begin = ends[at] - self._counts[at]
            found.append(self._array(int(at))[index[where == at] - begin])
        return np.concatenate(found)

    def _array(self, at: int) -> Array:
        part, count = self._parts[at], self._counts[at]
        datatype = DATATYPES[self._spec.datatype]
        if datatype.itemsize:
            return np.frombuffer(part, datatype.numpy).reshape(count, *self._dims)[self._own]
        elements = np.empty(count * prod(self._dims), object)
        elements[:] = bytes_tensor.decode(part, len(elements))
        return elements.reshape(count, *self._dims)[self._own]
