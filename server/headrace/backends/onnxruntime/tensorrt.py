"""ONNX Runtime's TensorRT provider, with CUDA's for what TensorRT does not take: `backend = "onnxruntime-tensorrt"`.

Engines are built for one profile over all batch buckets, when the model is loaded. They are kept in a directory that
nobody but the server's user can write: an engine can run any code. ONNX Runtime names an engine after the graph and not
after the weights or options, so each model, by the digest of all that it is built from, has a directory of its own.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import re
from contextlib import closing, suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnxruntime as ort

from headrace.backends.onnxruntime.gpu import GpuModel
from headrace.backends.onnxruntime.gpu_options import (
    CUDA,
    TENSORRT,
    TensorRtOptions,
    cuda_provider,
    shape_profile,
    tensorrt_provider,
)
from headrace.backends.onnxruntime.sessions import find_file, open_session, read_options
from headrace.backends.onnxruntime.weights import digest_of
from headrace.backends.private import PrivateDirectory, Unsafe
from headrace.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from headrace.backends.device import Device
    from headrace.backends.onnxruntime.gpu import Providers
    from headrace.messages import Signature


log = logging.getLogger(__name__)

_UNREADABLE = "could not deserialize engine from cache"
"""What ONNX Runtime says of an engine that was cut off, as by a full disk, or that TensorRT does not take."""
_ENGINES = (".engine", ".profile")


class OnnxRuntimeTensorRtBackend:
    """Opens ONNX files with ONNX Runtime's TensorRT execution provider. for_tests: see `GpuModel`."""

    def __init__(self, **for_tests: Any) -> None:  # noqa: ANN401
        self._for_tests = for_tests

    def load(self, path: Path, *, max_batch: int | None, threads: int, options: Mapping[str, Any]) -> GpuModel:
        """See `backends.base.Backend`."""
        checked = read_options(TensorRtOptions, options)
        file = find_file(path, checked)
        if checked.int8_calibration_table:
            table = path / checked.int8_calibration_table
            if not table.is_file():
                raise ModelLoadError(f"int8_calibration_table: there is no {table}")
            checked = checked.model_copy(update={"int8_calibration_table": str(table.absolute())})
        find_libraries()

        def providers(signature: Signature, buckets: Sequence[int]) -> Providers:
            profile = shape_profile(signature, buckets, checked)
            engines = engine_directory(file, checked, profile)

            def make(device: Device, stream: int) -> list[tuple[str, dict[str, str]]]:
                own = None if engines is None else private_directory(engines / re.sub(r"[^\w.-]+", "-", device.name))
                tensorrt = tensorrt_provider(checked, device.index, stream, profile, own)
                return [(TENSORRT, tensorrt), (CUDA, cuda_provider(checked, device.index, stream))]

            return make

        return GpuModel(
            file,
            max_batch,
            threads,
            checked,
            TENSORRT,
            providers,
            more_bytes=checked.workspace_bytes,
            **(self._for_tests | {"open_session": self._open_session}),
        )

    def _open_session(self, file: Path, threads: int, options: Any, providers: Any, entries: Any) -> Any:  # noqa: ANN401
        """See `GpuModel`. One at a time where engines are kept: ONNX Runtime reads what another has half written."""
        opened = self._for_tests.get("open_session", open_session)
        engines = providers[0][1].get("trt_engine_cache_path")
        if engines is None:
            return opened(file, threads, options, providers, entries)
        waits_for = f"another that loads or builds the engines of {file}"
        with closing(PrivateDirectory(Path(engines))) as directory, directory.lock(".lock", waits_for):
            try:
                return opened(file, threads, options, providers, entries)
            except ModelLoadError as error:
                if _UNREADABLE not in str(error):
                    raise
                log.warning("the engines in %s are not used, and built again: %s", engines, str(error))
            for name in directory.files():
                if name.endswith(_ENGINES):
                    directory.remove(name)
            return opened(file, threads, options, providers, entries)


@cache
def find_libraries() -> None:
    """Loads TensorRT's libraries from NVIDIA's package: ONNX Runtime does not find them there by itself."""
    with suppress(ImportError):
        import_module("tensorrt_libs")


_NOT_BUILT_INTO = {
    *("devices", "in_flight", "busy_wait", "batch_buckets", "memory_limit_bytes", "headroom_bytes", "max_cpu_nodes"),
    *("engine_cache", "int8_calibration_table"),
}
"""Options that make no other engine; of the buckets the profile tells, and the table is looked into."""


def engine_directory(file: Path, options: TensorRtOptions, profile: Mapping[str, str]) -> Path | None:
    """Where the engines of this very model are, made if it is new; None without a cache. Raises ModelLoadError.

    ONNX Runtime takes an engine that it finds for that which it would build, whatever the options are now, and fails to
    load with one of another version of TensorRT.
    """
    if options.engine_cache is False:
        return None
    root = Path(options.engine_cache).expanduser() if options.engine_cache else _user_cache() / "headrace/ort-engines"
    told = (f"{name}={value}" for name, value in sorted(profile.items()))
    chosen = options.model_dump_json(exclude=_NOT_BUILT_INTO)
    key = digest_of(file, ort.__version__, _tensorrt_version(), _table_digest(options), *told, chosen)
    return private_directory(private_directory(root) / key[:32])


def private_directory(path: Path) -> Path:
    """A directory that is the user's own and that nobody else can use, made if need be. Raises ModelLoadError."""
    try:
        PrivateDirectory(path).close()
    except Unsafe as error:
        raise ModelLoadError(f"the engine cache {error}; an engine can run any code") from error
    except OSError as error:
        raise ModelLoadError(f"the engine cache {path} cannot be made: {error.strerror or error}") from error
    return path


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()


def _tensorrt_version() -> str:
    """Such as 101601; empty if it is not there, which is then told when a session is opened."""
    try:
        return str(ctypes.CDLL("libnvinfer.so.10").getInferLibVersion())
    except (OSError, AttributeError):
        return ""


def _table_digest(options: TensorRtOptions) -> str:
    if not options.int8_calibration_table:
        return ""
    try:
        return hashlib.sha256(Path(options.int8_calibration_table).read_bytes()).hexdigest()
    except OSError as error:
        raise ModelLoadError(f"int8_calibration_table: {error}") from error
