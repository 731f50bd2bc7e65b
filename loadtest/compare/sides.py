"""What a row measures: a load on a server, bare ONNX Runtime, or a server's memory over many requests."""

from __future__ import annotations

import json
import sys
import threading
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from compare import clients, process
from compare.drivers import LOADTEST, execute, send
from compare.figures import Sample, Target, Unmeasured, unsound
from compare.load import measure
from compare.oip import Client, framed
from compare.server import Kind, Setup, serving

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from compare.clients import Load

MEMORY_WARM_SHARE = 0.05
MEMORY_STEPS = 8
RELOAD_SECONDS = 0.5


@dataclass(frozen=True)
class Side:
    """One of the parties of a row. `measure` starts what it needs, measures once, and leaves nothing behind."""

    name: str
    measure: Callable[[Setup], Sample]


@dataclass(frozen=True)
class Row:
    """One line of the table to reach: ours is the first side, the peer the last (which may be the same one)."""

    name: str
    title: str
    sides: tuple[Side, ...]
    targets: tuple[Target, ...]
    rounds: int | None = None
    """At most so many rounds, where one says all."""


def served(kind: Kind, load: Load, name: str | None = None, pin: str | None = None) -> Side:
    """A fresh server of this kind under this load."""

    def once(setup: Setup) -> Sample:
        with serving(kind, setup, load.model, pin) as server:
            return measure(server, replace(load, seconds=setup.seconds), setup)

    return Side(name or kind, once)


def reloaded(load: Load, name: str) -> Side:
    """Our server, whose model is loaded again every `RELOAD_SECONDS` under this load."""

    def once(setup: Setup) -> Sample:
        with serving("explicit", setup, load.model) as server:
            stop = threading.Event()
            loads: list[float] = []
            failures: list[str] = []

            def again() -> None:
                with Client(server.address) as client:
                    while not stop.wait(RELOAD_SECONDS) and not failures:
                        began = time.monotonic()
                        try:
                            client.load(load.model)
                        except Unmeasured as error:
                            failures.append(str(error))
                        loads.append(time.monotonic() - began)

            loader = threading.Thread(target=again)
            loader.start()
            try:
                sample = measure(server, replace(load, seconds=setup.seconds), setup)
            finally:
                stop.set()
                loader.join()
        details = {"loads": len(loads), "load_seconds": sum(loads) / max(len(loads), 1)}
        return Sample(sample.figures, [*sample.problems, *failures], sample.details | details)

    return Side(name, once)


def bare(model: str, pin: str | None) -> Side:
    """ONNX Runtime with one thread on the processors `pin`: its best batch size counts."""

    def once(setup: Setup) -> Sample:
        command = [sys.executable, "-m", "compare.bare", str(setup.model(model)), "--seconds", str(setup.seconds / 6)]
        text = execute(clients.pinned(command, pin), timeout=120, env={"PYTHONPATH": str(LOADTEST)})
        rates = {int(batch): float(rate) for batch, rate in json.loads(text).items()}
        best = max(rates, key=rates.__getitem__)
        return Sample({"rows_per_second": rates[best], "best_batch": best}, details={"rows_per_second_by_batch": rates})

    return Side("bare ORT", once)


def memory(kind: Kind, load: Load) -> Side:
    """A server's resident memory over many requests, counted exactly, read after each of several equal parts."""

    def once(setup: Setup) -> Sample:
        payload = setup.scratch / f"{load.model}-memory.grpc"
        payload.write_bytes(framed(load.model, load.batch))
        warm, part = int(setup.memory_requests * MEMORY_WARM_SHARE), setup.memory_requests // MEMORY_STEPS
        problems: list[str] = []
        with serving(kind, setup, load.model) as server, Client(server.address) as client:
            if server.pid is None:
                raise Unmeasured("the memory of a server that is not ours cannot be read")
            curve = [(0, process.rss_mib(server.pid))]
            size = client.verify(load.model, load.batch, setup.model(load.model))
            for requests in (warm, *[part] * MEMORY_STEPS):
                problems += _part(client, load, server.address, payload, requests, size)
                curve.append((curve[-1][0] + requests, process.rss_mib(server.pid)))
        after = [rss for _, rss in curve[2:]]
        figures = {"rss_start_mib": curve[0][1], "rss_warm_mib": curve[1][1], "rss_peak_mib": max(after)}
        return Sample(figures | {"rss_end_mib": after[-1]}, problems, {"rss_mib_by_requests": dict(curve)})

    return Side(kind, once)


def _part(client: Client, load: Load, address: str, payload: Path, requests: int, reply_size: int) -> list[str]:
    """Sends exactly so many requests; returns what does not add up."""
    known = client.counts(load.model)
    report = send(load, requests, address, payload)
    now = client.counts(load.model)
    return unsound(
        requests=requests,
        failed=report.failed,
        replies=round(report.octets / reply_size),
        confirmed=now.success - known.success if known and now else None,
        refused=now.fail - known.fail if known and now else None,
        exact=True,
    )
