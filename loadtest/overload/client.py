"""Callers who do not wait for one another: calls at random moments, each with a deadline, whatever the server manages.

    python -m overload.client --address 127.0.0.1:8001 --bodies a.grpc,b.grpc --deadlines-ms 50,200 --rate 2000 \
        --reply-octets 60 --seconds 5

A call is made when it is due, not when those before it are answered, and its deadline counts from that moment, also
where this program or the server's limits send it later. With `--tells` the server hears of the deadline (grpc-timeout)
and of its end (RST_STREAM), as from every gRPC client that sets one; without, it hears of neither, and only this
program looks at the clock. It prints one JSON object: see `report`.
"""

from __future__ import annotations

import argparse
import json
import selectors
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from overload.arrivals import Pattern, arrivals, choices
from overload.connection import Call, Connection

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

START_S = 0.1
"""From the end of the preparations to the first call that may be due."""
POLL_S = 0.002
"""At the latest so often the deadlines of calls under way are looked at."""


def run(
    connections: Sequence[Connection], calls: Sequence[Call], clock: Callable[[], float], *, tells: bool, until: float
) -> list[float]:
    """Makes the calls, in turns on the connections; returns how late each was begun by this program, in seconds.

    tells: calls are cancelled at their deadlines. until: when to give up on what is still open.
    """
    late = []
    at, now = 0, clock()
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            selector.register(connection.socket, selectors.EVENT_READ, connection)
        while now < until and (at < len(calls) or not all(connection.idle for connection in connections)):
            while at < len(calls) and calls[at].due <= now:
                connections[at % len(connections)].start(calls[at])
                late.append(now - calls[at].due)
                at += 1
            for connection in connections:
                if tells:
                    connection.expire(now)
                connection.write()
                wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.has_output else 0)
                selector.modify(connection.socket, wanted, connection)
            due = calls[at].due - clock() if at < len(calls) else POLL_S
            for key, events in selector.select(min(max(due, 0), POLL_S)):
                if events & selectors.EVENT_READ:
                    key.data.read()
            now = clock()
    return late


def outcome(call: Call, reply_octets: int) -> str:
    """in_time: the right reply before the deadline; late: after it, or never; refused: an error; wrong: the rest."""
    if call.cancelled or not call.ended:
        return "late"
    if call.status:
        return "refused"
    if call.status is None or call.octets != reply_octets:
        return "wrong"
    return "in_time" if call.ended <= call.until else "late"


def report(calls: Sequence[Call], late: Sequence[float], reply_octets: int, kinds: int) -> dict[str, Any]:
    """What became of the calls.

    calls, in_time, late, refused, wrong: how many; statuses: of the refused ones, by gRPC status. by_kind: the same for
    each kind of call. p50_ms, p99_ms: from when a call was due to its reply, of those in time; None without any.
    behind_p99_ms: by how much this program was late to begin calls.
    """
    told = [(call, outcome(call, reply_octets)) for call in calls]

    def counts(kind: int | None) -> dict[str, int]:
        found = Counter(what for call, what in told if kind in (None, call.kind))
        return {"calls": found.total()} | {what: found[what] for what in ("in_time", "late", "refused", "wrong")}

    good = [1000 * (call.ended - call.due) for call, what in told if what == "in_time"]
    p50, p99 = np.percentile(good, (50, 99)).tolist() if good else (None, None)
    return counts(None) | {
        "statuses": Counter(call.status for call, what in told if what == "refused"),
        "by_kind": [counts(kind) for kind in range(kinds)],
        "p50_ms": p50,
        "p99_ms": p99,
        "behind_p99_ms": 1000 * float(np.percentile(late, 99)) if late else 0.0,
    }


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", required=True)
    parser.add_argument(
        "--bodies", required=True, metavar="A,B", help="messages with their gRPC prefix, one a deadline"
    )
    parser.add_argument("--deadlines-ms", required=True, metavar="A,B", help="each call has one of these")
    parser.add_argument("--rate", type=float, required=True, help="calls a second, on average")
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--pattern", choices=get_args(Pattern), default="poisson")
    parser.add_argument("--reply-octets", type=int, required=True, help="of a right reply, with its gRPC prefix")
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--tells", action="store_true", help="the server hears of the deadlines")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    deadlines = [float(text) / 1000 for text in args.deadlines_ms.split(",")]
    bodies = [Path(text).read_bytes() for text in args.bodies.split(",")]
    if len(bodies) != len(deadlines):
        parser.error(f"{len(bodies)} messages for {len(deadlines)} deadlines")
    host, _, port = args.address.rpartition(":")
    moments = arrivals(args.pattern, args.rate, args.seconds, args.seed).tolist()
    kinds = choices(len(moments), len(deadlines), args.seed).tolist()
    clock = time.perf_counter
    connections = [Connection((host, int(port)), bodies, clock, tells=args.tells) for _ in range(args.connections)]
    begin = clock() + START_S
    calls = [
        Call(begin + moment, begin + moment + deadlines[kind], kind)
        for moment, kind in zip(moments, kinds, strict=True)
    ]
    late = run(connections, calls, clock, tells=args.tells, until=begin + args.seconds + 2 * max(deadlines))
    print(json.dumps(report(calls, late, args.reply_octets, len(deadlines))))


if __name__ == "__main__":
    main()
