"""What RFC 9113 and RFC 7541 ask of a server, as octets and the whole transcript of the answer.

The first three tables follow h2spec, whose ids they carry; the fourth holds what h2spec leaves out. The server under
test answers a request to GET or HEAD, once it is complete, with 405 and a body, and a POST with 415 and the same.
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
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PRIORITY_FLAG,
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
    literal,
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
    """octets: sent after the preface. expected: transcript after SETTINGS, without the PONG that ends it."""

    name: str
    octets: bytes
    expected: tuple[str, ...]
    hello: bytes = hello()
    welcome: tuple[str, ...] = tuple(WELCOME)

    @property
    def fatal(self):
        return any(line.startswith("GOAWAY") for line in self.expected)


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

GENERIC = [
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
]

FRAMES = [
    Case("3.5/1", b"", ()),
    Case("3.5/2", b"", closes("PROTOCOL_ERROR"), b"INVALID CONNECTION PREFACE\r\n\r\n", tuple(OPENING)),
    Case("4.1/1", frame(0x16, 0, 0, bytes(8)), ()),
    Case("4.1/2", ping(flags=0xFE), ("PING 12345678 ACK",)),
    Case("4.1/3", frame(PING, 0, 1 << 31, b"12345678"), ("PING 12345678 ACK",)),
    Case("4.2/1", post() + data(1, bytes(16_384), end=True), reply(1, 415)),
    Case("4.2/2", post() + data(1, bytes(16_385), end=True), closes("FRAME_SIZE_ERROR", 1)),
    Case("4.2/3", headers(1, bytes(20_000)), closes("FRAME_SIZE_ERROR")),
    Case("4.3/1", headers(1, GET_BLOCK[:-1]), closes("COMPRESSION_ERROR", 1)),
    Case("4.3/2", opening(GET_BLOCK) + priority(1), closes("PROTOCOL_ERROR")),
    Case("4.3/3", opening(GET_BLOCK) + get(3), closes("PROTOCOL_ERROR")),
    Case("5.1/1", data(1, b"test"), closes("PROTOCOL_ERROR")),
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
    ),
    Case("5.1/8", post() + rst(1) + data(1, b"test"), reset("STREAM_CLOSED")),
    Case("5.1/9", post() + rst(1) + get(), reset("STREAM_CLOSED")),
    Case("5.1/10", post() + rst(1) + continuation(GET_BLOCK, flags=END_HEADERS), closes("PROTOCOL_ERROR", 1)),
    Case("5.1/11", get() + data(1, b"test"), (*reply(), *reset("STREAM_CLOSED"))),
    Case("5.1/12", get() + get(), (*reply(), *closes("STREAM_CLOSED", 1))),
    Case("5.1/13", get() + continuation(GET_BLOCK, flags=END_HEADERS), (*reply(), *closes("PROTOCOL_ERROR", 1))),
    Case("5.1.1/1", get(2), closes("PROTOCOL_ERROR")),
    Case("5.1.1/2", get(5) + get(3), (*reply(5), *closes("PROTOCOL_ERROR", 5))),
    Case("5.1.2/1", b"".join(post(1 + 2 * n) for n in range(257)), reset("REFUSED_STREAM", 513)),
    Case("5.3.1/1", frame(HEADERS, 0x25, 1, priority_fields(1) + GET_BLOCK), reset("PROTOCOL_ERROR")),
    Case("5.3.1/2", post() + priority(1, 1), reset("PROTOCOL_ERROR")),
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
]

HPACK = [
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
HPACK[-1] = Case("6.3/1", headers(1, b"\x3f\xe2\x1f" + GET_BLOCK), closes("COMPRESSION_ERROR", 1))

INDEXED_GET = headers(1, request_fields(("x", "1", 0x40)))
BAD_NAMES = ("", "X", "a b", "a\x00", "a\x7f", "a\x80", "a:b", "a\n", 'a"')
BAD_VALUES = ("a\x00b", "a\rb", "a\nb", " a", "a ", "\ta", "a\t")
BAD_LENGTHS = ("-1", "+1", "1.0", "0x1", "", "1, 1", "٣", "9" * 19)

BEYOND = [
    Case("3.4 first frame PING", b"", closes("PROTOCOL_ERROR"), PREFACE + ping(), tuple(OPENING)),
    Case("3.4 first frame ACK", b"", closes("PROTOCOL_ERROR"), PREFACE + frame(SETTINGS, ACK), tuple(OPENING)),
    *(
        Case(f"4.1 type {kind:#x} on stream {at}", frame(kind, 0xFF, at, bytes(9)) + get(), reply())
        for kind in (*range(0x0A, 0x12), 0xC8, 0xFF)
        for at in (0, 1, 2, 9)
    ),
    Case("4.2 DATA without its pad length", post() + frame(DATA, PADDED, 1), closes("FRAME_SIZE_ERROR", 1)),
    Case("4.2 HEADERS without its pad length", frame(HEADERS, PADDED | END_HEADERS, 1), closes("FRAME_SIZE_ERROR")),
    Case(
        "4.2 HEADERS without its priority",
        frame(HEADERS, PRIORITY_FLAG | END_HEADERS, 1, bytes(4)),
        closes("FRAME_SIZE_ERROR"),
    ),
    Case("4.2 GOAWAY of 7", frame(GOAWAY, 0, 0, bytes(7)), closes("FRAME_SIZE_ERROR")),
    Case("4.2 empty RST_STREAM", post() + frame(RST_STREAM, 0, 1), closes("FRAME_SIZE_ERROR", 1)),
    Case("4.2 PING of 9", frame(PING, 0, 0, bytes(9)), closes("FRAME_SIZE_ERROR")),
    Case("4.2 WINDOW_UPDATE of 5", frame(WINDOW_UPDATE, 0, 0, bytes(5)), closes("FRAME_SIZE_ERROR")),
    Case("6.2 padding as long as the rest", frame(HEADERS, 0x0D, 1, b"\x02ab"), reset("PROTOCOL_ERROR")),
    Case(
        "6.2 padding over the priority fields",
        frame(HEADERS, 0x2D, 1, b"\x03" + priority_fields() + b"ab"),
        closes("PROTOCOL_ERROR"),
    ),
    Case(
        "5.1 frames after our reset",
        post()
        + window_update(1, 0)
        + data(1, b"late", end=True)
        + headers(1, [("x", "late", 0x40)])
        + window_update(1, 0)
        + priority(1)
        + rst(1)
        + headers(3, GET_BLOCK + b"\xbe"),
        (*reset("PROTOCOL_ERROR"), *reply(3)),
    ),
    Case(
        "5.1 a block on a half-closed stream is decoded",
        get() + headers(1, [("n", "v", 0x40)]) + headers(3, GET_BLOCK + b"\xbe"),
        ("HEADERS 1 405", *reset("STREAM_CLOSED"), "HEADERS 3 405"),
        NO_WINDOW,
    ),
    Case(
        "5.3 a block with a dependency on itself is decoded",
        frame(HEADERS, 0x25, 1, priority_fields(1) + literal("n", "v", 0x40)) + headers(3, GET_BLOCK + b"\xbe"),
        (*reset("PROTOCOL_ERROR"), *reply(3)),
    ),
    Case("5.1 control frames on a closed stream", get() + rst(1) + window_update(1, 1) + priority(1), reply()),
    Case("5.1 DATA on a skipped stream", get(5) + data(3), (*reply(5), *closes("PROTOCOL_ERROR", 5))),
    Case("5.1 RST_STREAM on a skipped stream", get(5) + rst(1), (*reply(5), *closes("PROTOCOL_ERROR", 5))),
    Case("5.1.1 the last id there is", get(2**31 - 1), reply(2**31 - 1)),
    Case("5.1.1 RST_STREAM on an even id", get(5) + rst(2), (*reply(5), *closes("PROTOCOL_ERROR", 5))),
    Case(
        "6.1 padding counts and is given back",
        post() + data(1, b"test", padding=255) + data(1, b"", end=True, padding=255),
        ("WINDOW_UPDATE 1 256", *reply(1, 415)),
    ),
    Case("6.3 PRIORITY of 4 on an idle stream", frame(PRIORITY, 0, 1, bytes(4)), closes("FRAME_SIZE_ERROR")),
    Case("6.3 PRIORITY on itself, idle", priority(1, 1), closes("PROTOCOL_ERROR")),
    Case(
        "6.9.2 the change moves open streams, not the connection",
        window_update(0, MAX_WINDOW - 65_535) + post() + settings((INITIAL_WINDOW, MAX_WINDOW)),
        ("SETTINGS ACK",),
    ),
    Case(
        "6.9.2 the change overflows an open stream",
        post() + window_update(1, 1) + settings((INITIAL_WINDOW, MAX_WINDOW)),
        closes("FLOW_CONTROL_ERROR", 1),
    ),
    Case("6.5.2 HEADER_TABLE_SIZE below ours", settings((HEADER_TABLE_SIZE, 0)) + get(), ("SETTINGS ACK", *reply())),
    Case("6.5.2 MAX_HEADER_LIST_SIZE is advice", settings((MAX_HEADER_LIST, 0)) + get(), ("SETTINGS ACK", *reply())),
    Case("6.5 33 entries", settings(*((0xFF, n) for n in range(33))), closes("FRAME_SIZE_ERROR")),
    Case("6.5.3 ACK of nothing", frame(SETTINGS, ACK), ()),
    Case("8.1 empty trailers", post() + headers(1, b""), reply(1, 415)),
    Case("8.1 malformed trailers", post() + headers(1, [("X", "1")]), reset("PROTOCOL_ERROR")),
    Case(
        "8.1 trailers before all content", post(1, ("content-length", "1")) + headers(1, b""), reset("PROTOCOL_ERROR")
    ),
    *(
        Case(f"8.1.1 content-length {length!r}", post(1, ("content-length", length)), reset("PROTOCOL_ERROR"))
        for length in BAD_LENGTHS
    ),
    Case(
        "8.1.1 content-length twice",
        post(1, ("content-length", "4"), ("content-length", "5")),
        reset("PROTOCOL_ERROR"),
    ),
    Case(
        "8.1.1 content-length twice, equal",
        post(1, ("content-length", "4"), ("content-length", "4")) + data(1, b"test", end=True),
        reply(1, 415),
    ),
    Case("8.1.1 content-length and END_STREAM", get(1, ("content-length", "1")), reset("PROTOCOL_ERROR")),
    Case("8.1.1 content-length 0", get(1, ("content-length", "0")), reply()),
    Case(
        "8.1.1 less than content-length",
        post(1, ("content-length", "5")) + data(1, b"test", end=True),
        reset("PROTOCOL_ERROR"),
    ),
    *(
        Case(f"8.2.1 name {name!r}", get(1, (name.encode("latin-1"), "v")), reset("PROTOCOL_ERROR"))
        for name in BAD_NAMES
    ),
    *(Case(f"8.2.1 value {value!r}", get(1, ("n", value)), reset("PROTOCOL_ERROR")) for value in BAD_VALUES),
    *(
        Case(f"8.2.1 path {value!r}", headers(1, request_fields(path=value)), reset("PROTOCOL_ERROR"))
        for value in BAD_VALUES
    ),
    Case("8.2.1 a good value of any octets", get(1, ("n", b"a b\t\x80\xff!")), reply()),
    *(
        Case(f"8.2.2 {name}", get(1, (name, "x")), reset("PROTOCOL_ERROR"))
        for name in ("keep-alive", "proxy-connection", "transfer-encoding", "upgrade")
    ),
    Case("8.3.1 host differs", get(1, ("host", "other")), reset("PROTOCOL_ERROR")),
    Case("8.3.1 host agrees", get(1, ("host", "test")), reply()),
    Case("8.3.1 host alone", headers(1, (*request_fields()[:3], ("host", "test"))), reply()),
    Case("8.3.1 two :authority", headers(1, (*request_fields(), (":authority", "x"))), reset("PROTOCOL_ERROR")),
    Case("8.5 CONNECT with a path", headers(1, request_fields(method="CONNECT")), reset("PROTOCOL_ERROR")),
    Case("8.5 CONNECT", headers(1, ((":method", "CONNECT"), (":authority", "x"))), reply()),
    Case("7541 5.1 endless integer", hpack_get(b"\x7f" + b"\x80" * 20), closes("COMPRESSION_ERROR", 1)),
    Case("7541 5.2 string past the block", hpack_get(b"\x00\x7f\xff\xff\x7f"), closes("COMPRESSION_ERROR", 1)),
    Case("7541 4.2 three size updates", headers(1, b"\x20" * 3 + GET_BLOCK), closes("COMPRESSION_ERROR", 1)),
    Case(
        "7541 4.4 an entry larger than the table",
        headers(1, b"\x3f\x01" + GET_BLOCK + literal("n", "v" * 30, 0x40)),
        reply(),
    ),
    Case(
        "4.3 a malformed request changes the table",
        INDEXED_GET
        + headers(3, GET_BLOCK + b"\xbe")
        + headers(5, GET_BLOCK + b"\x40" + string("Y") + string("2"))
        + headers(7, GET_BLOCK + b"\xbe"),
        (*reply(), *reply(3), *reset("PROTOCOL_ERROR", 5), *reset("PROTOCOL_ERROR", 7)),
    ),
]
