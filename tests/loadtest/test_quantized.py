import json
import subprocess
import sys
from pathlib import Path

import pytest

import quantized

ROOT = Path(__file__).parents[2]


def measured(relative, recipe="int8", **options):
    return {"model": "m", "recipe": recipe, "target": "cpu", "options": options, "measure": {"relative": relative}}


def timed(source, result):
    best = {"fp32": {"rows_per_second": source}} | ({"int8 cpu": {"rows_per_second": result}} if result else {})
    return {"model": "m", "best": best}


@pytest.mark.parametrize(("relative", "verdict"), [(1.01, "met"), (0.99, "met"), (0.9899, "MISSED")])
def test_the_aim_of_quality(relative, verdict):
    (aim,) = quantized.aims([measured(relative)], [])
    assert (aim["figure"], aim["verdict"]) == (relative, verdict)


def test_only_int8_has_an_aim():
    assert quantized.aims([measured(0, "int4"), measured(0, "fp16"), measured(0, prune="2:4")], []) == []


@pytest.mark.parametrize(("result", "verdict"), [(180, "met"), (179, "MISSED"), (0, "MISSED")])
def test_the_aim_of_speed(result, verdict):
    (aim,) = quantized.aims([], [timed(100, result)])
    assert (aim["figure"], aim["verdict"]) == (result / 100, verdict)


def test_a_run_from_end_to_end(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "loadtest/quantized.py", "--tiny", "--only", "tab", "--seconds", "0.3",
         "--results", tmp_path],
        capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    (path,) = tmp_path.glob("quantized-*.json")
    told = json.loads(path.read_text())
    (aim,) = told["aims"]
    assert done.returncode == (aim["verdict"] == "MISSED")
    assert aim["verdict"] in done.stdout
    assert told["machine"]["cores"] >= 1
    (speed,) = told["speed"]
    assert [one["recipe"] for one in speed["quantized"]] == ["int8", "int8", "int8-dynamic", "int4"]
    assert speed["quantized"][1]["passed"]  # for the processor it is so with VNNI, and not everywhere with 7 bits
    assert speed["batches"][0]["batch"] == 1
    for side in ("fp32", "int8 portable"):
        assert speed["batches"][0][side]["rows_per_second"] > 0
        assert speed["best"][side]["rows_per_second"] >= speed["batches"][0][side]["rows_per_second"]


def test_an_unknown_model_is_told():
    done = subprocess.run(
        [sys.executable, ROOT / "loadtest/quantized.py", "--only", "nothing"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "no model nothing; there are digits, cytology, mid, resnet50" in done.stderr
