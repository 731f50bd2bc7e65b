"""gRPC's interoperability cases that apply to this server, with grpcio's client, on both transports.

Left out: cacheable_unary (obsolete); the cases of cloud credentials, where `authorization` is but metadata that must
pass; client_compressed_unary's probe, server_compressed_unary and their streaming kin as far as a handler would have to
see or choose the compression of messages (replies are never compressed); custom_metadata's echo, for handlers do not
see metadata; pick_first, soak and ORCA, which test clients or are optional.
"""

import asyncio
import threading

import grpc
import pytest
from conformance.grpc.interop_service import (
    SERVICE,
    Empty,
    InputRequest,
    InputResponse,
    OutputRequest,
    OutputResponse,
    SimpleRequest,
    SimpleResponse,
    TestService,
)
from conformance.native import SECONDS, Native
from transport.http2.wire import grpc_call

from headrace.transport.grpc_reference import ReferenceTransport

MAX_MESSAGE = 4 << 20
GZIP = grpc.Compression.Gzip
MESSAGE = "test status message"
SPECIAL = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n"
ECHO_METADATA = (
    ("x-grpc-test-echo-initial", "test_initial_metadata_value"),
    ("x-grpc-test-echo-trailing-bin", b"\xab\xab\xab"),
    ("authorization", "Bearer token"),
)


class Reference:
    """The reference transport on the loopback, its event loop on a thread of its own."""

    def __init__(self, table):
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.transport = ReferenceTransport(table, "127.0.0.1", 0, max_message_bytes=MAX_MESSAGE)

    def __enter__(self):
        self._thread.start()
        self.port = self.run(self.transport.start())
        return self

    def __exit__(self, *_):
        self.run(self.transport.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(SECONDS)
        self.loop.close()

    def run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(SECONDS)

    eventually, on_loop = Native.eventually, Native.on_loop


RUNNERS = {"native": lambda table: Native(table, max_message=MAX_MESSAGE), "reference": Reference}


@pytest.fixture(scope="module", params=RUNNERS)
def server(request):
    service = TestService()
    with RUNNERS[request.param](service.table()) as running:
        running.service = service
        yield running
        running.eventually(lambda: service.running == 0)


@pytest.fixture
def stub(server):
    with grpc.insecure_channel(f"127.0.0.1:{server.port}", options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield Stub(channel)


class Stub:
    def __init__(self, channel):
        self.channel = channel
        self.empty = self.method("EmptyCall", Empty, Empty, "unary_unary")
        self.unary = self.method("UnaryCall", SimpleRequest, SimpleResponse, "unary_unary")
        self.input = self.method("StreamingInputCall", InputRequest, InputResponse, "stream_unary")
        self.output = self.method("StreamingOutputCall", OutputRequest, OutputResponse, "unary_stream")
        self.duplex = self.method("FullDuplexCall", OutputRequest, OutputResponse, "stream_stream")

    def method(self, name, request, response, kind, service=SERVICE):
        call = getattr(self.channel, kind)(f"/{service}/{name}", request.SerializeToString, response.FromString)
        return lambda argument, **options: call(argument, timeout=options.pop("timeout", SECONDS), **options)


def code(error):
    return error.value.code()


def wanted(*sizes, **parameters):
    return OutputRequest(response_parameters=[{"size": size, **parameters} for size in sizes])


def interop(*names):
    """Names a test for reports."""
    return pytest.mark.parametrize("case", [pytest.param(name, id=f"interop {name}") for name in names])


@interop("empty_unary")
def test_empty_unary(stub, case):
    assert stub.empty(Empty()) == Empty()


@interop("large_unary")
def test_large_unary(stub, case):
    reply = stub.unary(SimpleRequest(response_size=314_159, payload={"body": bytes(271_828)}))
    assert reply.payload.body == bytes(314_159)


@interop("client_compressed_unary", "client_compressed_unary, the plain one")
def test_client_compressed_unary(stub, case):
    compression = None if "plain" in case else GZIP
    request = SimpleRequest(response_size=314_159, payload={"body": bytes(271_828)})
    assert len(stub.unary(request, compression=compression).payload.body) == 314_159


@interop("server_compressed_unary")
def test_server_compressed_unary(server, stub, case):
    """A reply may stay uncompressed whatever the request wishes; then its flag must not be set."""
    request = SimpleRequest(response_compressed={"value": True}, response_size=314_159)
    assert len(stub.unary(request).payload.body) == 314_159
    if isinstance(server, Native):
        with server.connect() as client:
            octets = SimpleRequest(response_compressed={"value": True}, response_size=100).SerializeToString()
            client.send(grpc_call(f"/{SERVICE}/UnaryCall", octets, 1, ("grpc-accept-encoding", "gzip")))
            assert client.reply(1) == (0, SimpleResponse(payload={"body": bytes(100)}).SerializeToString())


@interop("client_streaming")
def test_client_streaming(stub, case):
    requests = [InputRequest(payload={"body": bytes(size)}) for size in (27_182, 8, 1_828, 45_904)]
    assert stub.input(iter(requests)).aggregated_payload_size == 74_922


@interop("client_compressed_streaming")
def test_client_compressed_streaming(stub, case):
    requests = [InputRequest(payload={"body": bytes(size)}) for size in (27_182, 45_904)]
    assert stub.input(iter(requests), compression=GZIP).aggregated_payload_size == 73_086


@interop("server_streaming")
def test_server_streaming(stub, case):
    sizes = (31_415, 9, 2_653, 58_979)
    assert [len(reply.payload.body) for reply in stub.output(wanted(*sizes))] == list(sizes)


class Requests:
    """Request messages that are sent when the test says so."""

    def __init__(self, *first):
        self._changed = threading.Condition()
        self._waiting = list(first)
        self._ended = False

    def __iter__(self):
        return self

    def __next__(self):
        with self._changed:
            assert self._changed.wait_for(lambda: self._waiting or self._ended, SECONDS)
            if self._waiting:
                return self._waiting.pop(0)
        raise StopIteration

    def send(self, request):
        with self._changed:
            self._waiting.append(request)
            self._changed.notify_all()

    def end(self):
        with self._changed:
            self._ended = True
            self._changed.notify_all()


@interop("ping_pong")
def test_ping_pong(stub, case):
    requests = Requests()
    replies = stub.duplex(requests)
    for size in (31_415, 9, 2_653, 58_979):
        requests.send(wanted(size))
        assert len(next(replies).payload.body) == size
    requests.end()
    assert list(replies) == []
    assert replies.code() is grpc.StatusCode.OK


@interop("empty_stream")
def test_empty_stream(stub, case):
    replies = stub.duplex(iter(()))
    assert list(replies) == []
    assert replies.code() is grpc.StatusCode.OK


@interop("custom_metadata", "custom_metadata with authorization")
def test_custom_metadata(stub, case):
    """What a client sends along passes, text and octets, on unary and duplex calls."""
    metadata = ECHO_METADATA if "authorization" in case else ECHO_METADATA[:2]
    assert len(stub.unary(SimpleRequest(response_size=314_159), metadata=metadata).payload.body) == 314_159
    assert len(list(stub.duplex(iter([wanted(5)]), metadata=metadata))) == 1


@interop("status_code_and_message")
def test_status_code_and_message(stub, case):
    status = {"code": 2, "message": MESSAGE}
    with pytest.raises(grpc.RpcError) as unary:
        stub.unary(SimpleRequest(response_status=status))
    replies = stub.duplex(iter([OutputRequest(response_status=status), wanted(1)]))
    with pytest.raises(grpc.RpcError) as duplex:
        list(replies)
    for error in (unary, duplex):
        assert (code(error), error.value.details()) == (grpc.StatusCode.UNKNOWN, MESSAGE)
        assert dict(error.value.trailing_metadata())["headrace-reason"] == "echoed"


@interop("special_status_message")
def test_special_status_message(stub, case):
    with pytest.raises(grpc.RpcError) as error:
        stub.unary(SimpleRequest(response_status={"code": 2, "message": SPECIAL}))
    assert (code(error), error.value.details()) == (grpc.StatusCode.UNKNOWN, SPECIAL)


@interop("unimplemented_method", "unimplemented_service")
def test_unimplemented(stub, case):
    service = SERVICE if "method" in case else "grpc.testing.UnimplementedService"
    for kind in ("unary_unary", "stream_stream"):
        call = stub.method("UnimplementedCall", Empty, Empty, kind, service)
        with pytest.raises(grpc.RpcError) as error:
            call(Empty()) if kind == "unary_unary" else list(call(iter([Empty()])))
        assert code(error) is grpc.StatusCode.UNIMPLEMENTED


@interop("cancel_after_begin")
def test_cancel_after_begin(server, stub, case):
    requests = Requests()
    call = stub.channel.stream_unary(f"/{SERVICE}/StreamingInputCall").future(requests, timeout=SECONDS)
    server.eventually(lambda: server.service.running == 1)
    call.cancel()
    assert call.code() is grpc.StatusCode.CANCELLED
    server.eventually(lambda: server.service.running == 0)
    requests.end()


@interop("cancel_after_first_response")
def test_cancel_after_first_response(server, stub, case):
    requests = Requests(wanted(31_415))
    replies = stub.duplex(requests)
    assert len(next(replies).payload.body) == 31_415
    assert server.on_loop(lambda: server.service.running) == 1
    replies.cancel()
    with pytest.raises(grpc.RpcError) as error:
        next(replies)
    assert code(error) is grpc.StatusCode.CANCELLED
    server.eventually(lambda: server.service.running == 0)
    requests.end()


@interop("timeout_on_sleeping_server")
def test_timeout_on_sleeping_server(server, stub, case):
    stub.empty(Empty())  # connected
    requests = Requests(wanted(1, interval_us=SECONDS * 1_000_000))
    with pytest.raises(grpc.RpcError) as error:
        list(stub.duplex(requests, timeout=0.001))
    assert code(error) is grpc.StatusCode.DEADLINE_EXCEEDED
    server.eventually(lambda: server.service.running == 0)
    requests.end()


@interop("concurrent_large_unary")
def test_concurrent_large_unary(stub, case):
    octets = SimpleRequest(response_size=314_159, payload={"body": bytes(271_828)}).SerializeToString()
    call = stub.channel.unary_unary(f"/{SERVICE}/UnaryCall")
    calls = [call.future(octets, timeout=SECONDS) for _ in range(100)]
    assert {len(call.result()) for call in calls} == {
        len(SimpleResponse(payload={"body": bytes(314_159)}).SerializeToString())
    }


@interop("thousands of calls with timeouts on one connection, more at a time than are allowed")
def test_many_calls(server, stub, case):
    call = stub.channel.unary_unary(f"/{SERVICE}/EmptyCall")
    most = 3000 if isinstance(server, Native) else 200  # grpcio's server cancels some of thousands
    calls = [call.future(b"", timeout=SECONDS + n / 1000) for n in range(most)]
    assert {call.result() for call in calls} == {b""}
    if isinstance(server, Native):
        assert set(server.limits()) <= {"streams"}


@interop("63 KiB of metadata in one field")
def test_large_metadata(stub, case):
    with pytest.raises(grpc.RpcError) as error:
        stub.empty(Empty(), metadata=[("x", "v" * (63 << 10))])
    assert code(error) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert stub.empty(Empty()) == Empty()


@interop("flow control push-back")
@pytest.mark.parametrize("server", ["native"], indirect=True)  # what grpcio holds cannot be seen
def test_push_back(server, stub, case):
    """A client that is faster than the handler has to wait for it."""
    requests = Requests(wanted(1, interval_us=SECONDS * 1_000_000))
    taken = []

    def flood():
        yield from requests
        for n in range(100):
            taken.append(n)
            yield OutputRequest(payload={"body": bytes(100_000)})

    replies = stub.duplex(flood())
    requests.end()
    server.eventually(lambda: any(peer.buffered > 1 << 19 for peer in server.transport.peers))
    for _ in range(200):  # turns of the loop, in which more would come if it could
        held = server.on_loop(lambda: max(peer.buffered for peer in server.transport.peers))
        assert held < 3 << 20
    assert len(taken) < 100
    replies.cancel()
