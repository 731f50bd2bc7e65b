"""`python -m headrace_kernels`: compiles the kernels, and checks them on a GPU."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from headrace_kernels import cubins
from headrace_kernels.check.cases import LOADS
from headrace_kernels.check.machine import Gpu
from headrace_kernels.check.run import WANTED, check
from headrace_kernels.interface import KernelsUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace_kernels.check.machine import Machine

AGREES, WRONG, UNAVAILABLE = 0, 1, 3
"""Exit codes; 2 is that of arguments that make no sense."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code."""
    given = _parser().parse_args(arguments)
    try:
        if given.command == "build":
            return _build(given.architecture or cubins.ARCHITECTURES)
        with Gpu(given.device) as gpu:
            return run_check(gpu, quick=given.quick, file=given.json)
    except KernelsUnavailable as error:
        print(f"headrace_kernels: {error}", file=sys.stderr)
        return UNAVAILABLE


def run_check(machine: Machine, *, quick: bool = False, file: Path | None = None) -> int:
    """Checks, tells, writes the report to `file`, and returns the exit code."""
    report = check(machine, loads=() if quick else LOADS, tell=lambda line: print(line, flush=True))
    if file is not None:
        file.write_text(json.dumps(report.as_json(), indent=2) + "\n")
    wrong, slow = len(report.wrong()), sum(result.slow() for result in report.results)
    print(f"{len(report.results)} cases on {report.facts['gpu']}: {wrong} wrong, {slow} below {WANTED:.0%} of a copy")
    return WRONG if wrong else AGREES


def _build(architectures: Sequence[str]) -> int:
    written = cubins.build(architectures=tuple(architectures))
    print(f"{len(written)} compiled, {len(cubins.KERNELS) * len(architectures) - len(written)} were there")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m headrace_kernels", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="compile the kernels for every GPU architecture; needs no GPU")
    build.add_argument("--architecture", action="append", metavar="90", help="only for this one; may be repeated")
    on_gpu = commands.add_parser(
        "check",
        help="run each kernel against NumPy, and measure it against a copy",
        description=f"Ends with {AGREES} if all agree, {WRONG} if one does not, {UNAVAILABLE} if there is no GPU.",
    )
    on_gpu.add_argument("--device", type=int, default=0, help="number of the GPU (%(default)s)")
    on_gpu.add_argument("--quick", action="store_true", help="without the large cases, and without measuring")
    on_gpu.add_argument("--json", type=Path, metavar="FILE", help="write the report to FILE as well")
    return parser


if __name__ == "__main__":
    sys.exit(main())
