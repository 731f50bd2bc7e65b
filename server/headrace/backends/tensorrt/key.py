"""What an engine depends on, and the name it is cached by."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from headrace.backends.tensorrt.structure import structure
from headrace.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from headrace.backends.device import Device
    from headrace.backends.tensorrt.model_files import ModelFiles
    from headrace.backends.tensorrt.options import Options

RECIPE = 1
"""Of `builder` and `profiles`: another number where the same file and options are built otherwise than before."""
_BUILT_INTO = (
    "batch_buckets",
    "profiles",
    "optimization_level",
    "workspace_bytes",
    "tf32",
    "sparse_weights",
    "strip_weights",
    "refit",
    "hardware_compatibility",
)
"""Options that an engine depends on. Its profiles follow from the first two, max_batch and the file."""


def machine(version: str, device: Device) -> dict[str, Any]:
    """What timings depend on: TensorRT and the GPU."""
    return {
        "tensorrt": version,
        "gpu": device.name,
        "sm": list(device.architecture),
        "driver": device.driver,
    }


def about_engine(
    version: str, device: Device, files: ModelFiles, rows: int, options: Options, plugins: Iterable[str]
) -> dict[str, Any]:
    """All that an engine depends on. rows: as `profiles.wanted_max_batch` has it. plugins: digests of libraries."""
    chosen = options.model_dump(mode="json")
    return machine(version, device) | {
        "recipe": RECIPE,
        "model": structure(files) if options.refit else files.digest,
        "max_batch": rows,
        "options": {name: chosen[name] for name in _BUILT_INTO},
        "plugins": list(plugins),
    }


def name(about: dict[str, Any]) -> str:
    """The name of a cache entry: SHA-256, hex."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def library_digests(libraries: Iterable[str]) -> list[str]:
    """SHA-256 of each library, hex. Raises ModelLoadError for one that cannot be read."""
    digests = []
    for library in libraries:
        try:
            with open(library, "rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
        except OSError as error:
            raise ModelLoadError(f"plugins {library!r} cannot be read: {error.strerror or error}") from error
    return digests
