"""Which shapes an engine is built for: an optimisation profile for each batch bucket. Pure.

A profile for each bucket runs faster than one over all batches, for the builder picks kernels that suit the whole range
and tunes them for one shape in it. Profiles do not overlap: each number of rows has one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from headrace.backends.shape_range import ShapeRange
    from headrace.backends.tensorrt.options import Options

    Shape = tuple[int, ...]

DEFAULT_MAX_BATCH = 64


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output of a network. shape: whole; -1 is a dimension that is not known."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Range:
    """Whole shapes of an input: the smallest, the one to tune for, the largest."""

    low: Shape
    opt: Shape
    high: Shape


Profile = dict[str, Range]
"""For each input with dynamic dimensions."""


def wanted_max_batch(max_batch: int | None, buckets: Sequence[int]) -> int:
    """Rows a batch may hold if the file can batch, from the configuration alone."""
    if max_batch is not None:
        return max_batch
    return buckets[-1] if buckets else DEFAULT_MAX_BATCH


def resolve_max_batch(
    inputs: Sequence[Tensor], outputs: Sequence[Tensor], max_batch: int | None, buckets: Sequence[int]
) -> int:
    """The same for a network; 0: it has no batch dimension, or is not to use it.

    Its tensors can batch when the first dimension of all of them is dynamic. Raises ModelLoadError where they cannot
    and are to.
    """
    wanted = wanted_max_batch(max_batch, buckets)
    fixed = [tensor for tensor in (*inputs, *outputs) if tensor.shape[:1] != (-1,)]
    if fixed or not inputs:
        if max_batch or buckets:
            why = f"{fixed[0].name!r} has shape {list(fixed[0].shape)}" if fixed else "there is no input"
            what = f"max_batch = {max_batch}" if max_batch else f"batch_buckets = {list(buckets)}"
            raise ModelLoadError(
                f"{what}, but the file cannot batch: the first dimension of every input and output must be dynamic, "
                f"and {why}"
            )
        return 0
    if buckets and buckets[-1] != wanted:
        raise ModelLoadError(
            f"batch_buckets = {list(buckets)} and max_batch = {wanted}: expected the last bucket to be max_batch"
        )
    return wanted


def batch_buckets(max_batch: int, buckets: Sequence[int] = ()) -> list[int]:
    """Rows of each bucket, ascending: those that are given, else the powers of two below max_batch, and max_batch."""
    if buckets:
        return list(buckets)
    return [*(1 << power for power in range(max_batch.bit_length()) if 1 << power < max_batch), max_batch]


def plan_profiles(inputs: Sequence[Tensor], max_batch: int, options: Options) -> list[Profile]:
    """The profiles of a network, in the order of the buckets; none where every dimension is fixed.

    Raises ModelLoadError for an input whose dynamic dimensions are not given, or not as the file has them.
    """
    unknown = sorted(set(options.profiles) - {tensor.name for tensor in inputs})
    if unknown:
        known = ", ".join(repr(tensor.name) for tensor in inputs)
        raise ModelLoadError(f"backend_options.profiles.{unknown[0]}: there is no such input; the file has {known}")
    if all(-1 not in tensor.shape for tensor in inputs):
        return []
    lead = 1 if max_batch else 0
    ranges = {tensor.name: _row_range(tensor, lead, options.profiles) for tensor in inputs if -1 in tensor.shape}
    if not max_batch:
        return [ranges]
    profiles = []
    low = 1
    for rows in batch_buckets(max_batch, options.batch_buckets):
        profiles.append({name: Range((low, *r.low), (rows, *r.opt), (rows, *r.high)) for name, r in ranges.items()})
        low = rows + 1
    return profiles


def _row_range(tensor: Tensor, lead: int, given: Mapping[str, ShapeRange]) -> Range:
    """The shapes of a row of an input, of all of it without a batch dimension."""
    shape = tensor.shape[lead:]
    asked = given.get(tensor.name)
    key = f"backend_options.profiles.{tensor.name}"
    if asked is None:
        if -1 in shape:
            raise ModelLoadError(
                f"input {tensor.name!r} has dynamic dimensions {list(shape)}{' in a row' if lead else ''}: expected "
                f"[{key}] with min, opt and max of {len(shape)} numbers each, the shapes to build for"
            )
        return Range(shape, shape, shape)
    for word, sizes in (("min", asked.min), ("opt", asked.opt), ("max", asked.max)):
        if len(sizes) != len(shape) or any(d not in (-1, size) for d, size in zip(shape, sizes, strict=True)):
            raise ModelLoadError(f"{key}.{word} = {list(sizes)}: the file has {list(shape)}, -1 being any size")
    return Range(asked.min, asked.opt, asked.max)
