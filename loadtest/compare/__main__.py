"""Starts Headrace and NVIDIA Triton in turn, puts the same loads on both, and prints the ratios beside their targets.

    make compare                                  every row, three rounds; a dated JSON in loadtest/results/
    python -m compare --quick --rows tab-h2load   one short round of one row; nothing is kept

The sides of a row take turns (A B A B), never two at once, each on a fresh server with default settings; ratios are of
the medians over the rounds. Before each load one reply is compared with ONNX Runtime's own output, and after it the
client's count, the octets that it received and the server's ModelStatistics have to agree. It ends with 0 when every
row could be measured, targets met or not. loadtest/peers/setup makes what is needed.
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
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from compare import machine
from compare.drivers import LOADTEST
from compare.figures import Sample, Unmeasured
from compare.report import UNITS, Outcome, document, number, table
from compare.rows import rows
from compare.server import Setup

if TYPE_CHECKING:
    from compare.sides import Row


def say(text: str) -> None:
    """Progress, apart from the table."""
    print(text, file=sys.stderr, flush=True)


def compare(row: Row, setup: Setup, rounds: int) -> Outcome:
    """All rounds of one row; a side that cannot be measured ends it."""
    outcome = Outcome(row, {side.name: [] for side in row.sides})
    say(f"\n{row.name}: {row.title}")
    rounds = min(rounds, row.rounds or rounds)
    try:
        for turn in range(rounds):
            for side in row.sides:
                sample = side.measure(setup)
                outcome.samples[side.name].append(sample)
                say(f"  round {turn + 1} of {rounds}, {side.name}: {brief(sample)}")
    except Unmeasured as error:
        outcome.unmeasured = f"not measured: {error}"
        say(f"  {outcome.unmeasured}")
    outcome.judge()
    return outcome


def brief(sample: Sample) -> str:
    """A sample in one line."""
    shown = dict(UNITS)
    if "throughput" in sample.figures:
        del shown["rows_per_second"]
    text = "; ".join(f"{unit} {number(sample.figures[key])}" for key, unit in shown.items() if key in sample.figures)
    return text + "".join(f"\n    PROBLEM: {problem}" for problem in sample.problems)


def arguments() -> argparse.Namespace:
    """The command line."""
    names = [row.name for row in rows()]
    parser = argparse.ArgumentParser(
        "compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default=",".join(names), help="which, with commas (all: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side (%(default)s)")
    parser.add_argument("--seconds", type=float, default=3, help="of each load (%(default)s); 1 at least")
    parser.add_argument("--quick", action="store_true", help="one round of 1 s, memory over 200,000; keeps no result")
    parser.add_argument("--memory-requests", type=int, default=2_000_000, help="of the memory row (%(default)s)")
    parser.add_argument("--results", type=Path, help="where the JSON goes (loadtest/results; with --quick nowhere)")
    parser.add_argument("--headrace", default=str(Path(sys.executable).with_name("headrace")), help="its command")
    args = parser.parse_args()
    args.rows = args.rows.split(",")
    if unknown := [name for name in args.rows if name not in names]:
        parser.error(f"no row {', '.join(unknown)}; there are {', '.join(names)}")
    if args.rounds < 1 or args.seconds < 1:
        parser.error("at least one round of one second")
    if args.quick:
        args.rounds, args.seconds, args.memory_requests = 1, 1, 200_000
    elif args.results is None:
        args.results = LOADTEST / "results"
    return args


def main() -> int:
    """Runs the rows asked for; returns the exit status."""
    args = arguments()
    # So that SIGTERM unwinds the stack and with it stops the server that runs.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    peers = Path(os.environ.get("HEADRACE_PEERS", Path.home() / ".cache/headrace-peers"))
    if not (peers / "headrace").is_dir():
        say(f"nothing in {peers}: run loadtest/peers/setup first")
        return 2
    date = datetime.now().astimezone()
    facts = machine.facts(peers)
    scratch = Path(tempfile.mkdtemp(prefix="headrace-compare-"))
    setup = Setup(
        peers,
        tuple(shlex.split(args.headrace)),
        LOADTEST / "peers/triton",
        scratch,
        args.seconds,
        args.memory_requests,
    )
    outcomes = [compare(row, setup, args.rounds) for row in rows() if row.name in args.rows]
    print("\n" + table(outcomes))
    if args.results:
        settings = {"rounds": args.rounds, "seconds": args.seconds, "memory_requests": args.memory_requests}
        args.results.mkdir(parents=True, exist_ok=True)
        path = args.results / f"compare-{date:%Y-%m-%d-%H%M}.json"
        path.write_text(
            json.dumps(document(outcomes, date.isoformat("T", "seconds"), facts, settings), indent=1) + "\n"
        )
        print(f"\n{path}")
    if any(outcome.problems for outcome in outcomes):
        say(f"logs of the servers: {scratch}")
        return 1
    shutil.rmtree(scratch)
    return 0


if __name__ == "__main__":
    sys.exit(main())
