from collections import Counter

import pytest

from headrace.backends.quicker import Quicker


def go(quicker, costs, times):
    """Goes so many times; costs: of each way, now. How often each way was gone."""
    gone = Counter()
    for _ in range(times):
        way = quicker.pick()
        quicker.took(way, costs[way])
        gone[way] += 1
    return gone


def test_each_way_is_tried_before_one_is_preferred():
    quicker = Quicker(3)
    assert go(quicker, (3.0, 1.0, 2.0), 3) == {0: 1, 1: 1, 2: 1}
    assert quicker.pick() == 1
    assert repr(quicker) == "<Quicker 4 picks, costs {0: 3, 1: 1, 2: 2}>"


@pytest.mark.parametrize("costs", [(1.0, 2.0), (2.0, 1.0)])
def test_the_quickest_is_gone_nearly_always(costs):
    gone = go(Quicker(2), costs, 6400)
    assert gone[costs.index(2.0)] == pytest.approx(50, abs=10)  # half of the trials, for these take turns


def test_a_change_is_noticed():
    quicker = Quicker(2)
    go(quicker, (1.0, 2.0), 1000)
    assert go(quicker, (5.0, 2.0), 100)[1] > 80  # the one in use has become slow
    go(quicker, (1.0, 2.0), 1000)
    assert go(quicker, (1.0, 2.0), 100)[0] > 90  # and quick again, which only trials can tell
