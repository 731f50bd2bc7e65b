"""What the NVIDIA driver says of this machine, without any package: by nvidia-smi, and by the driver's own library."""

from __future__ import annotations

import ctypes
import subprocess
from functools import cache
from typing import Any

_QUERY = ("name", "uuid", "driver_version", "memory.total", "compute_cap", "power.limit", "clocks.max.sm", "pstate")


@cache
def gpu_count() -> int:
    """GPUs that CUDA programs of this process can use; 0 without a driver (cuInit, cuDeviceGetCount)."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value


def keep_awake(number: int, driver: Any = None) -> bool:  # noqa: ANN401 - a ctypes.CDLL or a fake of it
    """Holds a context on a GPU for as long as this process lives; whether it could (cuDevicePrimaryCtxRetain).

    Where nothing else does, and persistence mode is off, the driver sets the GPU up anew for each process that comes,
    which takes seconds. driver: for tests.
    """
    try:
        driver = driver or ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    device, context = ctypes.c_int(), ctypes.c_void_p()
    return not (
        driver.cuInit(0)
        or driver.cuDeviceGet(ctypes.byref(device), number)
        or driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
    )


def gpus() -> list[dict[str, str]]:
    """What nvidia-smi says of each GPU, by its own names of fields; empty where there is none, or no nvidia-smi."""
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return parsed(done.stdout)


def parsed(csv: str) -> list[dict[str, str]]:
    """The lines of nvidia-smi's `--format=csv,noheader`."""
    return [
        dict(zip(_QUERY, (field.strip() for field in line.split(",")), strict=True))
        for line in csv.splitlines()
        if line.strip()
    ]


def driver_name(driver: Any = None) -> str | None:  # noqa: ANN401 - a ctypes.CDLL or a fake of it
    """What the driver calls the first GPU, where nvidia-smi is missing (cuDeviceGetName). driver: for tests."""
    try:
        driver = driver or ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, text = ctypes.c_int(), ctypes.create_string_buffer(256)
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0) or driver.cuDeviceGetName(text, 256, device):
        return None
    return text.value.decode()


def driver_cuda() -> str | None:
    """The newest CUDA that the driver knows, such as `13.0` (cuDriverGetVersion)."""
    try:
        driver: Any = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(version)):
        return None
    return f"{version.value // 1000}.{version.value % 1000 // 10}"
