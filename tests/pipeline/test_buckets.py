import numpy as np
import pytest

from headrace.errors import InvalidRequest, ModelLoadError
from headrace.messages import Signature, TensorSpec
from headrace.pipeline.buckets import Buckets, elements_of
from headrace.pipeline.cropping import Crop
from headrace.repository.bucket_config import BucketConfig
from headrace.testing.requests import FakeWriter

TEXT = Signature(
    (
        TensorSpec("ids", "INT64", (-1,)),
        TensorSpec("types", "INT32", (-1, 3)),
        TensorSpec("mask", "INT64", (-1,)),
        TensorSpec("count", "INT64", ()),
        TensorSpec("note", "BYTES", (1,)),
    ),
    (TensorSpec("hidden", "FP32", (-1, 8)), TensorSpec("pooled", "FP32", (8,))),
    4,
)
TOKENS = {
    "sizes": [16, 4, 8],
    "inputs": {"ids": 1, "types": -2},
    "masks": {"mask": 1},
    "lengths": "count",
    "outputs": {"hidden": 1},
}
IMAGE = Signature(
    (TensorSpec("image", "FP32", (3, -1, -1)), TensorSpec("mask", "BOOL", (-1, -1))),
    (TensorSpec("map", "FP32", (-1, -1)),),
    2,
)
SIDES = {
    "height": {
        "sizes": [2, 4],
        "inputs": {"image": 2},
        "masks": {"mask": 1},
        "outputs": {"map": {"dim": 1, "divide": 2, "add": 1}},
    },
    "width": {"sizes": [4, 8], "inputs": {"image": 3}, "masks": {"mask": 2}, "outputs": {"map": -1}},
}


def make(rules, signature, **pads):
    return Buckets({name: BucketConfig.model_validate(rule) for name, rule in rules.items()}, signature, pads)


def text(**pads):
    return make({"tokens": TOKENS}, TEXT, **pads)


def refusal(buckets, *shapes):
    with pytest.raises(InvalidRequest) as caught:
        buckets.fit(shapes, "m")
    return str(caught.value)


def test_clients_do_not_see_what_the_server_fills():
    buckets = text()
    assert buckets.optional == {"mask", "count"}
    assert [spec.name for spec in buckets.offered.inputs] == ["ids", "types", "note"]
    assert buckets.offered.outputs == TEXT.outputs
    assert buckets.offered.max_batch == 4
    assert repr(buckets) == "<Buckets tokens [4, 8, 16]>"


@pytest.mark.parametrize(("length", "size"), [(0, 4), (1, 4), (4, 4), (5, 8), (8, 8), (9, 16), (16, 16)])
def test_a_request_goes_to_the_least_bucket_that_holds_it(length, size):
    fit, shapes = text().fit([(length,), (length, 3), None, None, (1,)], "m")
    assert (fit.lengths, fit.sizes) == ((length,), (size,))
    assert fit.shapes == ((length,), (length, 3), None, None, (1,))
    assert shapes == ((size,), (size, 3), (size,), (), (1,))
    assert (fit.elements, fit.padding) == (4 * length, 4 * (size - length))
    assert fit.padding_percent == round(100 * (size - length) / size)


def test_a_mask_and_lengths_of_the_clients_own():
    fit, shapes = text().fit([(5,), (5, 3), (5,), (), (1,)], "m")
    assert fit.shapes == ((5,), (5, 3), (5,), (), (1,))
    assert shapes == ((8,), (8, 3), (8,), (), (1,))
    assert fit.elements == 20  # neither is data


def test_two_lengths_make_a_bucket_together():
    fit, shapes = make(SIDES, IMAGE).fit([(3, 2, 5), None], "m")
    assert (fit.lengths, fit.sizes) == ((2, 5), (2, 8))
    assert shapes == ((3, 2, 8), (2, 8))
    assert (fit.elements, fit.padding) == (30, 18)


def test_too_long():
    assert refusal(text(), (17,), (17, 3), None, None, (1,)) == (
        "input 'ids' for model 'm' has 17 in dimension 1, expected at most 16, the greatest bucket"
    )


def test_a_row_of_no_octets_does_not_take_all_memory():
    free = Signature((TensorSpec("x", "FP32", (-1, -1)),), (TensorSpec("y", "FP32", (1,)),), 4)
    buckets = make({"length": {"sizes": [4, 8], "inputs": {"x": 1}}}, free)
    assert buckets.fit([(0, 1 << 26)], "m")[1] == ((4, 1 << 26),)
    assert refusal(buckets, (0, (1 << 26) + 1)) == (
        "input 'x' for model 'm' has rows of [0, 67108865], [4, 67108865] in their bucket: expected at most 268435456 "
        "elements there"
    )
    assert buckets.fit([(8, 1 << 26)], "m")[1] == ((8, 1 << 26),), "what was sent is not more for being in a bucket"


@pytest.mark.parametrize("shapes", [((3,), (4, 3), None, None, (1,)), ((3,), (3, 3), (4,), None, (1,))])
def test_inputs_of_one_length_agree(shapes):
    name = "types" if shapes[2] is None else "mask"
    assert refusal(text(), *shapes) == (
        f"input '{name}' for model 'm' has 4 in dimension 1, expected 3, the tokens of input 'ids'"
    )


def test_a_batch_is_packed():
    buckets = text(ids=5)
    members = [(buckets.fit([(length,), (length, 3), None, None, (1,)], "m")[0], 1) for length in (2, 3)]
    ids = [np.arange(length, dtype=np.int64).tobytes() for length in (2, 3)]
    types = [np.full((length, 3), 2, np.int32).tobytes() for length in (2, 3)]
    notes = [b"\1\0\0\0a", b"\0\0\0\0"]
    shapes = [(2, 4), (2, 4, 3), (2, 4), (2,), (2, 1)]
    packed = buckets.pack(members, [ids, types, [b"", b""], [b"", b""], notes], shapes)
    assert np.frombuffer(packed[0][0], np.int64).tolist() == [0, 1, 5, 5, 0, 1, 2, 5]
    assert np.frombuffer(packed[1][0], np.int32).reshape(2, 4, 3)[..., 0].tolist() == [[2, 2, 0, 0], [2, 2, 2, 0]]
    assert np.frombuffer(packed[2][0], np.int64).tolist() == [1, 1, 0, 0, 1, 1, 1, 0]
    assert np.frombuffer(packed[3][0], np.int64).tolist() == [2, 3]
    assert packed[4] is notes
    assert elements_of(members) == (4 * 5, 4 * 3)


def test_without_a_batch_dimension():
    spec = TensorSpec("x", "UINT8", (-1, 2))
    buckets = make({"n": {"sizes": [3], "inputs": {"x": 0}, "outputs": {"x": 0}}}, Signature((spec,), (spec,), 0))
    fit, shapes = buckets.fit([(1, 2)], "m")
    assert shapes == ((3, 2),)
    ((part,),) = buckets.pack([(fit, 1)], [[b"ab"]], [(3, 2)])
    assert bytes(part) == b"ab\0\0\0\0"
    assert buckets.crop(FakeWriter(), fit, (0,)).encode(b"", [b"abcdef"], ((3, 2),)) == ([b"ab"], ((1, 2),), b"")


def test_replies_are_cut_back():
    buckets = make(SIDES, IMAGE)
    fit, _ = buckets.fit([(3, 3, 5), None], "m")
    writer = buckets.crop(FakeWriter(), fit, (0,))
    values = np.arange(2 * 2 * 8, dtype=np.float32).reshape(2, 2, 8)
    (raw,), shapes, _ = writer.encode(b"", [values.tobytes()], ((2, 2, 8),))
    assert shapes == ((2, 2, 5),)
    assert raw == values[:, :, :5].tobytes()


def test_a_request_as_long_as_its_bucket_is_answered_as_it_is():
    buckets = text()
    writer = FakeWriter()
    fit, _ = buckets.fit([(8,), (8, 3), None, None, (1,)], "m")
    assert buckets.crop(writer, fit, (0, 1)) is writer
    shorter, _ = buckets.fit([(7,), (7, 3), None, None, (1,)], "m")
    assert isinstance(buckets.crop(writer, shorter, (0, 1)), Crop)


def test_all_buckets_the_longest_first():
    found = [(fit.sizes, fit.lengths, shapes) for fit, shapes in make(SIDES, IMAGE).all()]
    assert [sizes for sizes, _, _ in found] == [(4, 8), (4, 4), (2, 8), (2, 4)]
    assert all(sizes == lengths for sizes, lengths, _ in found)
    assert found[0][2] == ((3, 4, 8), (4, 8))
    fit, _ = next(text().all())
    assert fit.shapes == ((16,), (16, 3), None, None, (1,))  # it leaves out what it may


def test_whether_all_shapes_are_known():
    assert text().certain
    signature = Signature((TensorSpec("x", "FP32", (-1, -1)),), (), 2)
    assert not make({"n": {"sizes": [3], "inputs": {"x": 1}}}, signature).certain


def test_outputs_are_as_large_as_the_rules_say():
    buckets = make(SIDES, IMAGE)
    fit = next(fit for fit, _ in buckets.all() if fit.sizes == (4, 8))
    buckets.check_outputs(fit, [(1, 2, 8)])
    with pytest.raises(ModelLoadError) as caught:
        buckets.check_outputs(fit, [(1, 4, 8)])
    assert str(caught.value) == (
        "output 'map' has shape [1, 4, 8] where height is 4; by buckets.height.outputs, dimension 1 would be 2"
    )
