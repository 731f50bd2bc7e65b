"""`python -m headrace_kernels check`, on a fake GPU whose launches run the kernels' own source."""

import json
import subprocess
import sys

import numpy as np
import pytest
from kernels.shim import needs_compiler

import headrace_kernels.__main__ as command
from headrace_kernels import cubins
from headrace_kernels.check import cases, run
from headrace_kernels.check.cases import LOADS, Load
from headrace_kernels.check.machine import Gpu
from headrace_kernels.operations import Quantize, SelectTop

SMALL_LOADS = [
    Load("a quantization", 16, lambda rng, rows: cases.quantize(rng, Quantize((rows, 30), -1))),
    Load("a selection", 5, lambda rng, rows: cases.top(rng, SelectTop(rows, 9, 2)), memory_bound=False),
]


@pytest.fixture
def fakes(monkeypatch):
    pytest.importorskip("cuda.core", reason="no cuda-core, whose signatures the fake has: it is for Linux")
    from kernels.fake_gpu import FakeCore, FakeDriver

    cubins.build(architectures=("90",))
    core, driver = FakeCore(), FakeDriver()
    monkeypatch.setitem(sys.modules, "cuda.core", core)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", driver)
    return core, driver


def few():
    rng = np.random.default_rng(0)
    return [cases.top(rng, SelectTop(3, 10, 2)), cases.scatter(rng, (2, 0, 5), 3, "float32", (2,))]


def check_few(**options):
    with Gpu() as gpu:
        return run.check(gpu, cases=few(), loads=SMALL_LOADS, copy_octets=1000, **options)


@needs_compiler
def test_a_gpu_whose_kernels_agree(fakes):
    lines = []
    report = check_few(tell=lines.append)
    assert report.facts == {"gpu": "Fake GPU", "compute_capability": "9.0", "driver_cuda": "13.0"}
    assert [result.wrong for result in report.results] == [None] * 4
    assert report.copy_gigabytes_per_second == pytest.approx(2 * 1000 / 0.2e-3 / 1e9)  # a millisecond for five copies
    quantized, selected = report.results[2:]
    assert quantized.microseconds == pytest.approx(200)
    assert quantized.of_copy == pytest.approx((16 * 30 * 5 + 30 * 4) / 2000)
    assert not quantized.slow()
    assert selected.of_copy == pytest.approx((5 * 9 * 4 + 5 * 2 * 8) / 2000)
    assert not selected.slow()  # it is not said to be bound by memory
    assert "a copy moves 0 GB/s, read and written" in lines
    assert lines[-1] == "agrees a selection: 200 us, 0 GB/s, 13% of a copy"
    assert fakes[1].memory == {}


@needs_compiler
def test_what_is_slow_is_said(fakes):
    with Gpu() as gpu:
        report = run.check(gpu, cases=(), loads=SMALL_LOADS, copy_octets=1_000_000)
    assert report.results[0].slow()
    assert report.results[0].line().endswith("0% of a copy (below 70%)")


@needs_compiler
def test_a_kernel_that_is_wrong_is_seen(fakes, monkeypatch, tmp_path, capsys):
    core, _ = fakes
    right = core.launch

    def launch(stream, config, kernel, *arguments):
        if kernel.startswith("scatter"):
            return
        right(stream, config, kernel, *arguments)

    core.launch = launch
    monkeypatch.setattr(run, "small", few)
    monkeypatch.setattr(command, "LOADS", SMALL_LOADS)
    monkeypatch.setattr(run.check, "__kwdefaults__", {**run.check.__kwdefaults__, "copy_octets": 1000})
    file = tmp_path / "report.json"
    assert command.main(["check", "--json", str(file)]) == 1
    told = capsys.readouterr().out
    assert "WRONG  ScatterRows(rows=3" in told
    assert "out: " in told
    assert "4 cases on Fake GPU: 1 wrong, " in told
    report = json.loads(file.read_text())
    assert [result["wrong"] is None for result in report["results"]] == [True, False, True, True]


@needs_compiler
def test_a_kernel_that_fails_is_a_result(fakes):
    _, driver = fakes
    failed = driver.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
    driver.fail["cuStreamSynchronize"] = failed
    report = check_few()
    assert {result.wrong for result in report.results} == {"GpuError: cuStreamSynchronize: CUDA_ERROR_ILLEGAL_ADDRESS"}
    assert report.results[-1].title == "a copy"


@needs_compiler
def test_quick_is_without_large_cases(fakes, monkeypatch, capsys):
    monkeypatch.setattr(run, "small", few)
    assert command.main(["check", "--quick"]) == 0
    assert "2 cases on Fake GPU: 0 wrong, 0 below 70% of a copy" in capsys.readouterr().out


def test_says_plainly_that_there_is_no_gpu(fakes, capsys):
    assert command.main(["check", "--device", "1"]) == 3
    assert "there is no GPU that can be used as device 1" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["cuda.core", "cuda.bindings.driver"])
def test_says_what_is_not_installed(fakes, monkeypatch, missing, capsys):
    monkeypatch.setitem(sys.modules, missing, None)
    assert command.main(["check"]) == 3
    assert "is not installed" in capsys.readouterr().err


def test_builds(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(cubins, "build", lambda architectures: asked.append(architectures) or ["one"])
    assert command.main(["build"]) == 0
    assert command.main(["build", "--architecture", "90"]) == 0
    assert asked == [cubins.ARCHITECTURES, ("90",)]
    assert "1 compiled, 34 were there" in capsys.readouterr().out


def test_imports_no_cuda():
    """Without cuda-core everything is there but a device."""
    code = (
        "import sys; sys.modules['cuda'] = None\n"
        "import headrace_kernels.__main__, headrace_kernels.device, headrace_kernels.host, headrace_kernels.reference\n"
        "sys.exit(headrace_kernels.__main__.main(['check']))"
    )
    path = {"PYTHONPATH": str(cubins.HERE.parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=path, check=False)
    assert done.returncode == 3, done.stderr
    assert "cuda-core is not installed" in done.stderr


@pytest.mark.parametrize("load", LOADS, ids=lambda load: load.title)
def test_loads_are_larger_than_a_cache(load):
    """The largest second-level caches are 126 MB (B200); a few rows of each load tell what all would move."""
    rows = 1 if load.rows < 100 else 64
    case = load.make(np.random.default_rng(0), rows)
    assert case.expected().keys() >= case.given.keys()
    assert case.operation.bytes_moved() / rows * load.rows > 200e6
