"""SIGTERM: nothing that was accepted is lost, nothing more is taken, and all may see it coming."""

import json
import signal
import subprocess
import threading
import urllib.request

import grpc
import pytest
from e2e.calls import SECONDS, Failure, connect, failure, floats, occupy, output, request
from e2e.gated import GATE, HELD, write_gated
from e2e.h2_client import H2Client
from e2e.server_process import HEADRACE, Server, eventually, plain_environment
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

CLIENTS = 4
CALLS = 200


@pytest.fixture
def repository(tmp_path):
    write_gated(tmp_path, "slow")
    return tmp_path


@pytest.fixture
def open_channel():
    """Makes channels that share no connection: `open_channel(server)`."""
    channels = []

    def make(server):
        channels.append(grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)]))
        connect(channels[-1])
        return channels[-1]

    yield make
    for channel in channels:
        channel.close()


THREADS = ("--inline-below-us", 0)
"""What is short on the whole is run on a thread as well: a long call would keep the server from reading."""


def infer(channel, number):
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    return stub.ModelInfer.future(request("slow", x=floats(number)), timeout=3 * SECONDS)


def fill(server, channels):
    """One call that runs until it is let go, and those that wait behind it, `CALLS` in all."""
    first = occupy(server, service_pb2_grpc.GRPCInferenceServiceStub(channels[0]), "slow", 3 * SECONDS)
    others = [infer(channels[number % len(channels)], number / 1000) for number in range(1, CALLS)]
    eventually(lambda: server.waiting("slow") == CALLS - 1)
    return first, others


def watch(channel):
    """Watches the server's health; returns the states that are seen, and an event set when one was NOT_SERVING."""
    states, left = [], threading.Event()
    stream = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
    states.append(next(stream).status)

    def read():
        try:
            states.extend(reply.status for reply in stream)
        except grpc.RpcError as error:
            states.append(error.code())
        left.set()

    threading.Thread(target=read, daemon=True).start()
    return states, left


def test_every_accepted_request_is_answered(serve, repository, open_channel):
    server = serve(repository, *THREADS)
    channels = [open_channel(server) for _ in range(CLIENTS)]
    states, left = watch(channels[0])
    with H2Client(server.port) as by_hand:
        first, others = fill(server, channels)
        assert server.get_json("/v2/health/ready") == (200, {"ready": True})

        server.signal(signal.SIGTERM)
        server.await_log(lambda line: "draining for at most" in line)
        assert server.get_json("/v2/health/ready") == (503, {"ready": False})
        assert server.get_json("/v2/health/live") == (200, {"live": True})
        by_hand.await_(lambda: by_hand.goaways)
        assert by_hand.goaways[0].error_code == 0
        late = failure(infer(channels[1], 0).result)  # a client that was there before
        # grpcio cancels what it reads after its GOAWAY
        assert late.code is StatusCode.UNAVAILABLE or (server.transport, late.code.name) == ("reference", "CANCELLED")
        with grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            assert failure(infer(channel, 0).result).code is StatusCode.UNAVAILABLE  # one that comes now
        assert not any(call.done() for call in (first, *others))

        values = [output(call.result()).item() for call in (first, *others)]
        assert values == pytest.approx([HELD, *(number / 1000 for number in range(1, CALLS))])
    assert server.wait() == 0
    assert left.wait(SECONDS)
    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    assert states[:2] == [serving, not_serving]
    assert states[2:] == [StatusCode.UNAVAILABLE]
    assert "cut off" not in server.log


def test_with_a_delay_the_server_says_that_it_leaves_and_serves_on(serve, repository, open_channel):
    """New connections as well, until load balancers have noticed; a second signal ends that."""
    server = serve(repository, *THREADS, "--drain-delay-seconds", 1000)
    channel = open_channel(server)
    states, _ = watch(channel)
    server.signal(signal.SIGTERM)
    server.await_log(lambda line: "not ready, and serving on for 1000 s" in line)
    assert server.get_json("/v2/health/ready") == (503, {"ready": False})
    assert server.get_json("/v2/health/live") == (200, {"live": True})
    eventually(lambda: states[1:] == [health_pb2.HealthCheckResponse.NOT_SERVING])
    for each in (channel, open_channel(server)):
        assert output(infer(each, 2).result()).item() == 2
        ready = service_pb2_grpc.GRPCInferenceServiceStub(each).ServerReady
        assert not ready(service_pb2.ServerReadyRequest(), timeout=SECONDS).ready
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [3]}]}
    asked = urllib.request.Request(f"{server.http}/v2/models/slow/infer", json.dumps(body).encode())
    with urllib.request.urlopen(asked, timeout=SECONDS) as answered:
        assert json.load(answered)["outputs"][0]["data"] == [3]
    server.signal(signal.SIGTERM)
    server.wait(10)
    assert "draining for at most" in server.log


def test_a_call_on_an_old_connection_is_told_why(serve, repository, open_channel):
    """GOAWAY crosses with calls that are on their way: these are answered, not dropped."""
    server = serve(repository, *THREADS)
    first, _ = fill(server, [open_channel(server)])
    with H2Client(server.port) as by_hand:
        server.signal(signal.SIGTERM)
        server.await_log(lambda line: "draining for at most" in line)
        reply = by_hand.reply(by_hand.call(request("slow", x=floats(1)).SerializeToString()))
        assert reply.status == StatusCode.UNAVAILABLE.value[0]
        assert reply.fields["headrace-reason"] == "shutting_down"
        assert reply.fields["grpc-retry-pushback-ms"] == "-1"
        if server.transport == "native":  # grpcio says so only when it has taken over what it had read
            assert by_hand.goaways
    assert output(first.result()).item() == HELD
    assert server.wait() == 0


def test_an_idle_server_leaves_at_once(serve, repository, open_channel):
    server = serve(repository, *THREADS)
    open_channel(server)
    with H2Client(server.port) as by_hand:
        server.signal(signal.SIGINT)
        by_hand.await_(lambda: by_hand.closed)
        assert by_hand.goaways[-1].error_code == 0
    assert server.wait(10) == 0


@pytest.mark.parametrize("how", ["a second signal", "the limit"])
def test_what_cannot_be_finished(serve, repository, open_channel, how):
    """Whoever still waits is told; the exit code tells the operator."""
    server = serve(repository, *THREADS, *(["--drain-seconds", 0.5] if how == "the limit" else []))
    channels = [open_channel(server) for _ in range(CLIENTS)]
    first, others = fill(server, channels)
    server.signal(signal.SIGTERM)
    server.await_log(lambda line: "draining for at most" in line)
    if how == "a second signal":
        server.signal(signal.SIGTERM)
    errors = [Failure(call.exception()) for call in (first.call, *others)]
    assert {error.code for error in errors} == {StatusCode.UNAVAILABLE}
    assert {error.reason for error in errors} == {"shutting_down"}
    assert server.wait(10) == 1
    assert "some requests were cut off" in server.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_server_that_loads_leaves_at_once(tmp_path, number):
    write_gated(tmp_path, "slow", backend="SlowToLoad")
    command = [HEADRACE, "serve", "--model-repository", tmp_path, "--grpc-port", "0", "--http-port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=plain_environment()) as server:
        try:
            with (tmp_path / "slow" / "1" / GATE).open("wb"):  # it is loading: somebody reads
                server.send_signal(number)
                _, log = server.communicate(timeout=SECONDS)
        finally:
            server.kill()
    assert server.returncode == 0
    assert "stopped before all models were loaded" in log


def test_under_nohup_it_stays(tmp_path):
    (tmp_path / "models").mkdir()
    with Server(tmp_path / "models", command=("nohup", HEADRACE)) as server:
        server.signal(signal.SIGHUP)
        assert server.get("/v2/health/ready")[0] == 200
        server.signal(signal.SIGTERM)
        assert server.wait(SECONDS) == 0
