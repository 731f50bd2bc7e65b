"""One interface, two implementations: operations put together with memory, once, and run many times."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headrace_kernels.operations import Operation

Memory = TypeVar("Memory", contravariant=True)


class Bound(Protocol):
    """An operation with its memory."""

    def __call__(self, stream: Any = None) -> None:  # noqa: ANN401
        """Runs it. stream: the cuda-core stream to run on; the host needs none, and is done when the call returns."""


class Kernels(Protocol[Memory]):
    """Where operations run. `host.HostKernels`: Memory is a NumPy array; `device.DeviceKernels`: an address."""

    def bind(self, operation: Operation, memory: Mapping[str, Memory]) -> Bound:
        """The operation on this memory, by the names of its arrays; scratch is for a GPU alone.

        The memory must live as long as what is returned. Raises ValueError for memory that does not fit.
        """


class KernelsUnavailable(RuntimeError):
    """Kernels cannot run here; the message says what is missing, and what would help."""


def optional(module: str, package: str) -> Any:  # noqa: ANN401 - a module, whose types are not known
    """A module that only the device side needs. Raises KernelsUnavailable if the package that has it is not there."""
    try:
        return import_module(module)
    except ImportError as error:
        raise KernelsUnavailable(f"{package} is not installed ({error}): pip install 'headrace[gpu]'") from error
