from pathlib import Path

import numpy as np
import pytest
from examples.model_server import ModelServer, serving

MODEL = Path(__file__).parents[2] / "models" / "digits" / "1" / "model.onnx"


@pytest.fixture
def example(script):
    return script("examples/digits.py")


@pytest.fixture
def servicer():
    return ModelServer({"digits": MODEL})


@pytest.fixture
def url(servicer):
    with serving(servicer) as address:
        yield address


def test_prints_what_was_read_and_where_the_time_went(run, example, url, servicer):
    lines = run(example, "--url", url)
    assert [line.partition(": read as ")[0] for line in lines[:8]] == [
        f"a {digit}" for digit in (7, 6, 3, 7, 7, 3, 2, 8)
    ]
    assert all(f"read as {line[2]} (" in line for line in lines[:8])
    assert lines[8] == "21 us in the server: decode 1, admit 2, queue 3, batch 4, execute 5, encode 6"
    assert lines[9] == "in a batch of 8 rows, closed by: idle"
    assert servicer.calls == 1


def test_marks_what_was_read_wrong(run, example, url, servicer):
    servicer.spoil["label"] = lambda label: np.where(label == 3, 8, label)
    lines = run(example, "--url", url)
    assert [line[2] for line in lines if line.endswith("<- wrong")] == ["3", "3"]


def test_a_server_without_timing_is_no_error(run, example, url, servicer):
    servicer.timing = False
    assert len(run(example, "--url", url, "--count", 3)) == 3
