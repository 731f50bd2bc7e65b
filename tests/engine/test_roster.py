"""What is decided when instances are lost, made again, or cannot be; first case by case, then whatever happens."""

from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headrace.engine.roster import FellBack, Forget, Make, Part, Roster

S = 1_000_000_000
CHAIN = ("fast", "slow", "safe")


@pytest.fixture
def roster():
    roster = Roster(CHAIN, first_ns=1 * S, max_ns=8 * S)
    roster.begin(["a", "b"], now=0)
    return roster


def test_as_loaded(roster):
    assert (roster.usable, roster.serving, roster.hopeless, roster.lost, roster.note) == (2, ["fast"], False, 0, "")
    assert repr(roster) == "<Roster 2 of fast>"
    assert "a" in roster
    assert "c" not in roster


def test_one_of_two_is_lost_and_made_anew(roster):
    assert roster.gone(["a"], "out of memory", now=20 * S) == [Make("fast", 0, 21 * S)]
    assert (roster.usable, roster.serving, roster.lost) == (1, ["fast"], 1)
    assert roster.note == "1 of 2 instances of fast are lost and are being made anew, served by fast: out of memory"
    assert roster.made(Make("fast", 0, 21 * S), "c", total=2, now=22 * S) == []
    assert (roster.usable, roster.note) == (2, "")


def test_the_pauses_double_up_to_the_longest(roster):
    make = roster.gone(["b"], "lost", now=20 * S)[0]
    moments = [make.at]
    for _ in range(5):
        (make,) = roster.failed(make, "still lost", "load", now=make.at)
        moments.append(make.at)
    assert [later - earlier for earlier, later in pairwise(moments)] == [
        2 * S, 4 * S, 8 * S, 8 * S, 8 * S
    ]  # fmt: skip
    assert roster.note.endswith(": still lost")


def test_what_is_lost_again_soon_is_made_later_each_time(roster):
    (make,) = roster.gone(["a"], "", now=20 * S)
    assert make.at == 21 * S
    roster.made(make, "c", 2, now=21 * S)
    (make,) = roster.gone(["c"], "", now=22 * S)
    assert make.at == 24 * S
    roster.made(make, "d", 2, now=24 * S)
    (make,) = roster.gone(["d"], "", now=24 * S + 8 * S)
    assert make.at == 33 * S  # it had held out for as long as the longest pause


def test_all_are_lost_and_the_next_of_the_chain_stands_in(roster):
    commands = roster.gone(["a", "b"], "device lost", now=20 * S)
    stand_in = Make("slow", 0, 20 * S)
    assert commands == [Make("fast", 0, 21 * S), Make("fast", 1, 21 * S), stand_in]
    assert (roster.usable, roster.hopeless) == (0, False)
    assert roster.note.endswith("served by nothing: device lost")
    second = Make("slow", 1, 20 * S + 5)
    assert roster.made(stand_in, "s0", total=2, now=20 * S + 5) == [FellBack("fast", "slow", "lost"), second]
    assert (roster.serving, roster.usable) == (["slow"], 1)
    assert roster.made(second, "s1", total=2, now=20 * S + 9) == []
    assert roster.all_of("s0") == ["s0", "s1"]
    assert repr(roster) == "<Roster 2 of slow, 2 lost>"


def test_stand_ins_leave_when_one_is_back(roster):
    first, second, stand_in = roster.gone(["a", "b"], "device lost", now=0)
    roster.made(stand_in, "s", total=1, now=1)
    assert roster.made(first, "c", total=2, now=S) == [Part("s"), Forget("slow")]
    assert roster.serving == ["fast"]
    assert "s" not in roster
    assert roster.made(second, "d", total=2, now=S) == []
    assert roster.usable == 2


def test_a_stand_in_that_comes_too_late_is_not_taken(roster):
    first, _, stand_in = roster.gone(["a", "b"], "device lost", now=0)
    assert roster.made(first, "c", total=2, now=S) == []
    assert roster.made(stand_in, "s", total=2, now=2 * S) == [Part("s"), Forget("slow")]
    assert roster.usable == 1


def test_one_that_cannot_stand_in_is_passed_over(roster):
    _, _, stand_in = roster.gone(["a", "b"], "device lost", now=0)
    last = Make("safe", 0, 3)
    assert roster.failed(stand_in, "no library", "unavailable", now=3) == [
        FellBack("slow", "safe", "unavailable"), last
    ]  # fmt: skip
    assert not roster.hopeless
    assert roster.failed(last, "no memory", "load", now=4) == [FellBack("safe", "", "load")]
    assert not roster.hopeless, "the places have not been tried yet"


def test_without_any_that_works_there_is_no_hope_until_there_is_one(roster):
    first, second, stand_in = roster.gone(["a", "b"], "device lost", now=0)
    (_, last) = roster.failed(stand_in, "", "load", now=1)
    roster.failed(last, "", "load", now=2)
    again, stand_in = roster.failed(first, "lost", "load", now=S)
    assert (again, stand_in) == (Make("fast", 0, 3 * S), Make("slow", 0, S))  # the chain is tried again
    roster.failed(second, "lost", "load", now=S)
    assert not roster.hopeless, "one is being made"
    (_, last) = roster.failed(stand_in, "", "load", now=S)
    roster.failed(last, "", "load", now=S)
    assert roster.hopeless
    roster.made(again, "c", total=2, now=3 * S)
    assert not roster.hopeless


def test_the_second_of_the_stand_ins_may_fail(roster):
    _, _, stand_in = roster.gone(["a", "b"], "device lost", now=0)
    _, second = roster.made(stand_in, "s", total=2, now=1)
    assert roster.failed(second, "", "load", now=2) == []
    assert roster.serving == ["slow"]


def test_a_stand_in_that_is_lost_gives_way_to_the_next(roster):
    _, _, stand_in = roster.gone(["a", "b"], "device lost", now=0)
    roster.made(stand_in, "s", total=1, now=1)
    assert roster.gone(["s"], "lost too", now=2) == [Make("safe", 0, 2)]


def test_what_flaps_is_not_waited_for():
    roster = Roster(("only",), first_ns=S, max_ns=60 * S)
    roster.begin(["a"], now=0)
    (make,) = roster.gone(["a"], "", now=100 * S)
    assert not roster.hopeless, "it may be back in a second"
    roster.made(make, "b", 1, now=101 * S)
    roster.gone(["b"], "", now=102 * S)
    assert roster.hopeless, "it is made anew, but nobody should wait for it"


def test_where_nothing_is_made_anew():
    roster = Roster(("only",), first_ns=0, max_ns=0)
    roster.begin(["a", "b"], now=0)
    assert roster.gone(["a"], "lost", now=5) == []
    assert not roster.hopeless
    assert roster.gone(["b"], "lost", now=6) == []
    assert roster.hopeless
    assert roster.note == "2 of 2 instances of only are lost, served by nothing: lost"


class RosterMachine(RuleBasedStateMachine):
    """Does what the roster wants, in any order, with any result; and checks what must hold meanwhile."""

    @initialize(backends=st.integers(1, 3), places=st.integers(1, 3))
    def set_up(self, backends, places):
        self.now = 0
        self.chain = CHAIN[:backends]
        self.places = places
        self.roster = Roster(self.chain, first_ns=S, max_ns=10 * S)
        self.next_member = places
        self.members = dict.fromkeys(range(places), self.chain[0])  # as the shell knows them
        self.to_make = []
        self.roster.begin(range(places), 0)

    def obey(self, commands):
        for command in commands:
            match command:
                case Make():
                    assert command.at >= self.now
                    self.to_make.append(command)
                case Part(member):
                    del self.members[member]
                case Forget(backend):
                    assert backend != self.chain[0]
                    assert backend not in self.members.values(), "forgotten, and there are instances of it"
                case FellBack(backend, to, _):
                    assert backend in self.chain
                    assert not to or self.chain.index(to) > self.chain.index(backend)

    @rule(passed=st.integers(0, 12 * S))
    def time_passes(self, passed):
        self.now += passed

    @precondition(lambda self: self.members)
    @rule(choice=st.integers(0, 9), with_others=st.booleans())
    def lose(self, choice, with_others):
        member = list(self.members)[choice % len(self.members)]
        lost = self.roster.all_of(member) if with_others else [member]
        assert {self.members[one] for one in lost} == {self.members[member]}
        for one in lost:
            del self.members[one]
        self.obey(self.roster.gone(lost, "lost", self.now))

    @precondition(lambda self: self.to_make)
    @rule(choice=st.integers(0, 9), works=st.booleans(), total=st.integers(1, 3))
    def make(self, choice, works, total):
        make = self.to_make.pop(choice % len(self.to_make))
        self.now = max(self.now, make.at)
        if not works:
            self.obey(self.roster.failed(make, "it does not work", "load", self.now))
            return
        member = self.next_member
        self.next_member += 1
        self.members[member] = make.backend
        self.obey(self.roster.made(make, member, total, self.now))

    @invariant()
    def both_know_the_same(self):
        assert self.roster.usable == len(self.members)
        assert all(member in self.roster for member in self.members)
        assert self.roster.serving == [backend for backend in self.chain if backend in self.members.values()]

    @invariant()
    def each_place_is_filled_or_is_to_be(self):
        pending = [make.index for make in self.to_make if make.backend == self.chain[0]]
        filled = sum(backend == self.chain[0] for backend in self.members.values())
        assert len(pending) == len(set(pending)) == self.roster.lost == self.places - filled

    @invariant()
    def one_stand_in_at_a_time_and_only_if_needed(self):
        assert sum(make.backend != self.chain[0] for make in self.to_make) <= 1
        assert len(self.roster.serving) <= 2
        if self.chain[0] in self.members.values():
            assert self.roster.serving == [self.chain[0]], "stand-ins are there though they are not needed"

    @invariant()
    def hope_is_given_up_only_without_any(self):
        stand_in = any(make.backend != self.chain[0] for make in self.to_make)
        assert not (self.roster.hopeless and (self.members or stand_in))

    @invariant()
    def the_note_is_there_if_something_is_lost(self):
        assert bool(self.roster.note) == bool(self.roster.lost)


RosterMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=40)
TestRoster = RosterMachine.TestCase
