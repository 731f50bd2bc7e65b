"""A batch in flight whose dimensions vary: buffers that grow with what comes, outputs where ONNX Runtime puts them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from headrace.backends.base import InstanceLost
from headrace.backends.buffers import lay
from headrace.backends.device import DeviceOutOfMemory
from headrace.backends.onnxruntime.bound import ASYNCHRONOUS, HOST, Form, element_of, run_filled
from headrace.backends.onnxruntime.feeds import numpy_of
from headrace.backends.onnxruntime.placement import inputs_on_host, outputs_on_host
from headrace.backends.onnxruntime.sessions import run_options
from headrace.datatypes import DATATYPES
from headrace.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    import onnxruntime as ort

    from headrace.backends.device import Device, HostMemory, Memory
    from headrace.backends.onnxruntime.executor import Executor
    from headrace.backends.onnxruntime.gpu_options import GpuOptions
    from headrace.messages import Buffer, Signature, TensorSpec

    Array = np.ndarray[Any, Any]
    Shape = tuple[int, ...]

FIRST_BYTES = 64 << 10
"""What a buffer has at least; it grows by doubling."""


class TooLarge(Exception):
    """The device has no memory left for a batch of this size; it goes on with others."""


@dataclass(slots=True)
class _Borrowed:
    """Memory of the device that belongs to ONNX Runtime."""

    pointer: int
    nbytes: int

    def close(self) -> None:
        """It is freed by who has it."""


class _Growing:
    """Page-locked memory, and memory of the device if `there`, for one tensor; at first none."""

    def __init__(self, device: Device, *, there: bool) -> None:
        self._device = device
        self._there = there
        self.host: HostMemory | None = None
        self.memory: Memory | None = None

    def need(self, nbytes: int) -> None:
        """Has it hold so many bytes; what it held is gone. Raises TooLarge, and then it holds none."""
        if self.host is not None and self.host.nbytes >= nbytes:
            return
        self.close()
        size = max(FIRST_BYTES, 1 << (nbytes - 1).bit_length() if nbytes else 0)
        try:
            if self._there:
                self.memory = self._device.allocate(size)
            self.host = self._device.pin(size)
        except DeviceOutOfMemory as error:
            self.close()
            raise TooLarge(f"a tensor of {nbytes} bytes: {error}") from error

    def close(self) -> None:
        """Frees it. Nothing may be under way."""
        for memory in (self.memory, self.host):
            if memory is not None:
                memory.close()
        self.memory = self.host = None


class FlexibleInstance:
    """One batch in flight of a model with dimensions that vary. Not for two threads at once.

    closed: called at its end. Its buffers grow while it serves. That the device has no memory left for a batch is an
    error of that batch: with another one it may be enough.
    """

    def __init__(
        self, executor: Executor, signature: Signature, options: GpuOptions, closed: Callable[[], None]
    ) -> None:
        self.device = executor.device
        self._executor = executor
        self._signature = signature
        self._closed = closed
        made = run_options(options, **ASYNCHRONOUS)
        assert made is not None
        self._options = made
        on_host = inputs_on_host(executor.session)
        self._inputs = [_Growing(executor.device, there=spec.name not in on_host) for spec in signature.inputs]
        self._on_host = outputs_on_host(executor.session)
        self._outputs = [_Growing(executor.device, there=False) for _ in signature.outputs]
        executor.device.use()
        self._stream = executor.device.stream(busy_wait=options.busy_wait)
        self._binding: ort.IOBinding = executor.session.io_binding()

    def __repr__(self) -> str:
        return f"<FlexibleInstance of {self._executor!r}>"

    def run(
        self, inputs: Sequence[Sequence[Buffer]], shapes: Sequence[Shape], outputs: Sequence[int]
    ) -> Sequence[Array]:
        """See `backends.base.Instance`."""
        try:
            self.device.use()
            for at, spec in enumerate(self._signature.inputs):
                self._upload(at, spec, inputs[at], shapes[at])
            self._executor.compute(self._stream, lambda: self._launch(outputs))
            results = self._download(outputs)
            self._stream.synchronize()
        except Exception as error:
            self._executor.failed(error, self._stream, for_good=False)
            raise
        finally:
            self._binding.clear_binding_outputs()  # else the next run would be given them, of another shape
        return results

    def close(self) -> None:
        """See `backends.base.Instance`."""
        with suppress(InstanceLost):
            self.device.use()
        del self._binding
        for buffer in (*self._inputs, *self._outputs):
            buffer.close()
        self._stream.close()
        self._closed()

    def _upload(self, at: int, spec: TensorSpec, parts: Sequence[Buffer], shape: Shape) -> None:
        nbytes = DATATYPES[spec.datatype].itemsize * prod(shape)
        buffer = self._inputs[at]
        buffer.need(nbytes)
        assert buffer.host is not None
        lay(buffer.host.array.data[:nbytes], parts)
        place, pointer = HOST, buffer.host.pointer
        if buffer.memory is not None:
            self._stream.upload(buffer.memory, buffer.host, nbytes)
            place, pointer = (self.device.kind, self.device.index), buffer.memory.pointer
        self._binding.bind_input(spec.name, *place, element_of(spec), shape, pointer)

    def _launch(self, outputs: Sequence[int]) -> None:
        for index in outputs:
            name = self._signature.outputs[index].name
            # else ONNX Runtime copies it, beside our stream, to where what was computed before may still be at work
            place = HOST if name in self._on_host else (self.device.kind, self.device.index)
            self._binding.bind_output(name, *place)
        self._executor.session.run_with_iobinding(self._binding, self._options)

    def _download(self, outputs: Sequence[int]) -> list[Array]:
        """Puts copies of the outputs into the stream; they are there when it has been waited for."""
        results = []
        for index, value in zip(outputs, self._binding.get_outputs(), strict=True):
            if self._signature.outputs[index].name in self._on_host:
                results.append(numpy_of(value))
                continue
            shape = tuple(value.shape())
            dtype = DATATYPES[self._signature.outputs[index].datatype].numpy
            nbytes = dtype.itemsize * prod(shape)
            buffer = self._outputs[index]
            buffer.need(nbytes)
            assert buffer.host is not None
            self._stream.download(buffer.host, _Borrowed(value.data_ptr(), nbytes), nbytes)
            results.append(buffer.host.array[:nbytes].view(dtype).reshape(shape))
        return results


def find_forms(
    executor: Executor, signature: Signature, options: GpuOptions, told: Sequence[Sequence[Shape]], rows: int
) -> list[Form]:
    """The forms of rows whose inputs have the dimensions in `told`: what outputs have is seen in runs of `rows` rows.

    Raises InstanceLost, and ModelLoadError if a run fails, or dimensions of outputs do not follow from those of inputs.
    """
    instance = FlexibleInstance(executor, signature, options, lambda: None)
    try:
        return [_form(instance, signature, tuple(map(tuple, inputs)), rows) for inputs in told]
    finally:
        instance.close()


def _form(instance: FlexibleInstance, signature: Signature, inputs: tuple[Shape, ...], rows: int) -> Form:
    what = f"{rows} rows, {' and '.join(map(str, inputs))} each,"
    try:
        of_zeros, of_ones = (
            [array.shape for array in run_filled(instance, signature, inputs, rows, value)] for value in (0, 1)
        )
    except InstanceLost:
        raise
    except Exception as error:
        raise ModelLoadError(f"a first run of {what} failed: {error}") from error
    batch = (rows,) if signature.max_batch else ()
    for spec, shape, other in zip(signature.outputs, of_zeros, of_ones, strict=True):
        if shape != other or shape[: len(batch)] != batch:
            raise ModelLoadError(
                f"output {spec.name!r} of {what} has shape {list(shape)} or {list(other)}: dimensions that do not "
                "follow from those of the inputs cannot be in a CUDA graph"
            )
    return Form(inputs, tuple(shape[len(batch) :] for shape in of_zeros))
