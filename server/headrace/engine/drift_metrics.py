"""What /metrics says of drift: scores, alarms, and how much was looked at, as of the last look."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client import Metric

    from headrace.engine.drifting import DriftMonitoring

SCORES = ("psi", "ks", "js", "tv", "wasserstein")
_MODEL = ("model", "version")
_FEATURE = (*_MODEL, "tensor", "direction", "feature")


class DriftMetrics:
    """A collector of prometheus-client."""

    def __init__(self, monitoring: DriftMonitoring) -> None:
        self._monitoring = monitoring

    def __repr__(self) -> str:
        return f"<DriftMetrics of {self._monitoring!r}>"

    def collect(self) -> Iterable[Metric]:
        """The families; none of them if no model is watched."""
        scores = GaugeMetricFamily(
            "headrace_drift_score",
            "How far a feature is from its reference, in this window and the last, by psi, ks, js, tv, wasserstein",
            labels=(*_FEATURE, "score"),
        )  # fmt: skip
        noise = GaugeMetricFamily(
            "headrace_drift_psi_noise",
            "The psi that a feature has on average by chance, at so many rows, where nothing has changed",
            labels=_FEATURE,
        )
        shares = GaugeMetricFamily(
            "headrace_drift_share",
            "Share of a feature's values that are missing or outside, of its items that are unseen, in these windows",
            labels=(*_FEATURE, "what"),
        )  # fmt: skip
        alarms = GaugeMetricFamily(
            "headrace_drift_alarm", "1: the alarm of a feature is on, also while there are no rows", labels=_FEATURE
        )  # fmt: skip
        rows = CounterMetricFamily("headrace_drift_rows", "Rows that were looked at for drift", labels=_MODEL)
        skipped = CounterMetricFamily(
            "headrace_drift_skipped_rows", "Rows that were not, to keep drift.cpu_share", labels=_MODEL
        )
        failed = CounterMetricFamily("headrace_drift_failed_rows", "Rows that could not be counted", labels=_MODEL)
        for model, drift in sorted(self._monitoring.models.items()):
            watched = drift.watched
            rows.add_metric(model, watched.looked_at)
            skipped.add_metric(model, watched.skipped)
            failed.add_metric(model, watched.failed)
            for feature in drift.latest.features if drift.latest is not None else ():
                labels = (*model, feature.tensor, feature.direction, feature.feature)
                alarms.add_metric(labels, feature.state == "alarm")
                for name in SCORES:
                    _add(scores, (*labels, name), getattr(feature, name))
                _add(noise, labels, feature.psi_noise)
                if not (feature.window.rows or feature.window.missing):
                    continue  # nothing has a share of no rows: it is there because its alarm is still on
                of_items = feature.window.distinct is not None
                for what in ("unseen",) if of_items else ("missing", "outside"):
                    shares.add_metric((*labels, what), getattr(feature.window, what))
        return (scores, noise, shares, alarms, rows, skipped, failed) if self._monitoring.models else ()


def brief(monitoring: DriftMonitoring) -> list[dict[str, Any]]:
    """One score of each feature, the first that it has, what of it is chance, and its state: for the server's page."""
    told = []
    for (model, version), drift in sorted(monitoring.models.items()):
        for feature in drift.latest.features if drift.latest is not None else ():
            scores = [(name, getattr(feature, name)) for name in SCORES if getattr(feature, name) is not None]
            if scores:
                name, value = scores[0]
                told.append(
                    {
                        "model": model,
                        "version": version,
                        "tensor": feature.tensor,
                        "direction": feature.direction,
                        "feature": feature.feature,
                        "score": name,
                        "value": value,
                        "by_chance": feature.psi_noise if name == "psi" else None,
                        "state": feature.state,
                    }
                )
    return told


def _add(family: GaugeMetricFamily, labels: tuple[str, ...], value: float | None) -> None:
    if value is not None:
        family.add_metric(labels, value)
