"""The wheel, as a user gets it: built, installed where the project is not, and serving."""

import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import tritonclient.grpc as triton
from e2e.calls import SECONDS, tensor
from e2e.server_process import Server, plain_environment

ROOT = Path(__file__).parents[1]
BUILD_SECONDS = 100


def run(*command, **options):
    done = subprocess.run(
        [*map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=BUILD_SECONDS,
        check=False,
        **options,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    directory = tmp_path_factory.mktemp("wheel")
    if sys.platform == "linux":  # for which NVRTC is
        run(sys.executable, "-m", "headrace_kernels", "build")  # as `make wheel` does
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", directory, cwd=ROOT)
    (built,) = directory.glob("headrace-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The commands of an environment that holds the wheel, and sees the dependencies of this one, but not its headrace.

    A path that a .pth file names is searched, while the .pth files in it, an editable install among them, are not read.
    """
    home = tmp_path_factory.mktemp("installed")
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    return home / "bin"


@pytest.fixture
def elsewhere(tmp_path):
    """A directory without the project, and the environment variables without a path to it."""
    environment = plain_environment()
    environment.pop("PYTHONPATH", None)
    return {"cwd": tmp_path, "env": environment}


def test_holds_the_packages_and_nothing_else(wheel):
    with ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(next(name for name in names if name.endswith(".dist-info/METADATA"))).decode()
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"headrace", "headrace_kernels"}
    assert {"headrace/cli.py", "headrace/rpc/inference_pb2.py", "headrace/transport/http2/hpack.py"} <= set(names)
    assert not [name for name in names if "__pycache__" in name or "test_" in name]
    sources = {f"headrace/{path.relative_to(ROOT / 'server/headrace')}" for path in (ROOT / "server").rglob("*.py")}
    assert sources <= set(names)
    kernels = {str(path.relative_to(ROOT / "kernels")) for path in (ROOT / "kernels").rglob("*.cu*")}
    assert {"headrace_kernels/cuda/common.cuh", "headrace_kernels/cuda/images.cu"} <= kernels <= set(names)
    assert len([name for name in kernels if name.endswith(".cubin")]) >= (5 * 7 if sys.platform == "linux" else 0)
    assert "Requires-Python: >=3.11" in metadata
    assert "Requires-Dist: onnxruntime" in metadata
    assert "Requires-Dist: cuda-core>=1.2; extra == 'gpu'" in metadata


def test_imports_from_where_it_was_installed(installed, elsewhere):
    found = run(installed / "python", "-c", "import headrace.cli; print(headrace.__file__)", **elsewhere)
    assert Path(found.strip()).is_relative_to(installed.parent)


def test_has_kernels_for_every_gpu_and_says_that_there_is_none(installed, elsewhere):
    code = "from headrace_kernels import cubins as c; print(all(c.choose(s, (9, 0)) for s in c.KERNELS), c.HERE)"
    found, _, where = run(installed / "python", "-c", code, **elsewhere).strip().partition(" ")
    assert found == str(sys.platform == "linux")
    assert Path(where).is_relative_to(installed.parent)
    checked = subprocess.run(
        [installed / "python", "-c", "import sys; sys.modules['cuda'] = None; import runpy; sys.argv[1:] = ['check'];"
         "runpy.run_module('headrace_kernels', run_name='__main__')"],
        capture_output=True, text=True, check=False, **elsewhere,
    )  # fmt: skip
    assert checked.returncode == 3
    assert "headrace_kernels: cuda-core is not installed" in checked.stderr


def test_serves_digits(installed, elsewhere, tmp_path):
    repository = tmp_path / "models"
    shutil.copytree(ROOT / "models" / "digits", repository / "digits")
    with np.load(repository / "digits" / "heldout.npz") as held_out:
        pixels, labels = held_out["pixels"][:10], held_out["labels"][:10]
    with Server(repository, command=[installed / "headrace"], environment=elsewhere["env"]) as server:
        with triton.InferenceServerClient(server.address) as client:
            result = client.infer("digits", [tensor("pixels", pixels)], client_timeout=SECONDS)
        assert (result.as_numpy("label") == labels).sum() >= 9
        listed = run(installed / "headrace", "models", "--url", server.address, **elsewhere)
        assert "digits  1        READY" in listed
        assert server.stop() == 0
