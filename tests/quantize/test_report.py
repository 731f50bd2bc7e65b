import dataclasses
import json

import pytest

from headrace.quantize.errors import QuantizeError
from headrace.quantize.report import LayerError, Lineage, Measure, Report, SpeedPoint, read_report, report_json

REPORT = Report(
    model="digits",
    version=2,
    source_version=1,
    recipe="int8",
    target="cpu",
    options={"per_channel": True, "calibration_method": "minmax"},
    gate=0.99,
    passed=True,
    measure=Measure("accuracy", True, 360, 0.98, 0.975, 0.9949, 0.99, 1.0, "label"),
    source_bytes=1000,
    result_bytes=300,
    speed=(SpeedPoint(1, 100.0, 200.0, 2.0, 1.9, 2.1),),
    layers=(LayerError("a/<b>", "Gemm", 0.01, False), LayerError("c", "Conv", 0.5, True)),
    excluded=(("c", "the gate"),),
    tries=((0, 0.9), (1, 0.9949)),
    lineage=Lineage("ab", "cd", "ef", 40, "", 360, {"onnx": "1"}, "2026-01-01T00:00:00Z", "x86_64", ("avx2",)),
    warnings=("w",),
)


def test_a_report_comes_back_as_it_was_written():
    assert read_report(report_json(REPORT)) == REPORT


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no report"),
        (b"[]", "format"),
        (b"\xff", "no report"),
        (b'{"format": 2}', "format 1"),
        (b'{"format": 1}', "model"),
        (report_json(REPORT).replace(b'"rows": 360', b'"rows": "many"'), "measure.rows"),
    ],
)
def test_anything_else_is_refused_in_a_line(data, said):
    with pytest.raises(QuantizeError, match=said) as caught:
        read_report(data)
    assert "\n" not in str(caught.value)


def test_what_is_no_number_is_not_written():
    broken = dataclasses.replace(REPORT, layers=(LayerError("a", "Gemm", float("nan"), False),))
    with pytest.raises(ValueError, match="JSON"):
        report_json(broken)
    assert json.loads(report_json(REPORT))["format"] == 1
