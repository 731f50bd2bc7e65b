"""Whether reading /metrics each second disturbs: p99 of seconds with a scrape against that of seconds without.

    python loadtest/scrape.py [--pairs 30] [--models 1] [--connections 8] [--results FILE]

One server, one load: some HTTP connections, each with a request for `digits` in flight. Seconds come in pairs, one of
which, by lot, begins with a scrape that another process makes. Both sides of a pair see the same machine, so what else
runs there hardly tells in the ratio. Printed is one JSON object: p50 and p99 of either side in us, the ratio of the p99
and the range that it keeps in 95 % of resamplings of the pairs, and how long scrapes took.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

DIGITS = Path(__file__).parents[1] / "models" / "digits"
ROW = np.full((1, 64), 8, np.float32)
WARM_SECONDS = 2.0
RESAMPLINGS = 1000
SCRAPER = """
import http.client, sys, time
connection = http.client.HTTPConnection(sys.argv[1], timeout=30)
for line in sys.stdin:
    began = time.monotonic()
    connection.request("GET", "/metrics", headers={"Accept": "text/plain;version=0.0.4"})
    octets = len(connection.getresponse().read())
    print(time.monotonic() - began, octets, flush=True)
"""


class Pair(NamedTuple):
    """Latencies in seconds of the requests that began in two neighbouring seconds."""

    scraped: Sequence[float]
    quiet: Sequence[float]


def figures(pairs: Sequence[Pair], seed: int = 0) -> dict[str, float]:
    """p50 and p99 in us, the ratio of the p99, and its 95 % range by bootstrap over the pairs."""
    sides = [[np.asarray(side) for side in sides] for sides in zip(*pairs, strict=True)]
    told: dict[str, float] = {}
    for name, side in zip(Pair._fields, sides, strict=True):
        p50, p99 = np.percentile(np.concatenate(side), (50, 99)) * 1e6
        told |= {
            f"{name}_p50_us": round(p50, 1),
            f"{name}_p99_us": round(p99, 1),
            f"{name}_requests": sum(map(len, side)),
        }
    lots = np.random.default_rng(seed).integers(len(pairs), size=(RESAMPLINGS, len(pairs)))
    ratios = [np.divide(*(np.percentile(np.concatenate([side[i] for i in lot]), 99) for side in sides)) for lot in lots]
    low, high = np.percentile(ratios, (2.5, 97.5))
    ratio = told["scraped_p99_us"] / told["quiet_p99_us"]
    return told | {"ratio": round(ratio, 3), "ratio_low": round(float(low), 3), "ratio_high": round(float(high), 3)}


@contextmanager
def served(models: int) -> Iterator[str]:
    """A server with so many models of the same kind; the address of its HTTP port."""
    with tempfile.TemporaryDirectory() as root:
        for number in range(models):
            (Path(root) / f"digits{number}").symlink_to(DIGITS)
        command = [Path(sys.executable).with_name("headrace"), "serve", "--model-repository", root]
        with subprocess.Popen(
            [*map(str, command), "--grpc-port", "0", "--http-port", "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            try:
                assert process.stdout is not None
                log = ""
                for line in process.stdout:
                    log += line
                    if found := re.search(r"ready: .* HTTP on port (\d+)", line):
                        break
                else:
                    sys.exit(f"the server did not get ready:\n{log}")
                yield f"127.0.0.1:{found[1]}"
            finally:
                process.terminate()


async def _load(address: str, stop: asyncio.Event, told: list[tuple[float, float]]) -> None:
    """One request after the other on one connection: (beginning, seconds) of each."""
    host, _, port = address.partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = ROW.tobytes()
    head = f"POST /v2/models/digits0/infer HTTP/1.1\r\nHost: {address}\r\nInference-Header-Content-Length: 0\r\n"
    message = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    while not stop.is_set():
        began = time.monotonic()
        writer.write(message)
        answer = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"\r\ncontent-length: *(\d+)", answer, re.IGNORECASE)
        if not answer.startswith(b"HTTP/1.1 200") or length is None:
            sys.exit(f"not a reply: {answer!r}")
        await reader.readexactly(int(length[1]))
        told.append((began, time.monotonic() - began))
    writer.close()


async def measure(
    address: str, pairs: int, connections: int, second: float, warm: float
) -> tuple[list[Pair], list[str]]:
    """The latencies of each pair, and what the scraper printed. second: how long either side of a pair lasts."""
    stop = asyncio.Event()
    told: list[tuple[float, float]] = []
    scraper = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SCRAPER, address, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert scraper.stdin is not None
    clients = [asyncio.create_task(_load(address, stop, told)) for _ in range(connections)]
    bounds = []
    await asyncio.sleep(warm)
    for _ in range(pairs):
        for scraped in random.sample((True, False), 2):
            if scraped:
                scraper.stdin.write(b"\n")
            began = time.monotonic()
            await asyncio.sleep(second)
            bounds.append((began, time.monotonic(), scraped))
    stop.set()
    await asyncio.gather(*clients)
    words, _ = await scraper.communicate(b"")  # which closes its input
    times, latencies = (np.array(column) for column in zip(*sorted(told), strict=True))
    sides = [(scraped, latencies[slice(*np.searchsorted(times, (begin, end)))]) for begin, end, scraped in bounds]
    neighbours = [dict(sides[at : at + 2]) for at in range(0, len(sides), 2)]
    return [Pair(both[True].tolist(), both[False].tolist()) for both in neighbours], words.decode().splitlines()


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=30, help="pairs of seconds (%(default)s)")
    parser.add_argument("--models", type=int, default=1, help="models that the server has (%(default)s)")
    parser.add_argument("--connections", type=int, default=8, help="each with one request in flight (%(default)s)")
    parser.add_argument("--second", type=float, default=1.0, help="how long a second is (%(default)s)")
    parser.add_argument("--warm", type=float, default=WARM_SECONDS, help="seconds before the first pair (%(default)s)")
    parser.add_argument("--results", type=Path, help="where the JSON goes as well")
    args = parser.parse_args()
    with served(args.models) as address:
        pairs, words = asyncio.run(measure(address, args.pairs, args.connections, args.second, args.warm))
    seconds, octets = zip(*(map(float, line.split()) for line in words), strict=True)
    told = figures(pairs) | {
        "scrape_ms": round(1e3 * float(np.median(seconds)), 1),
        "scrape_octets": octets[-1],
        "pairs": args.pairs,
        "models": args.models,
        "connections": args.connections,
    }
    text = json.dumps(told, indent=1)
    print(text)
    if args.results:
        args.results.write_text(text + "\n")


if __name__ == "__main__":
    main()
