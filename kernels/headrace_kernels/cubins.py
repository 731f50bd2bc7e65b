"""Machine code for each GPU architecture: built with NVRTC, which needs no GPU, and found again.

The cubins lie in cubins/ beside the sources. A wheel has them; a checkout gets them from `make kernels`. Each
carries in its name the hash of what it was built from, so that one that is older than its source is not mistaken for
it.
"""

from __future__ import annotations

import hashlib
import os
import re
from functools import cache
from pathlib import Path

from headrace_kernels.interface import KernelsUnavailable, optional

HERE = Path(__file__).parent
KERNELS = {
    "images": ("image_batch_c1_f32", "image_batch_c3_f32", "image_batch_c1_f16", "image_batch_c3_f16"),
    "quantize": (
        *("quantize_f32_i8", "quantize_f32_u8", "quantize_f16_i8", "quantize_f16_u8"),
        *("dequantize_i8_f32", "dequantize_u8_f32", "dequantize_i8_f16", "dequantize_u8_f16"),
    ),
    "ragged": tuple(f"{way}_{octets}" for way in ("gather", "scatter") for octets in (1, 2, 4, 8, 16)),
    "statistics": ("feature_partials_f32", "feature_partials_f16", "feature_merge"),
    "topk": ("top_k_warp_f32", "top_k_warp_f16", "top_k_block_f32", "top_k_block_f16"),
}
"""The kernels of each source, cuda/<source>.cu."""

ARCHITECTURES = ("75", "80", "86", "89", "90", "100", "120")
"""Compute capabilities without the dot: Turing; Ampere, its two; Ada; Hopper; Blackwell, its two. Code for one runs on
those of the same major number and a higher minor one."""

STANDARD = "c++17"


def source_text(source: str) -> str:
    """The CUDA C++ of a group of kernels."""
    return (HERE / "cuda" / f"{source}.cu").read_text()


@cache
def digest(source: str) -> str:
    """What tells one version of a source, and of all that it is compiled with, from another."""
    together = hashlib.sha256(f"{STANDARD}\n{source_text(source)}".encode())
    together.update((HERE / "cuda" / "common.cuh").read_bytes())
    return together.hexdigest()[:12]


def compile_cubin(source: str, architecture: str) -> bytes:
    """The machine code of a source for an architecture ("90"). No GPU is needed.

    Raises KernelsUnavailable if cuda-core or NVRTC is not installed, or the source does not compile.
    """
    core = optional("cuda.core", "cuda-core")
    options = core.ProgramOptions(
        arch=f"sm_{architecture}", std=STANDARD, include_path=str(HERE / "cuda"), name=f"{source}.cu"
    )
    try:
        code = core.Program(source_text(source), "c++", options).compile("cubin").code
    except Exception as error:  # of cuda-core, cuda-pathfinder and NVRTC; none of them names all of its own
        raise KernelsUnavailable(
            f"NVRTC made no code of {source}.cu for sm_{architecture} (if it is missing: pip install "
            f"nvidia-cuda-nvrtc): {error}"
        ) from error
    if not isinstance(code, bytes):
        raise KernelsUnavailable(f"NVRTC returned {type(code).__name__} for {source}.cu, not a cubin")
    return code


def file_name(source: str, architecture: str) -> str:
    """Of a cubin."""
    return f"{source}.sm_{architecture}.{digest(source)}.cubin"


def build(folder: Path = HERE / "cubins", architectures: tuple[str, ...] = ARCHITECTURES) -> list[Path]:
    """Compiles what is not there yet, removes what is of older sources, and returns the files that were written.

    Raises KernelsUnavailable as `compile_cubin` does.
    """
    folder.mkdir(exist_ok=True)
    current = {f"{source}.{digest(source)}" for source in KERNELS}
    for path in folder.glob("*.cubin"):
        source, _, version = path.stem.split(".")
        if f"{source}.{version}" not in current:
            path.unlink()
    written = []
    for source in KERNELS:
        for architecture in architectures:
            path = folder / file_name(source, architecture)
            if not path.exists():
                partial = path.with_suffix(f".{os.getpid()}")
                partial.write_bytes(compile_cubin(source, architecture))
                partial.rename(path)  # whole or not at all
                written.append(path)
    return written


def choose(source: str, capability: tuple[int, int], folder: Path = HERE / "cubins") -> Path | None:
    """The cubin that runs on a device of that compute capability and uses most of it; None if there is none."""
    major, minor = capability
    names = re.compile(rf"{source}\.sm_(\d+)(\d)\.{digest(source)}\.cubin")
    fitting = {
        int(found[2]): path
        for path in folder.glob(f"{source}.*")
        if (found := names.fullmatch(path.name)) and int(found[1]) == major and int(found[2]) <= minor
    }
    return fitting[max(fitting)] if fitting else None


def code_for(source: str, capability: tuple[int, int], folder: Path = HERE / "cubins") -> bytes:
    """The machine code of a source for a device: as built, else compiled now.

    Raises KernelsUnavailable, with both reasons, if neither is possible.
    """
    path = choose(source, capability, folder)
    if path is not None:
        return path.read_bytes()
    major, minor = capability
    older = sorted(folder.glob(f"{source}.sm_{major}*.cubin"))
    why = (
        f"{folder} holds code for sm_{major}x of another version of {source}.cu (make kernels builds it again)"
        if older
        else f"{folder} holds no code of {source}.cu for sm_{major}{minor}"
    )
    try:
        return compile_cubin(source, f"{major}{minor}")
    except KernelsUnavailable as error:
        raise KernelsUnavailable(f"{why}, and {error}") from error
