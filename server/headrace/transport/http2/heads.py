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
from headrace.transport.http2.limits import Limit, LimitReached

if TYPE_CHECKING:
    from headrace.transport.http2.fields import Fields
    from headrace.transport.http2.limits import Limits

Key = tuple[tuple[bytes, bytes], ...]

_BLOCKS = 512
_BLOCK_SIZE = 1024
_KNOWN = 64


class RequestHead:
    """A request's field section, checked.

    app: what the application's `read_head` made of it. content_length: -1 if there is none. varied: see `Varying`.
    traceparent, tracestate: of a `TracedHead`.
    """

    __slots__ = ("app", "content_length", "varied")

    traceparent = b""
    tracestate = b""

    def __init__(self, app: Any, content_length: int, varied: Any = None) -> None:  # noqa: ANN401 - the application's own
        self.app = app
        self.content_length = content_length
        self.varied = varied


class Varying(NamedTuple):
    """A field whose value differs from call to call; of several in one section, the first counts.

    read: what the application makes of a value, which becomes `RequestHead.varied`; None: it refuses it, and
    `read_head` says how. absent: `RequestHead.varied` of a section without the field, or with a refused value.
    """

    name: bytes
    read: Callable[[bytes], Any | None]
    absent: Any


class HeadReader:
    """The decoding side of one connection's field compression.

    read_head: turns a checked field section into what the application keeps of it, which must not depend on a value
    that `varying` reads; None stands for a section that was over the limits.
    """

    __slots__ = (
        "_decoder",
        "_heads",
        "_known",
        "_like",
        "_like_fields",
        "_read_head",
        "_validator",
        "_varying",
        "_version",
    )

    def __init__(
        self, limits: Limits, read_head: Callable[[Fields | None], Any], varying: Varying | None = None
    ) -> None:
        self._decoder = Decoder(max_list_size=limits.max_header_list, max_fields=limits.max_fields)
        self._validator = RequestValidator()
        self._read_head = read_head
        self._varying = varying
        self._heads: dict[bytes, RequestHead] = {}
        self._known: dict[Key, RequestHead] = {}
        self._like: RequestHead  # of the block that the decoder expects to be repeated
        self._like_fields: Key = ()
        self._version = self._decoder.version

    def request(self, block: bytes) -> RequestHead:
        """The head of a new request. Raises StreamViolation if malformed, ProtocolViolation if undecodable."""
        head = self._heads.get(block)
        if head is not None:
            return head
        varying = self._varying
        value = self._decoder.repeat(block)
        if value is not None and varying is not None:
            self._version = self._decoder.version
            self._heads.clear()
            like = self._like
            varied = varying.read(value)
            if varied is not None:
                return RequestHead(like.app, like.content_length, varied)
            return self._read([(name, value if name == varying.name else text) for name, text in self._like_fields])
        version = self._version
        fields = self.discard(block)
        if fields is None:
            head = RequestHead(self._read_head(None), -1, varying and varying.absent)
        else:
            head = self._read(fields)
        if self._version != version:
            if fields is not None and varying is not None:
                self._expect(block, fields, varying)
        elif len(block) <= _BLOCK_SIZE:
            if len(self._heads) >= _BLOCKS:
                self._heads.clear()
            self._heads[block] = head
        return head

    def _expect(self, block: bytes, fields: Fields, varying: Varying) -> None:
        """Prepares for a block that is like this one but for the value that varies."""
        key, value = _blank(fields, varying.name)
        like = self._known.get(key)
        if value is not None and like is not None and self._decoder.expect(block, fields, varying.name):
            self._like = like
            self._like_fields = key

    def _read(self, fields: Fields) -> RequestHead:
        """The head of decoded fields: of the same fields with another value of the varying one, or from scratch."""
        varying = self._varying
        if varying is None:
            return self._read_new(fields, None)
        key, value = _blank(fields, varying.name)
        varied = varying.absent if value is None else varying.read(value)
        known = self._known.get(key)
        if known is not None and varied is not None:
            return RequestHead(known.app, known.content_length, varied)
        head = self._read_new(fields, varying.absent if varied is None else varied)
        if varied is not None and sum(len(name) + len(text) for name, text in key) <= _BLOCK_SIZE:
            if len(self._known) >= _KNOWN:
                self._known.clear()
            self._known[key] = head
        return head

    def _read_new(self, fields: Fields, varied: Any) -> RequestHead:  # noqa: ANN401 - the application's own
        self._validator.request(fields)
        return RequestHead(self._read_head(fields), content_length(fields), varied)

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
            self._forget_blocks()
        return fields

    def _forget_blocks(self) -> None:
        """The table has changed: the same octets may now mean something else."""
        self._version = self._decoder.version
        self._heads.clear()


def _blank(fields: Fields, varying: bytes) -> tuple[Key, bytes | None]:
    """The fields without the value of the first one of that name, and the value; None: there is no such field."""
    for at, (name, value) in enumerate(fields):
        if name == varying:
            key = list(fields)
            key[at] = (name, b"")
            return tuple(key), value
    return tuple(fields), None


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
        """One more frame of it. Raises LimitReached: skipping it would spoil the table."""
        self._pieces.append(piece)
        self._size += len(piece)
        if len(self._pieces) > 1 + self._limits.max_continuations or self._size > self._limits.max_block:
            raise LimitReached(Limit.FIELD_BLOCK)

    def whole(self) -> bytes:
        """All of it."""
        return b"".join(self._pieces)
