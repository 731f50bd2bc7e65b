"""Makes the versions of a model in lower precisions, and measures them; the result is in its metrics.json."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

from headrace.quantize.report import REPORT_FILE, read_report
from precisions.subject import FP32, in_parts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from precisions.subject import Array, Data, Precision, Run, Subject

METRICS_FILE = "metrics.json"
MODEL_FILE = "model.onnx"


class NotMade(Exception):
    """A version was not made. The message says which; what `headrace quantize` said of it is on standard error."""


def build(subject: Subject, directory: Path, timing_s: float) -> dict[str, Any]:
    """Makes all versions of the model in `directory` anew, measures them and returns what metrics.json says of them.

    timing_s: seconds for the speed of each, 0 for none. What was there of an older source goes first: a version that is
    not made is not there. Raises NotMade.
    """
    data = subject.data(directory)
    with tempfile.TemporaryDirectory() as scratch:
        calibration, evaluation = Path(scratch, "calibration.npz"), Path(scratch, "evaluation.npz")
        np.savez(calibration, **data.calibration)  # type: ignore[arg-type] # no array is called allow_pickle
        np.savez(evaluation, **data.evaluation)  # type: ignore[arg-type]
        for precision in subject.precisions:
            shutil.rmtree(directory / str(precision.version), ignore_errors=True)
        for precision in subject.precisions:
            _quantize(directory, precision, calibration, evaluation, data.labels, timing_s)
    told = measure(subject, directory, data)
    write_metrics(directory / METRICS_FILE, told)
    return told


def _quantize(
    directory: Path, precision: Precision, calibration: Path, evaluation: Path, labels: str, timing_s: float
) -> None:
    command = [
        *(sys.executable, "-m", "headrace", "quantize", str(directory / str(FP32.version)), *precision.arguments),
        *("--calibration", str(calibration), "--evaluate", str(evaluation), "--version", str(precision.version)),
        *("--timing", f"{timing_s:g}", *(("--labels", labels) if labels else ())),
    ]
    if subprocess.run(command, check=False).returncode:
        raise NotMade(f"{directory.name}: no version {precision.version} in {precision.name}")


def measure(subject: Subject, directory: Path, data: Data) -> dict[str, Any]:
    """What is to be said of each version that is there: `{precision: {"version", "bytes", ..., "speed": {...}}}`.

    speed: rows a second of the version on one thread, as a multiple of FP32's, by the rows of a batch, as
    quantization.json has it.
    """
    reference = runner(directory, FP32, subject.rows)
    told: dict[str, Any] = {}
    for precision in (FP32, *subject.precisions):
        file = directory / str(precision.version) / MODEL_FILE
        if not file.is_file():
            continue
        run = runner(directory, precision, subject.rows)
        told[precision.name] = {
            "version": precision.version,
            "bytes": file.stat().st_size,
            **{name: round(value, 6) for name, value in data.measure(run, reference).items()},
        }
        report = file.with_name(REPORT_FILE)
        if report.is_file():
            speed = {str(point.batch): round(point.ratio, 2) for point in read_report(report.read_bytes()).speed}
            told[precision.name] |= {"speed": speed} if speed else {}
    return told


def runner(directory: Path, precision: Precision, rows: int) -> Run:
    """What runs a version, so many rows at once."""
    file = directory / str(precision.version) / MODEL_FILE
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def run(feeds: Mapping[str, Array]) -> list[Array]:
        outputs: list[Array] = session.run(None, dict(feeds))
        return outputs

    return in_parts(run, rows)


def write_metrics(path: Path, precisions: Mapping[str, Any]) -> None:
    """Puts them into metrics.json, and leaves what else it says."""
    metrics = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps({**metrics, "precisions": precisions}, indent=2) + "\n", encoding="utf-8")
