"""A plan in a device's memory: what it takes and gives, and with which shapes it runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.backends.device import DeviceOutOfMemory
from headrace.backends.tensorrt.builder import reasons
from headrace.backends.tensorrt.profiles import Range
from headrace.datatypes import DATATYPES
from headrace.errors import ModelLoadError
from headrace.messages import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.backends.device import Device, Memory, Stream
    from headrace.backends.tensorrt import bindings as b
    from headrace.backends.tensorrt.api import Api
    from headrace.backends.tensorrt.profiles import Shape

_DATATYPES = {
    "FLOAT": "FP32",
    "HALF": "FP16",
    "BF16": "BF16",
    "INT8": "INT8",
    "INT32": "INT32",
    "INT64": "INT64",
    "UINT8": "UINT8",
    "BOOL": "BOOL",
}
"""TensorRT's name -> the protocol's. FP8, FP4, INT4 and E8M0 the protocol cannot carry."""


@dataclass(frozen=True, slots=True)
class Face:
    """What an engine takes and gives. Shapes are whole; -1 is a dimension that a profile has a range for.

    profiles: for each, the ranges of the inputs, in their order. scratch: bytes for activations, for any profile.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: tuple[tuple[Range, ...], ...]
    scratch: int

    @property
    def max_batch(self) -> int:
        """Rows of the largest batch; 0: the first dimension of some tensor is fixed."""
        if not self.inputs or any(spec.shape[:1] != (-1,) for spec in (*self.inputs, *self.outputs)):
            return 0
        return max(rows_of(profile)[1] for profile in self.profiles)

    def profile_for(self, shapes: Sequence[Shape], *, batched: bool) -> int | None:
        """The narrowest profile that inputs of these shapes can run with, None if there is none.

        batched: their first dimensions may be padded.
        """
        fitting = [
            (sum(math.prod(limits.high) for limits in profile), at)
            for at, profile in enumerate(self.profiles)
            if all(_within(shape, limits, batched) for shape, limits in zip(shapes, profile, strict=True))
        ]
        return min(fitting)[1] if fitting else None


def rows_of(profile: Sequence[Range]) -> tuple[int, int]:
    """The fewest and the most rows of a profile of inputs that all have a batch dimension."""
    return max(r.low[0] for r in profile), min(r.high[0] for r in profile)


class Engine:
    """A plan that was loaded onto a device. Raises ModelLoadError, `InstanceLost`.

    label: what the log calls the model. weights: bytes of those that are not in the plan. nbytes: of the device's
    memory that it takes, about: those of the weights and of the plan, which holds code and all other weights.
    """

    def __init__(self, api: Api, device: Device, plan: bytes, label: str, weights: int = 0) -> None:
        self.api = api
        self.device = device
        self.label = label
        self.nbytes = len(plan) + weights
        device.use()
        with api.messages.collect() as said:
            self._runtime = api.trt.Runtime(api.messages)  # it must outlive the engine
            self._runtime.engine_host_code_allowed = False  # so is the default
            loaded = self._runtime.deserialize_cuda_engine(plan)
            if loaded is None:
                raise ModelLoadError(f"TensorRT {api.version} cannot load the engine of {label}: {reasons(said)}")
        self._engine = loaded

    def __repr__(self) -> str:
        return f"<Engine of {self.label} on {self.device.name} {self.device.index}, {self.nbytes} bytes>"

    def refit(self, model: bytes, path: str) -> None:
        """Takes its weights from an ONNX file, before anything runs. Raises ModelLoadError; it is spoilt then."""
        trt, messages = self.api.trt, self.api.messages
        self.device.use()
        with messages.collect() as said:
            refitter = trt.Refitter(self._engine, messages)
            parser = trt.OnnxParserRefitter(refitter, messages)
            if not parser.refit_from_bytes(model, path):
                told = [str(parser.get_error(index)) for index in range(parser.num_errors)]
                raise ModelLoadError(f"the weights of {path} are not those of the engine: {reasons(told or said)}")
            missing = refitter.get_missing_weights()
            if missing:
                raise ModelLoadError(f"{path} does not have all weights of the engine: {reasons(missing)}")
            if not refitter.refit_cuda_engine():
                raise ModelLoadError(f"TensorRT cannot put the weights of {path} into the engine: {reasons(said)}")

    def face(self) -> Face:
        """What it takes and gives. Raises ModelLoadError for what this server cannot serve."""
        engine, trt = self._engine, self.api.trt
        names = [engine.get_tensor_name(at) for at in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        outputs = [name for name in names if name not in inputs]
        profiles = range(engine.num_optimization_profiles)
        return Face(
            tuple(self._spec("input", name) for name in inputs),
            tuple(self._spec("output", name) for name in outputs),
            tuple(tuple(self._range(name, profile) for name in inputs) for profile in profiles),
            engine.device_memory_size_v2,
        )

    def context(self, profile: int, stream: Stream) -> b.IExecutionContext:
        """A context for one profile, whose memory others provide, to be run in that stream. Raises ModelLoadError."""
        self.device.use()
        with self.api.messages.collect() as said:
            made = self._engine.create_execution_context(self.api.trt.ExecutionContextAllocationStrategy.USER_MANAGED)
            if made is None or not made.set_optimization_profile_async(profile, stream.handle):
                raise ModelLoadError(f"TensorRT makes no context for profile {profile}: {reasons(said)}")
        return made

    def _spec(self, kind: str, name: str) -> TensorSpec:
        engine, trt = self._engine, self.api.trt
        if engine.is_shape_inference_io(name) or engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
            raise ModelLoadError(
                f"{kind} {name!r} of the engine is in the host's memory, as a shape on which those of other tensors "
                "depend; this backend cannot serve that"
            )
        if engine.get_tensor_format(name) != trt.TensorFormat.LINEAR:
            raise ModelLoadError(f"{kind} {name!r} of the engine is not laid out row by row, expected format LINEAR")
        dtype = engine.get_tensor_dtype(name).name
        if dtype not in _DATATYPES:
            raise ModelLoadError(f"{kind} {name!r} of the engine is {dtype}, which the protocol cannot carry")
        return TensorSpec(name, _DATATYPES[dtype], tuple(engine.get_tensor_shape(name)))

    def _range(self, name: str, profile: int) -> Range:
        fixed = tuple(self._engine.get_tensor_shape(name))
        if -1 not in fixed:  # for which profiles need not say anything
            return Range(fixed, fixed, fixed)
        low, opt, high = (tuple(shape) for shape in self._engine.get_tensor_profile_shape(name, profile))
        return Range(low, opt, high)


class Context:
    """An execution context with its tensors at their places. Not for two threads at once.

    inputs, outputs: where they are on the device. scratch: for its activations; contexts that never run at the same
    time can share it.
    """

    def __init__(
        self, engine: Engine, face: Face, profile: int, stream: Stream, places: Sequence[Memory], scratch: Memory
    ) -> None:
        self._api = engine.api
        self._stream = stream
        self._inputs = [spec.name for spec in face.inputs]
        self._outputs = [spec.name for spec in face.outputs]
        self._context = engine.context(profile, stream)
        self._context.set_device_memory(scratch.pointer, scratch.nbytes)
        for name, place in zip((*self._inputs, *self._outputs), places, strict=True):
            if not self._context.set_tensor_address(name, place.pointer):
                raise ModelLoadError(f"TensorRT does not take the place of tensor {name!r}")
        self._shapes: list[Shape] = []
        self._results: list[Shape] = []

    def shape(self, shapes: Sequence[Shape]) -> list[Shape]:
        """Sets the shapes of the inputs. Returns those of the outputs. Raises ValueError."""
        if self._shapes != [*shapes]:
            self._shapes = []  # unknown, should any of them be refused
            self._results = infer(self._api, self._context, self._inputs, shapes, self._outputs)
            self._shapes = list(shapes)
        return self._results

    def enqueue(self) -> None:
        """Puts a run into the stream. Raises RuntimeError in TensorRT's words, `InstanceLost`."""
        with self._api.messages.collect() as said:
            if not self._context.execute_async_v3(self._stream.handle):
                why = f"TensorRT does not run: {reasons(said)}"
                # what it allocates, it asks of CUDA itself; only its words tell
                raise DeviceOutOfMemory(why) if "out of memory" in why.lower() else RuntimeError(why)


def infer(
    api: Api, context: b.IExecutionContext, inputs: Sequence[str], shapes: Sequence[Shape], outputs: Sequence[str]
) -> list[Shape]:
    """The shapes that outputs have for those of the inputs. Raises ValueError."""
    with api.messages.collect() as said:
        for name, shape in zip(inputs, shapes, strict=True):
            if not context.set_input_shape(name, shape):
                raise ValueError(f"TensorRT does not take shape {list(shape)} of input {name!r}: {reasons(said)}")
        unknown = context.infer_shapes()
        if unknown:
            raise ValueError(f"the shapes of {unknown} do not follow from those of the inputs: {reasons(said)}")
    return [tuple(context.get_tensor_shape(name)) for name in outputs]


def nbytes(spec: TensorSpec, shape: Shape) -> int:
    """Bytes of a tensor of that shape."""
    return DATATYPES[spec.datatype].itemsize * math.prod(shape)


def _within(shape: Shape, limits: Range, batched: bool) -> bool:
    """Whether a tensor has a shape within a profile's limits. batched: it may have fewer rows."""
    lead = 1 if batched else 0
    return (
        len(shape) == len(limits.high)
        and all(size <= high for size, high in zip(shape, limits.high, strict=True))
        and all(size >= low for size, low in zip(shape[lead:], limits.low[lead:], strict=True))
    )
