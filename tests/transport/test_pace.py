from headrace.transport.pace import IN, OUT, Pace

SECOND = 10**9


def test_what_moves_enough_in_each_period_has_not_stalled():
    pace = Pace(10 * SECOND, 100)
    for second in range(100):
        assert pace.stalled({(1, IN): 10 * second, (3, OUT): -(10**6) + 11 * second}, second * SECOND) == []
    assert repr(pace) == "<Pace of 2 flows>"


def test_what_moves_less_has():
    pace = Pace(10 * SECOND, 100)
    for second in range(10):
        assert pace.stalled({(1, IN): 9 * second, (3, IN): 10 * second}, second * SECOND) == []
    assert pace.stalled({(1, IN): 99, (3, IN): 100}, 10 * SECOND) == [(1, IN)]


def test_the_period_begins_anew():
    """A burst at its beginning does not last for ever."""
    pace = Pace(10 * SECOND, 100)
    assert pace.stalled({(1, IN): 0}, 0) == []
    assert pace.stalled({(1, IN): 10**6}, 10 * SECOND) == []
    assert pace.stalled({(1, IN): 10**6}, 19 * SECOND) == []
    assert pace.stalled({(1, IN): 10**6}, 20 * SECOND) == [(1, IN)]


def test_what_is_not_due_any_more_is_forgotten():
    pace = Pace(10 * SECOND, 100)
    pace.stalled({(1, IN): 0}, 0)
    pace.stalled({}, 9 * SECOND)
    assert pace.stalled({(1, IN): 0}, 10 * SECOND) == []
    assert repr(pace) == "<Pace of 1 flows>"


def test_one_flow_may_be_forgotten():
    pace = Pace(10 * SECOND, 100)
    pace.stalled({(1, IN): 0, (3, IN): 0}, 0)
    pace.forget((1, IN))
    pace.forget((5, IN))
    assert pace.stalled({(1, IN): 0, (3, IN): 0}, 10 * SECOND) == [(3, IN)]
