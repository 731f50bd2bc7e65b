import numpy as np
import pytest
from drift.conftest import SALT, WINDOW_MS, monitor_of, reference_of, source, watch

from headrace.drift.alarms import AlarmSettings
from headrace.drift.errors import DriftError
from headrace.drift.fit import fit_reference, reference_of_record
from headrace.drift.monitor import PLAN_ROWS, Monitor
from headrace.drift.report import report

KEY = "inputs.x"


def normal(random, rows, features=3, shift=0.0):
    values = random.normal(size=(rows, features)).astype(np.float32)
    values[:, 0] += shift
    return values


@pytest.fixture
def reference(random):
    return reference_of(normal(random, 10_000))


def flow(monitor, windows, make, first=0):
    """The events of so many windows, each of what `make` makes."""
    events = []
    for at in range(first, first + windows):
        rows = make()
        monitor.count(at * WINDOW_MS, {KEY: rows}, len(rows))
        events += monitor.tick((at + 1) * WINDOW_MS)
    return events


def test_a_shift_is_found_named_and_over_when_it_is(random, reference):
    monitor = monitor_of(reference)
    assert flow(monitor, 6, lambda: normal(random, 1000)) == []
    (event,) = flow(monitor, 3, lambda: normal(random, 1000, shift=0.5), first=6)
    assert (event.state, event.key, event.feature, event.at_ms) == ("alarm", KEY, "0", 7 * WINDOW_MS)
    assert {one.what for one in event.findings} == {"distribution"}
    over = flow(monitor, 12, lambda: normal(random, 1000), first=9)
    assert [(one.state, one.feature) for one in over] == [("quiet", "0")]


def test_a_small_shift_shows_in_several_windows_together(random, reference):
    """Of 0.2 deviations in 400 rows a window, which no window alone shows."""
    alone = monitor_of(reference, keep=1)
    assert flow(alone, 10, lambda: normal(random, 400, shift=0.17)) == []
    together = monitor_of(reference, keep=16)
    events = flow(together, 24, lambda: normal(random, 400, shift=0.17))
    assert [(event.state, event.feature) for event in events] == [("alarm", "0")]
    assert {one.windows for one in events[0].findings} <= {4, 16}


def test_a_million_rows_do_not_alarm_on_nothing(random):
    """A shift of 0.02 deviations is certain in 200,000 rows, and of no importance."""
    reference = reference_of(normal(random, 200_000, 1))
    monitor = monitor_of(reference)
    assert flow(monitor, 1, lambda: normal(random, 200_000, 1, shift=0.02)) == []
    certain = [one for one in monitor.latest if one.what == "distribution"]
    assert certain[0].p_value < monitor.settings.level
    assert certain[0].effect < 0.03


def test_a_small_reference_does_not_alarm_on_its_own_errors(random):
    for _ in range(20):
        monitor = monitor_of(reference_of(normal(random, 200)))
        assert flow(monitor, 2, lambda: normal(random, 5000)) == []


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda rows: rows.__setitem__((slice(0, 30), 1), np.nan), "missing"),
        (lambda rows: rows.__setitem__((slice(0, 30), 1), 1e6), "range"),
        (lambda rows: rows.__setitem__((slice(0, 30), 1), -np.inf), "range"),
        (lambda rows: np.multiply(rows[:, 1], 2, out=rows[:, 1]), "distribution"),
    ],
)
def test_what_else_may_happen_to_a_feature(random, reference, spoil, what):
    def make():
        rows = normal(random, 1000)
        spoil(rows)
        return rows

    events = flow(monitor_of(reference), 1, make)
    assert [(event.feature, event.state) for event in events] == [("1", "alarm")]
    assert what in {one.what for one in events[0].findings}


def test_missing_values_that_the_reference_has_too_are_no_news(random):
    def make(rows=1000):
        values = normal(random, rows)
        values[::10, 1] = np.nan
        return values

    assert flow(monitor_of(reference_of(make(10_000))), 8, make) == []


def tokens(random, rows, most=400):
    return np.minimum(random.zipf(1.3, size=(rows, 6)), most).astype(np.int64)


def test_unseen_tokens_are_found_and_quiet_ones_are_quiet(random):
    options = {"datatype": "INT64", "kind": "tokens", "shape": (-1,)}
    reference = reference_of(tokens(random, 20_000), **options)
    monitor = monitor_of(reference)
    assert flow(monitor, 5, lambda: tokens(random, 1000)) == []

    def strange():
        rows = tokens(random, 1000)
        rows[:400, 0] = 7_000_000
        return rows

    (event,) = flow(monitor, 1, strange, first=5)
    assert (event.feature, "unseen" in {one.what for one in event.findings}) == ("tokens", True)


def test_tokens_of_many_rare_kinds_are_quiet(random):
    """Each row has new ones: how many is the same in the reference, and those that it counts were not chosen by it."""
    options = {"datatype": "INT64", "kind": "tokens", "shape": (-1,)}

    def make(rows=500):
        return random.integers(0, 3000, size=(rows, 4))

    for _ in range(5):
        assert flow(monitor_of(reference_of(make(3000), **options)), 4, make) == []


def test_tokens_of_a_row_are_no_independent_rows(random):
    """Thirty tokens that are the same say what one does: unweighted, chance in 500 rows would look like 15,000's."""
    options = {"datatype": "INT64", "kind": "tokens", "shape": (-1,)}

    def make(rows=500, most=20):
        return np.repeat(random.integers(0, most, size=(rows, 1)), 30, axis=1)

    monitor = monitor_of(reference_of(make(5000), **options))
    assert flow(monitor, 6, make) == []
    assert flow(monitor, 1, lambda: make(most=15), first=6), "and a change is seen all the same"


def test_too_few_rows_say_nothing(random, reference):
    monitor = monitor_of(reference)
    assert flow(monitor, 1, lambda: normal(random, 199, shift=9)) == []
    assert flow(monitor, 1, lambda: normal(random, 1, shift=9), first=1), "the two together are enough"


def two_tensors(random):
    watches = watch(), watch(name="y")
    reference = fit_reference([(each, source(normal(random, 5000))) for each in watches], SALT, "data", 0)
    return Monitor("m", "1", watches, AlarmSettings(WINDOW_MS, 4, 1), SALT, reference)


@pytest.mark.parametrize("rows", [0, 3])
def test_an_alarm_stays_while_too_little_flows_of_its_tensor_though_others_do(random, rows):
    monitor = two_tensors(random)
    monitor.count(0, {KEY: normal(random, 500), "inputs.y": normal(random, 500, shift=1)}, 500)
    assert [event.state for event in monitor.tick(WINDOW_MS)] == ["alarm"]
    for at in range(1, 12):
        monitor.count(at * WINDOW_MS, {KEY: normal(random, 500), "inputs.y": normal(random, rows)}, 500)
        assert monitor.tick((at + 1) * WINDOW_MS) == []
    assert monitor.alarms.on.keys() == {("inputs.y", "0")}


def test_a_tensor_of_too_few_rows_says_nothing_beside_one_of_enough(random):
    monitor = two_tensors(random)
    monitor.count(0, {KEY: normal(random, 500), "inputs.y": normal(random, 150, shift=3)}, 500)
    assert monitor.tick(WINDOW_MS) == []
    states = {(one.tensor, one.state) for one in report(monitor, WINDOW_MS).features}
    assert states == {("x", "quiet"), ("y", "not judged")}
    assert report(monitor, WINDOW_MS).state == "quiet"


def test_every_window_is_judged_once_also_after_a_pause(random, reference):
    monitor = monitor_of(reference)
    monitor.count(0, {KEY: normal(random, 1000, shift=1)}, 1000)
    assert monitor.tick(WINDOW_MS - 1) == []
    assert len(monitor.tick(3 * WINDOW_MS)) == 1
    judged = monitor.latest
    assert monitor.tick(4 * WINDOW_MS) == []
    assert monitor.latest is judged


@pytest.mark.parametrize("keep", [1, 4])
def test_judging_goes_on_when_a_clock_that_was_ahead_is_set_back(random, reference, keep):
    monitor = monitor_of(reference, keep=keep)
    assert flow(monitor, 3, lambda: normal(random, 1000), first=1000) == []
    assert flow(monitor, 2, lambda: normal(random, 1000), first=10) == []
    assert [event.state for event in flow(monitor, 3, lambda: normal(random, 1000, shift=1), first=12)] == ["alarm"]
    assert report(monitor, 15 * WINDOW_MS).state == "alarm"


def test_a_clock_that_is_set_back_a_little_judges_no_window_twice(random, reference):
    monitor = monitor_of(reference)
    flow(monitor, 2, lambda: normal(random, 1000))
    judged = monitor.latest
    assert monitor.tick(2 * WINDOW_MS - 500) == []
    assert monitor.tick(2 * WINDOW_MS) == []
    assert monitor.latest is judged


def test_correlated_rows_are_fewer_than_they_look(random, reference):
    def same():
        return np.repeat(normal(random, 50), 20, axis=0)

    assert flow(monitor_of(reference), 2, same)
    assert flow(monitor_of(reference, design_effect=20.0), 2, same) == []


def test_without_a_reference_a_plan_is_drawn_and_windows_are_kept(random):
    monitor = Monitor("m", "1", [watch()], AlarmSettings(WINDOW_MS, 4), SALT)
    for at in range(40):
        monitor.count(at * 1000, {KEY: normal(random, 50)}, 50)
    (window,) = monitor.record.windows.values()
    assert window.sampled == 2000
    assert window.tallies[KEY].plan.rows == -(-PLAN_ROWS // 50) * 50
    assert monitor.tick(10 * WINDOW_MS) == []
    made = reference_of_record(monitor.record, "yesterday", 0)
    later = Monitor("m", "1", [watch()], AlarmSettings(WINDOW_MS, 4, 1), SALT, made)
    assert flow(later, 3, lambda: normal(random, 1000)) == []
    assert flow(later, 1, lambda: normal(random, 1000, shift=1), first=3)


def test_items_that_a_plan_was_drawn_from_are_not_counted_by_it(random):
    monitor = Monitor("m", "1", [watch((-1,), "INT64")], AlarmSettings(WINDOW_MS, 4), SALT)
    for _ in range(2):
        monitor.count(0, {KEY: tokens(random, PLAN_ROWS)}, PLAN_ROWS)
    tally = monitor.record.windows[0].tallies[KEY]
    assert (tally.rows, tally.item_rows) == (2 * PLAN_ROWS, PLAN_ROWS)
    assert tally.items.sum() == tally.sketch.total == PLAN_ROWS * 6


def test_a_restart_goes_on(random, reference):
    monitor = monitor_of(reference)
    flow(monitor, 2, lambda: normal(random, 1000, shift=1))
    again = monitor_of(reference)
    again.restore(monitor.pack())
    assert again.alarms.on == monitor.alarms.on
    assert again.tick(2 * WINDOW_MS) == [], "judged before the restart"
    assert repr(again) == "<Monitor: <Record of m/1: 2 of 4 windows>, <Alarms: 1 on>>"
    assert flow(again, 1, lambda: normal(random, 1000, shift=1), first=2) == []
    assert len(again.record.windows) == 3


def test_a_restart_goes_on_where_the_reference_has_named_the_features(random):
    """As one of a table does; the tensor itself knows no names."""
    named = source(normal(random, 10_000), names=("age", "debt", "income"))
    reference = fit_reference([(watch(), named)], SALT, "data", 0)
    monitor, again = (Monitor("m", "1", [watch()], AlarmSettings(WINDOW_MS, 4), SALT, reference) for _ in range(2))
    flow(monitor, 2, lambda: normal(random, 1000, shift=1))
    again.restore(monitor.pack())
    assert "age" in str(again.alarms.json())
    assert again.alarms.on == monitor.alarms.on
    assert len(again.record.windows) == 2


def test_a_restart_without_a_reference_goes_on_with_the_same_plan(random):
    monitor = Monitor("m", "1", [watch()], AlarmSettings(WINDOW_MS, 4), SALT)
    monitor.count(0, {KEY: normal(random, PLAN_ROWS)}, PLAN_ROWS)
    again = Monitor("m", "1", [watch()], AlarmSettings(WINDOW_MS, 4), bytes(16))
    again.restore(monitor.pack())
    again.count(1, {KEY: normal(random, 10)}, 10)
    assert again.record.windows[0].sampled == PLAN_ROWS + 10


def test_what_is_not_this_monitors_is_refused_and_changes_nothing(random, reference):
    monitor = monitor_of(reference)
    flow(monitor, 1, lambda: normal(random, 100))
    other = monitor_of(reference_of(normal(random, 300)))
    flow(other, 2, lambda: normal(random, 100))
    before = monitor.record
    for data, message in (
        (other.pack(), "inputs.x was counted by another plan"),
        (monitor_of(reference, window_ms=1000).pack(), "expected <Record of m/1"),
        (b"", "it does not begin as one"),
    ):
        with pytest.raises(DriftError, match=message):
            monitor.restore(data)
        assert monitor.record is before


def test_a_reference_for_other_features_is_refused(reference):
    with pytest.raises(DriftError, match=r"was made for inputs.x of kind numeric, 3 features"):
        Monitor("m", "1", [watch(kind="summary")], AlarmSettings(WINDOW_MS, 4), SALT, reference)


def test_a_tensor_that_the_reference_does_not_have_is_counted_but_not_judged(random, reference):
    other = watch((2,), name="y", output=True)
    monitor = Monitor("m", "1", [watch(), other], AlarmSettings(WINDOW_MS, 4, 1), SALT, reference)
    tensors = {KEY: normal(random, 1000), "outputs.y": normal(random, 1000, 2), "inputs.unknown": normal(random, 1)}
    monitor.count(0, tensors, 1000)
    assert monitor.record.windows[0].tallies["outputs.y"].rows == 1000
    assert monitor.tick(WINDOW_MS) == []
    assert {one.key for one in monitor.latest} == {KEY}


def test_one_bad_tensor_does_not_spoil_the_others(random, reference):
    other = watch((2,), name="y")
    monitor = Monitor("m", "1", [other, watch()], AlarmSettings(WINDOW_MS, 4), SALT, reference)
    with pytest.raises(DriftError, match=r"y: rows of \[5\], expected \[2\]"):
        monitor.count(0, {"inputs.y": normal(random, 9, 5), KEY: normal(random, 9)}, 9)
    assert monitor.record.windows[0].sampled == 9


def test_quiet_data_stay_quiet(random):
    """200 windows of 8 features, held against five references, at a level of 1 %: as many alarms as that, at most."""
    raised = 0
    for _ in range(5):
        monitor = monitor_of(reference_of(normal(random, 3000, 8)), quiet_days=WINDOW_MS / 86_400_000 / 0.01)
        assert monitor.settings.level * len(monitor.settings.horizons) == pytest.approx(0.01)
        events = flow(monitor, 40, lambda: normal(random, 300, 8))
        raised += sum(event.state == "alarm" for event in events)
    assert raised <= 7  # 2 are expected at most; more than 7 have a chance of 0.1 %
