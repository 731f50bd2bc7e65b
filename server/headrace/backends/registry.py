"""Backends by name: short names for those that ship, `package.module:attribute` for a user's own."""

from __future__ import annotations

import difflib
from importlib import import_module
from typing import TYPE_CHECKING, cast

from headrace.errors import ModelLoadError

if TYPE_CHECKING:
    from headrace.backends.base import Backend

BACKENDS = {
    "onnxruntime": "headrace.backends.onnxruntime.cpu:OnnxRuntimeBackend",  # the old name of the next
    "onnxruntime-cpu": "headrace.backends.onnxruntime.cpu:OnnxRuntimeBackend",
    "onnxruntime-cuda": "headrace.backends.onnxruntime.cuda:OnnxRuntimeCudaBackend",
    "onnxruntime-tensorrt": "headrace.backends.onnxruntime.tensorrt:OnnxRuntimeTensorRtBackend",
    "tensorrt": "headrace.backends.tensorrt.backend:TensorRtBackend",
}
"""Short name -> where the backend is. The module is imported when a model asks for it and not before."""

REFERENCE = "onnxruntime-cpu"
"""What the results of others are compared with."""


def is_reference(name: str) -> bool:
    """Whether it is the reference itself, by whatever name."""
    return BACKENDS.get(name) == BACKENDS[REFERENCE]


def check_name(name: str) -> None:
    """Raises ModelLoadError for what is neither a known name nor `package.module:attribute`."""
    module_name, separator, attribute = BACKENDS.get(name, name).partition(":")
    if not (module_name and separator and attribute):
        close = difflib.get_close_matches(name, BACKENDS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(BACKENDS))}"
        raise ModelLoadError(f"unknown backend {name!r}; {hint} (or your own, as package.module:attribute)")


def get(name: str) -> Backend:
    """The backend of that name: what `module:attribute`, called without arguments, returns.

    Raises ModelLoadError that tells an unknown name from a module that is not there, one that fails to import (and
    what it misses), and one without the attribute.
    """
    check_name(name)
    module_name, _, attribute = BACKENDS.get(name, name).partition(":")
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and f"{module_name}.".startswith(f"{error.name}."):
            raise ModelLoadError(f"backend {name!r}: there is no module {error.name!r}") from error
        raise ModelLoadError(
            f"backend {name!r}: {module_name} needs the module {error.name!r}, which is not installed"
        ) from error
    except Exception as error:  # whatever a user's module does when it is imported
        raise ModelLoadError(f"backend {name!r}: importing {module_name} failed: {error!r}") from error
    factory = getattr(module, attribute, None)
    if not callable(factory):
        raise ModelLoadError(f"backend {name!r}: {module_name} has no class or function {attribute!r}")
    try:
        return cast("Backend", factory())
    except Exception as error:
        raise ModelLoadError(f"backend {name!r}: calling {attribute!r} of {module_name} failed: {error!r}") from error
