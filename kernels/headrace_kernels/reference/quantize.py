"""Between floating point and 8-bit integers, with a scale and a zero point for the whole or for each channel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import ArrayLike, DTypeLike, NDArray

AT_ONCE = 1 << 16  # elements that are worked on together, so that what lies between stays in the processor's cache
LONG = 64  # elements of a channel from which one row of a block is one channel


def quantize(
    x: NDArray[Any],
    scale: ArrayLike,
    zero_point: ArrayLike | None = None,
    *,
    axis: int | None = None,
    dtype: DTypeLike = np.int8,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """saturate(round(x / scale) + zero_point), half to even, in FP32: ONNX's QuantizeLinear.

    x: float32 or float16 of any shape. scale: positive, one or, with `axis`, one for each channel. zero_point: of
    dtype, likewise; None: 0. dtype: int8 or uint8. Infinities saturate; a NaN becomes the lowest value, as in ONNX
    Runtime's CPU provider. Raises ValueError if these do not fit together.
    """
    if x.dtype not in (np.float32, np.float16):
        raise ValueError(f"float32 or float16 is quantized, not {x.dtype}")
    if np.dtype(dtype) not in (np.int8, np.uint8):
        raise ValueError(f"quantized values are int8 or uint8, not {np.dtype(dtype)}")
    scales, zeros = _per_channel(scale, zero_point, x, axis, np.dtype(dtype))
    out = _target(out, x, dtype)
    limits = np.iinfo(np.dtype(dtype))
    with np.errstate(over="ignore", invalid="ignore"):
        for block in _blocks(x, out, scales, zeros, axis):
            # a true division: the product with the reciprocal rounds some values to their neighbours
            real = np.divide(block.source, block.scale, dtype=np.float32)
            np.rint(real, out=real)
            real += block.zero
            np.fmax(real, np.float32(limits.min), out=real)
            np.fmin(real, np.float32(limits.max), out=real)
            block.target[...] = real
    return out


def dequantize(
    q: NDArray[Any],
    scale: ArrayLike,
    zero_point: ArrayLike | None = None,
    *,
    axis: int | None = None,
    dtype: DTypeLike = np.float32,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """(q - zero_point) * scale in FP32: ONNX's DequantizeLinear. q: int8 or uint8. dtype: float32 or float16.

    The others are as in `quantize`. A product beyond FP16 becomes infinite there.
    """
    if q.dtype not in (np.int8, np.uint8):
        raise ValueError(f"int8 or uint8 is dequantized, not {q.dtype}")
    if np.dtype(dtype) not in (np.float32, np.float16):
        raise ValueError(f"dequantized values are float32 or float16, not {np.dtype(dtype)}")
    scales, zeros = _per_channel(scale, zero_point, q, axis, q.dtype)
    out = _target(out, q, dtype)
    with np.errstate(over="ignore"):
        for block in _blocks(q, out, scales, zeros, axis):
            real = np.subtract(block.source, block.zero, dtype=np.float32)
            np.multiply(real, block.scale, out=real)
            block.target[...] = real
    return out


class _Block(NamedTuple):
    """Part of a tensor as [rows, columns], and scale and zero point that broadcast to it."""

    source: NDArray[Any]
    target: NDArray[Any]
    scale: NDArray[np.float32]
    zero: NDArray[np.float32]


def channel_view(shape: tuple[int, ...], axis: int | None) -> tuple[int, int, int]:
    """The shape as [outer, channels, inner] around the axis; without one, a single channel. Raises ValueError."""
    if axis is None:
        return 1, 1, int(np.prod(shape, dtype=np.int64))
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"axis {axis} is none of a tensor {list(shape)}")
    axis %= len(shape)
    outer, inner = (int(np.prod(part, dtype=np.int64)) for part in (shape[:axis], shape[axis + 1 :]))
    return outer, shape[axis], inner


def _blocks(
    source: NDArray[Any],
    target: NDArray[Any],
    scales: NDArray[np.float32],
    zeros: NDArray[np.float32],
    axis: int | None,
) -> Iterator[_Block]:
    """The whole in pieces of about AT_ONCE elements."""
    outer, channels, inner = channel_view(source.shape, axis)
    flat, flat_target = source.reshape(-1), target.reshape(-1)
    if channels == 1 or not flat.size:
        for start in range(0, flat.size, AT_ONCE):
            part = slice(start, start + AT_ONCE)
            yield _Block(flat[part], flat_target[part], scales, zeros)
        return
    if inner >= LONG:  # a row is a channel
        lines, target_lines = flat.reshape(-1, inner), flat_target.reshape(-1, inner)
        column = np.arange(outer * channels)[:, None] % channels
        scales, zeros = scales[column], zeros[column]
        step = max(1, AT_ONCE // inner)
        for start in range(0, len(lines), step):
            part = slice(start, start + step)
            yield _Block(lines[part], target_lines[part], scales[part], zeros[part])
        return
    width = channels * inner  # as often as it fits, which makes long rows of short ones
    step = max(1, min(outer, AT_ONCE // width))
    scales, zeros = (np.tile(np.repeat(values, inner), step) for values in (scales, zeros))
    for start in range(0, flat.size, step * width):
        here = flat[start : start + step * width]
        size = here.size
        yield _Block(here, flat_target[start : start + size], scales[:size], zeros[:size])


def _per_channel(
    scale: ArrayLike, zero_point: ArrayLike | None, x: NDArray[Any], axis: int | None, quantized: np.dtype[Any]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scale and zero point, checked, as FP32 [channels]."""
    channels = channel_view(x.shape, axis)[1]
    scales = np.asarray(scale, np.float32).reshape(-1)
    zeros = np.zeros(channels, np.float32)
    if zero_point is not None:
        given = np.asarray(zero_point).reshape(-1)
        limits = np.iinfo(quantized)
        if given.dtype.kind not in "iu" or (given < limits.min).any() or (given > limits.max).any():
            raise ValueError(f"zero points of {quantized} are integers from {limits.min} to {limits.max}")
        zeros = given.astype(np.float32)
    for name, values in (("scale", scales), ("zero_point", zeros)):
        if len(values) != channels:
            raise ValueError(f"{name} has {len(values)} values for {channels} channels")
    if not (np.isfinite(scales) & (scales > 0)).all():
        raise ValueError("scales are positive and finite")
    return scales, zeros


def _target(out: NDArray[Any] | None, source: NDArray[Any], dtype: DTypeLike) -> NDArray[Any]:
    """Where the result is written: a new array, or the one that was given, if it fits."""
    if out is None:
        return np.empty(source.shape, dtype)
    if out.shape != source.shape or out.dtype != dtype or not out.flags.c_contiguous:
        raise ValueError(
            f"out is {out.dtype} {list(out.shape)}; {np.dtype(dtype)} {list(source.shape)}, contiguous, was expected"
        )
    return out
