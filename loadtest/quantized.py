"""What quantization costs and brings: quality of real models by precision, speed of INT8 on one core.

    python loadtest/quantized.py [--only NAME ...] [--seconds 60] [--core N] [--results DIR]

Every model is made by `headrace quantize`, as users make it, in a repository of its own, with that command's gate.

- Quality: models of models/ that have labelled rows held out, each by each recipe; calibrated with the rows that the
  model was trained on, measured on those held out.
- Speed: `mid` of peers/make_models.py and ResNet-50 of speed_models, with random weights; rows/s by batch size on one
  core, one thread, FP32 and all others in turns. The aim compares the best batch size of each.

The result is a file quantized-<date>-<time>.json. Exit status: 1 if an aim was missed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib import util
from pathlib import Path
from shutil import copy2
from typing import TYPE_CHECKING, Any

import numpy as np

from compare.machine import host
from headrace.clock import monotonic_ns
from headrace.processor import this_processor
from headrace.quantize import speed
from peers import make_models
from speed_models import store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Feeds = dict[str, np.ndarray[Any, Any]]

HERE = Path(__file__).parent
MODELS = HERE.parent / "models"
PACKAGES = ("headrace", "onnxruntime", "onnx", "onnx-ir", "numpy", "scikit-learn")
RELATIVE, RATIO = 0.99, 1.8
"""The aims, of FP32's: quality of INT8; rows/s of INT8, each at its best batch size, on a processor with VNNI."""
CALIBRATION_ROWS = 64

QUALITY = ("digits", "cytology")
RECIPES = (
    "int8 cpu", "int8 portable", "int8-dynamic cpu", "fp16 portable", "int4 cpu", "int4 portable",
    "int8 portable pruned", "fp16 portable pruned",
)  # fmt: skip
"""Recipe and target, of the models whose quality is measured."""


@dataclass(frozen=True)
class Timed:
    """A model to time. make: writes it into a directory, returns its file. feeds: inputs of so many rows, by seed."""

    make: Callable[[Path], Path]
    feeds: Callable[[int, int], Feeds]
    recipes: tuple[str, ...]
    batches: tuple[int, ...]


def _perceptron(name: str) -> Timed:
    def make(directory: Path) -> Path:
        make_models.main(directory)
        return directory / "models" / f"{name}.onnx"

    def feeds(rows: int, seed: int) -> Feeds:
        shape = (rows, *make_models.SHAPES[name].row)
        return {"INPUT": np.random.default_rng(seed).standard_normal(shape).astype(np.float32)}

    return Timed(make, feeds, ("int8 cpu", "int8 portable", "int8-dynamic cpu", "int4 cpu"), (*speed.BATCHES, 256))


def _resnet(sizes: store.Sizes) -> Timed:
    name = "resnet50-fp32"
    return Timed(
        lambda directory: store.file(name, directory, sizes),
        lambda rows, seed: dict(sizes.feeds(name, rows, seed)),
        ("int8 cpu", "int8 portable"),
        (1, 2, 4, 8, 16),
    )


SPEED = {"mid": _perceptron("mid"), "resnet50": _resnet(store.Sizes())}
TINY = {"tab": _perceptron("tab"), "resnet-tiny": _resnet(store.TINY)}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def quantize(version: Path, asked: str, report: Path, *options: str) -> dict[str, Any]:
    """The report of `headrace quantize`. asked: recipe, target, `pruned`. Exits where the command says more than no."""
    recipe, target, *pruned = asked.split()
    command = [sys.executable, "-m", "headrace", "quantize", str(version), "--recipe", recipe, "--target", target]
    command += ["--prune", "2:4"] if pruned else []
    done = subprocess.run(
        [*command, "--report", str(report), *options], capture_output=True, text=True, check=False, timeout=3600
    )
    if not report.exists():
        sys.exit(f"headrace quantize {version.parent.name} {asked}: {done.stderr.strip() or done.stdout.strip()}")
    told: dict[str, Any] = json.loads(report.read_text())
    return told


def quality(name: str, scratch: Path) -> Iterator[dict[str, Any]]:
    """A model by each recipe, measured on the rows that were held out."""
    source = MODELS / name
    if not (source / "1" / "model.onnx").exists():
        sys.exit(f"{source}: no model to measure; leave it out by --only")
    module = _module(source / "train.py")
    rows, *_ = module.split()
    version = scratch / name / "1"
    version.mkdir(parents=True)
    copy2(source / "1" / "model.onnx", version)
    with np.load(source / "heldout.npz") as held:
        (tensor,) = set(held.files) - {"labels"}
    calibration = scratch / f"{name}-training.npz"
    np.savez(calibration, **{tensor: rows})
    for asked in RECIPES:
        say(f"{name}: {asked}")
        told = quantize(
            version, asked, scratch / f"{name}-{asked.replace(' ', '-')}.json", "--calibration", str(calibration),
            "--evaluate", str(source / "heldout.npz"), "--labels", "labels", "--timing", "5",
        )  # fmt: skip
        yield _figures(told) | {"speed": told["speed"], "warnings": told["warnings"]}


def _figures(told: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a report."""
    kept = (
        "model",
        "recipe",
        "target",
        "options",
        "gate",
        "passed",
        "measure",
        "source_bytes",
        "result_bytes",
        "tries",
    )
    left = [layer["name"] for layer in told["layers"] if layer["kept_float"]]
    return {key: told[key] for key in kept} | {"layers": len(told["layers"]), "layers_left_in_float": left}


def timed(name: str, model: Timed, scratch: Path, seconds: float) -> dict[str, Any]:
    """FP32 and each recipe's model in turns, by batch size; and how far each agrees with FP32."""
    file = model.make(scratch / "made")
    version = scratch / name / "1"
    version.mkdir(parents=True)
    (version / "model.onnx").symlink_to(file.resolve())
    data = [scratch / f"{name}-{part}.npz" for part in ("calibration", "evaluation")]
    for seed, path in enumerate(data):
        columns: dict[str, Any] = dict(model.feeds(CALIBRATION_ROWS, seed))
        np.savez(path, **columns)
    files, agreement = [file], []
    for asked in model.recipes:
        say(f"{name}: {asked}")
        report = scratch / f"{name}-{asked.replace(' ', '-')}.json"
        told = quantize(
            version, asked, report, "--calibration", str(data[0]), "--evaluate", str(data[1]), "--timing", "0",
            "--no-search",
        )  # fmt: skip
        agreement.append(_figures(told))
        if not told["passed"]:
            say(f"{name}: {asked} is below the gate and is not timed: {told['measure']['relative']:.4f}")
            continue
        files.append(scratch / name / str(told["version"]) / "model.onnx")
    names = ["fp32", *(f"{one['recipe']} {one['target']}" for one in agreement if one["passed"])]
    say(f"{name}: timing {', '.join(names)}")
    found = speed.measure(files, lambda rows: model.feeds(rows, 2), monotonic_ns, model.batches, seconds)
    batches = [
        {"batch": one.batch, "rounds": one.rounds, **{n: asdict(s) for n, s in zip(names, one.sides, strict=True)}}
        for one in found.batches
    ]
    best = {
        n: {"batch": one.batch, "rows_per_second": one.sides[side].rows_per_second}
        for side, n in enumerate(names)
        for one in [found.best(side)]
    }
    return {"model": name, "quantized": agreement, "batches": batches, "best": best, "left_out": found.left_out}


def aims(measured: list[dict[str, Any]], speeds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A verdict on each figure that was asked for."""
    found = [
        _aim(f"{one['model']}: quality of INT8 for {one['target']}", one["measure"]["relative"], RELATIVE)
        for one in measured
        if one["recipe"] == "int8" and "prune" not in one["options"]
    ]
    for one in speeds:
        best = one["best"]
        ratio = best.get("int8 cpu", {"rows_per_second": 0.0})["rows_per_second"] / best["fp32"]["rows_per_second"]
        found.append(_aim(f"{one['model']}: rows/s of INT8 for cpu, best batch against best batch", ratio, RATIO))
    return found


def _aim(what: str, figure: float, least: float) -> dict[str, Any]:
    verdict = "met" if figure >= least else "MISSED"
    return {"aim": what, "figure": round(figure, 4), "least": least, "verdict": verdict}


def _module(path: Path) -> Any:  # noqa: ANN401 - a script's functions
    spec = util.spec_from_file_location(f"{path.parent.name}_train", path)
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"which of {', '.join([*QUALITY, *SPEED])} (all)")
    parser.add_argument("--seconds", type=float, default=60.0, help="to time each model in (%(default)s)")
    parser.add_argument("--core", type=int, help="the core to run on (the last one that there is)")
    parser.add_argument("--tiny", action="store_true", help="models of no size, to see that it works")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="directory (%(default)s)")
    args = parser.parse_args()
    models = TINY if args.tiny else SPEED
    unknown = set(args.only or ()) - {*QUALITY, *models}
    if unknown:
        parser.error(f"no model {', '.join(sorted(unknown))}; there are {', '.join([*QUALITY, *models])}")
    wanted = args.only or [*QUALITY, *models]
    core = max(os.sched_getaffinity(0)) if args.core is None else args.core
    began, machine, processor = datetime.now().astimezone(), host(PACKAGES), this_processor()
    os.sched_setaffinity(0, {core})
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        measured = [one for name in QUALITY if name in wanted for one in quality(name, scratch)]
        speeds = [timed(name, model, scratch, args.seconds) for name, model in models.items() if name in wanted]
    judged = aims(measured, speeds)
    told = {
        "date": began.isoformat(timespec="seconds"),
        "machine": {**machine, "instructions": processor.instructions},
        "settings": {"seconds": args.seconds, "tiny": args.tiny, "threads": 1, "cores": 1},
        "aims": judged,
        "quality": measured,
        "speed": speeds,
    }
    path = args.results / f"quantized-{began:%Y-%m-%d-%H%M}.json"
    part = path.with_suffix(".part")
    part.write_text(json.dumps(told, indent=1) + "\n")
    part.replace(path)
    for aim in judged:
        print(f"{aim['verdict']:6} {aim['figure']:8.4f} (at least {aim['least']:g})  {aim['aim']}")
    print(path)
    return 1 if any(aim["verdict"] == "MISSED" for aim in judged) else 0


if __name__ == "__main__":
    sys.exit(main())
