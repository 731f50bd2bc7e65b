"""What one peer may ask of us, and how patience with it runs out.

Every bound here answers a known attack; the advisories are named where the bound is not self-evident.
"""

from __future__ import annotations

from dataclasses import dataclass

from headrace.transport.http2.frames import DEFAULT_WINDOW, ErrorCode, ProtocolViolation, Setting

PING_INTERVAL_NS = 300 * 10**9
"""Between pings without anything sent in between (gRFC A8)."""
MAX_STRIKES = 2


@dataclass(frozen=True, slots=True)
class Limits:
    """Octets and counts of one connection.

    max_streams: streams open, and calls at work for streams that were reset (CVE-2023-44487). initial_window,
    connection_window: what may be received before it is credited. max_header_list: fields as RFC 9113, 6.5.2 counts
    them. max_fields: of a header list (CVE-2026-49975). max_block, max_continuations: of an encoded field block
    (VU#421644). resets: RST_STREAM frames in a burst, then resets_per_second; glitches: streams refused, reset for an
    error, empty frames and other things that no client does often, in a burst, then glitches_per_second.
    max_unsent: octets of replies that may wait for the peer to open its windows, before new streams are refused.
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
    max_unsent: int = 64 << 20

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


class Glitches:
    """Counts what a well-behaved peer does rarely; raises ProtocolViolation when it is too much."""

    __slots__ = ("_glitches", "_resets")

    def __init__(self, limits: Limits) -> None:
        self._glitches = Bucket(limits.glitches, limits.glitches_per_second)
        self._resets = Bucket(limits.resets, limits.resets_per_second)

    def glitch(self, now: int) -> None:
        """A stream that was refused or reset for an error, a frame without use."""
        if not self._glitches.take(now):
            raise ProtocolViolation(ErrorCode.ENHANCE_YOUR_CALM, "too many errors")

    def empty(self, now: int) -> None:
        """A frame without payload that ends nothing (CVE-2019-9518)."""
        if not self._glitches.take(now):
            raise ProtocolViolation(ErrorCode.ENHANCE_YOUR_CALM, "too many empty frames")

    def reset(self, now: int) -> None:
        """The peer has reset a stream (CVE-2023-44487)."""
        if not self._resets.take(now):
            raise ProtocolViolation(ErrorCode.ENHANCE_YOUR_CALM, "too many resets")


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
                raise ProtocolViolation(ErrorCode.ENHANCE_YOUR_CALM, "too_many_pings")
        else:
            self._last = now


class ReceiveWindow:
    """The connection's window for DATA, opened again when half of it is used (RFC 9113, 6.9).

    left: octets that may still come; whoever takes some has to call `reopen` once it is below `low`.
    """

    __slots__ = ("_size", "left", "low")

    def __init__(self, size: int) -> None:
        self._size = size
        self.left = size
        self.low = size // 2 + 1

    def reopen(self) -> int:
        """Opens the window; returns the increment to announce. Raises ProtocolViolation if more came than it took."""
        if self.left < 0:
            raise ProtocolViolation(ErrorCode.FLOW_CONTROL_ERROR, "connection window exceeded")
        increment = self._size - self.left
        self.left = self._size
        return increment
