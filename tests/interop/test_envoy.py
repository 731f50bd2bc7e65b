"""Through Envoy, as in a mesh or behind an ingress: what it passes on, and when it looks elsewhere."""

import queue
import shutil
import struct
import subprocess
import threading
import time
import urllib.request

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.http as triton_http
from e2e.calls import SECONDS, connect, failure, floats, occupy, output, request, statistics, tensor
from e2e.gated import HELD, write_gated
from e2e.onnx_models import scale, write
from e2e.server_process import Server, eventually
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from interop.envoy import Envoy
from interop.peers import ENVOY, needs
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from compare.clients import Load, h2load_command, parse_h2load

pytestmark = needs(ENVOY)
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]


@pytest.fixture(scope="module")
def envoy(server, tmp_path_factory):
    with Envoy(tmp_path_factory.mktemp("envoy"), server) as running:
        yield running


@pytest.fixture
def stub(envoy):
    """The RPCs through the proxy."""
    with grpc.insecure_channel(envoy.address, OPTIONS) as channel:
        connect(channel)
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


@pytest.fixture
def client(envoy):
    with triton.InferenceServerClient(envoy.address) as client:
        yield client


def test_unary(stub):
    replies = [stub.ModelInfer.future(request("echo_fp32", x=floats([n, 2, 3, 4]), id=str(n))) for n in range(100)]
    for number, call in enumerate(replies):
        reply = call.result(SECONDS)
        assert (reply.id, output(reply).tolist()) == (str(number), [[number, 2, 3, 4]])


def test_errors_and_their_trailers(stub):
    unknown = failure(stub.ModelInfer, request("nobody", x=floats(1)))
    assert (unknown.code, unknown.reason) == (StatusCode.NOT_FOUND, "model_not_found")
    assert unknown.text == "Request for unknown model: 'nobody' is not found"


def test_a_large_message(stub):
    rows = np.random.default_rng(0).random((16, 500_000), np.float32)  # 32 MB
    assert (output(stub.ModelInfer(request("free", x=rows), timeout=SECONDS)) == 3 * rows).all()


def test_streams(client):
    answers = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for number in range(50):
        client.async_stream_infer("echo_fp32", [tensor("x", floats([number, 2, 3, 4]))], request_id=str(number))
    got = [answers.get(timeout=SECONDS) for _ in range(50)]
    client.stop_stream()
    assert [error for _, error in got if error] == []
    assert [(r.get_response().id, r.as_numpy("y")[0, 0]) for r, _ in got] == [(str(n), n) for n in range(50)]


def test_health(envoy, stub):
    with grpc.insecure_channel(envoy.address) as channel:
        asked = health_pb2.HealthCheckRequest(service="inference.GRPCInferenceService")
        assert health_pb2_grpc.HealthStub(channel).Check(asked, timeout=SECONDS).status == 1
    assert (envoy.healthy("grpc"), envoy.statistic("cluster.grpc.health_check.failure")) == (1, 0)
    assert envoy.statistic("cluster.grpc.health_check.success") >= 1


def test_deadlines_reach_the_server(server, stub):
    """It passes grpc-timeout on, and the server takes what has expired out of its queue."""
    busy = occupy(server, service_pb2_grpc.GRPCInferenceServiceStub(stub_channel(server)), "held")
    before = statistics(stub, "held").execution_count
    late = failure(stub.ModelInfer, request("held", x=floats(1)), timeout=0.2)
    assert late.code is StatusCode.DEADLINE_EXCEEDED
    eventually(lambda: server.waiting("held") == 0)
    assert not busy.done()
    assert output(busy.result()).tolist() == [[HELD]]
    assert statistics(stub, "held").execution_count == before + 1


def stub_channel(server):
    channel = grpc.insecure_channel(server.address)
    connect(channel)
    return channel


def test_cancellation_reaches_the_server(server, stub):
    busy = occupy(server, stub, "held")
    waiting = stub.ModelInfer.future(request("held", x=floats(1)), timeout=SECONDS)
    eventually(lambda: server.waiting("held") == 1)
    waiting.cancel()
    eventually(lambda: server.waiting("held") == 0)
    assert not busy.done()
    busy.result()


def test_grpc_web(envoy):
    """A browser's form of gRPC: trailers at the end of the body."""
    message = request("echo_fp32", x=floats([1, 2, 3, 4]), id="7").SerializeToString()
    call = urllib.request.Request(
        f"{envoy.http}/inference.GRPCInferenceService/ModelInfer",
        struct.pack(">BI", 0, len(message)) + message,
        {"content-type": "application/grpc-web+proto", "x-grpc-web": "1"},
    )
    with urllib.request.urlopen(call, timeout=SECONDS) as reply:
        body = reply.read()
        assert (reply.status, reply.headers["content-type"]) == (200, "application/grpc-web+proto")
    flag, size = struct.unpack_from(">BI", body)
    got = pb.ModelInferResponse.FromString(body[5 : 5 + size])
    assert (flag, got.id, output(got).tolist()) == (0, "7", [[1, 2, 3, 4]])
    flag, size = struct.unpack_from(">BI", body, 5 + size)
    assert (flag, b"grpc-status:0" in body[-size:]) == (0x80, True)


def test_rest(envoy):
    with triton_http.InferenceServerClient(envoy.address, concurrency=4) as client:
        assert client.is_server_ready()
        rows = np.random.default_rng(0).random((64, 10_000), np.float32)
        one = triton_http.InferInput("x", list(rows.shape), "FP32")
        one.set_data_from_numpy(rows)
        calls = [client.async_infer("free", [one], request_id=str(n)) for n in range(20)]
        for number, call in enumerate(calls):
            result = call.get_result()
            assert result.get_response()["id"] == str(number)
            assert (result.as_numpy("y") == 3 * rows).all()


def test_a_routes_timeout_ends_the_request_at_the_server(server, envoy, stub):
    """Envoy tells the server how long it waits, in a header: the server does not work for nobody."""
    with triton_http.InferenceServerClient(envoy.address) as client:
        one = triton_http.InferInput("x", [1, 1], "FP32")
        one.set_data_from_numpy(floats(1))
        busy = occupy(server, stub, "held")
        with pytest.raises(triton_http.InferenceServerException) as caught:
            client.infer("held", [one])
        assert caught.value.status() == "504"
        eventually(lambda: server.waiting("held") == 0)
        assert not busy.done()
        busy.result()


@pytest.mark.skipif(shutil.which("h2load") is None, reason="no h2load: run loadtest/peers/setup clients")
def test_h2load(envoy, stub, tmp_path):
    message = request("echo_fp32", x=floats([1, 2, 3, 4]), id="1").SerializeToString()
    payload = tmp_path / "message"
    payload.write_bytes(b"\0" + len(message).to_bytes(4, "big") + message)
    before = statistics(stub, "echo_fp32").inference_stats.success.count
    load = Load("h2load", "echo_fp32", 16, connections=8, timeout="10S")
    command = h2load_command(load, 5000, envoy.address, payload)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    report = parse_h2load(done.stdout)
    assert (report.requests, report.failed) == (5000, 0)
    assert statistics(stub, "echo_fp32").inference_stats.success.count - before == 5000


# --- one of two servers leaves ----------------------------------------------------------------------------------------


@pytest.fixture
def two(transport, tmp_path):
    """Two servers and what is before them; retries as a mesh has them."""
    models = tmp_path / "models"
    write(models, "quick", scale(2, "N", 1))
    flags = "--transport", transport
    with (
        Server(models, *flags) as one,
        Server(models, *flags) as other,
        Envoy(tmp_path, one, other, retry=True) as envoy,
    ):
        yield one, other, envoy


def test_a_server_that_leaves_loses_no_call(two):
    """Its clients notice nothing, and Envoy knows by its health before it is gone."""
    one, other, envoy = two
    stop, failures, answered = threading.Event(), [], []

    def call(worker):
        with grpc.insecure_channel(envoy.address, OPTIONS) as channel:
            stub, number = service_pb2_grpc.GRPCInferenceServiceStub(channel), worker
            while not stop.is_set():
                try:
                    got = output(stub.ModelInfer(request("quick", x=floats(number)), timeout=SECONDS)).item()
                    assert got == 2 * number
                    answered.append(number)
                except (grpc.RpcError, AssertionError) as error:
                    failures.append(str(error))
                number += 4

    workers = [threading.Thread(target=call, args=(worker,), daemon=True) for worker in range(4)]
    for worker in workers:
        worker.start()
    eventually(lambda: len(answered) > 200)
    assert one.stop() == 0
    eventually(lambda: envoy.healthy("grpc") == envoy.healthy("rest") == 1)
    after = len(answered)
    eventually(lambda: len(answered) > after + 200)
    stop.set()
    for worker in workers:
        worker.join(SECONDS)
    assert failures == []
    assert other.metric("nv_inference_request_success", model="quick") > 200


def test_what_a_leaving_server_has_taken_is_answered(transport, tmp_path):
    models = tmp_path / "models"
    write_gated(models, "slow")
    with (
        Server(models, "--transport", transport, "--inline-below-us", 0) as server,
        Envoy(tmp_path, server) as envoy,
        grpc.insecure_channel(envoy.address, OPTIONS) as channel,
    ):
        connect(channel)
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        busy = occupy(server, stub, "slow")
        waiting = [stub.ModelInfer.future(request("slow", x=floats(n)), timeout=SECONDS) for n in range(20)]
        eventually(lambda: server.waiting("slow") == 20)
        server.signal()
        began = time.monotonic()
        eventually(lambda: envoy.healthy("grpc") == 0)
        assert time.monotonic() - began < SECONDS / 2
        assert not busy.done()
        assert output(busy.result()).tolist() == [[HELD]]
        assert [output(call.result()).item() for call in waiting] == list(range(20))
        assert server.wait() == 0
        assert failure(stub.ModelInfer, request("slow", x=floats(1))).code is StatusCode.UNAVAILABLE
