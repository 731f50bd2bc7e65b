"""ModelStreamInfer through a whole native connection, without a socket and in virtual time."""

import gzip

import pytest
from transport.http2 import bench as benches
from transport.http2.bench import INFER_STREAM, MAX_MESSAGE
from transport.http2.wire import data, grpc_call, grpc_head, message, rst, window_update

from headrace.errors import InvalidRequest
from headrace.rpc import inference_pb2 as pb
from headrace.transport import infer_stream

OK = (0, "")
TRAILERS = "HEADERS 1 trailers END_STREAM"
NO_ERROR = "RST_STREAM 1 NO_ERROR"


@pytest.fixture
def bench():
    with benches.bench() as made:
        yield made


@pytest.fixture
def client(bench):
    return bench.connect()


def echo(call):
    """Answers with an id that is the message."""
    text = bytes(call.under_way.message).decode()
    call.under_way.finished = True
    call.reply(pb.ModelInferResponse(id=text).SerializeToString())


def replies(client, stream_id=1):
    found = map(pb.ModelStreamInferResponse.FromString, client.messages(stream_id))
    return [reply.error_message or reply.infer_response.id for reply in found]


def answer(bench, index, text="?"):
    """Answers the call of this number, at a turn of the loop."""
    work = bench.infer.calls[index]
    work.finished = True
    bench.loop.call_soon(work.sink.reply, pb.ModelInferResponse(id=text).SerializeToString())


def test_messages_in_and_out(bench, client):
    bench.infer.answer = echo
    assert client.send(grpc_head(INFER_STREAM)) == []
    assert client.send(data(1, message(b"a") + message(b"b")))[0] == "HEADERS 1 200"
    assert client.send(data(1, message(b"c"))) != []
    assert client.send(data(1, end=True)) == [TRAILERS]
    assert (replies(client), client.status()) == (["a", "b", "c"], OK)


def test_a_stream_without_messages(client):
    assert client.send(grpc_head(INFER_STREAM, end=True)) == ["HEADERS 1 200 END_STREAM"]
    assert client.status() == OK


def test_all_of_one_turn_leave_in_one_frame(bench, client):
    bench.infer.answer = echo
    lines = client.send(grpc_head(INFER_STREAM) + data(1, message(b"a") + message(b"b")) + data(1, message(b"c")))
    assert [line.split()[0] for line in lines] == ["HEADERS", "DATA"]


@pytest.mark.parametrize("size", [1, 3, 5, 6, 7, 11, 13])
def test_messages_lie_as_they_like_in_frames(bench, client, size):
    bench.infer.answer = echo
    octets = b"".join(message(text) for text in (b"", b"one", b"two" * 10, b"", b"x"))
    pieces = [octets[at : at + size] for at in range(0, len(octets), size)]
    client.send(grpc_head(INFER_STREAM), *(data(1, piece) for piece in pieces[:-1]), data(1, pieces[-1], end=True))
    assert (replies(client), client.status()) == (["", "one", "two" * 10, "", "x"], OK)


def test_large_and_compressed_messages(bench, client):
    bench.infer.answer = echo
    large = b"y" * 90_000
    pieces = [message(large)[at : at + 16_000] for at in range(0, 90_005, 16_000)]
    client.send(
        grpc_head(INFER_STREAM, 1, ("grpc-encoding", "gzip")),
        *(data(1, piece) for piece in pieces),
        data(1, message(gzip.compress(b"small"), flag=1), end=True),
    )
    assert replies(client) == [large.decode(), "small"]


def test_replies_leave_in_the_order_of_the_requests(bench, client):
    client.send(grpc_head(INFER_STREAM) + data(1, message(b"a") + message(b"b"), end=True))
    answer(bench, 1, "b")
    assert client.lines() == []
    answer(bench, 0, "a")
    assert client.lines()[-1] == TRAILERS
    assert replies(client) == ["a", "b"]


def test_an_error_stays_in_the_stream(bench, client):
    client.send(grpc_head(INFER_STREAM) + data(1, message(b"a") + message(b"b"), end=True))
    bench.infer.calls[0].finished = True
    bench.loop.call_soon(bench.infer.calls[0].sink.fail, InvalidRequest("wrong"))
    client.lines()
    answer(bench, 1, "b")
    client.lines()
    assert (replies(client), client.status()) == (["wrong", "b"], OK)


def test_an_error_ends_a_stream_that_asks_for_it(bench, client):
    client.send(grpc_head(INFER_STREAM, 1, ("triton_grpc_error", "true")) + data(1, message(b"a") + message(b"b")))
    answer(bench, 1, "never")
    bench.infer.calls[0].finished = True
    bench.loop.call_soon(bench.infer.calls[0].sink.fail, InvalidRequest("wrong"))
    assert client.lines() == ["HEADERS 1 200 END_STREAM", NO_ERROR]
    assert client.status() == (3, "wrong")


def test_nothing_is_kept_of_what_waited_behind_such_an_error(bench, client):
    asks = grpc_head(INFER_STREAM, 1, ("triton_grpc_error", "true"))
    client.send(asks + data(1, message(b"abc") * (infer_stream.MAX_IN_FLIGHT + 5)))
    assert client.peer.buffered > 0
    bench.infer.calls[0].finished = True
    bench.loop.call_soon(bench.infer.calls[0].sink.fail, InvalidRequest("wrong"))
    client.lines()
    assert (client.status(), client.peer.buffered) == ((3, "wrong"), 0)
    assert client.connection.lingering == bench.infer.calls[1:]  # they count as streams until they have ended


def test_nothing_is_begun_behind_such_an_error(bench, client):
    client.send(grpc_head(INFER_STREAM, 1, ("triton_grpc_error", "true")) + data(1, message(b"a")))
    bench.infer.calls[0].finished = True
    bench.loop.call_soon(bench.infer.calls[0].sink.fail, InvalidRequest("wrong"))
    bench.infer.answer = echo
    client.send(data(1, message(b"b")))  # in the same turn
    assert (len(bench.infer.calls), replies(client), client.status()) == (1, [], (3, "wrong"))


def test_so_many_are_at_work_and_then_the_client_waits(bench, client):
    count = 3 * infer_stream.MAX_IN_FLIGHT
    window = client.connection.limits.initial_window
    payload = b"z" * (window // infer_stream.MAX_IN_FLIGHT)
    frames = [data(1, message(payload)) for _ in range(count)]
    client.send(grpc_head(INFER_STREAM), *frames[: count // 2])
    assert len(bench.infer.calls) == infer_stream.MAX_IN_FLIGHT
    assert client.peer.buffered > 0
    bench.infer.answer = lambda call: call.reply(b"")
    for index in range(infer_stream.MAX_IN_FLIGHT):
        answer(bench, index)
    lines = client.lines()
    assert client.peer.buffered == 0
    assert any(line.startswith("WINDOW_UPDATE 1") for line in lines)
    client.send(*frames[count // 2 :], data(1, end=True))
    assert (len(replies(client)), client.status()) == (count, OK)


def test_a_client_that_does_not_read_gets_no_more_done(bench):
    client = bench.connect(benches.wire.hello((benches.wire.INITIAL_WINDOW, 100)))
    bench.infer.answer = echo
    client.send(grpc_head(INFER_STREAM) + data(1, message(b"a" * 200)))
    assert len(bench.infer.calls) == 1
    client.send(*(data(1, message(b"b")) for _ in range(5)))
    assert len(bench.infer.calls) == 1
    client.send(window_update(1, 10_000))
    assert len(bench.infer.calls) == 6
    assert client.send(data(1, end=True)) == [TRAILERS]
    assert replies(client) == ["a" * 200, *"bbbbb"]


def test_a_client_that_does_not_read_its_socket(bench, client):
    client.send(grpc_head(INFER_STREAM) + data(1, message(b"a"), end=True))
    client.stop_reading()
    answer(bench, 0, "a")
    assert client.lines() == []
    assert client.go_on_reading()[-1] == TRAILERS
    assert replies(client) == ["a"]


def test_cancelled(bench, client):
    client.send(grpc_head(INFER_STREAM) + data(1, message(b"a") + message(b"b")))
    answer(bench, 0, "a")
    client.lines()
    assert client.send(rst(1)) == []
    first, second = bench.infer.calls
    assert (first.cancelled, second.cancelled) == (0, 1)
    assert client.connection.lingering == [second]
    assert client.peer.buffered == 0


def test_the_deadline_is_that_of_the_requests_and_of_the_call(bench, client):
    start = bench.loop.clock()
    client.send(grpc_head(INFER_STREAM, 1, ("grpc-timeout", "2S")) + data(1, message(b"a")))
    assert bench.infer.calls[0].deadline == start + 2 * benches.SECOND
    bench.loop.run_for(2 * benches.SECOND)
    assert client.lines() == ["HEADERS 1 200 END_STREAM", NO_ERROR]
    assert client.status() == (4, "Deadline exceeded")
    assert bench.infer.calls[0].cancelled == 1


def test_the_server_leaves(bench, client):
    """What is at work is answered; what comes after that is not taken."""
    client.send(grpc_head(INFER_STREAM) + data(1, message(b"a")))
    bench.loop.call_soon(client.peer.drain)
    client.lines()
    client.send(data(1, message(b"late")))
    assert len(bench.infer.calls) == 1
    answer(bench, 0, "a")
    client.lines()
    assert replies(client) == ["a"]
    assert client.status() == (14, "Server is shutting down")


def test_an_idle_stream_ends_when_the_server_leaves(bench, client):
    client.send(grpc_head(INFER_STREAM))
    bench.loop.call_soon(client.peer.drain)
    client.lines()
    assert client.status() == (14, "Server is shutting down")


@pytest.mark.parametrize(
    ("octets", "code", "text"),
    [
        (data(1, b"\0\0\0\0\x05abc", end=True), 13, "the call ended inside a message"),
        (data(1, b"\x02\0\0\0\0"), 13, "message flag 2"),
        (data(1, b"\x01\0\0\0\0"), 13, "a compressed message, but no grpc-encoding"),
        (data(1, b"\0" + (MAX_MESSAGE + 1).to_bytes(4, "big")), 8, "Received message larger than max"),
    ],
)
def test_broken_framing_ends_the_call(client, octets, code, text):
    client.send(grpc_head(INFER_STREAM) + data(1, message(b"a")), octets)
    status, says = client.status()
    assert (status, says.startswith(text)) == (code, True)


def test_a_message_too_large_behind_some_that_wait():
    with benches.bench(max_message=100) as bench:
        client = bench.connect()
        some = message(b"abc") * (infer_stream.MAX_IN_FLIGHT + 5)
        client.send(grpc_head(INFER_STREAM) + data(1, some + message(b"x" * 101)))
        assert client.status() == (8, "Received message larger than max (101 vs. 100)")
        assert client.peer.buffered == 0


def test_what_comes_behind_the_end_in_a_run_of_frames_is_an_error_of_that_stream(bench, client):
    """As it is anywhere else: the frames before it are the inside of another stream's message."""
    octets = message(b"y" * 90_000)
    pieces = [octets[at : at + 15_001] for at in range(0, 90_000, 15_001)]
    client.send(grpc_head(INFER_STREAM, 1) + grpc_head(INFER_STREAM, 3), *(data(1, piece) for piece in pieces[:-1]))
    client.send(data(1, pieces[-1], end=True))
    lines = client.send(data(3, pieces[0]), data(3, pieces[1]) + data(1, pieces[2]) + data(3, pieces[2]))
    assert "RST_STREAM 1 STREAM_CLOSED" in lines
    bench.infer.answer = echo
    client.send(*(data(3, piece) for piece in pieces[3:]), data(3, end=True))
    assert (len(replies(client, 3)), client.status(3)) == (1, OK)


def test_a_call_with_everything_at_once(bench, client):
    bench.infer.answer = echo
    client.send(grpc_call(INFER_STREAM, b"a"))
    assert (replies(client), client.status()) == (["a"], OK)


def test_window_updates_for_each_message_are_borne(bench, client):
    """As C-core sends them, while one frame of ours holds the replies of a turn."""
    bench.infer.answer = echo
    client.send(grpc_head(INFER_STREAM))
    for _ in range(60):
        request = data(1, message(b"x")) + window_update(1, 5) + window_update(0, 5)
        client.send(request * 200)
    assert client.send(data(1, end=True)) == [TRAILERS]
    assert (len(replies(client)), client.status()) == (12_000, OK)
