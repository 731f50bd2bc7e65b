import asyncio
from types import SimpleNamespace

import numpy as np
from engine.controlling import virtual
from engine.test_lifecycle import World

from headrace.backends.base import InstanceLost
from headrace.drift.worker import DriftWorker
from headrace.engine.control import ModelControl
from headrace.engine.drifting import ModelDrift
from headrace.engine.lifecycle import Engine
from headrace.engine.shared_memory import Registered, SharedMemoryRegions
from headrace.errors import ShuttingDown
from headrace.messages import Region
from headrace.pipeline.response_cache import ResponseCache
from headrace.telemetry.guard import ObserverGuard
from headrace.testing.backend import FakeBackend
from headrace.testing.client import InProcessClient, infer_request, output_arrays
from headrace.transport.infer import InferService

ROW = np.array([[1, 2]], np.float32)
CACHED = "response_cache = true\n"


class Cached(World):
    """An engine with a response cache of so many bytes."""

    def __init__(self, repository, max_bytes=100_000):
        super().__init__()
        self.cache = ResponseCache(max_bytes) if max_bytes else None
        turn = self.engine._turn
        self.engine = Engine(
            self.catalog, ObserverGuard(self.metrics), self.metrics, self.clock, turn, 200_000, cache=self.cache
        )
        self.control = ModelControl(repository.root, "explicit", self.engine, ["*"])

    async def ask(self, rows=ROW, **more):
        call = self.client.send(infer_request("a", {"x": rows}, **more))
        await asyncio.sleep(0.001)
        return call.response

    def runs(self):
        return len(FakeBackend.loaded[-1].runs)

    def statistics(self):
        return self.catalog.resolve("a").statistics()


@virtual
async def test_equal_inputs_run_once(repository):
    repository.write("a", CACHED)
    world = Cached(repository)
    await world.control.start()
    warm = world.runs()
    for number in (1, 2, 1, 2, 1):
        reply = await world.ask(ROW * number, request_id=str(number))
        assert output_arrays(reply)["y"].tolist() == (ROW * number).tolist()
        assert reply.id == str(number)
    assert world.runs() - warm == 2
    found = world.statistics()
    assert (found.success.count, found.queue.count, found.inference_count, found.execution_count) == (5, 5, 2, 2)
    assert (found.compute_infer.count, found.cache_hit.count, found.cache_miss.count) == (2, 3, 2)
    sample = world.registry.get_sample_value
    labels = {"model": "a", "version": "1"}
    assert sample("nv_cache_num_hits_per_model", labels) == 3
    assert sample("nv_cache_num_misses_per_model", labels) == 2
    assert sample("nv_inference_request_success", labels) == 5
    assert sample("nv_inference_count", labels) == 2


@virtual
async def test_another_shape_is_another_request(repository):
    repository.write("a", CACHED)
    world = Cached(repository)
    await world.control.start()
    zeros = np.zeros((2, 2), np.float32)
    assert list((await world.ask(zeros)).outputs[0].shape) == [2, 2]
    assert list((await world.ask(zeros[:1])).outputs[0].shape) == [1, 2]
    assert world.statistics().cache_hit.count == 0


@virtual
async def test_what_a_client_writes_to_shared_memory_meanwhile_is_not_kept_for_others(repository):
    repository.write("a", CACHED)
    world = Cached(repository)
    await world.control.start()
    (repository.root / "r").write_bytes(ROW.tobytes())
    memory = SharedMemoryRegions(repository.root)
    memory.register(Registered("r", "/r", 0, 8))
    request = infer_request("a", {"x": ROW})
    del request.raw_input_contents[:]
    request.inputs[0].parameters["shared_memory_region"].string_param = "r"
    request.inputs[0].parameters["shared_memory_byte_size"].int64_param = 8
    service = InferService(world.catalog, world.engine._turn, lambda reason: None, memory)
    call = InProcessClient(service, world.clock).send(request)
    memory.view(Region("r", 0, 8))[:] = (ROW * 7).tobytes()
    await asyncio.sleep(0.001)
    assert output_arrays(call.response)["y"].tolist() == ROW.tolist()
    assert output_arrays(await world.ask())["y"].tolist() == ROW.tolist()
    assert world.statistics().cache_hit.count == 1


@virtual
async def test_a_reply_is_kept_for_its_time(repository):
    repository.write("a", CACHED + "cache_ttl_s = 10.0\n")
    world = Cached(repository)
    await world.control.start()
    await world.ask()
    await asyncio.sleep(9)
    await world.ask()
    assert world.statistics().cache_hit.count == 1
    await asyncio.sleep(2)
    await world.ask()
    assert world.statistics().cache_hit.count == 1


@virtual
async def test_timing_tells_of_a_hit(repository):
    repository.write("a", CACHED)
    world = Cached(repository)
    await world.control.start()
    timing = {"headrace_timing": True}
    first, second = [(await world.ask(parameters=timing)).parameters for _ in range(2)]
    assert first["headrace_close_reason"].string_param == "idle"
    assert second["headrace_close_reason"].string_param == "cached"
    assert second["headrace_execute_us"].int64_param == 0


@virtual
async def test_what_was_cached_goes_with_its_version(repository):
    repository.write("a", CACHED)
    world = Cached(repository)
    await world.control.start()
    await world.ask()
    await world.control.load("a")
    await asyncio.sleep(1)
    assert len(world.cache) == 0
    await world.ask()
    assert world.statistics().cache_hit.count == 0
    world.engine.close()
    assert len(world.cache) == 0


@virtual
async def test_a_model_that_does_not_ask_is_not_cached(repository):
    repository.write("a")
    world = Cached(repository)
    await world.control.start()
    for _ in range(2):
        await world.ask()
    assert len(world.cache) == 0
    assert world.registry.get_sample_value("nv_cache_num_hits_per_model", {"model": "a", "version": "1"}) is None


def test_without_a_cache_the_wish_is_told_to_be_without_effect(repository, caplog):
    @virtual
    async def scenario(repository):
        repository.write("a", CACHED)
        world = Cached(repository, 0)
        await world.control.start()
        await world.ask()

    scenario(repository)
    assert "model a: response_cache is without effect, response_cache_bytes is 0" in caplog.text


@virtual
async def test_a_caller_that_goes_away(repository):
    repository.write("a", CACHED + '[batching]\npolicy = "delay"\ndelay_us = 10000\n')
    world = Cached(repository)
    await world.control.start()
    call = world.client.send(infer_request("a", {"x": ROW}))
    call.cancel()
    await asyncio.sleep(1)
    assert world.statistics().fail.count == 1
    assert len(world.cache) == 0


@virtual
async def test_draining_answers_what_runs_and_nothing_more(repository):
    repository.write("a", CACHED + '[batching]\npolicy = "delay"\ndelay_us = 10000\n')
    world = Cached(repository)
    await world.control.start()
    call = world.client.send(infer_request("a", {"x": ROW}))
    assert await world.engine.drain(1)
    assert output_arrays(call.response)["y"].tolist() == ROW.tolist()
    late = world.client.send(infer_request("a", {"x": ROW}))
    assert type(late.error) is ShuttingDown


@virtual
async def test_more_rows_than_a_batch(repository):
    repository.write("a", CACHED)
    world = Cached(repository)
    await world.control.start()
    rows = np.arange(40, dtype=np.float32).reshape(20, 2)
    for _ in range(2):
        assert output_arrays(await world.ask(rows))["y"].tolist() == rows.tolist()
    assert world.statistics().cache_hit.count == 1


@virtual
async def test_what_is_cached_is_answered_though_no_instance_is_left(repository):
    repository.write("a", CACHED)
    world = Cached(repository)
    await world.control.start()
    assert output_arrays(await world.ask())["y"].tolist() == ROW.tolist()
    served = world.catalog.resolve("a")
    FakeBackend.loaded[-1].instances[0].lost = InstanceLost("no memory")
    missed = world.client.send(infer_request("a", {"x": ROW * 2}))
    await asyncio.sleep(0.1)
    assert (served.condition.usable, missed.ended) == (0, False)
    assert output_arrays(await world.ask())["y"].tolist() == ROW.tolist()
    await asyncio.sleep(5)
    assert output_arrays(missed.response)["y"].tolist() == (ROW * 2).tolist()
    assert served.condition.usable == 1


class Seen:
    """A monitor that keeps what it is shown."""

    watches = (SimpleNamespace(key="inputs.x"), SimpleNamespace(key="outputs.y"))

    def __init__(self):
        self.offered = 0
        self.rows = {"inputs.x": [], "outputs.y": []}

    def count(self, now_ms, tensors, offered):
        self.offered += offered
        for key, array in tensors.items():
            self.rows[key] += array.tolist()


@virtual
async def test_drift_is_of_what_flows_by_cached_or_not(repository):
    repository.write("a", CACHED)
    world = Cached(repository)
    await world.control.start()
    worker, seen = DriftWorker(1.0, world.clock, lambda: 0, lambda: 0), Seen()
    served = world.catalog.resolve("a")
    drift = ModelDrift(worker, seen, served.signature, world.clock)
    served._scheduler.watchers = [drift]
    sent = []
    for number in (1, 2, 1, 1, 3, 2):
        await world.ask(np.repeat(ROW, number, axis=0) * number)
        sent += [[number, 2 * number]] * number
        worker.run_waiting()
    assert world.statistics().cache_hit.count == 3
    assert seen.rows == {"inputs.x": sent, "outputs.y": sent}
    watched = drift.watched
    assert (seen.offered, watched.offered, watched.looked_at, watched.skipped) == (10, 10, 10, 0)
    worker._resume_ns = world.clock() + 10**15  # the budget is spent
    await world.ask()
    assert (watched.offered, watched.looked_at, watched.skipped) == (11, 10, 1)
    worker.run_waiting()
    assert seen.rows["inputs.x"] == sent
