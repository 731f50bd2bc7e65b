"""The CUDA backend behind the engine: batches in flight on threads, what is published, and the end."""

import asyncio
import threading

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from headrace.backends import registry
from headrace.backends.footprint import ledger_of
from headrace.backends.onnxruntime.cuda import OnnxRuntimeCudaBackend
from headrace.clock import monotonic_ns
from headrace.engine.lifecycle import Engine
from headrace.engine.shared_memory import NoSharedMemory
from headrace.engine.turn import Turn
from headrace.engine.worker import THREAD_NAME
from headrace.repository.catalog import Catalog
from headrace.telemetry.guard import ObserverGuard
from headrace.telemetry.metrics import Metrics
from headrace.testing.client import InProcessClient
from headrace.transport.infer import InferService

TOML = """
backend = "onnxruntime-cuda"
max_batch = 8
instances = 2

[backend_options]
headroom_bytes = 0
"""


class World:
    def __init__(self):
        turn = Turn(asyncio.get_running_loop())
        self.metrics = Metrics(CollectorRegistry())
        self.catalog = Catalog()
        self.engine = Engine(self.catalog, ObserverGuard(self.metrics), self.metrics, monotonic_ns, turn, 200_000)
        self.client = InProcessClient(
            InferService(self.catalog, turn, lambda reason: None, NoSharedMemory()), monotonic_ns
        )

    async def ask(self, rows):
        """Whether a request of so many rows of its own comes back right."""
        x = np.random.default_rng(rows).random((1 + rows % 5, 3), np.float32)
        found = (await self.client.infer("m", {"x": x}))["y"]
        return bool(np.array_equal(found, x * 2 + 1))


@pytest.fixture
def repository(affine, gpu, monkeypatch):
    monkeypatch.setattr(registry, "get", lambda name: OnnxRuntimeCudaBackend(**gpu.arguments))
    path = affine()

    def make(more=""):
        (path.parent / "model.toml").write_text(TOML + more)
        return path.parent.parent

    return make


@pytest.mark.parametrize("more", ["", "cuda_graphs = true\n"])
def test_requests_are_answered_from_batches_in_flight(repository, gpu, more):
    gpu.takes = 5000

    async def main():
        world = World()
        await world.engine.load_all(repository(more))
        assert all(await asyncio.gather(*(world.ask(index) for index in range(200))))
        reading = world.metrics.recorder("m", "1").read()
        assert {instance for _, instance in reading.closed} == {0, 1, 2, 3}
        assert reading.nodes == {"CUDAExecutionProvider": 2}
        assert reading.memory == {"cpu:0": 2 * 5000 + 4 * 2 * 8 * 12}
        world.engine.close()
        await asyncio.sleep(0)

    asyncio.run(main())
    for thread in threading.enumerate():
        if thread.name.startswith(THREAD_NAME):
            thread.join(10)
    assert gpu.gone == 2


def test_a_model_that_was_never_asked_is_closed_while_another_loads(repository, gpu):
    (device,) = gpu.devices

    async def main():
        world = World()
        await world.engine.load_all(repository())
        ledger = ledger_of(device)
        share = ledger.admit(device, "another", 0, 0)
        with ledger.measured(device, share):
            world.engine.close()
            await asyncio.sleep(0)
        ledger.release(share)

    asyncio.run(main())
    for thread in threading.enumerate():
        if thread.name.startswith(THREAD_NAME):
            thread.join(10)
    assert gpu.gone == 2


def test_a_model_that_cannot_be_on_a_gpu_does_not_serve_and_says_why(repository, gpu):
    gpu.works.clear()

    async def main():
        world = World()
        await world.engine.load_all(repository())
        (entry,) = world.catalog.index()
        assert (str(entry.state), entry.reason.partition(" and would")[0]) == (
            "UNAVAILABLE",
            "ONNX Runtime could not set up CUDAExecutionProvider",
        )

    asyncio.run(main())
