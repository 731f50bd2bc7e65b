import asyncio

import numpy as np
import pytest
from engine.controlling import Control, Repository, virtual

from headrace.backends.base import InstanceLost
from headrace.errors import (
    DeadlineUnreachable,
    InvalidRequest,
    LoadFailed,
    ModelNotFound,
    ModelNotReady,
    QueueFull,
    ShuttingDown,
)
from headrace.rpc import inference_pb2 as pb
from headrace.testing.backend import FakeBackend
from headrace.testing.client import infer_request, output_arrays
from headrace.testing.loop import run_virtual

ROW = np.array([[1, 2]], np.float32)
CHAIN = """
[[ensemble.steps]]
model = "a"
inputs = {x = "begin"}
outputs = {y = "middle"}
[[ensemble.steps]]
model = "b"
inputs = {x = "middle"}
outputs = {y = "end"}
"""


@pytest.fixture(autouse=True)
def _nothing_loaded(monkeypatch):
    monkeypatch.setattr(FakeBackend, "loaded", [])
    monkeypatch.setattr(FakeBackend, "latency_ns", 5000)
    monkeypatch.setattr(FakeBackend, "spend", None)


@pytest.fixture
def repository(tmp_path):
    """Two models in a chain, the second slow on purpose of a test."""
    made = Repository(tmp_path)
    made.write("a")
    made.write("b", '[batching]\npolicy = "delay"\ndelay_us = 10000\n')
    ensemble(made, "e", CHAIN)
    return made


def ensemble(repository, name, toml):
    (repository.root / name / "1").mkdir(parents=True, exist_ok=True)
    (repository.root / name / "model.toml").write_text(toml)


def send(world, model="e", rows=ROW, **more):
    return world.client.send(infer_request(model, {"begin": rows}, **more))


def end(call):
    return output_arrays(call.response)["end"].tolist()


@virtual
async def test_a_request_runs_through_its_models(repository):
    world = Control(repository, "none")
    await world.control.start()
    calls = [send(world, rows=ROW * n) for n in range(3)]
    await asyncio.sleep(1)
    assert [end(call) for call in calls] == [(ROW * n).tolist() for n in range(3)]
    statistics = {one.name: one.statistics() for one in world.engine.schedulers}
    assert statistics["e"].success.count == statistics["e"].inference_count == 3
    assert [statistics[name].success.count for name in "ab"] == [3, 3]
    assert statistics["b"].execution_count == 1  # requests of an ensemble are batched like any
    assert repr(world.catalog.resolve("e")) == "<Ensemble e/1 serving, 0 under way>"


@virtual
async def test_timing_tells_of_the_steps(repository):
    world = Control(repository, "none")
    await world.control.start()
    call = send(world, parameters={"headrace_timing": True})
    await asyncio.sleep(1)
    told = {key: value.int64_param for key, value in call.response.parameters.items()}
    assert told["headrace_step_b_us"] >= 10_000
    assert told["headrace_step_a_us"] + told["headrace_step_b_us"] <= told["headrace_execute_us"]
    assert call.response.parameters["headrace_close_reason"].string_param == "ensemble"


@virtual
async def test_only_what_is_asked_for_runs(repository):
    ensemble(repository, "e", 'ensemble.outputs = ["middle", "end"]\n' + CHAIN)
    world = Control(repository, "none")
    await world.control.start()
    call = send(world, outputs=["middle"])
    await asyncio.sleep(1)
    assert list(output_arrays(call.response)) == ["middle"]
    assert world.metrics.statistics("b", "1").success.count == 0


@virtual
async def test_more_rows_than_a_batch_and_an_id(repository):
    world = Control(repository, "none")
    await world.control.start()
    rows = np.arange(40, dtype=np.float32).reshape(20, 2)
    message = pb.ModelInferRequest.FromString(infer_request("e", {"begin": rows}).SerializeToString())
    message.id = "seven"
    call = world.client.send(message)
    await asyncio.sleep(1)
    assert (call.response.id, end(call)) == ("seven", rows.tolist())


@virtual
async def test_what_a_step_refuses_is_the_answer(repository):
    world = Control(repository, "none")
    await world.control.start()
    call = world.client.send(infer_request("e", {"begin": ROW}), timeout_ns=1)
    await asyncio.sleep(1)
    assert type(call.error) is DeadlineUnreachable
    assert world.metrics.statistics("e", "1").fail.count == 1
    wrong = world.client.send(infer_request("e", {"begin": ROW.repeat(2, 1)}))
    assert type(wrong.error) is InvalidRequest


@virtual
async def test_a_caller_that_goes_away(repository):
    world = Control(repository, "none")
    await world.control.start()
    call = send(world)
    await asyncio.sleep(0.001)  # in the queue of the second model
    assert world.catalog.resolve("b").depth() == (1, 1)
    call.cancel()
    assert world.catalog.resolve("b").depth() == (0, 0)
    await asyncio.sleep(1)
    assert world.metrics.statistics("e", "1").fail.count == 1
    assert repr(world.catalog.resolve("e")) == "<Ensemble e/1 serving, 0 under way>"


@virtual
async def test_the_limit_of_requests_under_way(repository):
    ensemble(repository, "e", CHAIN + "[queue]\nmax_requests = 2\n")
    world = Control(repository, "none")
    await world.control.start()
    calls = [send(world) for _ in range(3)]
    assert type(calls[2].error) is QueueFull
    await asyncio.sleep(1)
    assert [end(call) for call in calls[:2]] == [ROW.tolist()] * 2


@virtual
async def test_it_serves_while_its_models_do(repository):
    world = Control(repository, "explicit", "a", "b", "e")
    await world.control.start()
    await world.control.unload("b")
    state, reason = world.states()["e/1"]
    assert (state, "'b' has no available versions" in reason) == ("UNAVAILABLE", True)
    with pytest.raises(ModelNotFound):
        world.catalog.resolve("e")
    with pytest.raises(ModelNotReady):
        world.catalog.resolve("e", "1")
    await world.control.load("b")
    assert world.states()["e/1"] == ("READY", "")
    call = send(world)
    await asyncio.sleep(1)
    assert end(call) == ROW.tolist()


@virtual
async def test_what_was_accepted_is_answered_when_a_model_is_unloaded_or_loaded_again(repository):
    world = Control(repository, "explicit", "a", "b", "e")
    await world.control.start()
    call = send(world)
    await world.control.load("b")
    await world.control.unload("b")
    await asyncio.sleep(1)
    assert end(call) == ROW.tolist()
    assert [model.instances[0].closed for model in FakeBackend.loaded] == [False, True, True]


@virtual
async def test_loading_an_ensemble_loads_its_models(repository):
    ensemble(
        repository, "outer", '[[ensemble.steps]]\nmodel = "e"\ninputs = {begin = "begin"}\noutputs = {end = "end"}\n'
    )
    world = Control(repository, "explicit")
    await world.control.start()
    await world.control.load("outer")
    assert {name: state for name, (state, _) in world.states().items()} == dict.fromkeys(
        ("a/1", "b/1", "e/1", "outer/1"), "READY"
    )
    call = send(world, "outer")
    await asyncio.sleep(1)
    assert end(call) == ROW.tolist()
    await world.control.unload("outer", dependents=True)
    await asyncio.sleep(1)
    assert world.engine.schedulers == []


@virtual
async def test_an_ensemble_that_cannot_be(repository):
    ensemble(repository, "e", CHAIN.replace('"b"', '"nobody"'))
    ensemble(repository, "itself", '[[ensemble.steps]]\nmodel = "itself"\ninputs = {x = "t"}\noutputs = {y = "u"}\n')
    ensemble(repository, "wrong", CHAIN.replace("x = ", "z = "))
    ensemble(repository, "one", '[[ensemble.steps]]\nmodel = "other"\ninputs = {x = "t"}\noutputs = {y = "u"}\n')
    ensemble(repository, "other", '[[ensemble.steps]]\nmodel = "one"\ninputs = {x = "t"}\noutputs = {y = "u"}\n')
    world = Control(repository, "explicit")
    await world.control.start()
    for name, text in (
        ("e", "'nobody' is not found"),
        ("itself", "'itself'"),
        ("itself", "its steps lead back to itself: itself -> itself"),
        ("one", "its steps lead back to itself: one -> other -> one"),
        ("wrong", "has no input 'z'|not mapped"),
    ):
        with pytest.raises(LoadFailed, match=text):
            await world.control.load(name)
        assert world.states()[f"{name}/1"][0] == "UNAVAILABLE"


@virtual
async def test_labels_are_its_own_else_its_models(repository):
    for name, labels in (("b", "left\nright\n"), ("own", "up\ndown\n")):
        ensemble(repository, name, "")
        (repository.root / name / "labels.txt").write_text(labels)
    repository.write("b", '[outputs.y]\nlabels = "labels.txt"\n')
    ensemble(repository, "own", CHAIN + '[outputs.end]\nlabels = "labels.txt"\n')
    ensemble(repository, "none", CHAIN + '[outputs.end]\nlabels = "absent.txt"\n')
    world = Control(repository, "none")
    await world.control.start()
    for name, labels in (("e", ("left", "right")), ("own", ("up", "down"))):
        served = world.catalog.resolve(name)
        assert served.signature.outputs[0].labels == served.view.labels["end"] == labels
    assert "absent.txt: cannot be read" in world.states()["none/1"][1]


@virtual
async def test_a_model_that_comes_later_completes_it(repository):
    repository.remove("b")
    world = Control(repository, "poll")
    await world.control.start()
    assert world.states()["e/1"][0] == "UNAVAILABLE"
    repository.write("b")
    await world.control.poll()
    assert world.states()["e/1"] == ("READY", "")
    repository.remove("e")
    await world.control.poll()
    await asyncio.sleep(1)
    assert world.states()["e/1"] == ("UNAVAILABLE", "unloaded")


@virtual
async def test_the_end_of_the_server_answers_what_is_half_way(repository):
    world = Control(repository, "none")
    await world.control.start()
    call = send(world)
    await asyncio.sleep(0)
    assert await world.engine.drain(1)
    assert end(call) == ROW.tolist()
    assert type(send(world).error) is ShuttingDown
    world.engine.close()


@virtual
async def test_what_is_left_at_the_end_is_told(repository):
    world = Control(repository, "none")
    await world.control.start()
    call = send(world)
    world.engine.close()
    assert type(call.error) is ShuttingDown


@virtual
async def test_it_is_ready_while_all_its_models_are(repository):
    repository.write("b", "instances = 2\n")
    world = Control(repository, "none")
    await world.control.start()
    condition = world.catalog.resolve("e").condition
    assert (condition.usable, condition.note, condition.backend, condition.count()) == (1, "", "", {})
    b = next(one for one in world.engine.schedulers if one.name == "b")
    (model,) = [model for model in FakeBackend.loaded if len(model.instances) == 2]
    for instance in model.instances:
        instance.lost = InstanceLost("no memory", with_others=True)
    call = send(world)
    await asyncio.sleep(0.1)
    assert not call.ended
    assert (condition.usable, b.condition.usable) == (0, 0)
    assert condition.note.startswith("b: 2 of 2 instances of headrace.testing.backend:FakeBackend are lost")
    assert condition.note.endswith(": no memory")
    await asyncio.sleep(5)
    assert end(call) == ROW.tolist(), "its second step has run on an instance that was made anew"
    assert (condition.usable, condition.note) == (1, "")
    world.control._engine.unload("b", 1)
    assert condition.usable == 0, "a model that is not there"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ('"nobody"', "a model of its steps does not serve: Request for unknown model: 'nobody' is not found"),
        ('"e"', "its steps lead back to itself: e -> e"),
    ],
)
def test_a_change_that_cannot_serve_leaves_what_does(repository, change, reason):
    async def main():
        world = Control(repository, "explicit", "e")
        await world.control.start()
        ensemble(repository, "e", CHAIN.replace('"a"', change))
        with pytest.raises(LoadFailed, match=reason):
            await world.control.load("e")
        assert world.states()["e/1"] == ("READY", f"loading it again failed: {reason}")
        await world.control.load("b")  # another look at who can serve
        call = send(world)
        await asyncio.sleep(1)
        assert end(call) == ROW.tolist()

    run_virtual(main())


@virtual
async def test_a_change_waits_for_its_models(repository):
    world = Control(repository, "poll")
    await world.control.start()
    ensemble(repository, "e", CHAIN.replace('"a"', '"z"'))
    await world.control.poll()
    assert "'z' is not found" in world.states()["e/1"][1]
    repository.write("z")
    await world.control.poll()
    assert world.states()["e/1"] == ("READY", "")
    assert [step.model for step in world.catalog.resolve("e").graph.steps] == ["z", "b"]


@virtual
async def test_a_load_that_has_failed_does_not_happen_later(repository):
    world = Control(repository, "explicit", "e")
    await world.control.start()
    ensemble(repository, "e", CHAIN.replace('"a"', '"z"'))
    with pytest.raises(LoadFailed, match="'z' is not found"):
        await world.control.load("e")
    repository.write("z")
    await world.control.load("z")
    assert [step.model for step in world.catalog.resolve("e").graph.steps] == ["a", "b"]


@virtual
async def test_a_change_that_is_taken_back_is_forgotten(repository):
    world = Control(repository, "poll")
    await world.control.start()
    ensemble(repository, "e", CHAIN.replace('"a"', '"z"'))
    await world.control.poll()
    ensemble(repository, "e", CHAIN)
    await world.control.poll()
    assert world.states()["e/1"] == ("READY", "")
    repository.write("z")
    await world.control.poll()
    assert [step.model for step in world.catalog.resolve("e").graph.steps] == ["a", "b"]


@virtual
async def test_it_may_become_a_model_of_its_own_and_an_ensemble_again(repository):
    world = Control(repository, "explicit", "e")
    await world.control.start()
    repository.write("e")
    await world.control.load("e")
    await world.control.load("a")  # another look at who can serve
    assert (await world.serves("e"), world.states()["e/1"]) == ("1", ("READY", ""))
    ensemble(repository, "e", CHAIN)
    await world.control.load("e")
    call = send(world)
    await asyncio.sleep(1)
    assert end(call) == ROW.tolist()


@virtual
async def test_its_files_are_read_when_it_is_loaded(repository):
    ensemble(repository, "e", CHAIN + '[outputs.end]\nlabels = "labels.txt"\n')
    labels = repository.root / "e" / "labels.txt"
    labels.write_text("up\ndown\n")
    world = Control(repository, "explicit", "e")
    await world.control.start()
    labels.unlink()
    await world.control.load("a")
    assert world.states()["e/1"] == ("READY", "")
    with pytest.raises(LoadFailed, match=r"labels.txt: cannot be read"):
        await world.control.load("e")
    assert world.catalog.resolve("e").signature.outputs[0].labels == ("up", "down")
