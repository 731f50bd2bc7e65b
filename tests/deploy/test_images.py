"""The images, as far as they can be seen without a container engine.

hadolint reads the Dockerfiles; what they copy is copied, and a wheel built of it alone and installed in an environment
of its own; the server starts by the entry point and answers the health check there.
"""

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest
from deploy.dockerfile import Ignored, copy_context, environment, only, stages
from e2e.server_process import Server, eventually, plain_environment

ROOT = Path(__file__).parents[2]
GPU, CPU = ROOT / "Dockerfile.gpu", ROOT / "deploy" / "Dockerfile.cpu"
REQUIREMENTS = ROOT / "deploy" / "requirements-gpu.txt"
both = pytest.mark.parametrize("path", [GPU, CPU], ids=["gpu", "cpu"])


def run(*command, **options):
    done = subprocess.run(
        [*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=100, check=False,
        **options,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


def pins(path):
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("==") for line in lines)


@both
def test_hadolint_finds_nothing(path):
    assert run(Path(sys.executable).with_name("hadolint"), path) == ""


def test_hadolint_would_find_something(tmp_path):
    (tmp_path / "Dockerfile").write_text("FROM debian\nRUN apt-get install python3\n")
    with pytest.raises(AssertionError, match="DL3006"):
        run(Path(sys.executable).with_name("hadolint"), tmp_path / "Dockerfile")


@both
def test_it_is_built_in_one_stage_and_run_in_another_by_nobody(path):
    build, final = stages(path)
    assert only(build, "FROM").words[1:] == ["AS", "build"]
    assert only(final, "FROM").words[0] == only(build, "FROM").words[0]  # the same Python
    assert [i.flags["from"] for i in final if i.keyword == "COPY"] == ["build"]
    assert int(only(final, "USER").text.partition(":")[0]) >= 10000
    keywords = [i.keyword for i in final]
    assert keywords.index("USER") > max(n for n, keyword in enumerate(keywords) if keyword in ("RUN", "COPY"))


@both
def test_versions_are_pinned(path):
    """Each pip install is under constraints, or of a list of pins."""
    commands = [part for stage in stages(path) for i in stage if i.keyword == "RUN" for part in i.text.split("&&")]
    installs = [command for command in commands if "pip install" in command]
    assert installs
    assert all("-c constraints.txt" in c or "requirements-gpu.txt" in c for c in installs)
    assert re.search(r":\d+\.\d+", only(stages(path)[0], "FROM").text)


def test_the_backends_fit_one_another():
    """onnxruntime-gpu 1.31's TensorRT provider loads libnvinfer.so.10, and its libraries are those of CUDA 13."""
    pinned = pins(REQUIREMENTS)
    constraints = pins(ROOT / "constraints.txt")
    assert pinned["onnxruntime-gpu"] == constraints["onnxruntime-gpu"]
    assert pinned["onnxruntime-gpu"].startswith("1.31.")
    assert {pinned[name] for name in pinned if name.startswith("tensorrt-cu13")} == {pinned["tensorrt-cu13"]}
    assert pinned["tensorrt-cu13"].startswith("10.")
    majors = {"nvidia-cublas": "13", "nvidia-cuda-runtime": "13", "nvidia-cufft": "12", "nvidia-curand": "10",
              "nvidia-cudnn-cu13": "9"}  # fmt: skip
    assert {name: pinned[name].partition(".")[0] for name in majors} == majors
    assert only(stages(GPU)[0], "FROM").text.startswith("nvidia/cuda:13.")
    shared = pinned.keys() & constraints.keys()
    assert {name: pinned[name] for name in shared} == {name: constraints[name] for name in shared}


def test_onnxruntime_is_replaced_by_the_one_for_gpus():
    (steps,) = [i.text for i in stages(GPU)[0] if i.keyword == "RUN" and "/wheels/headrace-" in i.text]
    order = [
        steps.index(step)
        for step in ("/wheels/headrace-", "uninstall -y onnxruntime ", "--force-reinstall onnxruntime-gpu")
    ]
    assert order == sorted(order)


def test_libraries_are_found_where_packages_put_them():
    places = environment(stages(GPU)[1])["LD_LIBRARY_PATH"].split(":")
    site = "/opt/headrace/lib/python3.12/site-packages"
    assert places == [f"{site}/nvidia/cu13/lib", f"{site}/nvidia/cudnn/lib", f"{site}/tensorrt_libs"]


@both
def test_everything_that_the_wheel_is_made_of_is_copied(path):
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"][
        "packages"
    ]
    copied = {word for i in stages(path)[0] if i.keyword == "COPY" for word in i.words[:-1]}
    assert {package.partition("/")[0] for package in packages} <= copied


def test_nothing_else_gets_into_a_build():
    ignored = Ignored(ROOT / ".dockerignore")
    for name in (".git/config", ".venv/bin/python", ".gpu/wheels/a.whl", "tests/conftest.py", "models/vad/1/model.onnx",
                 "server/headrace/__pycache__/cli.pyc", "deploy/Dockerfile.cpu", ".env"):  # fmt: skip
        assert Path(name) in ignored, name
    for name in ("server/headrace/cli.py", "pyproject.toml", "deploy/requirements-gpu.txt"):
        assert Path(name) not in ignored, name


@pytest.fixture(scope="module", params=[GPU, CPU], ids=["gpu", "cpu"])
def image(request, tmp_path_factory):
    """(final stage, directory of commands) of an environment with the wheel that was built of what is copied alone."""
    build, final = stages(request.param)
    source, home = tmp_path_factory.mktemp("src"), tmp_path_factory.mktemp("image")
    files = [
        path.relative_to(ROOT)
        for place in ("server", "kernels", "deploy")
        for path in (ROOT / place).rglob("*")
        if path.is_file()
    ]
    files += [path.relative_to(ROOT) for path in ROOT.iterdir() if path.is_file()]
    copy_context(ROOT, files, Ignored(ROOT / ".dockerignore"), build, source)
    (step,) = [i.text for i in build if i.keyword == "RUN" and "hatchling build" in i.text]
    assert step.endswith("/opt/build/bin/hatchling build -t wheel -d /wheels")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", home / "wheels", cwd=source)
    (wheel,) = (home / "wheels").glob("headrace-*.whl")
    venv.create(home / "env", with_pip=False)
    python = home / "env/bin/python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel)
    # What it depends on is this environment's: a test installs nothing from elsewhere.
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    return final, home / "env/bin"


def test_it_starts_answers_its_health_check_and_stops(image, tmp_path):
    final, commands = image
    entry, (serve, *arguments) = only(final, "ENTRYPOINT").words, only(final, "CMD").words
    assert (entry, serve) == (["headrace"], "serve")
    assert arguments[arguments.index("--host") + 1] == "0.0.0.0"
    kept = [arguments[n] for n in range(len(arguments)) if "--model-repository" not in arguments[max(n - 1, 0) : n + 1]]
    environ = {n: v for n, v in plain_environment().items() if n != "PYTHONPATH"}
    environ |= {n: v.replace("$PATH", os.environ["PATH"]) for n, v in environment(final).items() if n != "PATH"}
    environ["PATH"] = f"{commands}:{os.environ['PATH']}"
    healthy = only(final, "HEALTHCHECK").text.partition("CMD ")[2]
    program, *rest = re.findall(r'"([^"]*)"', healthy)
    (tmp_path / "models").mkdir()

    def check(port):
        words = [word.replace("127.0.0.1:8000", f"127.0.0.1:{port}") for word in rest]
        assert any(str(port) in word for word in words)
        return subprocess.run(
            [commands / program, *words], env=environ, timeout=30, check=False, capture_output=True
        ).returncode

    command = [commands / entry[0]]
    with Server(tmp_path / "models", *kept, command=command, environment=environ) as server:
        port = int(server.http.rpartition(":")[2])
        assert check(port) == 0
        assert server.stop() == 0
    assert eventually(lambda: check(port)) != 0
