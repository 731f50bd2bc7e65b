"""What a lane does on the device to an input before the model reads it, and to an output before it comes back.

A step is made for a model once and opened for each lane, where it has buffers of its own. Whoever runs a batch says
what he brings and wants: an input that is `Raw` goes through its step, an output whose index is `Finished` comes back
through its own; others are the model's, as ever, so that a model is warmed and recorded as if there were no steps.
Everything is put into the lane's stream; nothing waits.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from headrace.backends.buffers import lay
from headrace.backends.device import DeviceError, DeviceOutOfMemory
from headrace_kernels.images import PLACEMENT, placements
from headrace_kernels.interface import KernelsUnavailable
from headrace_kernels.operations import Dequantize, Quantize, SelectTop, TransformImages

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from headrace.backends.device import Device, HostMemory, Memory, Stream
    from headrace.messages import Buffer
    from headrace_kernels.images import ImageTransform
    from headrace_kernels.interface import Bound
    from headrace_kernels.operations import Operation

    Array = np.ndarray[Any, Any]
    Shape = tuple[int, ...]

FIRST_PIXELS = 64 << 20
"""Bytes that the pixels of a batch get at first, at most; they get more when a batch needs it."""


@dataclass(frozen=True, slots=True)
class Raw:
    """An input as clients have sent it, for the step that makes it. parts, shape: see `engine.processing.InputStep`."""

    parts: Sequence[Buffer]
    shape: Shape


class Finished(int):
    """The index of an output that is to come back through its step: what `Lane.result` gives is then a tuple."""


class OpenInput(Protocol):
    """The step of an input in one lane."""

    def put(self, raw: Raw, nbytes: int) -> None:
        """Puts into the stream what makes the first `nbytes` bytes of the model's input. Raises ValueError."""
        ...

    def close(self) -> None:
        """Frees its buffers. Nothing may be under way."""
        ...


class OpenOutput(Protocol):
    """The step of an output in one lane."""

    def fetch(self, nbytes: int) -> None:
        """Puts into the stream what becomes of the first `nbytes` bytes of the model's output, and its way back."""
        ...

    def result(self, shape: Shape) -> tuple[Array, ...]:
        """What has come back, where it lies. shape: of the model's output."""
        ...

    def close(self) -> None:
        """Frees its buffers. Nothing may be under way."""
        ...


class LaneInputStep(Protocol):
    """The step of an input of a model. source: of its kernels."""

    source: ClassVar[str]

    def open(self, device: Device, stream: Stream, target: Memory) -> OpenInput:
        """For a lane whose place for the model's input is `target`. Raises `InstanceLost`."""
        ...


class LaneOutputStep(Protocol):
    """The step of an output of a model. source: of its kernels."""

    source: ClassVar[str]

    def open(self, device: Device, stream: Stream, source: Memory) -> OpenOutput:
        """For a lane whose place for the model's output is `source`. Raises `InstanceLost`."""
        ...


@dataclass(frozen=True, slots=True)
class LaneSteps:
    """The steps of a model, by the places of inputs and outputs in its signature."""

    inputs: Mapping[int, LaneInputStep] = field(default_factory=dict)
    outputs: Mapping[int, LaneOutputStep] = field(default_factory=dict)


NO_STEPS = LaneSteps()


@runtime_checkable
class TakesSteps(Protocol):
    """A `backends.base.LoadedModel` whose instances have lanes."""

    def take_steps(self, steps: LaneSteps) -> str:
        """From now on, lanes of new instances have these steps. Returns why they cannot, empty if they can."""
        ...


def refusal(devices: Sequence[Device], steps: LaneSteps) -> str:
    """Why the kernels of these steps cannot run on these devices; empty if they can."""
    sources = {step.source for step in steps.inputs.values()} | {step.source for step in steps.outputs.values()}
    try:
        for device in devices:
            kernels = device.kernels()
            for source in sorted(sources):
                kernels.load(source)
    except KernelsUnavailable as error:
        return str(error)
    return ""


class _Kernels:
    """Operations on the memory of one lane, bound when they first run with so many rows."""

    def __init__(self, device: Device, stream: Stream) -> None:
        self._kernels = device.kernels()
        self._stream = self._kernels.stream(stream.handle)
        self._bound: dict[int, Bound] = {}

    def run(self, rows: int, operation: Operation, memory: Mapping[str, Memory]) -> None:
        """Puts an operation into the stream; it and the memory are the same whenever `rows` are."""
        bound = self._bound.get(rows)
        if bound is None:
            addresses = {name: each.pointer for name, each in memory.items()}
            bound = self._bound[rows] = self._kernels.bind(operation, addresses)
        bound(self._stream)

    def forget(self) -> None:
        """The memory is another one from now on."""
        self._bound.clear()


class _Pair:
    """Memory of the host and of the device, of one size, between which a stream copies."""

    def __init__(self, device: Device, nbytes: int) -> None:
        with ExitStack() as opened:
            self.device: Memory = device.allocate(nbytes)
            opened.callback(self.device.close)
            self.host: HostMemory = device.pin(nbytes)
            opened.callback(self.host.close)
            self._opened = opened.pop_all()
        self.nbytes = nbytes

    def upload(self, stream: Stream, nbytes: int) -> None:
        stream.upload(self.device, self.host, nbytes)

    def download(self, stream: Stream, nbytes: int) -> None:
        stream.download(self.host, self.device, nbytes)

    def close(self) -> None:
        self._opened.close()


@dataclass(frozen=True, slots=True)
class ImagesOnDevice:
    """Images of any size, resized and normalised by the device, which gets their bytes as they came."""

    transform: ImageTransform
    source: ClassVar[str] = TransformImages.source

    def open(self, device: Device, stream: Stream, target: Memory) -> OpenInput:
        """See `LaneInputStep`."""
        return _OpenImages(self.transform, device, stream, target)


class _OpenImages:
    def __init__(self, transform: ImageTransform, device: Device, stream: Stream, target: Memory) -> None:
        self._transform = transform
        self._device = device
        self._stream = stream
        self._target = target
        pixels = transform.channels * transform.height * transform.width
        self._row_bytes = pixels * np.dtype(transform.dtype).itemsize
        rows = target.nbytes // self._row_bytes
        self._kernels = _Kernels(device, stream)
        self._table = _Pair(device, rows * len(PLACEMENT) * 8)
        try:
            self._pixels = _Pair(device, min(rows * pixels, FIRST_PIXELS))
        except BaseException:
            self._table.close()
            raise

    def put(self, raw: Raw, nbytes: int) -> None:
        """See `OpenInput`. Rows beyond the images are padding."""
        flat: list[Buffer] = []
        sizes: list[tuple[int, int]] = []
        for part in raw.parts:
            view = memoryview(part)
            if view.ndim > 1:
                count, height, width, _ = view.shape or ()
                view = view.cast("B")
            else:
                height, width, channels = raw.shape[-3:]
                count = len(view) // (height * width * channels)
            sizes += [(height, width)] * count
            flat.append(view)
        total = sum(map(len, flat))
        rows = nbytes // self._row_bytes
        table = placements(sizes, self._transform, rows=rows)
        if len(table) > rows:
            raise ValueError(f"{len(table)} images, at most {rows} fit")
        self._reserve(total)
        lay(self._pixels.host.array.data[:total], flat)
        self._table.host.array[: table.nbytes] = table.reshape(-1).view(np.uint8)
        self._pixels.upload(self._stream, total)
        self._table.upload(self._stream, table.nbytes)
        self._kernels.run(
            rows,
            TransformImages(self._transform, rows, self._pixels.nbytes),
            {"pixels": self._pixels.device, "table": self._table.device, "out": self._target},
        )

    def close(self) -> None:
        """See `OpenInput`."""
        self._table.close()
        self._pixels.close()

    def _reserve(self, nbytes: int) -> None:
        """Room for the pixels of a batch. Nothing is under way: one batch at a time is in a lane."""
        if nbytes <= self._pixels.nbytes:
            return
        try:
            larger = _Pair(self._device, nbytes + nbytes // 4)
        except DeviceOutOfMemory as error:  # this batch does not fit; others will
            raise DeviceError(f"there is no memory for {nbytes} bytes of pixels in a batch: {error}") from error
        self._pixels.close()
        self._pixels = larger
        self._kernels.forget()


@dataclass(frozen=True, slots=True)
class Linear:
    """Between FP32 and 8-bit integers. scale: FP32 [channels]; zero_point: of the integers' dtype, [channels].

    axis: the dimension of the channels, the batch's counted; None: one for all. dims: of a row.
    """

    scale: Array
    zero_point: Array
    axis: int | None
    dims: Shape


class _OpenLinear:
    """Buffers for the values as FP32, as large as a batch of the integers `memory` can be, and the parameters."""

    def __init__(self, linear: Linear, device: Device, stream: Stream, memory: Memory) -> None:
        self._linear = linear
        self._stream = stream
        self._memory = memory
        self._row = int(np.prod(linear.dims, dtype=np.int64))
        self._kernels = _Kernels(device, stream)
        with ExitStack() as opened:
            self._real = _opened(device, memory.nbytes * 4, opened)
            self._scale = _opened(device, linear.scale.nbytes, opened)
            self._zero = _opened(device, linear.zero_point.nbytes, opened)
            for pair, values in ((self._scale, linear.scale), (self._zero, linear.zero_point)):
                pair.host.array[:] = values.view(np.uint8)
                pair.upload(stream, values.nbytes)
            self._opened = opened.pop_all()

    def _run(self, kind: type[Quantize | Dequantize], rows: int, x: Memory, out: Memory) -> None:
        linear = self._linear
        operation = kind((rows, *linear.dims), linear.axis, "float32", linear.zero_point.dtype.name, zero_point=True)
        memory = {"x": x, "scale": self._scale.device, "zero_point": self._zero.device, "out": out}
        self._kernels.run(rows, operation, memory)

    def close(self) -> None:
        """Frees its buffers. Nothing may be under way."""
        self._opened.close()


@dataclass(frozen=True, slots=True)
class QuantizedOnDevice:
    """FP32 of clients to the 8-bit integers of the model."""

    linear: Linear
    source: ClassVar[str] = Quantize.source

    def open(self, device: Device, stream: Stream, target: Memory) -> OpenInput:
        """See `LaneInputStep`."""
        return _OpenQuantized(self.linear, device, stream, target)


class _OpenQuantized(_OpenLinear):
    def put(self, raw: Raw, nbytes: int) -> None:
        """See `OpenInput`."""
        given = sum(map(len, raw.parts))
        lay(self._real.host.array.data[:given], raw.parts)
        self._real.host.array[given : 4 * nbytes] = 0
        self._real.upload(self._stream, 4 * nbytes)
        self._run(Quantize, nbytes // self._row, self._real.device, self._memory)


@dataclass(frozen=True, slots=True)
class DequantizedOnDevice:
    """The 8-bit integers of the model to FP32 for clients."""

    linear: Linear
    source: ClassVar[str] = Dequantize.source

    def open(self, device: Device, stream: Stream, source: Memory) -> OpenOutput:
        """See `LaneOutputStep`."""
        return _OpenDequantized(self.linear, device, stream, source)


class _OpenDequantized(_OpenLinear):
    def fetch(self, nbytes: int) -> None:
        """See `OpenOutput`."""
        self._run(Dequantize, nbytes // self._row, self._memory, self._real.device)
        self._real.download(self._stream, 4 * nbytes)

    def result(self, shape: Shape) -> tuple[Array, ...]:
        """See `OpenOutput`."""
        return (_as(self._real, np.float32, shape),)


@dataclass(frozen=True, slots=True)
class TopKOnDevice:
    """Logits to the k greatest, which alone come back. classes: the last dimension. dtype: of the logits."""

    k: int
    softmax: bool
    classes: int
    dtype: str
    source: ClassVar[str] = SelectTop.source

    def open(self, device: Device, stream: Stream, source: Memory) -> OpenOutput:
        """See `LaneOutputStep`."""
        return _OpenTopK(self, device, stream, source)


class _OpenTopK:
    def __init__(self, step: TopKOnDevice, device: Device, stream: Stream, source: Memory) -> None:
        self._step = step
        self._stream = stream
        self._source = source
        self._row = step.classes * np.dtype(step.dtype).itemsize
        self._kernels = _Kernels(device, stream)
        rows = source.nbytes // self._row
        with ExitStack() as opened:
            self._values = _opened(device, rows * step.k * 4, opened)
            self._indices = _opened(device, rows * step.k * 4, opened)
            self._opened = opened.pop_all()

    def fetch(self, nbytes: int) -> None:
        """See `OpenOutput`."""
        step, rows = self._step, nbytes // self._row
        self._kernels.run(
            rows,
            SelectTop(rows, step.classes, step.k, step.softmax, step.dtype),
            {"logits": self._source, "values": self._values.device, "indices": self._indices.device},
        )
        self._values.download(self._stream, rows * step.k * 4)
        self._indices.download(self._stream, rows * step.k * 4)

    def result(self, shape: Shape) -> tuple[Array, ...]:
        """See `OpenOutput`."""
        shape = (*shape[:-1], self._step.k)
        return _as(self._values, np.float32, shape), _as(self._indices, np.int32, shape)

    def close(self) -> None:
        """See `OpenOutput`."""
        self._opened.close()


def _opened(device: Device, nbytes: int, opened: ExitStack) -> _Pair:
    pair = _Pair(device, nbytes)
    opened.callback(pair.close)
    return pair


def _as(pair: _Pair, dtype: type[np.generic[Any]], shape: Shape) -> Array:
    nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    return pair.host.array[:nbytes].view(dtype).reshape(shape)
