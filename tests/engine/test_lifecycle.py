import asyncio
import logging
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from headrace.engine import opening
from headrace.engine.lifecycle import Engine
from headrace.engine.opening import open_model, warm_sizes
from headrace.engine.shared_memory import NoSharedMemory
from headrace.engine.turn import Turn
from headrace.errors import ConfigError, InvalidRequest, ModelLoadError, ModelNotFound, ShuttingDown
from headrace.repository.catalog import Catalog
from headrace.repository.discovery import Found
from headrace.repository.model_config import ModelConfig
from headrace.telemetry.guard import ObserverGuard
from headrace.telemetry.metrics import Metrics
from headrace.testing.backend import FakeBackend
from headrace.testing.client import InProcessClient, infer_request
from headrace.testing.clock import FakeClock
from headrace.testing.loop import run_virtual
from headrace.transport.infer import InferService

FAKE = 'backend = "headrace.testing.backend:FakeBackend"\n'
ROW = np.array([[1, 2]], np.float32)


@pytest.fixture(autouse=True)
def _nothing_loaded(monkeypatch):
    monkeypatch.setattr(FakeBackend, "loaded", [])
    monkeypatch.setattr(FakeBackend, "latency_ns", 5000)
    monkeypatch.setattr(FakeBackend, "spend", None)


@pytest.fixture
def repository(tmp_path):
    """Makes a repository: what stands in each model's model.toml, by name, with versions after a slash."""

    def make(**models):
        for name, toml in models.items():
            for version in ("1", "2") if "versions" in toml else ("1",):
                (tmp_path / name / version).mkdir(parents=True)
                (tmp_path / name / version / "model.fake").touch()
            (tmp_path / name / "model.toml").write_text(FAKE + toml)
        return tmp_path

    return make


class World:
    def __init__(self):
        loop = asyncio.get_running_loop()
        self.clock = loop.clock
        turn = Turn(loop)
        FakeBackend.spend = self.clock.advance
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry)
        self.catalog = Catalog()
        self.engine = Engine(self.catalog, ObserverGuard(self.metrics), self.metrics, self.clock, turn, 200_000)
        self.client = InProcessClient(
            InferService(self.catalog, turn, lambda reason: None, NoSharedMemory()), self.clock
        )

    def states(self):
        return {f"{e.name}/{e.version}": (str(e.state), e.reason) for e in self.catalog.index()}


def found(tmp_path, **config):
    backend = "headrace.testing.backend:FakeBackend"
    return Found("m", 1, tmp_path, ModelConfig(**{"backend": backend, **config}))


def test_models_are_loaded_warmed_and_serve(repository, caplog):
    async def main():
        world = World()
        with caplog.at_level(logging.INFO):
            await world.engine.load_all(repository(a="", b='versions = "all"'))
        assert repr(world.engine) == "<Engine 3 versions serve>"
        assert world.states() == dict.fromkeys(("a/1", "b/1", "b/2"), ("READY", ""))
        assert (await world.client.infer("a", {"x": ROW}))["y"].tolist() == ROW.tolist()
        call = world.client.send(infer_request("b", {"x": ROW}, version="1"))
        await asyncio.sleep(1)
        assert call.response.model_version == "1"
        world.engine.close()

    run_virtual(main())
    assert "model a version 1 serves: fake by headrace.testing.backend:FakeBackend, max batch 8" in caplog.text
    assert "1 instances, loaded in 0.00 s, 1 row takes 5 us" in caplog.text
    assert len(FakeBackend.loaded) == 3
    sizes = [run.rows for run in FakeBackend.loaded[0].runs]
    assert sizes[:-1] == [rows for rows in (1, 2, 4, 8, 3, 5, 6, 7) for _ in range(3)]


def test_a_broken_model_leaves_the_others_serving(repository, caplog):
    async def main():
        world = World()
        root = repository(
            good="",
            refused='backend_options = {refuse = "no such operator"}',
            crashed='backend_options = {crash = "segment"}',
            failing='backend_options = {run_error = "bad weights"}',
            unreadable="max_bach = 3",
            checked="inputs.q.finite = true",
            unknown='backend_options = {}\ninstances = 2\n[batching]\npolicy = "whatever"',
            forgetful='[[sequence.state]]\ninput = "x"\noutput = "q"',
        )
        await world.engine.load_all(root)
        states = world.states()
        assert states.pop("good/1") == ("READY", "")
        assert {state for state, _ in states.values()} == {"UNAVAILABLE"}
        reasons = {name: reason for name, (_, reason) in states.items()}
        assert reasons["refused/1"] == "no such operator"
        assert reasons["crashed/1"] == "loading failed unexpectedly; the server's log says more"
        assert reasons["failing/1"] == (
            "a first run on zeros, batch size 1, failed: bad weights; a model that cannot run zeros needs a warm-up "
            "request, or warmup = false, and max_batch = 0 if its first dimensions are none of a batch"
        )
        assert reasons["checked/1"] == (
            f"{root / 'checked/model.toml'}: the configuration speaks of input ['q'], "
            "but the inputs of the model are ['x']"
        )
        assert reasons["forgetful/1"] == (
            f"{root / 'forgetful/model.toml'}: sequence speaks of output 'q', but the outputs of the model are ['y']"
        )
        assert "max_bach" in reasons["unreadable/None"]
        assert "policy" in reasons["unknown/None"]
        assert (await world.client.infer("good", {"x": ROW}))["y"].tolist() == ROW.tolist()
        with pytest.raises(ModelNotFound):
            await world.client.infer("refused", {"x": ROW})
        assert await world.engine.drain(1)
        world.engine.close()

    run_virtual(main())
    assert "model refused version 1 cannot be served: no such operator" in caplog.text
    fields = {(getattr(record, "model", ""), getattr(record, "version", "")) for record in caplog.records}
    assert ("refused", "1") in fields
    assert ("", "") not in fields
    assert "segment" in caplog.text  # for the operator
    assert all(instance.closed for model in FakeBackend.loaded for instance in model.instances)


def test_a_model_of_tritons_is_served_as_its_file_says(tmp_path, caplog):
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "1" / "model.fake").touch()
    (tmp_path / "m" / "labels.txt").write_text("left\nright\n")
    (tmp_path / "m" / "config.pbtxt").write_text("""
        backend: "headrace.testing.backend:FakeBackend" max_batch_size: 4 runtime: "x"
        input { name: "x" data_type: TYPE_FP32 dims: [ 2, 1 ] reshape { shape: [ 2 ] } }
        output { name: "y" data_type: TYPE_FP32 dims: [ 1, 2 ] reshape { shape: [ 2 ] } label_filename: "labels.txt" }
        dynamic_batching { }
    """)

    async def main():
        world = World()
        await world.engine.load_all(tmp_path)
        assert world.states() == {"m/1": ("READY", "")}
        reply = await world.client.infer("m", {"x": ROW.reshape(1, 2, 1)})
        assert reply["y"].tolist() == [ROW.tolist()]
        big = await world.client.infer("m", {"x": np.arange(14, dtype=np.float32).reshape(7, 2, 1)})  # is split
        assert big["y"].tolist() == np.arange(14).reshape(7, 1, 2).tolist()
        (scheduler,) = world.engine.schedulers
        assert scheduler.signature.outputs[0].labels == ("left", "right")
        assert scheduler.stated.runtime == "x"
        world.engine.close()

    with caplog.at_level(logging.WARNING):
        run_virtual(main())
    assert caplog.messages == ["model m version 1: config.pbtxt: runtime: ignored: it names a library of Triton's"]
    assert [instance.closed for model in FakeBackend.loaded for instance in model.instances] == [True]


def test_a_repository_that_is_not_there():
    async def main():
        await World().engine.load_all(Path("/nonexistent/models"))

    with pytest.raises(ConfigError, match=r'model_repository = "/nonexistent/models"'):
        run_virtual(main())


def test_statistics_and_metrics_are_those_of_the_version(repository):
    async def main():
        world = World()
        await world.engine.load_all(repository(a=""))
        for rows in (1, 3):
            await world.client.infer("a", {"x": ROW.repeat(rows, 0)})
        (scheduler,) = world.engine.schedulers
        statistics = scheduler.statistics()
        assert (statistics.inference_count, statistics.execution_count, statistics.success.count) == (4, 2, 2)
        assert world.metrics.statistics("a", "1") == statistics
        sample = world.registry.get_sample_value
        assert sample("nv_inference_request_success", {"model": "a", "version": "1"}) == 2
        world.engine.close()
        assert sample("nv_inference_request_success", {"model": "a", "version": "1"}) is None
        assert world.engine.schedulers == []
        world.engine.close()

    run_virtual(main())


STATEFUL = """
backend_options = {stateful = true}
[[sequence.state]]
input = "before"
output = "after"
"""


def test_a_stateful_model(repository):
    async def main():
        world = World()
        await world.engine.load_all(repository(sums=STATEFUL))

        async def add(**flags):
            outputs = await world.client.infer("sums", {"x": ROW}, parameters={"sequence_id": 5, **flags})
            return outputs["y"].tolist()

        assert await add(sequence_start=True) == [[1, 2]]
        assert await add() == [[2, 4]]
        sample = world.registry.get_sample_value
        assert sample("headrace_sequences_active", {"model": "sums", "version": "1"}) == 1
        assert sample("nv_inference_request_success", {"model": "sums", "version": "1"}) == 2
        (found,) = world.engine.serving("sums").values()
        assert await world.engine.load(found) == ""  # a new model, which knows of no sequence
        with pytest.raises(InvalidRequest, match="must specify the START flag"):
            await add()
        assert await add(sequence_start=True) == [[1, 2]]
        assert await world.engine.drain(1)
        world.engine.close()

    run_virtual(main())
    assert all(instance.closed for model in FakeBackend.loaded for instance in model.instances)


def test_draining_and_closing(repository):
    async def main():
        world = World()
        await world.engine.load_all(repository(a="", b='[batching]\npolicy = "delay"\ndelay_us = 1000000'))
        calls = [world.client.send(infer_request(name, {"x": ROW})) for name in "ab"]
        assert await world.engine.drain(1)
        assert all(call.response for call in calls)
        assert type(world.client.send(infer_request("a", {"x": ROW})).error) is ShuttingDown
        world.engine.close()

    run_virtual(main())
    assert [instance.closed for model in FakeBackend.loaded for instance in model.instances] == [True, True]


@pytest.mark.parametrize("max_batch", [1, 2, 3, 8, 9, 64])
def test_every_size_that_can_occur_is_warmed_the_telling_ones_first(max_batch):
    sizes = warm_sizes(ModelConfig(), max_batch)
    assert sorted(sizes) == list(range(1, max_batch + 1))
    head = sizes[: sizes.index(max_batch) + 1]
    assert head == [n for n in (1, 2, 4, 8, 16, 32) if n < max_batch] + [max_batch]


@pytest.mark.parametrize(
    ("warmup", "max_batch", "sizes"), [(False, 8, []), (True, 0, [1]), ((1, 5, 8), 8, [1, 5, 8]), ((1,), 0, [1])]
)
def test_what_the_configuration_says_of_warming(warmup, max_batch, sizes):
    assert warm_sizes(ModelConfig(warmup=warmup), max_batch) == sizes


@pytest.mark.parametrize(("warmup", "max_batch", "most"), [((1, 5, 99), 8, 8), ((3,), 0, 1)])
def test_a_size_that_cannot_occur_is_no_warming(warmup, max_batch, most):
    with pytest.raises(ModelLoadError, match=f"warmup has {max(warmup)} rows, a batch of the model at most {most}"):
        warm_sizes(ModelConfig(warmup=warmup), max_batch)


def test_warming_teaches_the_cost_model_and_stops_in_time(tmp_path, monkeypatch):
    clock = FakeClock()
    monkeypatch.setattr(FakeBackend, "latency_ns", 200_000_000)
    monkeypatch.setattr(FakeBackend, "spend", clock.advance)
    model, instances, cost = open_model(found(tmp_path, instances=2), clock, 0)
    assert cost.mean(1) == cost.mean(4) == 200_000_000
    # 2 s are over during the runs of 8 rows, for each of the instances
    assert [run.rows for run in model.runs] == [1, 1, 1, 2, 2, 2, 4, 4, 4, 8, 8, 8] * 2
    assert len(instances) == 2


def test_warming_rests_for_as_long_as_it_runs(tmp_path, monkeypatch):
    """Half of the processor is left to those who serve meanwhile; what is learned are the runs alone."""
    clock = FakeClock()
    monkeypatch.setattr(FakeBackend, "latency_ns", 1_000_000)
    monkeypatch.setattr(FakeBackend, "spend", clock.advance)
    rests = []

    def rest(nanoseconds):
        rests.append(nanoseconds)
        clock.advance(nanoseconds)

    model, _, cost = open_model(found(tmp_path), clock, 0, rest)
    assert rests == [1_000_000] * len(model.runs)
    assert cost.mean(1) == 1_000_000


def test_dimensions_of_any_size_are_tried_with_1_and_need_not_succeed(tmp_path, caplog):
    options = {"dims": [-1, 3], "run_error": "needs at least 16"}
    model, _, cost = open_model(found(tmp_path, backend_options=options), FakeClock(), 0)
    assert [run.inputs[0].shape for run in model.runs] == [(1, 1, 3)]
    assert cost.observed == 0
    assert "model m is not warmed" in caplog.text


def test_sizes_that_would_take_very_much_memory_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "WARM_BYTES", 65)
    model, _, _ = open_model(found(tmp_path, backend_options={"dims": [4]}), FakeClock(), 0)
    assert {run.rows for run in model.runs} == {1, 2, 3, 4}


def test_instances_of_a_model_that_fails_are_closed(tmp_path):
    with pytest.raises(ModelLoadError, match="batch size 1, failed: broken"):
        open_model(found(tmp_path, instances=3, backend_options={"run_error": "broken"}), FakeClock(), 0)
    assert [instance.closed for instance in FakeBackend.loaded[0].instances] == [True] * 3
