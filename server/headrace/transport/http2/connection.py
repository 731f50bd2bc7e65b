"""The receiving half of a server's HTTP/2 connection, sans-I/O: octets in, calls on streams and frames out.

Source: RFC 9113. Every field block is decoded, also those of streams that are refused or gone, since the compression
state is the connection's. A violation ends the connection or the stream as the RFC says; nothing else is raised.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headrace.transport.http2 import frames
from headrace.transport.http2.closed import StreamIds
from headrace.transport.http2.controls import Controls
from headrace.transport.http2.frames import (
    MIN_MAX_FRAME,
    ErrorCode,
    ProtocolViolation,
    StreamViolation,
    unpack_header,
)
from headrace.transport.http2.heads import HeadReader, PartialBlock
from headrace.transport.http2.limits import SMALL, Glitches, Limit, LimitReached, Limits, ReceiveWindow, SmallFrames
from headrace.transport.http2.outbound import Outbound
from headrace.transport.http2.stream import NOTHING

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.transport.http2.fields import Fields
    from headrace.transport.http2.heads import RequestHead, Varying
    from headrace.transport.http2.stream import Inside, Lingering, Stream


class Connection:
    """One connection's protocol state.

    open_stream: makes the application's Stream. read_head: turns a checked field section into what the application
    keeps of it; the result is shared by all requests with the same block. varying: see `heads`. wake: called when
    octets to send appear. limited: told which limit the peer has met.
    After `closing` has become true the octets of `take()` are the last; the shell sends them and closes the socket.
    """

    def __init__(
        self,
        limits: Limits,
        open_stream: Callable[[Connection, int, RequestHead], Stream],
        read_head: Callable[[Fields | None], Any],
        wake: Callable[[], None],
        varying: Varying | None = None,
        limited: Callable[[Limit], None] = lambda limit: None,
        reader: type[HeadReader] = HeadReader,
    ) -> None:
        self.limits = limits
        self.streams: dict[int, Stream] = {}
        self.lingering: list[Lingering] = []  # work for streams that are gone, which the application cannot stop
        self.closing = False
        self.closed_with = ErrorCode.NO_ERROR
        self.now = 0  # monotonic ns of the read being processed
        self.outbound = Outbound(wake, self._sent_all)
        self._open_stream = open_stream
        self._limited = limited
        self._heads = reader(limits, read_head, varying)
        self._tail = b""
        self.started = False
        self._block: PartialBlock | None = None  # a field block whose CONTINUATION frames are awaited
        self._window = ReceiveWindow(limits.connection_window)
        self._low_window = limits.initial_window // 2  # of a stream
        self.ids = StreamIds()
        self._refusing_above = frames.MAX_STREAM_ID
        self._draining = False
        self.glitches = Glitches(limits)
        self.small_frames = SmallFrames(limits)
        self.controls = Controls(self)
        self._handlers = {**self.controls.handlers, frames.CONTINUATION: self._on_continuation}
        self.outbound.write(frames.settings(limits.settings()))
        if limits.connection_window > frames.DEFAULT_WINDOW:
            self.outbound.write(frames.window_update(0, limits.connection_window - frames.DEFAULT_WINDOW))

    def __repr__(self) -> str:
        state = f"closing {self.closed_with.name}" if self.closing else "open" if self.started else "new"
        return f"<Connection {state}, {len(self.streams)} streams, last {self.ids.last}, {self.outbound!r}>"

    # --- octets in ---------------------------------------------------------------------------------------------------

    def receive(self, data: bytes | memoryview, now: int) -> None:
        """Processes what one read brought; `data` may change after the call. now: monotonic ns."""
        if self.closing:
            return
        self.now = now
        try:
            if self._tail:
                # finish the frame that the last read began; only that much of `data` is copied for it
                joined = self._tail + data[: frames.HEADER_SIZE + MIN_MAX_FRAME]
                done = self._parse(joined, 0)
                at = done - len(self._tail)
                if at < 0 or len(joined) - len(self._tail) == len(data):
                    self._tail = joined[done:]
                    return
                self._tail = b""
                self._tail = bytes(data[self._parse(data, at) :])
            else:
                done = self._parse(data, 0)
                self._tail = bytes(data[done:]) if done < len(data) else b""
        except LimitReached as reached:
            self.calm_down(reached.limit)
        except ProtocolViolation as violation:
            self.fail(violation.code, violation.debug)

    @property
    def within(self) -> bool:
        """Whether a frame or a field block has begun and is not whole."""
        return bool(self._tail) or self._block is not None

    def _parse(self, data: bytes | memoryview, at: int) -> int:
        """Processes whole frames from `at` on; returns where the first incomplete one begins."""
        if not self.started:
            begin = frames.after_preface(data, at)
            if begin < 0:
                return at
            self.started = True
            at = begin
        streams = self.streams
        window = self._window
        end = len(data)
        while end - at >= 9:
            length, flags, stream_id = unpack_header(data, at)
            kind = length & 0xFF
            length >>= 8
            if length > MIN_MAX_FRAME:
                raise ProtocolViolation(ErrorCode.FRAME_SIZE_ERROR, f"frame of {length} octets")
            start = at + 9
            at = start + length
            if at > end:
                return start - 9
            stream_id &= 0x7FFFFFFF
            if self._block is not None and kind != frames.CONTINUATION:
                raise ProtocolViolation(ErrorCode.PROTOCOL_ERROR, f"frame type {kind} inside a field block")
            if kind == 0:
                stream = streams.get(stream_id)
                if stream is None or stream.remote_closed:
                    self._stray_data(stream_id, stream, length)
                elif (
                    flags == 1
                    and length <= stream.recv_window
                    and ((expected := stream.head.content_length) < 0 or stream.octets + length == expected)
                ):
                    # the last frame, which is the only one of nearly all messages
                    window.left -= length
                    if window.left < window.low:
                        self._consume(0)
                    stream.remote_closed = True
                    stream.on_data(data, start, at, True)
                elif flags == 0 and length >= SMALL and (inside := stream.inside).filled + length <= inside.limit:
                    at = self._fill(stream, inside, data, start, length)
                else:
                    self._data(stream, flags, data, start, at)
            elif kind == 1:
                if flags & 0x2C == 0x04:  # END_HEADERS, neither PADDED nor PRIORITY: nearly all there are
                    self._field_block(stream_id, flags, bytes(data[start:at]))
                else:
                    self._headers(stream_id, flags, bytes(data[start:at]))
            else:
                handler = self._handlers.get(kind)
                if handler is not None:
                    handler(flags, stream_id, bytes(data[start:at]))
                else:
                    self.controls.useless()
        return at

    # --- DATA ---------------------------------------------------------------------------------------------------------

    def _data(self, stream: Stream, flags: int, data: bytes | memoryview, start: int, stop: int) -> None:
        length = stop - start
        self._consume(length)
        self.take_back(stream)
        stream.recv_window -= length
        if stream.recv_window < 0:
            self.break_off(stream, ErrorCode.FLOW_CONTROL_ERROR)
            return
        if flags & frames.PADDED:
            start, stop = frames.unpad(data, start, stop)
            if not flags & frames.END_STREAM:
                # padding is flow-controlled (6.1) but never delivered: its share is returned at once
                self.credit(stream, length - (stop - start))
        stream.octets += stop - start
        expected = stream.head.content_length
        if flags & frames.END_STREAM:
            if expected >= 0 and stream.octets != expected:
                self.break_off(stream, ErrorCode.PROTOCOL_ERROR)
                return
            stream.remote_closed = True
            stream.on_data(data, start, stop, True)
        else:
            if expected >= 0 and stream.octets > expected:
                self.break_off(stream, ErrorCode.PROTOCOL_ERROR)
                return
            if start == stop:
                self.glitches.glitch(self.now, Limit.EMPTY_FRAMES)
            stream.on_data(data, start, stop, False)

    def lend(self, stream: Stream, inside: Inside, room: int) -> None:
        """Has DATA of the stream go straight to `inside`, up to `room` octets, until a frame comes that does not fit.

        They are then counted, and all further ones handed to `on_data`.
        """
        room = min(room, stream.recv_window - self._low_window)  # that one is a chance to open the window again
        if stream.head.content_length >= 0:
            room = min(room, stream.head.content_length - stream.octets)
        stream.inside = inside
        stream.begun = inside.filled
        inside.limit = inside.filled + room

    def take_back(self, stream: Stream) -> None:
        """Ends what `lend` began, if anything; counts what has come."""
        inside = stream.inside
        if inside is not NOTHING:
            stream.inside = NOTHING
            stream.octets += inside.filled - stream.begun
            stream.recv_window -= inside.filled - stream.begun

    def _fill(self, stream: Stream, inside: Inside, data: bytes | memoryview, start: int, length: int) -> int:
        """Takes DATA frames of one size, of this stream and others, straight to where the messages are gathered.

        A client sends large messages in many such frames, in turns where it has several: a loop of its own, since what
        is copied here drives everything else out of the processor's cache. start: of the first payload, which fits;
        returned is the position behind the last one.
        """
        streams = self.streams
        end = len(data)
        taken = 0
        filled = inside.filled
        while True:
            at = start + length
            inside.buffer[filled : filled + length] = data[start:at]
            inside.filled = filled + length
            taken += length
            start = at + 9
            if end - start < length:
                break
            word, flags, stream_id = unpack_header(data, at)
            if word != length << 8 or flags:  # of DATA, which is 0
                break
            following = streams.get(stream_id & 0x7FFFFFFF)
            if following is None:
                break
            inside = following.inside
            filled = inside.filled
            if filled + length > inside.limit:
                break
            stream = following
        stream.on_inside(taken)  # first: a connection that ends for its window gives back what was counted
        self._consume(taken)
        return at

    def _consume(self, length: int) -> None:
        """Takes octets from the connection's receive window."""
        window = self._window
        window.left -= length
        if window.left < window.low:
            self.outbound.write(frames.window_update(0, window.reopen()))

    def credit(self, stream: Stream, octets: int) -> None:
        """Returns `octets` to the stream's receive window: the application has taken them and wants more."""
        if octets and not stream.remote_closed:
            stream.recv_window += octets
            self.outbound.write(frames.window_update(stream.id, octets))

    def without_message(self, octets: int) -> None:
        """So many octets of DATA have come and have not completed anything: they must not be too few too often."""
        if octets < SMALL:
            outbound = self.outbound
            self.small_frames.data(self.now, outbound.sent - outbound.dribbles, self._window.received)

    def _stray_data(self, stream_id: int, stream: Stream | None, length: int) -> None:
        """DATA on a stream that does not take any."""
        self.ids.check_used(stream_id, "DATA")
        self._consume(length)
        if stream is not None:
            self.break_off(stream, ErrorCode.STREAM_CLOSED)
        elif self.ids.reset_by_us(stream_id):
            self.without_message(length)
        else:
            self.glitches.glitch(self.now, Limit.STREAM_ERRORS)
            self.outbound.write(frames.rst_stream(stream_id, ErrorCode.STREAM_CLOSED))

    # --- HEADERS ------------------------------------------------------------------------------------------------------

    def _headers(self, stream_id: int, flags: int, payload: bytes) -> None:
        """HEADERS with padding or priority, or continued by further frames."""
        start, stop = frames.unpad(payload, 0, len(payload)) if flags & frames.PADDED else (0, len(payload))
        depends_on = -1
        if flags & frames.PRIORITY_FLAG:
            if len(payload) - start < 5:
                raise ProtocolViolation(ErrorCode.FRAME_SIZE_ERROR, "HEADERS too short for its priority")
            if stop - start < 5:
                raise ProtocolViolation(ErrorCode.PROTOCOL_ERROR, "padding over the priority fields")
            depends_on = int.from_bytes(payload[start : start + 4], "big") & 0x7FFFFFFF
            start += 5
        block = payload[start:stop]
        if flags & frames.END_HEADERS:
            if depends_on == stream_id:
                self._self_dependent(stream_id, block)
            else:
                self._field_block(stream_id, flags, block)
        else:
            if stream_id == 0:
                raise ProtocolViolation(ErrorCode.PROTOCOL_ERROR, "HEADERS on stream 0")
            self._block = PartialBlock(stream_id, flags, block, self.limits)

    def _on_continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        block = self._block
        if block is None or stream_id != block.stream_id:
            raise ProtocolViolation(ErrorCode.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        block.add(payload)
        if flags & frames.END_HEADERS:
            self._block = None
            self._field_block(stream_id, block.flags, block.whole())
        elif not payload:
            self.glitches.glitch(self.now, Limit.EMPTY_FRAMES)

    def _field_block(self, stream_id: int, flags: int, block: bytes) -> None:
        """A complete field block: a new request, or trailers, or a stray one."""
        ids = self.ids
        if stream_id <= ids.last:
            self._late_block(stream_id, flags, block)
            return
        if not stream_id & 1:
            raise ProtocolViolation(ErrorCode.PROTOCOL_ERROR, f"HEADERS on stream {stream_id}")
        ids.open(stream_id)
        try:
            head = self._heads.request(block)
        except StreamViolation as violation:
            self.refuse(stream_id, violation.code)
            return
        if stream_id > self._refusing_above:
            ids.reset(stream_id, ours=True)
            self.glitches.glitch(self.now, Limit.STREAM_ERRORS)
            return  # behind our final GOAWAY: the client knows to retry it elsewhere (6.8)
        limits = self.limits
        if len(self.streams) >= limits.max_streams - len(self.lingering) and self._too_many():
            self._turn_away(stream_id, Limit.STREAMS)
            return
        if self.outbound.pending_octets > limits.max_unsent:
            self._turn_away(stream_id, Limit.UNSENT_REPLIES)
            return
        end = bool(flags & frames.END_STREAM)
        if end and head.content_length > 0:
            self.refuse(stream_id, ErrorCode.PROTOCOL_ERROR)
            return
        stream = self._open_stream(self, stream_id, head)
        self.streams[stream_id] = stream
        stream.remote_closed = end
        stream.on_headers(end)

    def _too_many(self) -> bool:
        """Whether streams and work for streams that were reset (CVE-2023-44487) reach the limit.

        Before the client has acknowledged our SETTINGS it may not know the limit, so that it is allowed twice as many.
        """
        self.lingering = [work for work in self.lingering if not work.finished]
        limit = self.limits.max_streams if self.controls.settings_acked else 2 * self.limits.max_streams
        return len(self.streams) + len(self.lingering) >= limit

    def _late_block(self, stream_id: int, flags: int, block: bytes) -> None:
        """A field block on a stream that is not new: trailers, or a violation."""
        if stream_id == 0 or not stream_id & 1:
            raise ProtocolViolation(ErrorCode.PROTOCOL_ERROR, f"HEADERS on stream {stream_id}")
        stream = self.streams.get(stream_id)
        if stream is None:
            self._heads.discard(block)
            self.ids.check_used(stream_id, "HEADERS")
            ours = self.ids.reset_by_us(stream_id)
            if ours is None:  # ended by both sides
                raise ProtocolViolation(ErrorCode.STREAM_CLOSED, f"HEADERS on closed stream {stream_id}")
            if ours:
                self.glitches.glitch(self.now, Limit.STREAM_ERRORS)
            else:
                self.refuse(stream_id, ErrorCode.STREAM_CLOSED)
            return
        if stream.remote_closed:
            self._heads.discard(block)
            self.break_off(stream, ErrorCode.STREAM_CLOSED)
            return
        self.take_back(stream)
        try:
            self._heads.trailers(block)
            if not flags & frames.END_STREAM:
                raise StreamViolation(ErrorCode.PROTOCOL_ERROR, "second HEADERS without END_STREAM")
            if 0 <= stream.head.content_length != stream.octets:
                raise StreamViolation(ErrorCode.PROTOCOL_ERROR, "content-length differs")
        except StreamViolation as violation:
            self.break_off(stream, violation.code)
            return
        stream.remote_closed = True
        stream.on_data(b"", 0, 0, True)

    def _self_dependent(self, stream_id: int, block: bytes) -> None:
        """HEADERS of a stream that depends on itself: as good as malformed (RFC 7540, 5.3.1)."""
        self._heads.discard(block)
        if stream_id > self.ids.last and stream_id & 1:
            self.ids.open(stream_id)
        self.ids.check_used(stream_id, "HEADERS")
        self.refuse(stream_id, ErrorCode.PROTOCOL_ERROR)

    # --- ends ---------------------------------------------------------------------------------------------------------

    def fail(self, code: ErrorCode, debug: str = "") -> None:
        """Ends the connection: GOAWAY with `code`, all streams are told."""
        if self.closing:
            return
        self.outbound.write(frames.goaway(self.ids.last, code, debug))
        self.closed_with = code
        self.lost()

    def calm_down(self, limit: Limit) -> None:
        """Ends the connection of a peer that has asked too much."""
        if not self.closing:
            self._limited(limit)
            self.fail(ErrorCode.ENHANCE_YOUR_CALM, limit)

    def lost(self) -> None:
        """The connection is over, by our doing or the socket's: all streams are told."""
        self.closing = True
        streams = list(self.streams.values())
        self.streams.clear()
        for stream in streams:
            self.outbound.forget(stream)
            stream.on_reset()

    def drain(self) -> None:
        """Asks the client to go: a first GOAWAY that still takes streams, and a PING whose ACK brings the last one."""
        if not self._draining and not self.closing:
            self._draining = True
            self.outbound.write(frames.goaway(frames.MAX_STREAM_ID, ErrorCode.NO_ERROR, "draining"))
            self.outbound.write(frames.ping(frames.DRAIN_PING))

    def drain_acked(self) -> None:
        """The client has answered our PING."""
        if self._draining:
            self.last_goaway()

    def keep_alive(self) -> None:
        """Sends a PING: whether the peer is there shows in that it answers anything at all."""
        self.outbound.write(frames.ping(frames.KEEPALIVE_PING))

    def last_goaway(self) -> None:
        """Tells the client which streams are taken; what it opens beyond them is dropped."""
        if self._refusing_above == frames.MAX_STREAM_ID:
            self._refusing_above = self.ids.last
            self.outbound.write(frames.goaway(self.ids.last, ErrorCode.NO_ERROR, "draining"))

    @property
    def drained(self) -> bool:
        """Nothing is under way, and by our last GOAWAY or the client's own nothing more will be."""
        return not self.streams and (self.controls.client_leaves or self._refusing_above != frames.MAX_STREAM_ID)

    def reset(self, stream: Stream, code: ErrorCode) -> None:
        """The application gives a stream up; it is not told."""
        self.outbound.forget(stream)
        if self.streams.pop(stream.id, None) is not None:
            self.ids.reset(stream.id, ours=True)
            self.outbound.write(frames.rst_stream(stream.id, code))

    def give_up(self, stream: Stream, limit: Limit) -> None:
        """Resets a stream whose peer is too slow for it; the application is told."""
        self._limited(limit)
        self.reset(stream, ErrorCode.ENHANCE_YOUR_CALM)
        stream.on_reset()

    def break_off(self, stream: Stream, code: ErrorCode) -> None:
        """A stream error of the peer's (CVE-2025-8671: it must cost the peer, and the work must stop)."""
        self.reset(stream, code)
        stream.on_reset()
        self.glitches.glitch(self.now, Limit.STREAM_ERRORS)

    def refuse(self, stream_id: int, code: ErrorCode) -> None:
        """A stream error on a stream that may not have come to life."""
        stream = self.streams.get(stream_id)
        if stream is not None:
            self.break_off(stream, code)
            return
        self.ids.reset(stream_id, ours=True)
        self.outbound.write(frames.rst_stream(stream_id, code))
        self.glitches.glitch(self.now, Limit.STREAM_ERRORS)

    def _turn_away(self, stream_id: int, limit: Limit) -> None:
        """Nothing was done for the new stream, so that the client may try it again (8.7)."""
        self._limited(limit)
        self.refuse(stream_id, ErrorCode.REFUSED_STREAM)

    def _sent_all(self, stream: Stream) -> None:
        """Our END_STREAM is out. If the client is still sending, it is asked to stop (RFC 9113, 8.1)."""
        if self.streams.pop(stream.id, None) is not None and not stream.remote_closed:
            self.ids.reset(stream.id, ours=True)
            self.outbound.write(frames.rst_stream(stream.id, ErrorCode.NO_ERROR))
