"""What gRPC reads in a request's fields, and what it writes into a reply's.

Source: gRPC over HTTP/2 (doc/PROTOCOL-HTTP2.md), "Requests" and "Responses".
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from headrace.transport.http2.heads import Varying
from headrace.transport.http2.outbound import Block
from headrace.transport.service import INFER_PATH, INFER_STREAM_PATH
from headrace.transport.status import Code

if TYPE_CHECKING:
    from headrace.transport.http2.fields import Fields
    from headrace.transport.service import Infer, ServiceTable, StreamHandler, UnaryHandler
    from headrace.transport.status import Status

_UNIT_NS = {b"H": 3_600_000_000_000, b"M": 60_000_000_000, b"S": 1_000_000_000, b"m": 1_000_000, b"u": 1000, b"n": 1}
NOT_GRPC = b"This is a gRPC server: expected POST with content-type application/grpc.\n"
"""Body of a plain refusal."""
_FOREVER_NS = 10 * 365 * 86_400 * 10**9
ENCODINGS = (b"identity", b"gzip", b"deflate")
"""Of request messages; replies are not compressed. `deflate` is that of HTTP: the zlib format (RFC 9110, 8.4.1.2)."""
_ACCEPT = (b"grpc-accept-encoding", b",".join(ENCODINGS))
_MAX_MESSAGE = 1024
"""Octets of an encoded grpc-message: the trailers must fit what clients accept, 8 KiB for the strictest."""

REPLY_HEAD = Block([(b":status", b"200"), (b"content-type", b"application/grpc")])
REPLY_TAIL = Block([(b"grpc-status", b"0")])


class CallHead:
    """A request's head. Shared by all calls with the same field block, so nothing here belongs to one call.

    path: as in `:path`. unary, stream: what answers such calls; neither: `later` does, which is inference or what the
    table has. infers: it is inference on a stream. breaks: the first error in such a stream ends it. encoding: how
    messages may be compressed, empty for not at all. refusal: the reply that the head itself deserves, or None. plain:
    the body of a refusal for a client that does not speak gRPC, empty after HEAD; None for one that does. too_large:
    the reason of the refusal.
    """

    __slots__ = ("breaks", "encoding", "infers", "later", "path", "plain", "refusal", "stream", "too_large", "unary")

    def __init__(self) -> None:
        self.path = ""
        self.unary: UnaryHandler | None = None
        self.stream: StreamHandler | None = None
        self.later: Infer
        self.infers = False
        self.breaks = False
        self.encoding = b""
        self.refusal: Block | None = None
        self.plain: bytes | None = None
        self.too_large = False


def read_head(table: ServiceTable, fields: Fields | None) -> CallHead:
    """The head of a well-formed HTTP/2 request; `fields` None: over the limits, and dropped. table: what is served."""
    head = CallHead()
    if fields is None:
        head.too_large = True
        head.refusal = _refusal(Code.RESOURCE_EXHAUSTED, "the request's headers are too large")
        return head
    method = content_type = encoding = b""
    timeout: bytes | None = None
    for name, value in fields:
        if name == b":path":
            head.path = value.decode("latin-1")
        elif name == b":method":
            method = value
        elif name == b"grpc-timeout" and timeout is None:
            timeout = value
        elif name == b"content-type":
            content_type = value.lower()
        elif name == b"grpc-encoding":
            encoding = value
        elif name == b"triton_grpc_error":
            head.breaks = value == b"true"
        elif name[-4:] == b"-bin" and not _valid_base64(value):
            head.refusal = _refusal(Code.INTERNAL, f"metadata {name.decode('latin-1')} is not valid base64")
    if method != b"POST":
        head.plain = b"" if method == b"HEAD" else NOT_GRPC
        head.refusal = _plain_refusal(b"405", "only POST is served here", (b"allow", b"POST"))
    elif not _is_grpc(content_type):
        head.plain = NOT_GRPC
        head.refusal = _plain_refusal(b"415", "expected content-type application/grpc")
    elif timeout is not None and read_timeout(timeout) is None:
        shown = timeout.decode("latin-1")
        head.refusal = _refusal(Code.INTERNAL, f"grpc-timeout '{shown}': expected 1 to 8 digits and a unit of HMSmun")
    if head.refusal is None and encoding not in (b"", b"identity"):
        if encoding in ENCODINGS:
            head.encoding = encoding
        else:
            head.refusal = _refusal(
                Code.UNIMPLEMENTED, f"grpc-encoding {encoding.decode('latin-1')} is not supported", _ACCEPT
            )
    head.unary = table.unary.get(head.path)
    head.stream = table.streams.get(head.path)
    head.later = table.later.get(head.path, table.infer)
    head.infers = head.path == INFER_STREAM_PATH
    known = head.unary or head.stream or head.infers or head.path == INFER_PATH or head.path in table.later
    if head.refusal is None and not known:
        head.refusal = _refusal(Code.UNIMPLEMENTED, f"unknown method {head.path}")
    return head


def _is_grpc(content_type: bytes) -> bool:
    rest = content_type.removeprefix(b"application/grpc")
    return rest != content_type and (not rest or rest[:1] in b"+;")


def read_timeout(value: bytes) -> int | None:
    """A `grpc-timeout` in ns; -1: so long that it is none; None: it is malformed."""
    digits = value[:-1]
    unit = _UNIT_NS.get(value[-1:])
    if unit is None or not digits.isdigit() or len(digits) > 8:
        return None
    nanoseconds = int(digits) * unit
    return nanoseconds if nanoseconds <= _FOREVER_NS else -1


VARYING = Varying(b"grpc-timeout", read_timeout, -1)
"""`RequestHead.varied` is the timeout of a call in ns, -1 for none."""


_BASE64 = re.compile(rb"[A-Za-z0-9+/]*={0,2}")


def _valid_base64(value: bytes) -> bool:
    """Whether each element of a `-bin` field, joined by commas or alone, is base64 with or without its padding."""
    return all(
        _BASE64.fullmatch(element) is not None and len(element.rstrip(b"=")) % 4 != 1
        for element in (part.strip(b" \t") for part in value.split(b","))
    )


def percent_encode(message: str) -> bytes:
    """A grpc-message: UTF-8, everything outside printable ASCII and `%` as %XX, at most `_MAX_MESSAGE` octets long.

    A longer one is cut between characters and ends in "...".
    """
    encoded = b"".join(map(_encode_character, message))
    if len(encoded) <= _MAX_MESSAGE:
        return encoded
    out = bytearray()
    for character in message:
        piece = _encode_character(character)
        if len(out) + len(piece) > _MAX_MESSAGE - 3:
            break
        out += piece
    return bytes(out) + b"..."


def _encode_character(character: str) -> bytes:
    if " " <= character <= "~" and character != "%":
        return character.encode()
    return b"".join(b"%%%02X" % octet for octet in character.encode(errors="replace"))


_OUTER_SPACE = re.compile(rb"^ | $")


def _status_fields(code: int, message: str) -> list[tuple[bytes, bytes]]:
    fields = [(b"grpc-status", str(int(code)).encode())]
    # a value may not begin or end in a space (RFC 9113, 8.2.1)
    encoded = _OUTER_SPACE.sub(b"%20", percent_encode(message))
    return [*fields, (b"grpc-message", encoded)] if encoded else fields


def _refusal(code: Code, message: str, *more: tuple[bytes, bytes]) -> Block:
    return Block([*_OPENING, *_status_fields(code, message), *more])


def _plain_refusal(http_status: bytes, message: str, *more: tuple[bytes, bytes]) -> Block:
    """For a client that does not speak gRPC: an HTTP status; a body follows.

    grpc-status goes along for gRPC clients behind a proxy that has spoiled their request.
    """
    return Block(
        [(b":status", http_status), (b"content-type", b"text/plain"), *_status_fields(Code.UNKNOWN, message), *more]
    )


_OPENING = [(b":status", b"200"), (b"content-type", b"application/grpc")]


def status_block(status: Status, *, opening: bool) -> Block:
    """The trailers of a failed call; `opening`: nothing was sent before, so they are the whole reply."""
    fields = _status_fields(status.code, status.message)
    fields += [(name.encode(), value.encode()) for name, value in status.trailers]
    return Block([*(_OPENING if opening else ()), *fields])
