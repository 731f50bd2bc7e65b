"""Runs each load generator against a server to its end, and reads what it and the machine say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from compare import clients, process
from compare.figures import Unmeasured

if TYPE_CHECKING:
    from collections.abc import Sequence

    from compare.clients import H2loadReport, Load
    from compare.server import Running, Setup

LOADTEST = Path(__file__).parents[1]
FIRST_REQUESTS = 200
WARM_SECONDS = 1.0
FRAMES_PER_SECOND = 33_000
"""How many calls the frames client prepares for each second asked for, at most."""


@dataclass(frozen=True)
class Report:
    """What a client did: figures by name, and the counts to check. octets: of reply bodies, None if not known."""

    figures: dict[str, float]
    requests: int
    failed: int
    octets: int | None


class Meter:
    """Processor time and memory of a server between its making and its reading; of nothing without a process id."""

    def __init__(self, pid: int | None) -> None:
        self._pid = pid
        self._start = self._now()
        self._rss = process.rss_mib(pid) if pid else 0.0

    def _now(self) -> tuple[float, float, float, float]:
        server = process.cpu_seconds(self._pid) if self._pid else 0.0
        return time.monotonic(), server, process.clients_busy_seconds(), process.machine_busy_seconds()

    def read(self) -> dict[str, float]:
        """Figures: cpu_seconds, rss_before_mib, rss_after_mib, and other_cpu: 0 to 1, see process.py."""
        if not self._pid:
            return {}
        wall, server, client, busy = (now - then for now, then in zip(self._now(), self._start, strict=True))
        return {
            "cpu_seconds": server,
            "other_cpu": max(0.0, busy - server - client) / wall / (os.cpu_count() or 1),
            "rss_before_mib": self._rss,
            "rss_after_mib": process.rss_mib(self._pid),
        }


def execute(command: Sequence[str], timeout: float, env: dict[str, str] | None = None) -> str:
    """Runs a client to its end and returns all it printed. Raises Unmeasured when it is missing, hangs or fails."""
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unmeasured(str(error)) from error
    if done.returncode:
        raise Unmeasured(f"{command[0]} ended with {done.returncode}:\n{done.stdout}")
    return done.stdout


def send(load: Load, requests: int, address: str, payload: Path) -> H2loadReport:
    """Exactly so many requests by h2load, with the load's connections, concurrency, timeout and processors."""
    command = clients.h2load_command(load, requests, address, payload)
    report = clients.parse_h2load(execute(command, timeout=600))
    if not report.requests:
        raise Unmeasured(f"none of {requests} requests by h2load was answered")
    return report


def warm(load: Load, server: Running, payload: Path) -> float:
    """Sends what the load will send, for about a second; returns the requests/s that the server took."""
    if load.client == "frames":
        load = replace(load, timeout=None)
    rate = send(load, FIRST_REQUESTS, server.address, payload).throughput
    return send(load, max(FIRST_REQUESTS, round(rate * WARM_SECONDS)), server.address, payload).throughput


def h2load(load: Load, server: Running, setup: Setup, payload: Path, rate: float) -> Report:
    """As many requests as take about `load.seconds` at this rate."""
    del setup
    meter = Meter(server.pid)
    requests = max(FIRST_REQUESTS, round(rate * load.seconds))
    report = send(load, requests, server.address, payload)
    return Report({"throughput": report.throughput} | meter.read(), report.requests, report.failed, report.octets)


def perf_analyzer(load: Load, server: Running, setup: Setup, payload: Path, rate: float) -> Report:
    """Three windows. It makes messages of its own and reads the status of each reply itself."""
    del payload, rate
    libraries = sorted((setup.peers / "client/lib").glob("python3*/site-packages/nvidia/cuda_runtime/lib"))
    command = clients.perf_analyzer_command(load, server.address, setup.peers / "client/bin/perf_analyzer")
    meter = Meter(server.pid)
    text = execute(command, 10 * load.seconds + 60, {"LD_LIBRARY_PATH": ":".join(map(str, libraries))})
    used = meter.read()
    report = clients.parse_perf_analyzer(text)
    figures = {"throughput": report.throughput / load.batch, "p50_us": report.p50_us, "p99_us": report.p99_us}
    return Report(figures | used, report.requests, failed=0, octets=None)


def frames(load: Load, server: Running, setup: Setup, payload: Path, rate: float) -> Report:
    """The client of compare/frames.py, measured from when it has prepared its calls."""
    del setup
    requests = round(load.seconds * min(rate, FRAMES_PER_SECOND))
    command = [sys.executable, "-m", "compare.frames", "--address", server.address, "--payload", str(payload)]
    command += ["--connections", str(load.connections), "--concurrency", str(load.concurrency)]
    command += ["--requests", str(requests), "--timeouts", load.timeout or "none"]
    command += ["--vary"] if load.vary else []
    with subprocess.Popen(
        clients.pinned(command, load.pin),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(LOADTEST)},
    ) as child:
        try:
            if child.stdout is None or child.stdout.readline().strip() != "ready":
                raise Unmeasured("compare.frames did not get ready; its words are above")
            # The client's own time is known when it has ended, and then with its preparations: other_cpu is too low.
            meter = Meter(server.pid)
            out, _ = child.communicate("go\n", timeout=300)
        except subprocess.TimeoutExpired as error:
            raise Unmeasured(str(error)) from error
        finally:
            if child.poll() is None:
                child.kill()
    used = meter.read()
    if child.returncode:
        raise Unmeasured(f"compare.frames ended with {child.returncode}; its words are above")
    report = json.loads(out)
    figures = {"throughput": report["requests"] / report["seconds"]}
    return Report(figures | used, report["requests"], requests - report["requests"], report["octets"])


DRIVERS = {"h2load": h2load, "perf_analyzer": perf_analyzer, "frames": frames}
