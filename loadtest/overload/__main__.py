"""How much is answered in time when more is asked of a server than it can do: Headrace beside NVIDIA Triton.

    make overload                                    ten minutes; a dated JSON and SVG in loadtest/results/
    python -m overload --rounds 1 --seconds 2        a short look

Independent callers (an open loop: they do not wait for one another) ask for one row each of a model that computes for
milliseconds, half of them with a deadline of 100 ms, half with one of 300 ms. The loads are shares of the rows/s that
ONNX Runtime reaches with the model alone at its best batch size, on one core; each server has that core, the callers
have another. A call counts if the right reply is there before its deadline, by the caller's clock. Servers take turns,
each is fresh in each round; figures are medians over the rounds. loadtest/peers/setup makes what is needed.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, get_args

from compare import machine
from compare.clients import pinned
from compare.drivers import LOADTEST, execute
from compare.figures import Unmeasured
from compare.oip import Client, framed
from compare.server import Setup, serving
from overload.arrivals import Pattern
from overload.plot import Line, svg

if TYPE_CHECKING:
    from collections.abc import Sequence

    from compare.server import Kind, Running

MODEL = "wide"
DEADLINES_MS = (100, 300)
LOADS = (0.4, 0.6, 0.8, 0.9, 1.0, 1.2, 1.5, 2.0)
WARM_SHARE, WARM_SECONDS = 0.3, 2


@dataclass(frozen=True)
class Side:
    """A server, and what it hears of deadlines. repository: of the peers' overload/. parameter: `timeout` says it."""

    name: str
    kind: Kind
    repository: str
    tells: bool = True
    parameter: bool = False


SIDES = (
    Side("Headrace", "headrace", "headrace"),
    Side("Headrace, not told of deadlines", "headrace", "headrace", tells=False),
    Side("Triton", "triton", "triton"),
    Side("Triton, queue with timeouts", "triton", "triton-timed", parameter=True),
)


def say(text: str) -> None:
    """Progress, apart from the table."""
    print(text, file=sys.stderr, flush=True)


def capacity(setup: Setup, core: str) -> float:
    """Rows/s of the model alone, with one thread on this core, at its best batch size."""
    command = [sys.executable, "-m", "compare.bare", str(setup.model(MODEL)), "--seconds", "1"]
    rates = json.loads(execute(pinned(command, core), timeout=120, env={"PYTHONPATH": str(LOADTEST)}))
    return float(max(rates.values()))


class Callers:
    """Loads on one running server."""

    def __init__(self, side: Side, server: Running, setup: Setup, core: str, pattern: Pattern) -> None:
        self._setup, self._address, self._core = setup, server.address, core
        bodies = []
        for deadline in DEADLINES_MS:
            body = setup.scratch / f"{side.repository}-{deadline}.grpc"
            body.write_bytes(framed(MODEL, 1, deadline * 1000 if side.parameter else None))
            bodies.append(str(body))
        self._options = ["--address", server.address, "--bodies", ",".join(bodies), "--pattern", pattern]
        self._options += ["--deadlines-ms", ",".join(map(str, DEADLINES_MS)), *(["--tells"] if side.tells else [])]

    def ask(self, rate: float, seconds: float, seed: int) -> dict[str, Any]:
        """So many calls a second. Before, one reply is compared with ONNX Runtime's own output. Raises Unmeasured."""
        with Client(self._address) as client:  # which also waits for what is left of a load before this one
            octets = client.verify(MODEL, 1, self._setup.model(MODEL))
        command = [sys.executable, "-m", "overload.client", *self._options, "--reply-octets", str(octets)]
        command += ["--rate", f"{rate:.6g}", "--seconds", f"{seconds:g}", "--seed", str(seed)]
        text = execute(pinned(command, self._core), timeout=seconds + 60, env={"PYTHONPATH": str(LOADTEST)})
        report: dict[str, Any] = json.loads(text)
        return report


def measure(side: Side, setup: Setup, cores: tuple[str, str], rates: Sequence[float], args: argparse.Namespace) -> Any:  # noqa: ANN401
    """The reports of all loads, the smallest first, on one fresh server."""
    setup = replace(setup, repositories={side.kind: setup.peers / "overload" / side.repository})
    reports = []
    with serving(side.kind, setup, MODEL, cores[0]) as server:
        callers = Callers(side, server, setup, cores[1], args.pattern)
        callers.ask(WARM_SHARE * rates[-1] / LOADS[-1], WARM_SECONDS, seed=0)
        for number, rate in enumerate(rates):
            report = callers.ask(rate, args.seconds, seed=number)
            report |= {"rate": rate, "in_time_per_second": report["in_time"] / args.seconds}
            reports.append(report)
            say(f"  {side.name}, {rate:,.0f} calls/s: {report['in_time'] / max(report['calls'], 1):.1%} in time")
            time.sleep(0.5)
    return reports


def table(lines: Sequence[Line]) -> str:
    """Answered in time, a row for each load."""
    head = " | ".join(["asked", *(line.name for line in lines)])
    rows = [
        f"{LOADS[at]:.0%} | " + " | ".join(f"{line.points[at][1]:.0%}" for line in lines) for at in range(len(LOADS))
    ]
    return "\n".join([f"| {head} |", "|" + "---|" * (len(lines) + 1), *(f"| {row} |" for row in rows)])


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        "overload", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="turns of each server (%(default)s)")
    parser.add_argument("--seconds", type=float, default=5, help="of each load (%(default)s)")
    parser.add_argument("--pattern", choices=get_args(Pattern), default="poisson", help="of arrivals (%(default)s)")
    parser.add_argument("--only", metavar="NAME", help="one of the servers, and no result is kept")
    parser.add_argument("--results", type=Path, default=LOADTEST / "results", help="directory (loadtest/results)")
    parser.add_argument("--headrace", default=str(Path(sys.executable).with_name("headrace")), help="its command")
    args = parser.parse_args()
    args.sides = [side for side in SIDES if args.only in (None, side.name)]
    if not args.sides:
        parser.error(f"no server {args.only}; there are {', '.join(side.name for side in SIDES)}")
    if args.rounds < 1 or args.seconds < 1:
        parser.error("at least one round of one second")
    return args


def main() -> int:
    """Measures all servers; returns the exit status."""
    args = arguments()
    # So that SIGTERM unwinds the stack and with it stops the server that runs.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    peers = Path(os.environ.get("HEADRACE_PEERS", Path.home() / ".cache/headrace-peers"))
    if not (peers / "overload").is_dir():
        say(f"nothing in {peers / 'overload'}: run loadtest/peers/setup first")
        return 2
    processors = sorted(os.sched_getaffinity(0))
    if len(processors) < 2:
        say("two cores are needed: one for the server, one for the callers")
        return 2
    cores = str(processors[0]), str(processors[1])
    date = datetime.now().astimezone()
    scratch = Path(tempfile.mkdtemp(prefix="headrace-overload-"))
    setup = Setup(peers, tuple(shlex.split(args.headrace)), LOADTEST / "peers/triton", scratch)
    facts = machine.facts(peers)
    try:
        alone = capacity(setup, cores[0])
        say(f"{MODEL} alone: {alone:,.0f} rows/s")
        rates = [load * alone for load in LOADS]
        rounds = []
        for number in range(args.rounds):
            say(f"round {number + 1} of {args.rounds}")
            rounds.append({side.name: measure(side, setup, cores, rates, args) for side in args.sides})
    except Unmeasured as error:
        say(f"not measured: {error}\nlogs of the servers: {scratch}")
        return 1
    shares = {
        side.name: [
            (load, median(told[side.name][at]["in_time_per_second"] for told in rounds) / alone)
            for at, load in enumerate(LOADS)
        ]
        for side in args.sides
    }
    lines = [Line(name, points) for name, points in shares.items()]
    print(table(lines))
    shutil.rmtree(scratch)
    if args.only:
        return 0
    path = args.results / f"overload-{date:%Y-%m-%d-%H%M}{'' if args.pattern == 'poisson' else f'-{args.pattern}'}.json"
    settings = {"rounds": args.rounds, "seconds": args.seconds, "pattern": args.pattern, "deadlines_ms": DEADLINES_MS}
    document = {
        "date": date.isoformat("T", "seconds"),
        "machine": facts,
        "settings": settings,
        "rows_per_second_alone": alone,
        "in_time": shares,
        "rounds": rounds,
    }
    args.results.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
    path.with_suffix(".svg").write_text(svg("Answered before their deadline, as more is asked", lines))
    print(f"\n{path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
