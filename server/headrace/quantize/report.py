"""What is said of a quantization: the JSON beside the model, and what the page is made of."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from headrace.quantize.errors import QuantizeError

REPORT_FILE = "quantization.json"
PAGE_FILE = "quantization.html"
FORMAT = 1
LARGEST_ERROR = 1e6
"""An error that is larger, or no number, is told as this."""

Metric = Literal["accuracy", "r2", "top1_agreement", "cosine"]


@dataclass(frozen=True, slots=True)
class LayerError:
    """What one layer costs. error: relative L2 error of the model's outputs where this layer alone is quantized.

    kept_float: whether it was left as it was, so that the gate holds.
    """

    name: str
    op_type: str
    error: float
    kept_float: bool


@dataclass(frozen=True, slots=True)
class Measure:
    """How good source and result are on the data for evaluation.

    labelled: against labels; otherwise against the source's own outputs, which is agreement, no accuracy. source,
    result: means of the metric over rows. relative: their ratio, which the gate is for. low, high: an interval that
    covers the ratio on all such data in 95 of 100 cases. output: the output that was looked at.
    """

    metric: Metric
    labelled: bool
    rows: int
    source: float
    result: float
    relative: float
    low: float
    high: float
    output: str = ""


@dataclass(frozen=True, slots=True)
class SpeedPoint:
    """Rows a second on one thread at one batch size, medians. ratio: result to source, within [low, high]."""

    batch: int
    source_rows_per_second: float
    result_rows_per_second: float
    ratio: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class OutputError:
    """How far an output is from the source's on the same rows, at most `LARGEST_ERROR`.

    error: relative L2 error of floats; of integers and texts the share that differs.
    """

    name: str
    error: float


@dataclass(frozen=True, slots=True)
class Lineage:
    """What a result was made of. SHA-256 in hexadecimal, "" for what there was none of.

    source_sha256, result_sha256: of the model's file, and of the files of its weights where there are some, in the
    order of their names. calibration_sha256, evaluation_sha256: of names, dtypes, shapes and values of the arrays.
    tools: versions by package. created: UTC, ISO 8601.
    """

    source_sha256: str
    result_sha256: str
    calibration_sha256: str
    calibration_rows: int
    evaluation_sha256: str
    evaluation_rows: int
    tools: dict[str, str]
    created: str
    processor: str = ""
    processor_flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """A quantization, from what was asked for to what came out.

    version: of the result, 0 where the gate did not hold and nothing was written. gate: the least relative measure.
    excluded: (node, reason) for what stayed in float. tries: (layers left in float, relative) in the order of trying.
    outputs: every output of the model, whichever the measure is of.
    """

    model: str
    version: int
    source_version: int
    recipe: str
    target: str
    options: dict[str, str | int | float | bool]
    gate: float
    passed: bool
    measure: Measure
    source_bytes: int
    result_bytes: int
    speed: tuple[SpeedPoint, ...]
    layers: tuple[LayerError, ...]
    excluded: tuple[tuple[str, str], ...]
    tries: tuple[tuple[int, float], ...]
    lineage: Lineage
    warnings: tuple[str, ...] = ()
    outputs: tuple[OutputError, ...] = ()


_REPORT = TypeAdapter(Report)


def report_json(report: Report) -> bytes:
    """The octets of quantization.json: an object with the fields of `Report` and "format", the format's number."""
    return json.dumps({"format": FORMAT, **asdict(report)}, indent=1, allow_nan=False).encode() + b"\n"


def read_report(data: bytes) -> Report:
    """What `report_json` was given. Raises QuantizeError for anything else."""
    try:
        found: Any = json.loads(data)
        if not isinstance(found, dict) or found.pop("format", None) != FORMAT:
            raise QuantizeError(f"no report of a quantization of format {FORMAT}")
        return _REPORT.validate_python(found)
    except ValidationError as error:
        first = error.errors()[0]
        raise QuantizeError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except ValueError as error:
        raise QuantizeError(f"no report of a quantization: {error}") from None
