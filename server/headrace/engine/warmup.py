"""Requests that a model runs before it serves: those of its configuration, or zeros."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from math import ceil, floor, prod
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.datatypes import DATATYPES
from headrace.errors import InvalidRequest, ModelLoadError
from headrace.pipeline import bytes_tensor
from headrace.repository.configuration import WARMUP_DIRECTORY
from headrace.repository.model_config import WarmupData, WarmupInput

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from headrace.backends.base import Instance
    from headrace.messages import Buffer, Signature, TensorSpec
    from headrace.pipeline.buckets import Buckets
    from headrace.repository.model_config import ModelConfig

logger = logging.getLogger(__name__)

WARM_SECONDS = 2.0
"""Warming of one instance stops here; the sizes that are left have run at least as a neighbour."""
WARM_BYTES = 256 << 20
"""Inputs of a warm-up run, at most."""
RUNS = 3
"""Runs of each size: the first allocates, the last is what the cost model learns from."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A row to run. parts, dims: of each input, in the signature's order, the bytes of a row and its dimensions.

    rows, runs: how often it is repeated in a batch, and run. certain: whether the model must be able to run it.
    """

    name: str
    parts: tuple[bytes, ...]
    dims: tuple[tuple[int, ...], ...]
    rows: int = 1
    runs: int = 1
    certain: bool = True

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return sum(map(len, self.parts))

    def repeated(self, rows: int) -> list[list[bytes]]:
        """The parts of so many rows, each in a buffer of its own, as requests bring them."""
        return [[bytes(bytearray(part)) for _ in range(rows)] for part in self.parts]

    def shapes(self, signature: Signature, rows: int) -> list[tuple[int, ...]]:
        """The shapes of the inputs of a batch of so many rows."""
        return [(rows, *dims) if signature.max_batch else dims for dims in self.dims]

    def batch(
        self, signature: Signature, buckets: Buckets | None, model: str
    ) -> tuple[Sequence[Sequence[Buffer]], Sequence[tuple[int, ...]]]:
        """What its rows are for an instance, and their shapes: as those of requests, padded if there are buckets.

        model: its name. Raises InvalidRequest where requests would be refused.
        """
        parts = self.repeated(self.rows)
        if buckets is None:
            return parts, self.shapes(signature, self.rows)
        return buckets.pack_alike(*buckets.fit(self.dims, model), parts)


def zeros(signature: Signature) -> Sample:
    """A row of zeros, with 1 for dimensions of any size; it need not run where there are such."""
    dims = tuple(tuple(dim if dim >= 0 else 1 for dim in spec.shape) for spec in signature.inputs)
    parts = tuple(_zeros(spec, prod(shape)) for spec, shape in zip(signature.inputs, dims, strict=True))
    return Sample("zeros", parts, dims, certain=all(spec.fixed for spec in signature.inputs))


def read_samples(config: ModelConfig, signature: Signature, directory: Path) -> list[Sample]:
    """The warm-up requests of a model's configuration. directory: of the model. Raises ModelLoadError."""
    return [_sample(at, data, signature, directory / WARMUP_DIRECTORY) for at, data in enumerate(config.warmup_data)]


def run_samples(
    samples: Sequence[Sample], signature: Signature, buckets: Buckets | None, instance: Instance, model: str
) -> None:
    """Runs each as often as it asks for. model: its name. Raises ModelLoadError for one that fails."""
    for sample in samples:
        try:
            parts, shapes = sample.batch(signature, buckets, model)
            for _ in range(sample.runs):
                instance.run(parts, shapes, range(len(signature.outputs)))
        except Exception as error:
            raise ModelLoadError(f"{sample.name} failed: {error}") from error


def _sample(at: int, data: WarmupData, signature: Signature, directory: Path) -> Sample:
    name = f"warm-up request '{data.name or at}'"
    expected = [spec.name for spec in signature.inputs]
    unknown = sorted(set(data.inputs) - set(expected))
    if unknown:
        raise ModelLoadError(f"{name} has inputs {unknown}, but those of the model are {expected}")
    if data.rows > max(signature.max_batch, 1):
        raise ModelLoadError(f"{name} has {data.rows} rows, a batch of the model at most {max(signature.max_batch, 1)}")
    rng = np.random.default_rng(0)
    parts, dims = [], []
    for spec in signature.inputs:
        what = f"{name}, input '{spec.name}'"
        given = data.inputs.get(spec.name, WarmupInput())
        if given.datatype not in (None, spec.datatype):
            raise ModelLoadError(f"{what}: datatype {given.datatype}, the model expects {spec.datatype}")
        shape = spec.shape if given.dims is None else given.dims
        if len(shape) != len(spec.shape) or any(w >= 0 and g != w for g, w in zip(shape, spec.shape, strict=True)):
            raise ModelLoadError(f"{what}: dims {list(shape)}, the model expects {list(spec.shape)}")
        if min(shape, default=1) < 0:
            raise ModelLoadError(f"{what}: dims must be given, the model's {list(shape)} may be of any size")
        dims.append(shape)
        parts.append(_row(spec, shape, given, directory, rng, what))
    return Sample(name, tuple(parts), tuple(dims), data.rows, data.runs)


def _row(
    spec: TensorSpec,
    shape: tuple[int, ...],
    given: WarmupInput,
    directory: Path,
    rng: np.random.Generator,
    what: str,
) -> bytes:
    elements = prod(shape)
    if given.file:
        return _from_file(directory / given.file, spec, elements, what)
    if given.fill == "random" and spec.datatype != "BYTES":
        return random_values(spec, elements, rng)
    return _zeros(spec, elements)


def _zeros(spec: TensorSpec, elements: int) -> bytes:
    return bytes(elements * (DATATYPES[spec.datatype].itemsize or 4))


def random_values(
    spec: TensorSpec, elements: int, rng: np.random.Generator, low: float | None = None, high: float | None = None
) -> bytes:
    """Numbers from 0 to 1, or 0 and 1: whatever they mean, they are hardly out of range. low, high: limits to keep."""
    dtype = DATATYPES[spec.datatype].numpy
    values: np.ndarray[Any, Any]
    if low is None:
        low = 0.0 if high is None else min(0.0, high - 1)
    if high is None:
        high = max(1.0, low + 1)
    if spec.datatype == "BF16":
        floats = (low + (high - low) * rng.random(elements)).astype(np.float32)
        values = (floats.view(np.uint32) >> 16).astype(dtype)
    elif dtype.kind == "f":
        values = (low + (high - low) * rng.random(elements)).astype(dtype)
    elif dtype.kind == "b":
        values = rng.integers(0, 2, elements).astype(dtype)
    else:
        bounds = np.iinfo(dtype)
        first, last = max(ceil(low), int(bounds.min)), min(floor(high), int(bounds.max))
        values = rng.integers(first, max(first, last), elements, dtype, endpoint=True)
    return values.tobytes()


def _from_file(path: Path, spec: TensorSpec, elements: int, what: str) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelLoadError(f"{what}: {path} cannot be read: {error.strerror or error}") from error
    itemsize = DATATYPES[spec.datatype].itemsize
    if not itemsize:
        try:
            bytes_tensor.decode(data, elements)
        except InvalidRequest as error:
            raise ModelLoadError(f"{what}: {path}: {error}") from error
        return data
    size = elements * itemsize
    if len(data) < size:
        raise ModelLoadError(f"{what}: {path} has {len(data)} bytes, expected {size}")
    if len(data) > size:
        logger.warning("%s: %s has %d bytes, of which the first %d are used", what, path, len(data), size)
    return data[:size]
