"""The frames that carry neither fields nor data: what each demands of a connection. Source: RFC 9113, 6.3 to 6.9."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.transport.http2 import frames
from headrace.transport.http2.frames import ErrorCode, ProtocolViolation, StreamViolation
from headrace.transport.http2.limits import Limit, PingStrikes

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.transport.http2.connection import Connection

_MOST_SETTINGS = 32


class Controls:
    """One connection's control frames.

    handlers: by frame type, each called with flags, stream id and payload. settings_acked: the client knows our limits.
    client_leaves: by its GOAWAY it opens no more streams.
    """

    __slots__ = ("_connection", "_strikes", "client_leaves", "handlers", "settings_acked")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._strikes = PingStrikes()
        self.settings_acked = False
        self.client_leaves = False
        self.handlers: dict[int, Callable[[int, int, bytes], None]] = {
            frames.PRIORITY: self._priority,
            frames.RST_STREAM: self._rst_stream,
            frames.SETTINGS: self._settings,
            frames.PUSH_PROMISE: self._push_promise,
            frames.PING: self._ping,
            frames.GOAWAY: self._goaway,
            frames.WINDOW_UPDATE: self._window_update,
        }

    def useless(self) -> None:
        """A frame of a type that nobody knows (5.5), or an answer to nothing: ignored, and counted."""
        self._glitch(Limit.USELESS_FRAMES)

    def _glitch(self, limit: Limit) -> None:
        self._connection.glitches.glitch(self._connection.now, limit)

    def _priority(self, flags: int, stream_id: int, payload: bytes) -> None:
        """Accepted and dropped (5.3.2); there is no tree to maintain (CVE-2019-9513)."""
        if stream_id == 0:
            raise ProtocolViolation(ErrorCode.PROTOCOL_ERROR, "PRIORITY on stream 0")
        if len(payload) != 5:
            code = ErrorCode.FRAME_SIZE_ERROR
        elif int.from_bytes(payload[:4], "big") & 0x7FFFFFFF == stream_id:
            code = ErrorCode.PROTOCOL_ERROR
        else:
            self._glitch(Limit.PRIORITY)
            return
        if stream_id > self._connection.ids.last:  # an idle stream cannot be reset (5.1)
            raise ProtocolViolation(code, "malformed PRIORITY")
        self._connection.refuse(stream_id, code)

    def _rst_stream(self, flags: int, stream_id: int, payload: bytes) -> None:
        connection = self._connection
        connection.ids.check_used(stream_id, "RST_STREAM")
        if len(payload) != 4:
            raise ProtocolViolation(ErrorCode.FRAME_SIZE_ERROR, "RST_STREAM is not 4 octets")
        outbound = connection.outbound
        connection.glitches.reset(connection.now, outbound.sent - outbound.dribbles)
        stream = connection.streams.pop(stream_id, None)
        if stream is not None:
            connection.ids.reset(stream_id, ours=False)
            connection.outbound.forget(stream)
            stream.on_reset()

    def _settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise ProtocolViolation(ErrorCode.PROTOCOL_ERROR, "SETTINGS on a stream")
        if flags & frames.ACK:
            if payload:
                raise ProtocolViolation(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS ACK with a payload")
            if self.settings_acked:
                self.useless()
            self.settings_acked = True
            return
        if len(payload) % 6 or len(payload) > 6 * _MOST_SETTINGS:
            raise ProtocolViolation(ErrorCode.FRAME_SIZE_ERROR, f"SETTINGS of {len(payload)} octets")
        self._glitch(Limit.SETTINGS)
        for identifier, value in frames.parse_settings(payload):
            self._apply_setting(identifier, value)
        outbound = self._connection.outbound
        outbound.write(frames.frame(frames.SETTINGS, frames.ACK, 0))
        outbound.pump()

    def _apply_setting(self, identifier: int, value: int) -> None:
        """HEADER_TABLE_SIZE binds our encoder, which has no table; MAX_HEADER_LIST_SIZE is advice (CVE-2026-50560)."""
        outbound = self._connection.outbound
        if identifier == frames.Setting.INITIAL_WINDOW_SIZE:
            if value > frames.MAX_WINDOW:
                raise ProtocolViolation(ErrorCode.FLOW_CONTROL_ERROR, f"INITIAL_WINDOW_SIZE {value}")
            outbound.set_initial_window(value, self._connection.streams.values())
        elif identifier == frames.Setting.MAX_FRAME_SIZE:
            if not frames.MIN_MAX_FRAME <= value <= frames.MAX_MAX_FRAME:
                raise ProtocolViolation(ErrorCode.PROTOCOL_ERROR, f"MAX_FRAME_SIZE {value}")
            outbound.max_frame = value
        elif identifier == frames.Setting.ENABLE_PUSH and value > 1:
            raise ProtocolViolation(ErrorCode.PROTOCOL_ERROR, f"ENABLE_PUSH {value}")

    def _push_promise(self, flags: int, stream_id: int, payload: bytes) -> None:
        raise ProtocolViolation(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE from a client")

    def _ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        connection = self._connection
        if stream_id:
            raise ProtocolViolation(ErrorCode.PROTOCOL_ERROR, "PING on a stream")
        if len(payload) != 8:
            raise ProtocolViolation(ErrorCode.FRAME_SIZE_ERROR, "PING is not 8 octets")
        if not flags & frames.ACK:
            connection.outbound.write(frames.ping(payload, ack=True))
            self._strikes.ping(connection.now, connection.outbound.sent)
            return
        self.useless()  # our own are so rare that there is no need to tell them apart
        if payload == frames.DRAIN_PING:
            connection.drain_acked()

    def _goaway(self, flags: int, stream_id: int, payload: bytes) -> None:
        """The client opens no more streams; what it has open goes on."""
        if stream_id:
            raise ProtocolViolation(ErrorCode.PROTOCOL_ERROR, "GOAWAY on a stream")
        if len(payload) < 8:
            raise ProtocolViolation(ErrorCode.FRAME_SIZE_ERROR, "GOAWAY is too short")
        if self.client_leaves:
            self.useless()
        self.client_leaves = True

    def _window_update(self, flags: int, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ProtocolViolation(ErrorCode.FRAME_SIZE_ERROR, "WINDOW_UPDATE is not 4 octets")
        connection = self._connection
        outbound = connection.outbound
        connection.small_frames.window_update(connection.now, outbound.sent - outbound.dribbles, outbound.octets_sent)
        increment = int.from_bytes(payload, "big") & 0x7FFFFFFF
        if stream_id == 0:
            if increment == 0:
                raise ProtocolViolation(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
            outbound.open_window(increment)
            return
        stream = connection.streams.get(stream_id)
        if stream is None:
            connection.ids.check_used(stream_id, "WINDOW_UPDATE")
        elif increment == 0:
            connection.break_off(stream, ErrorCode.PROTOCOL_ERROR)
        else:
            try:
                outbound.open_stream_window(stream, increment)
            except StreamViolation as violation:
                connection.break_off(stream, violation.code)
