import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.pipeline.cost import CostModel, Curve

MS = 1_000_000


def fed(cost, rows, times):
    for elapsed in times:
        cost.observe(rows, elapsed)
    return cost


def test_it_knows_nothing_before_the_first_run():
    cost = CostModel(8)
    assert [cost.predict(rows) for rows in range(1, 9)] == [0] * 8
    assert cost.mean(8) == 0
    assert not cost.inline(1)
    assert cost.efficient_rows(8) == 8


def test_one_run_is_enough_for_a_first_guess():
    cost = fed(CostModel(8), 2, [1000])
    assert cost.mean(1) == cost.predict(1) == 1000  # fewer rows are never taken to be quicker than what was seen
    assert cost.predict(2) == 1000
    assert cost.predict(8) == 4000
    assert repr(cost).startswith("<CostModel 1 batches, 1 row 1000 ns, 8 rows 4000 ns, ")


@pytest.mark.parametrize("quantile", [-1, 0, 1, 1.5])
def test_a_quantile_is_between_0_and_1(quantile):
    with pytest.raises(ValueError, match="is not between 0 and 1"):
        CostModel(8, quantile)


def test_a_model_without_batching_has_one_size():
    cost = fed(CostModel(0), 1, [500])
    assert cost.predict(1) == 500
    assert cost.efficient_rows(3) == 1


def test_it_converges_on_a_line():
    """T(n) = 100 us + 10 us n, seen at random sizes. The quantile is that of a bucket's largest sizes: a safe guess."""
    rng = random.Random(1)
    cost = CostModel(64)
    for _ in range(20_000):
        rows = rng.randint(1, 64)
        cost.observe(rows, 100_000 + 10_000 * rows)
    for rows in range(1, 65):
        true = 100_000 + 10_000 * rows
        assert cost.mean(rows) == pytest.approx(true, rel=0.12)
        assert 0.97 * true < cost.predict(rows) < 1.4 * true


def test_it_follows_a_change_of_speed():
    cost = fed(CostModel(1), 1, [MS] * 200)
    fed(cost, 1, [3 * MS] * 128)
    assert cost.mean(1) == pytest.approx(3 * MS, rel=0.01)
    assert cost.predict(1) >= 2.9 * MS


DISTRIBUTIONS = {
    "uniform": lambda rng: rng.uniform(1, 2),
    "exponential": lambda rng: 1 + rng.expovariate(2),
    "lognormal": lambda rng: math.exp(rng.gauss(0, 0.4)),
    "two speeds": lambda rng: 3 if rng.random() < 0.2 else 1,
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.95])
def test_the_predicted_share_of_runs_is_within_the_prediction(name, quantile):
    rng = random.Random(7)
    cost = CostModel(1, quantile)
    fed(cost, 1, (int(DISTRIBUTIONS[name](rng) * MS) for _ in range(3000)))
    within = 0
    for _ in range(6000):
        elapsed = int(DISTRIBUTIONS[name](rng) * MS)
        within += elapsed <= cost.predict(1)
        cost.observe(1, elapsed)
    # the estimate moves with a bounded step around the quantile, and predictions lag up to 64 runs behind it
    assert within / 6000 == pytest.approx(quantile, abs=0.07 if quantile > 0.5 else 0.12)


def test_one_stall_does_not_spoil_the_estimate():
    cost = fed(CostModel(8), 4, [MS] * 300)
    before = cost.predict(4)
    fed(cost, 4, [1000 * MS] + [MS] * 63)
    assert cost.predict(4) <= before * 1.1
    fed(cost, 4, [MS] * 128)
    assert cost.mean(4) == pytest.approx(MS, rel=0.01)


@given(
    st.lists(st.tuples(st.integers(1, 32), st.integers(0, 10**10)), max_size=200),
    st.sampled_from([1, 3, 8, 32]),
    st.floats(0.01, 0.99),
)
def test_predictions_are_monotone_and_finite(runs, max_rows, quantile):
    cost = CostModel(max_rows, quantile)
    for rows, elapsed in runs:
        cost.observe(min(rows, max_rows), elapsed)
    predictions = [cost.predict(rows) for rows in range(1, max_rows + 1)]
    assert predictions == sorted(predictions)
    assert all(isinstance(p, int) and p >= 0 for p in predictions)
    assert all(cost.mean(rows) >= 0 for rows in range(1, max_rows + 1))
    assert all(1 <= cost.efficient_rows(waiting) <= max_rows for waiting in (1, 2, 5, 31, 1000))


def test_a_run_of_no_time_does_not_freeze_the_estimate_at_nothing():
    cost = fed(CostModel(1), 1, [0])
    fed(cost, 1, [1000] * 640)
    assert cost.predict(1) > 900


def test_short_runs_are_inline_by_what_is_usual():
    cost = fed(CostModel(8, inline_below_ns=100_000), 1, [50_000])
    assert cost.inline(1)
    assert not cost.inline(8)  # 400 us by proportion
    fed(cost, 1, [50_000, 50_000, 50_000, MS] * 64)  # a quarter of them is slow, the median is not
    assert cost.inline(1)
    fed(cost, 1, [MS] * 192)
    assert not cost.inline(1)
    assert not fed(CostModel(8), 1, [1]).inline(1)


def test_the_size_that_pays_is_the_largest_at_nearly_the_cheapest_rows():
    cost = CostModel(16, inline_below_ns=0)
    for rows, per_row in ((1, 900_000), (2, 500_000), (4, 100_000), (8, 120_000), (16, 200_000)):
        fed(cost, rows, [rows * per_row] * 65)
    assert cost.observed % 64
    # what it costs beside its run makes 8 rows hardly more expensive than 4
    assert cost.efficient_rows(16) == 8
    assert cost.efficient_rows(8) == cost.efficient_rows(5) == 16  # as many as there are: no bound
    assert cost.efficient_rows(1) == 16


def test_a_size_that_does_not_pay_is_tried_again():
    cost = CostModel(16)
    for rows, elapsed in ((1, MS), (16, 100 * MS)):
        fed(cost, rows, [elapsed] * 100)
    assert {cost.efficient_rows(16)} == {1}
    sizes = []
    for _ in range(64):
        cost.observe(1, MS)
        sizes.append(cost.efficient_rows(16))
    assert sizes.count(16) == 1


def test_a_machine_that_changes_its_speed_does_not_change_the_size_that_pays_for_long():
    """One size was seen before and one after the change: neither comparison lasts."""
    cost = CostModel(64)
    elapsed = {32: 32 * 60_000, 64: 64 * 55_000}
    for rows in elapsed:
        fed(cost, rows, [elapsed[rows]] * 64)
    for speed, batches, lost in ((1.0, 640, 0), (2.0, 100, 64), (1.0, 640, 256), (2.0, 640, 64)):
        sizes = []
        for _ in range(batches):
            rows = 64 if cost.efficient_rows(128) == 64 else 32
            cost.observe(rows, int(elapsed[rows] * speed))
            sizes.append(rows)
        assert sizes.count(32) <= lost


def test_refusals_by_an_idle_server_let_the_estimate_recover():
    """After a minute of trouble every request with a deadline is refused, and no run would ever correct that."""
    cost = fed(CostModel(8), 1, [MS] * 100)
    fed(cost, 1, [20 * MS] * 64)
    assert cost.predict(1) > 10 * MS
    refused = 0
    while cost.predict(1) > 5 * MS:
        cost.doubt(1)
        refused += 1
    assert 64 <= refused <= 1000


def test_doubt_leaves_larger_sizes_alone():
    cost = CostModel(64)
    for rows in (1, 8, 64):
        fed(cost, rows, [rows * MS])
    before = cost.predict(64)
    for _ in range(128):
        cost.doubt(8)
    assert cost.predict(1) < 0.9 * MS
    assert cost.predict(8) < 0.9 * 8 * MS
    assert cost.predict(64) == before


def test_what_is_really_too_slow_is_let_through_now_and_then():
    cost = fed(CostModel(1, 0.95), 1, [10 * MS] * 200)
    ran = 0
    for _ in range(20_000):
        if cost.predict(1) > 2 * MS:
            cost.doubt(1)
        else:
            ran += 1
            cost.observe(1, 10 * MS)
    assert 0.01 < ran / 20_000 < 0.08


def test_a_run_that_blocks_the_loop_leaves_it_at_once_and_comes_back_later():
    cost = fed(CostModel(1, inline_below_ns=200_000), 1, [50_000] * 100)
    assert cost.inline(1)
    fed(cost, 1, [1_900_000])
    assert cost.inline(1)
    fed(cost, 1, [3 * MS])
    assert not cost.inline(1)
    fed(cost, 1, [50_000] * 192)
    assert cost.inline(1)


@pytest.mark.parametrize("inline_below_ns", [0, 200_000])
def test_the_tables_are_made_once_in_a_while_however_long_runs_take(monkeypatch, inline_below_ns):
    made = []
    tabulate = CostModel._tabulate
    monkeypatch.setattr(CostModel, "_tabulate", lambda self: (made.append(self), tabulate(self)))
    cost = CostModel(8, inline_below_ns=inline_below_ns)
    for _ in range(640):
        cost.observe(1, 5 * MS)
        cost.predict(1)
    assert len(made) == 11


def test_the_slowest_batch_by_mean_and_by_quantile():
    cost = CostModel(8)
    assert cost.slowest == 0
    cost.observe(8, 1000)
    assert cost.slowest == cost.predict(8) == cost.mean(8) == 1000
    cost.observe(8, 1_000_000)  # one stall moves the mean by more than the quantile
    cost.observe(1, 1)
    assert cost.slowest == cost.mean(8) > cost.predict(8)
    for _ in range(500):
        cost.observe(2, 50_000)
    cost.observe(1, 1)
    assert cost.slowest >= max(cost.mean(2), cost.predict(2))


@given(st.dictionaries(st.integers(1, 40), st.integers(1, 10**9), min_size=1), st.booleans())
def test_a_curve_is_a_line_between_what_is_known(known, rising):
    rows = [number + 0.3 * (number % 3) for number in sorted(known)]
    values = [float(known[number]) for number in sorted(known)]
    sizes = np.arange(60)
    table = np.interp(sizes, rows, values)
    table[sizes > rows[-1]] = values[-1] * sizes[sizes > rows[-1]] / rows[-1]
    table[0] = 0
    if rising:
        table = np.maximum.accumulate(table)
    curve = Curve(rows, values, rising=rising)
    assert [curve[size] for size in sizes.tolist()] == table.astype(np.int64).tolist()
    assert [curve.greatest(most) for most in range(60)] == np.maximum.accumulate(table).astype(np.int64).tolist()


def test_what_a_million_rows_would_take_is_not_kept_for_each_number_of_rows():
    """It is made anew every now and then, on the event loop."""
    cost = fed(CostModel(1 << 20), 4, [1000])
    assert cost.predict(1 << 20) == cost.mean(1 << 20) == cost.slowest == 1000 << 18
    assert len(cost._mean) + len(cost._upper) + len(cost._median) < 16
