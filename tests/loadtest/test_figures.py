import pytest

from compare.figures import Sample, Spread, Target, judge, unsound


def samples(*values, figure="throughput"):
    return [Sample({figure: value}) for value in values]


def test_spread_is_median_and_extremes():
    assert Spread.of([3.0, 1.0, 10.0]) == Spread(median=3.0, low=1.0, high=10.0)
    assert Spread.of([1.0, 2.0]).median == 1.5


@pytest.mark.parametrize(
    ("direction", "ratio", "met"),
    [(">=", 4.5, True), (">=", 4.49, False), (">=", 9.0, True), ("<=", 4.5, True), ("<=", 4.51, False)],
)
def test_a_target_is_met_at_its_bound_and_on_its_side(direction, ratio, met):
    assert Target("throughput", 4.5, direction).met_by(ratio) is met


def test_the_ratio_is_ours_over_the_peers_of_the_medians():
    verdict = judge(Target("throughput", 4.5, ">="), samples(60.0, 50.0, 90.0), samples(10.0, 12.0, 11.0))
    assert verdict.ratio == pytest.approx(60 / 11)
    assert verdict.ratios == pytest.approx((6.0, 50 / 12, 90 / 11))
    assert verdict.ours == Spread(60.0, 50.0, 90.0)
    assert verdict.peer == Spread(11.0, 10.0, 12.0)
    assert (verdict.met, verdict.word, verdict.target) == (True, "met", ">= 4.5x")


def test_one_lucky_round_does_not_meet_a_target():
    verdict = judge(
        Target("p99_us", 0.6, "<="), samples(1, 9, 9, figure="p99_us"), samples(10, 10, 10, figure="p99_us")
    )
    assert verdict.met is False
    assert verdict.word == "MISSED"


def test_a_base_names_the_peers_figure():
    sample = Sample({"rss_peak_mib": 106.0, "rss_warm_mib": 100.0})
    verdict = judge(Target("rss_peak_mib", 1.05, "<=", base="rss_warm_mib"), [sample], [sample])
    assert (verdict.ratio, verdict.met) == (1.06, False)


@pytest.mark.parametrize("who", ["ours", "peer"])
def test_a_figure_that_is_not_to_be_believed_voids_the_verdict_and_is_shown(who):
    sides = {"ours": samples(50.0), "peer": samples(10.0)}
    sides[who][0].problems.append("wrong replies")
    verdict = judge(Target("throughput", 4.5, ">="), sides["ours"], sides["peer"])
    assert (verdict.ratio, verdict.met, verdict.word) == (5.0, None, "void")


def test_a_side_without_figures_voids_the_verdict():
    verdict = judge(Target("throughput", 4.5, ">="), samples(50.0), [])
    assert (verdict.ours, verdict.peer, verdict.ratio, verdict.met) == (Spread(50.0, 50.0, 50.0), None, None, None)


def test_a_peer_at_zero_gives_no_ratio():
    verdict = judge(Target("throughput", 4.5, ">="), samples(50.0), samples(0.0))
    assert (verdict.ratio, verdict.word) == (None, "void")


SOUND = {"requests": 1000, "failed": 0, "replies": 1000, "confirmed": 1000, "refused": 0, "exact": True}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"confirmed": None, "refused": None},
        {"replies": None, "confirmed": 1200, "exact": False},
    ],
)
def test_counts_that_agree(change):
    assert unsound(**(SOUND | change)) == []


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"requests": 0, "replies": 0, "confirmed": 0}, "no request"),
        ({"failed": 1}, "client counted 1 failures"),
        ({"refused": 2}, "server counted 2 failures"),
        ({"replies": 999}, "999 replies"),
        ({"replies": 1001}, "1001 replies"),
        ({"confirmed": 999}, "999 successes"),
        ({"confirmed": 1001}, "1001 successes"),
        ({"replies": None, "confirmed": 999, "exact": False}, "999 successes"),
    ],
)
def test_counts_that_do_not_agree(change, word):
    problems = unsound(**(SOUND | change))
    assert len(problems) == 1
    assert word in problems[0]
