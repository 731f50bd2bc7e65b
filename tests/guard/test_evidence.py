from itertools import pairwise

import numpy as np
import pytest

from headrace.guard.evidence import BLOCK, KEPT, LEAST, Evidence
from headrace.guard.settings import GuardSettings

ALPHA = 0.01


def settings(**more):
    return GuardSettings("y", "classes", **{"limit": 0.95, "alpha": ALPHA} | more)


def run(evidence, agreements, errors=None, group=8):
    """Requests until the first proof; None without one."""
    errors = 1 - agreements if errors is None else errors
    for start in range(0, len(agreements), group):
        part = slice(start, start + group)
        if evidence.add(agreements[part].tolist(), errors[part].tolist()):
            return start + group
    return None


def events(rng, share, count):
    return (rng.random(count) < share).astype(float)


@pytest.mark.parametrize("share", [0.95, 0.97, 1.0])
def test_a_version_that_keeps_its_limit_is_never_acted_upon(share):
    """1,000 runs, at the very limit as well: no more than 10 may be wrong."""
    rng = np.random.default_rng(1)
    wrong = sum(run(Evidence(settings()), events(rng, share, 2000), group=32) is not None for _ in range(1000))
    assert wrong <= 1000 * ALPHA * (share == 0.95)


@pytest.mark.parametrize(("share", "most"), [(0.1, 32), (0.5, 32), (0.8, 120), (0.9, 1000)])
def test_a_bad_one_soon_is(share, most):
    rng = np.random.default_rng(1)
    found = [run(Evidence(settings()), events(rng, share, 5000)) for _ in range(50)]
    assert None not in found
    assert np.median(found) <= most


@pytest.mark.parametrize("past", [1000, 20_000])
def test_a_long_good_past_hides_no_change(past):
    rng = np.random.default_rng(1)
    found = []
    for _ in range(20):
        evidence = Evidence(settings())
        assert run(evidence, events(rng, 0.999, past), group=32) is None
        found.append(run(evidence, events(rng, 0.6, 2000)))
    assert None not in found
    assert np.median(found) <= 120
    alone = below_alone(past)
    assert alone > 10 * np.median(found) or past < 10_000


def below_alone(past):
    """About how many requests at 0.6 a single sequence needs: until its mean is below the limit at all."""
    return past * (0.999 - 0.95) / (0.95 - 0.6)


def test_the_first_proof_stands():
    evidence = Evidence(settings())
    found = evidence.add([0.0] * 32, [1.0] * 32)
    assert (found.what, found.requests, found.since, found.sequence, found.mean) == ("agreement", 32, 1, 1, 0.0)
    assert found.bound < 0.95
    assert found.level == pytest.approx(ALPHA * 6 / np.pi**2)
    assert evidence.add([0.0] * 8, [1.0] * 8) is None
    assert evidence.finding is found
    assert evidence.requests == 40
    assert str(found).startswith("mean agreement 0.0000 in 32 requests, at most 0.")
    assert "(limit 0.95, confidence 1 - 0.0061, compared since request 1)" in str(found)


@pytest.mark.parametrize("more", [{}, {"max_mean_error": 0.1}])
def test_a_sequence_proves_nothing_before_it_has_seen_enough(more):
    """Neither the first one nor one that begins later."""
    evidence = Evidence(settings(**more))
    assert run(evidence, np.zeros(LEAST - 1), group=1) is None
    assert run(evidence, np.zeros(1), group=1) == 1
    later = Evidence(settings(**more))
    assert run(later, np.ones(BLOCK), group=1) is None
    assert run(later, np.zeros(BLOCK), group=1) > 8
    assert later.finding.requests >= LEAST


@pytest.mark.parametrize(("inputs", "misses"), [(200, 10), (1000, 50), (4000, 200)])
def test_each_input_once_is_no_worse_than_inputs_by_chance(inputs, misses):
    """Of a limited number of inputs, of which just as many agree as have to, each comes once, in any order."""
    rng = np.random.default_rng(1)
    agreements = np.ones(inputs)
    agreements[:misses] = 0
    wrong = sum(run(Evidence(settings()), rng.permutation(agreements)) is not None for _ in range(500))
    assert wrong <= 500 * ALPHA


def test_levels_add_up_to_alpha():
    levels = [6 / (np.pi * k) ** 2 for k in range(1, 200_000)]
    assert sum(levels) < 1
    evidence = Evidence(settings())
    run(evidence, np.ones(10 * BLOCK))
    assert [one.level for one in evidence._sequences] == pytest.approx(
        [ALPHA * levels[one.number - 1] for one in evidence._sequences]
    )


def test_the_number_of_sequences_is_bounded_and_their_ages_are_spread():
    evidence = Evidence(settings())
    run(evidence, np.ones(1000 * BLOCK), group=BLOCK)
    since = [one.since for one in evidence._sequences]
    assert len(since) == KEPT
    assert since[0] == 1
    ages = [1000 * BLOCK + 1 - one for one in since]
    assert ages[-1] <= BLOCK
    assert max(old / new for old, new in pairwise(ages)) <= 4
    assert repr(evidence) == f"<Evidence of {1000 * BLOCK} requests in {KEPT} sequences: none>"


def test_errors_are_a_limit_of_their_own():
    rng = np.random.default_rng(1)
    both = settings(max_mean_error=0.1)
    quiet = rng.beta(2, 38, 4000)
    assert run(Evidence(both), np.ones(4000), quiet) is None
    evidence = Evidence(both)
    found = run(evidence, np.ones(4000), rng.beta(2, 6, 4000))
    assert found < 500
    assert (evidence.finding.what, evidence.finding.limit) == ("error", 0.1)
    assert evidence.finding.bound > 0.1
    assert "mean error" in str(evidence.finding)
    assert "at least" in str(evidence.finding)
    assert evidence.finding.level == pytest.approx(ALPHA * 3 / np.pi**2), "half for each limit"
    wrong = sum(run(Evidence(both), np.ones(1000), rng.beta(1, 9, 1000), group=32) is not None for _ in range(200))
    assert wrong <= 2


def test_totals_are_of_all_or_of_the_last():
    evidence = Evidence(settings())
    run(evidence, np.ones(4 * BLOCK), group=BLOCK)
    run(evidence, np.full(BLOCK, 0.9), group=BLOCK)
    overall, recent = evidence.totals(), evidence.totals(recent=True)
    assert (overall.requests, recent.requests) == (5 * BLOCK, BLOCK)
    assert overall.mean_agreement == pytest.approx(0.98)
    assert recent.mean_agreement == pytest.approx(0.9)
    assert recent.mean_error == pytest.approx(0.1)
    low, high = overall.agreement_bounds()
    assert low < 0.98 < high
    assert overall.error_bounds()[0] < 0.02 < overall.error_bounds()[1]
    none = Evidence(settings()).totals()
    assert (none.mean_agreement, none.mean_error) == (None, None)
    assert (none.agreement_bounds(), none.error_bounds()) == ((0.0, 1.0), (0.0, 1.0))
