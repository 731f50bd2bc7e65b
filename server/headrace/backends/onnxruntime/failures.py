"""What an error of ONNX Runtime means for the device that it came from. Pure.

Source of the texts: onnxruntime-gpu 1.31.1, made to fail; of the errors: CUDA runtime API, "Error Handling".
"""

from __future__ import annotations

import re

from headrace.backends.device import DeviceLost, DeviceOutOfMemory

_CALL = re.compile(r"CUDA (?:failure|error) (\d+)")
_LAUNCH = re.compile(r"CUDA error (cudaError\w+):")
_LOST = {
    46: "DevicesUnavailable",
    100: "NoDevice",
    201: "DeviceUninitialized",
    214: "ECCUncorrectable",
    220: "NvlinkUncorrectable",
    226: "Contained",
    700: "IllegalAddress",
    702: "LaunchTimeout",
    709: "ContextIsDestroyed",
    710: "Assert",
    714: "HardwareStackError",
    715: "IllegalInstruction",
    716: "MisalignedAddress",
    717: "InvalidAddressSpace",
    718: "InvalidPc",
    719: "LaunchFailure",
    721: "TensorMemoryLeak",
    802: "SystemNotReady",
    810: "MpsClientTerminated",
    911: "ExternalDevice",
    999: "Unknown",
}
"""cudaError_t after which the process can use the device no more: number and name."""
_LOST_NAMES = frozenset(f"cudaError{name}" for name in _LOST.values())
_NO_MEMORY = 2
_NO_MEMORY_TEXTS = (
    "Failed to allocate memory for requested buffer of size",  # the arena, when the device has refused
    "cudaErrorMemoryAllocation",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS failure 3:",  # the same, where ONNX Runtime (1.31) has cuBLAS describe it
    "CUDNN_STATUS_ALLOC_FAILED",  # of cuDNN 8; the next of 9
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "Error Code 2: OutOfMemory",  # TensorRT
)


def device_error(text: str) -> DeviceLost | DeviceOutOfMemory | None:
    """The error of the device that an error's text tells of, None for one of the model or of the request.

    That a session has reached its own limit (`memory_limit_bytes`) is none: others of its batches may still fit.
    """
    first_line = text.strip().partition("\n")[0]
    call, launch = _CALL.search(text), _LAUNCH.search(text)
    code = int(call[1]) if call else 0
    if code == _NO_MEMORY or any(words in text for words in _NO_MEMORY_TEXTS):
        return DeviceOutOfMemory(first_line)
    if code in _LOST or (launch and launch[1] in _LOST_NAMES):
        return DeviceLost(first_line)
    return None
