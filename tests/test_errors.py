"""Errors forget what was at work where they came by."""

import weakref

import pytest

from headrace.errors import let_go


class Work:
    """Whose end can be seen."""


def fails(told):
    work = Work()
    told.append(weakref.ref(work))
    raise ValueError("no")


def fails_for_that(told):
    work = Work()
    told.append(weakref.ref(work))
    try:
        fails(told)
    except ValueError as error:
        raise RuntimeError("neither") from error


@pytest.mark.parametrize("failing", [fails, fails_for_that])
def test_what_was_at_work_is_forgotten(failing):
    there = []
    with pytest.raises((ValueError, RuntimeError)) as caught:
        failing(there)
    assert all(work() is not None for work in there)
    let_go(caught.value)
    assert [work() for work in there] == [None] * len(there)


def test_causes_that_go_in_a_circle_come_to_an_end():
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    let_go(one)
