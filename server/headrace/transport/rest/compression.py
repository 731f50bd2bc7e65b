"""Content codings of request and reply bodies, within bounds (RFC 9110, 8.4.1)."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from headrace.errors import MessageTooLarge, ProtocolError

if TYPE_CHECKING:
    from headrace.messages import Buffer

_WINDOW = {b"gzip": 31, b"deflate": 15}
"""zlib's `wbits`; deflate is the zlib format (RFC 1950)."""

_LEVEL = 1
"""A reply waits for it, and numbers hardly become smaller with a higher one."""

LEAST = 1024
"""Octets of a body that is compressed: a smaller one fits in a packet as it is."""


def inflate(body: Buffer, coding: bytes, most: int) -> bytes:
    """The body that was compressed. most: octets of it. Raises ProtocolError, MessageTooLarge."""
    inflater = zlib.decompressobj(_WINDOW[coding])
    try:
        plain = inflater.decompress(body, most + 1)
    except zlib.error:
        raise ProtocolError(f"the body is not {coding.decode()}, as its Content-Encoding says") from None
    if len(plain) > most:
        raise MessageTooLarge(f"the body is larger than {most} octets when it is decompressed")
    if not inflater.eof or inflater.unused_data:
        raise ProtocolError(f"the body is not exactly one whole {coding.decode()} stream")
    return plain


def compress(reply: bytes, coding: bytes) -> bytes:
    """A reply, header fields and body, with its body compressed; as it is if that is small or becomes no smaller."""
    fields, _, body = reply.partition(b"\r\n\r\n")
    if len(body) < LEAST:
        return reply
    deflater = zlib.compressobj(_LEVEL, wbits=_WINDOW[coding])
    packed = deflater.compress(body) + deflater.flush()
    if len(packed) >= len(body):
        return reply
    fields = fields[: fields.rindex(b"Content-Length: ")]
    return b"%bContent-Length: %d\r\nContent-Encoding: %b\r\nVary: Accept-Encoding\r\n\r\n%b" % (
        fields, len(packed), coding, packed,
    )  # fmt: skip
