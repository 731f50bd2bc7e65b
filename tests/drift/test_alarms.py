import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.drift.alarms import MS_OF_A_DAY, Alarms, AlarmSettings, Finding, findings_of
from headrace.drift.assess import Assessment, Check

SETTINGS = AlarmSettings(window_ms=600_000, keep=16)
LEVEL = SETTINGS.level


def finding(p_value=0.0, effect=0.5, feature="a", what="distribution", windows=1):
    return Finding("inputs.x", feature, what, p_value, effect, SETTINGS.least(what), windows)


def assessment(feature, *tests):
    return Assessment("inputs.x", feature, 0, 1000, 0, 0, 0, 0, tests=tests)


def test_the_level_is_the_time_of_a_window_over_that_between_false_alarms():
    assert SETTINGS.horizons == (1, 4, 16)
    assert pytest.approx(600_000 / (30 * MS_OF_A_DAY)) == LEVEL * 3
    assert AlarmSettings(window_ms=MS_OF_A_DAY, keep=1, quiet_days=1).level == 0.01


@pytest.mark.parametrize(
    ("keep", "horizons"), [(1, (1,)), (3, (1,)), (4, (1, 4)), (63, (1, 4, 16)), (64, (1, 4, 16, 64))]
)
def test_horizons_by_what_is_kept(keep, horizons):
    assert AlarmSettings(window_ms=1000, keep=keep).horizons == horizons


def test_findings_are_corrected_for_all_that_were_made_together():
    tests = [assessment("a", Check("distribution", 0.001, 0.2), Check("missing", 0.5, 0)),
             assessment("b", Check("distribution", 0.02, 0.1))]  # fmt: skip
    found = findings_of(tests, SETTINGS, 4)
    assert [one.p_value for one in found] == [0.003, 0.5, 0.04]
    assert [one.least for one in found] == [0.03, 0.01, 0.03]
    assert {one.windows for one in found} == {4}


@pytest.mark.parametrize(
    ("p_value", "effect", "raised"),
    [
        (LEVEL, 0.03, True),
        (LEVEL * 1.01, 0.9, False),
        (0, 0.0299, False),  # certain, and of no importance: what a million rows would find
        (1, 1, False),
    ],
)
def test_chance_and_size_must_come_together(p_value, effect, raised):
    alarms = Alarms(SETTINGS)
    events = alarms.step(1, [[finding(p_value, effect)]])
    assert [event.state for event in events] == ["alarm"] * raised
    assert bool(alarms.on) == raised


def test_an_event_is_a_line_of_the_log():
    (event,) = Alarms(SETTINGS).step(1, [[finding(0, 0.25)]])
    assert event.fields == {
        "direction": "inputs", "tensor": "x", "feature": "a", "tests": "distribution", "test": "distribution",
        "effect": 0.25, "least": 0.03, "p_value": 0.0, "windows": 1,
    }  # fmt: skip


def test_shares_have_a_size_of_their_own():
    assert Alarms(SETTINGS).step(1, [[finding(0, 0.011, what="missing")]])
    assert not Alarms(SETTINGS).step(1, [[finding(0, 0.009, what="missing")]])


def test_it_is_raised_once_and_names_what_says_so():
    alarms = Alarms(SETTINGS)
    (first,) = alarms.step(5, [[finding()], [finding(windows=4), finding(1, 0, "b")]])
    assert (first.at_ms, first.key, first.feature, first.state) == (5, "inputs.x", "a", "alarm")
    assert [one.windows for one in first.findings] == [1, 4]
    assert alarms.step(6, [[finding(), finding(what="range")]]) == []
    alarm = alarms.on["inputs.x", "a"]
    assert (alarm.since_ms, alarm.what) == (5, ["distribution", "range"])
    assert repr(alarms) == "<Alarms: 1 on>"


def test_it_is_over_after_some_windows_without_a_sign():
    alarms = Alarms(SETTINGS)
    quiet = [[finding(1, 0)]]
    alarms.step(1, [[finding()]])
    assert [alarms.step(at, quiet) for at in (2, 3)] == [[], []]
    assert alarms.step(4, [[finding()]]) == [], "it begins again"
    assert [alarms.step(at, quiet) for at in (5, 6)] == [[], []]
    (over,) = alarms.step(7, quiet)
    assert (over.at_ms, over.state, over.feature) == (7, "quiet", "a")
    assert not alarms.on


@pytest.mark.parametrize(
    ("p_value", "effect", "stays"),
    [(LEVEL * 9, 0.03, True), (LEVEL * 11, 0.03, False), (0, 0.023, True), (0, 0.022, False)],
)
def test_less_is_needed_to_stay_than_to_be_raised(p_value, effect, stays):
    alarms = Alarms(SETTINGS)
    alarms.step(1, [[finding()]])
    for at in range(2, 10):
        alarms.step(at, [[finding(p_value, effect)]])
    assert bool(alarms.on) == stays


def test_who_has_seen_nothing_changes_nothing():
    alarms = Alarms(SETTINGS)
    alarms.step(1, [[finding()]])
    assert [alarms.step(at, []) for at in range(2, 50)] == [[]] * 48
    assert alarms.on


def test_alarms_outlive_a_restart():
    alarms = Alarms(SETTINGS)
    alarms.step(1, [[finding(), finding(feature="b")]])
    alarms.step(2, [[finding(1, 0), finding(feature="b")]])
    again = Alarms(SETTINGS)
    again.restore(alarms.json())
    assert again.on == alarms.on
    assert again.on["inputs.x", "a"].quiet == 1


STEPS = st.lists(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 1), st.floats(0, 1)), max_size=4), max_size=30)


@given(STEPS)
def test_events_alternate_and_tell_the_state(steps):
    alarms = Alarms(SETTINGS)
    state = dict.fromkeys("abc", "quiet")
    for at, step in enumerate(steps):
        found = [finding(p_value * LEVEL * 2, effect * 0.06, feature) for feature, p_value, effect in step]
        for event in alarms.step(at, [found]):
            assert event.state != state[event.feature]
            state[event.feature] = event.state
        assert {feature for _, feature in alarms.on} == {feature for feature, now in state.items() if now == "alarm"}
