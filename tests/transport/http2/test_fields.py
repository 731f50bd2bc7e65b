import pytest

from headrace.transport.http2.fields import RequestValidator, content_length
from headrace.transport.http2.frames import ErrorCode, StreamViolation

GOOD = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/s/m"), (b":authority", b"host:1")]


def malformed(call, *arguments):
    with pytest.raises(StreamViolation) as raised:
        call(*arguments)
    assert raised.value.code is ErrorCode.PROTOCOL_ERROR
    return raised.value.debug


def without(name):
    return [field for field in GOOD if field[0] != name]


def test_a_good_request():
    validator = RequestValidator()
    for _ in range(2):
        validator.request([*GOOD, (b"te", b"trailers"), (b"x-y_z.0", b""), (b"n", b"\x80 \xff")])
        validator.request(without(b":authority"))


@pytest.mark.parametrize("missing", [b":method", b":scheme", b":path"])
def test_a_missing_pseudo_field(missing):
    assert missing.decode() in malformed(RequestValidator().request, without(missing))


@pytest.mark.parametrize(
    "fields",
    [
        [(b"n", b"v"), *GOOD],
        [*GOOD[:2], (b"n", b"v"), *GOOD[2:]],
        [*GOOD, GOOD[0]],
        [*GOOD, (b":status", b"200")],
        [*GOOD, (b":", b"")],
        [*without(b":path"), (b":path", b"")],
        [*GOOD, (b"", b"v")],
        [*GOOD, (b"Name", b"v")],
        [*GOOD, (b"a:b", b"v")],
        [*GOOD, (b"n", b"a\r\nb")],
        [*GOOD, (b"n", b" v")],
        [*GOOD, (b"n", b"v\t")],
        [*GOOD, (b"connection", b"close")],
        [*GOOD, (b"te", b"gzip")],
        [*GOOD, (b"host", b"other")],
    ],
)
def test_a_malformed_request_stays_malformed(fields):
    """Good fields are remembered, bad ones are not, nor is a good field good in a bad place."""
    validator = RequestValidator()
    validator.request([*GOOD, (b"n", b"v"), (b"host", b"host:1")])
    for _ in range(2):
        malformed(validator.request, fields)


def test_host_stands_in_for_authority():
    RequestValidator().request([*without(b":authority"), (b"host", b"anything")])


def test_connect():
    validator = RequestValidator()
    validator.request([(b":method", b"CONNECT"), (b":authority", b"host:1")])
    malformed(validator.request, [(b":method", b"CONNECT"), *GOOD[1:]])


def test_trailers():
    validator = RequestValidator()
    validator.request(GOOD)
    validator.trailers([(b"n", b"v")])
    for bad in (GOOD[0], (b"N", b"v"), (b"n", b"v\0"), (b"upgrade", b"h2c")):
        malformed(validator.trailers, [bad])


def test_what_is_remembered_is_bounded():
    """In number and in size: a client chooses its fields."""
    validator = RequestValidator()
    for n in range(1000):
        validator.request([*GOOD, (b"n", b"%d" % n), (b"long", b"x" * 300 + b"%d" % n)])
    assert len(validator._known) <= 256
    assert not any(name == b"long" for name, _ in validator._known)


def test_content_length():
    assert content_length([]) == -1
    assert content_length([(b"n", b"5")]) == -1
    assert content_length([(b"content-length", b"0")]) == 0
    assert content_length([(b"content-length", b"12"), (b"content-length", b"012")]) == 12
    for bad in (b"", b"-1", b"+1", b"1.0", b" 1", b"1_0", b"\xb2", b"1" * 19):
        malformed(content_length, [(b"content-length", bad)])
    malformed(content_length, [(b"content-length", b"1"), (b"content-length", b"2")])
