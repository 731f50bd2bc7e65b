"""The kernels on the CPU: the same .cu files, compiled with g++ and host_shim/, behind the interface of a GPU."""

import atexit
import ctypes
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from headrace_kernels import cubins

SHIM = Path(__file__).parent / "host_shim"
COMPILER = shutil.which("g++")
LETTERS = {np.int32: "i", np.uint32: "u", np.int64: "l", np.uint64: "m", np.float32: "f", np.float64: "d"}
MARGIN = 64
FILL = 0xFF  # a NaN, -1 or 255: what is read from beyond an array shows

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no g++, which the host shim is compiled with: install it")


def compile_in(folder: Path, *arguments: str) -> None:
    """Runs the compiler. Without -fno-gnu-unique, libraries of the same kernels would share them."""
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-fno-gnu-unique", "-DCUDA_HOST_SHIM", "-fPIC"]
    done = subprocess.run([COMPILER, *flags, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@cache
def headers() -> Path:
    """The shim with its header compiled, which takes longer than a kernel."""
    folder = tempfile.mkdtemp(prefix="headrace-kernels-")
    atexit.register(shutil.rmtree, folder)
    for header in SHIM.iterdir():
        shutil.copy(header, folder)
    compile_in(Path(folder), "-x", "c++-header", "-o", "entry.hpp.gch", "entry.hpp")
    return Path(folder)


def build(source: str, text: str, folder: Path) -> Path:
    """A library of a source's kernels, which host_shim/entry.hpp has by name."""
    (folder / f"{source}.cu").write_text(text)
    entries = "".join(f"KERNEL({kernel});\n" for kernel in cubins.KERNELS[source])
    (folder / f"{source}.cpp").write_text(f'#include "entry.hpp"\n#include "{source}.cu"\n{entries}')
    include = [f"-I{headers()}", f"-I{cubins.HERE / 'cuda'}"]
    compile_in(folder, *include, "-shared", "-o", f"{source}.so", f"{source}.cpp")
    return folder / f"{source}.so"


class Library:
    """A compiled source. Its kernels are called as a driver calls them: with the addresses of their arguments."""

    def __init__(self, source: str, text: str) -> None:
        with tempfile.TemporaryDirectory(prefix="headrace-kernels-") as folder:
            self._library = ctypes.CDLL(str(build(source, text, Path(folder))))  # stays when its file has gone
        self._library.kernel_signature.restype = self._library.kernel_run.restype = ctypes.c_char_p

    def signature(self, kernel: str) -> str:
        """A letter for each parameter: p for a pointer, else one of LETTERS."""
        found = self._library.kernel_signature(kernel.encode())
        assert found is not None, f"no kernel {kernel}"
        return found.decode()

    def run(self, launch, memory, backwards=False) -> None:
        """A launch; arguments must be of exactly the types of the parameters."""
        values = launch.values(memory)
        given = "".join("p" if isinstance(value, int) else LETTERS[type(value)] for value in values)
        assert given == self.signature(launch.kernel), f"{launch.kernel} was given {given}"
        boxes = [np.array(value, np.uint64 if isinstance(value, int) else None) for value in values]
        addresses = (ctypes.c_void_p * len(boxes))(*(box.ctypes.data for box in boxes))
        grid, block = ((ctypes.c_uint * 3)(*size) for size in (launch.grid, launch.block))
        shared = ctypes.c_size_t(launch.shared_bytes)
        wrong = self._library.kernel_run(launch.kernel.encode(), grid, block, shared, addresses, int(backwards))
        assert wrong is None, f"{launch.kernel}: {wrong.decode()}"


@cache
def library(source: str) -> Library:
    """The source as it is."""
    return Library(source, cubins.source_text(source))


class ShimKernels:
    """`interface.Kernels` of addresses in the host's memory. planted: a source's text to use instead of its file's."""

    def __init__(self, planted: dict[str, str] | None = None) -> None:
        self._planted = {source: Library(source, text) for source, text in (planted or {}).items()}

    def bind(self, operation, memory):
        operation.check_addresses(memory)
        found = self._planted.get(operation.source) or library(operation.source)

        def run(stream=None, backwards=False) -> None:
            for launch in operation.launches():
                found.run(launch, memory, backwards)

        return run


class Guarded:
    """An array with a margin before and after it, aligned as much as is asked for and no more."""

    def __init__(self, array: np.ndarray, align: int) -> None:
        self._raw = np.full(array.nbytes + 2 * MARGIN + 2 * align, FILL, np.uint8)
        start = MARGIN + (align - self._raw.ctypes.data - MARGIN) % (2 * align)
        self._inside = slice(start, start + array.nbytes)
        self.array = self._raw[self._inside].view(array.dtype).reshape(array.shape)
        self.array[...] = array
        self.address = self._raw.ctypes.data + start

    def untouched(self) -> bool:
        """Whether the margins are as they were."""
        return bool((self._raw[: self._inside.start] == FILL).all() and (self._raw[self._inside.stop :] == FILL).all())


def run_on_shim(operation, given, kernels=None, backwards=False, align=1) -> dict[str, np.ndarray]:
    """The arrays after the kernels of an operation have run on copies of `given`, aligned to `align` at least.

    What is not given, and scratch, is full of FILL. Fails if what is only read has changed, or what
    is beyond an array.
    """
    memory = {}
    for each in operation.arrays():
        full = np.full(each.nbytes, FILL, np.uint8).view(each.dtype).reshape(each.shape)
        memory[each.name] = Guarded(given.get(each.name, full), max(each.align, align))
    addresses = {name: guarded.address for name, guarded in memory.items()}
    (kernels or ShimKernels()).bind(operation, addresses)(backwards=backwards)
    for each in operation.arrays():
        assert memory[each.name].untouched(), f"{each.name}: written beyond its end"
        if each.role == "in":
            np.testing.assert_array_equal(memory[each.name].array, given[each.name], f"{each.name} has changed")
    return {name: guarded.array for name, guarded in memory.items()}
