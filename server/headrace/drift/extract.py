"""From rows of a tensor to features: columns of numbers, and a stream of items."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.drift.errors import DriftError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from headrace.drift.watch import Watch

    Rows = NDArray[Any]
    Floats = NDArray[np.float64]
    Items = NDArray[np.int64]

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
_SIDE = 128  # an image's sharpness is that of its middle, at most so many pixels wide and high
_SCATTER = 1 << 14  # its other statistics are of about so many pixels


@dataclass(frozen=True, slots=True)
class Columns:
    """The features of some rows. numbers: FP64 [rows, features], NaN where none is. items: INT64 [any] or None."""

    numbers: Floats
    items: Items | None = None

    @property
    def rows(self) -> int:
        """How many rows they are of."""
        return len(self.numbers)


class Extractor:
    """Turns rows of one tensor into features.

    salt: keys the hashes of items and draws the projections, so that they are equal wherever it is.
    """

    def __init__(self, watch: Watch, salt: bytes) -> None:
        self._watch = watch
        self._salt = salt
        self._of: Callable[[Rows], Columns] = getattr(self, f"_{watch.kind}")
        self._projection: Floats = np.zeros((0, 0))
        if watch.kind == "embedding":
            generator = np.random.Generator(np.random.PCG64(int.from_bytes(blake2b(salt, digest_size=16).digest())))
            self._projection = generator.standard_normal((watch.shape[-1], watch.projections))

    def __call__(self, rows: Rows) -> Columns:
        """The features of rows [rows, *shape], whose batch dimension is first.

        BF16 comes as UINT16 bit patterns, BYTES as objects. Raises DriftError for rows that are not of the tensor.
        """
        if not _fits(rows.shape[1:], self._watch.shape):
            raise DriftError(
                f"{self._watch.tensor}: rows of {list(rows.shape[1:])}, expected {list(self._watch.shape)}"
            )
        if self._watch.datatype == "BF16" and rows.dtype == np.uint16:
            rows = (rows.astype(np.uint32) << 16).view(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # infinities and NaN are counted as what they are
            return self._of(rows)

    def _numeric(self, rows: Rows) -> Columns:
        flat = _flat(rows)
        return Columns(flat[:, list(self._watch.columns)].astype(np.float64))

    def _summary(self, rows: Rows) -> Columns:
        flat = _flat(rows).astype(np.float64)
        length = flat.shape[1]
        if not length:
            return Columns(np.column_stack([np.full((len(rows), 4), np.nan), np.zeros(len(rows))]))
        columns = (flat.mean(axis=1), flat.std(axis=1), flat.min(axis=1), flat.max(axis=1))
        return Columns(np.column_stack([*columns, np.full(len(rows), float(length))]))

    def _image(self, rows: Rows) -> Columns:
        """Statistics of pixels.

        Mean and deviation of each channel; mean (brightness) and deviation (contrast) of the luma, and the variance
        of its Laplacian (sharpness; Pech-Pacheco et al., Diatom autofocusing in brightfield microscopy, 2000).
        """
        images = np.moveaxis(rows, 1, -1) if self._watch.layout == "NCHW" else rows
        if not images[:1].size:
            return Columns(np.full((len(images), len(self._watch.features)), np.nan))
        stride = max(1, round((images.shape[1] * images.shape[2] / _SCATTER) ** 0.5))
        some = images[:, ::stride, ::stride].astype(np.float32)
        means = some.mean(axis=(1, 2), dtype=np.float64)
        deviations = (some - means[:, None, None].astype(np.float32)).std(axis=(1, 2))
        luma = _luma(some)
        brightness, contrast = luma.mean(axis=(1, 2)), luma.std(axis=(1, 2))
        top, left = (max(0, (size - _SIDE) // 2) for size in images.shape[1:3])
        middle = _luma(images[:, top : top + _SIDE, left : left + _SIDE].astype(np.float32))
        sharpness = _laplacian(middle).var(axis=(1, 2)) if min(middle.shape[1:]) > 2 else np.zeros(len(images))
        return Columns(np.column_stack([means, deviations, brightness, contrast, sharpness]))

    def _embedding(self, rows: Rows) -> Columns:
        """Random projections (Johnson and Lindenstrauss, 1984) of the mean over all dimensions but the last."""
        size = self._watch.shape[-1]
        vectors = rows.reshape(len(rows), prod(rows.shape[1:-1]), size).astype(np.float64)
        mean = vectors.mean(axis=1) if vectors.shape[1] else np.full((len(rows), size), np.nan)
        norm = np.sqrt(np.einsum("ij,ij->i", mean, mean))
        return Columns(np.column_stack([mean @ self._projection, norm]))

    def _tokens(self, rows: Rows) -> Columns:
        flat = _flat(rows)
        real = np.ones(flat.shape, np.bool_) if self._watch.pad is None else flat != self._watch.pad
        ids = flat[real].astype(np.int64)
        return Columns(_column(real.sum(axis=1)), self._mixed(ids) if self._watch.salted else ids)

    def _text(self, rows: Rows) -> Columns:
        flat = [[_octets(value) for value in row] for row in _flat(rows)]
        lengths = _column(np.array([sum(map(len, row)) for row in flat]))
        return Columns(lengths, np.array([self._hash(value) for row in flat for value in row], np.int64))

    def _classes(self, rows: Rows) -> Columns:
        flat = _flat(rows)
        if self._watch.is_label:
            return Columns(np.zeros((len(rows), 0)), flat[:, 0].astype(np.int64))
        places = flat.shape[1] // max(self._watch.classes, 1)  # tokens of a text, say
        scores = flat.astype(np.float64).reshape(len(rows) * places, self._watch.classes)
        best = np.where(np.isnan(scores), -np.inf, scores).argmax(axis=1)
        confidence = scores[np.arange(len(scores)), best]
        if self._watch.logits:  # the softmax of the best: 1 / sum(exp(other - best))
            confidence = 1 / np.exp(scores - confidence[:, None]).sum(axis=1)
        return Columns(_column(confidence.reshape(len(rows), places).mean(axis=1)), best.astype(np.int64))

    def _hash(self, value: bytes) -> int:
        return int.from_bytes(blake2b(value, digest_size=8, key=self._salt).digest(), signed=True)

    def _mixed(self, ids: Items) -> Items:
        different, places = np.unique(ids, return_inverse=True)
        hashes = [self._hash(int(value).to_bytes(8, signed=True)) for value in different]
        return np.array(hashes, np.int64)[places]


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(shape) == len(wanted) and all(want in (-1, dim) for dim, want in zip(shape, wanted, strict=True))


def _flat(rows: Rows) -> Rows:
    return rows.reshape(len(rows), prod(rows.shape[1:]))


def _column(values: Rows) -> Floats:
    return values.reshape(-1, 1).astype(np.float64)


def _octets(value: object) -> bytes:
    """None, a gap in a table, as a client would send it: empty."""
    if value is None:
        return b""
    return value if isinstance(value, bytes) else str(value).encode()


def _luma(images: Rows) -> Rows:
    return np.asarray(images[..., :3] @ _LUMA if images.shape[-1] >= 3 else images[..., 0])


def _laplacian(images: Rows) -> Rows:
    inside = images[:, 1:-1, 1:-1]
    across = images[:, :-2, 1:-1] + images[:, 2:, 1:-1] + images[:, 1:-1, :-2] + images[:, 1:-1, 2:]
    return np.asarray(across - 4 * inside)
