"""`headrace serve` as a process of its own, and what a test asks of it from outside."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from itertools import dropwhile
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

HEADRACE = Path(sys.executable).with_name("headrace")
TESTS = Path(__file__).parents[1]
START_SECONDS = 60
STOP_SECONDS = 40
WAIT_SECONDS = 20

_READY = re.compile(r"ready: gRPC \((\w+)\) on \S+:(\d+), HTTP on port (\d+)")


class Server:
    """A server on free ports of the loopback, ready when the constructor returns; a context manager that ends it.

    flags: as on the command line. command, environment: how to start it, if not as this environment's `headrace`.
    context: what `get` makes connections with, if its HTTP port speaks TLS.
    """

    def __init__(self, repository, *flags, command=(HEADRACE,), environment=None, context=None):
        self.returncode = None
        self.context = context
        self.repository = Path(repository)
        self._lines = deque(maxlen=2000)
        self._changed = threading.Condition()
        self._process = subprocess.Popen(
            [*map(str, command), "serve", "--model-repository", str(repository),
             "--grpc-port", "0", "--http-port", "0", *map(str, flags)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=plain_environment() if environment is None else environment,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            line = self.await_log(_READY.search, START_SECONDS)
        except BaseException:
            self.kill()
            raise
        self.transport, grpc_port, http_port = _READY.search(line).groups()
        self.address = f"127.0.0.1:{grpc_port}"
        self.port = int(grpc_port)
        self.http = f"{'https' if context else 'http'}://127.0.0.1:{http_port}"

    def __enter__(self):
        return self

    def __exit__(self, error, *_):
        self.kill()
        if error is not None:
            print(self.log_since_ready)

    def __repr__(self):
        return f"<Server {self._process.pid}, {len(self._lines)} lines of log>"

    # --- the log ------------------------------------------------------------------------------------------------------

    @property
    def log(self):
        """What it has written so far."""
        return "".join(self._lines)

    @property
    def log_since_ready(self):
        """What it has written about its service."""
        return "".join(dropwhile(lambda line: not _READY.search(line), list(self._lines)))

    def await_log(self, matches, seconds=WAIT_SECONDS):
        """The first line for which `matches` is true; raises AssertionError with the log if there is none in time."""
        with self._changed:
            self._changed.wait_for(lambda: self._find(matches) or not self._reader.is_alive(), seconds)
            line = self._find(matches)
        assert line, f"not in the log of {self._process.args}:\n{self.log}"
        return line

    def _find(self, matches):
        return next((line for line in self._lines if matches(line)), None)

    def _read(self):
        with self._process.stdout as out:
            for line in out:
                with self._changed:
                    self._lines.append(line)
                    self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    # --- its HTTP port ------------------------------------------------------------------------------------------------

    def get(self, path):
        """(status, body) of a GET."""
        try:
            with urllib.request.urlopen(self.http + path, timeout=WAIT_SECONDS, context=self.context) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def get_json(self, path):
        """(status, parsed body) of a GET."""
        status, body = self.get(path)
        return status, json.loads(body)

    def metric(self, name, **labels):
        """The sum of the samples of a metric that have these labels."""
        lines = (line for line in self.get("/metrics")[1].splitlines() if line.startswith(name))
        families = text_string_to_metric_families("\n".join(lines))  # of these lines alone: the parser is slow
        samples = [sample for family in families for sample in family.samples if sample.name == name]
        return sum(sample.value for sample in samples if sample.labels.items() >= labels.items())

    def waiting(self, model):
        """How many requests wait in the queue of a model."""
        return self.metric("headrace_queue_requests", model=model)

    # --- its end ------------------------------------------------------------------------------------------------------

    def signal(self, number=signal.SIGTERM):
        """Sends a signal."""
        self._process.send_signal(number)

    def wait(self, seconds=STOP_SECONDS):
        """The exit code, once it has ended."""
        self.returncode = self._process.wait(seconds)
        self._reader.join(seconds)
        return self.returncode

    def stop(self):
        """SIGTERM; the exit code."""
        self.signal()
        return self.wait()

    def kill(self):
        """Ends it for certain."""
        self._process.kill()
        self.wait()


def plain_environment(**more):
    """The environment without any setting of Headrace's, in which tests' own backends are found."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    path = os.pathsep.join(filter(None, (str(TESTS), plain.get("PYTHONPATH"))))
    return plain | {"PYTHONPATH": path} | more


def eventually(condition, seconds=WAIT_SECONDS):
    """Asks again and again until `condition()` is true, and returns its value; raises AssertionError after `seconds`.

    For the state of another process, which gives no notice. Between questions it leaves that the processor, for longer
    as the wait grows, to 20 ms: questions without a pause kept a core busy that the answer may depend on.
    """
    began = time.monotonic()
    while not (value := condition()):
        waited = time.monotonic() - began
        assert waited < seconds, f"not true within {seconds} s: {condition}"
        time.sleep(min(waited / 10, 0.02))
    return value
