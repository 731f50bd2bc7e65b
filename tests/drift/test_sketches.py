"""That errors are within the bounds that the library states, and stay there when sketches are merged."""

import numpy as np
import pytest

from headrace.drift import sketches
from headrace.drift.errors import DriftError, MissingPackage
from headrace.drift.sketches import DISTINCT_LG, FREQUENT_LG, KLL_K, ItemSketch, Quantiles, datasketches

RANKS = np.arange(1, 100) / 100


def rank_errors(sketch, cells):
    """By feature, how far the ranks of its quantiles are from what was asked for, at most."""
    found = sketch.quantiles(RANKS)
    errors = []
    for column, quantiles in zip(cells.T, found, strict=True):
        values = np.sort(column[~np.isnan(column)])
        below = np.searchsorted(values, quantiles, side="left") / len(values)
        upto = np.searchsorted(values, quantiles, side="right") / len(values)
        errors.append(max(np.maximum(below - RANKS, RANKS - upto).max(), 0))
    return np.array(errors)


@pytest.fixture
def cells(random):
    return np.rint(random.normal(size=(40_000, 60)) * 1000).astype(np.float32)


def test_quantiles_are_within_the_stated_error(cells):
    """The library states it for one rank with 99 % confidence; over all ranks that is its error of a histogram."""
    sketch = Quantiles(cells.shape[1])
    sketch.update(cells)
    bound = datasketches().kll_floats_sketch.get_normalized_rank_error(KLL_K, True)
    assert bound == pytest.approx(0.0165, abs=0.0001)
    assert (rank_errors(sketch, cells) <= bound).mean() >= 0.95  # of 60 sketches


def test_merged_quantiles_are_within_the_same_error(cells):
    merged = Quantiles(cells.shape[1])
    for part in np.array_split(cells, 17):
        sketch = Quantiles(cells.shape[1])
        sketch.update(part)
        merged.merge(sketch)
    assert merged.seen.tolist() == [len(cells)] * cells.shape[1]
    bound = datasketches().kll_floats_sketch.get_normalized_rank_error(KLL_K, True)
    assert (rank_errors(merged, cells) <= bound).mean() >= 0.95


def test_what_quantiles_keep_is_bounded(cells):
    sketch = Quantiles(cells.shape[1])
    sketch.update(cells)
    assert sketch.retained < 700
    assert max(map(len, sketch.serialized())) < 2700


def test_quantiles_are_of_the_feature_that_was_asked_for():
    """datasketches 5.2 looks at others where it is given an array of INT64."""
    sketch = Quantiles(4)
    sketch.update(np.array([[1, np.nan, 3, 4]] * 5, np.float32))
    assert sketch.seen.tolist() == [5, 0, 5, 5]
    np.testing.assert_array_equal(sketch.quantiles([0.5])[:, 0], [1, np.nan, 3, 4])


def test_quantiles_are_read_as_written(cells):
    sketch = Quantiles(3)
    sketch.update(cells[:, :3])
    again = Quantiles.of(sketch.serialized())
    np.testing.assert_array_equal(again.quantiles(RANKS), sketch.quantiles(RANKS))
    again.merge(sketch)
    assert again.seen.tolist() == [80_000] * 3


def item_sketch(items):
    sketch = ItemSketch()
    sketch.update(*np.unique(items, return_counts=True))
    return sketch


@pytest.fixture
def items(random):
    return (random.zipf(1.3, size=200_000) % 50_000).astype(np.int64)


def test_frequent_items_are_within_the_stated_error(items):
    for sketch in (item_sketch(items), merged_sketch(items)):
        bound = 3.5 / 2**FREQUENT_LG * len(items)
        true = dict(zip(*(part.tolist() for part in np.unique(items, return_counts=True)), strict=True))
        found = dict(sketch.frequent(10_000))
        assert sketch.total == len(items)
        assert all(abs(count - true[item]) <= bound for item, count in found.items())
        assert {item for item, count in true.items() if count > bound} <= set(found)
        assert len(found) <= 768


def merged_sketch(items):
    merged = ItemSketch()
    for part in np.array_split(items, 9):
        merged.merge(item_sketch(part))
    return merged


def test_distinct_items_are_within_three_standard_errors(items):
    true = len(np.unique(items))
    for sketch in (item_sketch(items), merged_sketch(items)):
        assert sketch.distinct == pytest.approx(true, rel=3 * 1.04 / 2 ** (DISTINCT_LG / 2))


def test_items_are_read_as_written(items):
    sketch = item_sketch(items - 2**62)
    again = ItemSketch.of(*sketch.serialized())
    assert again.frequent(50) == sketch.frequent(50)
    assert again.distinct == sketch.distinct
    assert sum(map(len, sketch.serialized())) < 16_000


@pytest.mark.parametrize("octets", [b"", b"nonsense", b"\0" * 100])
def test_octets_that_are_no_sketch_are_refused(octets):
    with pytest.raises(DriftError, match="a sketch of quantiles cannot be read"):
        Quantiles.of([octets])
    with pytest.raises(DriftError, match="a sketch of items cannot be read"):
        ItemSketch.of(octets, octets)


def test_sketches_of_another_size_are_refused():
    other = datasketches().vector_of_kll_floats_sketches(100, 1)
    with pytest.raises(DriftError):
        Quantiles.of(other.serialize())


def test_without_the_package_the_extra_is_named(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(sketches, "import_module", missing)
    with pytest.raises(MissingPackage, match=r"pip install 'headrace\[drift\]'"):
        Quantiles(1)
