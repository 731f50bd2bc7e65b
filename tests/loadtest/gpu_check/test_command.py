"""`make gpu-check`, without its GPU."""

import json
import os
import subprocess
import sys

import pytest

from gpu_check import __main__ as command
from gpu_check.context import ROOT
from gpu_check.results import FAIL, PASS, SKIP, Outcome
from gpu_check.runner import Runner


def gpu_check(*arguments, packs="none", **more):
    environ = os.environ | {"PYTHONPATH": str(ROOT / "loadtest")} | more
    return subprocess.run(
        [sys.executable, "-m", "gpu_check", "--packs", str(packs), *map(str, arguments)],
        env=environ,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_without_a_gpu_everything_is_skipped_for_that_reason_and_nothing_is_kept(tmp_path):
    """CUDA_VISIBLE_DEVICES hides those that there may be."""
    before = set((ROOT / "loadtest/results/gpu").glob("*"))
    done = gpu_check("--only", "device-copies,overlap", PATH=str(tmp_path), CUDA_VISIBLE_DEVICES="-1")
    assert done.returncode == 0, done.stderr
    assert "SKIP device-copies: no NVIDIA GPU" in done.stdout
    assert "0 passed, 0 failed, 2 skipped" in done.stdout
    assert set((ROOT / "loadtest/results/gpu").glob("*")) == before


def test_a_run_on_the_processor_says_that_it_was_one(tmp_path):
    done = gpu_check("--cpu", "--only", "device-memory,overlap", "--results", tmp_path, "--measure", 0.1)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("*-cpu.json")
    document = json.loads(path.read_text())
    assert document["settings"]["cpu"] is True
    assert document["machine"]["packages"]["numpy"]
    assert [(c["name"], c["status"], c["reason"]) for c in document["checks"]] == [
        ("device-memory", PASS, ""),
        ("overlap", SKIP, "only on a GPU"),
    ]
    assert not (ROOT.name in json.dumps(document["machine"]) and str(ROOT) in json.dumps(document))


@pytest.mark.parametrize("git", [False, True], ids=["no git", "git"])
def test_the_caller_can_tell_the_revision(tmp_path, git):
    """Where there is no git on the PATH, and where it knows of another one."""
    options = ("--cpu", "--only", "device-events", "--results", tmp_path, "--revision", "a1b2c3")
    done = gpu_check(*options, **({} if git else {"PATH": str(tmp_path)}))
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("*-cpu.json")
    machine = json.loads(path.read_text())["machine"]
    assert (machine["revision"], machine["uncommitted_changes"]) == ("a1b2c3", None)


def test_a_long_figure_is_printed_in_part():
    line = str(Outcome("it", PASS, figures={"timeline": list(range(1000)), "rate": 2.0}))
    assert "..., all of it in the result" in line
    assert len(line) < 400
    assert "rate = 2" in line


def test_unknown_checks_are_refused():
    done = gpu_check("--only", "no-such")
    assert done.returncode == 2
    assert "no check no-such; there are environment" in done.stderr


def test_packs_that_cannot_be_used_end_the_run(tmp_path):
    (tmp_path / "part0").mkdir()
    (tmp_path / "part0" / "ort.tar.xz.00").write_bytes(b"half")
    (tmp_path / "part0" / "ort.json").write_text('{"parts": 2, "sha256": ""}')
    done = gpu_check("--cpu", "--only", "device-memory", packs=tmp_path)
    assert done.returncode == 2
    assert "1 parts of onnxruntime-gpu, expected 2" in done.stdout


@pytest.mark.parametrize(
    ("statuses", "status", "said"),
    [
        ((PASS, SKIP), 0, "1 passed, 0 failed, 1 skipped"),
        ((PASS, FAIL, SKIP), 1, "1 passed, 1 failed, 1 skipped"),
        ((SKIP,), 0, "0 passed, 0 failed, 1 skipped"),
    ],
)
def test_the_exit_status_says_failures(monkeypatch, capsys, tmp_path, statuses, status, said):
    monkeypatch.setattr(Runner, "run", lambda runner, checks: [Outcome("it", each) for each in statuses])
    monkeypatch.setattr(command, "facts", lambda environ, device: {"gpu": None, "driver": None, "driver_cuda": None})
    monkeypatch.setattr(command.signal, "signal", lambda *_: None)
    monkeypatch.setattr("sys.argv", ["gpu_check", "--packs", str(tmp_path)])
    assert command.main() == status
    assert said in capsys.readouterr().out
