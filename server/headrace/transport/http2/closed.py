"""Which stream ids were used and how their streams ended. Source: RFC 9113, 5.1 and 5.1.1."""

from __future__ import annotations

from collections import OrderedDict, deque

from headrace.transport.http2.frames import ErrorCode, ProtocolViolation

_RESET = 1024
_RANGES = 16


class StreamIds:
    """The ids of one connection's streams that are not live.

    Only streams that ended early are remembered: after our reset (or our END_STREAM before the client's) frames may
    still be on their way and are dropped; after the client's own reset they are an error. The oldest are forgotten
    first; the price is a reset too many.
    """

    __slots__ = ("_reset", "_skipped", "last")

    def __init__(self) -> None:
        self.last = 0
        self._reset: OrderedDict[int, bool] = OrderedDict()  # id -> whether it was us
        self._skipped: deque[range] = deque(maxlen=_RANGES)

    def open(self, stream_id: int) -> None:
        """A new stream, above all others: closes what idle ids lie below it."""
        if stream_id > self.last + 2:
            self._skipped.append(range(self.last + 1, stream_id))
        self.last = stream_id

    def reset(self, stream_id: int, *, ours: bool) -> None:
        """The stream ended before both sides had said all."""
        self._reset[stream_id] = ours
        if len(self._reset) > _RESET:
            self._reset.popitem(last=False)

    def reset_by_us(self, stream_id: int) -> bool | None:
        """Whether we or the client reset the stream; None if neither did, as far as is remembered."""
        return self._reset.get(stream_id)

    def check_used(self, stream_id: int, kind: str) -> None:
        """Raises ProtocolViolation for a frame of that kind on an id that was never opened."""
        if stream_id == 0 or stream_id > self.last or not stream_id & 1:
            raise ProtocolViolation(ErrorCode.PROTOCOL_ERROR, f"{kind} on stream {stream_id}, which is idle")
        if any(stream_id in skipped for skipped in self._skipped):
            raise ProtocolViolation(ErrorCode.PROTOCOL_ERROR, f"{kind} on stream {stream_id}, which was skipped")
