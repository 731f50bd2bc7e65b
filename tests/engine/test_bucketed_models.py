"""Buckets behind what stands before a model: loading, the response cache, ensembles."""

import asyncio

import numpy as np
import pytest
from engine.controlling import Control, virtual
from engine.test_cached import Cached

from headrace.errors import InvalidRequest
from headrace.testing.backend import FakeBackend
from headrace.testing.client import infer_request, output_arrays
from headrace.testing.loop import run_virtual

BUCKETS = "[buckets.n]\nsizes = [2, 4]\ninputs.x = 1\noutputs.y = 1\n"
FREE = "backend_options = {dims = [-1]}\n"
ROW = np.array([[1, 2, 3]], np.float32)


def shapes(since=0):
    return [run.inputs[0].shape for run in FakeBackend.loaded[0].runs[since:]]


@virtual
async def test_buckets_are_warmed_and_serve(repository):
    repository.write("a", "max_batch = 2\n" + FREE + BUCKETS)
    world = Control(repository, "none")
    await world.control.start()
    assert shapes() == [shape for shape in ((1, 4), (1, 2), (2, 4), (2, 2)) for _ in range(3)]
    call = world.client.send(infer_request("a", {"x": ROW}))
    await asyncio.sleep(1)
    assert output_arrays(call.response)["y"].tolist() == ROW.tolist()
    assert shapes(12) == [(1, 4)]
    sample = world.registry.get_sample_value
    labels = {"model": "a", "version": "1"}
    assert sample("headrace_elements_total", labels) == 3
    assert sample("headrace_padding_elements_total", labels) == 1


@virtual
async def test_warm_up_requests_are_padded_as_all_are(repository):
    sample = "[[warmup_data]]\nrows = 2\n[warmup_data.inputs.x]\ndims = [3]\n"
    repository.write("a", "max_batch = 2\nwarmup = false\n" + FREE + BUCKETS + sample)
    world = Control(repository, "none")
    await world.control.start()
    assert shapes()[0] == (2, 4)


@pytest.mark.parametrize(
    ("toml", "reason"),
    [
        ("[buckets.n]\nsizes = [2]\ninputs.x = 1\noutputs.y = 1\n[[warmup_data]]\n[warmup_data.inputs.x]\ndims = [3]",
         "warm-up request '0' failed: input 'x' for model 'a' has 3 in dimension 1, expected at most 2, the greatest"),
        ("[buckets.n]\nsizes = [2]\ninputs.w = 1", "buckets.n speaks of input 'w', but the inputs of the model are "),
        ("[inputs.x]\npad = 1", "inputs.x has a pad, but no buckets are for its data"),
        ("[buckets.n]\nsizes = [2]\ninputs.x = 1\noutputs.y = {dim = 1, divide = 2}",
         "output 'y' has shape [1, 2] where n is 2; by buckets.n.outputs, dimension 1 would be 1"),
    ],
)  # fmt: skip
def test_a_model_that_contradicts_its_buckets_does_not_serve(repository, toml, reason):
    repository.write("a", FREE + toml)

    async def states():
        world = Control(repository, "none")
        await world.control.start()
        return world.states()

    state, found = run_virtual(states())["a/1"]
    assert state == "UNAVAILABLE"
    assert found.removeprefix(f"{repository.root / 'a/model.toml'}: ").startswith(reason)


@virtual
async def test_an_ensemble_has_none_of_its_own(repository):
    repository.write("a", FREE + BUCKETS)
    step = '[[ensemble.steps]]\nmodel = "a"\ninputs = {x = "in"}\noutputs = {y = "out"}\n'
    repository.write("e", step)
    (repository.root / "e" / "model.toml").write_text(step)
    world = Control(repository, "none")
    await world.control.start()
    calls = [world.client.send(infer_request("e", {"in": ROW[:, :length]})) for length in (3, 4, 1)]
    await asyncio.sleep(1)
    assert [output_arrays(call.response)["out"].tolist() for call in calls] == [[[1, 2, 3]], [[1, 2, 3]], [[1]]]
    (repository.root / "e" / "model.toml").write_text(step + BUCKETS)
    world = Control(repository, "none")
    await world.control.start()
    assert any("buckets have no effect in an ensemble" in reason for _, reason in world.states().values())


@virtual
async def test_replies_to_what_was_sent_are_cached_not_to_what_ran(repository):
    """The same bytes of two shapes that lie in one bucket are different requests."""
    two = (
        "[buckets.h]\nsizes = [4]\ninputs.x = 1\noutputs.y = 1\n[buckets.w]\nsizes = [4]\ninputs.x = 2\noutputs.y = 2\n"
    )
    repository.write("a", "response_cache = true\nbackend_options = {dims = [-1, -1]}\n" + two)
    world = Cached(repository)
    await world.control.start()
    warm = world.runs()
    for shape in ((1, 2, 3), (1, 3, 2), (1, 2, 3), (1, 3, 2)):
        rows = np.arange(6, dtype=np.float32).reshape(shape)
        found = output_arrays(await world.ask(rows))["y"]
        np.testing.assert_array_equal(found, rows)
    assert world.runs() - warm == 2
    with pytest.raises(InvalidRequest, match="expected at most 4, the greatest bucket"):
        await world.ask(np.zeros((1, 5, 1), np.float32))
