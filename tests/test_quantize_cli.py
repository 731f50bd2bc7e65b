import errno
import json
import os
import signal
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from e2e.calls import tensor as infer_input
from e2e.server_process import Server, plain_environment
from quantize.conftest import WIDTH, normal, perceptron
from tritonclient.grpc import InferenceServerClient

from headrace.cli import main
from headrace.quantize.models import open_session
from headrace.quantize.report import read_report


@pytest.fixture
def repository(tmp_path):
    (tmp_path / "models" / "m" / "1").mkdir(parents=True)
    onnx.save(perceptron(softmax=True), tmp_path / "models" / "m" / "1" / "model.onnx")
    return tmp_path / "models"


@pytest.fixture
def data(tmp_path):
    """Rows to calibrate with, and others with labels that the model is right about."""
    x = normal(200, WIDTH, seed=2)
    session = ort.InferenceSession(perceptron(softmax=True).SerializeToString(), providers=["CPUExecutionProvider"])
    np.savez(tmp_path / "train.npz", x=normal(100, WIDTH, seed=3))
    np.savez(tmp_path / "heldout.npz", x=x, labels=session.run(None, {"x": x})[0].argmax(axis=1))
    return [
        "--calibration", tmp_path / "train.npz", "--evaluate", tmp_path / "heldout.npz", "--labels", "labels",
        "--timing", "0",
    ]  # fmt: skip


def quantize(*arguments):
    return main(["quantize", *map(str, arguments)])


def test_a_version_is_written_and_told(repository, data, tmp_path, capsys):
    status = quantize(repository / "m", "--recipe", "int8", "--report", tmp_path / "r.json", *data)
    out, err = capsys.readouterr()
    assert status == 0, err
    assert f"{repository / 'm' / '2'}: written" in out
    assert "accuracy" in out
    assert "layer" in out
    written = (repository / "m" / "2" / "quantization.json").read_bytes()
    assert (tmp_path / "r.json").read_bytes() == written
    assert read_report(written).passed


@pytest.mark.parametrize("suffix", ["json", "html"])
def test_what_is_below_the_gate_is_told_and_not_written(repository, data, tmp_path, capsys, suffix):
    report = tmp_path / f"r.{suffix}"
    options = ["--recipe", "int4", "--block-size", "256", "--no-search", "--min-relative-accuracy", "1", *data]
    assert quantize(repository / "m", "--report", report, *options) == 1
    out, err = capsys.readouterr()
    assert "written" not in out
    assert "below the gate, no version is written: relative 0.9" in err
    assert "expected at least 1" in err
    assert [path.name for path in (repository / "m").iterdir()] == ["1"]
    if suffix == "json":
        told = json.loads(report.read_text())
        assert (told["passed"], told["version"]) == (False, 0)
    else:
        assert "The gate does not hold" in report.read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--min-relative-accuracy", "1.5"], "expected more than 0, at most 1"),
        (["--min-relative-accuracy", "nan"], "expected more than 0, at most 1"),
        (["--percentile", "40"], "expected more than 50"),
        (["--timing", "-1"], "expected 0 to 3600"),
        (["--block-size", "33"], "expected 16, 32, 64, 128 or 256"),
        (["--calibration-rows", "0"], "expected at least 1"),
        (["--report", "r.txt"], "expected a file ending in .json or .html"),
        (["--report", "/none/r.json"], "/none is no directory"),
        (["--calibration", "none.npz"], "none.npz: No such file or directory"),
        (["--calibration", "z=none.npz"], "no such input"),
    ],
)
def test_what_makes_no_sense_is_said_in_a_line(repository, options, said, capsys):
    assert quantize(repository / "m", "--recipe", "int8", *options) == 2
    out, err = capsys.readouterr()
    assert said in err
    assert (out, err.count("headrace:")) == ("", 1)


def test_what_is_not_installed_is_named(repository, data, monkeypatch, capsys):
    monkeypatch.setattr("headrace.quantize.packages.find_spec", lambda name: None if name == "onnx_ir" else name)
    assert quantize(repository / "m", "--recipe", "int8", *data) == 2
    assert "needs the package onnx-ir: pip install 'headrace[quantize]'" in capsys.readouterr().err


def test_the_command_line_starts_without_what_quantizing_needs():
    code = "import headrace.cli, sys; assert not {'onnx', 'onnx_ir', 'onnxruntime'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env=plain_environment())


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=str
)
def test_whatever_stops_it_leaves_nothing(repository, data, number, status):
    command = [sys.executable, "-m", "headrace", "quantize", repository / "m", "--recipe", "int8", *data[:-1], "600"]
    before = signal.signal(number, signal.SIG_DFL)  # what nohup or a shell's `&` has the tests ignore, it is to hear
    process = subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE, text=True, env=plain_environment())
    signal.signal(number, before)
    assert process.stderr is not None
    with process, process.stderr:
        while "timing" not in process.stderr.readline():
            assert process.poll() is None
        assert len(list((repository / "m").iterdir())) == 2
        process.send_signal(number)
        assert process.wait(60) == status
        assert process.stderr.read() == ""
    assert [path.name for path in (repository / "m").iterdir()] == ["1"]


@pytest.mark.parametrize(
    ("recipe", "target"), [("int8", "cpu"), ("int8", "portable"), ("int4", "cpu"), ("fp16", "cpu")]
)
def test_what_is_made_is_served(repository, data, recipe, target):
    options = ["--recipe", recipe, "--target", target, "--min-relative-accuracy", "0.9"]
    assert quantize(repository / "m", *options, *data) == 0
    x = normal(3, WIDTH)
    session = open_session(repository / "m" / "2" / "model.onnx")
    with Server(repository) as server, InferenceServerClient(server.address) as client:
        reply = client.infer("m", [infer_input("x", x)], client_timeout=20)
        assert reply.get_response().model_version == "2"
        assert np.allclose(reply.as_numpy("y"), session.run(None, {"x": x})[0], atol=1e-5)


def test_a_full_disk_behind_standard_output_is_said_and_the_version_is_there(repository, data):
    command = [sys.executable, "-m", "headrace", "quantize", repository / "m", "--recipe", "int8", *data]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*map(str, command)], stdout=full, stderr=subprocess.PIPE, text=True, env=plain_environment(), timeout=120
        )
    assert done.returncode == 0, done.stderr
    said = f"headrace: standard output: No space left on device; {repository / 'm' / '2'}: written"
    assert said in done.stderr.splitlines()
    assert "Traceback" not in done.stderr
    assert (repository / "m" / "2" / "model.onnx").is_file()


@pytest.mark.parametrize("of_report", [False, True])
def test_a_full_disk_is_said_with_what_was_to_be_written(repository, data, tmp_path, monkeypatch, capsys, of_report):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    fails = "headrace.drift.packing.write_atomically" if of_report else "headrace.quantize.trials.save"
    monkeypatch.setattr(fails, full)
    report = tmp_path / "r.json"
    assert quantize(repository / "m", "--recipe", "int8", "--report", report, *data) == 2
    place, there = (report, f"; {repository / 'm' / '2'}: written") if of_report else (repository / "m", "")
    assert f"headrace: {place}: No space left on device{there}\n" in capsys.readouterr().err


@pytest.mark.parametrize(("versions", "said"), [("[1]", True), ('"all"', False), ('"latest:1"', False)])
def test_a_version_that_the_configuration_does_not_choose_is_told(repository, data, capsys, versions, said):
    (repository / "m" / "model.toml").write_text(f"versions = {versions}\n")
    assert quantize(repository / "m", "--recipe", "int8", *data) == 0
    told = "headrace: version 2 will not be served: `versions` in the model's configuration chooses 1\n"
    assert (told in capsys.readouterr().err) == said


def test_a_name_that_no_server_takes_is_told(repository, data, capsys):
    (repository / "m").rename(repository / "my model")
    assert quantize(repository / "my model", "--recipe", "int8", *data) == 0
    said = capsys.readouterr().err
    assert "headrace: my model will not be served: a model's name is letters, digits" in said
    assert "chooses" not in said
