import json

import pytest

from compare.figures import Sample, Spread, Target
from compare.report import Outcome, document, number, spread, table
from compare.sides import Row, Side


def never(setup):
    raise AssertionError("a report measures nothing")


ROW = Row(
    "tab-h2load",
    "tab, h2load",
    (Side("headrace", never), Side("triton", never)),
    (Target("throughput", 4.5, ">="), Target("cpu_us_per_request", 0.2, "<=")),
)


def outcome(ours, peer, unmeasured=None):
    made = Outcome(ROW, {"headrace": ours, "triton": peer}, unmeasured)
    made.judge()
    return made


def sample(throughput, cpu, *problems, other=0.0):
    return Sample({"throughput": throughput, "cpu_us_per_request": cpu, "other_cpu": other}, list(problems))


@pytest.mark.parametrize(
    ("value", "text"), [(61_234.4, "61,234"), (100.0, "100"), (12.34, "12.3"), (0.456, "0.46"), (0, "0.00")]
)
def test_numbers_are_short(value, text):
    assert number(value) == text


def test_a_spread_is_a_median_with_its_extremes():
    assert spread(Spread(11.0, 10.0, 12.0)) == "11.0 (10.0 to 12.0)"
    assert spread(Spread(11.0, 11.0, 11.0)) == "11.0"
    assert spread(None) == "-"


def test_the_table_has_a_line_for_each_target():
    made = outcome([sample(50_000, 12), sample(60_000, 11)], [sample(10_000, 100), sample(10_000, 40)])
    head, _, first, second = table([made]).splitlines()
    assert head.split() == ["row", "figure", "ours", "peer", "ratio", "target", "verdict"]
    assert "headrace 55,000 (50,000 to 60,000)" in first
    assert "triton 10,000" in first
    assert first.split()[-4:] == ["5.50x", ">=", "4.5x", "met"]
    assert second.split()[-4:] == ["0.16x", "<=", "0.2x", "met"]


def test_what_was_wrong_is_said_once_below_the_table():
    wrong = [sample(50_000, 12, "3 failures"), sample(50_000, 12, "3 failures")]
    text = table([outcome(wrong, [sample(10_000, 100)])])
    assert text.count("tab-h2load: headrace: 3 failures") == 1
    assert text.count("void") == 2


def test_a_row_that_could_not_be_measured_says_why():
    made = outcome([], [], "not measured: the server ended at once")
    assert made.problems == ["not measured: the server ended at once"]
    assert "tab-h2load: not measured: the server ended at once" in table([made])


@pytest.mark.parametrize(("other", "said"), [(0.05, False), (0.37, True)])
def test_a_busy_machine_is_named(other, said):
    made = outcome([sample(50_000, 12, other=other)], [sample(10_000, 100)])
    assert ("others used up to 37% of the machine" in table([made])) is said


def test_the_document_keeps_every_round_and_survives_json():
    made = outcome([sample(50_000, 12), sample(60_000, 11)], [sample(10_000, 100)])
    kept = json.loads(json.dumps(document([made], "2026-01-02T03:04:05+00:00", {"cores": 2}, {"rounds": 2})))
    assert set(kept) == {"date", "machine", "settings", "rows"}
    row = kept["rows"][0]
    assert (row["name"], row["title"], row["problems"]) == ("tab-h2load", "tab, h2load", [])
    assert [s["figures"]["throughput"] for s in row["samples"]["headrace"]] == [50_000, 60_000]
    throughput = row["verdicts"][0]
    assert throughput["ours"] == {"median": 55_000, "low": 50_000, "high": 60_000}
    assert (throughput["ratio"], throughput["target"], throughput["verdict"]) == (5.5, ">= 4.5x", "met")
    assert throughput["ratios"] == [5.0]
