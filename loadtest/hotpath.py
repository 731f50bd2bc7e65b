"""CPU time of a request inside the server, without sockets: the figure to watch while working on the hot path.

    python loadtest/hotpath.py [--repository DIR --model NAME] [--streams 16] [--profile | --bytecodes]

Feeds the octets of calls into real connections of the native transport, over a real engine on a real model with
inputs of fixed shape (default: digits), a turn of the event loop at a time. Prints the least time a request took over
the rounds (what other processes steal only ever adds), and with --profile where it went. With --bytecodes it counts the
steps of the interpreter instead: no time, but the same count on every machine, however busy.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import pstats
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from hpack import Encoder
from prometheus_client import CollectorRegistry

from compare.frames import header_blocks
from headrace.clock import monotonic_ns, wall_ms
from headrace.config import Settings
from headrace.datatypes import DATATYPES
from headrace.engine.lifecycle import Engine
from headrace.engine.shared_memory import NoSharedMemory
from headrace.engine.turn import Turn
from headrace.interpreter import settle
from headrace.repository.catalog import Catalog
from headrace.rpc import inference_pb2 as pb
from headrace.serve import Status
from headrace.telemetry.guard import ObserverGuard
from headrace.telemetry.metrics import Metrics
from headrace.telemetry.sampling import TailSampling
from headrace.telemetry.server_metrics import ServerMetrics
from headrace.transport.admin import Admin
from headrace.transport.grpc_native import NativeTransport
from headrace.transport.grpc_peer import Peer
from headrace.transport.health import Health
from headrace.transport.http2 import frames
from headrace.transport.infer import InferService
from headrace.transport.repository import RepositoryAdmin
from headrace.transport.runtime_settings import RuntimeSettings
from headrace.transport.service import service_table
from headrace.transport.shared_memory import SharedMemoryAdmin

if TYPE_CHECKING:
    from types import FrameType

    from headrace.engine.served import Served
    from headrace.messages import Signature

FRAME = 16_384  # what clients send at the most where a server does not ask for more
MODELS = Path(__file__).parent.parent / "models"


class Wire(asyncio.Transport):
    """A socket that takes everything and counts it."""

    def __init__(self) -> None:
        super().__init__()
        self.octets = 0

    def write(self, data: bytes) -> None:  # type: ignore[override]
        self.octets += len(data)

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


def body(model: str, signature: Signature) -> bytes:
    """One ModelInfer of one row of ones, with its gRPC prefix."""
    request = pb.ModelInferRequest(model_name=model)
    for spec in signature.inputs:
        tensor = request.inputs.add(name=spec.name, datatype=spec.datatype)
        tensor.shape.extend((1, *spec.shape))
        request.raw_input_contents.append(np.ones(spec.shape, DATATYPES[spec.datatype].numpy).tobytes())
    message = request.SerializeToString()
    return b"\0" + len(message).to_bytes(4, "big") + message


def calls(first_id: int, blocks: list[bytes], message: bytes) -> bytes:
    """The frames of some calls as HTTP/2 clients send them: all HEADERS, then DATA of each in turns."""
    octets = b""
    for index, block in enumerate(blocks):
        octets += frames.frame(frames.HEADERS, frames.END_HEADERS, first_id + 2 * index, block)
    for at in range(0, len(message), FRAME):
        flags = frames.END_STREAM if at + FRAME >= len(message) else 0
        for index in range(len(blocks)):
            octets += frames.frame(frames.DATA, flags, first_id + 2 * index, message[at : at + FRAME])
    return octets


def deliver(peer: Peer, octets: bytes) -> None:
    """Hands octets over as a socket would, a buffer at a time."""
    at = 0
    while at < len(octets):
        buffer = peer.get_buffer(-1)
        size = min(len(buffer), len(octets) - at)
        buffer[:size] = octets[at : at + size]
        peer.buffer_updated(size)
        at += size


def sampling() -> TailSampling:
    """As the server has it by default, with a queue that somebody else empties."""
    return TailSampling(
        lambda batch, requests: True, monotonic_ns, wall_ms, ratio=0.01, slow_quantile=0.99, per_second=100
    )


def trace_field() -> bytes:
    """A caller's trace that it does not sample, as gRPC's C core writes it."""
    value = f"00-{random.getrandbits(128):032x}-{random.getrandbits(64):016x}-00".encode()
    return b"\0\x0btraceparent" + bytes((len(value),)) + value


class Bytecodes:
    """Counts interpreted bytecodes by function, between `enable` and `disable`."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def enable(self) -> None:
        sys.settrace(self._call)

    def disable(self) -> None:
        sys.settrace(None)

    def _call(self, frame: FrameType, event: str, arg: object) -> Any:  # noqa: ANN401
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        code = frame.f_code
        name = f"{Path(code.co_filename).stem}.{code.co_qualname}"

        def count(frame: FrameType, event: str, arg: object) -> Any:  # noqa: ANN401
            self.counts[name] += event == "opcode"
            return count

        return count

    def report(self, requests: int) -> None:
        for name, count in self.counts.most_common(30):
            print(f"{count / requests:8.1f}  {name}")
        print(f"{self.counts.total() / requests:8.1f}  bytecodes a request")


class Bench:
    """An engine with the models of a repository, and connections of the native transport to it; all are open."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        tracing = arguments.tracing != "off"
        self._registry = CollectorRegistry()
        metrics = Metrics(self._registry, sampling=sampling() if tracing else None)
        self._catalog: Catalog[Served] = Catalog()
        self._settings = Settings()
        self._turn = Turn(asyncio.get_running_loop())
        self.engine = Engine(
            self._catalog,
            ObserverGuard(metrics),
            metrics,
            monotonic_ns,
            self._turn,
            self._settings.inline_below_us * 1000,
            diary_requests=self._settings.record_requests,
        )
        self._traced = tracing
        self.peers: list[Peer] = []

    async def open(self, arguments: argparse.Namespace) -> bytes:
        """Loads the models and opens the connections; returns the message of a call."""
        await self.engine.load_all(arguments.repository)
        server = self._server()
        settle()
        self.peers = [Peer(server, asyncio.get_running_loop()) for _ in range(arguments.connections)]
        opening = frames.PREFACE + frames.settings({4: 1 << 30}) + frames.window_update(0, 1 << 30)
        for peer in self.peers:
            peer.connection_made(Wire())
            deliver(peer, opening)
        return body(arguments.model, self._catalog.resolve(arguments.model, "").signature)

    def _server(self) -> NativeTransport:
        infer = InferService(self._catalog, self._turn, lambda reason: None, NoSharedMemory())
        nobody: Any = None  # the calls that are measured reach none of these
        table = service_table(
            Admin(Status(), self._catalog),
            Health(),
            infer,
            SharedMemoryAdmin(None),
            RepositoryAdmin(nobody, self._catalog),
            RuntimeSettings(nobody, nobody, self._catalog),
        )
        return NativeTransport(
            table,
            "127.0.0.1",
            0,
            turn=self._turn,
            http2=self._settings.http2,
            max_message_bytes=1 << 26,
            counts=ServerMetrics(self._registry),
            traced=self._traced,
        )

    async def answered(self, octets: bytes) -> None:
        """The same calls on every connection, to their last reply."""
        for peer in self.peers:
            deliver(peer, octets)
            peer.connection.outbound.window = 1 << 30
        while any(peer.connection.streams for peer in self.peers):  # noqa: ASYNC110 - turns of the loop are measured
            await asyncio.sleep(0)

    def close(self) -> None:
        """Connections first."""
        for peer in self.peers:
            peer.connection_lost(None)
        self.engine.close()


class Rounds:
    """The octets of rounds of calls, each with identifiers that follow those of the round before."""

    def __init__(self, arguments: argparse.Namespace, message: bytes) -> None:
        self._arguments = arguments
        self._message = message
        self._encoder = Encoder()
        self._next_id = 1

    def next(self) -> list[bytes]:
        """For each turn of the event loop its calls."""
        return [self._turn() for _ in range(self._arguments.turns)]

    def _turn(self) -> bytes:
        first, streams = self._next_id, self._arguments.streams
        blocks = header_blocks(streams, "127.0.0.1:8001", self._arguments.timeout, self._encoder, seed=first)
        if self._arguments.tracing == "callers":
            blocks = [block + trace_field() for block in blocks]
        self._next_id += 2 * streams
        return calls(first, blocks, self._message)


async def measure(arguments: argparse.Namespace) -> None:
    """Rounds of calls, and of them the quickest; the last one is looked into if that is asked for."""
    bench = Bench(arguments)
    rounds = Rounds(arguments, await bench.open(arguments))
    requests = arguments.turns * arguments.connections * arguments.streams
    looking: cProfile.Profile | Bytecodes | None = None
    if arguments.profile or arguments.bytecodes:
        looking = cProfile.Profile() if arguments.profile else Bytecodes()
    best = float("inf")
    for left in reversed(range(arguments.rounds)):
        turns = rounds.next()
        if looking and not left:
            looking.enable()
        began = time.thread_time_ns()
        for octets in turns:
            await bench.answered(octets)
        spent = time.thread_time_ns() - began
        if looking:
            looking.disable()
        best = min(best, spent / 1000 / requests)
    print(f"{best:.2f} us a request ({arguments.connections} x {arguments.streams} in flight)")
    if isinstance(looking, Bytecodes):
        looking.report(requests)
    elif looking:
        pstats.Stats(looking).sort_stats("tottime").print_stats(45)
    bench.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", type=Path, default=MODELS)
    parser.add_argument("--model", default="digits")
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--streams", type=int, default=16, help="calls that each connection has in flight")
    parser.add_argument("--turns", type=int, default=50, help="turns of the event loop in each round")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--timeout", choices=["none", "constant", "varying"], default="none", help="of each call")
    parser.add_argument(
        "--tracing",
        choices=["off", "ratio", "callers"],
        default="off",
        help="ratio: one request in 100 and the slow ones, and nothing is sent; callers: each call brings a trace too",
    )
    parser.add_argument("--profile", action="store_true", help="show where the last round spent its time")
    parser.add_argument("--bytecodes", action="store_true", help="count them in the last round")
    asyncio.run(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
