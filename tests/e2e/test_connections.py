"""Peers that misbehave hurt themselves alone."""

import contextlib
import random
import socket

import grpc
import pytest
from e2e.calls import SECONDS, connect, failure, floats, output, request
from e2e.gated import HELD, let_go
from e2e.h2_client import PREFACE, H2Client
from e2e.onnx_models import WIDTH
from e2e.server_process import eventually
from grpc import StatusCode
from hyperframe.frame import DataFrame, PingFrame
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

ROW = floats([1, 2, 3, 4])
native_only = pytest.mark.parametrize("transport", ["native", "workers"], indirect=True)
"""For what HTTP/2 demands and grpcio does not do."""


def served(stub):
    """Whether somebody else is served."""
    return output(stub.ModelInfer(request("echo_fp32", x=ROW), timeout=SECONDS)).tolist() == ROW.tolist()


def closed(connection):
    """Reads until the server has closed the connection."""
    with contextlib.suppress(ConnectionResetError):
        while connection.recv(1 << 16):
            pass


NOISE = random.Random(0).randbytes(5000)


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        NOISE,
        PREFACE + b"\xff" * 100,
        PREFACE + b"\0\0\0\4\0\0\0\0\0" + b"\xff\xff\xff\x00\0\0\0\0\1" + NOISE,
        PREFACE + b"\0\0\0\4\0\0\0\0\0" + b"\0\0\x05\x01\x05\0\0\0\1" + b"\xff\xff\xff\xff\xff",
        PREFACE + b"\0\0\0\4\0\0\0\0\0" + b"\0\0\1\0\0\0\0\0\1x",
    ],
    ids=["HTTP/1", "noise", "no frame", "a frame too large", "no header block", "DATA on an idle stream"],
)
def test_garbage_ends_its_connection_alone(server, stub, garbage):
    assert served(stub)
    with socket.create_connection(("127.0.0.1", server.port), timeout=SECONDS) as peer:
        peer.sendall(garbage)
        assert served(stub)
        if server.transport == "native":  # grpcio is more patient
            closed(peer)
    assert served(stub)


@native_only
def test_garbage_ends_with_goaway(server):
    """Where HTTP/2 was spoken, the peer is told."""
    with H2Client(server.port) as peer:
        peer.send(b"\xff\xff\xff\0\0\0\0\0\1")
        peer.await_(lambda: peer.goaways)
        assert peer.goaways[0].error_code == 6  # FRAME_SIZE_ERROR
        peer.await_(lambda: peer.closed)


@native_only
def test_a_flood_ends_its_connection_and_is_counted(server, stub):
    def counted(limit):
        return server.metric("headrace_http2_limits_total", limit=limit)

    before = counted("too_many_pings")
    with H2Client(server.port) as peer:
        peer.send(*[PingFrame(0, b"12345678")] * 100)
        peer.await_(lambda: peer.goaways)
        assert (peer.goaways[0].error_code, peer.goaways[0].additional_data) == (11, b"too_many_pings")
        peer.await_(lambda: peer.closed)
    assert counted("too_many_pings") == before + 1
    assert 'headrace_http2_limits_total{limit="rapid_reset"} 0.0' in server.get("/metrics")[1]
    assert served(stub)


@native_only
def test_a_stream_that_breaks_leaves_the_others_of_its_connection(server, h2):
    """A message cut short, and one of garbage, between two that are answered."""
    good = request("echo_fp32", x=ROW).SerializeToString()
    first = h2.call(good)
    broken = h2.open()
    h2.send(DataFrame(broken, b"\0\0\0\1\0abc", flags=["END_STREAM"]))
    nonsense = h2.call(b"\xff" * 10)
    last = h2.call(good)
    for stream in (first, last):
        reply = h2.reply(stream)
        assert reply.status == 0
        assert output(pb.ModelInferResponse.FromString(reply.message)).tolist() == ROW.tolist()
    assert h2.reply(broken).status == StatusCode.INTERNAL.value[0]
    assert h2.reply(nonsense).status == StatusCode.INVALID_ARGUMENT.value[0]
    assert not h2.goaways


@pytest.mark.parametrize("held", [b"", b"\0\0", b"\0\0\0\1\0" + b"x" * 100])
def test_a_client_that_dies_in_the_middle_of_a_message(server, stub, held):
    for _ in range(5):
        with H2Client(server.port) as peer:
            stream = peer.open()
            peer.send(DataFrame(stream, held))
            peer.reset_connection()
    assert served(stub)


@pytest.mark.parametrize("waits", [False, True])
def test_a_client_that_dies_while_its_call_is_served(slow_server, waits):
    """What waits leaves the queue; the result of what runs is dropped. The call behind it is served."""

    def gone():
        return slow_server.metric("headrace_refused_total", model="cancel", reason="cancelled")

    def answered():
        return slow_server.metric("nv_inference_request_success", model="cancel")

    before, before_answered = gone(), answered()
    with H2Client(slow_server.port) as victim, H2Client(slow_server.port) as other:
        for number, client in enumerate((other, victim, other) if waits else (victim, other)):
            client.call(request("cancel", x=floats(HELD if number == 0 else 1)).SerializeToString())
            if number:
                eventually(lambda number=number: slow_server.waiting("cancel") == number)
            else:
                client.ping()  # answered in order: the call was read before
        victim.reset_connection()
        other.ping()  # which came after it
        if waits:
            eventually(lambda: gone() == before + 1)
        let_go(slow_server.repository, "cancel")
        for stream in list(other.replies):
            assert other.reply(stream).status == 0
        in_order = slow_server.transport == "native" and not slow_server.metric("headrace_grpc_workers")
        if in_order or waits:
            eventually(lambda: gone() == before + 1)
        else:  # grpcio, or another process, may tell of the reset when the reply is on its way already
            eventually(lambda: gone() + answered() == before + before_answered + 2)


def test_a_client_that_does_not_read(server, stub):
    """Its replies, 1 MB each, wait for it; others are served. It reads at last, and misses nothing."""
    with H2Client(server.port) as lazy:
        streams = [lazy.call(request("wide", x=floats(number)).SerializeToString()) for number in range(40)]
        for _ in range(20):
            assert served(stub)
        for number, stream in enumerate(streams):
            reply = lazy.reply(stream)
            assert reply.status == 0
            got = output(pb.ModelInferResponse.FromString(reply.message))
            assert got.shape == (1, WIDTH)
            assert (got == number).all()


def test_pings_are_answered_while_a_model_is_busy(slow_server):
    with H2Client(slow_server.port) as client:
        stream = client.call(request("late", x=floats(HELD)).SerializeToString())
        for _ in range(3):
            client.ping()
        assert not client.replies[stream].ended
        let_go(slow_server.repository, "late")
        assert client.reply(stream).status == 0


def test_many_connections(server, stub):
    """A hundred at a time, each with a call that is answered, and none is left when they have gone."""
    clients = [H2Client(server.port) for _ in range(100)]
    try:
        message = request("echo_fp32", x=ROW).SerializeToString()
        for client in clients:
            client.call(message)
        for client in clients:
            assert client.reply(1).status == 0
        if server.transport == "native":
            assert server.metric("headrace_connections") >= 100
    finally:
        for client in clients:
            client.__exit__()
    if server.transport == "native":
        eventually(lambda: server.metric("headrace_connections") < 20)
    assert served(stub)


@native_only
def test_a_message_in_small_padded_frames(h2):
    message = request("echo_fp32", x=ROW).SerializeToString()
    framed = b"\0" + len(message).to_bytes(4, "big") + message
    stream = h2.open()
    for at in range(0, len(framed), 7):
        piece = DataFrame(stream, framed[at : at + 7], flags=["PADDED"])
        piece.pad_length = 3
        h2.send(piece)
    h2.send(DataFrame(stream, flags=["END_STREAM"]))
    assert h2.reply(stream).status == 0


@native_only
def test_one_connection_too_many_is_told_so(serve, repository):
    """grpcio's client does not take it for a failure of the network, and there is room when another has gone."""
    server = serve(repository, "--http2-max-connections", 1)
    options = [("grpc.use_local_subchannel_pool", 1)]
    message = request("echo_fp32", x=ROW)
    with grpc.insecure_channel(server.address, options) as late:
        infer = service_pb2_grpc.GRPCInferenceServiceStub(late).ModelInfer
        with grpc.insecure_channel(server.address, options) as first:
            connect(first)
            refused = failure(infer, message)
            assert (refused.code, refused.reason) == (StatusCode.UNAVAILABLE, "overloaded")
            assert refused.text == "1 connections are open, no more are taken (http2.max_connections)"
        eventually(lambda: server.metric("headrace_connections") == 0)
        assert infer(message, timeout=SECONDS).model_name == "echo_fp32"
