import pytest

from headrace.messages import Fit
from headrace.pipeline.bucket_cost import BucketCosts
from headrace.pipeline.cost import CostModel

MS = 1_000_000


def fit(*sizes):
    return Fit(sizes, sizes, (sizes,), 1, 0)


def taught(**costs):
    """Models of two rows at most; costs: ns of one row, by the size of the bucket."""
    cost = BucketCosts(2)
    for size, elapsed in costs.items():
        cost.observe(1, elapsed, fit(int(size.removeprefix("of_"))))
    return cost


def test_where_rows_are_alike_there_is_one_model():
    cost = CostModel(4)
    assert cost.of(None) is cost.of(fit(8)) is cost


def test_each_bucket_has_its_own():
    cost = taught(of_8=MS, of_16=5 * MS)
    assert (cost.of(fit(8)).predict(1), cost.of(fit(16)).predict(1)) == (MS, 5 * MS)
    assert cost.slowest == 2 * 5 * MS
    assert repr(cost) == f"<BucketCosts 2 batches, 1 row of [8] {MS} ns, [16] {5 * MS} ns>"


def test_itself_it_is_that_of_the_mix():
    cost = BucketCosts(2)
    for _ in range(300):
        cost.observe(1, 1 * MS, fit(8))
        cost.observe(1, 3 * MS, fit(16))
    assert cost.of(None) is cost
    assert cost.mean(1) == pytest.approx(2 * MS, rel=0.1)


def test_what_has_not_run_is_guessed_from_the_nearest_in_proportion():
    cost = taught(of_8=MS, of_64=20 * MS)
    assert cost.of(fit(16)).predict(1) == 2 * MS
    assert cost.of(fit(32)).mean(2) == 20 * MS
    assert cost.of(fit(4)).predict(1) == MS // 2
    two = BucketCosts(2)
    two.observe(1, MS, fit(4, 4))
    assert two.of(fit(8, 2)).predict(1) == MS
    assert two.of(fit(8, 4)).predict(1) == 2 * MS


def test_a_guess_is_forgotten_for_what_was_seen():
    cost = taught(of_8=MS)
    assert cost.of(fit(16)).predict(1) == 2 * MS
    cost.observe(1, 9 * MS, fit(16))
    assert cost.of(fit(16)).predict(1) == 9 * MS


def test_a_guess_can_be_doubted():
    """Or a bucket whose first requests all have deadlines that it seems to miss would never run."""
    cost = taught(of_8=MS)
    before = cost.of(fit(16)).predict(1)
    for _ in range(6400):
        cost.of(fit(16)).doubt(1)
    assert cost.of(fit(16)).predict(1) < before / 2
    assert cost.of(fit(8)).predict(1) == MS


def test_it_knows_nothing_before_the_first_run():
    cost = BucketCosts(2)
    assert cost.of(fit(8)).predict(2) == 0
    assert cost.slowest == 0
    assert repr(cost) == "<BucketCosts 0 batches, 1 row of nothing yet>"


def test_a_scaled_model_predicts_in_proportion():
    cost = CostModel(8, inline_below_ns=3 * MS)
    for rows in (1, 2, 4, 8):
        cost.observe(rows, MS + rows * MS // 4)
    double = cost.scaled(2)
    for rows in range(1, 9):
        assert double.predict(rows) == pytest.approx(2 * cost.predict(rows), abs=1)
        assert double.mean(rows) == pytest.approx(2 * cost.mean(rows), abs=1)
    assert cost.inline(4)
    assert not double.inline(4)
    double.observe(8, MS)
    assert cost.mean(8) == 3 * MS
