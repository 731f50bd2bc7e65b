"""What is done to an input before a model gets it, and to an output before clients do, in terms of the signature.

The arithmetic is that of `headrace_kernels`, whose references it runs on the processor.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from headrace.backends.lane_steps import DequantizedOnDevice, ImagesOnDevice, Linear, QuantizedOnDevice, TopKOnDevice
from headrace.datatypes import DATATYPES
from headrace.errors import ModelLoadError
from headrace.messages import TensorSpec
from headrace.repository.processing_config import ImageConfig, TopKConfig
from headrace_kernels.images import ImageTransform, placements
from headrace_kernels.reference import dequantize, quantize, top_k, transform_images

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.backends.lane_steps import LaneInputStep, LaneOutputStep
    from headrace.messages import Buffer
    from headrace.repository.processing_config import DequantizeConfig, QuantizeConfig

    Array = np.ndarray[Any, np.dtype[Any]]
    Shape = tuple[int, ...]

FLOATS = ("FP32", "FP16")
QUANTIZED = ("INT8", "UINT8")
MOST_ON_DEVICE = 128
"""Values that a device picks of a row; more are picked by the processor."""


class InputStep(Protocol):
    """From what clients send to an input of the model."""

    @property
    def offered(self) -> TensorSpec:
        """The input as clients see it."""
        ...

    def make(self, parts: Sequence[Buffer], shape: Shape) -> Array:
        """The input of a batch as the model takes it, C-contiguous.

        parts: of each request, the bytes of its rows; where they are ragged, a view of the shape [rows, ...]. shape: of
        all that clients have sent, batch dimension included; -1 where it is ragged.
        """
        ...

    def made(self, shape: Shape) -> Shape:
        """The shape of what `make` makes of so many rows."""
        ...

    def on_device(self) -> LaneInputStep | None:
        """The same for a model on a device; None: it cannot be made there."""
        ...


class OutputStep(Protocol):
    """From an output of the model to what clients get."""

    @property
    def offered(self) -> tuple[TensorSpec, ...]:
        """The outputs in its place, as clients see them."""
        ...

    def make(self, array: Array) -> Sequence[Array]:
        """Those outputs of a batch, C-contiguous."""
        ...

    def on_device(self) -> LaneOutputStep | None:
        """The same for a model on a device; None: it cannot be done there."""
        ...


@dataclass(frozen=True, slots=True)
class Images:
    """Images of any size to the one that the model takes. Also a `pipeline.padding.RaggedRule`.

    batch: what stands before the dimensions of an image in what the model takes: [-1], or [] or [1] without batching.
    """

    offered: TensorSpec
    transform: ImageTransform
    batch: Shape

    @classmethod
    def of(cls, spec: TensorSpec, config: ImageConfig, lead: int) -> Images:
        """For the model's input `spec`; lead: batch dimensions, 0 or 1. Raises ModelLoadError."""
        alone = not lead and len(spec.shape) == 4 and spec.shape[0] == 1  # a batch of one, in a model without batches
        dims = spec.shape[1:] if alone else spec.shape
        if len(dims) != 3 or spec.datatype not in FLOATS:
            raise ModelLoadError(
                f"preprocess.{spec.name}: the model takes {spec.datatype} {_whole(spec, lead)}, an image becomes FP32 "
                f"or FP16 {'[-1,' if lead else '['}channels,height,width]"
            )
        channels, *sides = dims
        height, width = config.size or sides
        if any(own not in (-1, said) for own, said in zip(sides, (height, width), strict=True)):
            raise ModelLoadError(f"preprocess.{spec.name}.size is {[height, width]}, the model takes images of {sides}")
        if min(height, width) < 1:
            raise ModelLoadError(f"preprocess.{spec.name}.size is needed: the model takes images of any size, {sides}")
        try:
            transform = ImageTransform(
                height,
                width,
                channels,
                config.fit,
                config.shorter,
                config.align == "centre",
                config.antialias,
                config.order == "BGR",
                config.scale,
                config.mean,
                config.std,
                config.pad,
                DATATYPES[spec.datatype].numpy.name,
            )
        except ValueError as error:
            raise ModelLoadError(f"preprocess.{spec.name}: {error}") from error
        return cls(TensorSpec(spec.name, "UINT8", (-1, -1, channels)), transform, (-1,) * lead + (1,) * alone)

    def make(self, parts: Sequence[Buffer], shape: Shape) -> Array:
        """See `InputStep`."""
        images: list[Array] = []
        for part in parts:
            view = memoryview(part)
            rows = np.asarray(view) if view.ndim > 1 else np.frombuffer(view, np.uint8).reshape(-1, *shape[-3:])
            images.extend(rows)
        made = transform_images(images, self.transform)
        return made.reshape(*self.batch, *made.shape[1:])

    def made(self, shape: Shape) -> Shape:
        """See `InputStep`."""
        batch = shape[:1] if self.batch == (-1,) else self.batch
        return (*batch, self.transform.channels, self.transform.height, self.transform.width)

    def on_device(self) -> LaneInputStep | None:
        """See `InputStep`."""
        return ImagesOnDevice(self.transform)

    @property
    def typical(self) -> Shape:
        """The dimensions of an image to warm the model with."""
        return (self.transform.height, self.transform.width, self.transform.channels)

    def refusal(self, dims: Shape) -> str:
        """Why an image of these dimensions cannot be taken; empty if it can."""
        if not prod(dims):
            return "expected at least one pixel"
        try:
            placements([(dims[0], dims[1])], self.transform)
        except ValueError as error:
            return str(error)
        return ""


@dataclass(frozen=True, slots=True)
class Quantized:
    """FP32 to the 8-bit integers that the model takes."""

    offered: TensorSpec
    config: QuantizeConfig
    dtype: np.dtype[Any]
    lead: int

    @classmethod
    def of(cls, spec: TensorSpec, config: QuantizeConfig, lead: int) -> Quantized:
        """For the model's input `spec`. Raises ModelLoadError."""
        where = f"preprocess.{spec.name}"
        step = cls(replace(spec, datatype="FP32"), config, _quantized(where, spec), lead)
        _try_linear(where, spec, config, lead, lambda shape: step.make([bytes(4 * prod(shape))], shape))
        return step

    def make(self, parts: Sequence[Buffer], shape: Shape) -> Array:
        """See `InputStep`."""
        values = np.frombuffer(parts[0] if len(parts) == 1 else b"".join(parts), np.float32).reshape(shape)
        return quantize(values, *self.config.per_channel, axis=self.config.axis, dtype=self.dtype)

    def made(self, shape: Shape) -> Shape:
        """See `InputStep`."""
        return shape

    def on_device(self) -> LaneInputStep | None:
        """See `InputStep`."""
        linear = _linear(self.offered, self.config, self.dtype, self.lead)
        return QuantizedOnDevice(linear) if linear else None


@dataclass(frozen=True, slots=True)
class Dequantized:
    """The 8-bit integers that the model gives to FP32."""

    offered: tuple[TensorSpec, ...]
    config: DequantizeConfig
    dtype: np.dtype[Any]
    lead: int

    @classmethod
    def of(cls, spec: TensorSpec, config: DequantizeConfig, lead: int) -> Dequantized:
        """For the model's output `spec`. Raises ModelLoadError."""
        where = f"postprocess.{spec.name}"
        step = cls((replace(spec, datatype="FP32"),), config, _quantized(where, spec), lead)
        _try_linear(where, spec, config, lead, lambda shape: step.make(np.zeros(shape, step.dtype)))
        return step

    def make(self, array: Array) -> Sequence[Array]:
        """See `OutputStep`."""
        return [dequantize(array, *self.config.per_channel, axis=self.config.axis)]

    def on_device(self) -> LaneOutputStep | None:
        """See `OutputStep`."""
        linear = _linear(self.offered[0], self.config, self.dtype, self.lead)
        return DequantizedOnDevice(linear) if linear else None


@dataclass(frozen=True, slots=True)
class TopK:
    """Logits to the k greatest: values, or their softmax, and classes."""

    offered: tuple[TensorSpec, ...]
    k: int
    softmax: bool
    spec: TensorSpec

    @classmethod
    def of(cls, spec: TensorSpec, config: TopKConfig, lead: int) -> TopK:
        """For the model's output `spec`. Raises ModelLoadError."""
        where = f"postprocess.{spec.name}"
        if spec.datatype not in FLOATS or not spec.shape or spec.shape[-1] < 1:
            raise ModelLoadError(
                f"{where}: the model gives {spec.datatype} {_whole(spec, lead)}, top_k takes FP32 or FP16 with the "
                "classes, of a known number, as last dimension"
            )
        if config.k > spec.shape[-1]:
            raise ModelLoadError(f"{where}.k is {config.k}, the model gives {spec.shape[-1]} classes")
        if spec.labels:
            raise ModelLoadError(f"outputs.{spec.name}.labels have no effect where {where} leaves {config.k} classes")
        shape = (*spec.shape[:-1], config.k)
        values = TensorSpec(config.values or f"{spec.name}_values", "FP32", shape)
        indices = TensorSpec(config.indices or f"{spec.name}_indices", "INT32", shape)
        return cls((values, indices), config.k, config.softmax, spec)

    def make(self, array: Array) -> Sequence[Array]:
        """See `OutputStep`."""
        shape = (*array.shape[:-1], self.k)
        found = top_k(array.reshape(-1, array.shape[-1]), self.k, softmax=self.softmax)
        return [found.values.reshape(shape), found.indices.reshape(shape)]

    def on_device(self) -> LaneOutputStep | None:
        """See `OutputStep`. The kernel takes a step for each of the k, and is not meant for many."""
        if not self.spec.fixed or self.k > MOST_ON_DEVICE:
            return None
        return TopKOnDevice(self.k, self.softmax, self.spec.shape[-1], DATATYPES[self.spec.datatype].numpy.name)


def input_step(spec: TensorSpec, config: ImageConfig | QuantizeConfig, lead: int) -> InputStep:
    """What model.toml says of an input. lead: batch dimensions, 0 or 1. Raises ModelLoadError."""
    return Images.of(spec, config, lead) if isinstance(config, ImageConfig) else Quantized.of(spec, config, lead)


def output_step(spec: TensorSpec, config: TopKConfig | DequantizeConfig, lead: int) -> OutputStep:
    """What model.toml says of an output. lead: batch dimensions, 0 or 1. Raises ModelLoadError."""
    return TopK.of(spec, config, lead) if isinstance(config, TopKConfig) else Dequantized.of(spec, config, lead)


def _quantized(where: str, spec: TensorSpec) -> np.dtype[Any]:
    if spec.datatype not in QUANTIZED:
        raise ModelLoadError(f"{where}: the model has {spec.datatype}, quantized are {' and '.join(QUANTIZED)}")
    return DATATYPES[spec.datatype].numpy


def _try_linear(
    where: str,
    spec: TensorSpec,
    config: QuantizeConfig | DequantizeConfig,
    lead: int,
    run: Any,  # noqa: ANN401
) -> None:
    """Scales and zero points fit the datatype and the channels, or it is said here, before the model serves."""
    shape = (1,) * lead + spec.shape
    axis = config.axis
    if axis is not None and not (-len(shape) <= axis < len(shape) and axis % len(shape) >= lead):
        raise ModelLoadError(f"{where}.axis is {axis}, which is no dimension of a row of {_whole(spec, lead)}")
    if axis is not None and shape[axis] < 0:
        raise ModelLoadError(f"{where}.axis is {axis}, of any size in {_whole(spec, lead)}: its channels are not known")
    try:
        run(tuple(max(dim, 1) for dim in shape))
    except (ValueError, OverflowError) as error:
        raise ModelLoadError(f"{where}: {error}") from error


def _linear(
    spec: TensorSpec, config: QuantizeConfig | DequantizeConfig, dtype: np.dtype[Any], lead: int
) -> Linear | None:
    """What the device is told; None if rows are of any size."""
    if not spec.fixed:
        return None
    scale, zero_point = config.per_channel
    axis = config.axis
    if axis is not None and axis >= 0:
        axis -= lead + len(spec.shape)  # from the end, where a batch dimension makes no difference
    return Linear(
        np.atleast_1d(np.array(scale, np.float32)), np.atleast_1d(np.array(zero_point, dtype)), axis, spec.shape
    )


def _whole(spec: TensorSpec, lead: int) -> str:
    return "[" + ",".join(map(str, (-1,) * lead + spec.shape)) + "]"
