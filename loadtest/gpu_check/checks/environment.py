"""What is there: libraries, packages, the driver's own figures. First, for the rest leans on it."""

from __future__ import annotations

import ctypes
import re
import tomllib
from typing import TYPE_CHECKING

from gpu_check import nvidia
from gpu_check.context import ROOT
from gpu_check.modules import importable
from gpu_check.registry import Failed, check

if TYPE_CHECKING:
    from gpu_check.context import Context
    from gpu_check.registry import Figures

CUDA_LIBRARIES = (
    "libcuda.so.1",
    "libcudart.so.13",
    "libcublas.so.13",
    "libcublasLt.so.13",
    "libcurand.so.10",
    "libcufft.so.12",
    "libcudnn.so.9",
)
"""What onnxruntime-gpu 1.31 links, and cuFFT and cuDNN, which it opens when it first needs them."""

_MODULES = {"grpcio": "grpc", "grpcio-reflection": "grpc_reflection", "protobuf": "google.protobuf"}
"""Modules whose name is not that of the distribution."""


@check("environment", seconds=10)
def environment(context: Context) -> Figures:
    """CUDA's libraries can be loaded; which packages the server misses."""
    missing = [name for name in CUDA_LIBRARIES if not _loads(name)]
    figures = {
        "gpus": nvidia.gpus(),
        "libraries_missing": missing,
        "packages_missing": packages_missing(),
        "driver_library": _driver_figures(context.device),
    }
    if missing:
        raise Failed(f"cannot load {', '.join(missing)}", figures)
    return figures


@check("server-packages", needs=(), seconds=3, on_cpu=True)
def server_packages(context: Context) -> Figures:
    """All that the server imports is installed."""
    if missing := packages_missing():
        raise Failed(f"not installed: {', '.join(missing)} (make gpu-pack gathers them)", {"missing": missing})
    return {}


def packages_missing() -> list[str]:
    """What pyproject.toml lists as dependencies, and cannot be imported here."""
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = [name for name in (re.match(r"[\w-]+", entry) for entry in dependencies) if name]
    return [name[0] for name in names if not importable(_MODULES.get(name[0], name[0].replace("-", "_")))]


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _driver_figures(device: int) -> object:
    """What nvidia-ml-py reads, which is where the server's GPU metrics come from."""
    try:
        import pynvml
    except ImportError:
        return "nvidia-ml-py is not installed"
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(device)
        return {
            "utilization": pynvml.nvmlDeviceGetUtilizationRates(handle).gpu,
            "memory_used_mib": pynvml.nvmlDeviceGetMemoryInfo(handle).used / 2**20,
            "power_w": pynvml.nvmlDeviceGetPowerUsage(handle) / 1000,
        }
    except pynvml.NVMLError as error:
        return str(error)
