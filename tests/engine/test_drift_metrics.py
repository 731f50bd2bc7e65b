from types import SimpleNamespace

from prometheus_client import CollectorRegistry, generate_latest

from headrace.drift.report import Statistics
from headrace.engine.drift_metrics import DriftMetrics, brief


def monitoring(**models):
    return SimpleNamespace(models={(name, "1"): model for name, model in models.items()})


def watched(*features):
    latest = SimpleNamespace(features=features) if features else None
    return SimpleNamespace(watched=SimpleNamespace(looked_at=30, skipped=20, failed=1), latest=latest)


def feature(name, state="quiet", window=None, **scores):
    none = dict.fromkeys(("psi_noise", "psi", "ks", "js", "tv", "wasserstein"))
    window = window or Statistics(rows=30)
    return SimpleNamespace(
        tensor="x", direction="inputs", feature=name, state=state, window=window, **{**none, **scores}
    )


def test_a_page_is_told_one_score_of_each_feature_and_whether_it_alarms():
    found = brief(
        monitoring(m=watched(feature("0", psi=0.1, psi_noise=0.3, ks=0.2), feature("1", "alarm", tv=0.5), feature("2")))
    )
    common = {"model": "m", "version": "1", "tensor": "x", "direction": "inputs"}
    assert found == [
        {**common, "feature": "0", "score": "psi", "value": 0.1, "by_chance": 0.3, "state": "quiet"},
        {**common, "feature": "1", "score": "tv", "value": 0.5, "by_chance": None, "state": "alarm"},
    ]


def test_before_the_first_look_there_is_nothing_to_tell():
    assert brief(monitoring(m=watched())) == brief(monitoring()) == []


def test_metrics_have_every_score_and_alarm_and_what_was_looked_at():
    registry = CollectorRegistry()
    registry.register(DriftMetrics(monitoring(m=watched(feature("0", "alarm", psi=0.1, psi_noise=0.3, ks=0.2)))))
    text = generate_latest(registry).decode()
    labels = 'direction="inputs",feature="0",model="m",'
    assert f'headrace_drift_score{{{labels}score="ks",tensor="x",version="1"}} 0.2\n' in text
    assert f'headrace_drift_psi_noise{{{labels}tensor="x",version="1"}} 0.3\n' in text
    assert f'headrace_drift_alarm{{{labels}tensor="x",version="1"}} 1.0\n' in text
    for name, value in (("rows", 30), ("skipped_rows", 20), ("failed_rows", 1)):
        assert f'headrace_drift_{name}_total{{model="m",version="1"}} {value}.0\n' in text
    assert 'score="js"' not in text


def test_metrics_have_the_shares_that_a_feature_can_have():
    registry = CollectorRegistry()
    numbers, items = Statistics(rows=30, missing=0.25, outside=0.125), Statistics(rows=30, unseen=0.5, distinct=3.0)
    registry.register(DriftMetrics(monitoring(m=watched(feature("0", window=numbers), feature("text", window=items)))))
    shown = [
        line for line in generate_latest(registry).decode().splitlines() if line.startswith("headrace_drift_share")
    ]
    labels = 'direction="inputs",feature="{}",model="m",tensor="x",version="1",what="{}"'
    assert shown == [
        f"headrace_drift_share{{{labels.format(*name)}}} {value}"
        for *name, value in (("0", "missing", 0.25), ("0", "outside", 0.125), ("text", "unseen", 0.5))
    ]


def test_a_feature_without_rows_has_an_alarm_and_no_shares():
    registry = CollectorRegistry()
    features = feature("0", "alarm", Statistics(rows=0)), feature("1", "alarm", Statistics(rows=0, missing=1.0))
    registry.register(DriftMetrics(monitoring(m=watched(*features))))
    lines = generate_latest(registry).decode().splitlines()
    assert [line[-3:] for line in lines if line.startswith("headrace_drift_alarm{")] == ["1.0", "1.0"]
    shares = [line for line in lines if line.startswith("headrace_drift_share{")]
    assert len(shares) == 2
    assert all('feature="1"' in line for line in shares)
