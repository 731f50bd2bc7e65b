"""Where the clients of these tests lie, and how they are run: as processes, each in an environment of its own."""

import json
import os
import subprocess
from pathlib import Path

import pytest

PEERS = Path(os.environ.get("HEADRACE_PEERS", Path.home() / ".cache/headrace-peers"))
CLIENTS = Path(__file__).with_name("clients")
PYTHON = PEERS / "interop/python/bin/python"
ENVOY = PEERS / "interop/envoy/bin/envoy"
NODE_MODULES = PEERS / "interop/node/node_modules"
CLIENT_SECONDS = 60


def needs(*paths):
    """Skips where a client is not there."""
    missing = [path for path in paths if path is None or not Path(path).exists()]
    return pytest.mark.skipif(
        bool(missing), reason=f"{missing} not there: run tests/interop/setup, as `make test` does"
    )


def run(*command, **environment):
    """What a client writes; it must end well, and in time."""
    plain = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(
        [*map(str, command)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=CLIENT_SECONDS,
        check=False,
        env=plain | environment,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def report(*command, **environment):
    """The JSON that a client ends with: what it saw, by case."""
    return json.loads(run(*command, **environment).splitlines()[-1])
