"""Model files: where a source and its result lie in a repository, what belongs to them, how they are run."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort

from headrace.backends.onnxruntime.weights import external_files
from headrace.errors import ModelLoadError
from headrace.processor import exact_products
from headrace.quantize.data import InputSpec
from headrace.quantize.errors import QuantizeError, VersionTaken
from headrace.quantize.report import PAGE_FILE, REPORT_FILE
from headrace.repository.discovery import LARGEST_VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator

MODEL_FILE = "model.onnx"
_WORKSPACE = ".quantize-"
BESIDE = ("schema.toml", "drift.json")
"""What a result takes over from the source's directory: rules, and a reference, of the same inputs and outputs."""
DTYPES = {
    "tensor(bool)": np.bool_,
    "tensor(uint8)": np.uint8,
    "tensor(uint16)": np.uint16,
    "tensor(uint32)": np.uint32,
    "tensor(uint64)": np.uint64,
    "tensor(int8)": np.int8,
    "tensor(int16)": np.int16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(float16)": np.float16,
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(string)": np.object_,
}
"""By ONNX Runtime's names of types."""


@dataclass(frozen=True, slots=True)
class Source:
    """The version that is quantized. directory: the model's, in which versions lie."""

    directory: Path
    version: int
    file: Path

    @property
    def model(self) -> str:
        """The model's name."""
        return self.directory.name

    @property
    def files(self) -> list[Path]:
        """The model's file, and those of its weights. Raises QuantizeError."""
        try:
            return [self.file, *external_files(self.file)]
        except ModelLoadError as error:
            raise QuantizeError(str(error)) from None


def find_source(path: Path) -> Source:
    """The version that `path` names: a version's directory, or a model's, whose newest float version it is.

    Raises QuantizeError.
    """
    path = Path(os.path.abspath(path))
    if not path.is_dir():
        raise QuantizeError(
            f"{path}: no directory; expected a model's, such as models/NAME, or a version's, models/NAME/1"
        )
    if (path / MODEL_FILE).is_file():
        if not _is_version(path.name):
            raise QuantizeError(f"{path}: has a {MODEL_FILE}, but is no version: expected NAME/1/{MODEL_FILE}")
        return Source(path.parent, int(path.name), path / MODEL_FILE)
    versions = [version for version in _versions(path) if (path / str(version) / MODEL_FILE).is_file()]
    if not versions:
        raise QuantizeError(f"{path}: no {MODEL_FILE} here or in a version below, such as {path.name}/1/{MODEL_FILE}")
    made_here = [version for version in versions if (path / str(version) / REPORT_FILE).exists()]
    of_float = [version for version in versions if version not in made_here]
    if not of_float:
        raise QuantizeError(f"{path}: every version with a {MODEL_FILE} is quantized already")
    return Source(path, of_float[-1], path / str(of_float[-1]) / MODEL_FILE)


def _is_version(name: str) -> bool:
    return name.isascii() and name.isdecimal() and not name.startswith("0") and int(name) <= LARGEST_VERSION


def _versions(directory: Path) -> list[int]:
    return sorted(int(entry.name) for entry in directory.iterdir() if _is_version(entry.name))


def free_version(source: Source, wanted: int | None) -> int:
    """The number of the version to be written: the next, or the wanted one. Raises QuantizeError if there is none."""
    following = max(_versions(source.directory)) + 1
    if wanted is None and following > LARGEST_VERSION:
        raise QuantizeError(f"{source.directory}: version {LARGEST_VERSION} is there, and servers take no larger one")
    if wanted is None:
        return following
    if not 1 <= wanted <= LARGEST_VERSION:
        raise QuantizeError(f"--version {wanted}: expected 1 to {LARGEST_VERSION}, which servers take")
    if (source.directory / str(wanted)).exists():
        raise QuantizeError(f"{source.directory / str(wanted)}: is there already")
    return wanted


@contextmanager
def workspace(source: Source) -> Iterator[Path]:
    """A directory beside the versions for what is not finished: no server sees it, and it goes whatever happens.

    Raises QuantizeError if there can be none.
    """
    _sweep(source.directory)
    try:
        made, lock = _claimed(source.directory)
    except OSError as error:
        raise QuantizeError(f"{source.directory}: cannot be written to: {error.strerror or error}") from None
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        os.close(lock)


def _claimed(directory: Path) -> tuple[Path, int]:
    """A new directory, and what locks it for as long as it is open: to others, one that is not locked is left over."""
    while True:
        made = Path(tempfile.mkdtemp(prefix=_WORKSPACE, dir=directory))
        with suppress(FileNotFoundError):  # somebody has swept it away before it was locked
            lock = os.open(made, os.O_RDONLY)
            with suppress(OSError):  # a file system without locks
                fcntl.flock(lock, fcntl.LOCK_EX)
            if made.exists():
                return made, lock
            os.close(lock)


def _sweep(directory: Path) -> None:
    """Takes away what killed processes have left: the kernel has released their locks."""
    for path in directory.glob(f"{_WORKSPACE}*"):
        with suppress(OSError):
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)


def put_in_place(finished: Path, source: Source, version: int) -> Path:
    """Makes a directory the version, in one step. Raises VersionTaken if somebody else has made that one meanwhile.

    Raises QuantizeError where it cannot be written.
    """
    target = source.directory / str(version)
    finished.chmod(source.file.parent.stat().st_mode & 0o777)
    for path in finished.iterdir():
        path.chmod(source.file.stat().st_mode & 0o777)  # tools differ in what they give, and who serves has to read
        with path.open("rb") as file:
            os.fsync(file.fileno())
    try:
        if target.exists():  # a rename would replace an empty directory
            raise FileExistsError
        finished.rename(target)
    except OSError as error:
        if isinstance(error, FileExistsError) or error.errno in (errno.ENOTEMPTY, errno.ENOTDIR):
            raise VersionTaken(f"{target}: cannot be written: it is there already") from None
        raise QuantizeError(f"{target}: cannot be written: {error.strerror}") from None
    return target


def copy_beside(source: Source, directory: Path) -> list[str]:
    """Copies what a result takes over, and says what of the source's directory it does not."""
    left = []
    own = {path.name for path in source.files} | {REPORT_FILE, PAGE_FILE}
    for path in sorted(source.file.parent.iterdir()):
        if path.name in BESIDE:
            shutil.copyfile(path, directory / path.name)
        elif path.name not in own and not path.name.startswith("."):
            left.append(path.name)
    return left


def sha256_of(files: list[Path]) -> str:
    """SHA-256, in hexadecimal, of the files one after another: of a model in one file, that file's."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()


def size_of(files: list[Path]) -> int:
    """Octets of the files."""
    return sum(path.stat().st_size for path in files)


def open_session(file: Path, threads: int = 0, *, optimized: bool = True) -> ort.InferenceSession:
    """The file on ONNX Runtime's CPU provider. threads: 0 for all cores. optimized: False where it is hardly run.

    Raises QuantizeError if it cannot be run.
    """
    options = ort.SessionOptions()
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    for key, value in exact_products().items():  # as the server has it
        options.add_session_config_entry(key, value)
    try:
        return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        raise QuantizeError(f"ONNX Runtime cannot load {file}: {' '.join(str(error).split())}") from None


def input_specs(session: ort.InferenceSession) -> tuple[InputSpec, ...]:
    """What a session takes. Raises QuantizeError for what no data can be given for."""
    specs = []
    for one in session.get_inputs():
        if one.type not in DTYPES:
            raise QuantizeError(f"input {one.name} is {one.type}, for which no data can be read")
        shape = tuple(dim if isinstance(dim, int) else -1 for dim in one.shape or ())
        specs.append(InputSpec(one.name, np.dtype(DTYPES[one.type]), shape))
    if not specs:
        raise QuantizeError("the model has no inputs")
    return tuple(specs)
