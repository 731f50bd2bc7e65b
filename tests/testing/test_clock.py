import pytest

from headrace.testing.clock import FakeClock


def test_it_stands_still_until_it_is_told():
    clock = FakeClock(5)
    assert [clock(), clock()] == [5, 5]
    clock.advance(3)
    assert clock() == 8
    assert repr(clock) == "<FakeClock 8 ns>"
    with pytest.raises(ValueError, match="does not go back by 1 ns"):
        clock.advance(-1)
