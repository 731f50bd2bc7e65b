"""What engine and worker say to each other on a stream socket, sans-I/O: octets to records and back.

A record is a head of 16 octets, little-endian as every machine here (kind, flags, two octets unused, length of what
follows, number of the call), and what its kind says:

    REQUEST   worker: a request for a model: times, where it lies, its caller's trace, and itself if it is small
    ASK       worker: another unary call: two octets length of its path, the path, the message
    CANCEL    worker: nobody waits for the call any more
    LOAD      worker: how many sockets it has taken so far, and how many of them are open, eight octets each
    NOTICE    both: JSON, what is said rarely
    REPLY     engine: the reply to a call
    ERROR     engine: the error that ends a call, as JSON
    GONE      engine: a call that was cancelled is not at work any more
    FREED     engine: offsets of slots that nobody reads any more, eight octets each

Each call ends with one REPLY, ERROR or GONE, also when a CANCEL was on its way.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from enum import IntEnum
from struct import Struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from headrace.messages import Buffer


class Kind(IntEnum):
    """Of records."""

    REQUEST = 1
    ASK = 2
    CANCEL = 3
    LOAD = 4
    NOTICE = 5
    REPLY = 6
    ERROR = 7
    GONE = 8
    FREED = 9


STREAMED = 1
"""Flag of a REQUEST: it came on a stream."""
FINAL = 1
"""Flag of a REPLY: on a stream it shall say that it is the last to its request."""
INLINE = (1 << 64) - 1
"""The offset of a request that lies in its record."""

_HEAD = Struct("<BBHIQ")
HEAD_SIZE = _HEAD.size
_unpack_head = _HEAD.unpack_from
_REQUEST = Struct("<BBHIQqqQIHH")
_REQUEST_REST = _REQUEST.size - HEAD_SIZE
_REQUEST_KIND, _REPLY_KIND = int(Kind.REQUEST), int(Kind.REPLY)  # to look a member up takes a tenth of a microsecond
_unpack_request = Struct("<qqQIHH").unpack_from
_pack = _HEAD.pack
_pack_request = _REQUEST.pack

Handler = Callable[[int, int, "bytes | memoryview", int, int], None]
"""Takes a record: flags, number of the call, and data[start:stop], what follows the head."""


class Malformed(Exception):
    """What came is no record: the other side is broken."""


def length_of(data: Buffer) -> int:
    """Octets of the record that begins here, its head included; 0: that cannot be told yet."""
    return HEAD_SIZE + _unpack_head(data)[3] if len(data) >= HEAD_SIZE else 0


def read(data: bytes | memoryview, handlers: Mapping[int, Handler]) -> int:
    """Hands out whole records; returns where the first incomplete one begins. Raises Malformed."""
    at = 0
    end = len(data)
    while end - at >= HEAD_SIZE:
        kind, flags, _, length, call = _unpack_head(data, at)
        start = at + HEAD_SIZE
        stop = start + length
        if stop > end:
            break
        handler = handlers.get(kind)
        if handler is None:
            raise Malformed(f"record of kind {kind}")
        handler(flags, call, data, start, stop)
        at = stop
    return at


def head(kind: Kind, call: int, length: int, flags: int = 0) -> bytes:
    """The head of a record; `length` octets follow."""
    return _pack(kind, flags, 0, length, call)


def request(
    call: int, flags: int, received: int, deadline: int, offset: int, size: int, parent: bytes, state: bytes
) -> bytes:
    """A REQUEST, without the message that follows where `offset` is INLINE.

    received, deadline: monotonic ns. offset, size: where in the region the message lies. parent, state: traceparent and
    tracestate; the latter goes nowhere without the former.
    """
    parents = len(parent)
    states = len(state) if parent else 0  # which says nothing without the other
    length = _REQUEST_REST + parents + states + (size if offset == INLINE else 0)
    packed = _pack_request(_REQUEST_KIND, flags, 0, length, call, received, deadline, offset, size, parents, states)
    return packed + parent + state if parent else packed


def read_request(
    data: bytes | memoryview, start: int, stop: int
) -> tuple[int, int, int, int, bytes, bytes, bytes | memoryview]:
    """What stands in a REQUEST: as `request` takes it from `received` on, then the message, if it is there.

    Raises Malformed.
    """
    if stop - start < _REQUEST_REST:
        raise Malformed("a REQUEST without its times")
    received, deadline, offset, size, parents, states = _unpack_request(data, start)
    at = start + _REQUEST_REST
    parent = state = b""
    if parents:
        parent = bytes(data[at : at + parents])
        state = bytes(data[at + parents : at + parents + states])
        at += parents + states
    message = data[at:stop]
    if len(message) != (size if offset == INLINE else 0):
        raise Malformed("a REQUEST of another length than it says")
    return received, deadline, offset, size, parent, state, message


def reply(call: int, length: int, final: bool) -> bytes:
    """The head of a REPLY of so many octets."""
    return _pack(_REPLY_KIND, final, 0, length, call)


def ask(call: int, path: bytes, message: Buffer) -> bytes:
    """An ASK."""
    return b"".join(
        (head(Kind.ASK, call, 2 + len(path) + len(message)), len(path).to_bytes(2, "little"), path, message)
    )


def read_ask(data: bytes | memoryview, start: int, stop: int) -> tuple[str, bytes]:
    """Path and message of an ASK. Raises Malformed."""
    body = bytes(data[start:stop])
    after = 2 + int.from_bytes(body[:2], "little")
    if after > len(body):
        raise Malformed("an ASK that ends in its path")
    return body[2:after].decode("latin-1"), body[after:]


def numbers(kind: Kind, values: Iterable[int]) -> bytes:
    """A LOAD or FREED."""
    packed = b"".join([value.to_bytes(8, "little") for value in values])
    return head(kind, 0, len(packed)) + packed


def read_numbers(data: bytes | memoryview, start: int, stop: int) -> list[int]:
    """What stands in a LOAD or FREED. Raises Malformed."""
    if (stop - start) % 8:
        raise Malformed("half a number")
    return [int.from_bytes(data[at : at + 8], "little") for at in range(start, stop, 8)]


def notice(**said: object) -> tuple[bytes, bytes]:
    """A NOTICE: its head, and what follows."""
    octets = json.dumps(said).encode()
    return head(Kind.NOTICE, 0, len(octets)), octets


def read_notice(data: bytes | memoryview, start: int, stop: int) -> dict[str, Any]:
    """What stands in a NOTICE. Raises Malformed."""
    try:
        said: dict[str, Any] = json.loads(bytes(data[start:stop]))
    except ValueError as error:
        raise Malformed("a NOTICE that is no JSON") from error
    return said
