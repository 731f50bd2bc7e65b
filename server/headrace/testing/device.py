"""A device in the host's memory: what a backend does with streams and memory can be tested without a GPU.

Nothing that a stream is given happens before somebody waits for it, and then it happens in order: a backend that reads
a result too early finds what was there before. Memory that is freed is filled with a pattern. Work is done by one
thread at a time, whichever waits.
"""

from __future__ import annotations

import ctypes
import threading
from collections import Counter, deque
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.backends.device import DeviceError, DeviceLost, DeviceOutOfMemory
from headrace_kernels.interface import KernelsUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from headrace_kernels.interface import Bound
    from headrace_kernels.operations import Array, Operation

ALIGNMENT = 256
FREED = 0xDD
FRESH = 0xCD

_thread = threading.local()


def device_in_use() -> FakeDevice | None:
    """The device that the calling thread uses, for libraries that go by that."""
    return getattr(_thread, "device", None)


class FakeMemory:
    """Memory of the device or of the host: `array` is all of it, as UINT8."""

    def __init__(self, device: FakeDevice, nbytes: int) -> None:
        raw = np.full(nbytes + ALIGNMENT, FRESH, np.uint8)
        start = -raw.ctypes.data % ALIGNMENT
        self.array: np.ndarray[Any, Any] = raw[start : start + nbytes]
        self.pointer = self.array.ctypes.data
        self.nbytes = nbytes
        self.open = True
        self._device = device

    def close(self) -> None:
        """Frees it."""
        if self.open:
            self.open = False
            self.array[:] = FREED
            self._device.allocated.discard(self)


class FakeEvent:
    """A point in a stream."""

    def __init__(self, stream: FakeStream) -> None:
        self._stream = stream
        self.reached = False

    def synchronize(self) -> None:
        """Does what stands before it."""
        self._stream.run_until(self)

    def milliseconds_since(self, earlier: FakeEvent) -> float:
        """No time passes on this device."""
        if not (self.reached and earlier.reached):
            raise DeviceError("an event has not been reached")
        return 0.0

    def close(self) -> None:
        """Frees it."""


class FakeGraph:
    """Work that was recorded."""

    def __init__(self, work: list[Callable[[], None]]) -> None:
        self.work = work
        self.launches = 0
        self.open = True

    def launch(self, stream: FakeStream) -> None:
        """Puts the work into a stream."""
        if not self.open:
            raise DeviceError("the graph is closed")
        self.launches += 1
        for step in self.work:
            stream.enqueue(step)

    def close(self) -> None:
        """Frees it, and what its work holds."""
        self.open = False
        self.work.clear()


class FakeStream:
    """Work that is done when somebody waits for it. busy_wait: as was asked for."""

    def __init__(self, device: FakeDevice, handle: int, *, busy_wait: bool = False) -> None:
        self.handle = handle
        self.busy_wait = busy_wait
        self.open = True
        self._device = device
        self._pending: deque[Callable[[], None]] = deque()
        self._recording: list[Callable[[], None]] | None = None
        self._with_host = False

    @property
    def capturing(self) -> bool:
        """Whether what it is given is being recorded."""
        return self._recording is not None

    def enqueue(self, step: Callable[[], None], *, with_host: bool = False) -> None:
        """Puts a step of a library that works on this device into the stream; with_host: on the host's memory, too."""
        self._device.check()
        if not self.open:
            raise DeviceError("the stream is closed")
        if self._recording is not None:
            self._recording.append(step)
            self._with_host |= with_host
        else:
            self._pending.append(step)

    def upload(self, target: FakeMemory, source: FakeMemory, nbytes: int) -> None:
        """See `backends.device.Stream`."""
        self._copy(target, source, nbytes)

    def download(self, target: FakeMemory, source: FakeMemory, nbytes: int) -> None:
        """See `backends.device.Stream`."""
        self._copy(target, source, nbytes)

    def _copy(self, target: FakeMemory, source: FakeMemory, nbytes: int) -> None:
        if nbytes > min(target.nbytes, source.nbytes):
            raise DeviceError(f"a copy of {nbytes} bytes, from {source.nbytes} to {target.nbytes}")
        if not (getattr(target, "open", True) and getattr(source, "open", True)):  # a library's own has no such thing
            raise DeviceError("a copy of memory that is freed")

        def copy() -> None:
            ctypes.memmove(target.pointer, source.pointer, nbytes)

        self.enqueue(copy, with_host=True)

    def record(self, *, timed: bool = False) -> FakeEvent:
        """See `backends.device.Stream`."""
        event = FakeEvent(self)

        def reach() -> None:
            event.reached = True

        self.enqueue(reach)
        return event

    def wait(self, event: FakeEvent) -> None:
        """See `backends.device.Stream`."""
        self.enqueue(event.synchronize)

    def run_until(self, event: FakeEvent) -> None:
        """Does what was given, until an event is reached."""
        with self._device.lock:
            while not event.reached:
                if not self._pending:
                    raise DeviceError("an event is waited for that nobody recorded")
                self._pending.popleft()()

    def synchronize(self) -> None:
        """See `backends.device.Stream`."""
        self._device.check()
        if self._recording is not None:
            raise DeviceError("a stream is waited for that is being captured")
        with self._device.lock:
            while self._pending:
                self._pending.popleft()()

    def capture(self, work: Callable[[], None], *, closed: bool = False) -> FakeGraph:
        """See `backends.device.Stream`."""
        self._recording, self._with_host = [], False
        try:
            work()
            if closed and self._with_host:
                raise DeviceError("it copies from or to the host's memory")
            graph = FakeGraph(self._recording)
            self._device.graphs.append(graph)
            return graph
        finally:
            self._recording = None

    def close(self) -> None:
        """See `backends.device.Stream`."""
        self.open = False


class FakeKernels:
    """Operations that NumPy computes, when their stream is waited for. launched: how often each was put into one.

    absent: sources whose code there is not.
    """

    def __init__(self, device: FakeDevice) -> None:
        self.launched: Counter[str] = Counter()
        self.absent: set[str] = set()
        self._device = device

    def load(self, source: str) -> None:
        """See `backends.device.StreamKernels`."""
        if source in self.absent:
            raise KernelsUnavailable(f"there is no code of {source}.cu, as the test wants")

    def stream(self, handle: int) -> FakeStream:
        """See `backends.device.StreamKernels`."""
        return self._device.stream_of(handle)

    def bind(self, operation: Operation, memory: Mapping[str, int]) -> Bound:
        """See `headrace_kernels.interface.Kernels`."""
        operation.check_addresses(memory)
        operation.launches()  # what a GPU would refuse
        arrays = {each.name: _at(memory[each.name], each) for each in operation.arrays()}

        def run(stream: Any = None) -> None:  # noqa: ANN401
            self.launched[type(operation).__name__] += 1
            stream.enqueue(lambda: operation.compute(arrays))

        return run


def _at(address: int, array: Array) -> np.ndarray[Any, Any]:
    raw = np.ctypeslib.as_array((ctypes.c_uint8 * array.nbytes).from_address(address))
    return raw.view(array.dtype).reshape(array.shape)


class FakeDevice:
    """See `backends.device.Device`. memory: bytes that it has.

    lost: set it, and every call raises DeviceLost.
    """

    kind = "cpu"
    architecture = (9, 0)
    driver = 13000

    def __init__(self, index: int = 0, memory: int = 1 << 30) -> None:
        self.index = index
        self.name = "Fake"
        self.uuid = f"GPU-fake-{index}"
        self.lost = False
        self.allocated: set[FakeMemory] = set()
        self.streams: list[FakeStream] = []
        self.lock = threading.RLock()
        self.graphs: list[FakeGraph] = []
        self._memory = memory
        self._kernels = FakeKernels(self)

    def check(self) -> None:
        """Raises DeviceLost if it is."""
        if self.lost:
            raise DeviceLost("the device was lost, as the test wants")

    def use(self) -> None:
        """See `backends.device.Device`."""
        self.check()
        _thread.device = self

    def memory_info(self) -> tuple[int, int]:
        """See `backends.device.Device`."""
        return self._memory - sum(memory.nbytes for memory in self.allocated), self._memory

    def allocate(self, nbytes: int) -> FakeMemory:
        """See `backends.device.Device`."""
        self.check()
        free, _ = self.memory_info()
        if nbytes > free:
            raise DeviceOutOfMemory(f"{nbytes} bytes are asked for, {free} are free")
        memory = FakeMemory(self, nbytes)
        self.allocated.add(memory)
        return memory

    def pin(self, nbytes: int) -> FakeMemory:
        """See `backends.device.Device`."""
        self.check()
        return FakeMemory(self, nbytes)

    def stream(self, *, busy_wait: bool = False) -> FakeStream:
        """See `backends.device.Device`."""
        self.check()
        stream = FakeStream(self, handle=1 + len(self.streams), busy_wait=busy_wait)
        self.streams.append(stream)
        return stream

    def kernels(self) -> FakeKernels:
        """See `backends.device.Device`."""
        self.check()
        return self._kernels

    def stream_of(self, handle: int) -> FakeStream:
        """The stream with a handle, for libraries that were given one."""
        return self.streams[handle - 1]
