import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from headrace.drift.grid import LIMIT, grid_of
from headrace.drift.moments import Moments

COLUMNS = arrays(
    np.float64, st.tuples(st.integers(1, 200), st.integers(1, 3)),
    elements=st.floats(-1e12, 1e12) | st.sampled_from([np.nan, np.inf, -np.inf, 0.0, 1.0]),
)  # fmt: skip


def counted(grid, numbers):
    return grid.histogram(grid.cells(numbers))


def test_bins_have_about_equal_mass(random):
    numbers = random.normal(size=(10_000, 2)) * [1, 1000] + [0, 1e9]
    counts = counted(grid_of(numbers, 20), numbers)
    assert counts.shape == (2, 20)
    assert (counts > 350).all()
    assert (counts < 650).all()


def test_a_value_is_rounded_to_a_small_part_of_the_deviation(random):
    numbers = random.normal(size=(5000, 1)) * 37
    grid = grid_of(numbers, 20)
    step = grid.step[0]
    assert 37 / 128 < step < 37 / 16
    assert np.log2(step).is_integer()
    cells = grid.cells(numbers)
    assert len(np.unique(cells)) < 600  # of 5000 different values: what is kept is no value of anybody's
    assert np.abs(grid.values(cells) - numbers).max() <= step / 2


def test_dates_and_other_large_numbers_keep_their_resolution(random):
    seconds = 1.7e9 + random.normal(size=(5000, 1)) * 3600
    grid = grid_of(seconds, 20)
    assert np.abs(grid.values(grid.cells(seconds)) - seconds).max() < 100


def test_a_heavy_value_has_a_bin_of_its_own(random):
    numbers = random.normal(size=(4000, 1)) ** 2 + 0.01
    numbers[:1600] = 0
    counts = counted(grid_of(numbers, 10), numbers)[0]
    assert 1600 in counts


def test_a_constant_is_told_from_what_is_beside_it():
    grid = grid_of(np.full((100, 1), 7.0), 20)
    assert grid.bins_of(0) == 3
    assert counted(grid, np.array([[7.0], [6.9], [7.1], [7.0]]))[0].tolist() == [1, 2, 1]


def test_two_values_have_a_bin_each():
    numbers = np.array([[0.0]] * 30 + [[1.0]] * 70)
    assert sorted(counted(grid_of(numbers, 20), numbers)[0].tolist())[-2:] == [30, 70]


def test_a_feature_without_values_counts_everything_together():
    grid = grid_of(np.full((10, 1), np.nan), 20)
    assert counted(grid, np.array([[1.0], [np.nan], [5.0]]))[0].tolist() == [2]


def test_infinities_lie_at_the_ends_and_nan_nowhere():
    grid = grid_of(np.arange(100.0)[:, None], 4)
    counts = counted(grid, np.array([[np.inf], [-np.inf], [np.nan], [1e300]]))[0]
    assert (counts[0], counts[-1], counts.sum()) == (1, 2, 3)
    assert grid.cells(np.array([[np.inf], [-1e300]])).tolist() == [[LIMIT], [-LIMIT]]


@given(COLUMNS)
def test_every_number_is_counted_once(numbers):
    grid = grid_of(numbers, 8)
    counts = counted(grid, numbers)
    assert counts.sum(axis=1).tolist() == (~np.isnan(numbers)).sum(axis=0).tolist()
    finite = np.isfinite(grid.edges)
    assert all((np.diff(row[mask]) > 0).all() for row, mask in zip(grid.edges, finite, strict=True))
    assert (grid.step > 0).all()


@given(COLUMNS, st.integers(0, 200))
def test_moments_of_parts_are_those_of_the_whole(numbers, cut):
    grid = grid_of(numbers, 8)
    cells = grid.cells(numbers)
    infinite = np.isinf(numbers)
    whole = Moments.of(grid, cells, infinite)
    parts = Moments.of(grid, cells[:cut], infinite[:cut]).merge(Moments.of(grid, cells[cut:], infinite[cut:]))
    for name in ("count", "missing", "infinite", "minimum", "maximum"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))
    scale = np.maximum(np.nan_to_num(np.abs(grid.values(cells)).max(axis=0)), 1)
    np.testing.assert_allclose(parts.mean, whole.mean, atol=1e-9 * scale.max())
    np.testing.assert_allclose(parts.deviation, whole.deviation, rtol=1e-6, atol=1e-6 * scale.max())


def test_moments_are_numpys(random):
    numbers = random.normal(size=(3000, 2)) * [5, 0.1] + [100, -3]
    numbers[::7, 1] = np.nan
    grid = grid_of(numbers, 20)
    found = Moments.of(grid, grid.cells(numbers), np.isinf(numbers))
    assert found.missing.tolist() == [0, 429]
    np.testing.assert_allclose(found.mean, np.nanmean(numbers, axis=0), atol=grid.step.max() / 10)
    np.testing.assert_allclose(found.deviation, np.nanstd(numbers, axis=0), rtol=1e-3)
    assert found.minimum[0] == pytest.approx(numbers[:, 0].min(), abs=grid.step[0])


def test_infinities_are_counted_and_in_no_moment(random):
    numbers = random.normal(100, 10, size=(2000, 1))
    grid = grid_of(numbers, 20)
    numbers[[3, 1500], 0] = np.inf, -np.inf
    halves = [Moments.of(grid, grid.cells(half), np.isinf(half)) for half in np.split(numbers, 2)]
    found = halves[0].merge(halves[1])
    finite = numbers[np.isfinite(numbers)]
    assert (found.count[0], found.infinite[0], found.finite[0], found.missing[0]) == (2000, 2, 1998, 0)
    assert found.mean[0] == pytest.approx(finite.mean(), abs=grid.step[0])
    assert found.deviation[0] == pytest.approx(finite.std(), rel=1e-3)
    assert found.minimum[0] == pytest.approx(finite.min(), abs=grid.step[0])
    assert found.maximum[0] == pytest.approx(finite.max(), abs=grid.step[0])
