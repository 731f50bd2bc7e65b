"""The kernels' own source against the references, on the CPU: any sizes, blocks and threads in either order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels.shim import needs_compiler, run_on_shim

from headrace_kernels import cubins
from headrace_kernels.check import cases
from headrace_kernels.check.agreement import disagreement
from headrace_kernels.images import ImageTransform
from headrace_kernels.operations import Dequantize, Quantize, SelectTop, UpdateStatistics

pytestmark = needs_compiler

reals = st.sampled_from(["float32", "float16"])
generators = st.integers(0, 2**32 - 1).map(np.random.default_rng)
often = settings(max_examples=60, deadline=None)


def assert_agrees(case, backwards, align=1):
    found = run_on_shim(case.operation, case.given, backwards=backwards, align=align)
    assert disagreement(case.operation, case.expected(), found) is None


@st.composite
def transforms(draw):
    channels = draw(st.sampled_from([1, 3]))
    fit = draw(st.sampled_from(["stretch", "letterbox", "crop"]))
    return ImageTransform(
        draw(st.integers(1, 40)),
        draw(st.integers(1, 70)),
        channels,
        fit,
        draw(st.none() | st.integers(1, 50)) if fit == "crop" else None,
        antialias=draw(st.booleans()),
        swap=draw(st.booleans()),
        scale=draw(st.sampled_from([1 / 255, 1.0])),
        mean=draw(st.sampled_from([(), (0.5, 0.25, 0.125)[:channels]])),
        std=draw(st.sampled_from([(), (0.25, 0.5, 2.0)[:channels]])),
        pad=draw(st.sampled_from([0, 114])),
        dtype=draw(reals),
    )


@often
@given(transforms(), st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=3), generators, st.booleans())
def test_images(transform, sizes, rng, backwards):
    assert_agrees(cases.images(rng, sizes, transform, rows=2), backwards)


@often
@given(transforms(), st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=3), generators)
def test_images_of_many_pixels(transform, sizes, rng):
    """Whose threads make several, also of images that keep their size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("headrace_kernels.operations.images.MANY", 1)
        sizes = [*sizes, (transform.height, transform.width)]
        assert_agrees(cases.images(rng, sizes, transform, rows=2), False)


items = st.lists(st.integers(0, 5), max_size=2).map(tuple)
elements = st.sampled_from(["bool", "uint8", "int16", "float16", "int32", "float32", "int64"])
lengths = st.lists(st.integers(0, 40), max_size=20)


@often
@given(
    lengths, st.integers(0, 45), elements, items, st.none() | elements, st.none() | st.sampled_from(["int32", "int64"]),
    generators, st.booleans(),
)  # fmt: skip
def test_gather(rows, length, dtype, item, mask, counts, rng, backwards):
    options = {"pad": 1, "mask_dtype": mask, "lengths_dtype": counts}
    assert_agrees(cases.gather(rng, rows, length, dtype, item, **options), backwards)


@often
@given(lengths, st.integers(0, 45), elements, items, generators, st.booleans())
def test_scatter(rows, length, dtype, item, rng, backwards):
    assert_agrees(cases.scatter(rng, rows, length, dtype, item), backwards)


@often
@given(
    st.sampled_from([Quantize, Dequantize]), st.lists(st.integers(0, 17), max_size=4), st.data(), reals,
    st.sampled_from(["int8", "uint8"]), st.booleans(), generators, st.booleans(), st.sampled_from([1, 16]),
)  # fmt: skip
def test_quantize_and_dequantize(kind, shape, data, real, quantized, zero_point, rng, backwards, align):
    axis = data.draw(st.none() | st.integers(-len(shape), len(shape) - 1)) if shape else None
    case = cases.quantize(rng, kind(tuple(shape), axis, real, quantized, zero_point))
    assert_agrees(case, backwards, align)


@pytest.mark.parametrize("shape", [(37, 64), (5, 24, 3), (3, 1000), (2, 8, 1024), (70, 3)])
@pytest.mark.parametrize("kind", [Quantize, Dequantize])
@pytest.mark.parametrize("axis", [None, 1])
def test_rows_of_eights_and_what_is_left_of_them(kind, shape, axis):
    rng = np.random.default_rng(0)
    assert_agrees(cases.quantize(rng, kind(shape, axis, "float16", "uint8", zero_point=True)), False, align=16)


@pytest.mark.parametrize("kind", [Quantize, Dequantize])
@pytest.mark.parametrize("real", ["float32", "float16"])
@pytest.mark.parametrize("rows", [8, 9, 100])
def test_several_rows_of_eights_of_a_thread(kind, real, rows, monkeypatch):
    monkeypatch.setattr("headrace_kernels.operations.quantize.BLOCKS", 1)
    operation = kind((rows, 256), 1, real, "int8", zero_point=True)
    assert operation.launches()[0].grid == (1, 1, 1)
    assert_agrees(cases.quantize(np.random.default_rng(0), operation), False, align=16)


@pytest.mark.parametrize("scale", [1e-30, 2.0**-60, 0.1, 3.0, 1.01, 1e30])
def test_quotients_are_those_of_a_division(scale):
    """Beside every boundary between two integers, and where a product with the reciprocal over- or underflows."""
    scale = np.float32(scale)
    x = ((np.arange(-130, 130) + 0.5) * np.float64(scale)).astype(np.float32)
    steps = [x]
    for to in (-np.inf, np.inf):
        near = x
        for _ in range(3):
            near = np.nextafter(near, np.float32(to))
            steps.append(near)
    x = np.concatenate([*steps, [0, -0.0, 1e-45, -1e38, 3e38]]).astype(np.float32)
    x = np.resize(x, 2048)
    case = cases.Case(Quantize(x.shape), {"x": x, "scale": np.array([scale])})
    assert_agrees(case, False, align=16)


@often
@given(
    st.integers(0, 10), st.integers(1, 70) | st.integers(1000, 1300), st.integers(1, 12), st.booleans(), reals,
    st.booleans(), st.booleans(), generators, st.booleans(),
)  # fmt: skip
def test_top_k(rows, classes, k, softmax, dtype, ties, odd, rng, backwards):
    operation = SelectTop(min(rows, 3) if classes > 1000 else rows, classes, min(k, classes), softmax, dtype)
    assert_agrees(cases.top(rng, operation, ties=ties, odd=odd), backwards)


@pytest.mark.parametrize("classes", [1024, 1028])
@pytest.mark.parametrize("found", [0, 3])
def test_a_row_of_which_most_are_no_numbers(classes, found):
    """What lanes have found is fewer than k: the others come in the order of their indices."""
    logits = np.full((2, classes), np.nan, np.float32)
    logits[:, 700 : 700 + found] = -1
    case = cases.Case(SelectTop(2, classes, 12), {"logits": logits})
    assert_agrees(case, backwards=False)


@pytest.mark.parametrize("k", [1, 5, 32, 33])
@pytest.mark.parametrize("classes", [1000, 2000])
def test_the_greatest_may_all_be_of_one_thread(classes, k):
    """Of which two are known, and the others are looked for; or they may come after the bound has been set."""
    logits = np.random.default_rng(0).standard_normal((2, classes), np.float32)
    logits[0, 4:12] += 10
    logits[0, 132:136] += 10
    logits[1] = np.arange(classes)
    case = cases.Case(SelectTop(2, classes, k), {"logits": logits})
    assert_agrees(case, backwards=False)


@often
@given(
    st.integers(0, 700), st.integers(0, 40), st.integers(1, 40) | st.just(256), reals,
    st.sampled_from([0, 3, -50]), st.booleans(), st.integers(0, 3), generators, st.booleans(),
)  # fmt: skip
def test_statistics(rows, features, bins, dtype, offset, odd, seen, rng, backwards):
    operation = UpdateStatistics(rows, features, bins, dtype)
    assert_agrees(cases.statistics(rng, operation, offset=offset, odd=odd, seen=seen), backwards)


@pytest.mark.parametrize("case", cases.small(), ids=lambda case: type(case.operation).__name__)
def test_what_the_check_on_a_gpu_looks_at(case):
    assert_agrees(case, backwards=False)


def test_many_pieces_of_rows_are_merged():
    """More pieces than a warp has lanes: each lane has several, and the last not all of them."""
    operation = UpdateStatistics(256 * 70 + 1, 2, 8)
    assert operation.launches()[0].grid == (1, 71, 1)
    assert_agrees(cases.statistics(np.random.default_rng(0), operation, offset=1e4, seen=10), backwards=False)


@pytest.mark.parametrize("outlier", [1e6, np.nan, np.inf])
def test_the_first_value_may_be_any(outlier):
    """Distances are from it: the variance has to survive one that is far away, and one that is no number."""
    case = cases.statistics(np.random.default_rng(0), UpdateStatistics(256, 1, 8))
    case.given["x"][:8] = outlier
    assert_agrees(case, backwards=True)


def test_a_constant_far_from_zero_has_no_variance():
    case = cases.statistics(np.random.default_rng(0), UpdateStatistics(1000, 3, 8))
    case.given["x"][...] = 123456.7
    found = run_on_shim(case.operation, case.given)
    assert found["m2"].tolist() == [0, 0, 0]
    assert found["mean"].tolist() == [float(np.float32(123456.7))] * 3


def test_the_check_launches_every_kernel():
    launched = {launch.kernel for case in cases.small() for launch in case.operation.launches()}
    assert launched == {kernel for kernels in cubins.KERNELS.values() for kernel in kernels}
