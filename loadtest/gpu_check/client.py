r"""One process of callers: each request is sent anew as soon as a reply is there, so many at a time.

    python -m gpu_check.client --address 127.0.0.1:8001 --payloads DIR --in-flight 64 --seconds 3 \
        --expected ROWS.npy --bound 0.02

DIR holds ModelInferRequests of one row each, which take turns; ROWS the first output of each, FP32 [requests, width].
One reply in EVERY is compared with its own row when all are there. It prints `ready` when the channel is, waits for a
line on standard input, and prints one JSON object: replies, errors (texts), seconds, p50_us, p99_us, compared, wrong
(how many were off by more than the bound), error (the largest).
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from itertools import cycle
from pathlib import Path
from statistics import quantiles
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np

from headrace.rpc import inference_pb2 as pb

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

EVERY = 16
METHOD = "/inference.GRPCInferenceService/ModelInfer"
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class Callers:
    """Keeps `in_flight` calls under way until a moment; done when all of them are answered."""

    def __init__(self, channel: grpc.Channel, payloads: list[bytes]) -> None:
        self._call = channel.unary_unary(METHOD, bytes, bytes)  # as they are
        self._payloads = cycle(enumerate(payloads))
        self._lock = threading.Lock()
        self._under_way = 0
        self._idle = threading.Event()
        self._until = 0.0
        self.latencies: list[float] = []
        self.samples: list[tuple[int, bytes]] = []  # which payload, and the reply
        self.errors: list[str] = []

    def run(self, in_flight: int, seconds: float) -> float:
        """Returns how long it took, the last replies included."""
        began = time.perf_counter()
        self._until = began + seconds
        self._under_way = in_flight
        for _ in range(in_flight):
            self._send()
        self._idle.wait()
        return time.perf_counter() - began

    def _send(self) -> None:
        began = time.perf_counter()
        with self._lock:
            number, payload = next(self._payloads)
        self._call.future(payload).add_done_callback(lambda call: self._done(call, began, number))

    def _done(self, call: grpc.Future[bytes], began: float, number: int) -> None:
        now = time.perf_counter()
        with self._lock:
            if (error := call.exception()) is None:
                if len(self.latencies) % EVERY == 0:
                    self.samples.append((number, call.result()))
                self.latencies.append(now - began)
            else:
                self.errors.append(str(error))
            again = now < self._until and len(self.errors) < 100
            self._under_way -= not again
            if not self._under_way:
                self._idle.set()
        if again:
            self._send()


def compared(samples: list[tuple[int, bytes]], expected: Array, bound: float) -> dict[str, float]:
    """Figures: of each reply the error against its own row, as a share of what that differs in from the mean row."""
    mean = expected.mean(axis=0)
    errors = []
    for number, reply in samples:
        got = np.frombuffer(pb.ModelInferResponse.FromString(reply).raw_output_contents[0], np.float32)
        want = expected[number]
        same = got.shape == want.shape
        errors.append(float(np.linalg.norm(got - want) / np.linalg.norm(want - mean)) if same else float("inf"))
    wrong = sum(not error <= bound for error in errors)
    return {"compared": len(errors), "wrong": wrong, "error": max(errors, default=0.0)}


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", required=True)
    parser.add_argument("--payloads", type=Path, required=True)
    parser.add_argument("--in-flight", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--expected", type=Path, required=True)
    parser.add_argument("--bound", type=float, required=True)
    args = parser.parse_args()
    payloads = [path.read_bytes() for path in sorted(args.payloads.iterdir())]
    with grpc.insecure_channel(args.address, options=OPTIONS) as channel:
        grpc.channel_ready_future(channel).result(timeout=30)
        print("ready", flush=True)
        sys.stdin.readline()
        callers = Callers(channel, payloads)
        took = callers.run(args.in_flight, args.seconds)
    percent = quantiles(callers.latencies, n=100, method="inclusive") if len(callers.latencies) > 1 else [0.0] * 99
    report = {"replies": len(callers.latencies), "errors": callers.errors, "seconds": took}
    report |= compared(callers.samples, np.load(args.expected), args.bound)
    print(json.dumps(report | {"p50_us": percent[49] * 1e6, "p99_us": percent[98] * 1e6}))


if __name__ == "__main__":
    main()
