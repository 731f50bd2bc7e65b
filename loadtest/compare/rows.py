"""The table to reach, row by row."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from compare.clients import Load
from compare.figures import Sample, Target, Unmeasured
from compare.sides import Row, Side, bare, memory, reloaded, served

if TYPE_CHECKING:
    from compare.server import Setup

_TAB = Load("h2load", "tab", concurrency=16, connections=8)
_MID = Load("h2load", "mid", concurrency=16, connections=8)
_IMG = Load("h2load", "img", concurrency=4, connections=8)
_HTTP = Load("h2load", "tab", concurrency=1, connections=64, http="binary")
_IN_MEMORY = ("--shared-memory", "system", "--output-shared-memory-size", "65536")
_FRAMES = Load("frames", "tab", concurrency=16, connections=8)
_VARIED = Load("frames", "mid", concurrency=16, connections=8, vary=True)


def perf(model: str, concurrency: int) -> Load:
    """A load by perf_analyzer."""
    return Load("perf_analyzer", model, concurrency)


def against_triton(name: str, title: str, load: Load, *targets: Target) -> Row:
    """Headrace and Triton under the same load."""
    return Row(name, title, (served("headrace", load), served("triton", load)), targets)


def rows() -> tuple[Row, ...]:
    """Every row in the order of the table."""
    return (*_peers(), *_transport(), *_observation(), *_clients(), *_reloads(), *_limits())


def _peers() -> tuple[Row, ...]:
    """Other servers, by what their users send."""
    return (
        against_triton(
            "tab-h2load",
            "tab, h2load, 8 connections x 16",
            _TAB,
            Target("throughput", 4.5, ">="),
            Target("cpu_us_per_request", 0.2, "<="),
        ),
        against_triton(
            "tab-perf-32",
            "tab, perf_analyzer, concurrency 32",
            perf("tab", 32),
            Target("throughput", 2, ">="),
            Target("p99_us", 0.6, "<="),
        ),
        against_triton("tab-perf-1", "tab, perf_analyzer, concurrency 1", perf("tab", 1), Target("p50_us", 0.4, "<=")),
        against_triton(
            "mid-perf-32", "mid, perf_analyzer, concurrency 32", perf("mid", 32), Target("throughput", 2, ">=")
        ),
        against_triton(
            "img-h2load",
            "img (602 kB a request), h2load, 8 connections x 4",
            _IMG,
            Target("throughput", 1.8, ">="),
            Target("cpu_us_per_request", 0.5, "<="),
        ),
        against_triton(
            "http-h2load",
            "tab over HTTP/1.1, binary tensors, h2load, 64 connections",
            _HTTP,
            Target("throughput", 0.9, ">="),
            Target("cpu_us_per_request", 1.0, "<="),
        ),
        Row(
            "http-fastapi",
            "tab over HTTP/1.1, JSON tensors, h2load, 64 connections, against a plain FastAPI endpoint",
            (served("headrace", replace(_HTTP, http="json")), served("fastapi", replace(_HTTP, http="json"))),
            (Target("throughput", 3, ">="),),
        ),
    )


def _transport() -> tuple[Row, ...]:
    """What the ways of talking to the server cost."""
    cheaper = Target("cpu_us_per_request", 1.3, "<=")
    return (
        Row(
            "timeout-same",
            "tab, h2load 8 x 16, grpc-timeout 10S on every request against none",
            (
                served("headrace", replace(_TAB, timeout="10S"), "with timeout"),
                served("headrace", _TAB, "without"),
            ),
            (cheaper,),
        ),
        Row(
            "timeout-varying",
            "tab, frames 8 x 16, another grpc-timeout on every request against none",
            (
                served("headrace", replace(_FRAMES, timeout="varying"), "with timeout"),
                served("headrace", _FRAMES, "without"),
            ),
            (cheaper,),
        ),
        Row(
            "reference",
            "tab, h2load 8 x 16, native against reference transport",
            (served("headrace", _TAB, "native"), served("reference", _TAB)),
            (Target("throughput", 8, ">="),),
        ),
        Row(
            "tls",
            "tab, h2load 8 x 16, over TLS against plain text",
            (served("tls", replace(_TAB, tls=True), "over TLS"), served("headrace", _TAB, "plain text")),
            (Target("cpu_us_per_request", 1.6, "<="),),
        ),
    )


def _observation() -> tuple[Row, ...]:
    """What it costs to look at requests, against not looking."""
    return (
        Row(
            "rules",
            "tab, h2load 8 x 16, with a range for each of the 32 features against none",
            (served("ruled", _TAB, "with rules"), served("headrace", _TAB, "without")),
            (Target("cpu_us_per_request", 1.05, "<="),),
        ),
        Row(
            "drift",
            "tab, h2load 8 x 16, with each of the 32 features watched for drift against none",
            (served("watched", _TAB, "watched"), served("headrace", _TAB, "not watched")),
            (Target("throughput", 0.9, ">="),),
        ),
        Row(
            "guard",
            "mid, 8 x 16 requests that all differ, with 1 % of them run on a reference as well against none",
            (served("guarded", _VARIED, "guarded"), served("headrace", _VARIED, "not guarded")),
            (Target("throughput", 0.97, ">="),),
        ),
        Row(
            "traces",
            "tab, h2load 8 x 16, with traces exported by default settings (1 % and the slowest) against none",
            (served("traced", _TAB, "traced"), served("headrace", _TAB, "not traced")),
            (Target("throughput", 0.9, ">="),),
        ),
    )


def _clients() -> tuple[Row, ...]:
    """Other ways for tensors than a message for each request."""
    return (
        Row(
            "shared-memory",
            "img (602 kB a request), perf_analyzer, concurrency 16, in system shared memory against in messages",
            (
                served("shared_memory", replace(perf("img", 16), options=_IN_MEMORY), "in shared memory"),
                served("shared_memory", perf("img", 16), "in messages"),
            ),
            (Target("throughput", 2, ">="),),
        ),
        against_triton(
            "stream",
            "tab, perf_analyzer, 128 in flight on one stream of ModelStreamInfer",
            replace(perf("tab", 128), options=("--streaming", "--max-threads", "1")),
            Target("throughput", 4, ">="),
        ),
    )


def _reloads() -> tuple[Row, ...]:
    """Latency while models are loaded, against a quiet server."""
    return (
        Row(
            "reload",
            "tab, perf_analyzer, concurrency 8, while the model is loaded again twice a second against steady",
            (reloaded(perf("tab", 8), "loaded again"), served("explicit", perf("tab", 8), "steady")),
            (Target("p99_us", 2, "<="),),
        ),
        Row(
            "reload-mid",
            "mid, perf_analyzer, concurrency 8, while the model is loaded again twice a second against steady",
            (reloaded(perf("mid", 8), "loaded again"), served("explicit", perf("mid", 8), "steady")),
            (Target("p99_us", 2, "<="),),
        ),
    )


def _limits() -> tuple[Row, ...]:
    """How near the runtime's own speed, and whether memory stays flat."""
    return (
        Row(
            "mid-one-core",
            "mid, server on one core and h2load 8 x 16 on another, against bare ONNX Runtime on that core",
            _one_core(),
            (Target("rows_per_second", 0.7, ">="),),
        ),
        Row(
            "memory",
            "tab, h2load 8 x 16, resident memory: peak after the warm-up against that after it",
            (memory("headrace", _TAB),),
            (Target("rss_peak_mib", 1.05, "<=", base="rss_warm_mib"),),
            rounds=1,
        ),
    )


def _one_core() -> tuple[Side, ...]:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:

        def once(setup: Setup) -> Sample:
            raise Unmeasured("this row needs two cores")

        return (Side("headrace", once), Side("bare ORT", once))
    server, client = str(cores[0]), str(cores[1])
    load = Load("h2load", "mid", concurrency=16, connections=8, pin=client)
    return (served("headrace", load, pin=server), bare("mid", server))
