"""A gRPC client's side of one HTTP/2 connection, for calls that begin when they are due and end at their deadline."""

from __future__ import annotations

import socket
import struct
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hpack import Decoder, Encoder

from compare.clients import METHOD
from compare.frames import (
    ACK,
    DATA,
    DEFAULT_FRAME,
    DEFAULT_TABLE,
    DEFAULT_WINDOW,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADER_TABLE_SIZE,
    HEADERS,
    LARGEST_WINDOW,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
)

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE = 3, 4
CANCEL = 8
CONNECT_SECONDS = 20


@dataclass(slots=True, eq=False)
class Call:
    """due: when the caller makes it; until: when its reply is worth nothing any more. Both in seconds of one clock.

    kind: of its message. ended: when its end was seen; 0: it was not. octets: of DATA frames of its reply. status: the
    reply's grpc-status, once it is known; -1 for a stream that was reset. cancelled: by us, at its deadline.
    """

    due: float
    until: float
    kind: int
    ended: float = 0.0
    octets: int = 0
    status: int | None = None
    cancelled: bool = False


@dataclass(slots=True)
class Peer:
    """What the server has said of itself: windows in octets, streams that may be open at once."""

    window: int = DEFAULT_WINDOW
    stream_window: int = DEFAULT_WINDOW
    streams: int = LARGEST_WINDOW
    ready: bool = False


class Connection:
    """Calls that are due are sent in order, as soon as the server's limits let them. tells: their deadlines too.

    bodies: for each kind of call its message with its gRPC prefix.
    """

    def __init__(
        self, address: tuple[str, int], bodies: list[bytes], clock: Callable[[], float], *, tells: bool
    ) -> None:
        if max(map(len, bodies)) > DEFAULT_FRAME:
            raise ValueError(
                f"a message has {max(map(len, bodies))} octets, and this client puts it in one frame: 16384"
            )
        self.socket = socket.create_connection(address, timeout=CONNECT_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.open: dict[int, Call] = {}
        self.waiting: deque[Call] = deque()
        self._authority = f"{address[0]}:{address[1]}"
        self._bodies, self._clock, self._tells = bodies, clock, tells
        self._encoder, self._decoder = Encoder(), Decoder()
        self._peer = Peer()
        self._next_id = 1
        self._in, self._out = b"", bytearray()
        grow = struct.pack(">I", LARGEST_WINDOW - DEFAULT_WINDOW)
        ours = struct.pack(">HI", INITIAL_WINDOW_SIZE, LARGEST_WINDOW)
        self._out += PREFACE + frame(SETTINGS, 0, 0, ours) + frame(WINDOW_UPDATE, 0, 0, grow)
        while not self._peer.ready:
            self.write()
            self.read()
        self.socket.setblocking(False)

    @property
    def idle(self) -> bool:
        """Whether no call is under way."""
        return not self.open and not self.waiting

    @property
    def has_output(self) -> bool:
        """Whether `write` has something to do."""
        return bool(self._out)

    def start(self, call: Call) -> None:
        """Begins a call, now or when the server's limits let it."""
        self.waiting.append(call)
        self._send()

    def cancel(self, stream: int) -> None:
        """Gives up on a call, as clients do at its deadline."""
        call = self.open.pop(stream)
        call.cancelled, call.ended = True, self._clock()
        self._out += frame(RST_STREAM, 0, stream, CANCEL.to_bytes(4, "big"))
        self._send()

    def expire(self, now: float) -> None:
        """Cancels what is over by `now`, and forgets what has not even been sent."""
        for stream in [stream for stream, call in self.open.items() if call.until <= now]:
            self.cancel(stream)
        while self.waiting and self.waiting[0].until <= now:
            call = self.waiting.popleft()
            call.cancelled, call.ended = True, now

    def _send(self) -> None:
        peer = self._peer
        while self.waiting and len(self.open) < peer.streams:
            call = self.waiting[0]
            body = self._bodies[call.kind]
            if len(body) > min(peer.window, peer.stream_window):
                break
            self.waiting.popleft()
            fields = [(":method", "POST"), (":scheme", "http"), (":path", METHOD), (":authority", self._authority)]
            fields += [("content-type", "application/grpc"), ("te", "trailers")]
            if self._tells:
                left = max(1, round((call.until - self._clock()) * 1e6))
                fields.append(("grpc-timeout", f"{left}u"))
            self._out += frame(HEADERS, END_HEADERS, self._next_id, self._encoder.encode(fields))
            self._out += frame(DATA, END_STREAM, self._next_id, body)
            peer.window -= len(body)
            self.open[self._next_id] = call
            self._next_id += 2

    def write(self) -> None:
        """Writes what the socket takes."""
        if self._out:
            try:
                sent = self.socket.send(self._out)
            except BlockingIOError:
                return
            del self._out[:sent]

    def read(self) -> None:
        """Reads once and handles each whole frame. Raises ConnectionError when the server gives up."""
        try:
            got = self.socket.recv(1 << 18)
        except BlockingIOError:
            return
        if not got:
            raise ConnectionError("the server closed the connection")
        data, at = self._in + got, 0
        while len(data) - at >= 9:
            end = at + 9 + int.from_bytes(data[at : at + 3], "big")
            if end > len(data):
                break
            self._frame(data[at + 3], data[at + 4], int.from_bytes(data[at + 5 : at + 9], "big"), data[at + 9 : end])
            at = end
        self._in = data[at:]
        self._send()

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        call = self.open.get(stream)
        if kind == DATA:
            if call is not None:
                call.octets += len(payload)
                self._ended(stream, call, flags)
        elif kind == HEADERS:
            if not flags & END_HEADERS:
                raise ConnectionError(
                    "the server sent a field block in several frames, which this client does not read"
                )
            fields = dict(self._decoder.decode(payload, raw=True))  # of calls that are over too: they change the table
            if call is not None:
                if b"grpc-status" in fields:
                    call.status = int(fields[b"grpc-status"])
                self._ended(stream, call, flags)
        elif kind == RST_STREAM:
            if call is not None:
                call.status = -1
                self._ended(stream, call, END_STREAM)
        else:
            self._control(kind, flags, stream, payload)

    def _ended(self, stream: int, call: Call, flags: int) -> None:
        if flags & END_STREAM:
            call.ended = self._clock()
            del self.open[stream]

    def _control(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        peer = self._peer
        if kind == GOAWAY:
            raise ConnectionError(f"the server sent GOAWAY: {payload!r}")
        if kind == WINDOW_UPDATE and not stream:
            peer.window += int.from_bytes(payload, "big")
        elif kind == PING and not flags & ACK:
            self._out += frame(PING, ACK, 0, payload)
        elif kind == SETTINGS and not flags & ACK:
            settings = dict(struct.iter_unpack(">HI", payload))
            if HEADER_TABLE_SIZE in settings:
                self._encoder.header_table_size = min(settings[HEADER_TABLE_SIZE], DEFAULT_TABLE)
            peer.streams = settings.get(MAX_CONCURRENT_STREAMS, peer.streams)
            peer.stream_window = settings.get(INITIAL_WINDOW_SIZE, peer.stream_window)
            self._out += frame(SETTINGS, ACK, 0, b"")
            peer.ready = True
