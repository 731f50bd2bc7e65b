import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial import distance

from headrace.drift import scores

COUNTS = st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), min_size=1, max_size=30).map(np.array)


def both(pairs):
    reference, window = pairs.T
    return reference, window, bool(reference.sum() and window.sum())


@given(COUNTS)
def test_kolmogorov_smirnov_is_scipys(pairs):
    reference, window, known = both(pairs)
    found = scores.kolmogorov_smirnov(reference, window)
    if not known:
        assert found == 0
        return
    samples = [np.repeat(np.arange(len(counts)), counts) for counts in (reference, window)]
    with np.errstate(divide="ignore"):  # in the p-value of two samples of one
        expected = stats.ks_2samp(*samples, method="asymp").statistic
    assert found == pytest.approx(expected, abs=1e-12)


@given(COUNTS)
def test_jensen_shannon_is_scipys(pairs):
    reference, window, known = both(pairs)
    found = scores.jensen_shannon(reference, window)
    expected = distance.jensenshannon(reference, window, base=2) if known else 0
    assert found == pytest.approx(np.nan_to_num(expected), abs=1e-6)


@given(COUNTS)
def test_psi_is_the_sum_of_both_relative_entropies(pairs):
    reference, window, known = both(pairs)
    used = (reference + window) > 0
    p, q = reference[used] + 0.5, window[used] + 0.5
    expected = stats.entropy(p, q) + stats.entropy(q, p) if known else 0
    assert scores.psi(reference, window) == pytest.approx(expected, abs=1e-9)


def test_psi_by_hand():
    reference, window = np.array([500, 300, 200]), np.array([400, 300, 300])
    p, q = (reference + 0.5) / 1001.5, (window + 0.5) / 1001.5
    assert scores.psi(reference, window) == pytest.approx(((q - p) * np.log(q / p)).sum())
    assert scores.psi(reference, window) == pytest.approx(0.0627, abs=0.001)


def test_the_noise_of_psi_is_its_mean_without_change(random):
    share = np.full(20, 1 / 20)
    found = scores.psi(random.multinomial(4000, share, size=2000), random.multinomial(1000, share, size=2000))
    assert found.mean() == pytest.approx(float(scores.psi_noise(20, 1000, 4000)), rel=0.05)


@given(COUNTS)
def test_bounds_and_symmetry(pairs):
    reference, window, known = both(pairs)
    for score in (scores.kolmogorov_smirnov, scores.jensen_shannon, scores.total_variation):
        found = float(score(reference, window))
        assert 0 <= found <= 1 + 1e-12
        assert found == pytest.approx(float(score(window, reference)))
        assert score(reference, reference) == pytest.approx(0, abs=1e-7)
    assert scores.kolmogorov_smirnov(reference, window) <= scores.total_variation(reference, window) + 1e-12
    assert not known or scores.total_variation(reference, window) == pytest.approx(
        np.abs(reference / reference.sum() - window / window.sum()).sum() / 2
    )


@given(st.integers(0, 2**32 - 1), st.floats(-3, 3), st.floats(0.5, 2))
def test_wasserstein_is_scipys(seed, shift, scale):
    """Of samples whose sorted values are the quantiles at the middles of equal parts."""
    random = np.random.default_rng(seed)
    a, b = random.normal(size=(2, 100))
    b = b * scale + shift
    assert scores.wasserstein(np.sort(a), np.sort(b)) == pytest.approx(stats.wasserstein_distance(a, b))


def test_scores_of_many_features_at_once(random):
    reference, window = random.integers(0, 50, size=(2, 7, 10))
    for score in (scores.psi, scores.kolmogorov_smirnov, scores.jensen_shannon, scores.total_variation):
        found = score(reference, window)
        assert found.shape == (7,)
        assert found.tolist() == [pytest.approx(float(score(reference[at], window[at]))) for at in range(7)]
