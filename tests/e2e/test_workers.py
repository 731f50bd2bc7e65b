"""gRPC's connections in processes of their own: what becomes of calls when one of these, or the server, is killed."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import numpy as np
import pytest
from e2e.calls import SECONDS, Failure, connect, failure, floats, occupy, output, request
from e2e.gated import write_gated
from e2e.onnx_models import identity, scale, write
from e2e.server_process import HEADRACE, Server, eventually, plain_environment
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc import service_pb2_grpc

WORKERS = ("--grpc-workers", 2)
HEAVY = ("onnxruntime", "uvicorn", "starlette", "headrace.serve", "headrace.engine.lifecycle", "headrace.backends.base")


def workers(server):
    """The processes that the server's log names, the youngest last."""
    line = server.await_log(re.compile(r'served by 2 processes pids="(.*)"').search)
    return json.loads(re.search(r"\[.*\]", line)[0])


def gone(pid):
    """Whether a process has ended, though nobody may have asked for its exit code yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def channel_of(server):
    """A connection of its own."""
    channel = grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)])
    connect(channel)
    return channel


@pytest.fixture
def repository(tmp_path):
    write_gated(tmp_path, "slow")
    write(tmp_path, "double", scale(2, "N", 1))
    return tmp_path


@pytest.fixture
def start(repository):
    servers = []

    def start(*flags):
        servers.append(Server(repository, *WORKERS, *flags))
        return servers[-1]

    start.servers = servers
    yield start
    for server in servers:
        server.kill()


def test_a_worker_that_is_killed(start):
    """Its calls are lost and leave the queue; those of the other are answered, and there are two again."""
    server = start("--inline-below-us", 0)
    with channel_of(server) as first, channel_of(server) as second, channel_of(server) as third:
        # the fewest connections first: the third is with the first again
        stubs = [service_pb2_grpc.GRPCInferenceServiceStub(channel) for channel in (first, second, third)]
        held = occupy(server, stubs[2], "slow")
        calls = [
            [stub.ModelInfer.future(request("slow", x=floats(1)), timeout=SECONDS) for _ in range(5)] for stub in stubs
        ]
        eventually(lambda: server.waiting("slow") == 15)

        os.kill(workers(server)[0], signal.SIGKILL)
        eventually(lambda: server.waiting("slow") in (5, 10))
        # the clients hear of it when they do
        lost = eventually(lambda: next((some for some in ([0, 2], [1]) if all(calls[i][0].done() for i in some)), None))
        for call in (call for index in lost for call in calls[index]):
            with pytest.raises(grpc.RpcError) as caught:
                call.result()
            assert Failure(caught.value).code is StatusCode.UNAVAILABLE
        held.let_go()
        for call in (call for index in {0, 1, 2} - set(lost) for call in calls[index]):
            assert output(call.result()) == [1]

        eventually(lambda: server.metric("headrace_grpc_workers") == 2)
        assert server.metric("headrace_grpc_worker_restarts_total") == 1
        for stub in stubs:
            reply = stub.ModelInfer(request("double", x=floats(2)), timeout=SECONDS, wait_for_ready=True)
            assert output(reply) == [4]
        eventually(lambda: server.metric("headrace_connections") == 3)
    assert "a worker has ended" in server.log
    assert "signal 9" in server.log
    assert server.stop() == 0


def test_all_workers_are_killed(start):
    server = start()
    with channel_of(server) as channel:
        for pid in workers(server):
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: server.metric("headrace_grpc_worker_restarts_total") == 2)
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        reply = stub.ModelInfer(request("double", x=floats(2)), timeout=SECONDS, wait_for_ready=True)
        assert output(reply) == [4]
    assert server.stop() == 0


def test_the_server_is_not_ready_while_no_worker_responds(start):
    server = start()
    pids = workers(server)
    assert server.get_json("/v2/health/ready") == (200, {"ready": True})
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    eventually(lambda: server.get_json("/v2/health/ready") == (503, {"ready": False}))
    assert server.metric("headrace_grpc_workers") == 0
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    eventually(lambda: server.get("/v2/health/ready")[0] == 200)
    assert server.stop() == 0


def test_calls_that_are_lost_in_a_drain_show_in_the_exit_code(start):
    server = start("--inline-below-us", 0)
    with channel_of(server) as channel:
        held = occupy(server, service_pb2_grpc.GRPCInferenceServiceStub(channel), "slow")
        server.signal()
        server.await_log(lambda line: "draining for at most" in line)
        for pid in workers(server):
            os.kill(pid, signal.SIGKILL)
        assert failure(held.call.result).code is StatusCode.UNAVAILABLE
        held.let_go()
    assert server.wait() == 1
    assert "some requests were cut off" in server.log


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_go_with_the_server(start, number):
    server = start()
    pids = workers(server)
    assert not any(map(gone, pids))
    server.signal(number)
    server.wait()
    eventually(lambda: all(map(gone, pids)))


def test_signals_are_for_the_server(start):
    """A terminal sends them to the whole group."""
    server = start()
    with channel_of(server) as channel:
        for pid in workers(server):
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                os.kill(pid, number)
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert output(stub.ModelInfer(request("double", x=floats(2)), timeout=SECONDS)) == [4]
    assert server.metric("headrace_grpc_worker_restarts_total") == 0
    assert server.stop() == 0


@pytest.mark.parametrize("memory", [0, 300_000, 1 << 20])
def test_large_requests_whatever_the_memory(start, repository, memory):
    """With none to share, with less than there are requests for, and with enough."""
    write(repository, "echo", identity("FP32", "N", 25_000), "max_batch = 8")
    server = start("--grpc-worker-memory-bytes", memory)
    rows = [np.full((1, 25_000), number, np.float32) for number in range(40)]
    with channel_of(server) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        calls = [stub.ModelInfer.future(request("echo", x=row), timeout=SECONDS) for row in rows]
        for row, call in zip(rows, calls, strict=True):
            np.testing.assert_array_equal(output(call.result()), row)
    assert server.stop() == 0


def test_what_metrics_say(start):
    server = start()
    with channel_of(server) as one, channel_of(server) as other:
        for channel in (one, other):
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            stub.ModelInfer(request("double", x=floats(2)), timeout=SECONDS)
        eventually(lambda: server.metric("headrace_connections") == 2)
        assert server.metric("headrace_streams_opened_total") == 4
        assert server.metric("headrace_received_bytes_total") > 0
        assert server.metric("headrace_grpc_workers") == 2
        assert server.metric("headrace_grpc_worker_cpu_seconds_total", worker="1") > 0
        assert server.metric("headrace_grpc_worker_resident_memory_bytes", worker="0") > 1 << 20
    eventually(lambda: server.metric("headrace_connections") == 0)


def test_a_watch_of_health_hears_that_the_server_leaves(start):
    server = start("--drain-delay-seconds", 60)
    with channel_of(server) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(), timeout=SECONDS)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        server.signal()
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert health.Check(health_pb2.HealthCheckRequest(), timeout=SECONDS).status == 2
        server.signal()
        with pytest.raises(grpc.RpcError) as caught:
            next(watch)
        assert Failure(caught.value).code is StatusCode.UNAVAILABLE
    server.wait()


def test_a_method_that_nobody_has(start):
    with channel_of(start()) as channel:
        assert failure(channel.unary_unary("/no.Such/Method"), b"").code is StatusCode.UNIMPLEMENTED


def test_a_port_that_is_taken(start, repository):
    server = start()
    done = subprocess.run(
        [HEADRACE, "serve", "--model-repository", repository, "--http-port", "0", "--grpc-port", str(server.port),
         *map(str, WORKERS)],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env=plain_environment(),
    )  # fmt: skip
    assert done.returncode == 2
    assert f"grpc_port = {server.port}: cannot listen on 127.0.0.1" in done.stderr


def test_a_worker_imports_nothing_heavy():
    """It starts quickly, and its memory is its connections'."""
    script = "import sys, headrace.transport.workers.process; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60, env=plain_environment()
    )
    assert not set(done.stdout.split()) & set(HEAVY)
