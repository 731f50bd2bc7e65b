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


class Inside:
    """Where the inside of a large message is gathered: buffer[filled:limit] is what may be written."""

    __slots__ = ("buffer", "filled", "limit")

    def __init__(self) -> None:
        self.buffer = memoryview(b"")
        self.filled = 0
        self.limit = 0


NOTHING = Inside()
"""Where nothing fits."""


class Stream:
    """One request's stream. The application derives from it and overrides the `on_` methods.

    sid: the id as four octets. octets, recv_window: those of DATA that have come and that may come (RFC 9113, 6.9),
    without what is in `inside`. send_delta: the send window is the connection's initial one plus this, so that a change
    of SETTINGS costs nothing for each stream. pending: what waits for a window. inside, begun: where DATA go straight
    to, and how much was there before; see `Connection.lend`.
    """

    __slots__ = (
        "begun",
        "connection",
        "head",
        "id",
        "inside",
        "octets",
        "pending",
        "recv_window",
        "remote_closed",
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
        self.inside: Inside = NOTHING
        self.begun = 0
        self.pending: deque[tuple[Any, bool]] | None = None

    @property
    def octets_received(self) -> int:
        """Octets of DATA so far, with what went straight to `inside`."""
        return self.octets if self.inside is NOTHING else self.octets + self.inside.filled - self.begun

    def on_headers(self, end: bool) -> None:
        """The request's head has arrived; `end`: nothing follows."""

    def on_data(self, data: bytes | memoryview, start: int, stop: int, end: bool) -> None:
        """data[start:stop] has arrived; `end`: nothing follows. `data` is good for the time of the call."""

    def on_writable(self) -> None:
        """All that waited for a window has been sent."""

    def on_inside(self, octets: int) -> None:
        """So many octets have gone to the `inside` of this stream, and of others of the connection before it."""

    def on_reset(self) -> None:
        """The stream is gone: reset by the peer or by us, or the connection is lost. Nothing more may be sent on it."""
