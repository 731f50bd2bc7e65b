"""Frame types, flags, settings and error codes of HTTP/2, and how frames are written. Source: RFC 9113, 4, 6 and 7."""

from __future__ import annotations

from enum import IntEnum
from struct import Struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADER_SIZE = 9
DEFAULT_WINDOW = 65_535
MAX_WINDOW = 2**31 - 1
MAX_STREAM_ID = 2**31 - 1
MIN_MAX_FRAME = 16_384
MAX_MAX_FRAME = 2**24 - 1

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)

END_STREAM = 0x1
ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
PRIORITY_FLAG = 0x20


DRAIN_PING = b"headrace"
"""Payload of the PING whose ACK tells that the client has seen our first GOAWAY."""
KEEPALIVE_PING = b"keep-hr\0"
"""Payload of the PING that asks whether the client is still there."""


class ErrorCode(IntEnum):
    """RFC 9113, 7."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB
    INADEQUATE_SECURITY = 0xC
    HTTP_1_1_REQUIRED = 0xD


class Setting(IntEnum):
    """RFC 9113, 6.5.2."""

    HEADER_TABLE_SIZE = 0x1
    ENABLE_PUSH = 0x2
    MAX_CONCURRENT_STREAMS = 0x3
    INITIAL_WINDOW_SIZE = 0x4
    MAX_FRAME_SIZE = 0x5
    MAX_HEADER_LIST_SIZE = 0x6


class ProtocolViolation(Exception):
    """A connection error (RFC 9113, 5.4.1): GOAWAY with `code`, then close."""

    def __init__(self, code: ErrorCode, debug: str) -> None:
        super().__init__(f"{code.name}: {debug}")
        self.code = code
        self.debug = debug


class StreamViolation(Exception):
    """A stream error (RFC 9113, 5.4.2): RST_STREAM with `code`."""

    def __init__(self, code: ErrorCode, debug: str) -> None:
        super().__init__(f"{code.name}: {debug}")
        self.code = code
        self.debug = debug


unpack_header = Struct(">IBI").unpack_from
"""(length << 8 | type, flags, stream id with its reserved bit) of the frame header at an offset."""

_header = Struct(">IBI").pack
_setting = Struct(">HI")
_two_words = Struct(">II")


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """One whole frame."""
    return _header(len(payload) << 8 | kind, flags, stream_id) + payload


def after_preface(data: bytes | memoryview, at: int) -> int:
    """Where the first frame begins behind the client's preface; -1 while that is not all there. Source: RFC 9113, 3.4.

    Raises ProtocolViolation if the octets are no preface, or the first frame is not the client's SETTINGS.
    """
    preface = bytes(data[at : at + len(PREFACE)])
    if not PREFACE.startswith(preface):
        raise ProtocolViolation(ErrorCode.PROTOCOL_ERROR, "no HTTP/2 preface")
    first = at + len(PREFACE)
    if len(data) < first + HEADER_SIZE:
        return -1
    length_and_kind, flags, _ = unpack_header(data, first)
    if length_and_kind & 0xFF != SETTINGS or flags & ACK:
        raise ProtocolViolation(ErrorCode.PROTOCOL_ERROR, "the first frame is not SETTINGS")
    return first


def settings(values: dict[int, int]) -> bytes:
    """A SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(_setting.pack(*item) for item in values.items()))


def parse_settings(payload: bytes) -> list[tuple[int, int]]:
    """(identifier, value) pairs in order, repetitions included. The payload's length is a multiple of 6."""
    return list(_setting.iter_unpack(payload))


def unpad(data: bytes | memoryview, start: int, stop: int) -> tuple[int, int]:
    """Where the content of a PADDED frame, whose payload is data[start:stop], begins and ends (6.1)."""
    if start == stop:
        raise ProtocolViolation(ErrorCode.FRAME_SIZE_ERROR, "PADDED frame without a pad length")
    padding = data[start]
    if padding >= stop - start:
        raise ProtocolViolation(ErrorCode.PROTOCOL_ERROR, "padding longer than the frame")
    return start + 1, stop - padding


def rst_stream(stream_id: int, code: int) -> bytes:
    """A RST_STREAM frame."""
    return frame(RST_STREAM, 0, stream_id, code.to_bytes(4, "big"))


def window_update(stream_id: int, increment: int) -> bytes:
    """A WINDOW_UPDATE frame; stream 0 is the connection."""
    return frame(WINDOW_UPDATE, 0, stream_id, increment.to_bytes(4, "big"))


def goaway(last_stream_id: int, code: int, debug: str = "") -> bytes:
    """A GOAWAY frame."""
    return frame(GOAWAY, 0, 0, _two_words.pack(last_stream_id, code) + debug.encode())


def ping(payload: bytes, *, ack: bool = False) -> bytes:
    """A PING frame of eight octets."""
    return frame(PING, ACK if ack else 0, 0, payload)
