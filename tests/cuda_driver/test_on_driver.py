"""What needs a GPU, on a driver of the tests' own: the real cuda-bindings and cuda-core call it, in processes apart."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from kernels.shim import build, needs_compiler

from gpu_check.registry import checks
from gpu_check.results import PASS
from headrace_kernels import cubins

pytest.importorskip("cuda.bindings", reason="pip install cuda-bindings")
pytest.importorskip("cuda.core", reason="pip install cuda-core")
pytestmark = [
    needs_compiler,
    pytest.mark.skipif(shutil.which("gcc") is None or sys.platform != "linux", reason="no gcc, or not Linux"),
]
ROOT = Path(__file__).parents[2]
DEVICE_CHECKS = [name for name, check in checks().items() if check.run.__module__ == "gpu_check.checks.device"]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Of a process that finds this driver, and the kernels on the host shim."""
    folder = tmp_path_factory.mktemp("driver")
    library = folder / "libcuda.so.1"
    source = Path(__file__).with_name("driver.c")
    command = ["gcc", "-O1", "-shared", "-fPIC", "-o", library, source, "-Wl,-soname,libcuda.so.1", "-ldl", "-lpthread"]
    subprocess.run(command, check=True, capture_output=True)
    shims = [str(build(source, cubins.source_text(source), folder)) for source in cubins.KERNELS]
    sources = os.pathsep.join(str(ROOT / source) for source in ("loadtest", "server", "kernels"))
    return os.environ | {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": sources, "SHIMS": ":".join(shims)}


def run(environment, *arguments):
    return subprocess.run(
        [sys.executable, "-m", *arguments], env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_the_device_layer_agrees_with_the_bindings(environment, tmp_path):
    """Each check of it as on a GPU: copies, events, graphs, memory, and a device that is lost."""
    done = run(
        environment, "gpu_check", "--packs", "none", "--only", ",".join(DEVICE_CHECKS), "--results", str(tmp_path)
    )
    (path,) = tmp_path.glob("*-h100-of-the-tests.json")
    found = json.loads(path.read_text())["checks"]
    assert [(check["name"], check["status"], check["reason"]) for check in found] == [
        (name, PASS, "") for name in DEVICE_CHECKS
    ]
    assert done.returncode == 0


def test_kernels_get_their_arguments_through_cuda_core(environment):
    """The cubins are loaded, and what is launched runs on the host shim, with the arguments as the driver gets them."""
    done = run(environment, "headrace_kernels", "check", "--quick")
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 wrong," in done.stdout


def test_kernels_that_compute_nothing_are_wrong(environment):
    done = run(environment | {"SHIMS": ""}, "headrace_kernels", "check", "--quick")
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()[:-1]
    assert lines
    assert all(line.startswith("WRONG") for line in lines)
