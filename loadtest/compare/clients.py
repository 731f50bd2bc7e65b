"""The load generators: their command lines, and what they print. Pure.

perf_analyzer is NVIDIA's own (C++ gRPC, times every reply); h2load is a C client of HTTP/2 and HTTP/1.1, far cheaper
per request, so that the server and not the client is the bottleneck.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from compare.figures import Unmeasured

if TYPE_CHECKING:
    from pathlib import Path

METHOD = "/inference.GRPCInferenceService/ModelInfer"
Client = Literal["h2load", "perf_analyzer", "frames"]


@dataclass(frozen=True)
class Load:
    """One bounded load.

    concurrency: requests in flight, for h2load and frames on each of `connections`.
    batch: rows in one request.
    seconds: about how long; for perf_analyzer the length of each of its three windows.
    timeout: a grpc-timeout on every request (h2load), or `varying`: another one on each (frames).
    pin: the processors that the client runs on, as taskset takes them.
    tls: whether the server speaks it (h2load, which takes any certificate).
    http: h2load speaks HTTP/1.1 in the place of gRPC, with tensors in this form. fields: of every request, then.
    options: further ones of perf_analyzer.
    vary: no two messages are alike (frames).
    """

    client: Client
    model: str
    concurrency: int
    connections: int = 1
    batch: int = 1
    seconds: float = 3
    timeout: str | None = None
    pin: str | None = None
    tls: bool = False
    http: Literal["binary", "json"] | None = None
    fields: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    vary: bool = False


@dataclass(frozen=True)
class H2loadReport:
    """requests: those with HTTP status 200. octets: of DATA frames."""

    throughput: float
    requests: int
    failed: int
    octets: int


@dataclass(frozen=True)
class PerfReport:
    """requests: those of all windows, which is fewer than were sent."""

    throughput: float
    p50_us: float
    p99_us: float
    requests: int


def pinned(command: list[str], pin: str | None) -> list[str]:
    """The command, kept to the processors `pin`."""
    return ["taskset", "-c", pin, *command] if pin is not None else command


def h2load_command(load: Load, requests: int, address: str, payload: Path) -> list[str]:
    """One thread, the same message each time, exactly so many times, on HTTP/2 (prior knowledge or TLS) or HTTP/1.1.

    Not for a time: then h2load leaves requests uncounted that the server has answered, and the counts never agree.
    """
    command = ["h2load", "-t", "1", "-c", str(load.connections), "-m", str(load.concurrency)]
    command += ["-n", str(requests), "-d", str(payload)]
    if load.http:
        path, fields = f"/v2/models/{load.model}/infer", list(load.fields)
        command.insert(1, "--h1")
    else:
        path, fields = METHOD, ["content-type: application/grpc", "te: trailers"]
        fields += [f"grpc-timeout: {load.timeout}"] if load.timeout else []
    for field in fields:
        command += ["-H", field]
    return pinned([*command, f"{'https' if load.tls else 'http'}://{address}{path}"], load.pin)


def perf_analyzer_command(load: Load, address: str, binary: Path) -> list[str]:
    """Three windows, averaged whatever their spread (-s, in per cent): the spread that is reported is over rounds."""
    command = [str(binary), "-m", load.model, "-i", "grpc", "-u", address, "-b", str(load.batch), "--async"]
    command += ["--concurrency-range", str(load.concurrency), *load.options]
    return pinned([*command, "-p", f"{load.seconds * 1000:.0f}", "-r", "3", "-s", "1000"], load.pin)


def parse_h2load(text: str) -> H2loadReport:
    """Raises Unmeasured, with the text, when it holds no result."""
    rate = re.search(r"finished in [\d.]+\w+, ([\d.]+) req/s", text)
    counts = re.search(r"requests: .* (\d+) succeeded, (\d+) failed", text)
    octets = re.search(r"traffic: .* headers .*\((\d+)\) data", text)
    if not rate or not counts or not octets:
        raise Unmeasured(f"h2load measured nothing:\n{text}")
    return H2loadReport(float(rate[1]), int(counts[1]), int(counts[2]), int(octets[1]))


def parse_perf_analyzer(text: str) -> PerfReport:
    """Raises Unmeasured, with the text, when it holds no result. Its throughput is in rows/s."""
    names = {"throughput": r"Throughput: ([\d.e+]+) infer/sec", "requests": r"Request count: (\d+)"}
    names |= {f"p{n}": rf"p{n} latency: (\d+) usec" for n in (50, 99)}
    found = {name: re.search(pattern, text) for name, pattern in names.items()}
    values = {name: float(match[1]) for name, match in found.items() if match}
    if len(values) < len(names) or not values["requests"]:
        raise Unmeasured(f"perf_analyzer measured nothing:\n{text}")
    return PerfReport(values["throughput"], values["p50"], values["p99"], int(values["requests"]))
