from math import ceil, log2

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.quantize.search import search


def run(values, gate):
    """A search over as many layers as there are values; a value for each number of layers in float."""
    names = [f"layer {at}" for at in range(len(values))]
    asked = []

    def attempt(kept):
        assert list(kept) == names[: len(kept)]
        asked.append(len(kept))
        return values[len(kept)]

    return search(names, attempt, lambda value: value, gate), asked


@given(st.integers(1, 200), st.data())
def test_no_more_layers_stay_in_float_than_the_gate_asks_for(count, data):
    needed = data.draw(st.integers(0, count))
    found, asked = run([float(kept >= needed) for kept in range(count)], 1.0)
    assert found.passed == (needed < count)  # a model with no layer quantized would be the source
    if found.passed:
        assert len(found.kept) == needed
    assert len(asked) == len(set(asked)) <= 2 * ceil(log2(count + 1)) + 2


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.floats(0.01, 1))
def test_what_is_returned_was_measured_and_is_what_it_says(values, gate):
    """Also where more layers in float are worse now and then."""
    found, asked = run(values, gate)
    assert found.outcome == values[len(found.kept)]
    assert found.passed == (found.outcome >= gate)
    assert found.tries == tuple((kept, values[kept]) for kept in asked)
    if not found.passed:
        assert found.outcome == max(values[kept] for kept in asked)


def test_the_first_that_holds_is_the_whole_search():
    found, asked = run([1.0] * 9, 0.99)
    assert (found.kept, asked) == ((), [0])


def test_without_an_order_there_is_one_try():
    found = search([], lambda kept: 0.5, lambda value: value, 0.99)
    assert (found.kept, found.passed, found.tries) == ((), False, ((0, 0.5),))


def test_what_goes_wrong_in_an_attempt_is_not_swallowed():
    def attempt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(["a"], attempt, float, 0.99)
