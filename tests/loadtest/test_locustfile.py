"""In a process of its own: locust replaces the standard library's blocking calls when it is imported."""

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from examples.model_server import ModelServer, serving

ROOT = Path(__file__).parents[2]
LOCUSTFILE = ROOT / "loadtest" / "locustfile.py"
MODEL = ROOT / "models" / "digits" / "1" / "model.onnx"


def locust(url):
    """Runs locust for two seconds with two users; gives its exit code and all that it printed."""
    command = [sys.executable, "-m", "locust", "-f", LOCUSTFILE, "--headless", "--only-summary"]
    command += ["-u", "2", "-r", "2", "-t", "2s", "--host", url]
    ending = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return ending.returncode, ending.stdout + ending.stderr


def test_right_answers_pass():
    servicer = ModelServer({"digits": MODEL})
    with serving(servicer) as url:
        code, printed = locust(url)
    assert code == 0, printed
    assert servicer.calls > 1
    assert "ModelInfer digits" in printed
    assert " 0(0.00%)" in printed


@pytest.mark.parametrize(
    ("output", "spoil", "message"),
    [
        ("label", lambda label: (label + 1) % 10, "the labels are not those"),
        ("probabilities", lambda values: np.full_like(values, 0.1), "the probabilities are not those"),
    ],
)
def test_wrong_answers_fail(output, spoil, message):
    servicer = ModelServer({"digits": MODEL})
    servicer.spoil[output] = spoil
    with serving(servicer) as url:
        code, printed = locust(url)
    assert code == 1, printed
    assert message in printed


def test_nobody_there_fails():
    with serving(ModelServer({})) as url:
        pass
    code, printed = locust(url)
    assert code == 1, printed
    assert "UNAVAILABLE" in printed


def test_a_server_that_never_answers_fails():
    servicer = ModelServer({"digits": MODEL})
    release = threading.Event()
    servicer.spoil["label"] = lambda label: label if release.wait(60) else None
    with serving(servicer) as url:
        code, printed = locust(url)
        release.set()
    assert servicer.calls == 2
    assert code == 1, printed
