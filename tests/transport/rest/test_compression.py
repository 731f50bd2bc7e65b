import gzip
import random
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import HeadraceError, MessageTooLarge, ProtocolError
from headrace.transport.rest.compression import LEAST, compress, inflate

PACK = {b"gzip": gzip.compress, b"deflate": zlib.compress}
CODINGS = pytest.mark.parametrize("coding", sorted(PACK))


def reply(body):
    return b"Content-Type: text/x\r\nInference-Header-Content-Length: 3\r\nContent-Length: %d\r\n\r\n%b" % (
        len(body),
        body,
    )


def parts(reply):
    fields, _, body = reply.partition(b"\r\n\r\n")
    return dict(line.split(b": ") for line in fields.split(b"\r\n")), body


@CODINGS
@given(body=st.binary(max_size=300))
def test_what_was_compressed(coding, body):
    assert inflate(PACK[coding](body), coding, 300) == body
    assert inflate(memoryview(PACK[coding](body)), coding, 300) == body


@CODINGS
def test_a_bomb_does_not_go_off(coding):
    bomb = PACK[coding](b"\0" * 10_000_000)
    assert len(bomb) < 10_100
    with pytest.raises(MessageTooLarge, match="the body is larger than 1000 octets when it is decompressed"):
        inflate(bomb, coding, 1000)
    assert len(inflate(bomb, coding, 10_000_000)) == 10_000_000


@CODINGS
@pytest.mark.parametrize("spoil", [lambda b: b[:-1], lambda b: b + b"x", lambda b: b"x" + b, lambda b: b""])
def test_what_is_not_one_whole_stream(coding, spoil):
    with pytest.raises(ProtocolError, match=coding.decode()):
        inflate(spoil(PACK[coding](b"body")), coding, 1000)


@CODINGS
@given(body=st.binary(max_size=100))
def test_whatever_comes_only_errors_of_ours_go(coding, body):
    try:
        plain = inflate(body, coding, 1000)
    except HeadraceError:
        return
    assert len(plain) <= 1000


@CODINGS
def test_a_reply(coding):
    body = b"[" + b"1.5," * LEAST + b"1]\r\n\r\n"  # what looks like the end of a head is none
    fields, packed = parts(compress(reply(body), coding))
    assert inflate(packed, coding, 10 * LEAST) == body
    assert fields == {
        b"Content-Type": b"text/x",
        b"Inference-Header-Content-Length": b"3",
        b"Content-Length": b"%d" % len(packed),
        b"Content-Encoding": coding,
        b"Vary": b"Accept-Encoding",
    }


@CODINGS
@pytest.mark.parametrize("body", [b"", b"x" * (LEAST - 1), random.Random(0).randbytes(2 * LEAST)])
def test_what_is_small_or_does_not_become_smaller_stays_as_it_is(coding, body):
    assert compress(reply(body), coding) == reply(body)
