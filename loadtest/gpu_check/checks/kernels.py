"""The server's CUDA kernels (headrace_kernels), by their own command."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from gpu_check.modules import importable
from gpu_check.registry import Failed, Skip, check

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gpu_check.context import Context
    from gpu_check.registry import Figures

SHARE = 0.7
"""What a kernel that only moves memory has to reach of the rate of a copy within the device."""
SHARE_KEY = "of_device_copy"


@check("kernels", needs=("headrace_kernels",), seconds=60)
def kernels(context: Context) -> Figures:
    """`python -m headrace_kernels check`: the CUDA kernels against NumPy, and their rates against a copy's."""
    if not importable("headrace_kernels.__main__"):
        raise Skip("this revision of headrace_kernels has no command")
    command = [sys.executable, "-m", "headrace_kernels", "check", "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=200, check=False)
    try:
        document = json.loads(done.stdout)
    except ValueError as error:
        raise Failed(f"it ended with {done.returncode} and wrote no JSON: {done.stdout[:500]!r}") from error
    return judged(document, done.returncode)


def judged(document: Any, status: int) -> Figures:  # noqa: ANN401 - any JSON
    """The document as figures. Raises Failed unless the command ended with 0 and no kernel is slow.

    The rates are numbers under `of_device_copy`, in any object of the document that has a `name`.
    """
    figures: Figures = document if isinstance(document, dict) else {"kernels": document}
    if status:
        raise Failed(f"it ended with {status}", figures)
    shares = dict(_shares(document))
    if not shares:
        raise Failed(f"no kernel has {SHARE_KEY}: no rate was measured", figures)
    if slow := [f"{name} {share:.2f}" for name, share in shares.items() if not share >= SHARE]:
        raise Failed(f"below {SHARE} of a copy on the device: {', '.join(slow)}", figures)
    return figures


def _shares(document: Any) -> Iterator[tuple[str, float]]:  # noqa: ANN401 - any JSON
    if isinstance(document, dict):
        share = document.get(SHARE_KEY)
        if isinstance(share, int | float):
            yield str(document.get("name", "a kernel")), float(share)
        for value in document.values():
            yield from _shares(value)
    elif isinstance(document, list):
        for value in document:
            yield from _shares(value)
