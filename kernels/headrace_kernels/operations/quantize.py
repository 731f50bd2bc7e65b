"""Floating point to 8-bit integers, and back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from headrace_kernels.operations.base import LARGEST_SIZE, Array, Launch, Operation, array, ceil_div, check_sizes
from headrace_kernels.reference.quantize import channel_view, dequantize, quantize

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

BLOCK = (32, 8, 1)
TOGETHER = 8  # elements that a thread converts at once
LEAST_ROW = 256  # so that a warp has no idle lanes
BLOCKS = 2112  # that fill a large GPU a few times; more would only find channels more often
REAL = {"float32": "f32", "float16": "f16"}
INTEGER = {"int8": "i8", "uint8": "u8"}


@dataclass(frozen=True, slots=True)
class _Quantization(Operation):
    shape: tuple[int, ...]
    axis: int | None = None
    real: str = "float32"
    quantized: str = "int8"
    zero_point: bool = False

    source: ClassVar[str] = "quantize"

    def __post_init__(self) -> None:
        if self.real not in REAL or self.quantized not in INTEGER:
            raise ValueError(f"{' or '.join(REAL)} and {' or '.join(INTEGER)}, not {self.real} and {self.quantized}")
        channel_view(self.shape, self.axis)
        check_sizes(elements=math.prod(self.shape))

    def _arrays(self, source: str, target: str) -> tuple[Array, ...]:
        channels = channel_view(self.shape, self.axis)[1]
        zero = (array("zero_point", (channels,), self.quantized, "in"),) if self.zero_point else ()
        return (
            array("x", self.shape, source, "in"),
            array("scale", (channels,), np.float32, "in"),
            *zero,
            array("out", self.shape, target, "out"),
        )

    def _launches(self, kernel: str) -> tuple[Launch, ...]:
        total = math.prod(self.shape)
        if not total:
            return ()
        _, channels, inner = channel_view(self.shape, self.axis)
        period = self._period(channels * inner if channels > 1 else 1)
        across = ceil_div(min(period, total), TOGETHER * BLOCK[0])
        down = max(1, min(ceil_div(total // period, BLOCK[1]), ceil_div(BLOCKS, across)))
        zero = "zero_point" if self.zero_point else None
        sizes = (np.uint32(each) for each in (total, channels, inner, min(period, 2 * LARGEST_SIZE)))
        return (Launch(kernel, (across, down, 1), BLOCK, 0, ("x", "scale", zero, "out", *sizes)),)

    @staticmethod
    def _period(repeats: int) -> int:
        """Elements of the rows that the kernel takes a tensor as, whose channels repeat after so many."""
        least = math.lcm(repeats, TOGETHER)
        return least * ceil_div(LEAST_ROW, least)


@dataclass(frozen=True, slots=True)
class Quantize(_Quantization):
    """`reference.quantize`. real, quantized: dtypes. zero_point: whether there is one; without, it is 0.

    Arrays: x [shape] real; scale FP32 [channels], positive; zero_point [channels] quantized; out [shape] quantized.
    """

    def arrays(self) -> tuple[Array, ...]:
        """X, scale, zero point if there is one, out."""
        return self._arrays(self.real, self.quantized)

    def launches(self) -> tuple[Launch, ...]:
        """Eight elements at once, of a few rows a thread."""
        return self._launches(f"quantize_{REAL[self.real]}_{INTEGER[self.quantized]}")

    def compute(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """With NumPy."""
        zero, out = arrays.get("zero_point"), arrays["out"]
        quantize(arrays["x"], arrays["scale"], zero, axis=self.axis, dtype=self.quantized, out=out)


@dataclass(frozen=True, slots=True)
class Dequantize(_Quantization):
    """`reference.dequantize`. Arrays: x [shape] quantized; scale, zero_point as in Quantize; out [shape] real."""

    def arrays(self) -> tuple[Array, ...]:
        """X, scale, zero point if there is one, out."""
        return self._arrays(self.quantized, self.real)

    def launches(self) -> tuple[Launch, ...]:
        """Eight elements at once, of a few rows a thread."""
        return self._launches(f"dequantize_{INTEGER[self.quantized]}_{REAL[self.real]}")

    def compute(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """With NumPy."""
        zero, out = arrays.get("zero_point"), arrays["out"]
        dequantize(arrays["x"], arrays["scale"], zero, axis=self.axis, dtype=self.real, out=out)
