"""Real INT8 versions of a digits model, good and bad, as `loadtest/guard_power.py` makes them."""

import numpy as np
import pytest

import guard_power
from guard_power import BRIGHTER, NARROW, SETTINGS, acts_after, agreement, answers, digits
from headrace.guard.record import Record


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def expected(made):
    return answers(made.fp32, made.held_out)


@pytest.fixture
def random():
    return np.random.default_rng(1)


def test_a_good_version_is_never_acted_upon(made, expected, random):
    found = answers(made.int8, made.held_out)
    assert agreement(found, expected) > SETTINGS.limit
    assert [acts_after(random, found, expected, 1000) for _ in range(100)] == [None] * 100


@pytest.mark.parametrize(("left", "most"), [*zip(NARROW, (32, 400), strict=True)])
def test_a_bad_calibration_is_found(made, expected, random, left, most):
    found = answers(made.narrow[left], made.held_out)
    after = [acts_after(random, found, expected, 5000) for _ in range(20)]
    assert None not in after
    assert np.median(after) <= most


@pytest.mark.parametrize(("brighter", "most"), [*zip(BRIGHTER, (1500, 250), strict=True)])
def test_a_shift_of_the_inputs_is_found(made, expected, random, brighter, most):
    well = answers(made.int8, made.held_out)
    images = made.held_out * np.float32(brighter)
    shifted, wanted = answers(made.int8, images), answers(made.fp32, images)
    assert agreement(wanted, expected) > 0.95, "it is not the reference that is at a loss"
    after = []
    for _ in range(20):
        record = Record(SETTINGS)
        assert acts_after(random, well, expected, 2000, record) is None
        after.append(acts_after(random, shifted, wanted, 10_000, record))
    assert None not in after
    assert np.median(after) <= most


def test_the_table_is_made(made, random):
    rows = list(guard_power.demonstration(made, random, 1, 160, 160))
    assert [row["runs"] for row in rows] == [10, 1, 1, 1, 1]
    coins = guard_power.coins(random, 5, 160, 0.1, 1000)
    assert (coins["acted"], coins["median"] <= 64) == (5, True)
