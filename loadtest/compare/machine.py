"""Where a comparison was made: hardware, versions, revision. Neither a host's name nor a path."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

PACKAGES = ("headrace", "onnxruntime", "numpy", "uvloop", "grpcio", "protobuf", "tritonclient")


def facts(peers: Path) -> dict[str, object]:
    """Everything a reader needs to judge the figures."""
    return host(PACKAGES) | {
        "triton_onnxruntime": _run(
            str(peers / "triton/bin/python"), "-c", "import onnxruntime; print(onnxruntime.__version__)"
        ),
        "h2load": _run("h2load", "--version"),
        "perf_analyzer": "tritonclient "
        + (
            _run(
                str(peers / "client/bin/python"),
                "-c",
                "from importlib.metadata import version; print(version('tritonclient'))",
            )
            or "unknown"
        ),
    }


def host(packages: Iterable[str]) -> dict[str, object]:
    """Processor, system, this Python's versions of `packages`, the revision; None where something cannot be told."""
    status = _run("git", "status", "--porcelain", "--untracked-files=no")
    return {
        "cpu": _first(r"model name\s*: (.*)", Path("/proc/cpuinfo")),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in packages},
        "revision": _run("git", "rev-parse", "HEAD"),
        "uncommitted_changes": None if status is None else bool(status),
        "load_average": list(os.getloadavg()),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _run(*command: str) -> str | None:
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _first(pattern: str, path: Path) -> str | None:
    found = re.search(pattern, path.read_text())
    return found[1].strip() if found else None
