"""One request's stream, as the connection knows it and the application extends it. Source: RFC 9113, 5 and 6.9."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections import deque

    from headrace.transport.http2.connection import Connection
    from headrace.transport.http2.heads import RequestHead


class Lingering(Protocol):
    """Work that goes on although its stream is gone."""

    @property
    def finished(self) -> bool:
        """Whether it has ended."""


class Inside(Protocol):
    """Where the inside of a large message is received: buffer[filled:] is what is still to come, at least."""

    buffer: memoryview
    filled: int


class Stream:
    """One request's stream. The application derives from it and overrides the `on_` methods.

    sid: the id as four octets. octets, recv_window: those of DATA that have come and that may come (RFC 9113, 6.9),
    right until the last frame. send_delta: the send window is the connection's initial one plus this, so that a change
    of SETTINGS costs nothing for each stream. pending: what waits for a window. room: octets of DATA that go straight
    to `inside`; the application sets both, `room` to no more than what the content-length leaves, if there is one.
    """

    __slots__ = (
        "connection",
        "head",
        "id",
        "inside",
        "octets",
        "pending",
        "recv_window",
        "remote_closed",
        "room",
        "send_delta",
        "sid",
    )

    def __init__(self, connection: Connection, stream_id: int, head: RequestHead) -> None:
        self.connection = connection
        self.id = stream_id
        self.sid = stream_id.to_bytes(4, "big")
        self.head = head
        self.send_delta = 0
        self.recv_window = connection.limits.initial_window
        self.octets = 0
        self.remote_closed = False
        self.room = 0
        self.inside: Inside
        self.pending: deque[tuple[Any, bool]] | None = None

    def on_headers(self, end: bool) -> None:
        """The request's head has arrived; `end`: nothing follows."""

    def on_data(self, data: bytes | memoryview, start: int, stop: int, end: bool) -> None:
        """data[start:stop] has arrived; `end`: nothing follows. `data` is good for the time of the call."""

    def on_writable(self) -> None:
        """All that waited for a window has been sent."""

    def on_low_window(self) -> None:
        """Less than half of the receive window is left, while DATA go to `inside`."""

    def on_inside(self, octets: int) -> None:
        """So many octets have gone to the `inside` of this stream, and of others of the connection before it."""

    def on_reset(self) -> None:
        """The stream is gone: reset by the peer or by us, or the connection is lost. Nothing more may be sent on it."""
