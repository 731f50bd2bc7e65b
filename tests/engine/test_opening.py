"""From a chain of backends to instances that serve: which is taken, why the others were not, and what comes later."""

import asyncio
import gc
import logging
import weakref

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from prometheus_client import CollectorRegistry

from headrace.backends.base import InstanceLost
from headrace.clock import monotonic_ns
from headrace.engine import opening
from headrace.engine.lifecycle import Engine
from headrace.engine.opening import open_version
from headrace.engine.probe import Rejected
from headrace.engine.turn import Turn
from headrace.errors import ModelLoadError
from headrace.repository.catalog import Catalog
from headrace.repository.discovery import Found
from headrace.repository.model_config import ModelConfig
from headrace.telemetry.guard import ObserverGuard
from headrace.telemetry.metrics import Metrics
from headrace.testing.clock import FakeClock
from headrace.testing.fragile import First, FragileBackend
from headrace.testing.loop import run_virtual

FIRST = "headrace.testing.fragile:First"
SECOND = "headrace.testing.fragile:Second"
CPU = "onnxruntime-cpu"
FAKE = "headrace.testing.backend:FakeBackend"
MISSING = "no_such_package.backend:Backend"


def double():
    """x -> y = 2 x, as ONNX."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ("N", 2)) for name in "xy")
    two = numpy_helper.from_array(np.array(2, np.float32), "two")
    graph = helper.make_graph([helper.make_node("Mul", ["x", "two"], ["y"])], "double", [x], [y], [two])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    made.ir_version = 9
    return made.SerializeToString()


@pytest.fixture
def found(tmp_path):
    def make(*chain, **config):
        directory = tmp_path / "m" / "1"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "model.onnx").write_bytes(double())
        return Found("m", 1, directory, ModelConfig(**{"backend": chain, "max_batch": 8, **config}))

    return make


@pytest.fixture
def made(monkeypatch):
    """All models that fragile backends have loaded while the test runs."""
    models = []
    load = FragileBackend.load

    def recording(self, *args, **more):
        models.append(load(self, *args, **more))
        return models[-1]

    monkeypatch.setattr(FragileBackend, "load", recording)
    return models


def opened_by(found, **more):
    return open_version(found, FakeClock(), 0, **more)


def run(instance):
    (y,) = instance.run([[np.array([1, 2], np.float32).tobytes()]], [(1, 2)], [0])
    return y.tolist()


def test_the_first_that_works_serves(found, made):
    opened = opened_by(found(FIRST, SECOND, CPU))
    assert (opened.supply.backends, opened.note, opened.passed_over) == ((FIRST, SECOND, CPU), "", {})
    assert [run(instance) for instance in opened.instances] == [[[2, 4]]]
    assert repr(opened.supply) == f"<ModelSupply of m/1 by {FIRST}, {SECOND}, {CPU}>"


@pytest.mark.parametrize(
    ("chain", "options", "files", "reason", "text"),
    [
        ((MISSING, CPU), {}, (), "unavailable", "no_such_package"),
        ((FIRST, CPU), {}, ("first.absent",), "load", "there is no such device"),
        ((FIRST, CPU), {}, ("first.broken",), "load", "a first run on zeros, batch size 1, failed: the device refuses"),
        ((FIRST, CPU), {FIRST: {"add": 1.0}}, (), "probe_differs", "a probe on random numbers, compared with onnxrunt"),
        (
            (FAKE, CPU),
            {FAKE: {"dims": [3]}},
            (),
            "signature",
            "this backend has inputs 'x' FP32 [3], expected 'x' FP32 [2]",
        ),
        ((FAKE, CPU), {FAKE: {"crash": "segment"}}, (), "load", "it failed unexpectedly: RuntimeError('segment')"),
    ],
    ids=["not installed", "no device", "does not run", "wrong", "another model", "crashes"],
)
def test_one_that_does_not_work_is_passed_over_and_it_is_said_why(
    found, made, caplog, chain, options, files, reason, text
):
    version = found(*chain, backend_options=options)
    for name in files:
        (version.path / name).touch()
    with caplog.at_level(logging.WARNING):
        opened = opened_by(version)
    assert opened.supply.backends == (CPU,)
    assert [run(instance) for instance in opened.instances] == [[[2, 4]]]
    ((backend, rejection),) = opened.passed_over.items()
    assert (backend, rejection.reason) == (chain[0], reason)
    assert text in str(rejection)
    assert opened.note.startswith(f"falls back to {CPU}; {chain[0]}: ")
    assert text in opened.note
    assert f"model m version 1: backend {chain[0]} does not work ({reason}): " in caplog.text
    assert all(instance.closed for model in made for instance in model.instances)


@pytest.mark.parametrize("at_load", [True, False])
def test_what_is_passed_over_is_not_kept_in_memory(found, monkeypatch, at_load):
    alive = []
    load = FragileBackend.load

    def watched(self, *args, **more):
        gc.collect()  # fakes and their instances know one another
        assert not [model for model in alive if model() is not None], "the one before it holds its device's memory"
        model = load(self, *args, **more)
        alive.append(weakref.ref(model))
        return model

    monkeypatch.setattr(FragileBackend, "load", watched)
    version = found(FIRST, SECOND, backend_options={FIRST: {"add": 1.0}})
    if at_load:
        (version.path / "first.broken").touch()
    assert opened_by(version).supply.backends == (SECOND,)
    assert len(alive) == 2


def test_if_none_works_all_reasons_are_told(found):
    version = found(MISSING, FIRST)
    (version.path / "first.absent").touch()
    with pytest.raises(ModelLoadError) as raised:
        opened_by(version)
    text = str(raised.value)
    assert text.startswith(f"no backend of the chain works: {MISSING}: ")
    assert text.endswith(f"; {FIRST}: there is no such device")


def test_a_name_that_nobody_knows_is_no_reason_to_fall_back(found):
    with pytest.raises(ModelLoadError, match="unknown backend 'onnxruntime-cp'; did you mean 'onnxruntime-cpu'"):
        opened_by(found(CPU, "onnxruntime-cp"))


def test_a_backend_alone_is_not_compared(found, made):
    opened = opened_by(found(backend=FIRST, backend_options={"add": 1.0}))
    assert run(opened.instances[0]) == [[3, 5]]


def test_unless_it_is_to_be(found, made):
    with pytest.raises(Rejected, match="compared with onnxruntime-cpu: output 'y', element"):
        opened_by(found(backend=FIRST, backend_options={"add": 1.0}, fallback={"probe": True}))
    assert all(instance.closed for model in made for instance in model.instances)


def test_a_list_need_not_be_compared(found):
    version = found(FIRST, CPU, backend_options={FIRST: {"add": 1.0}}, fallback={"probe": False})
    assert opened_by(version).supply.backends[0] == FIRST


@pytest.mark.parametrize("chain", [(FIRST,), (FIRST, CPU)])
def test_a_device_without_memory_at_load(found, monkeypatch, chain):
    def full(self, *args, **options):
        raise InstanceLost("3 GB are asked for, 1 GB is free")

    monkeypatch.setattr(First, "load", full)
    if len(chain) == 1:
        with pytest.raises(ModelLoadError, match=r"^3 GB are asked for, 1 GB is free$"):
            opened_by(found(*chain))
    else:
        assert "3 GB are asked for" in opened_by(found(*chain)).note


def test_executors_of_each_backend(found, made):
    options = {FIRST: {"executors": 3}, SECOND: {"executors": 2}}
    opened = opened_by(found(FIRST, SECOND, instances=2, backend_options=options))
    assert len(opened.instances) == 6
    instance = asyncio.run(opened.supply.make(SECOND, 0, hurry=True))
    assert opened.supply.total(SECOND) == 4
    instance.close()


@pytest.mark.parametrize("inline", [False, True])
def test_what_waits_for_a_device_does_not_run_on_the_event_loop(found, inline):
    options = {FIRST: {"inline": inline}, SECOND: {"inline": not inline}}
    opened = open_version(found(FIRST, SECOND, backend_options=options), FakeClock(), 1_000_000_000)
    assert opened.cost.inline(1) is inline
    asyncio.run(opened.supply.make(SECOND, 0, hurry=True)).close()
    cost = opened.supply.cost_model(SECOND)
    cost.observe(1, 1000)
    assert cost.inline(1) is not inline


# --- what the supply makes --------------------------------------------------------------------------------------------


def make(supply, backend, index=0):
    return asyncio.run(supply.make(backend, index, hurry=True))


def test_an_instance_is_made_anew_of_what_is_loaded_and_has_to_prove_itself(found, made):
    version = found(FIRST, CPU)
    opened = opened_by(version)
    instance = make(opened.supply, FIRST)
    assert len(made) == 1
    assert run(instance) == [[2, 4]]
    assert len(instance.runs) > 3, "it is warm"
    (version.path / "first.broken").touch()
    with pytest.raises(ModelLoadError, match="the device refuses"):
        make(opened.supply, FIRST)
    assert made[0].instances[-1].closed
    (version.path / "first.broken").unlink()
    make(opened.supply, FIRST)
    assert len(made) == 2, "what it had loaded may be lost too: it is loaded anew"


@pytest.mark.parametrize("hurry", [False, True])
def test_others_that_serve_are_left_the_processor(found, monkeypatch, hurry):
    opened = opened_by(found(FIRST))
    rests = []
    monkeypatch.setattr(opening, "rest_ns", rests.append)
    asyncio.run(opened.supply.make(FIRST, 0, hurry=hurry)).close()
    assert bool(rests) is not hurry


def test_a_stand_in_has_to_pass_the_probe(found, made):
    version = found(FIRST, SECOND, CPU, backend_options={SECOND: {"add": 1.0}})
    opened = opened_by(version)
    with pytest.raises(Rejected, match="compared with onnxruntime-cpu") as raised:
        make(opened.supply, SECOND)
    assert raised.value.reason == "probe_differs"
    assert all(instance.closed for instance in made[1].instances)
    instance = make(opened.supply, CPU)
    assert run(instance) == [[2, 4]]
    assert opened.supply.total(CPU) == 1
    assert opened.supply.cost_model(CPU).mean(1) == 0
    instance.close()


def test_a_stand_in_of_another_signature_is_rejected(found, made):
    opened = opened_by(found(FIRST, FAKE, backend_options={FAKE: {"dims": [3]}}, fallback={"probe": False}))
    with pytest.raises(Rejected, match="FakeBackend has inputs"):
        make(opened.supply, FAKE)


def test_a_stand_in_is_loaded_once_until_it_is_forgotten(found, made):
    opened = opened_by(found(FIRST, SECOND))
    for index in range(2):
        make(opened.supply, SECOND, index)
    assert len(made) == 2
    opened.supply.forget(SECOND)
    make(opened.supply, SECOND)
    assert len(made) == 3


def test_none_stands_in_where_that_is_not_allowed(found):
    opened = opened_by(found(MISSING, FIRST, CPU, fallback={"at_run_time": False}))
    assert opened.supply.backends == (FIRST,)


def test_the_pauses_are_those_of_the_configuration(found):
    supply = opened_by(found(FIRST, fallback={"rebuild_first_s": 0.25, "rebuild_max_s": 4})).supply
    assert (supply.first_ns, supply.max_ns) == (250_000_000, 4_000_000_000)


# --- and what the engine tells of it ----------------------------------------------------------------------------------


def test_what_was_passed_over_is_counted_and_shown(found):
    version = found(MISSING, FIRST, CPU)
    (version.path / "first.absent").touch()
    registry = CollectorRegistry()

    async def main():
        metrics, catalog = Metrics(registry), Catalog()
        turn = Turn(asyncio.get_running_loop())
        engine = Engine(catalog, ObserverGuard(metrics), metrics, monotonic_ns, turn, 0)
        assert await engine.load(version) == ""
        (entry,) = catalog.index()
        assert entry.reason.startswith(f"falls back to {CPU}; {MISSING}: ")
        assert "there is no such device" in entry.reason
        engine.confirm("m", 1)
        assert catalog.index()[0].reason == entry.reason, "it still is"
        labels = {"model": "m", "version": "1"}
        sample = registry.get_sample_value
        counted = [(MISSING, FIRST, "unavailable"), (FIRST, CPU, "load")]
        for backend, to, reason in counted:
            more = {"from": backend, "to": to, "reason": reason}
            assert sample("headrace_backend_fallbacks_total", labels | more) == 1
        assert sample("headrace_backend_info", labels | {"backend": CPU}) == 1
        assert sample("headrace_instances", labels | {"backend": CPU, "state": "idle"}) == 1
        engine.close()

    run_virtual(main())


def test_the_chain_of_the_documentation_serves_on_any_machine(found):
    chain = ("tensorrt", "onnxruntime-tensorrt", "onnxruntime-cuda", CPU)
    opened = opened_by(found(*chain))
    assert run(opened.instances[0]) == [[2, 4]]
    assert opened.supply.backends == chain[len(opened.passed_over) :], "without a GPU, the processor alone"
    assert {rejection.reason for rejection in opened.passed_over.values()} <= {"load", "unavailable"}
    assert "failed unexpectedly" not in opened.note
    for instance in opened.instances:
        instance.close()
