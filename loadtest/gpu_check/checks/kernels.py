"""The server's CUDA kernels (headrace_kernels), by their own command."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from gpu_check.modules import importable
from gpu_check.registry import Failed, Skip, check

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gpu_check.context import Context
    from gpu_check.registry import Figures

SHARE = 0.7
"""What a kernel that only moves memory has to reach of the rate of a copy within the device."""
UNAVAILABLE = 3
"""The command's exit status where kernels cannot run."""


@check("kernels", needs=("headrace_kernels", "numpy"), seconds=60)
def kernels(context: Context) -> Figures:
    """`python -m headrace_kernels check`: the CUDA kernels against NumPy, and their rates against a copy's."""
    if not importable("headrace_kernels.__main__"):
        raise Skip("this revision of headrace_kernels has no command")
    report = context.scratch / "kernels.json"
    command = [
        sys.executable,
        "-m",
        "headrace_kernels",
        "check",
        "--device",
        str(context.device),
        "--json",
        str(report),
    ]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=170, check=False
    )
    print(done.stdout, flush=True)
    if done.returncode == UNAVAILABLE:
        raise Skip(done.stdout.strip())
    if not report.exists():
        raise Failed(f"it ended with {done.returncode} and without a report: {done.stdout[-500:]}")
    return judged(json.loads(report.read_text()), done.returncode)


def judged(report: Mapping[str, Any], status: int) -> Figures:
    """The report's figures. Raises Failed unless the command ended with 0 and all kernels are right and quick."""
    results = report["results"]
    rates = {result["title"]: result["of_copy"] for result in results if result["memory_bound"]}
    figures: dict[str, object] = {
        "copy_gigabytes_per_second": report["copy_gigabytes_per_second"],
        "cases": len(results),
        **{f"of_copy, {title}": share for title, share in rates.items()},
        **{f"us, {r['title']}": r["microseconds"] for r in results if r["microseconds"] is not None},
    }
    if wrong := [f"{result['title']}: {result['wrong']}" for result in results if result["wrong"] is not None]:
        raise Failed(f"{len(wrong)} of {len(results)} cases are wrong; {'; '.join(wrong)[:1000]}", figures)
    if status:
        raise Failed(f"it ended with {status}", figures)
    if not rates:
        raise Failed("no rate was measured", figures)
    if slow := [f"{title} {share}" for title, share in rates.items() if share is None or not share >= SHARE]:
        raise Failed(f"below {SHARE} of a copy on the device: {', '.join(slow)}", figures)
    return figures
