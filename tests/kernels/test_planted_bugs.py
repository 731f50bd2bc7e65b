"""Bugs planted in the kernels are seen by what the tests and the check on a GPU look at."""

from functools import cache
from itertools import product

import numpy as np
import pytest
from kernels.apart import apart
from kernels.shim import ShimKernels, needs_compiler, run_on_shim

from headrace_kernels import cubins
from headrace_kernels.check import cases
from headrace_kernels.check.agreement import disagreement
from headrace_kernels.operations import UpdateStatistics

pytestmark = [
    needs_compiler,
    # the copy has nothing to do with the other threads
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"),
]

BUGS = [
    ("images", "2u * position + 1u", "2u * position", "corners for centres of pixels"),
    ("images", "1.f / (down.total() * across.total())", "1.f", "weights not normalised"),
    ("images", "start = base = position;", "start = base = 0;", "the first pixel everywhere"),
    ("images", "(row * place.width + x - place.left)", "(row * place.width)", "the first pixels of each row"),
    ("images", "line + (swap ? CHANNELS - 1 - c : c) * plane", "line + c * plane", "what is as it is not swapped"),
    ("images", "swap ? factor[CHANNELS - 1 - c] : factor[c]", "factor[c]", "factors of other channels"),
    ("images", "at = i * CHANNELS + c", "at = c * TOGETHER + i", "planes for pixels"),
    ("images", "swap ? sum[CHANNELS - 1 - c] : sum[c]", "sum[c]", "channels not swapped"),
    ("images", "place.offset + ", "", "always the first image"),
    ("images", "row < 0 || row >= place.resized_height", "row < 0", "no padding below"),
    ("images", "blockIdx.z * (CHANNELS * plane)", "blockIdx.z * plane", "images over one another"),
    ("quantize", "rintf(ratio)", "floorf(ratio + 0.5f)", "halves up, not to even"),
    ("quantize", "return fmaf(fmaf(-by.scale, near, x), by.inverse, near)", "return near", "a product not corrected"),
    ("quantize", "to_float(x) / by.scale", "to_float(x) * by.inverse", "the product with the reciprocal"),
    ("quantize", "fminf(fmaxf(to_float(from.of[i]), -LARGE), LARGE)", "to_float(from.of[i])", "infinities corrected"),
    ("quantize", "INTEGER = 3 << 22", "INTEGER = (3 << 22) + 1", "halves to odd"),
    ("quantize", "fmaxf(sum, INTEGER + Limits<Q>::low)", "sum", "no lowest value"),
    ("quantize", "i = rows * period + thread", "i = total", "what is left behind the last row"),
    ("quantize", "first / inner % channels", "first % channels", "the wrong channel"),
    ("quantize", "channels) channel = 0;", "channels) channel = 1;", "channels that do not start again"),
    ("quantize", "(float(q) - by.zero) * by.scale", "float(q) * by.scale - by.zero", "the zero point scaled not"),
    ("ragged", "i < full ? source[i] : pad", "source[i]", "no padding"),
    ("ragged", "i < count ? mask_one : 0", "i <= count ? mask_one : 0", "a mask that is one too long"),
    ("ragged", "count > length ? length : count", "count", "rows not cut off"),
    ("ragged", "u128{low, high}", "u128{low, 0}", "half of the padding"),
    (
        "ragged",
        "Unit* target = out + offsets[row] * units;",
        "Unit* target = out + offsets[row];",
        "rows in the wrong place",
    ),
    ("statistics", "rows_of_block < rows - first ? first + rows_of_block : rows", "rows", "rows counted twice"),
    ("statistics", "for (; row < last; row += LINES, next += step)", "for (; false;)", "the last rows left out"),
    ("statistics", "float(bins - 1)", "float(bins)", "the upper edge in a bin of its own"),
    ("statistics", "value > to ?", "value >= to ?", "the upper edge outside"),
    ("statistics", "if (!mine.count) mine.shift = to_float(ahead[0]);", "", "distances from zero: cancellation"),
    ("statistics", "if (!to.count) to.shift = x;", "", "distances from a NaN"),
    ("statistics", "if (fabsf(sum) < INFINITE) {", "if (true) {", "NaNs and infinities among the others"),
    ("statistics", "i = AHEAD; i; --i", "i = AHEAD - 1; i; --i", "one of a few left out"),
    ("statistics", "from.squares + by * (2.f * from.sum + moved)", "from.squares", "sums about different values added"),
    ("statistics", "to.m2 += from.m2 + distance", "to.m2 += from.m2 + 0 * distance", "variances just added"),
    ("statistics", "if (fabsf(value) < INFINITE) add", "add", "infinities in the mean"),
    ("statistics", "piece += WARP", "piece += 2 * WARP", "pieces left out"),
    ("topk", "0xffffffffu - u32(index))", "u32(index))", "ties to the last"),
    ("topk", "x != x ? 0u :", "", "NaNs first"),
    ("topk", "at < 0 && first < classes", "false", "a row of nothing but -inf"),
    ("topk", "greater = value[a][i] > most", "greater = value[a][i] >= most", "the last of equals"),
    ("topk", "second = greater ? most : value[a][i]", "second = value[a][i]", "a second that is the greatest"),
    ("topk", "second_at = greater ? at : index", "second_at = index", "the second in the wrong place"),
    ("topk", "spare = NONE;", "", "the second again and again"),
    ("topk", "(known > 2 || few)", "few", "two of each thread"),
    ("topk", "few && at < 0", "false && at < 0", "nothing where there is nothing but NaN"),
    ("topk", "i < k; ++i", "i < k - 1; ++i", "a bound that is too high"),
    ("topk", "before + lane < place", "lane < place", "places written twice"),
    ("topk", "sum *= exponential(before - scale);", "", "a sum of exponentials of differing scales"),
    ("topk", "sum * exponential(scale - greatest)", "sum", "sums of threads of differing scales"),
    ("topk", "lane % TOGETHER;", "0;", "one in four looked at again"),
    ("topk", "key < best && key > next", "key > next", "the same again"),
    ("topk", "lane == owner % WARP", "lane == 0", "the wrong thread's next"),
]


@cache
def cases_of(source):
    """Cases of a source, each with what its reference finds."""
    found = [case for case in cases.small() if case.operation.source == source]
    if source == "statistics":
        found.append(cases.statistics(np.random.default_rng(0), UpdateStatistics(256 * 70 + 1, 2, 8), offset=1e4))
    return [(case, case.expected()) for case in found]


def seen(source, text):
    """Whether any case shows, in either order of threads, that this is not the source.

    Apart: what is wrong may write beyond its arrays, and tests that come later would pay for that.
    """
    kernels = ShimKernels({source: text})
    known = cases_of(source)
    return apart(lambda: differs(known, kernels))


def differs(known, kernels):
    for (case, expected), backwards, align in product(known, (False, True), (1, 16)):
        try:
            found = run_on_shim(case.operation, case.given, kernels, backwards, align)
        except AssertionError:
            return True
        if disagreement(case.operation, expected, found) is not None:
            return True
    return False


@pytest.mark.parametrize(("source", "right", "wrong", "what"), BUGS, ids=[bug[3].replace(" ", "-") for bug in BUGS])
def test_is_seen(source, right, wrong, what):
    text = cubins.source_text(source)
    assert right in text, "the source has changed: plant the bug anew"
    assert seen(source, text.replace(right, wrong))


@pytest.mark.parametrize("source", sorted(cubins.KERNELS))
def test_nothing_is_seen_in_what_is_right(source):
    assert not seen(source, cubins.source_text(source))


def barriers():
    for source in cubins.KERNELS:
        text = cubins.source_text(source)
        for number in range(text.count("__syncthreads();")):
            yield source, number


@pytest.mark.parametrize(("source", "number"), list(barriers()))
def test_no_barrier_can_be_left_out(source, number):
    parts = cubins.source_text(source).split("__syncthreads();")
    without = (
        "__syncthreads();".join(parts[: number + 1]) + "__syncwarp();" + "__syncthreads();".join(parts[number + 1 :])
    )
    assert seen(source, without)
