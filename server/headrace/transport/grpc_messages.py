"""gRPC's message framing, sans-I/O: octets of DATA in, whole messages out.

Source: gRPC over HTTP/2, "Length-Prefixed-Message": one octet flag, four octets length, the message. Messages and DATA
frames know nothing of each other's bounds.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np

from headrace.errors import MessageTooLarge, ProtocolError, Unimplemented
from headrace.transport.http2.stream import NOTHING, Inside

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from headrace.messages import Buffer

PREFIX_SIZE = 5
_ALIGNMENT = 64
_WINDOW_BITS = {b"gzip": 31, b"deflate": 15}
"""What zlib calls the formats."""
SMALL = 64 << 10
"""Up to this size a message is handed on as `bytes`; a larger one stays in the buffer that it was received into."""


class MessageReader(Inside):
    """Gathers the messages of one call.

    max_message: octets of a message, also after decompression. encoding: what a set flag means, `gzip` or `deflate`; it
    is an error if it is empty. large: makes buffers for large messages.
    buffer: for the message that has begun. filled: octets of it that are there; up to `room` more may be laid behind
    them by others.
    """

    __slots__ = ("_compressed", "_encoding", "_large", "_max_message", "_prefix", "_within")

    def __init__(self, max_message: int, encoding: bytes, large: Callable[[int], memoryview] | None = None) -> None:
        super().__init__()
        self._large = large or large_buffer
        self._max_message = max_message
        self._encoding = encoding
        self._prefix = b""
        self._within = False
        self._compressed = False

    def __repr__(self) -> str:
        return f"<MessageReader {self.filled} of {len(self.buffer)} octets>"

    @property
    def within(self) -> bool:
        """Whether a message has begun and is not whole."""
        return self._within or bool(self._prefix)

    @property
    def room(self) -> int:
        """Octets that may go straight to the buffer: the inside of a large message, up to its last octet."""
        size = len(self.buffer)
        return size - self.filled - 1 if size > SMALL else 0

    def feed(self, chunk: memoryview) -> list[Buffer]:
        """The messages that `chunk` completes. Raises HeadraceError; the reader is of no use after that."""
        whole: list[Buffer] = []
        at = 0
        size = len(chunk)
        while at < size or (self._within and not len(self.buffer)):
            if not self._within:
                take = min(PREFIX_SIZE - len(self._prefix), size - at)
                self._prefix += bytes(chunk[at : at + take])
                at += take
                if len(self._prefix) == PREFIX_SIZE:
                    self._begin()
                continue
            take = min(len(self.buffer) - self.filled, size - at)
            self.buffer[self.filled : self.filled + take] = chunk[at : at + take]
            self.filled += take
            at += take
            if self.filled == len(self.buffer):
                whole.append(self._complete(self.buffer))
        return whole

    def _begin(self) -> None:
        flag = self._prefix[0]
        length = int.from_bytes(self._prefix[1:], "big")
        self._prefix = b""
        if flag > 1:
            raise ProtocolError(f"message flag {flag}, expected 0 or 1")
        if flag and not self._encoding:
            raise ProtocolError("a compressed message, but no grpc-encoding that says how")
        if length > self._max_message:
            raise too_large(length, self._max_message)
        self._compressed = flag == 1
        self._within = True
        self.buffer = memoryview(bytearray(length)) if length <= SMALL else self._large(length)

    def _complete(self, message: memoryview) -> Buffer:
        self._within = False
        self.buffer = NOTHING.buffer
        self.filled = self.limit = 0
        if self._compressed:
            return self._inflate(message)
        return bytes(message) if len(message) <= SMALL else message

    def _inflate(self, message: memoryview) -> bytes:
        inflater = zlib.decompressobj(_WINDOW_BITS[self._encoding])
        try:
            plain = inflater.decompress(message, self._max_message + 1)
        except zlib.error:
            raise ProtocolError(f"a compressed message that is not {self._encoding.decode()}") from None
        if len(plain) > self._max_message:
            raise too_large(len(plain), self._max_message)
        if not inflater.eof or inflater.unused_data:
            raise ProtocolError(f"a compressed message that is not one whole {self._encoding.decode()} stream")
        return plain


def large_buffer(length: int) -> memoryview:
    """Octets for a large message; untouched, so that an announced length costs nothing until octets arrive.

    Its end is aligned: a message ends in its last tensor, whose size is a multiple of its elements', so that the
    tensor's beginning is aligned to its elements and can be run where it lies.
    """
    memory = np.empty(length + _ALIGNMENT, np.uint8)
    start = -(memory.ctypes.data + length) % _ALIGNMENT
    return memory.data[start : start + length]


def too_large(size: int, limit: int) -> MessageTooLarge:
    """The error of a message above the limit."""
    return MessageTooLarge(f"Received message larger than max ({size} vs. {limit})")


def only(messages: Sequence[Buffer]) -> Buffer:
    """The request of a unary call. Any other number is a violation of the method's cardinality: UNIMPLEMENTED.

    Source: gRPC's status codes (doc/statuscodes.md).
    """
    if not messages:
        raise Unimplemented("the call ended without a request message")
    if len(messages) > 1:
        raise Unimplemented("more than one request message on a unary call")
    return messages[0]
