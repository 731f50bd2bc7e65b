"""Every way in which model.toml's buckets and the model can contradict one another."""

import math

import pytest

from headrace.errors import ModelLoadError
from headrace.messages import Signature, TensorSpec
from headrace.pipeline.bucket_rules import resolve
from headrace.repository.bucket_config import BucketConfig

MODEL = Signature(
    (
        TensorSpec("x", "FP32", (3, -1)),
        TensorSpec("text", "BYTES", (-1,)),
        TensorSpec("mask", "UINT8", (-1, 2)),
        TensorSpec("grid", "BOOL", (-1, -1)),
        TensorSpec("count", "INT8", (1,)),
        TensorSpec("half", "FP16", (1,)),
    ),
    (TensorSpec("y", "FP32", (-1,)), TensorSpec("z", "FP32", (2,))),
    4,
)


def resolved(*rules, signature=MODEL, **pads):
    names = ("a", "b", "c")
    made = {
        name: BucketConfig.model_validate({"sizes": [8], "inputs": {"x": 2}, "outputs": {"y": 1}} | rule)
        for name, rule in zip(names, rules, strict=False)
    }
    return resolve(made, signature, pads)


def test_names_become_places_and_dimensions_leave_the_batch_out():
    found = resolved({"masks": {"mask": 1}, "lengths": "count"}, x=2.5)
    assert [(padding.axes, padding.pad) for padding in found.inputs] == [
        (((1, 0),), 2.5), ((), 0), (((0, 0),), 0), ((), 0), ((), 0), ((), 0),
    ]  # fmt: skip
    assert [len(follows) for follows in found.outputs] == [1, 0]
    assert found.outputs[0][0].dim == 0
    assert found.filled == {"mask", "count"}


def test_dimensions_are_counted_from_the_end_too():
    assert resolved({"inputs": {"x": -1}, "outputs": {"y": -1}}).inputs[0].axes == ((1, 0),)


def test_an_output_may_be_left_as_it_is():
    assert resolved({"outputs": {"y": []}}).outputs == [(), ()]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([{"inputs": {"w": 1}}], "buckets.a speaks of input 'w', but the inputs of the model are ['x', 'text', "),
        ([{"masks": {"w": 1}}], "buckets.a speaks of input 'w', but"),
        ([{"lengths": "w"}], "buckets.a.lengths speaks of input 'w', but"),
        ([{"outputs": {"w": 1}}], "buckets.a speaks of output 'w', but the outputs of the model are ['y', 'z']"),
        ([{"inputs": {"text": 1}}], "buckets.a: input 'text' is BYTES, which cannot be padded"),
        ([{"inputs": {"x": 0}}], "buckets.a: input 'x' has shape [-1, 3, -1]; dimension 0 is the batch's"),
        ([{"inputs": {"x": -3}}], "buckets.a: input 'x' has shape [-1, 3, -1]; dimension -3 is the batch's"),
        ([{"inputs": {"x": 1}}], "buckets.a: input 'x' has shape [-1, 3, -1]; dimension 1 does not vary"),
        ([{"inputs": {"x": 3}}], "buckets.a: input 'x' has shape [-1, 3, -1], no dimension 3"),
        ([{"inputs": {"x": -4}}], "buckets.a: input 'x' has shape [-1, 3, -1], no dimension -4"),
        ([{"outputs": {"z": 1, "y": 1}}], "buckets.a: output 'z' has shape [-1, 2]; dimension 1 does not vary"),
        ([{}, {"inputs": {"x": -1}}], "buckets.b: dimension -1 of input 'x' has a length already"),
        ([{"outputs": {"y": [1, -1]}}], "buckets.a: dimension -1 of output 'y' follows already"),
        ([{"outputs": {}}], "output 'y' has dimensions [-1], and no buckets say which of them follows a length: "
                            "outputs.y = that dimension, or [] to leave the output as it is"),
        ([{"masks": {"grid": 1}}], "input 'grid' is filled by the server, but dimension 2 of [-1, -1, -1] varies and "
                                   "no buckets say how"),
        ([{"masks": {"x": 2}}], "buckets.a: input 'x' is data here and filled by the server too"),
        ([{"masks": {"mask": 1}, "lengths": "mask"}], "buckets.a.lengths: input 'mask' is UINT8 [-1, 2] in each row, "
                                                      "expected a single number"),
        ([{"lengths": "half"}], "buckets.a.lengths: input 'half' is FP16 [1] in each row, expected a single number"),
        ([{"lengths": "count", "sizes": [128]}], "buckets.a.lengths: 128 is no INT8, which input 'count' is"),
        ([{"lengths": "count"}, {"inputs": {"grid": 1}, "lengths": "count", "outputs": {}}],
         "buckets.b.lengths: input 'count' is filled in another way already"),
        ([{"sizes": {"multiple_of": 1, "max": 64}, "outputs": {"y": []}},
          {"sizes": {"multiple_of": 1, "max": 65}, "inputs": {"grid": 1}, "outputs": {}}],
         "the sizes of all lengths make 4160 buckets, at most 1024 may be"),
    ],
)  # fmt: skip
def test_contradictions(rules, message):
    with pytest.raises(ModelLoadError) as caught:
        resolved(*rules)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("pads", "message"),
    [
        ({"w": 0}, "inputs.w has a pad, but no buckets are for its data"),
        ({"count": 0}, "inputs.count has a pad, but no buckets are for its data"),
        ({"mask": 0}, "inputs.mask has a pad, but no buckets are for its data"),
        ({"x": 1e39}, "inputs.x.pad: 1e+39 is no FP32, which input 'x' is"),
    ],
)
def test_pads_that_do_not_fit(pads, message):
    with pytest.raises(ModelLoadError) as caught:
        resolved({"masks": {"mask": 1}, "lengths": "count"}, **pads)
    assert str(caught.value) == message


def test_any_number_of_the_datatype_may_be_a_pad():
    assert resolved({}, x=-math.inf).inputs[0].pad == -math.inf


def test_a_pad_alone_has_no_meaning():
    with pytest.raises(ModelLoadError, match=r"inputs\.x has a pad, but no buckets are for its data"):
        resolve({}, MODEL, {"x": 0})
