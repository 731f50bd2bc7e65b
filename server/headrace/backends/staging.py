"""A batch on its way to a device and back: the buffers and the stream of one batch in flight.

What a request brings is copied once by the processor, into page-locked memory at its place in the batch; from there the
device fetches it by itself, while it computes for another lane. Results come back the same way.
"""

from __future__ import annotations

from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from headrace.backends.base import InstanceLost
from headrace.backends.buffers import lay, typed
from headrace.backends.lane_steps import NO_STEPS, Finished, Raw

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from headrace.backends.device import Device, HostMemory, Memory
    from headrace.backends.lane_steps import LaneSteps, OpenInput, OpenOutput
    from headrace.messages import Buffer, TensorSpec

AnyMemory = TypeVar("AnyMemory", bound="Memory")


class Lane:
    """One batch in flight on a device. Not for two threads at once.

    inputs, outputs: bytes that each tensor takes at most; as attributes, their places on the device until `close`.
    laid: of each input, the page-locked memory that its rows are laid into. steps: of the model, see `lane_steps`.
    busy_wait: of its stream, see `Device.stream`.
    Raises `InstanceLost` where there is no memory for them.
    """

    def __init__(
        self,
        device: Device,
        inputs: Sequence[int],
        outputs: Sequence[int],
        steps: LaneSteps = NO_STEPS,
        *,
        busy_wait: bool = False,
    ) -> None:
        self.device = device
        with ExitStack() as opened:
            device.use()
            self.stream = device.stream(busy_wait=busy_wait)
            opened.callback(self.stream.close)
            self.inputs = _all(device.allocate, inputs, opened)
            self.outputs = _all(device.allocate, outputs, opened)
            self.laid: list[HostMemory] = _all(device.pin, inputs, opened)
            self._from: list[HostMemory] = _all(device.pin, outputs, opened)
            self._makers: dict[int, OpenInput] = {}
            self._finishers: dict[int, OpenOutput] = {}
            for at, before in steps.inputs.items():
                self._makers[at] = before.open(device, self.stream, self.inputs[at])
                opened.callback(self._makers[at].close)
            for at, after in steps.outputs.items():
                self._finishers[at] = after.open(device, self.stream, self.outputs[at])
                opened.callback(self._finishers[at].close)
            self._opened = opened.pop_all()

    def __repr__(self) -> str:
        nbytes = sum(memory.nbytes for memory in (*self.inputs, *self.outputs))
        return f"<Lane on {self.device.name} {self.device.index}, {nbytes} bytes>"

    def lay(self, index: int, parts: Sequence[Buffer] | Raw, nbytes: int, padded: int = 0) -> None:
        """Lays an input's rows, `nbytes` in all, into page-locked memory; zeros behind them as far as `padded`.

        An input that a step makes of what is `Raw` is put into the stream at once, made or not: a graph that is
        recorded knows nothing of it. Raises ValueError if there are more bytes or fewer, or they do not fit.
        """
        memory = self.laid[index].array
        whole = max(nbytes, padded)
        if whole > memory.nbytes:
            raise ValueError(f"{whole} bytes of input {index}, at most {memory.nbytes} fit")
        if isinstance(parts, Raw):
            self._makers[index].put(parts, whole)
            return
        lay(memory.data[:nbytes], parts)
        if padded > nbytes:
            memory[nbytes:padded] = 0
        if index in self._makers:
            self.stream.upload(self.inputs[index], self.laid[index], whole)

    def upload(self, index: int, nbytes: int) -> None:
        """Puts into the stream: the copy of an input to the device. Not of one that has a step, which is there."""
        if index not in self._makers:
            self.stream.upload(self.inputs[index], self.laid[index], nbytes)

    def download(self, index: int, nbytes: int) -> None:
        """Puts into the stream: the copy of an output from the device, through its step if it is `Finished`."""
        if isinstance(index, Finished):
            self._finishers[index].fetch(nbytes)
        else:
            self.stream.download(self._from[index], self.outputs[index], nbytes)

    def result(self, index: int, spec: TensorSpec, shape: tuple[int, ...]) -> Any:  # noqa: ANN401
        """An output that has come back, where it lies: it holds good until the next batch. `Finished`: a tuple."""
        if isinstance(index, Finished):
            return self._finishers[index].result(shape)
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
