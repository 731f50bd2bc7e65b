import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.drift.sampler import Budget, RowCost, choose_rows

SECOND = 1_000_000_000


def test_a_budget_accrues_and_saves_a_second():
    budget = Budget(0.03, now_ns=0)
    assert budget.available(0) == 0.03 * SECOND
    budget.spend(30_000_000)
    assert budget.available(0) == pytest.approx(0)
    assert budget.available(SECOND // 2) == pytest.approx(15_000_000)
    assert budget.available(100 * SECOND) == pytest.approx(30_000_000)
    assert repr(budget) == "<Budget of 3.0% of a core: 30.0 ms left>"


def test_an_overdrawn_budget_is_paid_back_first():
    budget = Budget(0.03, now_ns=0)
    budget.spend(90_000_000)
    assert budget.available(SECOND) < 0
    assert budget.available(2 * SECOND) == pytest.approx(0)


def test_a_clock_that_goes_back_gives_nothing():
    budget = Budget(0.5, now_ns=10)
    budget.spend(SECOND // 2)
    budget.available(SECOND)
    assert budget.available(0) == budget.available(SECOND)


@given(st.floats(0.001, 0.5), st.lists(st.tuples(st.integers(0, SECOND), st.integers(1, 4096)), max_size=200),
       st.integers(100, 100_000), st.integers(0, 200_000))  # fmt: skip
def test_the_budget_holds_whatever_comes(share, batches, row_ns, batch_ns):
    """In any time, no more is spent than accrues in it, a second's saving, and the cost of the dearest batch."""
    budget, cost = Budget(share, 0), RowCost()
    now = spent = dearest = 0
    for pause, rows in batches:
        now += pause
        take = cost.rows(budget.available(now), rows)
        assert 0 <= take <= rows
        if take:
            used = batch_ns + take * row_ns
            budget.spend(used)
            cost.learn(take, used)
            spent += used
            dearest = max(dearest, used)
    assert spent == budget.spent_ns
    assert spent <= share * (now + SECOND) + dearest


def test_costs_are_learned_as_a_line():
    cost = RowCost()
    assert cost.rows(1, 1000) == 16, "nobody knows yet"
    for rows in (10, 500, 60, 300) * 5:
        cost.learn(rows, 20_000 + 300 * rows)
    assert repr(cost) == "<RowCost: 20.0 us and 0.30 us a row>"
    assert cost.rows(50_100, 1000) == 100
    assert cost.rows(20_000, 1000) == 0
    assert cost.rows(1e9, 1000) == 1000
    assert cost.rows(-1, 1000) == 0


def test_batches_of_one_size_cost_what_they_cost():
    cost = RowCost()
    for _ in range(20):
        cost.learn(1, 50_000)
    assert cost.rows(49_000, 1) == 0
    assert cost.rows(51_000, 1) == 1


def test_costs_that_change_are_followed():
    cost = RowCost()
    for each in (100, 1000):
        for rows in (50, 100, 200) * 20:
            cost.learn(rows, each * rows)
    assert cost.rows(100_000, 1000) == pytest.approx(100, abs=2)


@given(st.integers(1, 10_000), st.integers(0, 10_000), st.integers(0, 2**32 - 1))
def test_rows_are_chosen_once_and_lie_in_the_batch(rows, take, seed):
    chosen = choose_rows(rows, take, np.random.default_rng(seed))
    assert len(chosen) == min(rows, take)
    assert (np.diff(chosen) > 0).all()
    assert not len(chosen) or (chosen[0] >= 0 and chosen[-1] < rows)


@pytest.mark.parametrize(("rows", "take"), [(10, 3), (7, 6), (100, 1)])
def test_every_row_and_every_pair_has_the_same_chance(random, rows, take):
    together = np.zeros((rows, rows))
    for _ in range(10_000):
        chosen = choose_rows(rows, take, random)
        together[np.ix_(chosen, chosen)] += 1
    share = take / rows
    np.testing.assert_allclose(np.diag(together) / 10_000, share, atol=5 * np.sqrt(share / 10_000))
    pairs = together[~np.eye(rows, dtype=bool)] / 10_000
    np.testing.assert_allclose(pairs, share * (take - 1) / max(1, rows - 1), atol=0.025)
