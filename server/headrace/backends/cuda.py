"""A GPU behind `backends.device`, by the CUDA driver's API (cuda-bindings).

Each device's primary context is used, which is the one that ONNX Runtime, TensorRT and cuda-core work in. Waiting
blocks instead of spinning, unless a stream is asked to: a thread that spins takes a core for each batch in flight. The
bindings let go of the interpreter lock during calls. Nothing here has an effect before `open_device`.
"""

from __future__ import annotations

import ctypes
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from cuda.bindings import driver

from headrace.backends.device import DeviceError, DeviceLost, DeviceOutOfMemory
from headrace.errors import ModelLoadError
from headrace_kernels.device import DeviceKernels

if TYPE_CHECKING:
    from collections.abc import Callable

_LOST = frozenset(
    getattr(driver.CUresult, f"CUDA_ERROR_{name}")
    for name in (
        "DEINITIALIZED", "DEVICE_UNAVAILABLE", "NO_DEVICE", "INVALID_CONTEXT", "ECC_UNCORRECTABLE",
        "NVLINK_UNCORRECTABLE", "CONTAINED", "ILLEGAL_ADDRESS", "LAUNCH_TIMEOUT", "CONTEXT_IS_DESTROYED", "ASSERT",
        "HARDWARE_STACK_ERROR", "ILLEGAL_INSTRUCTION", "MISALIGNED_ADDRESS", "INVALID_ADDRESS_SPACE", "INVALID_PC",
        "LAUNCH_FAILED", "TENSOR_MEMORY_LEAK", "SYSTEM_NOT_READY", "MPS_SERVER_NOT_READY", "MPS_CLIENT_TERMINATED",
        "EXTERNAL_DEVICE", "UNKNOWN",
    )
)  # fmt: skip
"""After these the context takes no more work (CUDA driver API, CUresult); nothing but a new process brings it back."""


_CLOSED = frozenset(
    getattr(driver.CUgraphNodeType, f"CU_GRAPH_NODE_TYPE_{name}")
    for name in ("KERNEL", "MEMSET", "EMPTY", "MEM_ALLOC", "MEM_FREE")
)
"""Nodes of a graph that are the device's alone, whatever they do. Memory of its own is allocated by cuBLAS, for one."""
_THREAD_LOCAL = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL


def checked(results: tuple[Any, ...]) -> Any:  # noqa: ANN401  -- the bindings are not typed
    """What a driver call has returned behind its status. Raises by the status: see `backends.device`."""
    status, *values = results
    if status != driver.CUresult.CUDA_SUCCESS:
        _, text = driver.cuGetErrorString(status)
        what = f"{status.name}: {text.decode() if text else 'no description'}"
        if status == driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            raise DeviceOutOfMemory(what)
        raise DeviceLost(what) if status in _LOST else DeviceError(what)
    return values[0] if len(values) == 1 else values


class _Owned:
    """Something of the driver's that is freed once."""

    def __init__(self, handle: int, free: Callable[[int], tuple[Any, ...]]) -> None:
        self.handle = handle
        self._free: Callable[[int], tuple[Any, ...]] | None = free

    def close(self) -> None:
        """Frees it. What a lost device says to that is of no interest."""
        if self._free is not None:
            self._free(self.handle)
            self._free = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__.lstrip('_')} {self.handle:#x}{'' if self._free else ', closed'}>"


class _Memory(_Owned):
    def __init__(self, pointer: int, nbytes: int) -> None:
        super().__init__(pointer, driver.cuMemFree)
        self.pointer = pointer
        self.nbytes = nbytes


class _HostMemory(_Owned):
    def __init__(self, pointer: int, nbytes: int) -> None:
        super().__init__(pointer, driver.cuMemFreeHost)
        self.pointer = pointer
        self.nbytes = nbytes
        self.array: np.ndarray[Any, Any] = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(pointer))


class _Event(_Owned):
    def __init__(self, *, timed: bool, busy_wait: bool = False) -> None:
        flags = driver.CUevent_flags.CU_EVENT_DEFAULT if busy_wait else driver.CUevent_flags.CU_EVENT_BLOCKING_SYNC
        if not timed:
            flags |= driver.CUevent_flags.CU_EVENT_DISABLE_TIMING
        super().__init__(int(checked(driver.cuEventCreate(flags))), driver.cuEventDestroy)

    def synchronize(self) -> None:
        checked(driver.cuEventSynchronize(self.handle))

    def milliseconds_since(self, earlier: _Event) -> float:
        return float(checked(driver.cuEventElapsedTime(earlier.handle, self.handle)))


class _Graph(_Owned):
    def __init__(self, executable: int) -> None:
        super().__init__(executable, driver.cuGraphExecDestroy)

    def launch(self, stream: _Stream) -> None:
        checked(driver.cuGraphLaunch(self.handle, stream.handle))


class _Stream(_Owned):
    def __init__(self, *, busy_wait: bool) -> None:
        flags = driver.CUstream_flags.CU_STREAM_NON_BLOCKING
        # the wait for an event is as the event says, that for a stream as the context does, which all share
        self._end = _Event(timed=False, busy_wait=True) if busy_wait else None
        try:
            super().__init__(int(checked(driver.cuStreamCreate(flags))), driver.cuStreamDestroy)
        except BaseException:
            self._close_event()
            raise

    def close(self) -> None:
        super().close()
        self._close_event()

    def _close_event(self) -> None:
        if self._end is not None:
            self._end.close()

    def upload(self, target: _Memory, source: _HostMemory, nbytes: int) -> None:
        checked(driver.cuMemcpyHtoDAsync(target.pointer, source.pointer, nbytes, self.handle))

    def download(self, target: _HostMemory, source: _Memory, nbytes: int) -> None:
        checked(driver.cuMemcpyDtoHAsync(target.pointer, source.pointer, nbytes, self.handle))

    def record(self, *, timed: bool = False) -> _Event:
        event = _Event(timed=timed)
        checked(driver.cuEventRecord(event.handle, self.handle))
        return event

    def wait(self, event: _Event) -> None:
        checked(driver.cuStreamWaitEvent(self.handle, event.handle, 0))

    def synchronize(self) -> None:
        if self._end is None:
            checked(driver.cuStreamSynchronize(self.handle))
        else:
            checked(driver.cuEventRecord(self._end.handle, self.handle))
            self._end.synchronize()

    def capture(self, work: Callable[[], None], *, closed: bool = False) -> _Graph:
        # thread-local: what other threads allocate meanwhile does not end the capture
        checked(driver.cuStreamBeginCapture(self.handle, _THREAD_LOCAL))
        try:
            work()
        except BaseException:
            driver.cuStreamEndCapture(self.handle)  # the stream must not stay in capture; its error follows from ours
            raise
        graph = checked(driver.cuStreamEndCapture(self.handle))
        try:
            if closed:
                _check_closed(graph)
            return _Graph(int(checked(driver.cuGraphInstantiate(graph, 0))))
        finally:
            driver.cuGraphDestroy(graph)


def _check_closed(graph: Any) -> None:  # noqa: ANN401  -- the bindings are not typed
    """Raises DeviceError if a graph does anything with the host, or what is not known to do without."""
    _, count = checked(driver.cuGraphGetNodes(graph, 0))
    nodes, _ = checked(driver.cuGraphGetNodes(graph, count)) if count else ([], 0)
    for node in nodes:
        kind = checked(driver.cuGraphNodeGetType(node))
        if kind in _CLOSED:
            continue
        if kind != driver.CUgraphNodeType.CU_GRAPH_NODE_TYPE_MEMCPY:
            raise DeviceError(f"it has a node of kind {kind.name}")
        copy = checked(driver.cuGraphMemcpyNodeGetParams(node))
        if not (_there(copy.srcMemoryType, copy.srcDevice) and _there(copy.dstMemoryType, copy.dstDevice)):
            raise DeviceError("it copies from or to the host's memory")


def _there(kind: Any, pointer: Any) -> bool:  # noqa: ANN401
    """Whether memory is the device's. Where it is UNIFIED its address tells; the host's own has no attributes."""
    if kind == driver.CUmemorytype.CU_MEMORYTYPE_UNIFIED:
        attribute = driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_MEMORY_TYPE
        status, kind = driver.cuPointerGetAttribute(attribute, int(pointer))
        if status != driver.CUresult.CUDA_SUCCESS:
            return False
    return int(kind) == int(driver.CUmemorytype.CU_MEMORYTYPE_DEVICE)


class CudaDevice:
    """A GPU. See `backends.device.Device`."""

    kind = "cuda"

    def __init__(self, index: int) -> None:
        self.index = index
        device = checked(driver.cuDeviceGet(index))
        attribute = driver.CUdevice_attribute
        self.name: str = checked(driver.cuDeviceGetName(256, device)).split(b"\0")[0].decode()
        self.uuid = f"GPU-{_uuid(checked(driver.cuDeviceGetUuid(device)).bytes)}"
        self.architecture = (
            int(checked(driver.cuDeviceGetAttribute(attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device))),
            int(checked(driver.cuDeviceGetAttribute(attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device))),
        )
        self.driver = int(checked(driver.cuDriverGetVersion()))
        # before the context is made; where it is active already its owner has decided
        driver.cuDevicePrimaryCtxSetFlags(device, driver.CUctx_flags.CU_CTX_SCHED_BLOCKING_SYNC)
        self._context = checked(driver.cuDevicePrimaryCtxRetain(device))

    def __repr__(self) -> str:
        return f"<CudaDevice {self.index} {self.name} sm_{self.architecture[0]}{self.architecture[1]}>"

    def use(self) -> None:
        """See `backends.device.Device`."""
        checked(driver.cuCtxSetCurrent(self._context))
        # that another thread records a graph, as ONNX Runtime does for the whole process, is nothing to this one
        checked(driver.cuThreadExchangeStreamCaptureMode(_THREAD_LOCAL))

    def memory_info(self) -> tuple[int, int]:
        """See `backends.device.Device`."""
        self.use()
        free, total = checked(driver.cuMemGetInfo())
        return int(free), int(total)

    def allocate(self, nbytes: int) -> _Memory:
        """See `backends.device.Device`."""
        self.use()
        return _Memory(int(checked(driver.cuMemAlloc(max(nbytes, 1)))), nbytes)

    def pin(self, nbytes: int) -> _HostMemory:
        """See `backends.device.Device`."""
        self.use()
        return _HostMemory(int(checked(driver.cuMemHostAlloc(max(nbytes, 1), 0))), nbytes)

    def stream(self, *, busy_wait: bool = False) -> _Stream:
        """See `backends.device.Device`."""
        self.use()
        return _Stream(busy_wait=busy_wait)

    @cached_property
    def _kernels(self) -> DeviceKernels:
        return DeviceKernels(self.index)

    def kernels(self) -> DeviceKernels:
        """See `backends.device.Device`."""
        self.use()
        return self._kernels


@cache
def open_device(index: int) -> CudaDevice:
    """The GPU of that index, one object for the process. Raises ModelLoadError that says what is missing."""
    try:
        checked(driver.cuInit(0))
        count = int(checked(driver.cuDeviceGetCount()))
    except Exception as error:  # cuda-bindings has its own for a missing driver
        raise ModelLoadError(f"device {index} cannot be used: there is no CUDA driver that works: {error}") from error
    if not 0 <= index < count:
        raise ModelLoadError(f"device {index} cannot be used: the driver sees {count} devices, counted from 0")
    try:
        return CudaDevice(index)
    except (DeviceError, DeviceLost, DeviceOutOfMemory) as error:
        raise ModelLoadError(f"device {index} cannot be used: {error}") from error


def _uuid(octets: bytes) -> str:
    text = bytes(octets).hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))
