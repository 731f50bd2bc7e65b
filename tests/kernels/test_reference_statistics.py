"""The reference for statistics: against NumPy's own of each feature, and merged in any order."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from headrace_kernels.reference import FeatureStatistics, feature_statistics
from headrace_kernels.reference.statistics import AT_ONCE

values = st.floats(-100, 100, width=16) | st.sampled_from([np.nan, np.inf, -np.inf, 2.0, -2.0])
batches = npst.arrays(
    st.sampled_from([np.float32, np.float16]), st.tuples(st.integers(0, 9), st.integers(0, 4)), elements=values
)


def ranges(features, low=-2, high=2):
    return np.full(features, low, np.float32), np.full(features, high, np.float32)


def assert_same(found, expected):
    for name in ("count", "missing", "minimum", "maximum", "histogram"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), name)
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-12, atol=1e-10)
    np.testing.assert_allclose(found.m2, expected.m2, rtol=1e-9, atol=1e-8)


@given(batches, st.integers(1, 8))
def test_each_feature_is_what_numpy_finds(x, bins):
    found = feature_statistics(x, *ranges(x.shape[1]), bins)
    for feature, column in enumerate(x.T.astype(np.float64)):
        finite = column[np.isfinite(column)]
        assert found.count[feature] == len(finite)
        assert found.missing[feature] == np.isnan(column).sum()
        assert found.infinite[feature] == np.isinf(column).sum()
        assert found.minimum[feature] == finite.min(initial=np.inf)
        assert found.maximum[feature] == finite.max(initial=-np.inf)
        if len(finite):
            np.testing.assert_allclose(found.mean[feature], finite.mean(), rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(found.variance[feature], finite.var(), rtol=1e-9, atol=1e-9)
        else:
            assert np.isnan(found.variance[feature])
        assert found.histogram[feature, 0] == (column < -2).sum()
        assert found.histogram[feature, -1] == (column > 2).sum()
        assert found.histogram[feature].sum() == (~np.isnan(column)).sum()


def test_bins_are_those_of_numpy():
    x = np.random.default_rng(0).uniform(-3, 3, (999, 1)).astype(np.float32)
    found = feature_statistics(x, *ranges(1), 16).histogram[0]
    np.testing.assert_array_equal(found[1:-1], np.histogram(x, 16, (-2, 2))[0])
    edges = np.linspace(-2, 2, 5, dtype=np.float32)[:, None]
    assert feature_statistics(edges, *ranges(1), 4).histogram[0].tolist() == [0, 1, 1, 1, 2, 0]


@given(batches, st.data())
def test_parts_merge_to_the_whole(x, data):
    low, high = ranges(x.shape[1])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(x)), max_size=3)))
    parts = [feature_statistics(part, low, high, 5) for part in np.split(x, cuts)]
    merged = FeatureStatistics.empty(x.shape[1], 5)
    for part in data.draw(st.permutations(parts)):
        merged = merged.merge(part)
    assert_same(merged, feature_statistics(x, low, high, 5))


def test_far_from_zero_the_variance_is_still_exact():
    x = (1e6 + np.arange(1000).reshape(-1, 1) % 2).astype(np.float32)
    found = feature_statistics(x, *ranges(1, 0, 2e6), 4)
    assert found.variance[0] == 0.25


def test_a_batch_that_is_looked_at_in_pieces():
    x = np.random.default_rng(0).standard_normal((AT_ONCE // 3 + 9, 4)).astype(np.float32)
    found = feature_statistics(x, *ranges(4), 8)
    np.testing.assert_allclose(found.variance, x.var(axis=0, dtype=np.float64), rtol=1e-9)
    assert found.histogram.sum() == x.size


def test_huge_values_do_not_break_the_histogram():
    x = np.array([[3e38], [-3e38]], np.float32)
    assert feature_statistics(x, *ranges(1, -3e38, 3e38), 4).histogram[0].tolist() == [0, 1, 0, 0, 1, 0]


@pytest.mark.parametrize(("low", "high"), [(0, 0), (1, 0), (0, np.inf), (np.nan, 1), (0, 1e-45)])
def test_refuses_a_range_that_is_none(low, high):
    with pytest.raises(ValueError, match=r"feature 0: .* is no range for 256 bins"):
        feature_statistics(np.zeros((1, 1), np.float32), *ranges(1, low, high), 256)


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"\[rows, 2\], not float32 \[1, 3\]"):
        feature_statistics(np.zeros((1, 3), np.float32), *ranges(2), 4)
    with pytest.raises(ValueError, match="1 to 256 bins, not 257"):
        feature_statistics(np.zeros((1, 3), np.float32), *ranges(3), 257)
    with pytest.raises(ValueError, match="not float64"):
        feature_statistics(np.zeros((1, 1), np.float32), np.zeros(1), np.ones(1), 4)
