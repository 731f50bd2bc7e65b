"""Checks and measures what can only be seen on a GPU, within a bounded time.

    make gpu-check                                   with .venv where there is one, else with PYTHON (python3)
    make gpu-check ARGS="--only ort-cuda,overlap"    some of the checks
    make gpu-check ARGS="--cpu"                      tiny models on the processor: whether the checks themselves work
    PYTHONPATH=loadtest python3 -m gpu_check --list  their names

Nothing is downloaded and nothing installed. It runs with any Python of at least 3.11; checks that miss a package are
skipped and say which. What `make gpu-pack` gathered in .gpu/ on another machine is unpacked to .gpu/site and found
before the machine's own packages. Needed at least: numpy and onnx for the models; onnxruntime-gpu; for the server what
pyproject.toml lists under `dependencies`. CUDA's libraries may be those that PyTorch brought along.

After each check everything so far is written to loadtest/results/gpu/DATE-GPU.json; without a GPU to nowhere, unless
--results says where. The exit status is 0 if nothing failed: skipped is not failed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import datetime
from pathlib import Path

from gpu_check import nvidia, results
from gpu_check.context import DRAWINGS, ROOT, Context
from gpu_check.environment import BadPack, lay_cubins, unpack, variables
from gpu_check.registry import checks
from gpu_check.runner import Runner

PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
SECONDS = 540
"""By default for everything, unpacking included. What runs then is ended, so that 9.5 minutes always suffice."""


def say(text: str) -> None:
    """Progress and outcomes."""
    print(text, flush=True)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        "gpu_check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", metavar="A,B", help="these checks (all)")
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="for everything; the rest is skipped (%(default)g)"
    )
    parser.add_argument("--measure", type=float, default=3, help="seconds of one measurement (%(default)g)")
    parser.add_argument("--cpu", action="store_true", help="no GPU, tiny models; figures say nothing")
    parser.add_argument("--device", type=int, default=0, help="number of the GPU (%(default)s)")
    parser.add_argument("--results", type=Path, help="directory of the result (loadtest/results/gpu, with a GPU)")
    parser.add_argument("--models", type=Path, help="directory of built models (.cache/speed-models)")
    parser.add_argument("--packs", type=Path, default=ROOT / ".gpu", help="what make gpu-pack gathered (.gpu)")
    parser.add_argument("--revision", help="of what is checked, for the result (what git says)")
    parser.add_argument("--list", action="store_true", help="only print the checks")
    args = parser.parse_args()
    known = checks()
    args.only = args.only.split(",") if args.only else list(known)
    if unknown := [name for name in args.only if name not in known]:
        parser.error(f"no check {', '.join(unknown)}; there are {', '.join(known)}")
    return args


def facts(environ: dict[str, str], device: int) -> dict[str, object]:
    """Those of the machine, in the environment of the checks. device: the GPU that is checked."""
    done = subprocess.run(
        [sys.executable, "-m", "gpu_check.facts", str(device)],
        env=environ,
        stdout=subprocess.PIPE,
        timeout=120,
        check=True,
    )
    known: dict[str, object] = json.loads(done.stdout)
    return known


def main() -> int:
    """Runs the checks asked for; returns the exit status."""
    args = arguments()
    chosen = [checks()[name] for name in args.only]
    if args.list:
        for check in chosen:
            say(f"{check.name:30} {check.seconds:4.0f} s  {check.title}")
        return 0
    deadline = time.monotonic() + args.seconds
    # So that SIGTERM unwinds the stack and with it ends the check that runs.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        environ = variables(ROOT, unpack(args.packs, PYTHON), os.environ)
        lay_cubins(args.packs, ROOT)
    except BadPack as error:
        say(f"{args.packs}: {error}; --packs names another directory, which need not exist")
        return 2
    machine = {"date": datetime.now().astimezone().isoformat("T", "seconds"), **facts(environ, args.device)}
    if args.revision:
        machine |= {"revision": args.revision, "uncommitted_changes": None}
    gpu = machine["gpu"]
    say(f"{gpu or 'no NVIDIA GPU'}; driver {machine['driver']}, CUDA {machine['driver_cuda']}")
    path = None
    if args.results or (gpu and not args.cpu):
        name = results.file_name(str(machine["date"]), "cpu" if args.cpu or not gpu else str(gpu))
        path = results.free_path(args.results or ROOT / "loadtest/results/gpu", name)
    if not args.cpu:
        nvidia.keep_awake(args.device)
    settings = {
        "seconds": args.seconds,
        "measure": args.measure,
        "cpu": args.cpu,
        "device": args.device,
        "only": args.only,
    }
    with tempfile.TemporaryDirectory(prefix="headrace-gpu-check-") as scratch:

        def keep(outcomes: list[results.Outcome]) -> None:
            if path:
                results.write(path, machine, settings, outcomes)
                results.keep_drawings(path, Path(scratch, outcomes[-1].name, DRAWINGS))

        # The tiny models are others of the same names: they are never taken for the real ones.
        models = Path(scratch, "models") if args.cpu else args.models or ROOT / ".cache/speed-models"
        context = Context(Path(scratch), models.absolute(), args.measure, args.cpu, args.device)
        outcomes = Runner(context, environ, deadline, keep, say).run(chosen)
    counts = Counter(outcome.status for outcome in outcomes)
    say(f"{counts[results.PASS]} passed, {counts[results.FAIL]} failed, {counts[results.SKIP]} skipped")
    if path:
        say(str(path))
    return 1 if counts[results.FAIL] else 0


if __name__ == "__main__":
    sys.exit(main())
