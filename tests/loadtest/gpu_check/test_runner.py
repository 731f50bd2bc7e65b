"""Processes of checks: they crash, hang, leave others behind, and take too long; what came of the others is kept."""

import json
import os
import sys
import time
from pathlib import Path

import pytest

from gpu_check import results
from gpu_check.context import Context
from gpu_check.registry import Check
from gpu_check.results import FAIL, PASS, SKIP, Outcome
from gpu_check.runner import Runner

CHILD = """
import json, os, signal, subprocess, sys, time
name, context, answer = sys.argv[1:]
print("words of", name, flush=True)
if name == "crash":
    os.kill(os.getpid(), signal.SIGSEGV)
if name == "exit":
    sys.exit(3)
if name == "hang":
    left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    open(os.environ["LEFT"], "w").write(str(left.pid))
    time.sleep(600)
status = "FAIL" if name == "fail" else "PASS"
json.dump({"name": name, "status": status, "reason": "", "figures": {}, "seconds": 1, "output": ""}, open(answer, "w"))
"""


def check_named(name, seconds=1.0):
    return Check(name, name, (), seconds, True, lambda context: {})


@pytest.fixture
def run(tmp_path):
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    kept = []

    def start(*checks, seconds=60.0, cpu=False, least=40.0):
        runner = Runner(
            Context(tmp_path, tmp_path, cpu=cpu), os.environ | {"LEFT": str(tmp_path / "left")}, deadline=seconds,
            kept=lambda outcomes: kept.append([o.name for o in outcomes]), say=lambda text: None,
            command=(sys.executable, str(script)), clock=lambda: 0.0, least=least,
        )  # fmt: skip
        return runner.run(checks)

    start.kept = kept
    return start


def test_what_crashes_ends_nothing_else_and_all_is_kept_after_each(run):
    outcomes = run(*map(check_named, ("crash", "exit", "fail", "fine")))
    assert [(o.status, o.reason) for o in outcomes] == [
        (FAIL, "its process ended with SIGSEGV"),
        (FAIL, "its process ended with status 3"),
        (FAIL, ""),
        (PASS, ""),
    ]
    assert [o.output.strip() for o in outcomes] == ["words of crash", "words of exit", "words of fail", ""]
    assert run.kept == [["crash"], ["crash", "exit"], ["crash", "exit", "fail"], ["crash", "exit", "fail", "fine"]]


def test_what_hangs_is_ended_with_all_that_it_started(run, tmp_path):
    """It gets three times what it should take: 1.5 s."""
    (outcome,) = run(check_named("hang", seconds=0.5), least=0)
    assert (outcome.status, outcome.reason) == (FAIL, "not done within 2 s")
    left = Path("/proc", (tmp_path / "left").read_text(), "stat")
    deadline = time.monotonic() + 20
    while left.exists() and not left.read_text().rpartition(") ")[2].startswith("Z"):  # ended, not yet awaited by init
        assert time.monotonic() < deadline, "what the check has started goes on"


def test_on_the_processor_times_of_a_gpu_say_nothing(run):
    (outcome,) = run(check_named("fine", seconds=61), cpu=True)
    assert outcome.status == PASS


def test_what_there_is_no_time_for_is_skipped_and_a_shorter_one_behind_it_is_made(run):
    outcomes = run(check_named("long", seconds=61), check_named("fine", seconds=1))
    assert [(o.status, o.reason) for o in outcomes] == [
        (SKIP, "no time: it takes about 61 s, 60 s are left"),
        (PASS, ""),
    ]


def outcome(name="a", **more):
    return Outcome(name, **{"status": PASS, "figures": {"x": 1.5}, **more})


def test_the_file_holds_everything_so_far(tmp_path):
    path = tmp_path / "gpu" / "r.json"
    results.write(path, {"gpu": "H100"}, {"seconds": 1}, [outcome(), outcome("b", status=SKIP, reason="why")])
    document = json.loads(path.read_text())
    assert (document["machine"], document["settings"]) == ({"gpu": "H100"}, {"seconds": 1})
    assert [(c["name"], c["status"], c["reason"]) for c in document["checks"]] == [("a", PASS, ""), ("b", SKIP, "why")]
    assert list(path.parent.iterdir()) == [path]


def test_its_name_is_of_the_day_and_the_gpu():
    name = results.file_name("2026-11-26T10:00:00+00:00", "NVIDIA H100 80GB HBM3")
    assert name == "2026-11-26-nvidia-h100-80gb-hbm3.json"


def test_a_result_is_never_written_over(tmp_path):
    (tmp_path / "r.json").touch()
    assert results.free_path(tmp_path, "r.json").name == "r-2.json"
    (tmp_path / "r-2.json").touch()
    assert results.free_path(tmp_path, "r.json").name == "r-3.json"


def test_drawings_lie_beside_the_result(tmp_path):
    drawings = tmp_path / "drawings"
    drawings.mkdir()
    (drawings / "overlap.svg").write_text("<svg/>")
    assert results.keep_drawings(tmp_path / "r-2.json", drawings) == [tmp_path / "r-2-overlap.svg"]
    assert (tmp_path / "r-2-overlap.svg").read_text() == "<svg/>"
    assert results.keep_drawings(tmp_path / "r.json", tmp_path / "none") == []
