"""The script from start to stop, in this process, with signals that the test gives itself."""

import asyncio
import contextlib
import gc
import json

import grpc
import numpy as np
import pytest
from grpc import aio

from headrace import serve
from headrace.config import Settings
from headrace.errors import ConfigError
from headrace.rpc import inference_pb2 as pb
from headrace.telemetry.logs import Severities
from headrace.testing.backend import FakeBackend
from headrace.testing.client import infer_request
from headrace.transport.service import INFER_PATH

FAKE = 'backend = "headrace.testing.backend:FakeBackend"\n'
ROW = infer_request("m", {"x": np.array([[1, 2]], np.float32)})
PATIENCE_S = 20


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch):
    """What a process does once for good is undone; what a loaded model is, is seen."""
    monkeypatch.setattr(FakeBackend, "loaded", [])
    monkeypatch.setattr(serve, "_LAST_WORDS_SECONDS", 0.2)
    threshold = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*threshold)


@pytest.fixture(params=["native", "reference"])
def settings(request, tmp_path):
    def make(**more):
        return Settings(
            model_repository=tmp_path,
            grpc_port=0,
            http_port=0,
            transport=request.param,
            **more,
        )

    model(tmp_path, "m")
    return make


def model(root, name, toml=""):
    (root / name / "1").mkdir(parents=True)
    (root / name / "1" / "model.fake").touch()
    (root / name / "model.toml").write_text(FAKE + toml)


class Server:
    """`serve` as a task, its ports and its signals."""

    def __init__(self, settings, monkeypatch):
        self.settings = settings
        self.monkeypatch = monkeypatch
        self.started = asyncio.Event()
        self.ready = asyncio.Event()
        self.task = None
        self.signals = None

    async def __aenter__(self):
        test = self

        class Signals:
            def __init__(self, *, reloads):
                self.first, self.second = asyncio.Event(), asyncio.Event()
                test.signals = test.signals or self
                test.started.set()

        def info(text, *values):
            if text.startswith("ready:"):
                _, _, test.grpc_port, test.http_port = values
                test.ready.set()

        self.monkeypatch.setattr(serve, "_Signals", Signals)
        self.monkeypatch.setattr(serve.logger, "info", info)
        self.task = asyncio.create_task(serve.serve(self.settings, Severities("info")))
        ready = asyncio.create_task(self.ready.wait())
        await asyncio.wait((self.task, ready), timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        if self.task.done():
            self.task.result()
        return self

    async def __aexit__(self, *_):
        if not self.task.done():
            self.task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.task

    async def status(self):
        return await asyncio.wait_for(self.task, PATIENCE_S)

    async def get(self, path):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.http_port)
        writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), body

    def channel(self):
        return aio.insecure_channel(f"127.0.0.1:{self.grpc_port}")


def infer(channel):
    return channel.unary_unary(INFER_PATH)(ROW.SerializeToString())


def run(main):
    return asyncio.run(asyncio.wait_for(main, 2 * PATIENCE_S))


def test_it_serves_and_stops(settings, monkeypatch, tmp_path):
    model(tmp_path, "broken", 'backend_options = {refuse = "no"}')

    async def main():
        async with Server(settings(), monkeypatch) as server:
            assert await server.get("/v2/health/ready") == (200, b'{"ready":true}')
            async with server.channel() as channel:
                reply = pb.ModelInferResponse.FromString(await infer(channel))
                assert reply.raw_output_contents == ROW.raw_input_contents
                status, body = await server.get("/metrics")
                assert status == 200
                assert b'nv_inference_request_success{model="m",version="1"} 1.0' in body
            server.signals.first.set()
            return await server.status()

    assert run(main()) == 0
    assert [instance.closed for instance in FakeBackend.loaded[0].instances] == [True]


def test_what_was_accepted_is_answered_before_it_stops(settings, monkeypatch, tmp_path):
    model(tmp_path, "slow", "warmup = false")  # what nothing is known of runs on a thread
    slow = infer_request("slow", {"x": np.array([[1, 2]], np.float32)}).SerializeToString()

    async def main():
        async with Server(settings(), monkeypatch) as server, server.channel() as channel:
            instance = FakeBackend.loaded[1].instances[0]
            instance.hold()
            call = asyncio.ensure_future(channel.unary_unary(INFER_PATH)(slow))
            while b'nv_inference_exec_count{model="slow",version="1"}' not in (await server.get("/metrics"))[1]:
                pass
            await under_way(instance)
            server.signals.first.set()
            while (await server.get("/v2/health/ready"))[0] != 503:
                pass
            assert not server.task.done()
            instance.release()
            await call
            return await server.status()

    assert run(main()) == 0


def test_after_a_delay_it_leaves_by_itself(settings, monkeypatch):
    async def main():
        async with Server(settings(drain_delay_seconds=0.01), monkeypatch) as server:
            server.signals.first.set()
            return await server.status()

    assert run(main()) == 0


async def under_way(instance):
    """Returns once the instance's thread waits to be released."""
    assert await asyncio.to_thread(instance.blocked.wait, PATIENCE_S)


@pytest.mark.parametrize("how", ["its time is over", "a second signal"])
def test_what_is_not_done_in_time_is_told_so(settings, monkeypatch, tmp_path, how):
    model(tmp_path, "slow", "warmup = false")
    slow = infer_request("slow", {"x": np.array([[1, 2]], np.float32)}).SerializeToString()

    async def main():
        seconds = 0.0 if how == "its time is over" else 1000.0
        async with Server(settings(drain_seconds=seconds), monkeypatch) as server, server.channel() as channel:
            instance = FakeBackend.loaded[1].instances[0]
            instance.hold()
            call = asyncio.ensure_future(channel.unary_unary(INFER_PATH)(slow))
            await under_way(instance)
            server.signals.first.set()
            if how == "a second signal":
                server.signals.second.set()
            with pytest.raises(aio.AioRpcError) as caught:
                await call
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert caught.value.details() == "Server is shutting down and could not finish this request in time"
            status = await server.status()
            instance.release()
            return status

    assert run(main()) == 1


def test_a_port_that_is_taken_is_an_error_of_configuration(settings, monkeypatch):
    async def main():
        async with Server(settings(), monkeypatch) as server:
            for key in ("grpc_port", "http_port"):
                taken = getattr(server, key)
                with pytest.raises(ConfigError, match=rf"^{key} = {taken}: cannot listen on 127.0.0.1: "):
                    await serve.serve(settings().model_copy(update={key: taken}), Severities("info"))
            assert (await server.get("/v2/health/live"))[0] == 200
            server.signals.first.set()
            return await server.status()

    assert run(main()) == 0
    assert all(instance.closed for loaded in FakeBackend.loaded for instance in loaded.instances)


def test_a_repository_that_is_missing_is_an_error_of_configuration(settings, monkeypatch, tmp_path):
    async def main():
        async with Server(settings().model_copy(update={"model_repository": tmp_path / "none"}), monkeypatch):
            pass

    with pytest.raises(ConfigError, match=r"^model_repository = "):
        run(main())


def test_while_it_loads_it_lives_and_is_not_ready(settings, monkeypatch):
    gate = asyncio.Event()
    load_all = serve.Engine.load_all
    ports = asyncio.Queue()

    async def slow_load(self, root):
        await gate.wait()
        return await load_all(self, root)

    start = serve.HttpServer.start

    async def remember(self):
        port = await start(self)
        ports.put_nowait(port)
        return port

    monkeypatch.setattr(serve.Engine, "load_all", slow_load)
    monkeypatch.setattr(serve.HttpServer, "start", remember)

    async def main():
        server = Server(settings(), monkeypatch)
        starting = asyncio.create_task(server.__aenter__())
        server.http_port = await ports.get()
        assert await server.get("/v2/health/live") == (200, b'{"live":true}')
        status, body = await server.get("/v2/health/ready")
        assert (status, json.loads(body)) == (400, {"ready": False})
        gate.set()
        await starting
        assert (await server.get("/v2/health/ready"))[0] == 200
        server.signals.first.set()
        return await server.status()

    assert run(main()) == 0


def test_a_signal_ends_the_loading(settings, monkeypatch):
    async def never(self, root):
        await asyncio.Event().wait()

    monkeypatch.setattr(serve.Engine, "load_all", never)

    async def main():
        server = Server(settings(), monkeypatch)
        starting = asyncio.create_task(server.__aenter__())
        await server.started.wait()
        server.signals.first.set()
        await starting
        return await server.status()

    assert run(main()) == 0
