"""The API of TensorRT 10 and 11 against what the backend uses of it.

The type checker holds the code to the protocols in `bindings` and `api`; here these are held to NVIDIA's real modules,
which stub libraries let import without TensorRT, and to the code, which is to use all of them.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from backends.tensorrt import signatures

import headrace
from headrace.backends.tensorrt import api

HERE = Path(__file__).parent
HOME = Path(os.environ.get("HEADRACE_PEERS", Path.home() / ".cache" / "headrace-peers")) / "tensorrt"
SOURCES = Path(headrace.__file__).parent / "backends" / "tensorrt"


@pytest.mark.parametrize("major", ["10", "11"])
def test_nvidias_api_is_as_the_code_takes_it(major):
    pinned = (HERE / "stub" / f"{major}.txt").read_text().strip().partition("==")[2]
    if not (HOME / major / ".headrace-ready").exists():
        pytest.skip("tests/backends/tensorrt/stub/setup, which `make test` runs, has not set this up")
    environment = os.environ | {
        "LD_LIBRARY_PATH": str(HOME / major / "lib"),
        "PYTHONPATH": os.pathsep.join(map(str, (HOME / major / "site", Path(headrace.__file__).parents[1]))),
    }
    done = subprocess.run(
        [sys.executable, HERE / "signatures.py", "tensorrt_bindings"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [pinned]


def test_tensorrt_rtx_has_the_same(rtx):
    assert list(signatures.differences(rtx.trt)) == []


def test_differences_are_found(rtx):
    """So that the tests above mean something: what is not there, and calls of the wrong kind."""
    names = {name: getattr(rtx.trt, name) for name in dir(rtx.trt)}
    del names["Refitter"]
    names["Builder"] = SimpleNamespace(
        __init__=SimpleNamespace(__doc__="__init__(self: Builder) -> None"),
        create_network=SimpleNamespace(__doc__="create_network(self: Builder, flags: str) -> INetworkDefinition"),
        create_builder_config=SimpleNamespace(__doc__="create_builder_config(self: Builder) -> int"),
        create_optimization_profile=SimpleNamespace(__doc__=None),
    )
    found = "\n".join(signatures.differences(SimpleNamespace(**names)))
    for line in (
        "Refitter is missing",
        "Builder.build_serialized_network is missing",
        "Builder.__init__(ILogger) -> NoneType: it has",
        "Builder.create_network(int) -> INetworkDefinition: it has",
        "Builder.create_builder_config() -> IBuilderConfig: it has",
        "Builder.create_optimization_profile: its docstring has no signature",
    ):
        assert line in found


def test_nothing_is_written_down_that_is_not_used():
    code = "\n".join(path.read_text() for path in SOURCES.glob("*.py") if path.name != "bindings.py")
    used = set(re.findall(r"(?:\.|def )(\w+)", code))
    written = {
        name: f"{protocol.__name__}.{name}"
        for protocol in (*signatures.PROTOCOLS.values(), api.Module)
        for name in signatures.members(protocol)
    }
    assert {where for name, where in written.items() if name not in used} == set()
