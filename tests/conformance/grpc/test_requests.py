"""gRPC over HTTP/2 as the document and the reference servers have it, row by row, on raw sockets.

Source: grpc/grpc doc/PROTOCOL-HTTP2.md, compression.md, statuscodes.md, http-grpc-status-mapping.md; gRFC A8 and A9.
Where the servers at hand differ, the note says which way was taken.
"""

import gzip
import zlib
from typing import NamedTuple

import pytest
from conformance.native import Native
from transport.http2 import wire
from transport.http2.bench import CHAT, CRASH, ECHO, FAIL, FIRST, INFER, MAX_MESSAGE, WATCH
from transport.http2.wire import data, grpc_call, grpc_head, headers, message, ping, rst, word

OK, INVALID, DEADLINE, EXHAUSTED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE = 0, 3, 4, 8, 12, 13, 14
NO_ERROR = "RST_STREAM 1 NO_ERROR"
GET_BODY = b"This is a gRPC server"

FIELDS = {
    ":method": "POST",
    ":scheme": "http",
    ":path": ECHO,
    ":authority": "test",
    "te": "trailers",
    "content-type": "application/grpc",
}


class Row(NamedTuple):
    """fields: what differs from a good request; None: is missing. body: DATA, after which the client has ended.

    status: of gRPC; or http: of a plain HTTP reply; or reset: the code of a RST_STREAM. says: part of the message.
    more: fields behind the others, by (name, value), where a name occurs twice.
    """

    name: str
    fields: dict
    status: int | None = OK
    http: int | None = None
    reset: str | None = None
    body: bytes = message(b"m")
    says: str = ""
    reply: bytes | None = None
    more: tuple = ()
    note: str = ""


def refused(name, fields, status, says, **others):
    return Row(name, fields, status, says=says, **others)


def timeouts():
    served = ("1H", "1M", "30S", "60000m", "99999999u", "99999999n", "00000001H", "99999999H", "99999999S")
    for value in served:
        yield Row(f"grpc-timeout {value}", {"grpc-timeout": value})
    for value in ("0S", "0n", "00000000m"):
        yield refused(f"grpc-timeout {value}: over already", {"grpc-timeout": value}, DEADLINE, "Deadline exceeded")
    malformed = ("", "1", "S", "+1S", "-1S", "1.5S", "1s", "1h", "1 S", "123456789S", "1SS", "0x1S")
    for value in malformed:
        yield refused(f"grpc-timeout {value!r}: malformed", {"grpc-timeout": value}, INTERNAL, "grpc-timeout")


ROWS = [
    Row("a good request", {}),
    # --- headers
    Row("GET", {":method": "GET"}, http=405),
    Row("PUT", {":method": "PUT"}, http=405),
    Row("content-type missing", {"content-type": None}, http=415, note="C core serves it"),
    Row("content-type foreign", {"content-type": "application/json"}, http=415),
    Row("content-type of gRPC-Web", {"content-type": "application/grpc-web"}, http=415),
    Row("content-type with a suffix", {"content-type": "application/grpc+proto"}),
    Row("content-type with a parameter", {"content-type": "application/grpc;charset=utf-8"}),
    Row("content-type in upper case", {"content-type": "Application/GRPC"}),
    Row("te missing", {"te": None}, note="mandatory in the document; C core resets the stream"),
    Row("te wrong", {"te": "gzip"}, reset="PROTOCOL_ERROR"),
    Row("connection", {"connection": "close"}, reset="PROTOCOL_ERROR"),
    Row(":authority missing", {":authority": None}, note="C core resets the stream"),
    Row("host instead of :authority", {":authority": None, "host": "test"}),
    Row(":scheme https on a plain connection", {":scheme": "https"}, note="a proxy may have ended TLS"),
    refused("path without a slash", {":path": ECHO[1:]}, UNIMPLEMENTED, "unknown method", note="CVE-2026-33186"),
    refused("unknown method", {":path": "/test.Unary/Nothing"}, UNIMPLEMENTED, "unknown method"),
    refused("unknown service", {":path": "/nothing/Echo"}, UNIMPLEMENTED, "unknown method"),
    refused("path in another case", {":path": ECHO.lower()}, UNIMPLEMENTED, "unknown method"),
    refused("path with a query", {":path": ECHO + "?a=b"}, UNIMPLEMENTED, "unknown method"),
    refused("headers too large", {}, EXHAUSTED, "headers are too large", more=(("x", "v" * 105),) * 120),
    refused("too many headers", {}, EXHAUSTED, "headers are too large", more=(("x", ""),) * 130),
    Row("grpc-previous-rpc-attempts, grpc-message-type", {"grpc-previous-rpc-attempts": "1", "grpc-message-type": "m"}),
    Row("metadata of octets above ASCII", {"x": b"\xc3\xa9 \x80"}),
    Row("metadata without a value", {"x": ""}),
    Row("metadata twice", {}, more=(("x", "1"), ("x", "2"))),
    Row("authorization", {"authorization": "Bearer token"}),
    # --- binary metadata
    Row("-bin padded", {"x-bin": "YQ=="}),
    Row("-bin not padded", {"x-bin": "YQ"}),
    Row("-bin empty", {"x-bin": ""}),
    Row("-bin joined by commas", {"x-bin": "YQ==,YWI, YWJj"}, note="C core and Go refuse them, Java splits"),
    Row("-bin twice", {}, more=(("x-bin", "YQ"), ("x-bin", "YWI"))),
    refused("-bin invalid", {"x-bin": "?"}, INTERNAL, "x-bin is not valid base64", note="CVE-2023-32732"),
    # --- deadlines
    *timeouts(),
    # --- compression
    Row("grpc-encoding identity", {"grpc-encoding": "identity"}),
    Row("grpc-encoding gzip, a plain message", {"grpc-encoding": "gzip"}),
    Row("grpc-encoding gzip, a compressed message", {"grpc-encoding": "gzip"}, body=message(gzip.compress(b"m"), 1)),
    Row("grpc-accept-encoding", {"grpc-accept-encoding": "identity, deflate, gzip"}),
    refused("grpc-encoding unknown", {"grpc-encoding": "snappy"}, UNIMPLEMENTED, "snappy is not supported"),
    Row("grpc-encoding deflate", {"grpc-encoding": "deflate"}, body=message(zlib.compress(b"m"), 1)),
    refused("flag 1 without an encoding", {}, INTERNAL, "no grpc-encoding", body=message(gzip.compress(b"m"), 1)),
    refused(
        "flag 1 under identity",
        {"grpc-encoding": "identity"},
        INTERNAL,
        "no grpc-encoding",
        body=message(gzip.compress(b"m"), 1),
    ),
    refused("flag 2", {}, INTERNAL, "flag 2", body=message(b"m", 2)),
    refused("flag 255", {}, INTERNAL, "flag 255", body=message(b"m", 255)),
    refused("corrupt gzip", {"grpc-encoding": "gzip"}, INTERNAL, "not gzip", body=message(b"nonsense", 1)),
    refused(
        "gzip cut short",
        {"grpc-encoding": "gzip"},
        INTERNAL,
        "not one whole gzip",
        body=message(gzip.compress(b"m" * 100)[:-9], 1),
    ),
    refused(
        "gzip above the limit",
        {"grpc-encoding": "gzip"},
        EXHAUSTED,
        "larger than max",
        body=message(gzip.compress(bytes(MAX_MESSAGE + 1)), 1),
    ),
    # --- messages
    Row("an empty message", {}, body=message(b""), reply=b""),
    refused("a message above the limit, by its prefix", {}, EXHAUSTED, "larger than max", body=b"\0" + word(1 << 30)),
    refused("no message", {}, UNIMPLEMENTED, "without a request message", body=b""),
    refused("a prefix cut short", {}, INTERNAL, "inside a message", body=b"\0\0\0"),
    refused("a message cut short", {}, INTERNAL, "inside a message", body=message(b"abc")[:-1]),
    refused("a second message on a unary call", {}, UNIMPLEMENTED, "more than one", body=message(b"a") * 2),
    refused("octets behind the message", {}, INTERNAL, "inside a message", body=message(b"m") + b"\0"),
    # --- the handler's own word
    refused("a handler's error", {":path": FAIL}, INVALID, "bad value ☃\n"),
    refused("a handler's bug is not shown", {":path": CRASH}, INTERNAL, "internal error, correlation id"),
]


@pytest.fixture(scope="module")
def native():
    with Native() as running:
        yield running


@pytest.fixture
def client(native):
    with native.connect() as client:
        yield client


def named(name):
    return pytest.mark.parametrize("name", [pytest.param(name, id=f"grpc {name}")])


@pytest.mark.parametrize("row", [pytest.param(row, id=f"grpc {row.name}") for row in ROWS])
def test_a_request(client, row):
    fields = [(name, value) for name, value in {**FIELDS, **row.fields}.items() if value is not None]
    client.send(headers(1, [*fields, *row.more], end=False) + data(1, row.body, end=True))
    if row.reset:
        assert client.ping()[-1] == f"RST_STREAM 1 {row.reset}"
    elif row.http:
        client.ping()
        (opening,) = client.reader.fields[1]
        assert opening[":status"] == str(row.http)
        assert opening["grpc-status"] == "2"  # for gRPC clients behind a proxy that spoils their requests
        assert client.reader.bodies[1].startswith(GET_BODY)
    else:
        status, reply = client.reply(1)
        sections = client.reader.fields[1]
        assert (status, sections[0][":status"], sections[0]["content-type"]) == (row.status, "200", "application/grpc")
        assert row.says in client.reader.status(1)[1]
        expected = b"m" if row.reply is None else row.reply
        assert reply == (expected if row.status == OK else None)
        assert len(sections) == (2 if row.status == OK else 1)  # trailers alone, where nothing else was sent
    assert client.call(ECHO, b"next", at=3) == (OK, b"next")


@named("pseudo fields in the order of grpc-java, custom metadata first as of grpc-js")
def test_order(client, name):
    fields = [(":authority", "t"), (":path", ECHO), (":method", "POST"), (":scheme", "http"), ("x", "y"), *wire.GRPC]
    client.send(headers(1, fields, end=False) + data(1, message(b"m"), end=True))
    assert client.reply(1) == (OK, b"m")


@named("HEAD")
def test_head(client, name):
    client.send(headers(1, wire.request_fields(method="HEAD")))
    assert client.ping()[-1] == "HEADERS 1 405 END_STREAM"


@named("an unknown encoding is answered with those that are known")
def test_known_encodings(client, name):
    client.send(grpc_head(ECHO, 1, ("grpc-encoding", "snappy"), end=True))
    assert client.reply(1)[0] == UNIMPLEMENTED
    assert client.reader.fields[1][-1]["grpc-accept-encoding"] == "identity,gzip,deflate"


@named("a request that ends in trailers")
def test_request_trailers(client, name):
    client.send(grpc_head(ECHO) + data(1, message(b"m")) + headers(1, [("x", "y")]))
    assert client.reply(1) == (OK, b"m")


@named("a message over many DATA, with empty ones and padding between")
def test_framing(client, name):
    octets = message(b"a message")
    client.send(grpc_head(ECHO), *[data(1, octets[at : at + 1], padding=at) + data(1) for at in range(len(octets))])
    client.send(data(1, end=True))
    assert client.reply(1) == (OK, b"a message")


@named("a reply ends in HEADERS, and no message is compressed")
def test_reply_form(client, name):
    client.send(grpc_call(ECHO, b"m", 1, ("grpc-accept-encoding", "gzip")))
    assert client.ping()[-3:] == ["HEADERS 1 200", "DATA 1 6", "HEADERS 1 trailers END_STREAM"]
    opening, closing = client.reader.fields[1]
    assert (opening, closing) == ({":status": "200", "content-type": "application/grpc"}, {"grpc-status": "0"})
    assert client.reader.bodies[1] == message(b"m")


@named("grpc-message: percent-encoded where it must be, and nothing else")
def test_percent_encoding(client, name):
    client.send(grpc_call(FAIL))
    assert client.reply(1)[0] == INVALID
    assert client.reader.fields[1][-1]["grpc-message"] == "bad value %E2%98%83%0A"


@named("trailers before the client's END_STREAM: RST_STREAM(NO_ERROR) behind them")
def test_early_end(client, name):
    """And what clients send then, by the reference: a reset of any kind, or an empty DATA that ends the stream."""
    client.send(grpc_head("/nothing/Here"))
    assert client.ping()[-2:] == ["HEADERS 1 200 END_STREAM", NO_ERROR]
    client.send(rst(1, 0) + rst(1, 8) + data(1, end=True) + data(1, b"late") + headers(1, [("x", "y")]))
    assert client.ping() == []


@named("the deadline passes while the request arrives: DEADLINE_EXCEEDED, then RST_STREAM(NO_ERROR)")
def test_deadline(name):
    with Native() as native, native.connect() as client:
        client.send(grpc_head(INFER, 1, ("grpc-timeout", "3S")) + data(1, message(b"m")[:-1]))
        assert native.read_all(client)
        native.pass_time(3)
        assert client.reply(1)[0] == DEADLINE
        assert client.ping()[-2:] == ["HEADERS 1 200 END_STREAM", NO_ERROR]


@named("the deadline of a stream passes: DEADLINE_EXCEEDED, and its handler ends")
def test_deadline_of_a_stream(native, client, name):
    client.send(grpc_head(FIRST, 1, ("grpc-timeout", "20m")) + data(1, message(b"m")))
    assert client.reply(1) == (DEADLINE, None)
    native.eventually(lambda: not native.peer(client).tasks)


@named("RST_STREAM of any code cancels the call, and nothing is sent")
def test_cancel(client, native, name):
    before = len(native.infer.calls)
    codes = (0, 1, 2, 5, 7, 8, 11, 255)
    client.send(*[grpc_call(INFER, b"m", 1 + 2 * n) + rst(1 + 2 * n, code) for n, code in enumerate(codes)])
    assert "RST_STREAM" not in "".join(client.ping())
    calls = native.infer.calls[before:]
    assert [work.cancelled for work in calls] == [1] * len(codes)
    for work in calls:
        native.on_loop(lambda work=work: work.sink.reply(b"late"))
        work.finished = True
    assert client.ping() == []


@named("a lost connection cancels all its calls")
def test_lost_connection(native, name):
    before = len(native.infer.calls)
    with native.connect() as lost:
        lost.send(grpc_call(INFER) + grpc_call(INFER, b"m", 3) + grpc_call(WATCH, b"m", 5))
        lost.until("DATA 5 6")
        lost.vanish()
    native.eventually(lambda: all(work.cancelled for work in native.infer.calls[before:]))
    assert len(native.infer.calls) == before + 2


@named("RST_STREAM in the middle of a duplex call ends its handler")
def test_cancel_duplex(native, client, name):
    client.send(grpc_head(CHAT) + data(1, message(b"m")))
    client.until("DATA 1 6")
    client.send(rst(1))
    native.eventually(lambda: not native.peer(client).tasks)
    assert client.ping()[-2:] == ["HEADERS 1 200", "DATA 1 6"]


@named("pings: strikes, which HEADERS and DATA that are sent wipe out")
def test_ping_strikes(native, client, name):
    for _ in range(20):
        client.send(ping() * 3)
        assert client.call(ECHO, b"m") == (OK, b"m")
    client.send(ping() * 4)
    assert client.end()[-1] == "GOAWAY 39 ENHANCE_YOUR_CALM"
    assert client.reader.debug == b"too_many_pings"


@named("pings every five minutes are free")
def test_rare_pings(name):
    with Native(keepalive_s=10**6) as native, native.connect() as client:
        for _ in range(10):
            client.send(ping())
            assert native.read_all(client)
            native.on_loop(lambda: setattr(native.clock, "now", native.clock.now + 300 * 10**9))
        assert client.call(ECHO, b"m") == (OK, b"m")


@named("a server that leaves: GOAWAY twice, calls under way are answered, streams are told")
def test_drain(name):
    with Native() as native, native.connect() as client:
        client.send(grpc_call(INFER) + grpc_call(WATCH, b"m", 3))
        client.until("DATA 3 6")
        native.drain()
        client.until("PING headrace")
        assert client.lines[-2] == f"GOAWAY {2**31 - 1} NO_ERROR"
        assert client.reply(3) == (UNAVAILABLE, b"m")
        client.send(grpc_call(ECHO, b"on its way", 5) + ping(b"headrace", wire.ACK))
        assert client.reply(5) == (OK, b"on its way")
        client.until("GOAWAY 5 NO_ERROR")
        native.on_loop(lambda: native.infer.calls[0].sink.reply(b"reply"))
        client.end()
        assert client.reply(1) == (OK, b"reply")
