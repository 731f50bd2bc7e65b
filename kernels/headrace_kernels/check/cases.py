"""What the kernels are tried on: small cases for their edges, large ones for their speed, the same on each run."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace_kernels.images import ImageTransform, placements
from headrace_kernels.operations import (
    Dequantize,
    GatherRows,
    Operation,
    Quantize,
    ScatterRows,
    SelectTop,
    TransformImages,
    UpdateStatistics,
)
from headrace_kernels.reference import FeatureStatistics, feature_statistics, offsets_of
from headrace_kernels.reference.quantize import channel_view
from headrace_kernels.reference.statistics import bin_factors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """An operation, and the arrays that it starts from: those that it reads, and those that it adds to."""

    operation: Operation
    given: Arrays

    def expected(self) -> Arrays:
        """All arrays but scratch, as the reference leaves them."""
        arrays = {
            each.name: self.given[each.name].copy() if each.role == "inout" else self.given.get(each.name)
            for each in self.operation.arrays()
            if each.role != "scratch"
        }
        filled = {each.name: np.empty(each.shape, each.dtype) for each in self.operation.arrays()}
        found = {name: filled[name] if value is None else value for name, value in arrays.items()}
        self.operation.compute(found)
        return found


def images(
    rng: np.random.Generator, sizes: Sequence[tuple[int, int]], transform: ImageTransform, rows: int = 0
) -> Case:
    """Noise of these heights and widths. rows: of the batch, if more."""
    table = placements(sizes, transform, rows=rows)
    count = sum(height * width for height, width in sizes) * transform.channels
    pixels = rng.integers(0, 256, count, np.uint8)
    return Case(TransformImages(transform, len(table), count), {"pixels": pixels, "table": table})


def gather(
    rng: np.random.Generator,
    lengths: Sequence[int],
    length: int,
    dtype: str,
    item: tuple[int, ...] = (),
    **options: Any,  # noqa: ANN401
) -> Case:
    """Rows of these lengths. options: of GatherRows."""
    offsets = offsets_of(lengths)
    made = GatherRows(len(lengths), int(offsets[-1]), length, dtype, item, **options)
    return Case(made, {"values": _octets(rng, (made.items, *item), dtype), "offsets": offsets})


def scatter(rng: np.random.Generator, lengths: Sequence[int], length: int, dtype: str, item: tuple[int, ...]) -> Case:
    """Back to rows of these lengths, over other data."""
    offsets = offsets_of(lengths)
    made = ScatterRows(len(lengths), int(offsets[-1]), length, dtype, item)
    padded, out = (_octets(rng, shape, dtype) for shape in ((made.rows, length, *item), (made.items, *item)))
    return Case(made, {"padded": padded, "offsets": offsets, "out": out})


def quantize(rng: np.random.Generator, operation: Quantize | Dequantize) -> Case:
    """Values that fill the range and leave it, halves among them, infinities and NaNs."""
    channels = channel_view(operation.shape, operation.axis)[1]
    limits = np.iinfo(operation.quantized)
    if isinstance(operation, Dequantize):
        x = rng.integers(limits.min, limits.max, operation.shape, operation.quantized, endpoint=True)
        scale = rng.uniform(1e-3, 10, channels)
    else:
        x = (rng.integers(-600, 600, operation.shape, np.int16) / np.float32(2)).astype(operation.real)
        _sprinkle(rng, x, (np.nan, np.inf, -np.inf, -0.0))
        scale = 2.0 ** rng.integers(-2, 3, channels) * rng.choice([1, 3, 7, 1.01], channels)
    given: Arrays = {"x": x, "scale": scale.astype(np.float32)}
    if operation.zero_point:
        given["zero_point"] = rng.integers(limits.min, limits.max, channels, operation.quantized, endpoint=True)
    return Case(operation, given)


def top(rng: np.random.Generator, operation: SelectTop, *, ties: bool = False, odd: bool = False) -> Case:
    """Normal logits; ties: few values; odd: NaNs, infinities and zeros of both signs, and a row of nothing to rank."""
    logits = rng.standard_normal((operation.rows, operation.classes), np.float32)
    logits = np.rint(logits) if ties else logits * 4
    logits = logits.astype(operation.dtype)
    if odd:
        _sprinkle(rng, logits, (np.nan, np.inf, -np.inf, 0.0, -0.0))
        logits[:1] = rng.choice((np.nan, -np.inf), operation.classes)
    return Case(operation, {"logits": logits})


def statistics(
    rng: np.random.Generator, operation: UpdateStatistics, *, offset: float = 0, odd: bool = False, seen: int = 0
) -> Case:
    """Normal features about `offset`; odd: NaNs and infinities among them. seen: rows of before."""

    def batch(rows: int) -> NDArray[Any]:
        x = rng.standard_normal((rows, operation.features), np.float32) + np.float32(offset)
        x = x.astype(operation.dtype)
        if odd:
            _sprinkle(rng, x, (np.nan, np.inf, -np.inf, offset + 2, offset - 2))
        return x

    low = np.full(operation.features, offset - 2, np.float32)
    high = np.full(operation.features, offset + 2, np.float32)
    before = feature_statistics(batch(seen), low, high, operation.bins)
    state = {field.name: getattr(before, field.name) for field in fields(FeatureStatistics)}
    factor = bin_factors(low, high, operation.bins)
    return Case(operation, {"x": batch(operation.rows), "low": low, "high": high, "factor": factor, **state})


def small() -> list[Case]:
    """A few of what the tests try at random, which launch every kernel: for a GPU, whose compiler is another."""
    rng = np.random.default_rng(0)
    sizes = [(480, 640), (31, 1000), (1, 1), (0, 7), (24, 160), (1000, 33)]
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return [
        images(rng, sizes, ImageTransform(72, 80, fit="letterbox", mean=mean, std=std, pad=114), rows=8),
        images(rng, sizes, ImageTransform(57, 71, fit="crop", shorter=80, swap=True, dtype="float16")),
        images(rng, [(20, 33), (20, 33)], ImageTransform(20, 33, mean=mean, std=std, swap=True, dtype="float16")),
        images(rng, [*sizes, (24, 99), (99, 160)], ImageTransform(24, 160, channels=1, antialias=False)),
        images(rng, [(20000, 40), (40, 20000)], ImageTransform(64, 65, channels=1, dtype="float16")),
        *(
            gather(rng, (3, 0, 17, 40, 1), 17, dtype, item, pad=7, mask_dtype=mask, lengths_dtype=lengths)
            for dtype, item, mask, lengths in (
                *(("int64", (), "int64", "int32"), ("float16", (3,), "float32", None)),
                *(("int32", (4, 8), "bool", "int64"), ("uint8", (5,), None, "uint8"), ("float32", (3,), "int32", None)),
            )
        ),
        *(
            scatter(rng, rng.integers(0, 30, 77).tolist(), 20, dtype, item)
            for dtype, item in (
                *(("float32", (64,)), ("int64", ()), ("uint8", (3,))),
                *(("float16", (5,)), ("float16", (5, 2))),
            )
        ),
        *(
            quantize(rng, kind(shape, axis, real, quantized, zero_point=axis is not None))
            for kind in (Quantize, Dequantize)
            for real in ("float32", "float16")
            for quantized in ("int8", "uint8")
            for shape, axis in (((5, 7, 11), 1), ((64, 96), -1), ((33, 31), None), ((9, 24, 3), 1), ((200, 3), -1))
        ),
        *(
            top(rng, SelectTop(rows, classes, k, softmax, dtype), ties=not softmax, odd=not softmax)
            for rows, classes, k in ((9, 1, 1), (37, 10, 10), (3, 300, 40), (37, 1000, 5), (5, 1025, 7), (2, 50257, 30))
            for softmax, dtype in ((True, "float32"), (True, "float16"), (False, "float32"))
        ),
        *(
            statistics(rng, UpdateStatistics(rows, features, bins, dtype), offset=offset, odd=rows > 9, seen=rows // 2)
            for rows, features, bins, dtype, offset in (
                *((1, 33, 1, "float32", 0), (100, 13, 20, "float16", 3), (5000, 40, 256, "float32", 1e5)),
                *((70001, 3, 64, "float32", -1), (8, 300, 10, "float16", 0)),
            )
        ),
    ]


@dataclass(frozen=True, slots=True)
class Load:
    """A case that does not fit a GPU's caches, if it has so many rows. memory_bound: if a copy's speed is wanted."""

    title: str
    rows: int
    make: Callable[[np.random.Generator, int], Case]
    memory_bound: bool = True


def _up_to(rng: np.random.Generator, rows: int, longest: int) -> list[int]:
    lengths: list[int] = rng.integers(1, longest, rows, endpoint=True).tolist()
    return lengths


SAME = ImageTransform(1024, 1024)
SHRUNK = ImageTransform(224, 224, fit="letterbox", dtype="float16")
LOADS = [
    Load("images of 1024 x 1024 as they are", 32, lambda rng, n: images(rng, [(1024, 1024)] * n, SAME)),
    Load("images of 1080 x 1920 shrunk to 224", 32, lambda rng, n: images(rng, [(1080, 1920)] * n, SHRUNK), False),
    Load(
        "gather of up to 512 int64, and a mask",
        65536,
        lambda rng, n: gather(rng, _up_to(rng, n, 512), 512, "int64", mask_dtype="int64"),
    ),
    Load(
        "gather of up to 128 x 256 float32, and a mask",
        4096,
        lambda rng, n: gather(rng, _up_to(rng, n, 128), 128, "float32", (256,)),
    ),
    Load(
        "scatter of up to 128 x 256 float32",
        4096,
        lambda rng, n: scatter(rng, _up_to(rng, n, 128), 128, "float32", (256,)),
    ),
    Load("quantize float32, a scale for each of 1024", 64, lambda rng, n: quantize(rng, Quantize((n, 1024, 1024), 1))),
    Load(
        "quantize float16, a scale for each column",
        65536,
        lambda rng, n: quantize(rng, Quantize((n, 1024), -1, "float16", "uint8", zero_point=True)),
    ),
    Load(
        "dequantize to float16, a scale for each of 1024",
        64,
        lambda rng, n: quantize(rng, Dequantize((n, 1024, 1024), 1, "float16")),
    ),
    Load("top 5 of 1000", 65536, lambda rng, n: top(rng, SelectTop(n, 1000, 5))),
    Load("top 10 of 32000", 2048, lambda rng, n: top(rng, SelectTop(n, 32000, 10))),
    Load("statistics of 64 features", 1 << 20, lambda rng, n: statistics(rng, UpdateStatistics(n, 64, 64))),
]


def _octets(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    """Any bits, NaNs among them: what is moved is not looked at."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    return np.frombuffer(rng.bytes(size), dtype).reshape(shape).copy()


def _sprinkle(rng: np.random.Generator, x: NDArray[Any], values: Sequence[float]) -> None:
    """Puts these values at a few places."""
    flat = x.reshape(-1)
    if flat.size:
        where = rng.integers(0, flat.size, max(1, min(flat.size // 8, 1000)))
        flat[where] = rng.choice(values, len(where))
