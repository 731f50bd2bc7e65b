"""Over a socket, with grpcio's and Triton's clients."""

import asyncio
import contextlib
from types import SimpleNamespace

import grpc
import pytest
import tritonclient.grpc as tritonclient
from grpc import aio
from tritonclient.utils import InferenceServerException

from headrace.errors import BackendFailed, InvalidRequest, QueueFull
from headrace.messages import Signature, TensorSpec
from headrace.repository.catalog import Catalog
from headrace.repository.model_config import ModelConfig
from headrace.telemetry.statistics import Statistics
from headrace.testing.condition import FakeCondition
from headrace.transport.admin import Admin
from headrace.transport.grpc_reference import ReferenceTransport
from headrace.transport.health import Health
from headrace.transport.repository import RepositoryAdmin
from headrace.transport.runtime_settings import RuntimeSettings
from headrace.transport.service import INFER_PATH, INFER_STREAM_PATH, service_table
from headrace.transport.shared_memory import SharedMemoryAdmin

NOW = 5_000_000_000
TIMEOUT = 10


class FakeEngine:
    live = True
    ready = True


class FakeServed:
    name = "m"
    version = "1"
    platform = "onnxruntime_onnx"
    signature = Signature((TensorSpec("x", "FP32", (4,)),), (TensorSpec("y", "FP32", (2,)),), 8)
    config = ModelConfig()
    stated = plan = None
    condition = FakeCondition()

    def statistics(self):
        return Statistics()


class FakeControl:
    async def index(self):
        pass


class FakeInfer:
    """Keeps what it is called with, for the test to answer; `answer` answers at once instead."""

    def __init__(self):
        self.calls = asyncio.Queue()
        self.cancelled = asyncio.Queue()
        self.answer = None

    def __call__(self, call):
        self.calls.put_nowait((call.request, call, call.received, call.deadline))
        call.request = None
        call.under_way = self
        if self.answer:
            self.answer(call)

    finished = True

    def cancel(self):
        self.cancelled.put_nowait(True)


class Harness:
    def __init__(self):
        catalog = Catalog()
        catalog.ready("m", 1, FakeServed())
        self.health = Health()
        self.infer = FakeInfer()
        table = service_table(
            Admin(FakeEngine(), catalog),
            self.health,
            self.infer,
            SharedMemoryAdmin(None),
            RepositoryAdmin(FakeControl(), catalog),
            RuntimeSettings(None, None, catalog),
        )
        self.transport = ReferenceTransport(table, "127.0.0.1", 0, max_message_bytes=100_000, clock=lambda: NOW)


@contextlib.asynccontextmanager
async def serving():
    harness = Harness()
    port = await harness.transport.start()
    harness.address = f"127.0.0.1:{port}"
    try:
        async with aio.insecure_channel(harness.address) as harness.channel:
            harness.call = harness.channel.unary_unary(INFER_PATH)
            yield harness
    finally:
        await harness.transport.close()


def scenario(test):
    """Runs a test coroutine with a server; bounded, so that a hang is a failure."""

    def run():
        async def bounded():
            async with asyncio.timeout(TIMEOUT * 2), serving() as harness:
                await test(harness)

        asyncio.run(bounded())

    run.__name__ = test.__name__
    return run


async def failure(call):
    with pytest.raises(aio.AioRpcError) as raised:
        await call
    return raised.value


@scenario
async def test_inference_is_answered_through_the_sink(server):
    call = server.call(b"request", timeout=None)
    message, sink, received, deadline = await server.infer.calls.get()
    assert (message, received, deadline) == (b"request", NOW, 0)
    sink.reply(bytearray(b"reply"))
    assert await call == b"reply"


@scenario
async def test_inference_may_be_answered_at_once(server):
    server.infer.answer = lambda sink: sink.reply(b"at once")
    assert await server.call(b"", timeout=TIMEOUT) == b"at once"
    server.infer.answer = lambda sink: sink.fail(InvalidRequest("bad shape"))
    error = await failure(server.call(b"", timeout=TIMEOUT))
    assert (error.code(), error.details()) == (grpc.StatusCode.INVALID_ARGUMENT, "bad shape")


@scenario
async def test_the_deadline_of_the_call_is_handed_on(server):
    call = server.call(b"", timeout=TIMEOUT)
    _, sink, received, deadline = await server.infer.calls.get()
    assert 0.5 * TIMEOUT * 1e9 < deadline - received < 1.1 * TIMEOUT * 1e9  # grpcio rounds it up a little
    sink.reply(b"")
    await call


@scenario
async def test_a_failure_carries_its_status_and_metadata(server):
    call = server.call(b"", timeout=TIMEOUT)
    _, sink, _, _ = await server.infer.calls.get()
    sink.fail(QueueFull("Exceeds maximum queue size", retry_after_ms=25))
    error = await failure(call)
    assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")
    trailers = dict(error.trailing_metadata())
    assert (trailers["headrace-reason"], trailers["grpc-retry-pushback-ms"]) == ("queue_full", "25")


@scenario
async def test_a_long_failure_is_cut_to_what_clients_take(server):
    server.infer.answer = lambda sink: sink.fail(InvalidRequest("100 % ä \n" + "模" * 4000))
    error = await failure(server.call(b"", timeout=TIMEOUT))
    assert (error.code(), error.details()[:13]) == (grpc.StatusCode.INVALID_ARGUMENT, "100 % ä \n模模模模")
    assert 100 < len(error.details()) < 1000
    assert error.details().endswith("模...")


@scenario
async def test_an_unforeseen_failure_tells_nothing(server):
    call = server.call(b"", timeout=TIMEOUT)
    _, sink, _, _ = await server.infer.calls.get()
    sink.fail(ZeroDivisionError("secret"))
    error = await failure(call)
    assert error.code() is grpc.StatusCode.INTERNAL
    assert error.details().startswith("internal error, correlation id ")
    assert "secret" not in str(error)


@scenario
async def test_cancelling_the_call_cancels_the_request(server):
    call = server.call(b"", timeout=TIMEOUT)
    _, sink, _, _ = await server.infer.calls.get()
    call.cancel()
    assert await server.infer.cancelled.get()
    sink.reply(b"too late")  # the batch was already running: dropped without a trace
    sink.fail(BackendFailed("too late"))
    with pytest.raises(asyncio.CancelledError):
        await call


@scenario
async def test_a_call_past_its_deadline_cancels_the_request(server):
    error = await failure(server.call(b"", timeout=0.05))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert await server.infer.cancelled.get()


@scenario
async def test_what_was_answered_before_the_error_that_ends_a_stream_is_sent(server):
    """However far the handler has come with the replies before."""
    for turns in range(8):
        stream = server.channel.stream_stream(INFER_STREAM_PATH)(metadata=[("triton_grpc_error", "true")])
        for _ in range(3):
            await stream.write(b"")
        sinks = [(await server.infer.calls.get())[1] for _ in range(3)]
        for sink in sinks:
            sink.under_way = SimpleNamespace(template=SimpleNamespace(final=False), cancel=list, finished=True)
        sinks[0].reply(b"1")
        for _ in range(turns):
            await asyncio.sleep(0)
        sinks[1].reply(b"2")
        sinks[2].fail(InvalidRequest("wrong"))
        assert [await stream.read(), await stream.read()] == [b"\x12\x011", b"\x12\x012"]
        assert await stream.code() == grpc.StatusCode.INVALID_ARGUMENT


@scenario
async def test_a_message_above_the_limit_is_refused(server):
    error = await failure(server.call(b"x" * 100_001, timeout=TIMEOUT))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    server.infer.answer = lambda sink: sink.reply(b"y" * 200_000)
    assert len(await server.call(b"x" * 100_000, timeout=TIMEOUT)) == 200_000


@scenario
async def test_an_unknown_method_is_unimplemented(server):
    error = await failure(server.channel.unary_unary("/inference.GRPCInferenceService/Nothing")(b"", timeout=TIMEOUT))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


@scenario
async def test_a_malformed_message_is_an_invalid_argument(server):
    call = server.channel.unary_unary("/inference.GRPCInferenceService/ModelReady")(b"\x0a\x05abc", timeout=TIMEOUT)
    error = await failure(call)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert dict(error.trailing_metadata())["headrace-reason"] == "invalid_request"


@scenario
async def test_health_is_watched(server):
    watch = server.channel.unary_stream("/grpc.health.v1.Health/Watch")(b"", timeout=TIMEOUT)
    assert await watch.read() == b"\x08\x02"
    server.health.set_serving(True)
    assert await watch.read() == b"\x08\x01"
    assert repr(server.transport) == f"<ReferenceTransport {server.address} serving, 1 streams>"
    watch.cancel()


@scenario
async def test_draining_answers_what_was_taken_and_ends_streams(server):
    call = server.call(b"", timeout=TIMEOUT)
    _, sink, _, _ = await server.infer.calls.get()
    watch = server.channel.unary_stream("/grpc.health.v1.Health/Watch")(b"", timeout=TIMEOUT)
    assert await watch.read() == b"\x08\x02"

    drained = asyncio.create_task(server.transport.drain(TIMEOUT))
    error = await failure(watch.read())
    assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, "the server is shutting down")
    assert not drained.done(), "a call is still under way"
    refused = await failure(server.call(b"", timeout=TIMEOUT))
    assert refused.code() is grpc.StatusCode.UNAVAILABLE
    assert not drained.done()
    sink.reply(b"reply")
    assert await call == b"reply"
    await drained
    assert server.infer.cancelled.empty()


@scenario
async def test_draining_ends_at_its_deadline(server):
    call = server.call(b"", timeout=TIMEOUT)
    await server.infer.calls.get()
    await server.transport.drain(0.05)
    assert await server.infer.cancelled.get()
    await failure(call)


@scenario
async def test_a_port_in_use_is_an_error(server):
    port = int(server.address.rpartition(":")[2])
    second = ReferenceTransport(server.transport._table, "127.0.0.1", port, max_message_bytes=1)
    with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}"):
        await second.start()
    await second.drain(0)
    await second.close()


@scenario
async def test_closing_twice_is_harmless(server):
    await server.transport.close()
    await server.transport.close()


@scenario
async def test_tritonclient_reads_every_administrative_reply(server):
    def ask():
        with tritonclient.InferenceServerClient(server.address) as client:
            assert client.is_server_live()
            assert client.is_server_ready()
            assert client.is_model_ready("m")
            assert client.get_server_metadata().name == "headrace"
            assert client.get_model_metadata("m").inputs[0].shape == [-1, 4]
            assert client.get_model_config("m").config.max_batch_size == 8
            assert client.get_inference_statistics("m").model_stats[0].version == "1"
            assert client.get_model_repository_index().models[0].state == "READY"
            with pytest.raises(InferenceServerException, match="Request for unknown model: 'n' is not found") as raised:
                client.get_model_metadata("n")
            assert raised.value.status() == "StatusCode.NOT_FOUND"

    await asyncio.to_thread(ask)
