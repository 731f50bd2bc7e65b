"""A GPU's memory and clock, by the CUDA driver's API: what the check needs beside the kernels."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any, Protocol

from headrace_kernels.device import DeviceKernels
from headrace_kernels.interface import optional

if TYPE_CHECKING:
    from types import TracebackType

    from numpy.typing import NDArray

    from headrace_kernels.interface import Bound, Kernels

GROUPS = 5  # of launches that are timed together; their median counts
GROUP_SECONDS = 0.005  # that one should take at least


class Machine(Protocol):
    """Where kernels are checked. Memory is that of one case, from `put` and `room` to `clear`."""

    @property
    def kernels(self) -> Kernels[int]:
        """On this machine's memory."""

    def facts(self) -> dict[str, object]:
        """What it is, for a report."""

    def put(self, array: NDArray[Any]) -> int:
        """The address of a copy."""

    def room(self, octets: int) -> int:
        """The address of memory whose content is anything."""

    def get(self, address: int, out: NDArray[Any]) -> None:
        """Copies back."""

    def clear(self) -> None:
        """Frees all memory."""

    def run(self, bound: Bound) -> None:
        """Runs, and waits."""

    def seconds(self, bound: Bound) -> float:
        """What a run takes when one follows another."""

    def copy_seconds(self, octets: int) -> float:
        """What a copy of so many bytes within the machine's memory takes."""


class GpuError(RuntimeError):
    """What the driver says, and of which call."""


class Gpu:
    """A Machine. A context manager, which frees its memory. Raises KernelsUnavailable if there is no GPU."""

    def __init__(self, device_id: int = 0) -> None:
        self.kernels = DeviceKernels(device_id)
        self._driver = optional("cuda.bindings.driver", "cuda-bindings")
        self._stream = self.kernels.stream()
        self._handle = int(self._stream.handle)
        self._memory: list[int] = []

    def __enter__(self) -> Gpu:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()

    def _call(self, name: str, *arguments: object) -> Any:  # noqa: ANN401 - the bindings are not typed
        status, *values = getattr(self._driver, name)(*arguments)
        if status != self._driver.CUresult.CUDA_SUCCESS:
            raise GpuError(f"{name}: {status.name}")
        return values[0] if values else None

    def facts(self) -> dict[str, object]:
        """Name, compute capability, version of CUDA that the driver speaks."""
        version = int(self._call("cuDriverGetVersion"))
        return {
            "gpu": self.kernels.name,
            "compute_capability": ".".join(map(str, self.kernels.capability)),
            "driver_cuda": f"{version // 1000}.{version % 1000 // 10}",
        }

    def room(self, octets: int) -> int:
        """See Machine. Aligned to 256 bytes at least."""
        address = int(self._call("cuMemAlloc", max(1, octets)))
        self._memory.append(address)
        return address

    def put(self, array: NDArray[Any]) -> int:
        """See Machine."""
        address = self.room(array.nbytes)
        if array.nbytes:
            self._call("cuMemcpyHtoD", address, array.ctypes.data, array.nbytes)
            self._call("cuCtxSynchronize")  # what comes from pageable memory may still be on its way
        return address

    def get(self, address: int, out: NDArray[Any]) -> None:
        """See Machine."""
        if out.nbytes:
            self._call("cuMemcpyDtoH", out.ctypes.data, address, out.nbytes)

    def clear(self) -> None:
        """See Machine. What a broken context says to that is of no interest."""
        while self._memory:
            self._driver.cuMemFree(self._memory.pop())

    def run(self, bound: Bound) -> None:
        """See Machine."""
        bound(self._stream)
        self._call("cuStreamSynchronize", self._handle)

    def seconds(self, bound: Bound) -> float:
        """See Machine: the median of a few groups of launches, each between two events."""
        self.run(bound)
        once = self._between(bound, 1)
        count = max(1, min(1000, round(GROUP_SECONDS / max(once, 1e-7))))
        return median(self._between(bound, count) / count for _ in range(GROUPS))

    def copy_seconds(self, octets: int) -> float:
        """See Machine."""
        source, target = self.room(octets), self.room(octets)
        self._call("cuMemsetD8", source, 1, octets)
        self._call("cuCtxSynchronize")

        def copy(stream: Any = None) -> None:  # noqa: ANN401
            self._call("cuMemcpyDtoDAsync", target, source, octets, self._handle)

        return self.seconds(copy)

    def _between(self, bound: Bound, count: int) -> float:
        begin, end = self._call("cuEventCreate", 0), self._call("cuEventCreate", 0)
        try:
            self._call("cuEventRecord", begin, self._handle)
            for _ in range(count):
                bound(self._stream)
            self._call("cuEventRecord", end, self._handle)
            self._call("cuEventSynchronize", end)
            return float(self._call("cuEventElapsedTime", begin, end)) / 1000
        finally:
            self._call("cuEventDestroy", begin)
            self._call("cuEventDestroy", end)
