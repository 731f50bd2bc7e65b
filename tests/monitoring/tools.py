"""Prometheus as a process, and the programs that tests/monitoring/setup installs."""

import json
import os
import shutil
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
from e2e.server_process import eventually

ROOT = Path(__file__).parents[2]
BIN = Path(os.environ.get("HEADRACE_PEERS", Path.home() / ".cache/headrace-peers")) / "monitoring/bin"
START_SECONDS = 30


def found(*names):
    """The first of these programs that is there, or None."""
    places = [shutil.which(name) or shutil.which(name, path=BIN) for name in names]
    return next(filter(None, places), None)


PROMETHEUS, PROMTOOL = found("prometheus"), found("promtool")
CHROMIUM = found("chromium-headless-shell", "chromium")


def needs(program, name):
    """Skips where a program is not there."""
    return pytest.mark.skipif(
        program is None, reason=f"no {name}: run tests/monitoring/setup, as `make test` does, or install it"
    )


class Prometheus:
    """A server with this configuration file, ready when the constructor returns; a context manager that ends it."""

    def __init__(self, config, data):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        self.log = data / "prometheus.log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [PROMETHEUS, f"--config.file={config}", f"--storage.tsdb.path={data / 'tsdb'}",
                 f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=data,
            )  # fmt: skip
        try:
            eventually(self._up, START_SECONDS)
        except BaseException:
            self._end()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._end()

    def _end(self):
        self._process.kill()
        self._process.wait()

    def _up(self):
        assert self._process.poll() is None, self.log.read_text()[-4000:]
        try:
            with urllib.request.urlopen(f"{self.address}/-/ready", timeout=START_SECONDS) as reply:
                return reply.status == 200
        except OSError:
            return False

    def ask(self, path, **parameters):
        """The `data` of an answer of its API; raises AssertionError with what it says is wrong."""
        url = f"{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=START_SECONDS) as reply:
                return json.load(reply)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{parameters}: {error.read().decode()}") from None

    def samples(self, expr):
        """[(labels, value)] of an expression at this moment."""
        data = self.ask("query", query=expr)
        if data["resultType"] == "scalar":
            return [({}, float(data["result"][1]))]
        return [(series["metric"], float(series["value"][1])) for series in data["result"]]
