"""Puts one bounded load on an Open Inference Protocol server on loopback and prints one JSON object.

    loadtest/peers/load --address 127.0.0.1:8001 --model tab --concurrency 32 --pid PID
    loadtest/peers/load --address 127.0.0.1:8001 --model tab --client h2load --connections 8 --concurrency 16

One reply is compared with ONNX Runtime's own output first. Keys: throughput (requests/s), rows_per_second, p50_us and
p99_us (perf_analyzer), requests; with --pid, the processor time of that process and its descendants for each request
and their resident memory before and after; other_cpu, the share of the machine that neither server nor client used.
`problems` says why the figures must not be believed, if they must not.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import get_args

from compare.clients import Client, Load
from compare.drivers import DRIVERS, LOADTEST, warm
from compare.figures import Sample, Unmeasured, unsound
from compare.oip import ROWS, Counts
from compare.oip import Client as OipClient
from compare.rest import RestClient
from compare.server import Running, Setup


def measure(server: Running, load: Load, setup: Setup) -> Sample:
    """One load on a running server: verified, warmed, measured, accounted for. Raises Unmeasured."""
    payload = setup.scratch / f"{load.model}-{load.batch}.{load.http or 'grpc'}"
    if load.http:
        server = replace(server, address=server.http)
    with RestClient(server.http, load.http) if load.http else OipClient(server.address, server.ca) as client:
        payload.write_bytes(client.payload(load.model, load.batch))
        load = replace(load, fields=client.fields(load.model, load.batch))
        reply_size = client.verify(load.model, load.batch, setup.model(load.model))
        rate = warm(load, server, payload)
        before = client.counts(load.model)
        report = DRIVERS[load.client](load, server, setup, payload, rate)
        after = client.counts(load.model)
    gained = Counts(*(now - then for now, then in zip(after, before, strict=True))) if before and after else None
    replies = None if report.octets is None else round(report.octets / reply_size)
    problems = unsound(
        requests=report.requests,
        failed=report.failed,
        replies=replies,
        confirmed=gained and gained.success,
        refused=gained and gained.fail,
        exact=load.client != "perf_analyzer",  # it sends between its windows as well
    )
    figures = report.figures | {"requests": report.requests}
    figures["rows_per_second"] = figures["throughput"] * load.batch
    if "cpu_seconds" in figures:
        answered = gained.success if gained else report.requests
        figures["cpu_us_per_request"] = figures["cpu_seconds"] / max(answered, 1) * 1e6
    details: dict[str, object] = {"confirmed": gained and gained.success, "replies": replies, "server": server.version}
    return Sample(figures, problems, details)


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", default="127.0.0.1:8001")
    parser.add_argument("--model", default="tab", choices=ROWS)
    parser.add_argument("--client", default="perf_analyzer", choices=get_args(Client))
    parser.add_argument("--concurrency", type=int, default=32, help="requests in flight (h2load: on each connection)")
    parser.add_argument("--connections", type=int, default=8, help="h2load and frames")
    parser.add_argument("--batch", type=int, default=1, help="rows in one request")
    parser.add_argument("--seconds", type=float, default=3, help="about how long; perf_analyzer: each of three windows")
    parser.add_argument("--timeout-header", help="h2load: a grpc-timeout, such as 10S; frames: constant or varying")
    parser.add_argument("--pin", help="the processors to run the client on, as taskset takes them")
    parser.add_argument("--ca", type=Path, help="h2load: over TLS; who signed the server's certificate")
    parser.add_argument("--pid", type=int, help="the server's process")
    args = parser.parse_args()
    if not args.address.startswith(("127.", "localhost:", "[::1]:")):
        parser.error("only loopback addresses are loaded")
    if args.ca and args.client != "h2load":
        parser.error("only h2load speaks TLS")
    load = Load(
        args.client, args.model, args.concurrency, args.connections, args.batch, args.seconds,
        args.timeout_header, args.pin, args.ca is not None,
    )  # fmt: skip
    peers = Path(os.environ.get("HEADRACE_PEERS", Path.home() / ".cache/headrace-peers"))
    with tempfile.TemporaryDirectory() as scratch, OipClient(args.address, args.ca) as client:
        setup = Setup(peers, (), LOADTEST / "peers/triton", Path(scratch))
        try:
            if not client.ready(args.model):
                raise Unmeasured(f"nobody at {args.address} says that {args.model} is ready")
            sample = measure(Running("server", args.address, args.pid, client.version(), args.ca), load, setup)
        except Unmeasured as error:
            sys.exit(str(error))
    print(json.dumps(sample.figures | sample.details | {"problems": sample.problems}))


if __name__ == "__main__":
    main()
