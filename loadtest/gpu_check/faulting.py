"""A backend that breaks a GPU when it is asked to: what the rest of a server does then can be seen."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from headrace.backends.base import InstanceLost
from headrace.backends.device import open_device
from headrace.messages import Signature, TensorSpec
from headrace.testing.backend import FakeModel

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import numpy as np

    from headrace.backends.device import Device, Stream

    Array = np.ndarray[Any, Any]

FATAL = 13.0
"""The number that has a kernel fault; all others come back as they are."""
_FAULT = b"""
.version 7.0
.target sm_52
.address_size 64
.visible .entry fault() { trap; }
"""
"""The kernel, as PTX, which the driver compiles."""


def fault(stream: Stream) -> None:
    """Puts a kernel that faults into the stream: after it nothing of this process can be done on the device."""
    from cuda.bindings import driver

    from headrace.backends.cuda import checked

    source = ctypes.create_string_buffer(_FAULT)
    module = checked(driver.cuModuleLoadData(ctypes.addressof(source)))
    kernel = checked(driver.cuModuleGetFunction(module, b"fault"))
    checked(driver.cuLaunchKernel(kernel, 1, 1, 1, 1, 1, 1, 0, stream.handle, 0, 0))


class FaultingBackend:
    """x FP32 [N, 1] -> y = x, on the processor; FATAL breaks the GPU whose number the option `device` gives.

    open_device, break_down: for tests.
    """

    def __init__(
        self,
        open_device: Callable[[int], Device] = open_device,
        break_down: Callable[[Stream], None] = fault,
    ) -> None:
        self._open_device = open_device
        self._break_down = break_down

    def load(self, path: Path, *, max_batch: int | None, threads: int, options: Mapping[str, Any]) -> FakeModel:
        """See `backends.base.Backend`."""

        def compute(inputs: list[Array]) -> Sequence[Array]:
            if FATAL in inputs[0]:
                self._break(options["device"])
            return inputs

        x, y = (TensorSpec(name, "FP32", (1,)) for name in "xy")
        model = FakeModel(Signature((x,), (y,), 8 if max_batch is None else max_batch), compute)
        model.inline = False
        return model

    def _break(self, index: int) -> None:
        device = self._open_device(index)
        device.use()
        stream = device.stream()
        self._break_down(stream)
        with suppress(InstanceLost):
            stream.synchronize()
