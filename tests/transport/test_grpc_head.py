import re
from functools import partial
from urllib.parse import unquote_to_bytes

import hpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from transport.http2.wire import GRPC, block, request_fields

from headrace.transport.grpc_head import NOT_GRPC, VARYING, percent_encode, read_head, status_block
from headrace.transport.http2.frames import StreamViolation
from headrace.transport.http2.heads import HeadReader
from headrace.transport.http2.limits import Limits
from headrace.transport.service import INFER_PATH, ServiceTable
from headrace.transport.status import Code, Status

BASE = {b":method": b"POST", b":scheme": b"http", b":path": b"/s/m", b"content-type": b"application/grpc"}
SECOND = 10**9
TABLE = ServiceTable({"/s/m": lambda message: message}, {"/s/stream": lambda messages: messages}, lambda call: None, ())
READ = partial(read_head, TABLE)


def head(**fields):
    named = {name.strip("_").replace("_", "-").encode(): value for name, value in fields.items()}
    named = {(b":" + name if name in (b"method", b"path") else name): value for name, value in named.items()}
    return READ([(name, value) for name, value in {**BASE, **named}.items() if value is not None])


def refusal(of):
    return {name.decode(): value.decode() for name, value in hpack.Decoder().decode(of.refusal.encoded, raw=True)}


def test_a_plain_request():
    read = head()
    assert (read.path, read.encoding, read.refusal, read.plain) == ("/s/m", b"", None, None)
    assert VARYING.absent == -1


@pytest.mark.parametrize(
    ("value", "nanoseconds"),
    [
        (b"1H", 3600 * SECOND),
        (b"2M", 120 * SECOND),
        (b"30S", 30 * SECOND),
        (b"4983m", 4_983_000_000),
        (b"4999876u", 4_999_876_000),
        (b"99999999n", 99_999_999),
        (b"0S", 0),
        (b"0n", 0),
        (b"00000001S", SECOND),
        (b"99999999H", -1),
        (b"99999999M", -1),
        (b"99999999S", 99_999_999 * SECOND),
    ],
)
def test_timeouts(value, nanoseconds):
    assert VARYING.read(value) == nanoseconds
    assert head(grpc_timeout=value).refusal is None


def test_what_answers_a_call():
    assert (head().unary, head().stream) == (TABLE.unary["/s/m"], None)
    read = head(path=b"/s/stream")
    assert (read.unary, read.stream, read.refusal) == (None, TABLE.streams["/s/stream"], None)
    read = head(path=INFER_PATH.encode())
    assert (read.unary, read.stream, read.refusal) == (None, None, None)
    for path in (b"/s/n", b"/", b"*"):
        fields = refusal(head(path=path))
        assert (fields["grpc-status"], fields["grpc-message"]) == ("12", f"unknown method {path.decode()}")


BAD_TIMEOUTS = [b"", b"1", b"S", b"+1S", b"-1S", b"1.5S", b"1s", b"1h", b"1SS", b"1 S", b" 1S", b"123456789S", b"\xb2S"]


@pytest.mark.parametrize("value", BAD_TIMEOUTS)
def test_malformed_timeouts(value):
    assert VARYING.read(value) is None
    fields = refusal(head(grpc_timeout=value))
    assert fields[":status"] == "200"
    assert fields["grpc-status"] == str(Code.INTERNAL.value)
    assert "grpc-timeout" in fields["grpc-message"]


@pytest.mark.parametrize(
    "value",
    [b"application/grpc", b"application/grpc+proto", b"application/grpc;charset=utf-8", b"APPLICATION/GRPC+json"],
)
def test_content_types(value):
    assert head(content_type=value).refusal is None


@pytest.mark.parametrize("value", [None, b"", b"text/html", b"application/grpc-web", b"application/grp", b"x"])
def test_foreign_content_types(value):
    read = head(content_type=value)
    assert read.plain == NOT_GRPC
    fields = refusal(read)
    assert (fields[":status"], fields["grpc-status"]) == ("415", "2")


def test_methods():
    for method, body in ((b"GET", NOT_GRPC), (b"HEAD", b""), (b"CONNECT", NOT_GRPC), (b"post", NOT_GRPC)):
        read = head(method=method)
        assert read.plain == body
        fields = refusal(read)
        assert (fields[":status"], fields["allow"], fields["grpc-status"]) == ("405", "POST", "2")


def test_encodings():
    assert head(grpc_encoding=b"gzip").encoding == b"gzip"
    assert head(grpc_encoding=b"deflate").encoding == b"deflate"
    assert head(grpc_encoding=b"identity").encoding == head().encoding == b""
    for unknown in (b"br", b"snappy", b"GZIP", b"gzip,identity"):
        fields = refusal(head(grpc_encoding=unknown))
        assert (fields["grpc-status"], fields["grpc-accept-encoding"]) == ("12", "identity,gzip,deflate")
        assert unknown.decode() in fields["grpc-message"]


@pytest.mark.parametrize("value", [b"", b"q6ur", b"YQ==", b"YQ", b"YWI", b"YQ==,YWI=, YWJj", b",", b"+/+/"])
def test_binary_metadata(value):
    assert head(x_bin=value).refusal is None


@pytest.mark.parametrize("value", [b"Y", b"YWJjZ", b"a-b_", b"Y*==", b"YQ=A", b"YQ===", b"YQ==,!"])
def test_invalid_binary_metadata_fails_the_call(value):
    fields = refusal(head(x_bin=value))
    assert (fields[":status"], fields["grpc-status"]) == ("200", "13")
    assert "x-bin" in fields["grpc-message"]


def test_too_large_a_head():
    fields = refusal(READ(None))
    assert (fields[":status"], fields["grpc-status"]) == ("200", "8")


OTHERS = st.lists(
    st.sampled_from(
        [
            ("content-type", "text/html"),
            ("grpc-encoding", "gzip"),
            ("grpc-encoding", "zip"),
            ("grpc-timeout", "3S"),
            ("content-length", "5"),
            ("content-length", "6"),
            ("x-bin", "?"),
            ("n", "v"),
            ("N", "v"),
        ]
    ),
    max_size=4,
)
TIMEOUTS = st.lists(
    st.sampled_from(["1S", "2500m", "99999999H", "0n", "never", "", "1S\0", None]), min_size=2, max_size=8
)


def described(reader, octets):
    try:
        read = reader.request(octets)
    except StreamViolation as violation:
        return violation.code
    refused = read.app.refusal and read.app.refusal.encoded
    return read.app.path, read.varied, read.app.encoding, refused, read.app.plain, read.content_length


@given(OTHERS, st.integers(0, 4), TIMEOUTS, st.sampled_from([0, 100, 4096]))
@example([("grpc-encoding", "gzip")], 1, ["1S", "2S", None], 0)
@example([("x-bin", "?")], 1, ["1S", "2S"], 0)
@example([("content-length", "5"), ("content-length", "6")], 2, ["1S", "2S"], 0)
@example([("n", "v")], 4, ["1S", "2S", "3S", "never", "4S", None, "5S", "1S\0", "6S"], 4096)
@example([("n", ""), ("grpc-encoding", "gzip")], 0, ["1S", "2S", "never", "3S", "0n"], 4096)
def test_the_short_way_for_another_timeout_leads_to_the_same(others, at, timeouts, table):
    """Whether the client inserts its fields in the table (as far as it holds them) or not."""
    short = HeadReader(Limits(), READ, VARYING)
    encoder = hpack.Encoder()
    encoder.header_table_size = table
    for timeout in timeouts:
        fields = [*others]
        if timeout is not None:
            fields.insert(at, ("grpc-timeout", timeout))
        fields = request_fields(GRPC[0], *fields, method="POST", path="/s/m")
        expected = described(HeadReader(Limits(), READ, VARYING), block(*fields))
        assert described(short, encoder.encode(fields)) == expected


@given(st.text(max_size=80))
def test_percent_encoding(message):
    encoded = percent_encode(message)
    assert re.fullmatch(rb"(?:[ -$&-~]|%[0-9A-F]{2})*", encoded)
    assert unquote_to_bytes(encoded) == message.encode(errors="replace")


def test_percent_encoding_touches_only_what_it_must():
    plain = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")
    assert percent_encode(plain) == plain.encode()
    assert percent_encode("100%\t\r\n\x7f☺😈") == b"100%25%09%0D%0A%7F%E2%98%BA%F0%9F%98%88"


@given(st.text(min_size=200, max_size=2000))
def test_a_long_message_is_cut_between_characters(message):
    encoded = percent_encode(message)
    assert len(encoded) <= 1024
    shown = unquote_to_bytes(encoded).decode()  # no character is cut in two
    whole = message.encode(errors="replace").decode()
    assert shown == whole or (shown.endswith("...") and whole.startswith(shown[:-3]))


@pytest.mark.parametrize(
    "message",
    [
        "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n",
        " spaces around ",
        "  ",
        " ",
        "",
        "a",
    ],
)
def test_a_message_arrives_as_it_is(message):
    """Also what HTTP/2 does not allow at the ends of a value."""
    encoded = status_block(Status(2, message, (("headrace-reason", "x"),)), opening=False).encoded
    fields = {name.decode(): value for name, value in hpack.Decoder().decode(encoded, raw=True)}
    assert fields["grpc-status"] == b"2"
    assert fields["headrace-reason"] == b"x"
    value = fields.get("grpc-message", b"")
    assert value == value.strip()
    assert unquote_to_bytes(value).decode() == message


def test_a_reply_of_trailers_alone():
    encoded = status_block(Status(5, "", ()), opening=True).encoded
    fields = hpack.Decoder().decode(encoded)
    assert fields == [(":status", "200"), ("content-type", "application/grpc"), ("grpc-status", "5")]
