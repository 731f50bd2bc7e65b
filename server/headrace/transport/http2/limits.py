"""What one peer may ask of us, and how patience with it runs out.

Every bound here answers a known attack; the advisories are named where the bound is not self-evident.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from headrace.transport.http2.frames import DEFAULT_WINDOW, ErrorCode, ProtocolViolation, Setting

if TYPE_CHECKING:
    from headrace.config import Http2Settings

PING_INTERVAL_NS = 300 * 10**9
"""Between pings without anything sent in between (gRFC A8)."""
MAX_STRIKES = 2
SMALL = 256
"""Octets below which a DATA frame costs more to handle than it carries."""


class Limit(StrEnum):
    """The bounds that a peer may meet, as metrics and our GOAWAY name them; docs/http2.md says what each is for."""

    # the connection ends: ENHANCE_YOUR_CALM
    RAPID_RESET = "rapid_reset"
    STREAM_ERRORS = "stream_errors"
    SETTINGS = "settings"
    PRIORITY = "priority"
    PINGS = "too_many_pings"  # the text is gRPC's: clients that see it ping less often (gRFC A8)
    EMPTY_FRAMES = "empty_frames"
    USELESS_FRAMES = "useless_frames"
    WINDOW_UPDATES = "window_updates"
    SMALL_DATA = "small_data"
    FIELD_BLOCK = "field_block"
    SLOW_FRAME = "slow_frame"
    CONNECTIONS = "connections"
    # the connection ends otherwise
    HANDSHAKE_TIMEOUT = "handshake_timeout"
    KEEPALIVE_TIMEOUT = "keepalive_timeout"
    IDLE_TIMEOUT = "idle_timeout"
    # a stream is refused or ends; a reader that is slow on all of its streams is cut off
    STREAMS = "streams"
    UNSENT_REPLIES = "unsent_replies"
    HEADER_LIST = "header_list"
    BUFFERED_OCTETS = "buffered_octets"
    SLOW_REQUEST = "slow_request"
    SLOW_READER = "slow_reader"


class LimitReached(ProtocolViolation):
    """The peer has asked too much: ENHANCE_YOUR_CALM."""

    def __init__(self, limit: Limit) -> None:
        super().__init__(ErrorCode.ENHANCE_YOUR_CALM, limit)
        self.limit = limit


@dataclass(frozen=True, slots=True)
class Limits:
    """Octets and counts of one connection.

    max_streams: streams open, and calls at work for streams that were reset (CVE-2023-44487). initial_window,
    connection_window: what may be received before it is credited. max_header_list: fields as RFC 9113, 6.5.2 counts
    them. max_fields: of a header list (CVE-2026-49975). max_block, max_continuations: of an encoded field block
    (VU#421644). resets: RST_STREAM frames in a burst, then resets_per_second, beyond one for each reply; glitches:
    streams refused, reset for an error, empty frames and other things that no client does often, in a burst, then
    glitches_per_second. window_updates, small_frames: what may come in a burst, then by the second, beyond what is paid
    for (`SmallFrames`). max_unsent: octets of replies that may wait for the peer to open its windows, before new
    streams are refused.
    """

    max_streams: int = 256
    initial_window: int = 1 << 20
    connection_window: int = 16 << 20
    max_header_list: int = 16 << 10
    max_fields: int = 128
    max_block: int = 64 << 10
    max_continuations: int = 16
    resets: int = 1000
    resets_per_second: int = 200
    glitches: int = 1000
    glitches_per_second: int = 100
    window_updates: int = 1000
    window_updates_per_second: int = 500
    small_frames: int = 1000
    small_frames_per_second: int = 500
    max_unsent: int = 64 << 20

    @classmethod
    def of(cls, settings: Http2Settings) -> Limits:
        """Those that the settings say, and the others as they are."""
        return cls(
            max_streams=settings.max_concurrent_streams,
            initial_window=settings.initial_window_bytes,
            connection_window=settings.connection_window_bytes,
            max_header_list=settings.max_header_list_bytes,
        )

    def settings(self) -> dict[int, int]:
        """Our SETTINGS. The connection's window has no setting: it is opened by a WINDOW_UPDATE."""
        values: dict[int, int] = {
            Setting.MAX_CONCURRENT_STREAMS: self.max_streams,
            Setting.MAX_HEADER_LIST_SIZE: self.max_header_list,
        }
        if self.initial_window != DEFAULT_WINDOW:
            values[Setting.INITIAL_WINDOW_SIZE] = self.initial_window
        return values


class Bucket:
    """A token bucket. Times are monotonic ns, given by the caller."""

    __slots__ = ("_burst", "_level", "_per_ns", "_since")

    def __init__(self, burst: int, per_second: int) -> None:
        self._burst = float(burst)
        self._level = float(burst)
        self._per_ns = per_second / 1e9
        self._since = 0

    def take(self, now: int) -> bool:
        """Whether there was a token."""
        self._level = min(self._burst, self._level + (now - self._since) * self._per_ns)
        self._since = now
        if self._level < 1.0:
            return False
        self._level -= 1.0
        return True


class Budget:
    """Frames that are no fault, and cost more than they carry: paid for by what they go along with, else by a bucket.

    Good clients send some for each call, however many calls they make; who sends them alone runs out.
    """

    __slots__ = ("_bucket", "_credit", "_earned", "_most")

    def __init__(self, burst: int, per_second: int) -> None:
        self._bucket = Bucket(burst, per_second)
        self._most = burst
        self._credit = 0
        self._earned = 0

    def take(self, now: int, earned: int) -> bool:
        """Whether one more frame is paid for; earned: a count of them that grows with what they go along with."""
        self._credit = min(self._credit + earned - self._earned, self._most)
        self._earned = earned
        if self._credit > 0:
            self._credit -= 1
            return True
        return self._bucket.take(now)


class Glitches:
    """Counts what a well-behaved peer does rarely; raises LimitReached when it is too much."""

    __slots__ = ("_glitches", "_resets")

    def __init__(self, limits: Limits) -> None:
        self._glitches = Bucket(limits.glitches, limits.glitches_per_second)
        self._resets = Budget(limits.resets, limits.resets_per_second)

    def glitch(self, now: int, limit: Limit) -> None:
        """A stream that was refused or reset for an error, a frame without use. All kinds share one bucket."""
        if not self._glitches.take(now):
            raise LimitReached(limit)

    def reset(self, now: int, replies: int) -> None:
        """The peer has reset a stream (CVE-2023-44487). replies: as for `SmallFrames`.

        A reply pays for one: a client of many calls gives up those whose deadline has passed, or that it has sent to
        another server too. Who only opens and resets gets none.
        """
        if not self._resets.take(now, replies):
            raise LimitReached(Limit.RAPID_RESET)


class SmallFrames:
    """WINDOW_UPDATE, and DATA that brings next to nothing. Raises LimitReached when there are too many for their use.

    A reply pays for some of each, and so does each KiB that goes over the wire. gRPC's C core sends up to four
    WINDOW_UPDATE a call, the first before its DATA; some clients send a message's prefix in a frame of its own.
    """

    __slots__ = ("_data", "_updates")

    def __init__(self, limits: Limits) -> None:
        open_at_once = 4 * limits.max_streams
        self._updates = Budget(limits.window_updates + open_at_once, limits.window_updates_per_second)
        self._data = Budget(limits.small_frames + open_at_once, limits.small_frames_per_second)

    def window_update(self, now: int, replies: int, octets_sent: int) -> None:
        """A WINDOW_UPDATE; replies: frames that we have sent so far, without those that a shut window cut small."""
        if not self._updates.take(now, 4 * replies + (octets_sent >> 10)):
            raise LimitReached(Limit.WINDOW_UPDATES)

    def data(self, now: int, replies: int, octets_received: int) -> None:
        """DATA of less than `SMALL` octets that ended nothing."""
        if not self._data.take(now, 4 * replies + (octets_received >> 10)):
            raise LimitReached(Limit.SMALL_DATA)


class PingStrikes:
    """Pings that come too often while nothing is sent in between (gRFC A8)."""

    __slots__ = ("_last", "_sent", "_strikes")

    def __init__(self) -> None:
        self._last = 0
        self._sent = -1
        self._strikes = 0

    def ping(self, now: int, last_sent: int) -> None:
        """A PING arrived; last_sent: a number that differs whenever HEADERS or DATA were sent since the last call."""
        if last_sent != self._sent:
            self._sent, self._strikes, self._last = last_sent, 0, now
            return
        if self._last and now - self._last < PING_INTERVAL_NS:
            self._strikes += 1
            if self._strikes > MAX_STRIKES:
                raise LimitReached(Limit.PINGS)
        else:
            self._last = now


class ReceiveWindow:
    """The connection's window for DATA, opened again when half of it is used (RFC 9113, 6.9).

    left: octets that may still come; whoever takes some has to call `reopen` once it is below `low`.
    """

    __slots__ = ("_opened", "_size", "left", "low")

    def __init__(self, size: int) -> None:
        self._size = size
        self._opened = size
        self.left = size
        self.low = size // 2 + 1

    @property
    def received(self) -> int:
        """Octets of DATA so far, padding included."""
        return self._opened - self.left

    def reopen(self) -> int:
        """Opens the window; returns the increment to announce. Raises ProtocolViolation if more came than it took."""
        if self.left < 0:
            raise ProtocolViolation(ErrorCode.FLOW_CONTROL_ERROR, "connection window exceeded")
        increment = self._size - self.left
        self._opened += increment
        self.left = self._size
        return increment
