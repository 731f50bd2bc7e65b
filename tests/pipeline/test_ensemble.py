from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.messages import Signature, TensorSpec
from headrace.pipeline.ensemble import BadGraph, build_graph


@dataclass
class Run:
    model: str
    inputs: dict = field(default_factory=dict)
    outputs: dict = field(default_factory=dict)


def spec(name, *shape, datatype="FP32"):
    return TensorSpec(name, datatype, shape)


def simple(max_batch=8, width=-1):
    return Signature((spec("x", width),), (spec("y", width),), max_batch)


CHAIN = [Run("b", {"x": "middle"}, {"y": "end"}), Run("a", {"x": "begin"}, {"y": "middle"})]


def refusal(*args, **kwargs):
    with pytest.raises(BadGraph) as caught:
        build_graph(*args, **kwargs)
    return str(caught.value)


def test_steps_run_in_the_order_of_their_tensors():
    graph = build_graph(CHAIN, [simple(4), simple(8)], ())
    assert [step.model for step in graph.steps] == ["a", "b"]
    assert [step.index for step in graph.steps] == [1, 0]
    assert graph.signature == Signature((spec("begin", -1),), (spec("end", -1),), 4)


def test_outputs_may_be_chosen_and_only_what_they_need_runs():
    steps = [*CHAIN, Run("c", {"x": "middle"}, {"y": "other"})]
    graph = build_graph(steps, [simple()] * 3, ("other", "middle"))
    assert [output.name for output in graph.signature.outputs] == ["other", "middle"]
    assert [step.model for step in graph.needed(["middle"])] == ["a"]
    assert [step.model for step in graph.needed(["other"])] == ["a", "c"]
    assert [step.model for step in graph.needed(["end", "other"])] == ["a", "b", "c"]


def test_where_one_knows_a_dimension_it_holds():
    graph = build_graph(CHAIN, [simple(width=4), simple()], ("middle", "end"))
    assert graph.signature.inputs == (spec("begin", -1),)
    steps = [Run("a", {"x": "begin"}, {"y": "one"}), Run("b", {"x": "begin"}, {"y": "two"})]
    graph = build_graph(steps, [simple(width=4), simple()], ())
    assert graph.signature.inputs == (spec("begin", 4),)


def test_a_model_without_a_batch_dimension_leaves_the_whole_without():
    graph = build_graph(CHAIN, [Signature((spec("x", -1, -1),), (spec("y"),), 0), simple(8, 3)], ())
    assert graph.signature == Signature((spec("begin", -1, 3),), (spec("end"),), 0)


def test_without_a_batch_those_of_the_models_are_dimensions():
    signature = build_graph(CHAIN, [simple(4, 3), simple(8, 3)], (), 0).signature
    assert signature == Signature((spec("begin", -1, 3),), (spec("end", -1, 3),), 0)


def test_the_largest_batch():
    assert build_graph(CHAIN, [simple(4), simple(8)], (), 3).signature.max_batch == 3
    text = refusal(CHAIN, [simple(4), simple(8)], (), 5)
    assert text == "max_batch = 5, expected 1 to 4, which is the least of the models"
    assert "no batch dimension" in refusal(CHAIN, [simple(0), simple(0)], (), 1)


@pytest.mark.parametrize(
    ("steps", "outputs", "text"),
    [
        ([], (), "at least one step"),
        ([Run("a", {"x": "t"}, {"z": "u"})], (), "model 'a' has no output 'z'; it has ['y']"),
        ([Run("a", {"x": "t", "w": "v"}, {"y": "u"})], (), "model 'a' has no input 'w'; it has ['x']"),
        ([Run("a", {}, {"y": "u"})], (), "input 'x' of model 'a' is not mapped"),
        ([Run("a", {"x": "t"}, {"y": "u"})] * 2, (), "tensor 'u' is the output of two steps"),
        ([Run("a", {"x": "t"}, {"y": "u"})], ("t",), "output 't' of the ensemble is not the output of a step"),
        ([Run("a", {"x": "t"}, {"y": "t"})], (), "the steps of the models ['a'] wait for one another"),
        (
            [Run("a", {"x": "t"}, {"y": "u"}), Run("b", {"x": "u"}, {"y": "t"})],
            (),
            "the steps of the models ['a', 'b'] wait for one another",
        ),
    ],
)
def test_what_is_no_graph(steps, outputs, text):
    assert text in refusal(steps, [simple()] * len(steps), outputs)


def test_tensors_that_do_not_fit_one_another():
    other = Signature((spec("x", -1, datatype="INT64"),), (spec("y", -1),), 8)
    text = refusal(CHAIN, [other, simple()], ())
    assert text.endswith("do not agree on tensor 'middle': INT64 [-1] and FP32 [-1]")
    assert "FP32 [3] and FP32 [4]" in refusal(CHAIN, [simple(width=3), simple(width=4)], ())
    flat = Signature((spec("x"),), (spec("y"),), 8)
    assert "FP32 [] and FP32 [4]" in refusal(CHAIN, [flat, simple(width=4)], ())


@given(st.data())
def test_any_graph_without_a_circle_is_ordered(data):
    count = data.draw(st.integers(1, 8))
    steps = [
        Run(f"m{n}", {"x": data.draw(st.sampled_from(["begin", *(f"t{k}" for k in range(n))]))}, {"y": f"t{n}"})
        for n in range(count)
    ]
    shuffled = data.draw(st.permutations(steps))
    graph = build_graph(shuffled, [simple()] * count, ())
    there = {"begin"}
    for step in graph.steps:
        assert {name for _, name in step.inputs} <= there
        there.update(name for _, name in step.outputs)
    assert sorted(step.index for step in graph.steps) == list(range(count))
