"""The body of one request while it arrives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.errors import MessageTooLarge
from headrace.transport.grpc_messages import large_buffer
from headrace.transport.rest.answer import HttpError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from headrace.messages import Buffer

SMALL = 64 << 10
"""Up to this size a body is handed on as `bytes`; a larger one stays in the buffer that it was received into."""

IN_CHUNKS = -1


def body_length(version: str, fields: Iterable[tuple[bytes, bytes]]) -> int:
    """Octets of a request's body, or IN_CHUNKS. fields: with names in lower case, of a head that has been parsed.

    Raises HttpError for what a server must refuse: another version, no Host (RFC 9112, 3.2), a coding (6.1).
    """
    if version not in ("1.0", "1.1"):
        raise HttpError(505, f"HTTP/{version} is not spoken here, expected HTTP/1.1")
    length = 0
    host = False
    for name, value in fields:
        if name == b"content-length" and length != IN_CHUNKS:
            length = int(value)
        elif name == b"transfer-encoding":
            if value.strip().lower() != b"chunked":
                raise HttpError(501, f"Transfer-Encoding {value[:40].decode('latin-1')!r}: expected chunked")
            length = IN_CHUNKS
        elif name == b"host":
            host = True
    if version == "1.1" and not host:
        raise HttpError(400, "a request of HTTP/1.1 needs a Host field")
    return length


class Body:
    """Gathers octets. length: as announced, `IN_CHUNKS` if it is not. most: octets that are taken.

    filled: octets that are there.
    """

    __slots__ = ("_buffer", "_most", "_whole", "filled", "length")

    def __init__(self, length: int, most: int) -> None:
        self.length = length
        self.filled = 0
        self._most = most
        self._whole: Buffer = b""
        self._buffer: memoryview | bytearray | None = None

    def __repr__(self) -> str:
        return f"<Body {self.filled} of {self.length if self.length >= 0 else 'unknown'} octets>"

    def feed(self, chunk: bytes) -> None:
        """Takes octets, one at least. Raises MessageTooLarge."""
        size = len(chunk)
        if size == self.length:  # all of it in one piece, as most are
            self._whole = chunk
        elif self.length >= 0:
            if self._buffer is None:
                self._buffer = _buffer(self.length)
            self._buffer[self.filled : self.filled + size] = chunk
        else:
            if self.filled + size > self._most:
                raise too_large(self._most)
            if not isinstance(self._buffer, bytearray):
                self._buffer = bytearray()
            self._buffer += chunk
        self.filled += size

    @property
    def room(self) -> memoryview | None:
        """Where the rest of an announced body may be received without a detour; who lays it there adds to `filled`."""
        if self.filled >= self.length:
            return None
        if self._buffer is None:
            self._buffer = _buffer(self.length)
        return memoryview(self._buffer)[self.filled :]

    def take(self) -> Buffer:
        """The whole body; it is not kept."""
        whole, buffer = self._whole, self._buffer
        self._whole, self._buffer = b"", None
        if buffer is None:
            return whole
        return bytes(buffer) if len(buffer) <= SMALL else memoryview(buffer)


def _buffer(length: int) -> memoryview:
    return large_buffer(length) if length > SMALL else memoryview(bytearray(length))


def too_large(most: int) -> MessageTooLarge:
    """The error of a body above the limit."""
    return MessageTooLarge(f"the body is larger than {most} octets, which is the limit (max_message_bytes)")
