"""The CUDA backend behind the engine: batches in flight on threads, what is published, and the end."""

import asyncio
import threading

import numpy as np
import pytest
from onnx import TensorProto, helper
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


def run(main):
    """To its end, and that of the threads of what it served."""
    asyncio.run(main())
    for thread in threading.enumerate():
        if thread.name.startswith(THREAD_NAME):
            thread.join(10)


@pytest.fixture
def backend(gpu, monkeypatch):
    monkeypatch.setattr(registry, "get", lambda name: OnnxRuntimeCudaBackend(**gpu.arguments))


@pytest.fixture
def repository(affine, backend):
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

    run(main)
    assert gpu.gone == 2


BUCKETS = """cuda_graphs = true
batch_buckets = [1, 4, 8]

[buckets.length]
sizes = [2, 8]
outputs.y = [1]
"""
AS_IT_IS = "inputs.x = [1]\n"
AS_SHOWN = "inputs.x = [2]\n[inputs.x]\ndims = [1, -1]\nreshape = [-1]\n"


@pytest.mark.parametrize("shown", [AS_IT_IS, AS_SHOWN], ids=["as-it-is", "as-shown"])
def test_rows_of_several_lengths_are_answered_from_graphs(varying, backend, gpu, shown):
    async def main():
        world = World()
        (varying.parent / "model.toml").write_text(TOML + BUCKETS + shown)
        await world.engine.load_all(varying.parent.parent)
        gpu.runs.clear()

        async def ask(index):
            x = np.random.default_rng(index).integers(-9, 9, (1 + index % 5, 1 + index % 8)).astype(np.float32)
            found = await world.client.infer("m", {"x": x if shown == AS_IT_IS else x[:, None]})
            return np.array_equal(found["y"], -x) and np.array_equal(found["z"], x.sum(1))

        assert all(await asyncio.gather(*(ask(index) for index in range(200))))
        assert set(gpu.runs) == {"launched"}
        world.engine.close()
        await asyncio.sleep(0)

    run(main)


TOP = """
[buckets.length]
sizes = [4, 8]
inputs.x = 1
outputs = {scores_values = 1, scores_indices = 1}

[inputs.k] # another order than that of the file
[inputs.x]

[postprocess.scores]
kind = "top_k"
k = 2
softmax = false

[[warmup_data]]
[warmup_data.inputs.x]
dims = [5]
[warmup_data.inputs.k]
dims = [1, 1]
"""


@pytest.mark.parametrize("graphs", ["true", '"auto"'])
def test_buckets_may_speak_of_what_is_made_of_outputs(write, backend, gpu, graphs):
    """Scores are 1 to 4 times x, and k."""
    path = write(
        [
            helper.make_node("Unsqueeze", ["x", "axis"], ["column"]),
            helper.make_node("Mul", ["column", "factors"], ["product"]),
            helper.make_node("Add", ["product", "k"], ["scores"]),
        ],
        [("x", TensorProto.FLOAT, ("N", "L")), ("k", TensorProto.FLOAT, ("N", 1, 1))],
        [("scores", TensorProto.FLOAT, ("N", "L", 4))],
        [
            helper.make_tensor("axis", TensorProto.INT64, [1], [2]),
            helper.make_tensor("factors", TensorProto.FLOAT, [4], [1, 2, 3, 4]),
        ],
    )

    async def main():
        world = World()
        (path.parent / "model.toml").write_text(TOML + f"cuda_graphs = {graphs}\n" + TOP)
        await world.engine.load_all(path.parent.parent)
        gpu.runs.clear()
        x, k = np.array([[1, 2, 3]], np.float32), np.array([[[10]]], np.float32)
        found = await world.client.infer("m", {"x": x, "k": k})
        assert found["scores_values"].tolist() == [[[14, 13], [18, 16], [22, 19]]]
        assert found["scores_indices"].tolist() == [[[3, 2]] * 3]
        assert set(gpu.runs) == ({"launched"} if graphs == "true" else {"free"})
        world.engine.close()
        await asyncio.sleep(0)

    run(main)


def test_lengths_without_buckets_are_in_no_graph(varying, backend):
    async def main():
        world = World()
        (varying.parent / "model.toml").write_text(TOML + "cuda_graphs = true\n")
        await world.engine.load_all(varying.parent.parent)
        (entry,) = world.catalog.index()
        assert entry.reason.startswith(
            "cuda_graphs = true, but not all dimensions of the model are fixed, or in bucket"
        )

    asyncio.run(main())


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

    run(main)
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
