import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from headrace.transport.workers.slots import PAGE, Slots


def test_slots_are_whole_pages_and_the_lowest_that_are_free():
    slots = Slots(10 * PAGE)
    assert [slots.take(1), slots.take(PAGE), slots.take(PAGE + 1)] == [0, PAGE, 2 * PAGE]
    slots.give_back(PAGE)
    assert slots.take(2 * PAGE) == 4 * PAGE
    assert slots.take(PAGE) == PAGE
    assert repr(slots) == f"<Slots 4 taken, {4 * PAGE} of {10 * PAGE} octets free>"


def test_without_room_there_is_no_slot():
    slots = Slots(2 * PAGE)
    assert slots.take(3 * PAGE) == -1
    assert slots.take(2 * PAGE) == 0
    assert slots.take(1) == -1
    slots.give_back(0)
    assert slots.take(1) == 0


def test_nothing_is_free_in_nothing():
    assert Slots(0).take(1) == -1


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (0, 2, 1)])
def test_neighbours_that_are_free_join(order):
    slots = Slots(3 * PAGE)
    taken = [slots.take(PAGE) for _ in range(3)]
    for index in order:
        slots.give_back(taken[index])
    assert slots.take(3 * PAGE) == 0


def test_what_is_not_taken_cannot_be_given_back():
    slots = Slots(2 * PAGE)
    slots.give_back(slots.take(PAGE))
    for start in (0, PAGE, 1):
        with pytest.raises(KeyError):
            slots.give_back(start)


@given(st.lists(st.integers(1, 5 * PAGE), max_size=30), st.randoms(use_true_random=False))
def test_all_that_was_taken_can_be_given_back_in_any_order(lengths, random):
    slots = Slots(64 * PAGE)
    taken = [start for length in lengths if (start := slots.take(length)) >= 0]
    random.shuffle(taken)
    for start in taken:
        slots.give_back(start)
    assert slots.take(64 * PAGE) == 0


class Taking(RuleBasedStateMachine):
    """Slots never overlap, and free octets are those that no slot has."""

    def __init__(self):
        super().__init__()
        self.slots = Slots(32 * PAGE)
        self.taken = {}

    @rule(pages=st.integers(1, 12))
    def take(self, pages):
        start = self.slots.take(pages * PAGE - 1)
        free = [page for page in range(32) if page not in self.pages()]
        fits = any(set(range(at, at + pages)) <= set(free) for at in free)
        assert (start >= 0) == fits
        if start >= 0:
            self.taken[start] = pages

    @rule(data=st.data())
    def give_back(self, data):
        if self.taken:
            start = data.draw(st.sampled_from(sorted(self.taken)))
            del self.taken[start]
            self.slots.give_back(start)

    def pages(self):
        return [start // PAGE + page for start, pages in self.taken.items() for page in range(pages)]

    @invariant()
    def slots_are_apart(self):
        pages = self.pages()
        assert len(pages) == len(set(pages))
        assert all(0 <= page < 32 for page in pages)
        assert self.slots.free_octets == (32 - len(pages)) * PAGE


TestTaking = Taking.TestCase
