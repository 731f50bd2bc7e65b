"""Calls through a whole native connection, without a socket and in virtual time."""

import gzip
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transport.http2 import bench as benches
from transport.http2 import wire
from transport.http2.bench import (
    CHAT,
    CRASH,
    ECHO,
    FAIL,
    INFER,
    MAX_MESSAGE,
    SECOND,
)
from transport.http2.wire import data, grpc_call, grpc_head, message, rst, window_update, word

from headrace.errors import DeadlineExceeded, QueueFull
from headrace.transport.grpc_head import NOT_GRPC

OK = (0, "")
NO_ERROR = "RST_STREAM 1 NO_ERROR"
TRAILERS = "HEADERS 1 trailers END_STREAM"
TRAILERS_ONLY = "HEADERS 1 200 END_STREAM"


def reply(size, stream_id=1):
    return [f"HEADERS {stream_id} 200", f"DATA {stream_id} {5 + size}", f"HEADERS {stream_id} trailers END_STREAM"]


@pytest.fixture
def bench():
    with benches.bench() as made:
        yield made


@pytest.fixture
def client(bench):
    return bench.connect()


# --- unary ------------------------------------------------------------------------------------------------------------


def test_a_unary_call(client):
    assert client.send(grpc_call(ECHO, b"hello")) == reply(5)
    opening, closing = client.reader.fields[1]
    assert opening == {":status": "200", "content-type": "application/grpc"}
    assert closing == {"grpc-status": "0"}
    assert client.messages() == [b"hello"]


def test_calls_on_one_connection(client):
    lines = client.send(b"".join(grpc_call(ECHO, b"x" * n, 1 + 2 * n) for n in range(50)))
    assert lines == [line for n in range(50) for line in reply(n, 1 + 2 * n)]


def test_an_empty_message(client):
    client.send(grpc_call(ECHO, b""))
    assert (client.messages(), client.status()) == ([b""], OK)


@pytest.mark.parametrize(
    "more",
    [
        (),
        (("content-type", "APPLICATION/GRPC"),),
        (("content-type", "application/grpc+proto"), ("te", "trailers")),
        (("content-type", "application/grpc"), ("x-bin", "YQ==,YWI=, YWJj"), ("x-bin", "YQ")),
        (("content-type", "application/grpc"), ("grpc-encoding", "identity"), ("user-agent", b"\x80")),
    ],
)
def test_what_is_served_all_the_same(client, more):
    """Without `te` and `:authority`, in upper case, with joined and unpadded binary metadata."""
    fields = (*wire.request_fields(method="POST", path=ECHO)[:3], *(more or wire.GRPC))
    client.send(wire.headers(1, fields, end=False) + data(1, message(b"m"), end=True))
    assert (client.messages(), client.status()) == ([b"m"], OK)


@pytest.mark.parametrize(
    ("path", "more", "code", "says"),
    [
        ("/test.Unary/Nothing", (), 12, "unknown method /test.Unary/Nothing"),
        ("/nothing/Echo", (), 12, "unknown method /nothing/Echo"),
        (ECHO[1:], (), 12, "unknown method test.Unary/Echo"),
        (ECHO.upper(), (), 12, "unknown method"),
        (ECHO, (("grpc-timeout", "5"),), 13, "grpc-timeout '5'"),
        (ECHO, (("grpc-timeout", "0m"),), 4, "Deadline exceeded"),
        (ECHO, (("x-bin", "?"),), 13, "x-bin is not valid base64"),
        (ECHO, (("grpc-encoding", "zip"),), 12, "grpc-encoding zip is not supported"),
        (ECHO, (("x", "y" * 8_000),) * 3, 8, "headers are too large"),
        (ECHO, (("x", ""),) * 130, 8, "headers are too large"),
        (CHAT, (("grpc-timeout", "0m"),), 4, "Deadline exceeded"),
        (CHAT, (("grpc-timeout", "x"),), 13, "grpc-timeout 'x'"),
    ],
)
def test_a_head_that_is_refused(client, path, more, code, says):
    """By trailers alone, at once; what the client still sends is dropped, and all of it credited."""
    fields = wire.block(*wire.request_fields(*wire.GRPC, *more, method="POST", path=path))
    pieces = [fields[at : at + 16_000] for at in range(0, len(fields), 16_000)] + [b""]
    head = wire.frame(wire.HEADERS, 0, 1, pieces[0])
    head += b"".join(wire.frame(wire.CONTINUATION, 0, 1, piece) for piece in pieces[1:-1])
    head += wire.frame(wire.CONTINUATION, wire.END_HEADERS, 1, b"")
    assert client.send(head) == [TRAILERS_ONLY, NO_ERROR]
    status, text = client.status()
    assert status == code
    assert says in text
    assert client.reader.fields[1][0][":status"] == "200"
    assert client.send(data(1, bytes(16_384)) * 520 + data(1, end=True)) == ["WINDOW_UPDATE 0 8388608"]
    client.send(grpc_call(ECHO, b"m", 3))
    assert client.status(3) == OK


def test_not_grpc_is_answered_in_http(client):
    """With a body, once all is said; and with a status for gRPC clients behind a proxy."""
    assert client.send(wire.post() + data(1, b"x")) == []
    assert client.send(data(1, b"y", end=True)) == ["HEADERS 1 415", f"DATA 1 {len(NOT_GRPC)} END_STREAM"]
    assert client.send(wire.get(3)) == ["HEADERS 3 405", f"DATA 3 {len(NOT_GRPC)} END_STREAM"]
    assert client.reader.fields[3][0]["allow"] == "POST"
    assert client.reader.bodies[1] == NOT_GRPC
    assert client.send(wire.headers(5, wire.request_fields(method="HEAD"))) == ["HEADERS 5 405 END_STREAM"]


def test_not_grpc_is_answered_before_its_upload_stalls(client):
    """The window of a stream that nobody reads is not opened again; the answer comes before it is shut."""
    client.send(wire.post())
    lines = client.send(*[data(1, bytes(16_384)) for _ in range(64)])
    assert lines == ["HEADERS 1 415", f"DATA 1 {len(NOT_GRPC)} END_STREAM", NO_ERROR]


@pytest.mark.parametrize(
    ("octets", "more", "code", "says"),
    [
        (b"", (), 12, "without a request message"),
        (message(b"a") + message(b"b"), (), 12, "more than one"),
        (message(b"abc")[:-1], (), 13, "inside a message"),
        (message(b"abc")[:3], (), 13, "inside a message"),
        (message(b"abc") + b"\0", (), 13, "inside a message"),
        (message(b"abc", 2), (), 13, "message flag 2"),
        (message(gzip.compress(b"abc", mtime=0), 1), (), 13, "no grpc-encoding"),
        (message(b"not gzip", 1), (("grpc-encoding", "gzip"),), 13, "not gzip"),
        (
            message(gzip.compress(bytes(MAX_MESSAGE + 1), mtime=0), 1),
            (("grpc-encoding", "gzip"),),
            8,
            "larger than max",
        ),
        (message(bytes(MAX_MESSAGE + 1)), (), 8, f"larger than max ({MAX_MESSAGE + 1} vs. {MAX_MESSAGE})"),
    ],
)
@pytest.mark.parametrize("size", [3, 16_384])
def test_a_body_that_is_refused(client, octets, more, code, says, size):
    pieces = [octets[at : at + size] for at in range(0, len(octets), size)] or [b""]
    frames = [data(1, piece, end=n == len(pieces) - 1) for n, piece in enumerate(pieces)]
    client.send(grpc_head(ECHO, 1, *more), *frames[:1000])  # the first few decide about the large ones
    status, text = client.status()
    assert status == code
    assert says in text
    assert client.messages() == []


def test_gzip_comes_in(client):
    client.send(grpc_head(ECHO, 1, ("grpc-encoding", "gzip")) + data(1, message(gzip.compress(b"abc"), 1), end=True))
    client.send(grpc_head(ECHO, 3, ("grpc-encoding", "gzip")) + data(3, message(b"plain"), end=True))
    assert (client.messages(1), client.messages(3)) == ([b"abc"], [b"plain"])


def test_a_message_above_the_limit_is_refused_on_its_prefix(client):
    """Before its octets, which the client is asked not to send."""
    lines = client.send(grpc_head(ECHO) + data(1, b"\0" + word(MAX_MESSAGE + 1)))
    assert lines == [TRAILERS_ONLY, NO_ERROR]
    assert client.status()[0] == 8


def test_the_request_ends_in_trailers(client):
    assert client.send(grpc_head(ECHO) + data(1, message(b"m")) + wire.headers(1, [("x", "y")])) == reply(1)


def test_a_call_that_ends_with_its_head(client):
    client.send(grpc_head(ECHO, end=True))
    assert client.status()[0] == 12


@given(st.binary(max_size=40), st.data())
def test_any_split_over_frames_and_reads(payload, draw):
    with benches.bench() as made:
        client = made.connect()
        octets = message(payload)
        cuts = sorted(draw.draw(st.lists(st.integers(0, len(octets)), max_size=4)))
        pieces = [octets[a:b] for a, b in zip([0, *cuts], [*cuts, len(octets)], strict=True)]
        padding = draw.draw(st.sampled_from([None, 0, 7]))
        sent = grpc_head(ECHO) + b"".join(
            data(1, piece, end=n == len(cuts), padding=padding) for n, piece in enumerate(pieces)
        )
        reads = sorted(draw.draw(st.lists(st.integers(0, len(sent)), max_size=4)))
        client.send(*[sent[a:b] for a, b in zip([0, *reads], [*reads, len(sent)], strict=True)])
        assert (client.messages(), client.status()) == ([payload], OK)
        assert client.connection.streams == {}


def test_a_handlers_refusal(bench):
    client = bench.call(FAIL)
    assert client.status() == (3, "bad value ☃\n")
    assert client.reader.fields[1][-1]["grpc-message"] == "bad value %E2%98%83%0A"
    assert client.reader.fields[1][-1]["headrace-reason"] == "invalid_request"


def test_a_handlers_bug_is_not_shown(bench, caplog):
    with caplog.at_level(logging.ERROR):
        status, text = bench.call(CRASH).status()
    assert status == 13
    assert "secret" not in text
    assert text.removeprefix("internal error, correlation id ") in caplog.text
    assert "a secret" in caplog.text


# --- inference --------------------------------------------------------------------------------------------------------


def test_an_inference_is_answered_later(bench, client):
    assert client.send(grpc_call(INFER, b"request")) == []
    (work,) = bench.infer.calls
    assert (work.message, work.received, work.deadline) == (b"request", bench.loop.clock.now, 0)
    work.sink.reply(b"reply")
    assert client.lines() == reply(5)
    work.sink.reply(b"again")
    work.sink.fail(QueueFull("again"))
    assert client.lines() == []
    assert work.cancelled == 0


def test_an_inference_fails(bench, client):
    client.send(grpc_call(INFER))
    bench.infer.calls[0].sink.fail(QueueFull("the queue is full"))
    assert client.lines() == [TRAILERS_ONLY]
    assert client.status() == (14, "the queue is full")
    assert client.reader.fields[1][0]["grpc-retry-pushback-ms"] == "-1"


def test_an_inference_is_cancelled(bench, client):
    client.send(grpc_call(INFER))
    (work,) = bench.infer.calls
    assert "under way" in repr(client.connection.streams[1])
    assert client.send(rst(1)) == []
    assert work.cancelled == 1
    work.sink.reply(b"too late")
    work.sink.fail(DeadlineExceeded("too late"))
    assert client.lines() == []


def test_an_inference_is_cancelled_before_it_is_taken(bench, client):
    bench.infer.slow = True
    client.send(grpc_call(INFER, b"request"))
    (work,) = bench.infer.calls
    assert work.sink.request == b"request"
    client.send(rst(1))
    assert work.sink.request is None
    client.send(grpc_call(INFER, b"request", 3, ("grpc-timeout", "1S")))
    bench.wait(1)
    assert client.lines() == ["HEADERS 3 200 END_STREAM"]
    assert client.status(3)[0] == 4
    assert bench.infer.calls[1].sink.request is None


def test_an_inference_is_cancelled_with_its_connection(bench, client):
    client.send(grpc_call(INFER, b"", 1) + grpc_call(INFER, b"", 3))
    client.hang_up()
    assert [work.cancelled for work in bench.infer.calls] == [1, 1]


def test_cancelled_work_that_runs_on_counts_as_open():
    """A client cannot start more work than it may have streams by resetting them (CVE-2023-44487)."""
    with benches.bench(max_concurrent_streams=3) as made:
        client = made.connect()
        for stream_id in (1, 3, 5):
            assert client.send(grpc_call(INFER, b"", stream_id) + rst(stream_id)) == []
        assert client.send(grpc_call(INFER, b"", 7)) == ["RST_STREAM 7 REFUSED_STREAM"]
        made.infer.calls[1].finished = True
        assert client.send(grpc_call(INFER, b"", 9)) == []
        assert client.send(grpc_call(INFER, b"", 11)) == ["RST_STREAM 11 REFUSED_STREAM"]
        assert len(made.infer.calls) == 4


def test_an_inference_may_be_answered_at_once(bench, client):
    """Nothing is cancelled when the reply is reset while it waits for the client."""
    bench.infer.answer = lambda sink: sink.reply(b"at once")
    assert client.send(wire.settings((wire.INITIAL_WINDOW, 3)), grpc_call(INFER))[1:] == ["HEADERS 1 200", "DATA 1 3"]
    assert client.send(rst(1)) == []
    assert bench.infer.calls[0].cancelled == 0
    assert client.connection.lingering == []


def test_deadlines_run_from_the_head(bench, client):
    start = bench.loop.clock.now
    client.send(grpc_head(INFER, 1, ("grpc-timeout", "5S")))
    client.send(grpc_head(INFER, 3, ("grpc-timeout", "700m")) + data(3, message(b"three"), end=True))
    bench.wait(2)
    client.send(data(1, message(b"one"), end=True))
    three, one = bench.infer.calls
    assert (three.received, three.deadline) == (start, start + 7 * SECOND // 10)
    assert (one.received, one.deadline) == (start + 2 * SECOND, start + 5 * SECOND)


def test_a_deadline_passes_before_the_request_is_complete(bench, client):
    client.send(grpc_head(INFER, 1, ("grpc-timeout", "3S")) + data(1, message(b"m")[:-1]))
    client.send(grpc_head(INFER, 3) + data(3, message(b"m")[:-1]))
    bench.wait(2)
    assert client.lines() == []
    bench.wait(1)
    assert client.lines() == [TRAILERS_ONLY, NO_ERROR]
    assert client.status()[0] == 4
    assert list(client.connection.streams) == [3]


def test_a_deadline_of_a_request_under_way_is_the_engines(bench, client):
    client.send(grpc_call(INFER, b"", 1, ("grpc-timeout", "1S")))
    bench.wait(5)
    assert client.lines() == []


# --- memory and windows ----------------------------------------------------------------------------------------------


def test_a_message_larger_than_the_window():
    with benches.bench(max_message=4 << 20, initial_window_bytes=65_535, connection_window_bytes=65_535) as made:
        client = made.connect()
        payload = bytes(range(256)) * 8192
        octets = grpc_head(ECHO), *[data(1, message(payload)[at : at + 16_384]) for at in range(0, 2_097_157, 16_384)]
        windows = {0: 65_535, 1: 65_535}
        for frame in octets:
            if frame[3] == wire.DATA:
                for window in windows:
                    windows[window] -= len(frame) - 9
            assert min(windows.values()) >= 0
            for line in client.send(frame):
                kind, at, increment = line.split()
                assert kind == "WINDOW_UPDATE"
                windows[int(at)] += int(increment)
        client.send(data(1, end=True) + window_update(0, 4 << 20) + window_update(1, 4 << 20))
        assert client.messages() == [payload]


def test_what_a_connection_may_hold():
    """Parts of messages, and whole ones whose call goes on: all count."""
    with benches.bench(max_message=100_000, max_buffered_bytes=100_000) as made:
        client = made.connect()
        part = (b"\0" + word(50_000) + bytes(50_000))[:30_000]
        assert client.send(grpc_head(ECHO, 1) + data(1, part[:16_000]) + data(1, part[16_000:])) == []
        assert client.peer.buffered == 29_995
        assert client.send(grpc_head(ECHO, 3) + data(3, message(bytes(16_000))) + data(3)) == []
        assert client.peer.buffered == 45_995
        for stream_id in (5, 7, 9):
            client.send(grpc_head(ECHO, stream_id) + data(stream_id, message(bytes(16_000))))
        assert client.peer.buffered == 93_995
        lines = client.send(grpc_head(ECHO, 11) + data(11, message(bytes(16_000))))
        assert lines == ["HEADERS 11 200 END_STREAM", "RST_STREAM 11 NO_ERROR"]
        status, text = client.status(11)
        assert status == 8
        assert "more than 100000 octets" in text
        assert client.peer.buffered == 93_995
        client.send(rst(5) + data(7, end=True) + data(9, message(b"second")))
        assert client.peer.buffered == 45_995
        client.send(data(1, bytes(10_000)) + data(1, bytes(10_005), end=True))
        assert client.messages(1) == [bytes(50_000)]
        assert client.peer.buffered == 16_000
        client.send(data(3, message(b"", 7)))
        assert client.peer.buffered == 0


def test_a_large_part_in_the_middle_of_a_message_counts_at_once():
    with benches.bench(max_message=20_000, max_buffered_bytes=20_000) as made:
        client = made.connect()
        for stream_id in (1, 3):
            client.send(grpc_head(ECHO, stream_id) + data(stream_id, message(bytes(15_000))[:5]))
        assert client.send(data(1, bytes(14_000))) == []
        assert client.send(data(3, bytes(14_000)))[0] == "HEADERS 3 200 END_STREAM"
        assert client.peer.buffered == 14_000


def test_replies_wait_for_the_clients_windows(client):
    client.send(wire.settings((wire.INITIAL_WINDOW, 10)))
    assert client.send(grpc_call(ECHO, b"0123456789")) == ["HEADERS 1 200", "DATA 1 10"]
    assert client.send(window_update(1, 100)) == ["DATA 1 5", TRAILERS]
    assert client.messages() == [b"0123456789"]


def test_repr(client):
    client.send(grpc_head(ECHO, 1) + grpc_head(CHAT, 3))
    assert repr(client.connection.streams[1]) == f"<Call 1 {ECHO} receiving>"
    assert repr(client.connection.streams[3]) == f"<StreamCall 3 {CHAT} receiving>"
    assert "2 streams, last 3" in repr(client.peer)
