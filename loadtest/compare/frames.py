"""An HTTP/2 client that puts another grpc-timeout on every call, or another message, as fast as octets can be sent.

    python -m compare.frames --address 127.0.0.1:8001 --payload FILE --requests 100000 --timeouts varying

Real clients with a deadline send a different value each time and insert it in the HPACK table (grpc-go and grpc-java
do), so the header block of a call is never the same twice; h2load cannot. All blocks are encoded before the clock
starts. With `--vary` no two messages are alike, as h2load's are. It prints `ready`, waits for a line on standard input,
sends, and prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
import selectors
import socket
import struct
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from hpack import Encoder

from compare.clients import METHOD

if TYPE_CHECKING:
    from collections.abc import Callable

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 0x1, 0x1, 0x4
HEADER_TABLE_SIZE = 1
LARGEST_WINDOW, DEFAULT_WINDOW, DEFAULT_TABLE, DEFAULT_FRAME = 2**31 - 1, 65_535, 4096, 16_384
SILENCE_SECONDS = 20


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """One frame (RFC 9113 section 4.1)."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def header_blocks(count: int, authority: str, timeouts: str, encoder: Encoder, seed: int) -> list[bytes]:
    """The blocks of `count` calls in order; fields in grpc-go's order, every new one inserted in the table."""
    start = [(":method", "POST"), (":scheme", "http"), (":path", METHOD), (":authority", authority)]
    start += [("content-type", "application/grpc"), ("user-agent", "headrace-frames/1"), ("te", "trailers")]
    draw = random.Random(seed)
    blocks = []
    for _ in range(count):
        value = {"none": None, "constant": "10S"}.get(timeouts, f"{draw.randrange(5_000_000, 9_999_999)}u")
        blocks.append(encoder.encode(start if value is None else [*start, ("grpc-timeout", value)]))
    return blocks


class Connection:
    """One connection that keeps `in_flight` calls under way until all its blocks are sent and answered.

    vary: a number in [0, 1) for each call, FP32, that takes the place of the message's last four octets; None: all are
    the same.
    """

    def __init__(
        self, address: tuple[str, int], in_flight: int, body: bytes, vary: Callable[[], float] | None = None
    ) -> None:
        if len(body) > DEFAULT_FRAME:
            raise ValueError(f"the message has {len(body)} octets, and this client puts it in one frame: 16384")
        self.socket = socket.create_connection(address, timeout=SILENCE_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.encoder = Encoder()
        self.done = self.octets = 0
        self._blocks: list[bytes] = []
        self._sent = 0
        self._in_flight = in_flight
        self._body = body
        self._vary = vary
        self._window = DEFAULT_WINDOW
        self._buffer = b""
        self._ready = False
        grow = struct.pack(">I", LARGEST_WINDOW - DEFAULT_WINDOW)
        self.socket.sendall(PREFACE + frame(SETTINGS, 0, 0, b"") + frame(WINDOW_UPDATE, 0, 0, grow))
        while not self._ready:  # the server's settings bound the table that the blocks are encoded against
            self.receive()

    @property
    def finished(self) -> bool:
        """Whether every call was answered."""
        return self.done == len(self._blocks)

    def prepare(self, blocks: list[bytes]) -> None:
        """Takes the calls to make."""
        self._blocks = blocks

    def send(self) -> None:
        """Starts as many calls as may be in flight and as the server's window takes."""
        out = []
        while self._sent < len(self._blocks) and self._sent - self.done < self._in_flight:
            if self._window < len(self._body):
                break
            stream = 2 * self._sent + 1
            out.append(frame(HEADERS, END_HEADERS, stream, self._blocks[self._sent]))
            out.append(frame(DATA, END_STREAM, stream, self._next_body()))
            self._window -= len(self._body)
            self._sent += 1
        if out:
            self.socket.sendall(b"".join(out))

    def _next_body(self) -> bytes:
        return self._body if self._vary is None else self._body[:-4] + struct.pack("<f", self._vary())

    def receive(self) -> None:
        """Reads once and handles each whole frame; raises ConnectionError when the server gives up."""
        got = self.socket.recv(1 << 18)
        if not got:
            raise ConnectionError("the server closed the connection")
        data = self._buffer + got
        at = 0
        while len(data) - at >= 9:
            end = at + 9 + int.from_bytes(data[at : at + 3], "big")
            if end > len(data):
                break
            kind, flags = data[at + 3], data[at + 4]
            if kind == DATA:
                self.octets += end - at - 9
            elif kind == HEADERS:
                self.done += flags & END_STREAM
            else:
                self._control(kind, flags, data[at + 5 : at + 9], data[at + 9 : end])
            at = end
        self._buffer = data[at:]

    def _control(self, kind: int, flags: int, stream: bytes, payload: bytes) -> None:
        if kind in (RST_STREAM, GOAWAY):
            raise ConnectionError(f"the server sent frame {kind}: {payload!r}")
        if kind == WINDOW_UPDATE and not int.from_bytes(stream, "big"):
            self._window += int.from_bytes(payload, "big")
        elif kind == PING and not flags & ACK:
            self.socket.sendall(frame(PING, ACK, 0, payload))
        elif kind == SETTINGS and not flags & ACK:
            settings = dict(struct.iter_unpack(">HI", payload))
            if HEADER_TABLE_SIZE in settings:
                self.encoder.header_table_size = min(settings[HEADER_TABLE_SIZE], DEFAULT_TABLE)
            self.socket.sendall(frame(SETTINGS, ACK, 0, b""))
            self._ready = True


def run(connections: list[Connection]) -> None:
    """Drives all connections until every call is answered. Raises TimeoutError after 20 s of silence."""
    with selectors.DefaultSelector() as selector:
        busy = [connection for connection in connections if not connection.finished]
        for connection in busy:
            selector.register(connection.socket, selectors.EVENT_READ, connection)
            connection.send()
        left = len(busy)
        while left:
            events = selector.select(SILENCE_SECONDS)
            if not events:
                raise TimeoutError(f"no reply for {SILENCE_SECONDS} s")
            for key, _ in events:
                connection = key.data
                connection.receive()
                connection.send()
                if connection.finished:
                    selector.unregister(connection.socket)
                    left -= 1


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", required=True)
    parser.add_argument("--payload", type=Path, required=True, help="a message with its gRPC prefix")
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--concurrency", type=int, default=16, help="calls in flight on each connection")
    parser.add_argument("--requests", type=int, required=True, help="in all")
    parser.add_argument("--timeouts", choices=["none", "constant", "varying"], default="varying")
    parser.add_argument("--vary", action="store_true", help="the last element, FP32, is another in each call")
    args = parser.parse_args()
    host, _, port = args.address.rpartition(":")
    body = args.payload.read_bytes()
    vary = random.Random(0).random if args.vary else None
    connections = [Connection((host, int(port)), args.concurrency, body, vary) for _ in range(args.connections)]
    each, more = divmod(args.requests, args.connections)
    for i, connection in enumerate(connections):
        count = each + (i < more)
        connection.prepare(header_blocks(count, args.address, args.timeouts, connection.encoder, seed=i))
    print("ready", flush=True)
    sys.stdin.readline()
    start = time.perf_counter()
    run(connections)
    seconds = time.perf_counter() - start
    totals = {"requests": sum(c.done for c in connections), "octets": sum(c.octets for c in connections)}
    print(json.dumps({"seconds": seconds, **totals}))


if __name__ == "__main__":
    main()
