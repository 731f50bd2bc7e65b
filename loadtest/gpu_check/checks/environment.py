"""What is there: libraries, packages, the driver's own figures. First, for the rest leans on it."""

from __future__ import annotations

import ctypes
import re
import tomllib
from importlib import import_module
from typing import TYPE_CHECKING

from gpu_check import nvidia
from gpu_check.context import ROOT
from gpu_check.modules import importable
from gpu_check.registry import Failed, Skip, check

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


@check("environment", seconds=6)
def environment(context: Context) -> Figures:
    """CUDA's libraries can be loaded; which packages the server misses."""
    missing = [name for name in CUDA_LIBRARIES if not _loads(name)]
    figures = {
        "gpus": nvidia.gpus(),
        "libraries_missing": missing,
        "packages_missing": packages_missing(),
    }
    if missing:
        raise Failed(f"cannot load {', '.join(missing)}", figures)
    return figures


@check("server-packages", needs=(), seconds=3, on_cpu=True)
def server_packages(context: Context) -> Figures:
    """All that the server imports is installed, in versions that it can be imported with."""
    if missing := packages_missing():
        raise Failed(f"not installed: {', '.join(missing)} (make gpu-pack gathers them)", {"missing": missing})
    try:
        import_module("headrace.serve")
    except Exception as error:
        raise Failed(f"the server cannot be imported: {error!r}") from error
    return {}


@check("gpu-metrics", needs=("pynvml", "prometheus_client"), seconds=3)
def gpu_metrics(context: Context) -> Figures:
    """What /metrics says of the GPUs: all six families, for each GPU that nvidia-smi lists, in plausible numbers."""
    from headrace.telemetry.gpu import GpuReader

    families = GpuReader().read()
    values = {family.name: {s.labels["gpu_uuid"]: s.value for s in family.samples} for family in families}
    return judged(values, {gpu["uuid"] for gpu in nvidia.gpus()})


UNITS = {
    "nv_gpu_utilization": (0, 1),
    "nv_gpu_memory_total_bytes": (2**30, 2**42),
    "nv_gpu_memory_used_bytes": (0, 2**42),
    "nv_gpu_power_usage": (1, 3000),
    "nv_gpu_power_limit": (10, 3000),
    "nv_energy_consumption": (0, 1e6),
}
"""What each value lies between, if its unit is right."""


def judged(values: dict[str, dict[str, float]], gpus: set[str]) -> Figures:
    """Values of each family by GPU. Raises Failed where one is missing, or outside of what its unit allows."""
    wrong = [
        f"{name} of {gpu} is {values.get(name, {}).get(gpu)}, expected {low} to {high}"
        for name, (low, high) in UNITS.items()
        for gpu in sorted(gpus)
        if not low <= values.get(name, {}).get(gpu, float("nan")) <= high
    ]
    if not gpus:
        raise Skip("nvidia-smi lists no GPU: which there should be is not known")
    if wrong:
        raise Failed("; ".join(wrong), values)
    return values


@check("models", needs=("numpy", "onnx"), seconds=30, on_cpu=True)
def models(context: Context) -> Figures:
    """The models of the other checks are built, so that their time is not counted there."""
    from speed_models.store import NAMES

    figures: dict[str, object] = {}
    for name in NAMES:
        try:
            figures[f"{name}_mib"] = context.model(name).stat().st_size / 2**20
        except Skip as skip:
            figures[f"{name}_left_out"] = str(skip)
    return figures


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
