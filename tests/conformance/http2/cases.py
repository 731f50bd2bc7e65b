"""What RFC 9113 and RFC 7541 ask of a server, as octets and the whole transcript of the answer.

These tables follow h2spec, whose ids they carry; beyond.py holds what it leaves out, dialogues.py what takes more than
one exchange. A name such as `h2spec http2/6.9.1/2` is stable: reports are made by it. The server under test answers a
request to GET or HEAD, once it is complete, with 405 and a body, and a POST with 415 and the same.
"""

from typing import NamedTuple

from transport.http2 import wire
from transport.http2.wire import (
    ACK,
    CONTINUATION,
    DATA,
    ENABLE_PUSH,
    END_HEADERS,
    GOAWAY,
    HEADER_TABLE_SIZE,
    HEADERS,
    INITIAL_WINDOW,
    MAX_CONCURRENT,
    MAX_FRAME,
    MAX_HEADER_LIST,
    OPENING,
    PING,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WELCOME,
    WINDOW_UPDATE,
    data,
    frame,
    get,
    goaway,
    headers,
    hello,
    ping,
    post,
    priority,
    priority_fields,
    request_fields,
    rst,
    settings,
    string,
    window_update,
    word,
)

from headrace.transport.grpc_head import NOT_GRPC

BODY = len(NOT_GRPC)
MAX_WINDOW = 2**31 - 1


class Case(NamedTuple):
    """octets: sent after the preface. expected: transcript after SETTINGS, without the PONG that ends it.

    note: why this answer, where the RFC or h2spec would take another as well.
    """

    name: str
    octets: bytes
    expected: tuple[str, ...]
    hello: bytes = hello()
    welcome: tuple[str, ...] = tuple(WELCOME)
    note: str = ""

    @property
    def fatal(self):
        return any(line.startswith("GOAWAY") for line in self.expected)


def table(kind, *cases):
    return [case._replace(name=f"{kind}{case.name}") for case in cases]


def reply(stream_id=1, status=405, body=BODY):
    return (f"HEADERS {stream_id} {status}", f"DATA {stream_id} {body} END_STREAM")


def reset(code, stream_id=1):
    return (f"RST_STREAM {stream_id} {code}",)


def closes(code, last=0):
    return (f"GOAWAY {last} {code}",)


PONG = ("PING pingpong ACK",)
GET_BLOCK = wire.block(*request_fields())
POST_BLOCK = wire.block(*request_fields(method="POST"))
NO_WINDOW = hello((INITIAL_WINDOW, 0))
HALF_CLOSED = get()  # and stays so if the client's window is 0, for the reply waits


def opening(payload, *, flags=0, stream_id=1):
    """HEADERS without END_HEADERS."""
    return frame(HEADERS, flags, stream_id, payload)


def continuation(payload, *, flags=0, stream_id=1):
    return frame(CONTINUATION, flags, stream_id, payload)


def hpack_get(field):
    """GET with one more field, given as octets."""
    return headers(1, GET_BLOCK + field)


# a name and a value, plain and in the Huffman code of RFC 7541, C.6
PLAIN = string("custom-key"), string("custom-value")
HUFFMAN = b"\x88\x25\xa8\x49\xe9\x5b\xa9\x7d\x7f", b"\x89\x25\xa8\x49\xe9\x5b\xb8\xe8\xb4\xbf"

GENERIC = table(
    "h2spec generic/",
    Case("1/1", b"", ()),
    Case("2/1", priority(1), ()),
    Case("2/2", get() + window_update(1, 100), reply(), NO_WINDOW),
    Case("2/3", get() + priority(1) + window_update(1, 100), reply(), NO_WINDOW),
    Case("2/4", get() + rst(1), reply()[:1], NO_WINDOW),
    Case("2/5", get() + priority(1), reply()),
    Case("3.1/1", post() + data(1, b"test", end=True), reply(1, 415)),
    Case("3.1/2", post() + data(1, b"test") * 2 + data(1, b"test", end=True), reply(1, 415)),
    Case("3.1/3", post() + data(1, b"test", end=True, padding=6), reply(1, 415)),
    Case("3.2/1", get(), reply()),
    Case("3.2/2", frame(HEADERS, 0x0D, 1, b"\x06" + GET_BLOCK + bytes(6)), reply()),
    Case("3.2/3", frame(HEADERS, 0x25, 1, priority_fields(0, 255, exclusive=True) + GET_BLOCK), reply()),
    Case("3.3/1", priority(1, 0, 0) + get(), reply()),
    Case("3.3/2", priority(1, 0, 255) + get(), reply()),
    Case("3.3/3", priority(3, 1) + get(), reply()),
    Case("3.3/4", priority(1, 0, exclusive=True) + get(), reply()),
    Case("3.3/5", priority(3) + get(), reply()),
    Case("3.4/1", post() + rst(1), ()),
    Case(
        "3.5/1",
        get(),
        reply(),
        hello(
            (HEADER_TABLE_SIZE, 100),
            (ENABLE_PUSH, 1),
            (MAX_CONCURRENT, 100),
            (INITIAL_WINDOW, 100),
            (MAX_FRAME, 16_384),
            (MAX_HEADER_LIST, 100),
        ),
    ),
    Case("3.7/1", ping(b"h2spec\0\0"), ("PING h2spec\0\0 ACK",)),
    Case("3.8/1", goaway(), ()),
    Case("3.9/1", window_update(0, 1), ()),
    Case("3.9/2", post() + window_update(1, 1) + data(1, end=True), reply(1, 415)),
    Case("3.10/1", opening(GET_BLOCK[:5], flags=1) + continuation(GET_BLOCK[5:], flags=END_HEADERS), reply()),
    Case(
        "3.10/2",
        opening(GET_BLOCK[:5], flags=1) + continuation(GET_BLOCK[5:9]) + continuation(GET_BLOCK[9:], flags=END_HEADERS),
        reply(),
    ),
    Case("4/1", get(), reply()),
    Case("4/2", headers(1, request_fields(method="HEAD")), ("HEADERS 1 405 END_STREAM",)),
    Case("4/3", post() + data(1, b"test", end=True), reply(1, 415)),
    Case("4/4", post() + data(1, b"test") + headers(1, [("x-trailer", "1")]), reply(1, 415)),
    Case("5/1", hpack_get(b"\xba"), reply()),
    Case("5/2", hpack_get(b"\x50" + HUFFMAN[1]), reply()),
    Case("5/3", hpack_get(b"\x50" + PLAIN[1]), reply()),
    Case("5/4", hpack_get(b"\x40" + b"".join(PLAIN)), reply()),
    Case("5/5", hpack_get(b"\x40" + b"".join(HUFFMAN)), reply()),
    Case("5/6", hpack_get(b"\x0f\x00" + PLAIN[1]), reply()),
    Case("5/7", hpack_get(b"\x0f\x00" + HUFFMAN[1]), reply()),
    Case("5/8", hpack_get(b"\x00" + b"".join(PLAIN)), reply()),
    Case("5/9", hpack_get(b"\x00" + b"".join(HUFFMAN)), reply()),
    Case("5/10", hpack_get(b"\x1f\x00" + PLAIN[1]), reply()),
    Case("5/11", hpack_get(b"\x1f\x00" + HUFFMAN[1]), reply()),
    Case("5/12", hpack_get(b"\x10" + b"".join(PLAIN)), reply()),
    Case("5/13", hpack_get(b"\x10" + b"".join(HUFFMAN)), reply()),
    Case("5/14", headers(1, b"\x3f\x61" + GET_BLOCK), reply()),
    Case("5/15", headers(1, b"\x3f\x61\x3f\xe1\x1f" + GET_BLOCK), reply()),
)

HTTP2 = table(
    "h2spec http2/",
    Case("3.5/1", b"", ()),
    Case("3.5/2", b"", closes("PROTOCOL_ERROR"), b"INVALID CONNECTION PREFACE\r\n\r\n", tuple(OPENING)),
    Case("4.1/1", frame(0x16, 0, 0, bytes(8)), ()),
    Case("4.1/2", ping(flags=0xFE), ("PING 12345678 ACK",)),
    Case("4.1/3", frame(PING, 0, 1 << 31, b"12345678"), ("PING 12345678 ACK",)),
    Case("4.2/1", post() + data(1, bytes(16_384), end=True), reply(1, 415)),
    Case(
        "4.2/2",
        post() + data(1, bytes(16_385), end=True),
        closes("FRAME_SIZE_ERROR", 1),
        note="a stream error would do, but the frame's header decides, before its octets are here",
    ),
    Case("4.2/3", headers(1, bytes(20_000)), closes("FRAME_SIZE_ERROR")),
    Case("4.3/1", headers(1, GET_BLOCK[:-1]), closes("COMPRESSION_ERROR", 1)),
    Case("4.3/2", opening(GET_BLOCK) + priority(1), closes("PROTOCOL_ERROR")),
    Case("4.3/3", opening(GET_BLOCK) + get(3), closes("PROTOCOL_ERROR")),
    Case("5.1/1", data(1, b"test"), closes("PROTOCOL_ERROR"), note="h2spec takes STREAM_CLOSED as well"),
    Case("5.1/2", rst(1), closes("PROTOCOL_ERROR")),
    Case("5.1/3", window_update(1, 100), closes("PROTOCOL_ERROR")),
    Case("5.1/4", continuation(GET_BLOCK, flags=END_HEADERS), closes("PROTOCOL_ERROR")),
    Case("5.1/5", HALF_CLOSED + data(1, b"test"), (*reply()[:1], *reset("STREAM_CLOSED")), NO_WINDOW),
    Case("5.1/6", HALF_CLOSED + get(), (*reply()[:1], *reset("STREAM_CLOSED")), NO_WINDOW),
    Case(
        "5.1/7",
        HALF_CLOSED + continuation(GET_BLOCK, flags=END_HEADERS),
        (*reply()[:1], *closes("PROTOCOL_ERROR", 1)),
        NO_WINDOW,
        note="h2spec takes STREAM_CLOSED as well; no HEADERS are open, which is what counts (6.10)",
    ),
    Case("5.1/8", post() + rst(1) + data(1, b"test"), reset("STREAM_CLOSED")),
    Case("5.1/9", post() + rst(1) + get(), reset("STREAM_CLOSED")),
    Case("5.1/10", post() + rst(1) + continuation(GET_BLOCK, flags=END_HEADERS), closes("PROTOCOL_ERROR", 1)),
    Case(
        "5.1/11",
        get() + data(1, b"test"),
        (*reply(), *reset("STREAM_CLOSED")),
        note="the connection may be closed for it; late DATA harms nobody",
    ),
    Case("5.1/12", get() + get(), (*reply(), *closes("STREAM_CLOSED", 1))),
    Case("5.1/13", get() + continuation(GET_BLOCK, flags=END_HEADERS), (*reply(), *closes("PROTOCOL_ERROR", 1))),
    Case("5.1.1/1", get(2), closes("PROTOCOL_ERROR")),
    Case("5.1.1/2", get(5) + get(3), (*reply(5), *closes("PROTOCOL_ERROR", 5))),
    Case(
        "5.1.2/1",
        b"".join(post(1 + 2 * n) for n in range(257)),
        reset("REFUSED_STREAM", 513),
        note="h2spec takes PROTOCOL_ERROR as well; only REFUSED_STREAM lets a gRPC client try again",
    ),
    Case(
        "5.3.1/1",
        frame(HEADERS, 0x25, 1, priority_fields(1) + GET_BLOCK),
        reset("PROTOCOL_ERROR"),
        note="RFC 9113 has dropped the rule with priorities; kept as RFC 7540 had it, and counted as an error",
    ),
    Case("5.3.1/2", post() + priority(1, 1), reset("PROTOCOL_ERROR"), note="as 5.3.1/1"),
    Case("5.4.1/1", frame(PING, 0, 3, bytes(8)), closes("PROTOCOL_ERROR")),
    Case("5.4.1/2", frame(PING, 0, 3, bytes(8)), closes("PROTOCOL_ERROR")),
    Case("5.5/1", frame(0xFF, 0xFF, 0, bytes(8)), ()),
    Case("5.5/2", opening(GET_BLOCK) + frame(0xFF, 0xFF, 0, bytes(8)), closes("PROTOCOL_ERROR")),
    Case("6.1/1", data(0, b"test"), closes("PROTOCOL_ERROR")),
    Case("6.1/2", HALF_CLOSED + data(1, b"test"), (*reply()[:1], *reset("STREAM_CLOSED")), NO_WINDOW),
    Case("6.1/3", post() + frame(DATA, 9, 1, b"\x05test"), closes("PROTOCOL_ERROR", 1)),
    Case("6.2/1", opening(GET_BLOCK) + priority(1), closes("PROTOCOL_ERROR")),
    Case("6.2/2", opening(GET_BLOCK) + get(3), closes("PROTOCOL_ERROR")),
    Case("6.2/3", get(0), closes("PROTOCOL_ERROR")),
    Case("6.2/4", frame(HEADERS, 0x0D, 1, bytes((len(GET_BLOCK) + 2,)) + GET_BLOCK), closes("PROTOCOL_ERROR")),
    Case("6.3/1", priority(0, 1), closes("PROTOCOL_ERROR")),
    Case("6.3/2", post() + frame(PRIORITY, 0, 1, bytes(4)), reset("FRAME_SIZE_ERROR")),
    Case("6.4/1", rst(0), closes("PROTOCOL_ERROR")),
    Case("6.4/2", rst(1), closes("PROTOCOL_ERROR")),
    Case("6.4/3", post() + frame(RST_STREAM, 0, 1, bytes(3)), closes("FRAME_SIZE_ERROR", 1)),
    Case("6.5/1", frame(SETTINGS, ACK, 0, bytes(6)), closes("FRAME_SIZE_ERROR")),
    Case("6.5/2", frame(SETTINGS, 0, 1, bytes(6)), closes("PROTOCOL_ERROR")),
    Case("6.5/3", frame(SETTINGS, 0, 0, bytes(3)), closes("FRAME_SIZE_ERROR")),
    Case("6.5.2/1", settings((ENABLE_PUSH, 2)), closes("PROTOCOL_ERROR")),
    Case("6.5.2/2", settings((INITIAL_WINDOW, 2**31)), closes("FLOW_CONTROL_ERROR")),
    Case("6.5.2/3", settings((MAX_FRAME, 16_383)), closes("PROTOCOL_ERROR")),
    Case("6.5.2/4", settings((MAX_FRAME, 2**24)), closes("PROTOCOL_ERROR")),
    Case("6.5.2/5", settings((0xFF, 1)), ("SETTINGS ACK",)),
    Case(
        "6.5.3/1",
        settings((INITIAL_WINDOW, 100), (INITIAL_WINDOW, 1)) + get(),
        ("SETTINGS ACK", "HEADERS 1 405", "DATA 1 1"),
    ),
    Case("6.5.3/2", settings((MAX_CONCURRENT, 1)), ("SETTINGS ACK",)),
    Case("6.7/1", ping(), ("PING 12345678 ACK",)),
    Case("6.7/2", ping(b"nobody's", ACK) + ping(), ("PING 12345678 ACK",)),
    Case("6.7/3", frame(PING, 0, 1, bytes(8)), closes("PROTOCOL_ERROR")),
    Case("6.7/4", frame(PING, 0, 0, bytes(6)), closes("FRAME_SIZE_ERROR")),
    Case("6.8/1", frame(GOAWAY, 0, 1, bytes(8)), closes("PROTOCOL_ERROR")),
    Case("6.9/1", window_update(0, 0), closes("PROTOCOL_ERROR")),
    Case("6.9/2", post() + window_update(1, 0), reset("PROTOCOL_ERROR")),
    Case("6.9/3", post() + frame(WINDOW_UPDATE, 0, 1, bytes(3)), closes("FRAME_SIZE_ERROR", 1)),
    Case("6.9.1/1", get(), ("HEADERS 1 405", "DATA 1 1"), hello((INITIAL_WINDOW, 1))),
    Case("6.9.1/2", window_update(0, MAX_WINDOW) * 2, closes("FLOW_CONTROL_ERROR")),
    Case("6.9.1/3", post() + window_update(1, MAX_WINDOW) * 2, reset("FLOW_CONTROL_ERROR")),
    Case(
        "6.9.2/1",
        get() + settings((INITIAL_WINDOW, 1)),
        ("HEADERS 1 405", "SETTINGS ACK", "DATA 1 1"),
        NO_WINDOW,
    ),
    Case(
        "6.9.2/2",
        get() + settings((INITIAL_WINDOW, 2)) + window_update(1, 2),
        ("HEADERS 1 405", "DATA 1 3", "SETTINGS ACK", "DATA 1 1"),
        hello((INITIAL_WINDOW, 3)),
    ),
    Case("6.9.2/3", settings((INITIAL_WINDOW, 2**32 - 1)), closes("FLOW_CONTROL_ERROR")),
    Case(
        "6.10/1",
        opening(b"", flags=1)
        + b"".join(continuation(GET_BLOCK[at : at + 9]) for at in range(0, len(GET_BLOCK), 9))
        + continuation(b"", flags=END_HEADERS),
        reply(),
    ),
    Case("6.10/2", opening(b"") + continuation(GET_BLOCK) + data(1, b"test"), closes("PROTOCOL_ERROR")),
    Case("6.10/3", opening(b"") + continuation(GET_BLOCK, stream_id=0), closes("PROTOCOL_ERROR")),
    Case("6.10/4", post() + continuation(GET_BLOCK, flags=END_HEADERS), closes("PROTOCOL_ERROR", 1)),
    Case(
        "6.10/5",
        opening(b"") + continuation(POST_BLOCK, flags=END_HEADERS) + continuation(b"", flags=END_HEADERS),
        closes("PROTOCOL_ERROR", 1),
    ),
    Case("6.10/6", opening(b"") + data(1, b"test") + continuation(GET_BLOCK), closes("PROTOCOL_ERROR")),
    Case("7/1", goaway(0, 0xFF), ()),
    Case("7/2", post() + rst(1, 0xFF), ()),
    Case("8.1/1", post() + headers(1, [("x", "1")], end=False), reset("PROTOCOL_ERROR")),
    Case("8.1.2/1", get(1, ("X-TEST", "ok")), reset("PROTOCOL_ERROR")),
    Case("8.1.2.1/1", headers(1, (*request_fields(), (":test", "ok"))), reset("PROTOCOL_ERROR")),
    Case("8.1.2.1/2", headers(1, (*request_fields(), (":status", "200"))), reset("PROTOCOL_ERROR")),
    Case("8.1.2.1/3", post() + headers(1, [(":method", "200")]), reset("PROTOCOL_ERROR")),
    Case("8.1.2.1/4", headers(1, (("x-test", "ok"), *request_fields())), reset("PROTOCOL_ERROR")),
    Case("8.1.2.2/1", get(1, ("connection", "keep-alive")), reset("PROTOCOL_ERROR")),
    Case("8.1.2.2/2", get(1, ("te", "trailers, deflate")), reset("PROTOCOL_ERROR")),
    Case("8.1.2.3/1", headers(1, request_fields(path="")), reset("PROTOCOL_ERROR")),
    Case("8.1.2.3/2", headers(1, request_fields()[2:]), reset("PROTOCOL_ERROR")),
    Case("8.1.2.3/3", headers(1, [f for f in request_fields() if f[0] != ":scheme"]), reset("PROTOCOL_ERROR")),
    Case("8.1.2.3/4", headers(1, [f for f in request_fields() if f[0] != ":path"]), reset("PROTOCOL_ERROR")),
    *(
        Case(f"8.1.2.3/{5 + n}", headers(1, (*request_fields(), request_fields()[n])), reset("PROTOCOL_ERROR"))
        for n in range(3)
    ),
    Case("8.1.2.6/1", post(1, ("content-length", "1")) + data(1, b"test", end=True), reset("PROTOCOL_ERROR")),
    Case("8.1.2.6/2", post(1, ("content-length", "1")) + data(1, b"test") * 2, reset("PROTOCOL_ERROR")),
    Case("8.2/1", frame(PUSH_PROMISE, END_HEADERS, 1, word(2) + GET_BLOCK), closes("PROTOCOL_ERROR")),
)

_COMPRESSION = [
    Case(name, hpack_get(octets), closes("COMPRESSION_ERROR", 1))
    for name, octets in (
        ("2.3.3/1", b"\xc6"),
        ("2.3.3/2", b"\x7f\x07" + PLAIN[1]),
        ("4.2/1", b"\x20"),
        ("5.2/1", b"\x00" + PLAIN[0] + b"\x86\xf2\xb2\x4a\x84\xff\xff"),
        ("5.2/2", b"\x00" + PLAIN[0] + b"\x85\xf2\xb2\x4a\x84\x80"),
        ("5.2/3", b"\x00" + PLAIN[0] + b"\x88\xff\xff\xff\xff\xf2\xb2\x4a\x87"),
        ("6.1/1", b"\x80"),
        ("6.3/1", b""),
    )
]
_COMPRESSION[-1] = Case("6.3/1", headers(1, b"\x3f\xe2\x1f" + GET_BLOCK), closes("COMPRESSION_ERROR", 1))
HPACK = table("h2spec hpack/", *_COMPRESSION)
