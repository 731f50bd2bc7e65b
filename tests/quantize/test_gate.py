import numpy as np
import pytest

from headrace.quantize.errors import QuantizeError
from headrace.quantize.gate import chance, coarse, holds, measured, verdict


def of(source, result, metric="accuracy", labelled=True):
    return measured(metric, labelled, "y", np.array(source, float), np.array(result, float))


def test_the_measure_is_the_ratio_of_means():
    found = of([1, 1, 1, 0], [1, 1, 0, 0])
    assert (found.source, found.result, found.rows) == (0.75, 0.5, 4)
    assert found.relative == pytest.approx(2 / 3)
    assert found.low < found.relative < found.high


def test_the_interval_covers_the_ratio_as_often_as_it_says():
    random, covered, times = np.random.default_rng(5), 0, 400
    for _ in range(times):
        source = random.random(300) < 0.9
        result = np.where(random.random(300) < 0.05, ~source, source)  # true means 0.9 and 0.86
        found = of(source, result)
        covered += found.low <= 0.86 / 0.9 <= found.high
    assert 0.92 <= covered / times <= 0.98


def test_where_no_row_differs_the_interval_is_what_so_few_rows_leave_open():
    found = of([1] * 100, [1] * 100)
    assert (found.low, found.relative, found.high) == (pytest.approx(0.97), 1.0, pytest.approx(1.03))


def test_where_the_source_is_right_about_half_of_the_rows_one_row_is_twice_as_much():
    found = of([1, 0] * 50, [1, 0] * 50)
    assert (found.low, found.high) == (pytest.approx(0.94), pytest.approx(1.06))
    assert of([1, 0] * 50, [1, 0] * 49 + [0, 0]).relative == pytest.approx(0.98)
    assert "give 200 or more" in coarse("accuracy", 0.5, 199, 0.99)
    assert "give 134 or more" in coarse("accuracy", 0.75, 133, 0.99)
    assert not coarse("accuracy", 0.75, 134, 0.99)


@pytest.mark.parametrize("source", [[0, 0], [-1, 0.5]])
def test_a_source_that_is_worth_nothing_is_no_measure(source):
    with pytest.raises(QuantizeError, match="nothing to hold a result against"):
        of(source, [1, 1], "r2")


def test_the_gate_holds_at_its_value():
    found = of([1] * 100, [1] * 99 + [0])
    assert holds(found, 0.99)
    assert not holds(found, 0.991)


def test_agreement_is_never_called_accuracy():
    assert "accuracy" not in verdict(of([1], [1], "top1_agreement", False), 0.99)
    assert "without labels" in verdict(of([1], [1], "cosine", False), 0.99)
    assert "accuracy 0.5000 of 1.0000" in verdict(of([1, 1], [1, 0]), 0.99)


def test_too_few_rows_to_tell_are_told():
    assert "100" in coarse("accuracy", 1.0, 99, 0.99)
    assert not coarse("accuracy", 1.0, 100, 0.99)
    assert not coarse("cosine", 1.0, 20, 0.99)
    assert not coarse("accuracy", 1.0, 5, 1.0)


def test_accuracy_by_chance_is_told():
    assert "order of the rows" in chance(of([1, 0, 0, 0], [1, 0, 0, 0]), 0.3)
    assert not chance(of([1, 0, 0, 1], [1, 0, 0, 0]), 0.3)
    assert not chance(of([0.1], [0.1], "r2"), 0.3)
