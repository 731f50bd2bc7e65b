"""Just enough of the protocol-buffer wire format to cut a request and to write a reply without building messages.

Source: Protocol Buffers, "Encoding"; field numbers of ModelInferRequest and ModelInferResponse (protos/). What is cut
here is never interpreted twice: the fields before the raw tensors go through a real protobuf parser once for each
distinct look (transport/infer.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.messages import Buffer

LENGTH_DELIMITED = 2


class Malformed(ValueError):
    """The bytes are not a protocol-buffer message of the expected kind."""


def varint(value: int) -> bytes:
    """Base-128 varint of a non-negative integer below 2^64; a negative one as its 64-bit two's complement."""
    value &= 0xFFFFFFFFFFFFFFFF
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(data: Buffer, at: int) -> tuple[int, int]:
    """(value, position behind it). At most ten octets; raises Malformed."""
    value = shift = 0
    end = len(data)
    while shift < 70:
        if at >= end:
            raise Malformed("message ends inside a varint")
        octet = data[at]
        at += 1
        value |= (octet & 0x7F) << shift
        if octet < 0x80:
            return value, at
        shift += 7
    raise Malformed("varint of more than ten octets")


def length_prefixed(number: int, payload: bytes) -> bytes:
    """A length-delimited field: string, bytes or embedded message."""
    return varint(number << 3 | LENGTH_DELIMITED) + varint(len(payload)) + payload


def skip_field(data: Buffer, at: int, wire_type: int) -> int:
    """Position behind the value that starts at `at`; raises Malformed."""
    if wire_type == LENGTH_DELIMITED:
        length, at = read_varint(data, at)
        at += length
    elif wire_type == 0:
        _, at = read_varint(data, at)
    elif wire_type == 1:
        at += 8
    elif wire_type == 5:
        at += 4
    else:  # groups (3, 4) are in none of our messages
        raise Malformed(f"wire type {wire_type} is not used by this message")
    if at > len(data):
        raise Malformed("message ends inside a field")
    return at


def field_text(field: bytes) -> str:
    """The text of one whole string field; empty for an empty field. For messages to people: bad UTF-8 is replaced."""
    if not field:
        return ""
    length, at = read_varint(field, 1)
    return field[at : at + length].decode(errors="replace")
