"""Field blocks to request heads: decoded, checked and, where their meaning cannot change, remembered by their octets.

A block that leaves the dynamic table alone means the same until the table changes; clients that repeat their metadata
send the same octets for call after call. Any insertion or eviction forgets what was remembered. Clients that put a
deadline on each call insert its value each time: their blocks are decoded, but all fields beside that one are known.
"""

from __future__ import annotations

from collections.abc import Callable  # noqa: TC003 - evaluated by NamedTuple
from typing import TYPE_CHECKING, Any, NamedTuple

from headrace.transport.http2.fields import RequestValidator, content_length
from headrace.transport.http2.frames import ErrorCode, ProtocolViolation
from headrace.transport.http2.hpack import Decoder, HeaderListTooLarge, HpackError

if TYPE_CHECKING:
    from headrace.transport.http2.fields import Fields
    from headrace.transport.http2.limits import Limits

_BLOCKS = 512
_BLOCK_SIZE = 1024
_KNOWN = 64


class RequestHead:
    """A request's field section, checked.

    app: what the application's `read_head` made of it. content_length: -1 if there is none.
    """

    __slots__ = ("app", "content_length")

    def __init__(self, app: Any, content_length: int) -> None:  # noqa: ANN401 - the application's own
        self.app = app
        self.content_length = content_length


class Varying(NamedTuple):
    """A field whose value differs from call to call.

    vary: what the application would have read with another value of it; None: ask `read_head`.
    """

    name: bytes
    vary: Callable[[Any, bytes], Any | None]


class HeadReader:
    """The decoding side of one connection's field compression.

    read_head: turns a checked field section into what the application keeps of it; None stands for a section that was
    over the limits.
    """

    __slots__ = ("_decoder", "_heads", "_known", "_read_head", "_validator", "_varying", "_version")

    def __init__(
        self, limits: Limits, read_head: Callable[[Fields | None], Any], varying: Varying | None = None
    ) -> None:
        self._decoder = Decoder(max_list_size=limits.max_header_list, max_fields=limits.max_fields)
        self._validator = RequestValidator()
        self._read_head = read_head
        self._varying = varying
        self._heads: dict[bytes, RequestHead] = {}
        self._known: dict[tuple[tuple[bytes, bytes], ...], RequestHead] = {}
        self._version = self._decoder.version

    def request(self, block: bytes) -> RequestHead:
        """The head of a new request. Raises StreamViolation if malformed, ProtocolViolation if undecodable."""
        head = self._heads.get(block)
        if head is not None:
            return head
        version = self._version
        fields = self.discard(block)
        head = RequestHead(self._read_head(None), -1) if fields is None else self._read(fields)
        if self._version == version and len(block) <= _BLOCK_SIZE:
            if len(self._heads) >= _BLOCKS:
                self._heads.clear()
            self._heads[block] = head
        return head

    def _read(self, fields: Fields) -> RequestHead:
        """The head of decoded fields: of the same fields with another value of the varying one, or from scratch."""
        varying = self._varying
        if varying is None:
            self._validator.request(fields)
            return RequestHead(self._read_head(fields), content_length(fields))
        value = None
        key = list(fields)
        for at, field in enumerate(fields):
            if field[0] == varying.name:
                value = field[1]
                key[at] = (varying.name, b"")
                break
        known = tuple(key)
        like = self._known.get(known)
        if like is not None:
            app = like.app if value is None else varying.vary(like.app, value)
            if app is not None:
                return RequestHead(app, like.content_length)
        self._validator.request(fields)
        head = RequestHead(self._read_head(fields), content_length(fields))
        if sum(len(name) + len(text) for name, text in known) <= _BLOCK_SIZE:
            if len(self._known) >= _KNOWN:
                self._known.clear()
            self._known[known] = head
        return head

    def trailers(self, block: bytes) -> None:
        """Decodes and checks a trailer section, which has no use here. Raises as `request`."""
        fields = self.discard(block)
        self._validator.trailers(fields or [])

    def discard(self, block: bytes) -> Fields | None:
        """Decodes a block, if only for the sake of the table; None: over the limits. Raises ProtocolViolation."""
        try:
            fields = self._decoder.decode(block)
        except HpackError as error:
            raise ProtocolViolation(ErrorCode.COMPRESSION_ERROR, str(error)) from None
        except HeaderListTooLarge:
            fields = None
        if self._decoder.version != self._version:
            self._version = self._decoder.version
            self._heads.clear()
        return fields


class PartialBlock:
    """A field block that goes on in CONTINUATION frames (RFC 9113, 6.10). flags: of its HEADERS frame."""

    __slots__ = ("_limits", "_pieces", "_size", "flags", "stream_id")

    def __init__(self, stream_id: int, flags: int, piece: bytes, limits: Limits) -> None:
        self.stream_id = stream_id
        self.flags = flags
        self._pieces = [piece]
        self._size = len(piece)
        self._limits = limits

    def add(self, piece: bytes) -> None:
        """One more frame of it. Raises ProtocolViolation over the limits: skipping it would spoil the table."""
        self._pieces.append(piece)
        self._size += len(piece)
        if len(self._pieces) > 1 + self._limits.max_continuations or self._size > self._limits.max_block:
            raise ProtocolViolation(ErrorCode.ENHANCE_YOUR_CALM, "field block too long")

    def whole(self) -> bytes:
        """All of it."""
        return b"".join(self._pieces)
