import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from headrace.drift.significance import chi_square_tail, differs_in_share, holm, homogeneity, more_often

SIZES = st.integers(1, 5000)


@given(st.floats(0, 3000), st.integers(1, 200))
def test_the_tail_of_chi_square_is_scipys(statistic, freedom):
    assert chi_square_tail(statistic, freedom) == pytest.approx(
        stats.chi2.sf(statistic, freedom), rel=1e-10, abs=1e-300
    )


@given(SIZES, SIZES, st.data())
def test_fishers_test_is_scipys(rows, other, data):
    reference, window = data.draw(st.integers(0, rows)), data.draw(st.integers(0, other))
    expected = stats.hypergeom.sf(window - 1, rows + other, reference + window, other)
    assert more_often(reference, rows, window, other) == pytest.approx(expected, rel=1e-7, abs=1e-14)


def test_more_than_all_of_the_reference_is_rosenbaums_test():
    """Of 50 and 1000 rows the ten largest are all in the window: choose(50, 10) / choose(1050, 10)."""
    exact = stats.hypergeom.pmf(10, 1050, 50, 10)
    assert more_often(0, 1000, 10, 50) == pytest.approx(exact, rel=1e-9)
    assert exact < 1e-13


def test_shares_that_are_equal_or_not():
    assert differs_in_share(10, 100, 10, 100) == 1
    assert differs_in_share(0, 10_000, 5, 500) < 1e-6
    assert differs_in_share(500, 10_000, 0, 500) < 1e-6
    assert differs_in_share(0, 0, 5, 5) == 1


@pytest.mark.parametrize(
    ("reference", "window"), [([100, 200, 300], [20, 15, 40]), ([1000, 100, 90], [10, 80, 70]), ([50] * 20, [40] * 20)]
)
@pytest.mark.parametrize("ordered", [True, False])
def test_homogeneity_is_pearsons_test(reference, window, ordered):
    table = np.array([reference, window])
    expected = stats.chi2_contingency(table, correction=False).pvalue
    assert homogeneity(*table, ordered=ordered) == pytest.approx(expected, rel=1e-9, abs=1e-300)


def test_small_bins_are_joined_with_a_neighbour_or_with_one_another():
    reference, window = np.array([2, 300, 2, 300, 2, 2]), np.array([0, 30, 0, 20, 0, 1])
    ordered = stats.chi2_contingency([[302, 306], [30, 21]], correction=False).pvalue
    assert homogeneity(reference, window, ordered=True) == pytest.approx(ordered)
    unordered = stats.chi2_contingency([[300, 308], [30, 21]], correction=False).pvalue
    assert homogeneity(reference, window, ordered=False) == pytest.approx(unordered)


@pytest.mark.parametrize("ordered", [True, False])
def test_what_is_rare_in_a_large_reference_is_seen_in_a_small_window(ordered):
    reference, window = np.array([20_000, 100, 100]), np.array([180, 10, 10])
    one_sided = stats.fisher_exact([[20_000, 200], [180, 20]], alternative="greater").pvalue
    found = homogeneity(reference, window, ordered)
    assert found == pytest.approx(2 * one_sided)
    assert found < 1e-10
    assert homogeneity(np.array([500]), np.array([30]), ordered) == 1


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=30), st.booleans())
def test_a_p_value_whatever_the_counts(pairs, ordered):
    reference, window = np.array(pairs, np.int64).reshape(-1, 2).T
    found = homogeneity(reference, window, ordered)
    assert 0 <= found <= 1
    assert homogeneity(reference, reference, ordered) == 1


@pytest.mark.parametrize(("rows", "bins"), [(200, 20), (1000, 20), (5000, 7)])
def test_p_values_of_quiet_data_are_as_rare_as_they_say(random, rows, bins):
    share = random.dirichlet(np.full(bins, 3.0))
    reference, window = (random.multinomial(n, share, size=4000) for n in (3000, rows))
    found = np.array([homogeneity(a, b, ordered=True) for a, b in zip(reference, window, strict=True)])
    for level in (0.05, 0.01):
        assert (found <= level).mean() <= level + 4 * np.sqrt(level / 4000)
        assert (found <= level).mean() >= level / 2


@given(st.lists(st.floats(0, 1), max_size=20))
def test_holm_by_its_definition(p_values):
    """Reject in ascending order as long as p <= alpha / (tests that are left)."""
    adjusted = holm(p_values)
    for alpha in (0.001, 0.05, 0.5):
        order = sorted(range(len(p_values)), key=lambda index: p_values[index])
        rejected = set()
        for place, index in enumerate(order):
            if p_values[index] * (len(p_values) - place) > alpha:
                break
            rejected.add(index)
        assert {index for index, p_value in enumerate(adjusted) if p_value <= alpha} == rejected
