"""The implementation on a GPU: cuda-core, cubins, and addresses.

Binding prepares a launch: the kernel, its configuration and its arguments. Running it is one call of `launch` a kernel,
which allocates no device memory, copies nothing and waits for nothing, so that a CUDA graph can capture it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headrace_kernels.cubins import KERNELS, code_for
from headrace_kernels.interface import KernelsUnavailable, optional

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headrace_kernels.interface import Bound
    from headrace_kernels.operations import Launch, Operation


class DeviceKernels:
    """Runs kernels on one GPU. Raises KernelsUnavailable if cuda-core, the driver or the device is missing.

    Modules are loaded when an operation first needs them, which takes milliseconds: bind before the first request.
    """

    def __init__(self, device_id: int = 0) -> None:
        self._core = optional("cuda.core", "cuda-core")
        try:
            self._device = self._core.Device(device_id)
            self._device.set_current()
            capability = self._device.compute_capability
            self.name = str(self._device.name)
        except Exception as error:  # of cuda-core, its bindings or cuda-pathfinder, which share no class
            raise KernelsUnavailable(f"there is no GPU that can be used as device {device_id}: {error}") from error
        self.capability = (int(capability.major), int(capability.minor))
        self._modules: dict[str, Any] = {}

    def __repr__(self) -> str:
        loaded = ", ".join(sorted(self._modules)) or "nothing"
        architecture = "".join(map(str, self.capability))
        return f"<DeviceKernels: device {self._device.device_id}, sm_{architecture}, {loaded} loaded>"

    def use(self) -> None:
        """Makes the device current in the calling thread: once in each thread that binds or runs."""
        self._device.set_current()

    def stream(self, handle: int | None = None) -> Any:  # noqa: ANN401 - a cuda.core.Stream, which may be missing
        """A stream to run on: a CUstream of somebody else's, which must outlive it, or a new non-blocking one."""
        return self._device.create_stream() if handle is None else self._core.Stream.from_handle(handle)

    def load(self, source: str) -> None:
        """Loads the code of a source of kernels, as binding would. Raises KernelsUnavailable."""
        try:
            self._module(source).get_kernel(KERNELS[source][0])
        except KernelsUnavailable:
            raise
        except Exception as error:  # of the driver, through cuda-core
            raise KernelsUnavailable(f"the driver does not take the code of {source}.cu: {error}") from error

    def bind(self, operation: Operation, memory: Mapping[str, int]) -> Bound:
        """The operation on device memory at these addresses. Raises ValueError for one that is missing or unaligned."""
        operation.check_addresses(memory)
        launch = self._core.launch
        prepared = [self._prepared(operation.source, each, memory) for each in operation.launches()]

        def run(stream: Any = None) -> None:  # noqa: ANN401
            for each in prepared:
                launch(stream, *each)

        return run

    def _prepared(self, source: str, launch: Launch, memory: Mapping[str, int]) -> tuple[Any, ...]:
        """What `launch` takes after the stream."""
        config = self._core.LaunchConfig(grid=launch.grid, block=launch.block, shmem_size=launch.shared_bytes)
        return (config, self._module(source).get_kernel(launch.kernel), *launch.values(memory))

    def _module(self, source: str) -> Any:  # noqa: ANN401
        if source not in self._modules:
            code = code_for(source, self.capability)
            self._modules[source] = self._core.ObjectCode.from_cubin(code, name=source)
        return self._modules[source]
