from hypothesis import given
from hypothesis import strategies as st

from headrace.guard.distinct import Distinct


def digest(number):
    return number.to_bytes(4, "little")


def test_the_same_is_new_once():
    distinct = Distinct()
    assert [distinct.new(digest(number)) for number in (1, 2, 1, 1, 2, 3)] == [True, True, False, False, False, True]
    assert (len(distinct), repr(distinct)) == (3, "<Distinct 3 of 16384 inputs>")


def test_what_is_met_again_and_again_is_counted_once_in_as_many_as_are_remembered():
    distinct = Distinct(8)
    counted = 0
    for number in range(1, 81):
        assert distinct.new(digest(number))
        counted += distinct.new(digest(0))
    assert counted == 80 // 8
    assert len(distinct) == 8


@given(st.lists(st.integers(0, 20), max_size=200), st.integers(1, 8))
def test_of_as_many_observations_as_are_remembered_no_two_are_of_one_input(sent, most):
    distinct = Distinct(most)
    counted = [number for number in sent if distinct.new(digest(number))]
    assert all(len(set(counted[at : at + most])) == len(counted[at : at + most]) for at in range(len(counted)))
    assert len(distinct) <= most
