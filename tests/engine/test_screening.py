"""Rules for inputs through the whole engine: who is refused, what the model gets, what is counted."""

import asyncio

import numpy as np
import pytest
from engine.controlling import Control, virtual
from engine.test_cached import Cached
from engine.test_ensemble import CHAIN, ensemble

from headrace.engine.inner import InnerClient, Tensor
from headrace.engine.screening import screened
from headrace.errors import RuleBroken
from headrace.messages import InputTensor, Signature, TensorSpec
from headrace.pipeline.screen import screen_of
from headrace.repository.model_config import ModelConfig
from headrace.repository.sequence_config import SequenceConfig, SequenceState
from headrace.testing.backend import FakeBackend, FakeModel
from headrace.testing.client import ClientCall, InProcessServer, infer_request, output_arrays
from headrace.testing.loop import run_virtual
from headrace.testing.observer import RecordingObserver
from headrace.testing.requests import make_request

RULES = {
    "finite": True,
    "min": -10,
    "max": [10, 20],
    "fill": 1,
    "policy": {"finite": "clip"},
}
NAN = np.nan


def rows(*values):
    return np.array(values, np.float32).reshape(-1, 2)


def serve(**config):
    server = InProcessServer(asyncio.get_running_loop().clock)
    model = FakeModel()
    scheduler, observer = server.serve(model, config=ModelConfig(inputs={"x": RULES}, **config))
    return server, model, scheduler, observer


def send(server, *requests):
    """All in one turn of the loop, those of one look together."""
    calls = [ClientCall(infer_request("m", {"x": values}).SerializeToString()) for values in requests]
    for call in calls:
        server.service(call)
    server.service.take()
    return calls


def test_who_breaks_a_rule_is_refused_and_the_others_share_their_batch():
    async def main():
        server, model, _, observer = serve()
        given = [rows(1, 2), rows(1, 2, 3, 21), rows(NAN, np.inf), rows(10, 20), rows(-11, 0)]
        calls = send(server, *given)
        await asyncio.sleep(1)
        assert str(calls[1].error) == (
            "element [1, 1] of input 'x' for model 'm' is 21.0, expected a value from -10 to 20 (rule 'range')"
        )
        assert type(calls[4].error) is RuleBroken
        found = [output_arrays(calls[at].response)["y"].tolist() for at in (0, 2, 3)]
        assert found == [[[1, 2]], [[1, 20]], [[10, 20]]]
        assert sum(run.requests for run in model.runs) == 3
        assert observer.rules == {("x", "range", "reject"): 2, ("x", "finite", "clip"): 1}
        assert observer.reasons == {"rule_broken": 2}
        assert server.refused == {}

    run_virtual(main())


def test_together_or_one_by_one_is_the_same():
    rng = np.random.default_rng(1)
    choices = np.array([0, 5, 10, 11, 20, 21, -10, -11, NAN, np.inf, -np.inf], np.float32)
    requests = [rng.choice(choices, (int(count), 2)) for count in rng.integers(1, 4, 60)]
    specs = (TensorSpec("x", "FP32", (2,)),)
    server_rules = {}

    async def main():
        _, _, scheduler, _ = serve()
        server_rules.update(scheduler.view.rules)

    run_virtual(main())

    def outcome(group):
        observer = RecordingObserver()
        tensor = InputTensor("x", "FP32", (len(group[0]), 2))
        screen = screen_of(specs, [tensor], server_rules, "m", batched=True)
        made = [make_request() for _ in group]
        for request, values in zip(made, group, strict=True):
            request.parts = (values.tobytes(),)
        left, refused = screened(made, screen, observer)
        texts = {id(request): str(error) for request, error in refused}
        assert [request for request in made if id(request) not in texts] == left
        return [texts.get(id(request)) or bytes(request.parts[0]) for request in made], observer.rules

    for count in (1, 2, 3):
        group = [values for values in requests if len(values) == count]
        together, counts = outcome(group)
        alone = [outcome([values]) for values in group]
        assert together == [found for (found,), _ in alone]
        assert counts == sum((each for _, each in alone), type(counts)())
        assert 0 < sum(isinstance(found, str) for found in together) < len(group)


def test_a_request_that_is_split_is_looked_at_whole():
    async def main():
        server, model, _, _ = serve()
        good, bad = np.ones((20, 2), np.float32), np.ones((20, 2), np.float32)
        bad[17, 1] = 99
        first, second = send(server, good, bad)
        await asyncio.sleep(1)
        assert output_arrays(first.response)["y"].tolist() == good.tolist()
        assert "element [17, 1]" in str(second.error)
        assert sum(run.rows for run in model.runs) == 20

    run_virtual(main())


def test_what_the_server_asks_of_its_own_models_is_looked_at_too():
    async def main():
        _, _, scheduler, observer = serve()
        done, failed = [], []

        def ask(values, **more):
            tensor = Tensor("x", "FP32", (1, 2), values.tobytes())
            InnerClient(scheduler, **more).send(
                [tensor], make_request(), lambda *found: done.append(found), failed.append
            )

        with pytest.raises(RuleBroken, match=r"element \[0, 0\] of input 'x' for model 'm' is 11.0"):
            ask(rows(11, 0))
        ask(rows(NAN, 0))
        ask(rows(11, 0), screened=True)
        await asyncio.sleep(1)
        assert [np.frombuffer(tensors[0].data, np.float32).tolist() for tensors, _ in done] == [[1, 0], [11, 0]]
        assert observer.rules == {("x", "range", "reject"): 1, ("x", "finite", "clip"): 1}

    run_virtual(main())


def test_a_sequence_goes_on_without_a_request_that_was_refused():
    adder = Signature(
        (TensorSpec("before", "FP32", (1,)), TensorSpec("x", "FP32", (1,))),
        (TensorSpec("after", "FP32", (1,)), TensorSpec("y", "FP32", (1,))),
        8,
    )
    sequence = SequenceConfig(state=(SequenceState(input="before", output="after"),))

    async def main():
        server = InProcessServer(asyncio.get_running_loop().clock)
        model = FakeModel(adder, lambda inputs: [inputs[0] + inputs[1]] * 2)
        server.serve_stateful(model, ModelConfig(sequence=sequence, inputs={"x": {"max": 9}}))
        calls = []
        for number, x in enumerate((1, 10, 2)):
            flags = {"sequence_id": 5, "sequence_start": not number, "sequence_end": number == 2}
            message = infer_request("m", {"x": np.array([[x]], np.float32)}, parameters=flags)
            calls.append(server.client.send(message))
        await asyncio.sleep(1)
        assert [output_arrays(calls[at].response)["y"].tolist() for at in (0, 2)] == [[[1]], [[3]]]
        assert type(calls[1].error) is RuleBroken

    run_virtual(main())


def schema(repository, name, text, version=1):
    path = repository.root / name / str(version) / "schema.toml"
    path.write_text(f'format = "headrace schema 1"\n{text}')


@virtual
async def test_a_version_has_the_schema_in_its_directory(repository):
    repository.write("a", 'versions = "all"\n', versions=(1, 2))
    schema(repository, "a", "[inputs.x]\nmax = 5\n", version=2)
    world = Control(repository, "explicit", "*")
    await world.control.start()

    async def ask(version):
        call = world.client.send(infer_request("a", {"x": rows(6, 0)}, version=version))
        await asyncio.sleep(0.01)
        return call

    assert (await ask("1")).response is not None
    refused = await ask("2")
    assert str(refused.error).endswith("is 6.0, expected a value of at most 5 (rule 'range')")
    labels = {"model": "a", "version": "2", "input": "x", "rule": "range", "policy": "reject"}
    assert world.registry.get_sample_value("headrace_validation_total", labels) == 1
    schema(repository, "a", "[inputs.x]\nmax = 7\n", version=2)
    await world.control.load("a")
    await asyncio.sleep(1)
    assert (await ask("2")).response is not None
    schema(repository, "a", "[inputs.q]\nmax = 7\n", version=2)
    with pytest.raises(Exception, match=r"schema.toml: rules for \['q'\]"):
        await world.control.load("a")
    assert (await ask("2")).response is not None  # what served before still does
    failed = FakeBackend.loaded[-2]  # the newest version is loaded first
    assert all(instance.closed for instance in failed.instances)


@virtual
async def test_the_models_of_an_ensemble_and_the_ensemble_have_rules(repository):
    repository.write("a")
    repository.write("b", "[inputs.x]\nmax = 5\n")
    ensemble(repository, "e", CHAIN)
    schema(repository, "e", "[inputs.begin]\nmin = 0\n")
    world = Control(repository, "none")
    await world.control.start()
    calls = [world.client.send(infer_request("e", {"begin": rows(value, 1)})) for value in (1, -1, 6)]
    await asyncio.sleep(1)
    assert calls[0].response is not None
    assert "element [0, 0] of input 'begin' for model 'e' is -1.0" in str(calls[1].error)
    assert "element [0, 0] of input 'x' for model 'b' is 6.0" in str(calls[2].error)


@virtual
async def test_what_is_clipped_is_looked_up_in_the_cache_as_the_model_gets_it(repository):
    clip = "[inputs.x]\nfinite = true\nmax = 5\nfill = 0\npolicy = {range = 'clip', finite = 'clip'}\n"
    repository.write("a", f"response_cache = true\n{clip}")
    world = Cached(repository)
    await world.control.start()
    replies = [output_arrays(await world.ask(rows(value, 0)))["y"].tolist() for value in (5, 6, 7)]
    assert replies == [[[5, 0]]] * 3
    assert world.statistics().cache_hit.count == 2
    labels = {"model": "a", "version": "1", "input": "x", "rule": "range", "policy": "clip"}
    assert world.registry.get_sample_value("headrace_validation_total", labels) == 2
