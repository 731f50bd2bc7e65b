"""The reference for top-k: against sorting, and softmax in FP64."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from headrace_kernels.reference import top_k
from headrace_kernels.reference.topk import AT_ONCE

few = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1.5, np.inf, -np.inf, np.nan])
shapes = st.tuples(st.integers(0, 5), st.integers(1, 40))
matrices = npst.arrays(np.float32, shapes, elements=few | st.floats(width=32)) | npst.arrays(
    np.float16, shapes, elements=few | st.floats(width=16)
)


def by_sorting(row, k):
    """Descending, ties by index; a NaN below all else."""
    return sorted(range(len(row)), key=lambda i: (np.isnan(row[i]), -row[i] if row[i] == row[i] else 0, i))[:k]


@given(matrices, st.data())
def test_ranks_as_sorting_does(logits, data):
    k = data.draw(st.integers(1, logits.shape[1]))
    found = top_k(logits, k, softmax=False)
    assert found.values.shape == found.indices.shape == (len(logits), k)
    assert (found.values.dtype, found.indices.dtype) == (np.float32, np.int32)
    for row, indices, values in zip(logits, found.indices, found.values, strict=True):
        assert indices.tolist() == by_sorting(row.tolist(), k)
        np.testing.assert_array_equal(values, row[indices].astype(np.float32))
    np.testing.assert_array_equal(top_k(logits, k).indices, found.indices)


@given(npst.arrays(np.float32, (3, 17), elements=st.floats(-80, 80, width=32)))
def test_probabilities_are_those_of_softmax(logits):
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    expected = exponentials / exponentials.sum(axis=1, keepdims=True)
    found = top_k(logits, 17)
    np.testing.assert_allclose(found.values, np.take_along_axis(expected, found.indices, 1), rtol=1e-5, atol=1e-37)
    np.testing.assert_allclose(found.values.sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("row", [[1, np.nan, 3], [np.inf, 1, 2], [-np.inf, -np.inf, -np.inf]])
def test_what_has_no_softmax_is_nan(row):
    assert np.isnan(top_k(np.array([row], np.float32), 3).values).all()


def test_minus_infinity_has_no_share():
    found = top_k(np.array([[-np.inf, 2, 2]], np.float32), 3)
    assert found.indices.tolist() == [[1, 2, 0]]
    assert found.values.tolist() == [[0.5, 0.5, 0]]


def test_rows_that_are_ranked_apart():
    logits = np.random.default_rng(0).standard_normal((5, AT_ONCE // 2 - 1)).astype(np.float32)
    found = top_k(logits, 3, softmax=False)
    np.testing.assert_array_equal(found.indices, np.argsort(-logits, axis=1, kind="stable")[:, :3])


def test_refuses_what_is_none():
    logits = np.zeros((2, 3), np.float32)
    for k in (0, 4):
        with pytest.raises(ValueError, match=f"k is 1 to 3, the number of classes, not {k}"):
            top_k(logits, k)
    with pytest.raises(ValueError, match="not float64"):
        top_k(logits.astype(np.float64), 1)
    with pytest.raises(ValueError, match=r"not float32 \[3\]"):
        top_k(logits[0], 1)
