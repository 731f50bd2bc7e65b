import random

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
    assert (cost.of(fit(8)).mean(1), cost.of(fit(16)).mean(1)) == (MS, 5 * MS)
    assert cost.of(fit(8)).predict(1) == MS * cost.spread
    assert cost.slowest == 2 * 5 * MS * cost.spread
    assert repr(cost) == f"<BucketCosts 2 batches, spread 1.25, 1 row of [8] {MS} ns, [16] {5 * MS} ns>"


def test_itself_it_is_that_of_the_mix():
    cost = BucketCosts(2)
    for _ in range(300):
        cost.observe(1, 1 * MS, fit(8))
        cost.observe(1, 3 * MS, fit(16))
    assert cost.of(None) is cost
    assert cost.mean(1) == pytest.approx(2 * MS, rel=0.1)


def test_a_larger_batch_is_never_predicted_to_be_quicker():
    cost = BucketCosts(4)
    for rows, elapsed in ((1, 5 * MS), (2, 4 * MS), (4, 7 * MS)):
        cost.observe(rows, elapsed, fit(8))
    own = cost.of(fit(8))
    predicted = [own.predict(rows) for rows in range(1, 5)]
    assert predicted == sorted(predicted)
    assert own.mean(2) == 4 * MS
    assert own.slowest == own.predict(4) > 7 * MS


@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.95])
def test_so_many_runs_as_asked_for_are_within_what_is_predicted(quantile):
    """Few runs of each bucket, which take what they should within 30 % more."""
    rng = random.Random(1)
    cost = BucketCosts(8, quantile)
    sizes = [2**power for power in range(8)]
    within = runs = 0
    for run in range(1600):
        size, rows = rng.choice(sizes), rng.choice([1, 2, 4, 8])
        elapsed = int(rows * size * MS * (1 + 0.3 * rng.random()))
        if run >= 400:
            runs += 1
            within += elapsed <= cost.of(fit(size)).predict(rows)
        cost.observe(rows, elapsed, fit(size))
    assert within / runs == pytest.approx(quantile, abs=0.03)


def test_what_has_not_run_is_guessed_from_the_nearest_in_proportion():
    cost = taught(of_8=MS, of_64=20 * MS)
    assert cost.of(fit(16)).mean(1) == 2 * MS
    assert cost.of(fit(32)).mean(2) == 20 * MS
    assert cost.of(fit(4)).mean(1) == MS // 2
    two = BucketCosts(2)
    two.observe(1, MS, fit(4, 4))
    assert two.of(fit(8, 2)).mean(1) == MS
    assert two.of(fit(8, 4)).predict(1) == 2 * MS * two.spread


def test_a_guess_is_forgotten_for_what_was_seen():
    cost = taught(of_8=MS)
    assert cost.of(fit(16)).mean(1) == 2 * MS
    cost.observe(1, 9 * MS, fit(16))
    assert cost.of(fit(16)).mean(1) == 9 * MS


@pytest.mark.parametrize("size", [8, 16])
def test_a_prediction_can_be_doubted_until_there_is_a_run(size):
    """Or a bucket whose requests all have deadlines that it seems to miss would never run; a guess no less."""
    cost = taught(of_8=MS, of_64=8 * MS)
    before = cost.of(fit(size)).predict(1)
    for _ in range(200):
        cost.of(fit(size)).doubt(1)
    assert cost.of(fit(size)).predict(1) < before / 2
    assert cost.of(fit(64)).predict(1) == 8 * MS * cost.spread
    cost.observe(1, size * MS // 8, fit(size))
    assert cost.of(fit(size)).predict(1) == pytest.approx(before, rel=0.01)


def test_it_knows_nothing_before_the_first_run():
    cost = BucketCosts(2)
    assert cost.of(fit(8)).predict(2) == 0
    assert cost.slowest == 0
    assert repr(cost) == "<BucketCosts 0 batches, spread 1.25, 1 row of nothing yet>"


def test_what_is_learned_is_soon_heeded():
    cost = taught(of_8=MS)
    for _ in range(60):
        cost.observe(1, 3 * MS, fit(8))
    assert cost.of(fit(8)).mean(1) > 2.5 * MS


def test_what_another_has_learned_in_proportion():
    cost = CostModel(8, inline_below_ns=3 * MS)
    for rows in (1, 2, 4, 8):
        cost.observe(rows, MS + rows * MS // 4)
    double = CostModel(8, inline_below_ns=3 * MS)
    double.learn_from(cost, 2)
    for rows in range(1, 9):
        assert double.predict(rows) == pytest.approx(2 * cost.predict(rows), abs=1)
        assert double.mean(rows) == pytest.approx(2 * cost.mean(rows), abs=1)
    assert cost.inline(4)
    assert not double.inline(4)
    double.observe(8, MS)
    assert cost.mean(8) == 3 * MS


def test_what_larger_batches_gain_is_learned_of_all_buckets_together():
    """Once one has tried what does not pay, the others need not."""
    cost = BucketCosts(8)
    cost.observe(1, 2 * MS, fit(16))
    assert cost.of(fit(16)).efficient_rows(8) == 8  # who knows
    cost.observe(1, MS, fit(8))
    cost.observe(8, 16 * MS, fit(8))
    cost.observe(1, 2 * MS, fit(16))
    assert cost.gains == {0: 1.0, 3: 2.0}
    assert cost.of(fit(16)).mean(8) == 8 * 2 * 2 * MS
    assert cost.of(fit(16)).efficient_rows(8) == 1
    for _ in range(60):
        cost.observe(8, 8 * MS, fit(16))  # here it does
    assert cost.of(fit(16)).mean(8) == 8 * MS
    assert cost.of(fit(16)).efficient_rows(8) == 8


def test_a_bucket_that_never_ran_a_row_alone_knows_what_one_takes():
    cost = BucketCosts(8)
    cost.observe(1, MS, fit(8))
    cost.observe(8, 4 * MS, fit(8))
    cost.observe(8, 40 * MS, fit(64))
    assert cost.of(fit(64)).mean(1) == 10 * MS
