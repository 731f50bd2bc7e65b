"""Floating point to 8-bit integers, and back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from headrace_kernels.operations.base import Array, Launch, Operation, array, ceil_div, check_sizes
from headrace_kernels.reference.quantize import channel_view, dequantize, quantize

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

THREADS = 256
ELEMENTS_A_THREAD = 4
LARGEST_GRID = 1 << 16  # more elements are taken in turns
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
        blocks = min(ceil_div(total, THREADS * ELEMENTS_A_THREAD), LARGEST_GRID)
        zero = "zero_point" if self.zero_point else None
        arguments = ("x", "scale", zero, "out", np.uint32(total), np.uint32(channels), np.uint32(inner))
        return (Launch(kernel, (blocks, 1, 1), (THREADS, 1, 1), 0, arguments),)


@dataclass(frozen=True, slots=True)
class Quantize(_Quantization):
    """`reference.quantize`. real, quantized: dtypes. zero_point: whether there is one; without, it is 0.

    Arrays: x [shape] real; scale FP32 [channels], positive; zero_point [channels] quantized; out [shape] quantized.
    """

    def arrays(self) -> tuple[Array, ...]:
        """X, scale, zero point if there is one, out."""
        return self._arrays(self.real, self.quantized)

    def launches(self) -> tuple[Launch, ...]:
        """Four elements a thread."""
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
        """Four elements a thread."""
        return self._launches(f"dequantize_{INTEGER[self.quantized]}_{REAL[self.real]}")

    def compute(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """With NumPy."""
        zero, out = arrays.get("zero_point"), arrays["out"]
        dequantize(arrays["x"], arrays["scale"], zero, axis=self.axis, dtype=self.real, out=out)
