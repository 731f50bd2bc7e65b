"""Where a run was made: GPU, driver, CUDA, packages, revision. Neither a host's name nor a path.

python -m gpu_check.facts DEVICE      prints them as JSON, with that GPU's name; run in the environment of the checks
"""

from __future__ import annotations

import json
import sys

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


def facts(device: int) -> dict[str, object]:
    """Everything that a reader needs to judge the figures. device: the GPU that they are of."""
    found = nvidia.gpus()
    gpu = found[device] if device < len(found) else None
    return {
        "gpu": gpu["name"] if gpu else nvidia.driver_name(),
        "driver": gpu["driver_version"] if gpu else None,
        "driver_cuda": nvidia.driver_cuda(),
        "gpus": found,
        **machine.host(PACKAGES),
    }


if __name__ == "__main__":
    print(json.dumps(facts(int(sys.argv[1]))))
