"""What backends ask of a device with memory of its own: streams, memory, copies, events, graphs.

`backends.cuda` is the implementation for GPUs; `testing.device` plays one in the host's memory. A device is used from
many threads; each calls `Device.use` before the first call of a batch. One stream, event or graph is used by one thread
at a time. Every call raises `DeviceOutOfMemory` or `DeviceLost`, both `InstanceLost`, or `DeviceError` for anything
else that the device refuses.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

from headrace.backends.base import InstanceLost
from headrace.errors import ModelLoadError
from headrace_kernels.interface import Kernels

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np


class DeviceError(Exception):
    """The device refused a call; it can go on being used."""


class DeviceLost(InstanceLost):
    """The device, or this process's context on it, takes no more work: all that the backend has there is lost."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message, with_others=True)


class DeviceOutOfMemory(InstanceLost):
    """The device has no memory left for what was asked."""


class Memory(Protocol):
    """Memory of the device. pointer: its address there."""

    pointer: int
    nbytes: int

    def close(self) -> None:
        """Frees it. Nothing that is under way may use it."""
        ...


class HostMemory(Memory, Protocol):
    """Memory of the host that the device reads and writes by itself (page-locked). array: UINT8 [nbytes], the same."""

    array: np.ndarray[Any, Any]


class Event(Protocol):
    """A point in a stream."""

    def synchronize(self) -> None:
        """Waits on this thread until the stream has got there."""
        ...

    def milliseconds_since(self, earlier: Event) -> float:
        """Time between two timed events that have been reached, in milliseconds."""
        ...

    def close(self) -> None:
        """Frees it."""
        ...


class Graph(Protocol):
    """Work that was recorded once and is launched as a whole."""

    def launch(self, stream: Stream) -> None:
        """Puts the work into a stream."""
        ...

    def close(self) -> None:
        """Frees it."""
        ...


class Stream(Protocol):
    """Work of the device that is done in order, beside that of other streams. handle: for libraries that take one."""

    handle: int

    def upload(self, target: Memory, source: HostMemory, nbytes: int) -> None:
        """Puts into the stream: a copy of the first `nbytes` bytes to the device."""
        ...

    def download(self, target: HostMemory, source: Memory, nbytes: int) -> None:
        """Puts into the stream: a copy of the first `nbytes` bytes from the device."""
        ...

    def record(self, *, timed: bool = False) -> Event:
        """An event behind all that the stream has been given."""
        ...

    def wait(self, event: Event) -> None:
        """What the stream is given from now on is done when the event, of another stream, has been reached."""
        ...

    def synchronize(self) -> None:
        """Waits on this thread until everything is done. Raises what went wrong with any of it."""
        ...

    def capture(self, work: Callable[[], None], *, closed: bool = False) -> Graph:
        """A graph of what `work` puts into this stream; none of it is done. Raises DeviceError if it cannot be one.

        closed: nor may it copy from or to the host's memory, or call the host: what lies there when it is launched need
        not be what was there.
        """
        ...

    def close(self) -> None:
        """Frees it when its work is done."""
        ...


class StreamKernels(Kernels[int], Protocol):
    """Kernels that run in streams, on memory at addresses."""

    def load(self, source: str) -> None:
        """Loads the code of a source of kernels beforehand. Raises `KernelsUnavailable` of that package."""
        ...

    def stream(self, handle: int) -> Any:  # noqa: ANN401
        """What an operation that is bound takes for the stream of that handle, which must outlive it."""
        ...


class Device(Protocol):
    """One device. name: as its maker calls it. architecture: major and minor compute capability.

    driver: version of the driver's API, such as 13000. kind: what ONNX Runtime calls its memory.
    """

    index: int
    name: str
    uuid: str
    architecture: tuple[int, int]
    driver: int
    kind: str

    def use(self) -> None:
        """Makes the device that of the calling thread."""
        ...

    def memory_info(self) -> tuple[int, int]:
        """Bytes that are free, and bytes in all."""
        ...

    def allocate(self, nbytes: int) -> Memory:
        """Memory of the device, of undefined content, aligned to 256 bytes."""
        ...

    def pin(self, nbytes: int) -> HostMemory:
        """Memory of the host that the device copies from and to by itself."""
        ...

    def stream(self, *, busy_wait: bool = False) -> Stream:
        """A stream that does not wait for the default one.

        busy_wait: whether `Stream.synchronize` asks again and again, on a core of its own, instead of being woken.
        """
        ...

    def kernels(self) -> StreamKernels:
        """The kernels of `headrace_kernels`, on this device's memory. Raises `KernelsUnavailable` of that package."""
        ...


OPENER = "headrace.backends.cuda:open_device"
"""Where devices come from, as `module:attribute`; called with an index."""


def open_device(index: int, opener: str = OPENER) -> Device:
    """The device of that index. Raises ModelLoadError that says what is missing: package, driver, device."""
    module, _, attribute = opener.partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except ImportError as error:
        raise ModelLoadError(
            f"device {index} cannot be used: {error}; `pip install headrace[gpu]` brings what is needed"
        ) from error
    return cast("Device", found(index))
