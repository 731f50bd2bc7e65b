from math import exp, log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, special

from headrace.guard.confidence import PRIOR, MeanBound, _log_beta, at_most, below

BOUNDS = st.floats(0.01, 0.999)
ALPHA = 0.05
RUNS = 1000
LOOKS = np.unique(np.geomspace(1, 3000, 60).astype(int))


@given(st.floats(0.001, 0.999), st.floats(0, 5000), st.floats(0, 5000))
def test_the_incomplete_beta_function_is_scipys(x, a, b):
    a, b = a + PRIOR, b + PRIOR
    expected = special.betainc(a, b, x)
    if expected > 1e-280:
        found = _log_beta(x, a, b) - special.betaln(a, b)
        assert found == pytest.approx(log(expected), rel=1e-9, abs=1e-7)


def test_evidence_is_the_mixture_of_likelihood_ratios():
    bound, total, misses = 0.9, 30, 12

    def prior(q):
        return q ** (PRIOR - 1) * (1 - q) ** (PRIOR - 1)

    whole, _ = integrate.quad(prior, 0, bound)
    mixture, _ = integrate.quad(
        lambda q: prior(q) / whole * (q / bound) ** total * ((1 - q) / (1 - bound)) ** misses, 0, bound
    )
    assert below(bound, total, misses) == pytest.approx(log(mixture), rel=1e-6)


@given(BOUNDS, st.integers(0, 500))
def test_nothing_speaks_against_a_mean_that_is_not_below(bound, seen):
    total = bound * seen
    assert below(bound, total, seen - total) <= 1e-9
    assert below(bound, seen, 0) == 0.0


@given(BOUNDS, st.integers(0, 300), st.integers(1, 300))
def test_no_mixture_is_more_than_the_likeliest(bound, total, misses):
    seen = total + misses
    mean = total / seen
    if mean < bound:
        most = misses * (log(misses / seen) - log(1 - bound)) + (total * log(mean / bound) if total else 0)
        assert below(bound, total, misses) <= most + 1e-9


@given(st.integers(0, 400), st.integers(0, 400))
def test_bounds_are_where_the_evidence_is_enough(total, misses):
    upper, lower = at_most(0.01, total, misses), 1 - at_most(0.01, misses, total)
    if total + misses:
        assert lower <= total / (total + misses) <= upper
    if upper < 1:
        assert below(upper, total, misses) >= log(100) > below(max(upper - 2e-6, 1e-9), total, misses)
    assert at_most(0.05, total, misses) <= upper + 1e-6


def coverage(draw, bound, rng):
    """In how many of RUNS runs the mean, which is not below the bound, is ever said to be."""
    wrong = 0
    for _ in range(RUNS):
        sums = np.concatenate([[0.0], np.cumsum(draw(rng))])
        wrong += any(below(bound, sums[look], look - sums[look]) >= log(1 / ALPHA) for look in LOOKS)
    return wrong / RUNS


@pytest.mark.parametrize("mean", [0.5, 0.9, 0.99])
def test_it_is_wrong_no_more_often_than_alpha_however_often_one_looks(mean):
    rng = np.random.default_rng(0)
    assert coverage(lambda rng: rng.random(3000) < mean, mean, rng) <= ALPHA


def test_shares_are_no_worse_than_events():
    """Agreement of a request of many rows is a share: so it is all the less likely to be wrong."""
    rng = np.random.default_rng(0)
    assert coverage(lambda rng: rng.beta(9, 1, 3000), 0.9, rng) <= ALPHA
    with_rows = coverage(lambda rng: rng.binomial(8, 0.9, 3000) / 8, 0.9, rng)
    assert with_rows <= ALPHA


def test_what_depends_on_the_past_is_no_exception():
    """Whoever picks the next chance, knowing all before it, and never one below the bound, gains nothing."""

    def spiteful(rng):
        """As bad as allowed while it pays, then certain, in bursts."""
        draws, found, misses = rng.random(3000), np.ones(3000), 0
        for at in range(3000):
            worth = misses > 0.1 * at
            found[at] = draws[at] < (0.9 if worth or at % 97 < 20 else 1.0)
            misses += 1 - found[at]
        return found

    assert coverage(spiteful, 0.9, np.random.default_rng(0)) <= ALPHA


def test_a_worse_mean_is_found():
    rng = np.random.default_rng(0)
    assert coverage(lambda rng: rng.random(3000) < 0.9, 0.95, rng) > 0.99


def add(bound, values):
    bound.add(len(values), values.sum(), (values**2).sum())


class TestMeanBound:
    @pytest.mark.parametrize("shape", [(0.5, 9.5), (2, 38), (1, 1), (8, 2)])
    @pytest.mark.parametrize("group", [1, 7])
    def test_it_covers_the_mean_at_all_times(self, shape, group):
        rng, wrong = np.random.default_rng(0), 0
        mean = shape[0] / sum(shape)
        for _ in range(400):
            bound, missed = MeanBound(ALPHA), False
            for values in rng.beta(*shape, (400 // group, group)):
                add(bound, values)
                missed |= bound.at_least(ALPHA / 2) > mean or bound.at_most(ALPHA / 2) < mean
            wrong += missed
        assert wrong / 400 <= ALPHA

    def test_it_closes_in(self):
        rng = np.random.default_rng(0)
        bound = MeanBound(ALPHA)
        assert (bound.mean, bound.at_least(ALPHA), bound.at_most(ALPHA)) == (0, 0, 1)
        values = rng.beta(2, 38, 2000)
        for at in range(0, 2000, 10):
            add(bound, values[at : at + 10])
        assert bound.mean == pytest.approx(values.mean())
        assert 0.04 < bound.at_least(ALPHA) < 0.05 < bound.at_most(ALPHA) < 0.06
        assert bound.at_least(1e-6) < bound.at_least(ALPHA)
        assert repr(bound) == "<MeanBound 2000 seen, mean 0.05077>"

    @given(st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=5), max_size=30))
    def test_bounds_are_shares(self, groups):
        bound = MeanBound(0.01)
        for values in groups:
            add(bound, np.array(values))
        assert 0 <= bound.at_least(0.01) <= bound.at_most(0.01) <= 1


def test_a_process_that_is_expected_not_to_grow():
    """Exactly: the expectation of exp(below + 1 step) under the bound is exp(below), for the mixture."""
    bound, total, misses = 0.8, 20, 9
    now = below(bound, total, misses)
    after = bound * exp(below(bound, total + 1, misses)) + (1 - bound) * exp(below(bound, total, misses + 1))
    assert after == pytest.approx(exp(now), rel=1e-9)
