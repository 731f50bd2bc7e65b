"""Where a run was made: GPU, driver, CUDA, packages, revision. Neither a host's name nor a path.

python -m gpu_check.facts      prints them as JSON; run in the environment of the checks
"""

from __future__ import annotations

import json

from compare import machine
from gpu_check import nvidia

PACKAGES = (
    "cuda-bindings",
    "cuda-core",
    "grpcio",
    "headrace",
    "numpy",
    "nvidia-cublas",
    "nvidia-cuda-runtime",
    "nvidia-cudnn-cu13",
    "nvidia-ml-py",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "protobuf",
    "tensorrt-cu13",
    "torch",
    "uvloop",
)


def facts() -> dict[str, object]:
    """Everything that a reader needs to judge the figures."""
    found = nvidia.gpus()
    return {
        "gpu": found[0]["name"] if found else nvidia.driver_name(),
        "driver": found[0]["driver_version"] if found else None,
        "driver_cuda": nvidia.driver_cuda(),
        "gpus": found,
        **machine.host(PACKAGES),
    }


if __name__ == "__main__":
    print(json.dumps(facts()))
