"""Finds TensorRT's Python module. Its absence is normal, and told when a model asks for it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

from headrace.backends.tensorrt.messages import Messages, make_log
from headrace.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.backends.tensorrt import bindings as b

MODULES = ("tensorrt", "tensorrt_bindings")
"""Names of the module: of NVIDIA's whole package, and of its Python part beside libraries from elsewhere."""
MAJORS = (10, 11)
"""Versions whose API is `bindings`."""
HOW = "`pip install tensorrt-cu13 cuda-bindings` brings what is needed"


class Module(Protocol):
    """The module, as far as it is used. ILogger and IProgressMonitor are classes to be subclassed."""

    __version__: str
    ILogger: Any
    IProgressMonitor: Any
    TensorIOMode: b.TensorIOMode
    TensorLocation: b.TensorLocation
    TensorFormat: b.TensorFormat
    NetworkDefinitionCreationFlag: b.NetworkDefinitionCreationFlag
    MemoryPoolType: b.MemoryPoolType
    BuilderFlag: b.BuilderFlag
    HardwareCompatibilityLevel: b.HardwareCompatibilityLevel
    ExecutionContextAllocationStrategy: b.ExecutionContextAllocationStrategy
    Builder: Callable[[b.ILogger], b.Builder]
    OnnxParser: Callable[[b.INetworkDefinition, b.ILogger], b.OnnxParser]
    Runtime: Callable[[b.ILogger], b.Runtime]
    Refitter: Callable[[b.ICudaEngine, b.ILogger], b.Refitter]
    OnnxParserRefitter: Callable[[b.Refitter, b.ILogger], b.OnnxParserRefitter]

    def init_libnvinfer_plugins(self, logger: b.ILogger, namespace: str, /) -> bool:
        """Makes the layers known that come with TensorRT as plugins."""
        ...

    def get_plugin_registry(self) -> b.IPluginRegistry:
        """All plugins that are known."""
        ...


@dataclass(frozen=True, slots=True)
class Api:
    """The module and the logger that everything made with it writes to, for as long as the process lives."""

    trt: Module
    messages: Messages

    @property
    def version(self) -> str:
        """Of TensorRT, such as 11.4.0.106."""
        return self.trt.__version__

    @property
    def major(self) -> int:
        """Its first number."""
        return major(self.version)

    def __repr__(self) -> str:
        return f"<Api TensorRT {self.version}>"


def major(version: str) -> int:
    """The first number of a version, 0 if it does not begin with one."""
    found = re.match(r"\d+", version)
    return int(found[0]) if found else 0


def wrap(trt: Module) -> Api:
    """A module with a logger."""
    return Api(trt, make_log(trt))


@cache
def find(modules: tuple[str, ...] = MODULES) -> Api:
    """The module that is installed. Raises ModelLoadError that says what is missing, or why it cannot be used."""
    reasons = []
    for name in modules:
        try:
            module = import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                reasons.append(f"{name} needs the module {error.name}, which is not installed")
        except Exception as error:  # a library that it loads is missing or fails
            reasons.append(f"{name} cannot be imported: {error}")
        else:
            version = getattr(module, "__version__", "")
            if major(version) in MAJORS:
                return wrap(cast("Module", module))
            reasons.append(f"{name} is of version {version or 'unknown'}")
    why = "; ".join(reasons) or f"there is no module {' or '.join(modules)}; {HOW}"
    raise ModelLoadError(f"backend 'tensorrt' needs NVIDIA TensorRT {' or '.join(map(str, MAJORS))}: {why}")
