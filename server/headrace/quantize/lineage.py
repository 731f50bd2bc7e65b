"""What a result is made of and by, so that it can be made again and told apart."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from headrace.quantize.report import Lineage

if TYPE_CHECKING:
    from headrace.processor import Processor
    from headrace.quantize.data import Dataset

_TOOLS = ("headrace", "onnx", "onnxruntime", "onnxruntime-gpu", "onnx-ir", "numpy")


def lineage(
    source_sha256: str,
    result_sha256: str,
    calibration: Dataset | None,
    evaluation: Dataset,
    processor: Processor,
    now_ms: int,
) -> Lineage:
    """Of these parts. now_ms: milliseconds since the Unix epoch."""
    return Lineage(
        source_sha256=source_sha256,
        result_sha256=result_sha256,
        calibration_sha256=calibration.sha256() if calibration else "",
        calibration_rows=calibration.rows if calibration else 0,
        evaluation_sha256=evaluation.sha256(),
        evaluation_rows=evaluation.rows,
        tools=tools(),
        created=datetime.fromtimestamp(now_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        processor=processor.architecture,
        processor_flags=processor.instructions or (),
    )


def tools() -> dict[str, str]:
    """Versions of what a result depends on, by package; Python's among them."""
    found = {"python": platform.python_version()}
    for name in _TOOLS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
