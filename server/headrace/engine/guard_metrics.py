"""What /metrics says of guards: how versions compare with those that are trusted, and what was done about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from headrace.engine.guard_worker import SKIPS
from headrace.guard.report import margins_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client import Metric

    from headrace.engine.guarding import Guards
    from headrace.guard.record import Snapshot

_MODEL = ("model", "version")


class GuardMetrics:
    """A collector of prometheus-client."""

    def __init__(self, guards: Guards) -> None:
        self._guards = guards

    def __repr__(self) -> str:
        return f"<GuardMetrics of {self._guards!r}>"

    def collect(self) -> Iterable[Metric]:
        """The families; none of them if no version is guarded."""
        if not self._guards.models:
            return ()
        estimates = _Estimates()
        alarms = _gauge("alarm", "1: a version is proved not to keep the limits of its guard")
        moved = _gauge("fallen_back_state", "1: requests that do not ask for the version by its number find another")
        blind = _gauge("blind_state", "1: the guard has lost its reference, and sees nothing")
        compared = _counter("requests", "Requests that were run on the reference too, and compared")
        skipped = _counter("skipped_requests", "Requests that were sampled and not compared, by reason", "reason")
        failed = _counter("failed_requests", "Requests on which the reference failed")
        strange = _counter("nonfinite_elements", "Elements not finite, and not the same in the reference")
        spent = _counter("cpu_seconds", "Processor time of the guard")
        for model, guard in sorted(self._guards.models.items()):
            worker, state = guard.worker, self._guards.state(model[0], guard)
            estimates.add(model, worker.snapshot, worker.settings.limit)
            alarms.add_metric(model, guard.proof is not None)
            moved.add_metric(model, state == "fallen_back")
            blind.add_metric(model, worker.blind)
            compared.add_metric(model, worker.snapshot.overall.requests)
            failed.add_metric(model, worker.failed)
            strange.add_metric(model, worker.snapshot.strange)
            spent.add_metric(model, worker.cpu_ns / 1e9)
            for reason in SKIPS:
                skipped.add_metric((*model, reason), worker.skipped[reason])
        return (*estimates.families(), alarms, moved, blind, compared, skipped, failed, strange, spent)


def brief(guards: Guards) -> list[dict[str, Any]]:
    """What is known of each guarded version: for the page of the server."""
    return [
        {
            "model": model,
            "version": version,
            "reference": str(guard.config.reference),
            "state": guards.state(model, guard),
            "requests": guard.worker.snapshot.overall.requests,
            "agreement": guard.worker.snapshot.overall.mean_agreement,
            "limit": guard.config.limit,
        }
        for (model, version), guard in sorted(guards.models.items())
    ]


class _Estimates:
    """What was found out about each version."""

    def __init__(self) -> None:
        self._agreement = _gauge("agreement", "Mean agreement of requests, and its bounds: mean, lower, upper", "bound")
        self._limit = _gauge("agreement_limit", "The limit of that mean")
        self._recent = _gauge("agreement_recent", "Mean agreement of the last 128 to 255 requests")
        self._error = _gauge("error", "Mean error of requests, 0 to 1, and its bounds: mean, lower, upper", "bound")
        self._absolute = _gauge("absolute_error", "Absolute difference of finite elements: mean, max", "statistic")
        self._rows = _gauge("margin_rows", "Rows by the margin of the reference, from `low` on", "low")
        self._misses = _gauge("margin_disagreement", "Share of them that have another class", "low")

    def add(self, model: tuple[str, str], snapshot: Snapshot, limit: float) -> None:
        overall = snapshot.overall
        self._limit.add_metric(model, limit)
        if overall.mean_agreement is None or overall.mean_error is None:
            return
        for family, mean, bounds in (
            (self._agreement, overall.mean_agreement, overall.agreement_bounds()),
            (self._error, overall.mean_error, overall.error_bounds()),
        ):
            for name, value in zip(("mean", "lower", "upper"), (mean, *bounds), strict=True):
                family.add_metric((*model, name), value)
        self._recent.add_metric(model, snapshot.recent.mean_agreement or 0.0)
        if snapshot.absolute is not None and snapshot.largest is not None:
            self._absolute.add_metric((*model, "mean"), snapshot.absolute)
            self._absolute.add_metric((*model, "max"), snapshot.largest)
        for one in margins_of(snapshot):
            self._rows.add_metric((*model, f"{one.low:g}"), one.rows)
            if one.disagreement is not None:
                self._misses.add_metric((*model, f"{one.low:g}"), one.disagreement)

    def families(self) -> tuple[Metric, ...]:
        return (
            self._agreement, self._limit, self._recent, self._error, self._absolute, self._rows, self._misses
        )  # fmt: skip


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"headrace_guard_{name}", text, labels=(*_MODEL, *labels))


def _counter(name: str, text: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"headrace_guard_{name}", text, labels=(*_MODEL, *labels))
