"""Lines of a log that are left out, by a clock that the test sets."""

from headrace import sparing
from headrace.sparing import Sparing


class Clock:
    ns = 10**12

    def __call__(self):
        return self.ns


def test_one_of_a_kind_in_a_second_and_the_next_tells_of_the_others():
    clock = Clock()
    log = Sparing(clock)
    assert [log.left_out("a") for _ in range(4)] == [0, None, None, None]
    assert log.left_out("b") == 0
    clock.ns += 10**9 - 1
    assert log.left_out("a") is None
    clock.ns += 1
    assert [log.left_out("a") for _ in range(2)] == [4, None]
    assert repr(log) == "<Sparing 2 kinds, 1 left out>"
    clock.ns += 10**9
    assert [log.left_out("a"), log.left_out("b")] == [1, 0]


def test_any_number_of_kinds_takes_no_more_memory():
    log = Sparing(Clock())
    for kind in range(1000):
        log.left_out(kind)
    assert len(log._kinds) <= sparing.KINDS
