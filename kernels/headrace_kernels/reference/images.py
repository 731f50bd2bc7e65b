"""Images of differing sizes to a normalised batch [N, C, H, W]."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from headrace_kernels.images import check_table, placements

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from headrace_kernels.images import ImageTransform

TILE = 2048  # columns that are converted and multiplied together, so that they stay in the processor's cache


class Taps(NamedTuple):
    """For each output position, the source positions [start, start + K) and their weights FP32 [positions, K]."""

    start: NDArray[np.int64]
    weights: NDArray[np.float32]


def taps(source: int, resized: int, first: int, count: int, antialias: bool) -> Taps:
    """The filter at positions first to first + count of an axis of `source` pixels that is resized to `resized`.

    The triangle filter over half-pixel centres, widened by the factor of shrinking if antialiased, cut at the edges
    and normalised: Pillow's BILINEAR (Resample.c, precompute_coeffs), which torchvision's antialias=True follows. The
    centre is a whole number and a fraction, so that large images lose no precision in FP32, as in the kernel.
    """
    if source == resized:
        return Taps(np.arange(first, first + count, dtype=np.int64), np.ones((count, 1), np.float32))
    doubled = (2 * np.arange(first, first + count, dtype=np.int64) + 1) * source
    base = doubled // (2 * resized)
    fraction = (doubled % (2 * resized)).astype(np.float32) / np.float32(2 * resized)
    widen = np.float32(max(source / resized, 1.0) if antialias else 1.0)
    start = np.maximum(base + np.floor(fraction - widen + np.float32(0.5)).astype(np.int64), 0)
    stop = np.minimum(base + np.floor(fraction + widen + np.float32(0.5)).astype(np.int64), source)
    source_at = start[:, None] + np.arange(int((stop - start).max(initial=1)))
    distance = ((source_at - base[:, None]).astype(np.float32) + np.float32(0.5) - fraction[:, None]) / widen
    weights = np.maximum(np.float32(1) - np.abs(distance), np.float32(0))
    weights[source_at >= stop[:, None]] = 0
    return Taps(start, weights / weights.sum(axis=1, keepdims=True, dtype=np.float32))


def image_batch(
    pixels: NDArray[np.uint8],
    table: NDArray[np.int64],
    transform: ImageTransform,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """The batch [N, channels, height, width] of images that lie in one buffer of bytes, N being the table's rows.

    pixels: UINT8, one dimension. table: of `images.placements`. out: to be filled, of the transform's dtype.
    Raises ValueError if the table or out do not fit.
    """
    check_table(table, pixels.size, transform)
    shape = (len(table), transform.channels, transform.height, transform.width)
    if out is None:
        out = np.empty(shape, transform.dtype)
    elif out.shape != shape or out.dtype != transform.dtype:
        raise ValueError(f"out is {out.dtype} {list(out.shape)}; the batch is {transform.dtype} {list(shape)}")
    for row, (offset, height, width, *place) in zip(out, table.tolist(), strict=True):
        size = height * width * transform.channels
        _lay(pixels[offset : offset + size].reshape(height, width, transform.channels), place, transform, row)
    return out


def transform_images(
    images: Sequence[NDArray[np.uint8]], transform: ImageTransform, out: NDArray[Any] | None = None
) -> NDArray[Any]:
    """The same of images that lie anywhere, UINT8 [height, width, channels] each: they are not copied together."""
    for index, image in enumerate(images):
        if image.ndim != 3 or image.shape[2] != transform.channels or image.dtype != np.uint8:
            raise ValueError(
                f"image {index} is {image.dtype} {list(image.shape)}; uint8 [height, width, {transform.channels}] "
                "was expected"
            )
    sizes: list[tuple[int, int]] = [image.shape[:2] for image in images]
    shape = (len(images), transform.channels, transform.height, transform.width)
    if out is None:
        out = np.empty(shape, transform.dtype)
    elif out.shape != shape or out.dtype != transform.dtype:
        raise ValueError(f"out is {out.dtype} {list(out.shape)}; the batch is {transform.dtype} {list(shape)}")
    for row, image, line in zip(out, images, placements(sizes, transform).tolist(), strict=True):
        _lay(image, line[3:], transform, row)
    return out


def _lay(image: NDArray[np.uint8], place: Iterable[int], transform: ImageTransform, out: NDArray[Any]) -> None:
    """Writes one image, resized and normalised, to out [channels, height, width], and padding around it."""
    tall, wide, top, left = place
    factor, shift = (values[:, None, None] for values in transform.factors())
    y0, y1 = max(top, 0), min(top + tall, transform.height)
    x0, x1 = max(left, 0), min(left + wide, transform.width)
    covers = image.size and y0 < y1 and x0 < x1
    if not covers or (y1 - y0, x1 - x0) != out.shape[1:]:
        out[...] = np.float32(transform.pad) * factor + shift
    if not covers:
        return
    antialias = transform.antialias
    down = taps(image.shape[0], tall, y0 - top, y1 - y0, antialias)
    across = taps(image.shape[1], wide, x0 - left, x1 - x0, antialias)
    first, last = int(across.start[0]), min(int(across.start[-1]) + across.weights.shape[1], image.shape[1])
    narrow = image[:, first:last]
    rows = _down(narrow.reshape(len(narrow), -1), down).reshape(y1 - y0, last - first, -1)
    planes = np.ascontiguousarray(rows.transpose(2, 0, 1)[:: -1 if transform.swap else 1])
    resized = _across(planes.reshape(-1, last - first), Taps(across.start - first, across.weights))
    result = resized.reshape(len(planes), y1 - y0, x1 - x0)
    result *= factor
    result += shift
    with np.errstate(over="ignore"):
        out[:, y0:y1, x0:x1] = result


def _bands(filters: Taps, block: int) -> list[tuple[slice, int, NDArray[np.float32]]]:
    """The filters as a band matrix, in blocks of positions: which, their first source, weights [block, width].

    Multiplying by dense blocks leaves the arithmetic to BLAS, at the price of some zeros: fewer in smaller blocks.
    """
    start, weights = filters
    count, reach = weights.shape
    bands = []
    for begin in range(0, count, block):
        end = min(begin + block, count)
        low = int(start[begin])
        band = np.zeros((end - begin, int(start[end - 1]) + reach - low), np.float32)
        np.put_along_axis(band, (start[begin:end] - low)[:, None] + np.arange(reach), weights[begin:end], axis=1)
        bands.append((slice(begin, end), low, band))
    return bands


def _down(rows: NDArray[np.uint8], filters: Taps) -> NDArray[np.float32]:
    """FP32 [positions, columns]: UINT8 [source, columns] weighted along the first axis."""
    start, weights = filters
    columns = rows.shape[1]
    if weights.shape[1] == 1:
        return rows[start].astype(np.float32)
    out = np.empty((len(start), columns), np.float32)
    bands = _bands(filters, 8 if columns > TILE // 2 else 32)
    scratch = np.empty((max(band.shape[1] for _, _, band in bands), min(TILE, columns)), np.float32)
    for tile in range(0, columns, TILE):
        for where, low, band in bands:
            part = rows[low : low + band.shape[1], tile : tile + TILE]  # at the end fewer: the rest has no weight
            real = scratch[: len(part), : part.shape[1]]
            real[...] = part
            np.matmul(band[:, : len(part)], real, out=out[where, tile : tile + TILE])
    return out


def _across(planes: NDArray[np.float32], filters: Taps) -> NDArray[np.float32]:
    """FP32 [rows, positions]: [rows, source] weighted along the last axis."""
    if filters.weights.shape[1] == 1:
        return planes[:, filters.start]
    out = np.empty((len(planes), len(filters.start)), np.float32)
    for where, low, band in _bands(filters, 32):
        part = planes[:, low : low + band.shape[1]]
        np.matmul(part, band[:, : part.shape[1]].T, out=out[:, where])
    return out
