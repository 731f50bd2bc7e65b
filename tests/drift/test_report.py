import csv
import io
import re

import numpy as np
import pytest
from drift.conftest import SALT, WINDOW_MS, monitor_of, reference_of, watch
from page_checks import pictures_of, tags_of

from headrace.drift.alarms import AlarmSettings
from headrace.drift.export import MOST_ROWS, tables
from headrace.drift.monitor import Monitor
from headrace.drift.page import page
from headrace.drift.report import DriftReport, report
from headrace.drift.text import report_lines

KEY = "inputs.x"
NAMES = ("<b>age</b>", "income", "debt")


def normal(random, rows, shift=0.0, features=3):
    values = random.normal(size=(rows, features)) * [1, 1000, 1][:features]
    values[:, -1] += shift
    return values


@pytest.fixture
def monitor(random):
    """Of three windows, in which the last feature is not as it was."""
    made = monitor_of(reference_of(normal(random, 5000), labels=NAMES))
    for at in range(3):
        made.count(at * WINDOW_MS, {KEY: normal(random, 1000, 1.0)}, 4000)
        made.tick((at + 1) * WINDOW_MS)
    return made


def test_the_worst_is_first_and_says_why(monitor):
    found = report(monitor, 2 * WINDOW_MS)
    assert (found.model, found.version, found.state) == ("m", "1", "alarm")
    assert (found.reference, found.reference_rows) == ("data", 5000)
    worst, *others = found.features
    assert (worst.feature, worst.state, worst.since_ms) == ("debt", "alarm", WINDOW_MS)
    assert "distribution" in worst.reasons
    assert worst.severity == pytest.approx(0.383 / 0.03, rel=0.1)
    assert worst.psi == pytest.approx(1, rel=0.2)
    assert worst.ks == pytest.approx(0.383, abs=0.03)
    assert worst.wasserstein == pytest.approx(1, abs=0.1)
    assert worst.tests[0].p_value < 1e-50
    assert {one.feature: one.state for one in others} == {"<b>age</b>": "quiet", "income": "quiet"}
    assert all(one.psi < 3 * one.psi_noise for one in others)


def test_the_time_that_it_is_of(monitor):
    span = report(monitor, 2 * WINDOW_MS + 5).span
    assert (span.start_ms, span.end_ms, span.windows) == (-WINDOW_MS, 3 * WINDOW_MS, 4)
    assert (span.rows_offered, span.rows_sampled) == (12_000, 3000)
    last = report(monitor, 2 * WINDOW_MS, windows=1)
    assert (last.span.start_ms, last.span.rows_sampled) == (2 * WINDOW_MS, 1000)
    assert last.features[0].window.rows == 1000


@pytest.mark.parametrize("windows", [2, None])
def test_an_alarm_that_is_on_is_told_when_nothing_flows_any_more(monitor, windows):
    found = report(monitor, 40 * WINDOW_MS, windows)
    assert (found.state, found.unjudged, found.span.rows_sampled) == ("alarm", "", 0)
    (debt,) = found.features
    assert (debt.feature, debt.state, debt.since_ms, debt.reasons) == ("debt", "alarm", WINDOW_MS, ("distribution",))
    assert (debt.window.rows, debt.psi, debt.severity) == (0, None, 0)
    page(found)
    assert "alarm" in next(line for line in report_lines(found) if "debt" in line)


def test_an_alarm_of_items_is_told_when_nothing_flows_any_more(random):
    def tokens(most):
        return random.integers(0, most, (2000, 4))

    made = monitor_of(reference_of(tokens(20), datatype="INT64", shape=(-1,)))
    made.count(0, {KEY: tokens(40)}, 2000)
    made.tick(WINDOW_MS)
    before = {one.feature for one in report(made, WINDOW_MS).features if one.state == "alarm"}
    assert before
    assert {one.feature for one in report(made, 40 * WINDOW_MS).features} == before


def test_both_sides_of_a_feature(monitor, random):
    worst = report(monitor, 2 * WINDOW_MS).features[0]
    assert worst.reference.mean == pytest.approx(0, abs=0.1)
    assert worst.window.mean == pytest.approx(1, abs=0.1)
    assert worst.window.quantiles[2] == pytest.approx(1, abs=0.15)
    assert worst.reference.deviation == pytest.approx(1, rel=0.1)
    for side in ("reference", "window"):
        assert sum(getattr(one, side) for one in worst.histogram) == pytest.approx(1)
    assert worst.histogram[0].low is None
    assert worst.histogram[-1].high is None
    assert [one.high for one in worst.histogram[:-1]] == [one.low for one in worst.histogram[1:]]


def test_it_is_json_with_a_schema(monitor):
    found = report(monitor, 2 * WINDOW_MS)
    assert DriftReport.model_validate_json(found.model_dump_json()) == found
    schema = DriftReport.model_json_schema()
    parts = [schema, *schema["$defs"].values()]
    assert all("description" in field for part in parts for field in part["properties"].values())


def test_rows_that_are_too_few_are_not_told(random):
    monitor = monitor_of(reference_of(normal(random, 500)))
    monitor.count(0, {KEY: np.full((9, 3), 123.456)}, 9)
    window = report(monitor, 0).features[0].window
    assert (window.rows, window.mean, window.quantiles) == (9, None, None)


def test_without_a_reference_there_are_no_scores(random):
    monitor = Monitor("m", "1", [watch()], AlarmSettings(WINDOW_MS, 4), SALT)
    monitor.count(0, {KEY: normal(random, 600)}, 600)
    found = report(monitor, 0)
    assert (found.state, found.unjudged, found.reference) == ("not judged", "there is no reference", None)
    assert {one.state for one in found.features} == {"not judged"}
    assert [one.psi for one in found.features] == [None] * 3
    assert found.features[0].reference is None
    assert found.features[0].histogram[0].reference is None
    assert "Nothing was judged: there is no reference." in page(found)
    assert "histogram, window" in page(found)


def test_nothing_seen_is_an_empty_report(random):
    found = report(monitor_of(reference_of(normal(random, 500))), 0)
    assert (found.state, found.features, found.span.rows_sampled) == ("not judged", (), 0)
    assert found.unjudged == "0 rows to judge, expected at least 200 (drift.min_rows)"
    assert "Nothing was judged: 0 rows to judge" in page(found)


def test_a_window_is_judged_when_it_is_over(random):
    monitor = monitor_of(reference_of(normal(random, 5000)))
    monitor.count(0, {KEY: normal(random, 250)}, 250)
    found = report(monitor, 10)
    assert (found.state, found.features[0].state, found.features[0].psi is None) == ("not judged", "not judged", False)
    monitor.tick(WINDOW_MS)
    found = report(monitor, WINDOW_MS + 10)
    assert (found.state, found.unjudged, found.features[0].state) == ("quiet", "", "quiet")
    assert "No alarm in 3 features" in page(found)
    long_after = report(monitor, 1000 * WINDOW_MS)
    assert (long_after.state, long_after.features) == ("not judged", ())


def test_an_alarm_stays_an_alarm_where_too_little_has_come_since(monitor):
    monitor.count(100 * WINDOW_MS, {KEY: np.zeros((10, 3))}, 10)
    monitor.tick(101 * WINDOW_MS)
    found = report(monitor, 101 * WINDOW_MS)
    assert (found.state, found.unjudged) == ("alarm", "")
    assert {one.feature: one.state for one in found.features}["income"] == "not judged"


def test_what_the_reference_knows_nothing_of_is_not_judged(random):
    reference = reference_of(normal(random, 5000))
    watches = [reference.tensors[KEY][0].watch, watch(name="y")]
    monitor = Monitor("m", "1", watches, AlarmSettings(WINDOW_MS, 16), SALT, reference)
    monitor.count(0, {KEY: normal(random, 100), "inputs.y": normal(random, 900)}, 900)
    monitor.tick(WINDOW_MS)
    assert monitor.latest == []  # 100 rows are too few, whatever there is of another tensor
    assert report(monitor, WINDOW_MS).unjudged == "100 rows to judge, expected at least 200 (drift.min_rows)"
    monitor.count(WINDOW_MS, {KEY: normal(random, 200), "inputs.y": normal(random, 900)}, 900)
    monitor.tick(2 * WINDOW_MS)
    found = report(monitor, 2 * WINDOW_MS)
    assert (found.state, {one.tensor: one.state for one in found.features}) == (
        "quiet", {"x": "quiet", "y": "not judged"}
    )  # fmt: skip
    assert page(found).count("not judged") == 3


def classes(random, rows, share):
    return (random.random((rows, 1)) < share).astype(np.int64)


def test_items_are_named_by_labels_or_as_hashes(random):
    options = {"datatype": "INT64", "output": True, "labels": ("no", "yes")}
    monitor = monitor_of(reference_of(classes(random, 2000, 0.3), **options))
    monitor.count(0, {"outputs.x": np.vstack([classes(random, 500, 0.6), [[7]] * 20])}, 520)
    monitor.tick(WINDOW_MS)
    (found,) = report(monitor, 0).features
    assert (found.direction, found.feature, found.state) == ("outputs", "class", "alarm")
    assert {one.label for one in found.histogram} == {"no", "yes", "all other known", "unseen"}
    assert found.reasons == ("distribution", "unseen")
    assert found.window.unseen == pytest.approx(20 / 520)
    assert found.window.distinct == pytest.approx(3, abs=0.1)
    assert found.ks is None

    ids = np.array([[2**64 - 1], [1]] * 500, np.uint64)
    monitor = monitor_of(reference_of(ids, datatype="UINT64", kind="tokens"))
    monitor.count(0, {KEY: ids}, len(ids))
    (tokens,) = (one for one in report(monitor, 0).features if one.feature == "tokens")
    assert {one.label for one in tokens.histogram[:-2]} == {"18446744073709551615", "1"}

    names = np.array([[b"anna"], [b"bob"]] * 500, object)
    monitor = monitor_of(reference_of(names, datatype="BYTES"))
    monitor.count(0, {KEY: names}, len(names))
    (text,) = (one for one in report(monitor, 0).features if one.feature == "text")
    assert all(re.fullmatch("#[0-9a-f]{16}", one.label) for one in text.histogram[:-2])


def test_the_page_needs_no_other_file_and_shows_the_worst_first(monitor):
    text = page(report(monitor, 2 * WINDOW_MS))
    assert sum(tag == "svg" for tag, _ in tags_of(text)) == 6
    order = [text.index(name) for name in ("debt", "income")]
    assert order == sorted(order)
    assert "1 of 3 features have an alarm" in text
    assert "3,000 of 12,000 rows were counted; 9,000 were skipped" in text


def test_names_from_outside_are_text_on_the_page(monitor):
    text = page(report(monitor, 2 * WINDOW_MS))
    assert "&lt;b&gt;age&lt;/b&gt;" in text
    assert "<b>age" not in text


def test_areas_of_a_histogram_are_shares(monitor):
    worst = report(monitor, 2 * WINDOW_MS).features[0]
    pictures = pictures_of(page(report(monitor, 2 * WINDOW_MS)))[:2]
    for side, picture in zip(("reference", "window"), pictures, strict=True):
        bars = [node for node in picture if node.tag == "rect"]
        areas = np.array([(float(bar.get("width")) + 0.5) * float(bar.get("height")) for bar in bars])
        shares = np.array([getattr(one, side) for one in worst.histogram])
        assert len(bars) == len(shares)
        np.testing.assert_allclose(areas / areas.sum(), shares, atol=0.02)


def columns(text):
    header, *rows = csv.reader(io.StringIO(text))
    return {name: [row[at] for row in rows] for at, name in enumerate(header)}


def test_findings_are_gone_through_once_however_many_features_there_are(monitor):
    class Once(list):
        times = 0

        def __iter__(self):
            self.times += 1
            return super().__iter__()

    monitor.latest = Once(monitor.latest)
    assert all(one.tests for one in report(monitor, 2 * WINDOW_MS).features)
    assert monitor.latest.times == 1


def test_tables_have_the_distributions_and_no_rows_of_anybodys(monitor):
    reference, window = (columns(text) for text in tables(report(monitor, 2 * WINDOW_MS)))
    assert set(reference) == set(window) == {f"{KEY}.{name}" for name in NAMES}
    before, now = (np.array(side[f"{KEY}.debt"], float) for side in (reference, window))
    assert (len(before), len(now)) == (MOST_ROWS, 3000)
    assert np.mean(before) == pytest.approx(0, abs=0.1)
    assert np.mean(now) == pytest.approx(1, abs=0.1)
    assert np.std(before) == pytest.approx(1, rel=0.15)
    assert abs(np.corrcoef(now, np.array(window[f"{KEY}.income"], float))[0, 1]) < 0.1


def test_a_column_of_gaps_alone_leaves_the_other_columns_their_rows(random):
    monitor = monitor_of(reference_of(normal(random, 1000)))
    lost = normal(random, 500)
    lost[:, 1] = np.nan
    monitor.count(0, {KEY: lost}, len(lost))
    _, window = tables(report(monitor, 0))
    assert {name: len(list(filter(None, values))) for name, values in columns(window).items()} == {
        f"{KEY}.0": 500, f"{KEY}.1": 0, f"{KEY}.2": 500,
    }  # fmt: skip


def test_tables_keep_what_tells_large_numbers_apart(random):
    seconds = 1_764_000_000 + 600 * normal(random, 2000)
    monitor = monitor_of(reference_of(seconds, datatype="FP64"))
    monitor.count(0, {KEY: seconds}, len(seconds))
    reference, _ = tables(report(monitor, 0))
    assert np.std(np.array(columns(reference)[f"{KEY}.0"], float)) == pytest.approx(600, rel=0.15)


def test_tables_have_missing_values_and_items(random):
    options = {"datatype": "INT64", "output": True, "labels": ("no", "yes")}
    monitor = monitor_of(reference_of(classes(random, 2000, 0.3), **options))
    monitor.count(0, {"outputs.x": classes(random, 500, 0.6)}, 500)
    _, window = tables(report(monitor, 0))
    values = columns(window)["outputs.x.class"]
    assert len(values) == 500
    assert values.count("yes") == pytest.approx(300, abs=50)

    lost = normal(random, 1000)
    lost[::4, 1] = np.nan
    monitor = monitor_of(reference_of(lost))
    monitor.count(0, {KEY: lost}, len(lost))
    reference, _ = tables(report(monitor, 0))
    assert columns(reference)[f"{KEY}.1"].count("") == pytest.approx(250, rel=0.3)
