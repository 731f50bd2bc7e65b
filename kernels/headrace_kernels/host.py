"""The implementation on the host: NumPy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from headrace_kernels.interface import Bound
    from headrace_kernels.operations import Operation


class HostKernels:
    """Runs the references."""

    def __repr__(self) -> str:
        return "<HostKernels: NumPy>"

    def bind(self, operation: Operation, memory: Mapping[str, NDArray[Any]]) -> Bound:
        """The operation on these arrays. Raises ValueError if one is missing or has another shape, dtype or order."""
        for expected in operation.arrays():
            if expected.role == "scratch":
                continue
            given = memory.get(expected.name)
            if given is None:
                raise ValueError(f"{type(operation).__name__} needs an array {expected.name!r}")
            if given.shape != expected.shape or given.dtype != expected.dtype or not given.flags.c_contiguous:
                raise ValueError(
                    f"{expected.name} is {given.dtype} {list(given.shape)}; {expected.dtype} {list(expected.shape)}, "
                    "contiguous, was expected"
                )

        def run(stream: Any = None) -> None:  # noqa: ANN401
            operation.compute(memory)

        return run
