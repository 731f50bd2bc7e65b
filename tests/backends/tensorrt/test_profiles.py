import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.backends.tensorrt import options
from headrace.backends.tensorrt.profiles import (
    DEFAULT_MAX_BATCH,
    Range,
    Tensor,
    batch_buckets,
    plan_profiles,
    resolve_max_batch,
)
from headrace.errors import ModelLoadError

ROWS = [Tensor("x", (-1, 3))]
FIXED = [Tensor("x", (2, 3))]


@pytest.mark.parametrize(
    ("inputs", "outputs", "max_batch", "buckets", "resolved"),
    [
        (ROWS, ROWS, None, (), DEFAULT_MAX_BATCH),
        (ROWS, ROWS, 7, (), 7),
        (ROWS, ROWS, None, (2, 5), 5),
        (ROWS, ROWS, 0, (), 0),
        (FIXED, ROWS, None, (), 0),
        (ROWS, FIXED, None, (), 0),
        ([], FIXED, None, (), 0),
        (FIXED, FIXED, 0, (), 0),
        ([Tensor("x", ())], ROWS, None, (), 0),
    ],
)
def test_rows_of_a_batch(inputs, outputs, max_batch, buckets, resolved):
    assert resolve_max_batch(inputs, outputs, max_batch, buckets) == resolved


@pytest.mark.parametrize(
    ("inputs", "max_batch", "buckets", "message"),
    [
        (FIXED, 4, (), r"max_batch = 4, but the file cannot batch: .* and 'x' has shape \[2, 3\]"),
        (FIXED, None, (1, 4), r"batch_buckets = \[1, 4\], but the file cannot batch: "),
        ([], 4, (), "and there is no input"),
        (ROWS, 8, (1, 4), r"batch_buckets = \[1, 4\] and max_batch = 8: expected the last bucket to be max_batch"),
        (ROWS, 0, (1, 4), r"batch_buckets = \[1, 4\] and max_batch = 0: expected"),
    ],
)
def test_what_cannot_batch_is_told(inputs, max_batch, buckets, message):
    with pytest.raises(ModelLoadError, match=message):
        resolve_max_batch(inputs, ROWS, max_batch, buckets)


@given(st.integers(1, 5000))
def test_by_default_buckets_double(rows):
    buckets = batch_buckets(rows)
    assert buckets[-1] == rows
    assert buckets == sorted(set(buckets))
    assert all(b <= 2 * a for a, b in zip([1, *buckets], buckets, strict=False))
    assert buckets[0] == 1


@given(st.integers(1, 300), st.sets(st.integers(1, 300), min_size=1))
def test_every_number_of_rows_has_one_profile(rows, chosen):
    for max_batch, buckets in ((rows, []), (max(chosen), sorted(chosen))):
        profiles = plan_profiles(ROWS, max_batch, options.read({"batch_buckets": buckets}))
        for count in range(1, max_batch + 1):
            fits = [p["x"] for p in profiles if p["x"].low[0] <= count <= p["x"].high[0]]
            assert len(fits) == 1
            assert fits[0].opt == fits[0].high
        assert profiles[-1]["x"].high == (max_batch, 3)


def test_dynamic_dimensions():
    inputs = [Tensor("ids", (-1, -1)), Tensor("picture", (-1, 3, -1, -1)), Tensor("scale", (-1, 1)), Tensor("k", (5,))]
    given = {
        "ids": {"min": [1], "opt": [128], "max": [512]},
        "picture": {"min": [3, 32, 32], "opt": [3, 224, 224], "max": [3, 640, 640]},
    }
    profiles = plan_profiles(inputs, 4, options.read({"batch_buckets": [1, 4], "profiles": given}))
    assert profiles == [
        {
            "ids": Range((1, 1), (1, 128), (1, 512)),
            "picture": Range((1, 3, 32, 32), (1, 3, 224, 224), (1, 3, 640, 640)),
            "scale": Range((1, 1), (1, 1), (1, 1)),
        },
        {
            "ids": Range((2, 1), (4, 128), (4, 512)),
            "picture": Range((2, 3, 32, 32), (4, 3, 224, 224), (4, 3, 640, 640)),
            "scale": Range((2, 1), (4, 1), (4, 1)),
        },
    ]


def test_nothing_dynamic_needs_no_profile():
    assert plan_profiles(FIXED, 0, options.read({})) == []


@pytest.mark.parametrize(
    ("profiles", "message"),
    [
        ({}, r"input 'x' has dynamic dimensions \[-1, 4\] in a row: expected \[backend_options.profiles.x\] with min"),
        ({"z": {"min": [1], "opt": [1], "max": [1]}}, "profiles.z: there is no such input; the file has 'x'"),
        ({"x": {"min": [1, 4], "opt": [2, 4], "max": [2, 5]}}, r"profiles.x.max = \[2, 5\]: the file has \[-1, 4\]"),
        ({"x": {"min": [1], "opt": [2], "max": [2]}}, r"profiles.x.min = \[1\]: the file has \[-1, 4\]"),
    ],
)
def test_shapes_that_do_not_fit_the_file(profiles, message):
    with pytest.raises(ModelLoadError, match=message):
        plan_profiles([Tensor("x", (-1, -1, 4))], 2, options.read({"profiles": profiles}))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"profiles": {"x": {"min": [1], "opt": [1, 2], "max": [1]}}}, "must have equally many dimensions"),
        ({"profiles": {"x": {"min": [3], "opt": [2], "max": [4]}}}, "must not decrease in any dimension"),
        ({"profiles": {"x": {"min": [3], "opt": [3]}}}, "max"),
        ({"batch_buckets": [2, 1]}, r"\[2, 1\] is not ascending"),
        ({"batch_buckets": [0, 1]}, "batch_buckets"),
        ({"file": "../secret.onnx"}, "no file within the version directory"),
        ({"strip_weights": "true"}, "expected true or false"),
        ({"cuda_graph": True}, "did you mean 'cuda_graphs'"),
        ({"allow_plan_files": True}, "unknown key 'allow_plan_files'"),  # that is not for the model to say
        ({"devices": []}, "devices"),
        ({"devices": [1, 1]}, r"\[1, 1\] names a device twice"),
        ({"in_flight": 0}, "in_flight"),
    ],
)
def test_options_that_are_wrong(given, message):
    with pytest.raises(ModelLoadError, match=message):
        options.read(given)
