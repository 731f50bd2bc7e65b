"""What an error of ONNX Runtime means for the device that it came from. Pure."""

from __future__ import annotations

import re

from headrace.backends.device import DeviceLost, DeviceOutOfMemory

_FAILURE = re.compile(r"CUDA (?:failure|error) (\d+)")
_NO_MEMORY = 2
_LOST = frozenset((46, 100, 201, 214, 220, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 802, 999))
"""cudaError_t after which the process can use the device no more (CUDA runtime API, "Error Handling")."""
_NO_MEMORY_ELSEWHERE = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "Error Code 2: OutOfMemory")


def device_error(text: str) -> DeviceLost | DeviceOutOfMemory | None:
    """The error of the device that an error's text tells of, None for one of the model or of the request.

    That a session has reached its own limit (`memory_limit_bytes`) is none: others of its batches may still fit.
    """
    first_line = text.strip().partition("\n")[0]
    found = _FAILURE.search(text)
    code = int(found[1]) if found else 0
    if code == _NO_MEMORY or any(word in text for word in _NO_MEMORY_ELSEWHERE):
        return DeviceOutOfMemory(first_line)
    return DeviceLost(first_line) if code in _LOST else None
