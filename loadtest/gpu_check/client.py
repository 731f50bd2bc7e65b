"""One process of callers: each request is sent anew as soon as a reply is there, so many at a time.

    python -m gpu_check.client --address 127.0.0.1:8001 --payloads DIR --in-flight 64 --seconds 3

DIR holds ModelInferRequests, which take turns. It prints `ready` when the channel is, waits for a line on standard
input, and prints one JSON object: replies, errors (texts), seconds, p50_us, p99_us.
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

import grpc

METHOD = "/inference.GRPCInferenceService/ModelInfer"
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class Callers:
    """Keeps `in_flight` calls under way until a moment; done when all of them are answered."""

    def __init__(self, channel: grpc.Channel, payloads: list[bytes]) -> None:
        self._call = channel.unary_unary(METHOD, bytes, bytes)  # as they are
        self._payloads = cycle(payloads)
        self._lock = threading.Lock()
        self._under_way = 0
        self._idle = threading.Event()
        self._until = 0.0
        self.latencies: list[float] = []
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
            payload = next(self._payloads)
        self._call.future(payload).add_done_callback(lambda call: self._done(call, began))

    def _done(self, call: grpc.Future[bytes], began: float) -> None:
        now = time.perf_counter()
        with self._lock:
            if (error := call.exception()) is None:
                self.latencies.append(now - began)
            else:
                self.errors.append(str(error))
            again = now < self._until and len(self.errors) < 100
            self._under_way -= not again
            if not self._under_way:
                self._idle.set()
        if again:
            self._send()


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", required=True)
    parser.add_argument("--payloads", type=Path, required=True)
    parser.add_argument("--in-flight", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
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
    print(json.dumps(report | {"p50_us": percent[49] * 1e6, "p99_us": percent[98] * 1e6}))


if __name__ == "__main__":
    main()
