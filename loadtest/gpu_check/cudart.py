"""The little of the CUDA runtime that checks need, through ctypes: device and pinned memory, streams, events.

Names and enumerators are those of the CUDA Runtime API. Everything raises CudaError where CUDA reports one.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from types import TracebackType

    Array = np.ndarray[Any, Any]

LIBRARIES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so")
HOST_TO_DEVICE, DEVICE_TO_HOST = 1, 2  # cudaMemcpyKind
NON_BLOCKING = 1  # cudaStreamNonBlocking
TIMING = 0  # cudaEventDefault


class CudaError(Exception):
    """What CUDA says went wrong, and in which call."""


class Cuda:
    """The runtime on one device. A context manager: frees all that was made with it.

    library: for tests; otherwise the first of LIBRARIES that can be loaded. Raises CudaError if none can.
    """

    def __init__(self, device: int = 0, library: Any = None) -> None:  # noqa: ANN401 - a ctypes.CDLL or a fake of it
        self._library = library or _load()
        self._cleanups: list[tuple[str, Any]] = []
        self._call("cudaSetDevice", device)

    def __enter__(self) -> Cuda:
        return self

    def __exit__(self, *error: BaseException | type[BaseException] | TracebackType | None) -> None:
        self._library.cudaDeviceSynchronize()
        while self._cleanups:
            name, handle = self._cleanups.pop()
            getattr(self._library, name)(handle)

    def _call(self, name: str, *arguments: object) -> None:
        if code := getattr(self._library, name)(*arguments):
            text = self._library.cudaGetErrorString
            text.restype = ctypes.c_char_p
            raise CudaError(f"{name}: {(text(code) or b'error').decode()} ({code})")

    def _made(self, free: str, name: str, *arguments: object) -> ctypes.c_void_p:
        handle = ctypes.c_void_p()
        self._call(name, ctypes.byref(handle), *arguments)
        self._cleanups.append((free, handle))
        return handle

    def memory(self, octets: int) -> int:
        """Device memory; its address."""
        return self._made("cudaFree", "cudaMalloc", ctypes.c_size_t(octets)).value or 0

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> Array:  # noqa: ANN401 - as NumPy's
        """An array in the host's memory that the device copies without help of the processor."""
        octets = int(np.prod(shape)) * np.dtype(dtype).itemsize
        handle = self._made("cudaFreeHost", "cudaHostAlloc", ctypes.c_size_t(octets), ctypes.c_uint(0))
        raw = (ctypes.c_uint8 * octets).from_address(handle.value or 0)
        return np.frombuffer(raw, dtype).reshape(shape)

    def stream(self) -> int:
        """A stream that does not wait for the default one; its handle."""
        return self._made("cudaStreamDestroy", "cudaStreamCreateWithFlags", ctypes.c_uint(NON_BLOCKING)).value or 0

    def event(self) -> ctypes.c_void_p:
        """An event that takes the time."""
        return self._made("cudaEventDestroy", "cudaEventCreateWithFlags", ctypes.c_uint(TIMING))

    def upload(self, device: int, host: Array, stream: int) -> None:
        """Starts a copy to the device; `host` stays as it is until it is done."""
        self._copy(device, host.ctypes.data, host.nbytes, HOST_TO_DEVICE, stream)

    def download(self, host: Array, device: int, stream: int) -> None:
        """Starts a copy from the device."""
        self._copy(host.ctypes.data, device, host.nbytes, DEVICE_TO_HOST, stream)

    def _copy(self, to: int, source: int, octets: int, kind: int, stream: int) -> None:
        pointers = ctypes.c_void_p(to), ctypes.c_void_p(source)
        self._call("cudaMemcpyAsync", *pointers, ctypes.c_size_t(octets), kind, ctypes.c_void_p(stream))

    def record(self, event: ctypes.c_void_p, stream: int) -> None:
        """The event happens when all that the stream was given before is done."""
        self._call("cudaEventRecord", event, ctypes.c_void_p(stream))

    def wait(self, stream: int) -> None:
        """Until all that the stream was given is done."""
        self._call("cudaStreamSynchronize", ctypes.c_void_p(stream))

    def wait_event(self, event: ctypes.c_void_p) -> None:
        """Until the event has happened."""
        self._call("cudaEventSynchronize", event)

    def milliseconds(self, first: ctypes.c_void_p, second: ctypes.c_void_p) -> float:
        """Between two events that have happened."""
        elapsed = ctypes.c_float()
        self._call("cudaEventElapsedTime", ctypes.byref(elapsed), first, second)
        return elapsed.value


def _load() -> Any:  # noqa: ANN401 - ctypes
    for name in LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise CudaError(f"cannot load any of {', '.join(LIBRARIES)}")
