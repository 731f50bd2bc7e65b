from itertools import pairwise
from math import comb
from pathlib import Path

import numpy as np
import pytest

from headrace.clock import monotonic_ns
from headrace.quantize import speed
from headrace.quantize.errors import QuantizeError
from headrace.testing.clock import FakeClock

DIGITS = Path(__file__).parents[2] / "models" / "digits" / "1" / "model.onnx"
MS = 1_000_000


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def runs(clock):
    """Sides whose batch takes so many ms and so many more per row; `log` is the order of the calls."""

    def runs(*costs, log=None, slowed=lambda call: 1.0):
        calls = [] if log is None else log

        def make(batch):
            def run(side, fixed, per_row):
                calls.append((batch, side))
                clock.advance(int((fixed + per_row * batch) * slowed(len(calls)) * MS))

            return [lambda side=side, cost=cost: run(side, *cost) for side, cost in enumerate(costs)]

        return make

    return runs


def test_rows_latency_and_ratio_by_batch_size(runs, clock):
    found = speed.race(runs((2, 0), (1, 0)), clock, [8, 1, 8], budget_s=4)
    assert [one.batch for one in found.batches] == [1, 8]
    source, result = found.batches[1].sides
    assert (source.rows_per_second, source.latency_ms) == pytest.approx((4000, 2))
    assert (result.rows_per_second, result.latency_ms) == pytest.approx((8000, 1))
    assert (source.ratio, result.ratio) == pytest.approx((1, 2))
    assert (result.low, result.high) == pytest.approx((2, 2))
    assert found.left_out == ()


def test_the_best_batch_is_each_side_s_own(runs, clock):
    found = speed.race(runs((0, 1), (9, 0.01)), clock, [1, 64], budget_s=10)
    assert found.best(1).batch == 64
    assert found.best(0).sides[0].rows_per_second == pytest.approx(1000)


def test_sides_take_turns_and_none_is_always_first(runs, clock):
    log = []
    speed.race(runs((1000, 0), (1000, 0), log=log), clock, [1], budget_s=20)
    timed = [side for _, side in log[4:]]  # after a warm-up and a trial of each
    assert timed[:8] == [0, 1, 1, 0, 0, 1, 1, 0]


def test_noise_that_meets_both_sides_leaves_the_ratio(runs, clock):
    """The machine gets slower and slower, to a fifth."""
    found = speed.race(runs((2, 0), (1, 0), slowed=lambda call: 1 + call / 500), clock, [1], budget_s=4)
    assert found.batches[0].sides[1].ratio == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize("budget", [2.0, 10.0, 60.0])
def test_the_budget_is_kept(runs, clock, budget):
    began = clock()
    found = speed.race(runs((0.1, 0.1), (0.1, 0.05)), clock, speed.BATCHES, budget)
    spent = (clock() - began) / 1e9
    assert 0.5 * budget < spent < 1.1 * budget
    assert [one.batch for one in found.batches] == list(speed.BATCHES)
    assert min(one.rounds for one in found.batches) > 3


def test_what_would_not_fit_is_left_out_and_told(runs, clock):
    began = clock()
    found = speed.race(runs((0, 1000), (0, 500)), clock, [1, 2, 64], budget_s=40)
    assert [one.batch for one in found.batches] == [1, 2]
    assert found.left_out == ((64, "it does not fit the 40 s that there are for timing"),)
    assert (clock() - began) / 1e9 < 44


def test_the_first_batch_size_is_always_measured(runs, clock):
    found = speed.race(runs((60_000, 0), (30_000, 0)), clock, [1, 2], budget_s=1)
    assert [(one.batch, one.rounds) for one in found.batches] == [(1, speed.LEAST_ROUNDS)]


def test_a_batch_size_that_fails_is_left_out_with_the_reason(runs, clock):
    def only_one(batch):
        if batch > 1:
            raise RuntimeError("Got: 2\n Expected: 1")
        return runs((1, 0), (1, 0))(batch)

    found = speed.race(only_one, clock, [1, 2], budget_s=1)
    assert [one.batch for one in found.batches] == [1]
    assert found.left_out == ((2, "a model does not run: Got: 2 Expected: 1"),)
    with pytest.raises(QuantizeError, match=r"^a model does not run: Got: 2 Expected: 1$"):
        speed.race(only_one, clock, [2, 4], budget_s=1)


def test_a_clock_that_does_not_move_divides_by_nothing(clock):
    found = speed.race(lambda batch: [lambda: None, lambda: None], clock, [1], budget_s=0)
    assert found.batches[0].sides[1].ratio == 1


def test_progress_is_told(runs, clock):
    told = []
    speed.race(runs((1, 0)), clock, [1, 2], 1, lambda *args: told.append(args))
    assert told == [("timing", 0, 2), ("timing", 1, 2), ("timing", 2, 2)]


def test_the_interval_of_a_median():
    """Against the binomial distribution: as narrow as 95 % allows, and no narrower."""
    for count in range(1, 40):
        low, high = speed.median_interval([float(i) for i in range(count)])
        rank = int(low)
        assert high == count - 1 - rank
        covered = 1 - 2 * sum(comb(count, k) for k in range(rank + 1)) / 2**count
        narrower = 1 - 2 * sum(comb(count, k) for k in range(rank + 2)) / 2**count
        assert (covered >= 0.95 > narrower) if count >= 6 else rank == 0
    widths = [1 - 2 * speed.median_interval(range(count))[0] / count for count in (10, 100, 1000)]
    assert all(wide > narrow for wide, narrow in pairwise(widths))


def test_rows_are_repeated():
    feeds = {"a": np.arange(3), "b": np.arange(6).reshape(3, 2)}
    assert speed.repeated(feeds, 5)["a"].tolist() == [0, 1, 2, 0, 1]
    assert speed.repeated(feeds, 2)["b"].tolist() == [[0, 1], [2, 3]]


def test_files_are_opened_and_run():
    rows = {"pixels": np.full((4, 64), 8, np.float32)}
    found = speed.measure(
        [DIGITS, DIGITS], lambda batch: speed.repeated(rows, batch), monotonic_ns, [1, 4], budget_s=0.05
    )
    assert [one.batch for one in found.batches] == [1, 4]
    assert all(side.rows_per_second > 0 for one in found.batches for side in one.sides)


def test_a_file_that_is_none_is_named(tmp_path):
    broken = tmp_path / "model.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(QuantizeError, match=r"cannot load .*model.onnx"):
        speed.measure([DIGITS, broken], dict, monotonic_ns)
