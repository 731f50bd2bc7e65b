from itertools import pairwise

import pytest
from drift.conftest import spec, watch

from headrace.drift.errors import DriftError
from headrace.drift.watch import MAX_FEATURES, default_kind, spread, watch_of


@pytest.mark.parametrize(
    ("datatype", "shape", "output", "labels", "kind"),
    [
        ("FP32", (4,), False, (), "numeric"),
        ("FP32", (), False, (), "numeric"),
        ("INT64", (4,), False, (), "numeric"),
        ("BOOL", (2, 2), False, (), "numeric"),
        ("FP32", (257,), False, (), "embedding"),
        ("FP32", (-1, 64), False, (), "embedding"),
        ("FP32", (300, 1), False, (), "summary"),
        ("FP32", (1000, 1, 1), True, (), "summary"),
        ("FP32", (-1,), False, (), "summary"),
        ("INT64", (-1,), False, (), "tokens"),
        ("INT16", (-1,), False, (), "summary"),
        ("BYTES", (1,), False, (), "text"),
        ("BYTES", (-1,), True, (), "text"),
        ("UINT8", (224, 224, 3), False, (), "image"),
        ("FP32", (3, -1, -1), False, (), "image"),
        ("FP32", (2, 2, 3), False, (), "numeric"),
        ("INT64", (), True, (), "classes"),
        ("INT64", (1,), True, (), "classes"),
        ("INT64", (1,), False, (), "numeric"),
        ("FP32", (10,), True, ("a",), "classes"),
        ("FP32", (10,), True, (), "numeric"),
    ],
)
def test_kinds_by_datatype_and_shape(datatype, shape, output, labels, kind):
    described = spec(shape, datatype, labels=labels)
    assert default_kind(described, output) == kind
    assert watch_of(described, output=output).kind == kind


@pytest.mark.parametrize(
    ("options", "features", "items"),
    [
        ({"shape": (2, 2)}, ("0", "1", "2", "3"), ""),
        ({"shape": (4,), "columns": (3, 1)}, ("3", "1"), ""),
        ({"shape": (2,), "labels": ("age", "income")}, ("age", "income"), ""),
        ({"shape": (2,), "labels": ("crane", "crane")}, ("0", "1"), ""),  # the bird and the machine
        ({"shape": (-1,)}, ("mean", "deviation", "minimum", "maximum", "length"), ""),
        ({"shape": (8, 8, 1)}, ("mean_0", "deviation_0", "brightness", "contrast", "sharpness"), ""),
        ({"shape": (-1, 5), "projections": 2}, ("projection_0", "projection_1", "norm"), ""),
        ({"shape": (-1,), "datatype": "INT64"}, ("length",), "tokens"),
        ({"shape": (1,), "datatype": "BYTES"}, ("length",), "text"),
        ({"shape": (3,), "kind": "classes"}, ("confidence",), "class"),
        ({"shape": (1,), "datatype": "INT64", "output": True}, (), "class"),
    ],
)
def test_names_of_features(options, features, items):
    found = watch(**options)
    assert (found.features, found.items) == (features, items)


def test_an_input_and_an_output_of_one_name_are_two():
    assert watch().key == "inputs.x"
    assert watch(output=True).key == "outputs.x"


def test_text_is_salted_and_tokens_are_not_unless_asked_for():
    assert watch((1,), "BYTES").salted
    assert not watch((-1,), "INT64").salted
    assert watch((-1,), "INT64", salted=True).salted


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"datatype": "BYTES", "kind": "numeric"}, "x is BYTES, which kind numeric is not for"),
        ({"kind": "text"}, "x is FP32, which kind text is not for"),
        ({"kind": "tokens"}, "x is FP32, expected integers for kind tokens"),
        ({"kind": "image"}, "x is [3], expected for an image three dimensions, of which 1, 3 or 4 channels first"),
        ({"kind": "image", "shape": (9, 9, 3), "layout": "NCHW"}, "1, 3 or 4 channels in the layout NCHW"),
        ({"kind": "numeric", "shape": (-1,)}, "x is [-1], expected fixed dimensions for kind numeric; kind summary"),
        ({"kind": "embedding", "shape": (-1,)}, "x is [-1], expected a fixed last dimension of at least 2"),
        ({"columns": (3,)}, "x has no element 3, expected 0 to 2 of [3]"),
        ({"columns": ()}, "x: 0 features, expected 1 to 256 different ones"),
        ({"columns": (1, 1)}, "x: 2 features, expected 1 to 256 different ones"),
        ({"columns": (1,), "kind": "summary"}, "features are chosen by number of kind numeric alone, not of summary"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said(options, message):
    with pytest.raises(DriftError) as caught:
        watch(**options)
    assert message in str(caught.value)


def test_of_many_elements_some_are_chosen_at_even_distances():
    chosen = watch((1000,), kind="numeric").columns
    assert len(chosen) == len(set(chosen)) == MAX_FEATURES
    assert chosen[0] == 0
    assert max(b - a for a, b in pairwise(chosen)) == 4
    assert spread(3, 5) == (0, 1, 2)


def test_names_do_not_make_other_features():
    assert watch(labels=("a", "b", "c")).same_features(watch())
    assert not watch(bins=10).same_features(watch())
