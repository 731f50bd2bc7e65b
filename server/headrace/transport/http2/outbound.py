"""The sending half of a connection: frames out, within the peer's flow-control windows.

Source: RFC 9113, 5.2 and 6.9. What a window does not let through waits on its stream, in order, and goes out in turns
over the streams when a WINDOW_UPDATE or a SETTINGS frame opens it.
"""

from __future__ import annotations

from collections import deque
from struct import Struct
from typing import TYPE_CHECKING

from headrace.transport.http2 import frames
from headrace.transport.http2.hpack import TABLE_SIZE_ZERO, encode_stateless
from headrace.transport.http2.limits import SMALL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from headrace.transport.http2.stream import Stream

_data_header = Struct(">IB4s").pack  # length << 8 | DATA, which is 0; flags; stream id


class Block:
    """A field section encoded once: static entries and literals without indexing, so valid on every connection."""

    __slots__ = ("encoded", "end", "start")

    def __init__(self, fields: Iterable[tuple[bytes, bytes]]) -> None:
        self.encoded = encode_stateless(fields)
        size = len(self.encoded)
        if size > frames.MIN_MAX_FRAME - len(TABLE_SIZE_ZERO):
            raise ValueError(f"a field section of {size} octets does not fit one frame")
        head = size.to_bytes(3, "big") + bytes((frames.HEADERS,))
        self.start = head + bytes((frames.END_HEADERS,))
        self.end = head + bytes((frames.END_HEADERS | frames.END_STREAM,))


class Outbound:
    """Frames that wait for the socket (`out`) or for a window.

    wake: called when `out` becomes non-empty. finished: called with a stream whose END_STREAM has been written.
    """

    __slots__ = (
        "_blocked",
        "_finished",
        "_opened",
        "_owes_update",
        "_wake",
        "dribbles",
        "initial_window",
        "max_frame",
        "out",
        "pending_octets",
        "sent",
        "window",
    )

    def __init__(self, wake: Callable[[], None], finished: Callable[[Stream], None]) -> None:
        self.out: list[bytes] = []
        self.window = frames.DEFAULT_WINDOW
        self._opened = frames.DEFAULT_WINDOW
        self.initial_window = frames.DEFAULT_WINDOW
        self.max_frame = frames.MIN_MAX_FRAME
        self.pending_octets = 0
        self.sent = 0  # HEADERS and DATA frames so far, or messages where a frame holds several
        self.dribbles = 0  # those of them that a window cut to almost nothing (CVE-2019-9511)
        self._blocked: dict[int, Stream] = {}
        self._wake = wake
        self._finished = finished
        # our encoder keeps no dynamic table; the first block of the connection says so (RFC 7541, 4.2)
        self._owes_update = True

    def __repr__(self) -> str:
        return (
            f"<Outbound window {self.window}, {len(self._blocked)} streams blocked, {self.pending_octets} octets wait>"
        )

    @property
    def octets_sent(self) -> int:
        """Octets of DATA so far."""
        return self._opened - self.window

    def write(self, frame: bytes) -> None:
        """A frame that no window holds back."""
        if not self.out:
            self._wake()
        self.out.append(frame)

    def take(self) -> bytes:
        """All that waits for the socket, which no longer waits."""
        joined = b"".join(self.out)
        self.out.clear()
        return joined

    def respond(self, stream: Stream, head: Block, prefix: bytes, body: bytes, tail: Block) -> None:
        """A whole reply: header section, prefix and body as DATA, trailer section."""
        size = len(prefix) + len(body)
        if (
            self._owes_update
            or size > self.max_frame
            or size > self.window
            or size > self.initial_window + stream.send_delta
            or stream.pending is not None
        ):
            self.headers(stream, head)
            self.data(stream, prefix + body if size <= self.max_frame else prefix)
            if size > self.max_frame:
                self.data(stream, body)
            self.headers(stream, tail, end=True)
            return
        self.window -= size
        self.sent += 1
        out = self.out
        if not out:
            self._wake()
        sid = stream.sid
        out += (
            head.start,
            sid,
            head.encoded,
            _data_header(size << 8, 0, sid),
            prefix,
            body,
            tail.end,
            sid,
            tail.encoded,
        )
        self._finished(stream)

    def headers(self, stream: Stream, block: Block, *, end: bool = False) -> None:
        """A field section, behind the stream's DATA that still waits."""
        if stream.pending is not None:
            stream.pending.append((block, end))
            return
        encoded = block.encoded
        if self._owes_update:
            self._owes_update = False
            encoded = TABLE_SIZE_ZERO + encoded
        self.sent += 1
        flags = frames.END_HEADERS | (frames.END_STREAM if end else 0)
        self.write(frames.frame(frames.HEADERS, flags, stream.id, encoded))
        if end:
            self._finished(stream)

    def data(self, stream: Stream, payload: bytes, *, end: bool = False) -> None:
        """DATA, as far as the windows let it through; the rest waits. An empty payload is a frame only with `end`."""
        if stream.pending is None:
            sent = self._send_data(stream, memoryview(payload), end)
            if sent == len(payload):
                return
            stream.pending = deque()
            self._blocked[stream.id] = stream
            rest = memoryview(payload)[sent:]
        else:
            rest = memoryview(payload)
        self.pending_octets += len(rest)
        stream.pending.append((rest, end))

    def open_window(self, increment: int) -> None:
        """A WINDOW_UPDATE on the connection. Raises ProtocolViolation on overflow."""
        self.window += increment
        self._opened += increment
        if self.window > frames.MAX_WINDOW:
            raise frames.ProtocolViolation(frames.ErrorCode.FLOW_CONTROL_ERROR, "connection window above 2^31-1")
        self.pump()

    def open_stream_window(self, stream: Stream, increment: int) -> None:
        """A WINDOW_UPDATE on a stream. Raises StreamViolation on overflow."""
        stream.send_delta += increment
        if self.initial_window + stream.send_delta > frames.MAX_WINDOW:
            raise frames.StreamViolation(frames.ErrorCode.FLOW_CONTROL_ERROR, "stream window above 2^31-1")
        if stream.pending is not None:
            self._resume(stream)

    def set_initial_window(self, value: int, streams: Iterable[Stream]) -> None:
        """The peer's SETTINGS_INITIAL_WINDOW_SIZE: moves every stream's window, which may become negative.

        `pump` sends what that lets through: it has to wait until the ACK is out (6.5.3).
        """
        grows = value > self.initial_window
        self.initial_window = value
        if grows and any(value + stream.send_delta > frames.MAX_WINDOW for stream in streams):
            raise frames.ProtocolViolation(frames.ErrorCode.FLOW_CONTROL_ERROR, "stream window above 2^31-1")

    def forget(self, stream: Stream) -> None:
        """Drops what waits on a stream that was reset."""
        if stream.pending is not None:
            self.pending_octets -= self.waiting(stream)
            stream.pending = None
            del self._blocked[stream.id]

    def waiting(self, stream: Stream) -> int:
        """Octets of DATA that wait on the stream for a window."""
        return sum(len(item) for item, _ in stream.pending or () if not isinstance(item, Block))

    def _send_data(self, stream: Stream, payload: memoryview, end: bool) -> int:
        """Sends what the windows allow; returns the octets sent. END_STREAM goes with the last of them."""
        size = len(payload)
        allowed = max(0, min(size, self.window, self.initial_window + stream.send_delta))
        sent = 0
        while sent < allowed or (end and size == 0):
            step = min(allowed - sent, self.max_frame)
            last = end and sent + step == size
            self.write(_data_header(step << 8, frames.END_STREAM if last else 0, stream.sid))
            self.out.append(bytes(payload[sent : sent + step]))
            sent += step
            if last:
                break
        if sent:
            self.sent += 1
            if sent < size and sent < SMALL:
                self.dribbles += 1
            self.window -= sent
            stream.send_delta -= sent
        if end and sent == size:
            self._finished(stream)
        return sent

    def pump(self) -> None:
        """One turn over the blocked streams: each sends what it can, the first to wait first."""
        for stream in list(self._blocked.values()):
            if self.window <= 0:
                return
            self._resume(stream)

    def _resume(self, stream: Stream) -> None:
        pending = stream.pending
        assert pending is not None
        while pending:
            item, end = pending[0]
            if isinstance(item, Block):
                pending.popleft()
                if not pending:
                    self._unblock(stream)
                    self.headers(stream, item, end=end)
                else:
                    stream.pending = None  # let this one through; what follows stays behind it
                    self.headers(stream, item, end=end)
                    stream.pending = pending
                continue
            sent = self._send_data(stream, item, end)
            self.pending_octets -= sent
            if sent < len(item):
                pending[0] = (item[sent:], end)
                return
            pending.popleft()
        if stream.pending is not None:
            self._unblock(stream)

    def _unblock(self, stream: Stream) -> None:
        stream.pending = None
        del self._blocked[stream.id]
        stream.on_writable()
