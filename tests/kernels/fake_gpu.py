"""cuda-core and the driver's bindings on the host's memory, where a launch runs the kernel's source on the host shim.

Calls are held to the signatures of the real packages.
"""

import ctypes
import inspect
from types import SimpleNamespace

import numpy as np
from kernels import elf
from kernels.shim import library

from headrace_kernels import cubins
from headrace_kernels.operations import Launch

core = __import__("cuda.core", fromlist=["core"])
driver = __import__("cuda.bindings.driver", fromlist=["driver"])

SOURCE_OF = {kernel: source for source, kernels in cubins.KERNELS.items() for kernel in kernels}


class FakeCore:
    """`cuda.core`. launched: of each launch, stream and kernel. current: devices made current."""

    def __init__(self, capability=(9, 0)):
        self.LaunchConfig = core.LaunchConfig
        self.ObjectCode = SimpleNamespace(from_cubin=self._from_cubin)
        self.Stream = SimpleNamespace(from_handle=lambda handle: SimpleNamespace(handle=handle))
        self._capability = capability
        self.launched = []
        self.current = []

    def Device(self, device_id):  # noqa: N802
        if device_id:
            raise RuntimeError("CUDA_ERROR_INVALID_DEVICE")
        device = SimpleNamespace(
            device_id=device_id,
            name="Fake GPU",
            compute_capability=SimpleNamespace(major=self._capability[0], minor=self._capability[1]),
            set_current=lambda: self.current.append(device_id),
            create_stream=lambda: SimpleNamespace(handle=77),
        )
        assert all(hasattr(core.Device, name) for name in vars(device))
        return device

    def _from_cubin(self, *arguments, **options):
        given = inspect.signature(core.ObjectCode.from_cubin).bind(*arguments, **options).arguments
        found = elf.kernels(given["module"])

        def get_kernel(name):
            assert name in found
            return name

        return SimpleNamespace(get_kernel=get_kernel)

    def launch(self, stream, config, kernel, *arguments):
        assert stream.handle
        assert isinstance(config, core.LaunchConfig)
        self.launched.append((stream.handle, kernel))
        library(SOURCE_OF[kernel]).run(Launch(kernel, config.grid, config.block, config.shmem_size, arguments), {})


class FakeDriver:
    """`cuda.bindings.driver`, of which each call takes as many arguments as the real one. fail: names -> statuses."""

    CUresult = driver.CUresult

    def __init__(self):
        self.memory = {}
        self.fail = {}
        self.clock = 0.0

    def __getattr__(self, name):
        actions = {
            "cuDriverGetVersion": lambda: (13000,),
            "cuMemcpyHtoD": lambda to, source, octets: self._move(to, source, octets),
            "cuMemcpyDtoH": lambda to, source, octets: self._move(to, source, octets),
            "cuMemcpyDtoDAsync": lambda to, source, octets, stream: self._move(to, source, octets),
            "cuMemsetD8": lambda to, value, octets: (ctypes.memset(to, value, octets), ())[1],
            "cuStreamSynchronize": lambda stream: (),
            "cuCtxSynchronize": lambda: (),
            "cuEventCreate": lambda flags: ([None],),
            "cuEventRecord": self._record,
            "cuEventSynchronize": lambda event: (),
            "cuEventElapsedTime": lambda begin, end: (end[0] - begin[0],),
            "cuEventDestroy": lambda event: (),
            "cuMemAlloc": self._allocate,
            "cuMemFree": lambda address: (self.memory.pop(address), ())[1],
        }
        if name not in actions:
            raise AttributeError(name)
        signature = inspect.signature(getattr(driver, name))

        def call(*arguments):
            signature.bind(*arguments)
            if name in self.fail:
                return (self.fail[name], None)
            return (driver.CUresult.CUDA_SUCCESS, *actions[name](*arguments))

        return call

    def _allocate(self, octets):
        raw = np.full(octets + 256, 0xFF, np.uint8)
        address = -(-raw.ctypes.data // 256) * 256
        self.memory[address] = raw
        return (address,)

    def _move(self, to, source, octets):
        ctypes.memmove(to, source, octets)
        return ()

    def _record(self, event, stream):
        self.clock += 1.0  # milliseconds
        event[0] = self.clock
        return ()
