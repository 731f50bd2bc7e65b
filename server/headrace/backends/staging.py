"""A batch on its way to a device and back: the buffers and the stream of one batch in flight.

What a request brings is copied once by the processor, into page-locked memory at its place in the batch; from there the
device fetches it by itself, while it computes for another lane. Results come back the same way.
"""

from __future__ import annotations

from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from headrace.backends.base import InstanceLost
from headrace.backends.buffers import lay, typed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

    from headrace.backends.device import Device, HostMemory, Memory
    from headrace.messages import Buffer, TensorSpec

AnyMemory = TypeVar("AnyMemory", bound="Memory")


class Lane:
    """One batch in flight on a device. Not for two threads at once.

    inputs, outputs: bytes that each tensor takes at most; as attributes, their places on the device until `close`.
    Raises `InstanceLost` where there is no memory for them.
    """

    def __init__(self, device: Device, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        self.device = device
        with ExitStack() as opened:
            device.use()
            self.stream = device.stream()
            opened.callback(self.stream.close)
            self.inputs = _all(device.allocate, inputs, opened)
            self.outputs = _all(device.allocate, outputs, opened)
            self._to: list[HostMemory] = _all(device.pin, inputs, opened)
            self._from: list[HostMemory] = _all(device.pin, outputs, opened)
            self._opened = opened.pop_all()

    def __repr__(self) -> str:
        nbytes = sum(memory.nbytes for memory in (*self.inputs, *self.outputs))
        return f"<Lane on {self.device.name} {self.device.index}, {nbytes} bytes>"

    def lay(self, index: int, parts: Sequence[Buffer], nbytes: int, padded: int = 0) -> None:
        """Lays an input's rows, `nbytes` in all, into page-locked memory; zeros behind them as far as `padded`.

        Raises ValueError if they are more or fewer, or do not fit.
        """
        memory = self._to[index].array
        if max(nbytes, padded) > memory.nbytes:
            raise ValueError(f"{max(nbytes, padded)} bytes of input {index}, at most {memory.nbytes} fit")
        lay(memory.data[:nbytes], parts)
        if padded > nbytes:
            memory[nbytes:padded] = 0

    def upload(self, index: int, nbytes: int) -> None:
        """Puts into the stream: the copy of an input to the device."""
        self.stream.upload(self.inputs[index], self._to[index], nbytes)

    def download(self, index: int, nbytes: int) -> None:
        """Puts into the stream: the copy of an output from the device."""
        self.stream.download(self._from[index], self.outputs[index], nbytes)

    def result(self, index: int, spec: TensorSpec, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        """An output that has come back, where it lies: it holds good until the next batch."""
        return typed(self._from[index].array, spec, 0, shape)

    def close(self) -> None:
        """Frees everything. Nothing may be under way."""
        with suppress(InstanceLost):
            self.device.use()
        self._opened.close()


def _all(make: Callable[[int], AnyMemory], sizes: Sequence[int], opened: ExitStack) -> list[AnyMemory]:
    made: list[AnyMemory] = []
    for nbytes in sizes:
        made.append(make(nbytes))
        opened.callback(made[-1].close)
    return made
