"""The k greatest of each row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from headrace_kernels.operations.base import Array, Launch, Operation, array, ceil_div, check_sizes, i32
from headrace_kernels.reference.topk import top_k

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

BLOCK = (32, 8, 1)
LONGEST_FOR_A_WARP = 1024  # classes; a longer row is a block's
REAL = {"float32": "f32", "float16": "f16"}


@dataclass(frozen=True, slots=True)
class SelectTop(Operation):
    """`reference.top_k`. Arrays: logits [rows, classes]; values FP32 [rows, k]; indices INT32 [rows, k].

    The kernel takes k steps one after another: it is meant for a k of up to about a hundred.
    """

    rows: int
    classes: int
    k: int
    softmax: bool = True
    dtype: str = "float32"

    source: ClassVar[str] = "topk"

    def __post_init__(self) -> None:
        check_sizes(rows=self.rows, classes=self.classes)
        if not 1 <= self.k <= self.classes:
            raise ValueError(f"k is 1 to {self.classes}, the number of classes, not {self.k}")
        if self.dtype not in REAL:
            raise ValueError(f"logits are {' or '.join(REAL)}, not {self.dtype}")

    def arrays(self) -> tuple[Array, ...]:
        """Logits, values, indices."""
        return (
            array("logits", (self.rows, self.classes), self.dtype, "in"),
            array("values", (self.rows, self.k), np.float32, "out"),
            array("indices", (self.rows, self.k), np.int32, "out"),
        )

    def launches(self) -> tuple[Launch, ...]:
        """A warp or a block for each row."""
        if not self.rows:
            return ()
        warp = self.classes <= LONGEST_FOR_A_WARP
        grid = (ceil_div(self.rows, BLOCK[1]) if warp else self.rows, 1, 1)
        kernel = f"top_k_{'warp' if warp else 'block'}_{REAL[self.dtype]}"
        numbers = (i32(self.rows), i32(self.classes), i32(self.k), i32(self.softmax))
        return (Launch(kernel, grid, BLOCK, 0, ("logits", "values", "indices", *numbers)),)

    def compute(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """With NumPy."""
        found = top_k(arrays["logits"], self.k, softmax=self.softmax)
        arrays["values"][...] = found.values
        arrays["indices"][...] = found.indices
