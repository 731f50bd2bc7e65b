"""What this machine's processor has for INT8, and what has to be done where something is missing.

Without VNNI, ONNX Runtime's kernels for x86 multiply U8 by S8 with VPMADDUBSW, which adds two products in 16 bits and
saturates: 2 x 255 x 127 is beyond 32767. With weights of 7 bits, 2 x 255 x 64, it does not happen. VNNI, AMX and ARM
add in 32 bits (onnxruntime.ai, "Quantize ONNX Models": when to use reduce-range). Models with weights of 8 bits are
right on any x86 with other kernels, U8 by U8, which are slower: ONNX Runtime takes them if it is asked to, and then for
these models alone (`exact_products`).
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

CPUINFO = Path("/proc/cpuinfo")

Family = Literal["x86", "arm", "other"]

_FAMILIES: dict[str, Family] = {"x86_64": "x86", "amd64": "x86", "i686": "x86", "aarch64": "arm", "arm64": "arm"}
_DOT_PRODUCTS = {"x86": ("avx512_vnni", "avx_vnni", "amx_int8"), "arm": ("asimddp", "i8mm"), "other": ()}
"""Linux's names of instructions that add products of octets in 32 bits; ONNX Runtime has kernels for each."""
_KEYS = ("flags", "Features")
"""Of the line in /proc/cpuinfo, on x86 and on ARM."""


@dataclass(frozen=True, slots=True)
class Processor:
    """architecture: as the system calls it. instructions: for INT8, those that all cores have; None: nobody knows."""

    architecture: str
    instructions: tuple[str, ...] | None

    def __repr__(self) -> str:
        found = "unknown" if self.instructions is None else ", ".join(self.instructions) or "none"
        return f"<Processor {self.architecture}, for INT8: {found}>"

    @property
    def family(self) -> Family:
        """Whose kernels ONNX Runtime takes."""
        return _FAMILIES.get(self.architecture.lower(), "other")

    @property
    def reduce_range(self) -> bool:
        """Whether 8-bit weights would saturate here: an x86 that is known to have no VNNI."""
        return self.family == "x86" and self.instructions == ()

    @property
    def warning(self) -> str:
        """What the user should know before an INT8 model is made and timed here; empty if nothing."""
        wanted = ", ".join(_DOT_PRODUCTS[self.family])
        if self.instructions is None:
            return (
                f"it cannot be told whether this processor ({self.architecture}) has instructions for INT8"
                + (f" ({wanted})" if wanted else "")
                + "; weights take 8 bits, with which INT8 gains less on an x86 without VNNI"
            )
        if self.instructions:
            return ""
        if self.family == "x86":
            return (
                f"this processor has no VNNI ({wanted}): INT8 gains less, and more with weights of 7 bits "
                "(--reduce-range yes, the default here) than of 8"
            )
        return f"this processor has no dot products ({wanted}): INT8 gains little here"


def parse(architecture: str, cpuinfo: str) -> Processor:
    """From the text of /proc/cpuinfo. Of different cores, as phones and laptops have them, it is what all have."""
    family = _FAMILIES.get(architecture.lower(), "other")
    cores = [
        set(value.split())
        for key, _, value in (line.partition(":") for line in cpuinfo.splitlines())
        if key.strip() in _KEYS
    ]
    if family == "other" or not cores:
        return Processor(architecture, None)
    common = set.intersection(*cores)
    return Processor(architecture, tuple(name for name in _DOT_PRODUCTS[family] if name in common))


def exact_products() -> dict[str, str]:
    """The entry of a session's configuration with which INT8 does not saturate; none where it cannot."""
    processor = _this()
    saturates = processor.family == "x86" and not processor.instructions
    return {"session.x64quantprecision": "1"} if saturates else {}


@cache
def _this() -> Processor:
    return this_processor()


def this_processor(cpuinfo: Path = CPUINFO) -> Processor:
    """The processor that this process runs on; outside Linux it is not known what it has."""
    try:
        text = cpuinfo.read_text(errors="replace")
    except OSError:
        text = ""
    return parse(platform.machine(), text)
