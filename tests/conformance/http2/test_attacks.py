"""Attacks on memory and patience of a running transport; those that repeat one frame without end are in floods.py.

Each asserts the reaction, what is held meanwhile, that another client is answered, and the count of the limit.
"""

import gzip
from contextlib import ExitStack
from dataclasses import replace

import pytest
from transport.http2 import wire
from transport.http2.bench import CHAT, ECHO, INFER
from transport.http2.wire import (
    CONTINUATION,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    INITIAL_WINDOW,
    data,
    frame,
    goaway,
    grpc_call,
    grpc_head,
    headers,
    literal,
    message,
    ping,
    request_fields,
    settings,
    string,
    window_update,
    word,
)

CALM = "ENHANCE_YOUR_CALM"
NO_WINDOW = wire.hello((INITIAL_WINDOW, 0)) + window_update(0, 1 << 30)
WIDE = wire.hello((INITIAL_WINDOW, 1 << 30)) + window_update(0, 1 << 30)
FIELDS = wire.block(*request_fields(*wire.GRPC, method="POST", path=ECHO))
MIB = 1 << 20


def attack(*arguments):
    """Names a test, or its cases, for reports."""
    return pytest.mark.parametrize("name", [pytest.param(name, id=f"attack {name}") for name in arguments])


def block_frames(stream_id, block):
    """HEADERS and CONTINUATION of a block that is too large for one frame; the request ends with it."""
    pieces = [block[at : at + 16_000] for at in range(0, len(block), 16_000)]
    octets = frame(HEADERS, END_STREAM, stream_id, pieces[0])
    octets += b"".join(frame(CONTINUATION, 0, stream_id, piece) for piece in pieces[1:])
    return octets + frame(CONTINUATION, END_HEADERS, stream_id)


def serves(client, payload=b"m"):
    """Whether somebody is answered, and rightly."""
    return client.call(ECHO, payload) == (0, payload)


def serves_at(client, stream_id):
    return client.call(ECHO, b"m", at=stream_id) == (0, b"m")


def table_size(native, client):
    return native.on_loop(lambda: native.peer(client).connection._heads._decoder._size)


# --- field blocks -----------------------------------------------------------------------------------------------------

BOMBS = {
    "HPACK bomb: a large entry referenced many times": literal("n", "v" * 4000, 0x40) + b"\xbe" * 48_000,
    "HTTP/2 bomb: a tiny entry referenced many times": literal("cookie", "", 0x40) + b"\xbe" * 48_000,
    "field names and values without end": literal("n", "v" * 60_000),
    "many fields": literal("n", "v") * 10_000,
}


@attack(*BOMBS)
def test_a_bomb(start, name):
    """Decoded to its end, for the table's sake, but not kept: the call is refused, the connection goes on."""
    native = start()
    with native.connect() as bad, native.connect() as good:
        for n in range(20):
            bad.send(block_frames(1 + 2 * n, FIELDS + BOMBS[name]))
            assert serves(good)
            assert bad.reply(1 + 2 * n) == (8, None)
            assert table_size(native, bad) <= 4096
            assert native.footprint(bad)[1] == 0
        assert serves_at(bad, 41)
    assert native.limits() == {"header_list": 20}


@attack("HPACK table thrash: every block fills the table anew, and resizes it")
def test_table_thrash(start, name):
    native = start()
    with native.connect() as bad, native.connect() as good:
        for n in range(50):
            inserted = b"".join(literal(f"n{n}-{i}", "", 0x40) for i in range(100))
            sizes = b"\x20\x3f\xe1\x1f" if n % 2 else b""
            bad.send(
                headers(1 + 2 * n, sizes + FIELDS + inserted, end=False) + data(1 + 2 * n, message(b"m"), end=True)
            )
            assert serves(good)
            assert bad.reply(1 + 2 * n) == (0, b"m")
            assert table_size(native, bad) <= 4096
    assert native.limits() == {}


HPACK_LENGTHS = {
    "HPACK integers padded without end": b"\x0f" + b"\x80" * 30,
    "HPACK string of 4 GiB": b"\x00\x7f\x81\xff\xff\xff\x0f",
    "HPACK string of 4 GiB, Huffman": b"\x00\xff\x81\xff\xff\xff\x0f",
}


@attack(*HPACK_LENGTHS)
def test_hpack_lengths(start, name):
    """CVE-2023-33953: refused before anything is reserved or waited for."""
    native = start()
    with native.connect() as bad, native.connect() as good:
        bad.send(headers(1, FIELDS + HPACK_LENGTHS[name]))
        assert bad.end()[-1] == "GOAWAY 1 COMPRESSION_ERROR"
        assert serves(good)


@attack("one field over many CONTINUATION")
def test_one_field_over_many_frames(start, name):
    """It is pieced together once, at the end: as long as it is within the limits it is served."""
    native = start()
    value = b"v" * 15_000
    block = FIELDS + b"\x00" + string("n") + string(value)
    with native.connect() as bad, native.connect() as good:
        bad.send(frame(HEADERS, END_STREAM, 1, block[:1000]))
        for n in range(1, 16):
            bad.send(frame(CONTINUATION, 0, 1, block[1000 * n : 1000 * (n + 1)]))
            assert serves(good)
            assert native.footprint(bad)[0] < 100_000
        bad.send(frame(CONTINUATION, END_HEADERS, 1, block[16_000:]))
        assert bad.reply(1)[0] == 12  # without a message
    assert native.limits() == {}


ODD = {
    "wrong te in fields above the limit": literal("te", "gzip"),
    "wrong :scheme in fields above the limit": literal(":scheme", "\0", 0x40),
    "a field that is not allowed in fields above the limit": literal("connection", "close"),
}


@attack(*ODD)
def test_odd_values_in_large_blocks(start, name):
    """CVE-2023-1428: what is over the limits is not looked at; within them it is malformed."""
    native = start()
    with native.connect() as bad:
        for n in range(20):
            bad.send(block_frames(1 + 2 * n, ODD[name] + FIELDS + literal("n", "v" * 17_000)))
            assert bad.reply(1 + 2 * n) == (8, None)
        bad.send(block_frames(41, FIELDS + ODD[name]))
        assert bad.ping()[-1] == "RST_STREAM 41 PROTOCOL_ERROR"
        assert serves_at(bad, 43)


@attack("MAX_HEADER_LIST_SIZE of nothing, then requests")
def test_reply_header_limit(start, name):
    """CVE-2026-50560: it is advice; replies are as ever."""
    native = start()
    with native.connect(wire.hello((wire.MAX_HEADER_LIST, 0))) as bad:
        for _ in range(50):
            assert serves(bad)


# --- messages ---------------------------------------------------------------------------------------------------------


@attack("messages of an announced 4 GiB")
def test_announced_lengths(start, name):
    native = start()
    with native.connect() as bad, native.connect() as good:
        for n in range(100):
            bad.send(grpc_head(ECHO, 1 + 2 * n) + data(1 + 2 * n, b"\0\xff\xff\xff\xff"))
            assert bad.reply(1 + 2 * n) == (8, None)
            assert native.footprint(bad)[0] < 1000
        assert serves(good)


@attack("gzip of zeros")
def test_gzip_bomb(start, name):
    """100 MB in 100 kB: inflated as far as the limit, and no further."""
    native = start()
    bomb = message(gzip.compress(bytes(100 * MIB), 9)[:90_000], 1)
    with native.connect() as bad, native.connect() as good:
        for n in range(5):
            head = grpc_head(ECHO, 1 + 2 * n, ("grpc-encoding", "gzip"))
            frames = [data(1 + 2 * n, bomb[at : at + 16_384]) for at in range(0, len(bomb), 16_384)]
            bad.send(head, *frames)
            assert bad.reply(1 + 2 * n) == (8, None)
            assert serves(good)
            assert native.footprint(bad)[0] < MIB


@attack("uploads that never end, on many streams")
def test_upload_buffering(start, name):
    native = start(max_message=200_000, max_buffered_bytes=200_000)
    with native.connect() as bad, native.connect() as good:
        for n in range(100):
            bad.send(grpc_head(ECHO, 1 + 2 * n) + data(1 + 2 * n, message(bytes(200_000))[:16_384]))
            assert serves(good)
            assert native.read_all(bad)
            assert native.footprint(bad)[0] <= 200_000
        assert bad.reply(199)[0] == 8
        assert native.limits() == {"buffered_octets": 88}
        native.pass_time(61)
        assert bad.reply(1) == (4, None)
        assert native.footprint(bad) == (0, 0)
    assert native.limits() == {"buffered_octets": 88, "slow_request": 12}


@attack("a message that comes a byte at a time")
def test_slow_writer(start, name):
    native = start()
    with native.connect() as bad, native.connect() as good:
        bad.send(grpc_head(ECHO) + grpc_head(CHAT, 3) + data(1, b"\0" + word(90_000)) + data(3, b"\0" + word(90_000)))
        for _ in range(60):
            bad.send(data(1, b"x") + data(3, b"x"))
            assert native.read_all(bad)
            native.pass_time(1)
            assert serves(good)
        assert native.footprint(bad) == (120, 2)
        native.pass_time(1)
        assert native.footprint(bad) == (0, 0)
        assert bad.reply(1) == bad.reply(3) == (4, None)
        assert bad.reader.fields[1][-1]["headrace-reason"] == "request_too_slow"
        assert serves_at(bad, 5)
    assert native.limits() == {"slow_request": 2}


# --- replies that are not taken ---------------------------------------------------------------------------------------


@attack("windows that are never opened")
def test_window_exhaustion(start, name):
    """CVE-2026-49975 and slow reads: what waits is bounded, and given up after a while; then all begins anew."""
    native = start()
    native.transport.limits = replace(native.transport.limits, max_unsent=2 * MIB)
    native.infer.answer = lambda sink: sink.reply(bytes(200_000))
    with native.connect(NO_WINDOW) as bad, native.connect() as good:
        for n in range(50):
            bad.send(grpc_call(INFER, b"m", 1 + 2 * n))
            assert native.read_all(bad)
            assert serves(good)
            assert native.footprint(bad)[0] <= 2 * MIB + 210_000
        assert len(native.infer.calls) == 11
        assert native.limits() == {"unsent_replies": 39}
        native.pass_time(61)
        assert native.footprint(bad)[1] == 0
        bad.until(f"RST_STREAM 21 {CALM}")
        assert native.limits() == {"unsent_replies": 39, "slow_reader": 11}
        bad.send(grpc_call(INFER, b"m", 101) + window_update(101, 1 << 20))
        assert bad.reply(101) == (0, bytes(200_000))


@attack("a window that is opened now and then by an octet")
def test_slow_reader_by_window(start, name):
    native = start()
    with native.connect(NO_WINDOW) as bad, native.connect() as good:
        bad.send(grpc_call(ECHO, bytes(16_000)))
        for _ in range(61):
            bad.send(window_update(1, 1))
            assert native.read_all(bad)
            assert serves(good)
            native.pass_time(1)
        assert native.footprint(bad)[1] == 0
        bad.until(f"RST_STREAM 1 {CALM}")
        bad.send(settings((INITIAL_WINDOW, 100)))
        assert serves_at(bad, 3)
    assert native.limits() == {"slow_reader": 1}


@attack("a socket that is not read")
def test_internal_data_buffering(start, name):
    """CVE-2019-9517: nothing more is read from whoever does not read, and in the end it is cut off."""
    native = start()
    native.infer.answer = lambda sink: sink.reply(bytes(400_000))
    with native.connect(WIDE) as bad, native.connect() as good:
        sent = 0
        while not native.on_loop(lambda: native.peer(bad)._paused):
            bad.send(b"".join(grpc_call(INFER, b"m", 1 + 2 * n) for n in range(sent, sent + 10)))
            sent += 10
            assert serves(good)
            assert sent < 1000
        held, answered = native.footprint(bad)[0], len(native.infer.calls)
        assert held < 10 * MIB
        bad.send(b"".join(grpc_call(INFER, b"m", 1 + 2 * n) for n in range(sent, sent + 100)))
        for _ in range(10):
            assert serves(good)
        assert len(native.infer.calls) <= answered + 10
        assert native.footprint(bad)[0] <= held + 10 * 410_000
        native.pass_time(61)
        assert native.footprint(bad) == (0, 0)
        assert serves(good)
    assert native.limits() == {"slow_reader": 1}


@attack("SETTINGS and PING whose answers are not read")
def test_answers_that_are_not_read(start, name):
    """Where calls pay for the pings: the queue of answers is bounded by the socket's own buffers."""
    native = start()
    with native.connect(WIDE) as bad, native.connect() as good:
        for n in range(200):
            bad.send(grpc_call(ECHO, b"m", 1 + 2 * n) + ping() * 2 + settings())
            assert native.footprint(bad)[0] < MIB
        assert serves(good)
        assert native.read_all(bad)


# --- frames and connections that do not go on -------------------------------------------------------------------------


HALF = {
    "half a frame, then silence": grpc_call(ECHO, b"m")[:-3],
    "half a field block, then silence": frame(HEADERS, 0, 1, FIELDS),
    "half a frame header, then silence": ping()[:4],
}


@attack(*HALF)
def test_slow_headers(start, name):
    native = start()
    with native.connect() as bad, native.connect() as good:
        bad.send(HALF[name])
        native.pass_time(60)
        assert not native.limits()
        native.pass_time(1)
        assert bad.end()[-1].endswith(CALM)
        assert serves(good)
    assert native.limits() == {"slow_frame": 1}


@attack("half a field block, then octets one by one")
def test_slow_headers_by_octets(start, name):
    native = start()
    with native.connect() as bad, native.connect() as good:
        octets = frame(HEADERS, END_HEADERS, 1, FIELDS + literal("n", "v" * 10_000))
        for n in range(61):
            bad.send(octets[n : n + 1])
            assert native.read_all(bad)
            native.pass_time(1)
            assert serves(good)
        assert bad.end()[-1] == f"GOAWAY 0 {CALM}"
    assert native.limits() == {"slow_frame": 1}


@attack("half-open: a peer that is gone, or says nothing")
def test_half_open(start, name):
    native = start(keepalive_s=10, keepalive_timeout_s=5)
    with native.connect() as silent, native.connect() as good, native.connect() as gone:
        for client in (silent, good, gone):
            client.until("SETTINGS ACK")
        gone.vanish()
        native.eventually(lambda: len(native.transport.peers) == 2)
        for _ in range(17):
            native.pass_time(1)
            assert serves(good)
        assert silent.end()[-1].startswith("PING keep-hr")
    assert native.limits() == {"keepalive_timeout": 1}


@attack("connections that do nothing")
def test_idle_connections(start, name):
    """Only a server that is told to closes them: many clients keep a connection for the next call."""
    native = start(idle_timeout_s=30)
    with native.connect() as idle, native.connect() as good:
        for _ in range(31):
            native.pass_time(1)
            assert serves(good)
        assert idle.end()[-1] == "GOAWAY 0 NO_ERROR"
    assert native.limits() == {"idle_timeout": 1}


@attack("too many connections")
def test_too_many_connections(start, name):
    native = start(max_connections=20)
    with ExitStack() as stack:
        good = stack.enter_context(native.connect())
        assert serves(good)
        for _ in range(19):
            assert serves(stack.enter_context(native.connect()))
        told = [stack.enter_context(native.connect()) for _ in range(64)]  # so many may still ask, and are refused
        for _ in range(50):
            with native.connect(b"") as late:
                late.end()
            assert native.on_loop(lambda: len(native.transport.peers)) <= 85
            assert serves(good)
        assert native.limits() == {"connections": 114}
        assert not serves(told[0])
    native.eventually(lambda: not native.transport.peers)
    with native.connect() as client:
        assert serves(client)


@attack("too many streams")
def test_too_many_streams(start, name):
    """Those within the limit are served all the same."""
    native = start(max_concurrent_streams=10)
    with native.connect() as bad, native.connect() as good:
        bad.ping()
        bad.send(b"".join(grpc_head(ECHO, 1 + 2 * n) for n in range(30)))
        assert native.read_all(bad)
        assert native.footprint(bad)[1] == 10
        assert serves(good)
        bad.send(b"".join(data(1 + 2 * n, message(b"m"), end=True) for n in range(10)))
        for n in range(10):
            assert bad.reply(1 + 2 * n) == (0, b"m")
        assert [line for line in bad.lines if line.startswith("RST_STREAM")] == [
            f"RST_STREAM {1 + 2 * n} REFUSED_STREAM" for n in range(10, 30)
        ]
    assert native.limits() == {"streams": 20}


@attack("streams after the client's own GOAWAY")
def test_goaway_abuse(start, name):
    """It may not hold the connection open by them for longer than they take."""
    native = start()
    with native.connect() as bad:
        bad.send(grpc_call(INFER) + goaway(2**31 - 1, 0xFF, bytes(16_000)) + grpc_call(ECHO, b"m", 3))
        assert bad.reply(3) == (0, b"m")
        native.pass_time(1)
        native.on_loop(lambda: native.infer.calls[0].sink.reply(b"reply"))
        assert bad.reply(1) == (0, b"reply")
        native.pass_time(1)
        bad.end()


@attack("octets that are no HTTP/2")
def test_not_http2(start, name):
    native = start()
    with native.connect() as good:
        for octets in (
            b"GET / HTTP/1.1\r\n\r\n",
            bytes(100),
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
            wire.PREFACE[3:] * 2,
        ):
            with native.connect(octets) as bad:
                assert bad.end()[-1] == "GOAWAY 0 PROTOCOL_ERROR"
            assert serves(good)
