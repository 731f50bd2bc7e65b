"""What h2spec leaves out of RFC 9113 and RFC 7541, by section; see cases.py."""

from conformance.http2.cases import (
    GET_BLOCK,
    MAX_WINDOW,
    NO_WINDOW,
    Case,
    closes,
    hpack_get,
    reply,
    reset,
    table,
)
from transport.http2.wire import (
    ACK,
    DATA,
    END_HEADERS,
    GOAWAY,
    HEADER_TABLE_SIZE,
    HEADERS,
    INITIAL_WINDOW,
    MAX_HEADER_LIST,
    OPENING,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PRIORITY_FLAG,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    data,
    frame,
    get,
    headers,
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
)

INDEXED_GET = headers(1, request_fields(("x", "1", 0x40)))
BAD_NAMES = ("", "X", "a b", "a\x00", "a\x7f", "a\x80", "a:b", "a\n", 'a"')
BAD_VALUES = ("a\x00b", "a\rb", "a\nb", " a", "a ", "\ta", "a\t")
BAD_LENGTHS = ("-1", "+1", "1.0", "0x1", "", "1, 1", "٣", "9" * 19)

_RFC9113 = table(
    "rfc9113 ",
    Case("3.4 first frame PING", b"", closes("PROTOCOL_ERROR"), PREFACE + ping(), tuple(OPENING)),
    Case("3.4 first frame ACK", b"", closes("PROTOCOL_ERROR"), PREFACE + frame(SETTINGS, ACK), tuple(OPENING)),
    Case(
        "3.4 a request before our SETTINGS are acknowledged, in the read of the preface",
        get(),
        reply(),
        PREFACE + settings(),
        note="h2load does so",
    ),
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
    Case(
        "4.3 a malformed request changes the table",
        INDEXED_GET
        + headers(3, GET_BLOCK + b"\xbe")
        + headers(5, GET_BLOCK + b"\x40" + string("Y") + string("2"))
        + headers(7, GET_BLOCK + b"\xbe"),
        (*reply(), *reply(3), *reset("PROTOCOL_ERROR", 5), *reset("PROTOCOL_ERROR", 7)),
    ),
)

_RFC7541 = table(
    "rfc7541 ",
    Case("5.1 endless integer", hpack_get(b"\x7f" + b"\x80" * 20), closes("COMPRESSION_ERROR", 1)),
    Case("5.2 string past the block", hpack_get(b"\x00\x7f\xff\xff\x7f"), closes("COMPRESSION_ERROR", 1)),
    Case("4.2 three size updates", headers(1, b"\x20" * 3 + GET_BLOCK), closes("COMPRESSION_ERROR", 1)),
    Case(
        "4.4 an entry larger than the table",
        headers(1, b"\x3f\x01" + GET_BLOCK + literal("n", "v" * 30, 0x40)),
        reply(),
    ),
    Case(
        "4.4 the name of an entry that its own insertion evicts",
        headers(1, b"\x3f\x29" + GET_BLOCK + literal("content-length", "0", 0x40) + b"\x7e" + string("1" + 9 * "0")),
        reset("PROTOCOL_ERROR"),
        note="the table holds one entry; the second is a content-length that differs, if its name was kept",
    ),
)

BEYOND = [*_RFC9113, *_RFC7541]
