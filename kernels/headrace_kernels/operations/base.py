"""The form of an operation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

Role = Literal["in", "out", "inout", "scratch"]

LARGEST_GRID = 65535
"""Blocks along the second and third dimension of a grid (CUDA C++ Programming Guide, technical specifications)."""


class Array(NamedTuple):
    """Memory that an operation works on, contiguous. align: what its address must be a multiple of, in bytes.

    role: scratch need not be kept from one run to the next, nor does the host need it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    role: Role
    align: int

    @property
    def nbytes(self) -> int:
        """Bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def array(name: str, shape: tuple[int, ...], dtype: Any, role: Role, align: int = 1) -> Array:  # noqa: ANN401
    """An Array, aligned at least as its elements are."""
    kind = np.dtype(dtype)
    return Array(name, shape, kind, role, max(align, kind.itemsize))


class Launch(NamedTuple):
    """One kernel on a GPU.

    arguments: the name of an array, for its address; None, for a null pointer; or a NumPy scalar of exactly the type of
    the kernel's parameter.
    """

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int
    arguments: tuple[str | np.generic[Any] | None, ...]

    def values(self, memory: Mapping[str, int]) -> tuple[int | np.generic[Any], ...]:
        """The arguments with the addresses of the arrays in the places of their names."""
        return tuple(memory[each] if isinstance(each, str) else 0 if each is None else each for each in self.arguments)


class Operation(ABC):
    """What is computed of which arrays. Subclasses are frozen dataclasses that refuse nonsense with ValueError."""

    __slots__ = ()

    source: ClassVar[str]
    """The file in cuda/ that has its kernels, without suffix."""

    @abstractmethod
    def arrays(self) -> tuple[Array, ...]:
        """What it works on. Names are unique."""

    @abstractmethod
    def launches(self) -> tuple[Launch, ...]:
        """The kernels to run one after another on a GPU; none, if there is nothing to do."""

    @abstractmethod
    def compute(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """The same with NumPy, in place: reads and writes arrays of the shapes and dtypes of `arrays()`."""

    def check_addresses(self, memory: Mapping[str, int]) -> None:
        """Raises ValueError for the address of an array that is missing, null or not aligned."""
        for expected in self.arrays():
            address = memory.get(expected.name)
            if address is None:
                raise ValueError(f"{type(self).__name__} needs the address of an array {expected.name!r}")
            if address % expected.align or (not address and expected.nbytes):
                raise ValueError(f"{expected.name} is at {address:#x}; a multiple of {expected.align} was expected")

    def bytes_moved(self) -> int:
        """The least that a GPU must read and write: what a memory-bound kernel's time is compared with."""
        times = {"in": 1, "out": 1, "inout": 2, "scratch": 2}
        return sum(times[each.role] * each.nbytes for each in self.arrays())


def i32(value: int) -> np.int32:
    """A parameter `int`. Raises ValueError if it is none."""
    if not -(2**31) <= value < 2**31:
        raise ValueError(f"{value} does not fit the 32 bits that the kernels count with")
    return np.int32(value)


def ceil_div(value: int, by: int) -> int:
    """How many pieces of `by` hold `value`."""
    return -(-value // by)


LARGEST_SIZE = 1 << 30
"""Kernels count to it, and a step of a grid beyond, with 32 bits."""


def check_sizes(**sizes: int) -> None:
    """Raises ValueError if one is negative or above LARGEST_SIZE."""
    for name, value in sizes.items():
        if not 0 <= value <= LARGEST_SIZE:
            raise ValueError(f"{name} is 0 to 2**30, not {value}")
