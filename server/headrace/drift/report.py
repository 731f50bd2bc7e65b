"""What is said of a model version's drift: the JSON of `GET /v2/models/M/drift`, and what the page is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from headrace.drift.summary import RANKS, summary_of
from headrace.drift.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from headrace.drift.alarms import Finding, Name
    from headrace.drift.assess import Assessment
    from headrace.drift.monitor import Monitor
    from headrace.drift.plan import Plan
    from headrace.drift.reference import Reference
    from headrace.drift.summary import Summary
    from headrace.drift.windows import Window

LEAST_ROWS = 10
"""Of a feature whose statistics are told: those of fewer rows would be the rows."""
State = Literal["quiet", "alarm", "not judged"]
SHOWN_RANKS = (0.05, 0.25, 0.5, 0.75, 0.95)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Statistics(_Part):
    """Of one feature on one side; null where it has fewer than 10 values. Values are rounded to the grid's steps."""

    rows: int = Field(description="values that were counted")
    mean: float | None = Field(None, description="mean of those that are finite")
    deviation: float | None = Field(None, description="their standard deviation")
    quantiles: tuple[float, ...] | None = Field(None, description="at ranks 0.05, 0.25, 0.5, 0.75, 0.95")
    missing: float = Field(0.0, description="share of NaN among all values")
    infinite: float = Field(0.0, description="share of infinities among the values that were counted")
    outside: float = Field(0.0, description="share of values outside the range that the plan's rows had")
    unseen: float = Field(0.0, description="share of items that the plan's rows did not have")
    distinct: float | None = Field(None, description="estimated number of different items")


class Bin(_Part):
    """One bin of a numeric feature, or one item."""

    label: str = Field(description="an item's name, or hash; empty for a bin of numbers")
    low: float | None = Field(None, description="lower end of a bin of numbers; null: none")
    high: float | None = Field(None, description="its upper end; null: none")
    reference: float | None = Field(None, description="share of the reference in it; null without a reference")
    window: float = Field(description="share of the window in it")


class CheckReport(_Part):
    """One of the questions that are asked of a feature."""

    what: Literal["distribution", "missing", "range", "unseen"] = Field(description="the question")
    p_value: float = Field(
        description="the chance of such a difference where nothing has changed, corrected for all tests"
    )
    effect: float = Field(description="how much of the data has changed, as a share")
    windows: int = Field(description="windows that were looked at together")


class FeatureReport(_Part):
    """One feature of one tensor."""

    tensor: str = Field(description="name of the tensor")
    direction: Literal["inputs", "outputs"] = Field(description="whether it is an input or an output")
    kind: str = Field(description="what its features are, as `kind` in model.toml")
    feature: str = Field(description="name of the feature")
    state: State = Field(
        description="alarm: its alarm is on; not judged: too few rows of its tensor, or the reference has nothing of it"
    )
    since_ms: int | None = Field(None, description="when it was raised, in milliseconds since the epoch")
    reasons: tuple[str, ...] = Field((), description="the tests that raised it")
    severity: float = Field(0.0, description="the largest effect, in multiples of the least that is an alarm")
    psi: float | None = Field(None, description="population stability index")
    psi_noise: float | None = Field(None, description="its mean where nothing has changed, at so many rows")
    ks: float | None = Field(None, description="Kolmogorov-Smirnov distance; null for items")
    js: float | None = Field(None, description="Jensen-Shannon distance, base 2")
    tv: float | None = Field(None, description="total variation")
    wasserstein: float | None = Field(None, description="in standard deviations of the reference; null for items")
    tests: tuple[CheckReport, ...] = Field((), description="of the end of the last window, the strongest of each")
    reference: Statistics | None = Field(None, description="the reference's side")
    window: Statistics = Field(description="the window's side")
    histogram: tuple[Bin, ...] = Field((), description="both sides by the same bins")


class Span(_Part):
    """The time that a report is of."""

    start_ms: int = Field(description="its begin, in milliseconds since the epoch")
    end_ms: int = Field(description="its end")
    windows: int = Field(description="windows in it")
    window_ms: int = Field(description="length of one")
    rows_offered: int = Field(description="rows that flowed by")
    rows_sampled: int = Field(description="rows that were counted; the others were skipped to keep the budget")


class DriftReport(_Part):
    """The drift of one model version, the worst feature first."""

    model: str = Field(description="name of the model")
    version: str = Field(description="its version")
    state: State = Field(description="alarm: of at least one feature; not judged: there was nothing to tell one by")
    unjudged: str = Field("", description="why nothing was judged; empty if something was, or there is an alarm")
    of_data: bool = Field(False, description="the rows are of files: the span says how many, its times mean nothing")
    span: Span = Field(description="the time that it is of")
    reference: str | None = Field(None, description="what the reference was made of")
    reference_rows: int = Field(0, description="rows of the reference")
    quiet_days: float = Field(description="days between false alarms, on average at least")
    level: float = Field(description="corrected p-value from which a difference is an alarm")
    features: tuple[FeatureReport, ...] = Field(description="the worst first")


def report(monitor: Monitor, now_ms: int, windows: int | None = None, *, of_data: bool = False) -> DriftReport:
    """Of the last `windows` windows, the one that is not over among them; by default of all that are kept.

    of_data: what was counted are data, all of it in one window.
    """
    record, settings = monitor.record, monitor.settings
    end = now_ms - now_ms % record.window_ms + record.window_ms
    count = 1 if of_data else min(windows or record.keep, record.keep)
    merged = record.merged(end, count)
    span = Span(
        start_ms=merged.start_ms, end_ms=end, windows=count, window_ms=record.window_ms,
        rows_offered=merged.offered, rows_sampled=merged.sampled,
    )  # fmt: skip
    judged_ms = min(end, max(end - record.window_ms, monitor.judged_ms))
    unjudged = monitor.unjudged(judged_ms)
    features = sorted(_features(monitor, merged, monitor.judged(judged_ms)), key=_worst_first)
    if any(one.state == "alarm" for one in features):
        unjudged = ""  # it stays until something is judged again
    reference = monitor.reference
    return DriftReport(
        model=record.model,
        version=record.version,
        state="not judged" if unjudged else "alarm" if features and features[0].state == "alarm" else "quiet",
        unjudged=unjudged,
        of_data=of_data,
        span=span,
        reference=None if reference is None else reference.source,
        reference_rows=0 if reference is None else reference.rows,
        quiet_days=settings.quiet_days,
        level=settings.level,
        features=tuple(features),
    )


def _worst_first(feature: FeatureReport) -> tuple[bool, float, float, str, str]:
    return feature.state != "alarm", -feature.severity, -(feature.psi or 0.0), feature.tensor, feature.feature


def _features(monitor: Monitor, window: Window, judged: set[str]) -> list[FeatureReport]:
    assessed = {(one.key, one.feature): one for one in monitor.assess(window)}
    findings = _by_feature(monitor.latest)
    found = []
    for key, tally in window.tallies.items():
        plan, now = tally.plan, summary_of(tally)
        before = _reference_of(monitor.reference, key)
        calm: State = "quiet" if key in judged else "not judged"
        for index, name in enumerate(plan.watch.features):
            scores, tests = assessed.get((key, name)), findings.get((key, name), [])
            found.append(_feature(monitor, plan, name, index, scores, tests, before, now, calm))
        if plan.items is not None:
            name = plan.watch.items
            scores, tests = assessed.get((key, name)), findings.get((key, name), [])
            found.append(_feature(monitor, plan, name, None, scores, tests, before, now, calm))
    return [*found, *_without_rows(monitor, window, findings)]


def _by_feature(findings: Iterable[Finding]) -> dict[Name, list[Finding]]:
    found: dict[Name, list[Finding]] = {}
    for one in findings:
        found.setdefault((one.key, one.feature), []).append(one)
    return found


def _without_rows(monitor: Monitor, window: Window, findings: Mapping[Name, list[Finding]]) -> list[FeatureReport]:
    """Of tensors that the window has no rows of, the features whose alarm is on: it stays until it is over."""
    found = []
    for key, name in monitor.alarms.on:
        plan = monitor.record.plans.get(key)
        if key in window.tallies or plan is None:
            continue
        names = plan.watch.features
        index = names.index(name) if name in names else None
        if index is not None or name == plan.watch.items:
            before, nothing = _reference_of(monitor.reference, key), summary_of(Tally(plan))
            tests = findings.get((key, name), [])
            found.append(_feature(monitor, plan, name, index, None, tests, before, nothing, "not judged"))
    return found


def _reference_of(reference: Reference | None, key: str) -> Summary | None:
    return reference.tensors[key][1] if reference is not None and key in reference.tensors else None


def _feature(
    monitor: Monitor,
    plan: Plan,
    name: str,
    index: int | None,
    scores: Assessment | None,
    findings: list[Finding],
    before: Summary | None,
    now: Summary,
    calm: State,
) -> FeatureReport:
    """calm: its state without an alarm."""
    watch = plan.watch
    alarm = monitor.alarms.on.get((watch.key, name))
    least = {test.what: monitor.settings.least(test.what) for test in scores.tests} if scores else {}
    bins = _item_bins(plan, before, now) if index is None else _number_bins(plan, index, before, now)
    return FeatureReport(
        tensor=watch.tensor,
        direction="outputs" if watch.output else "inputs",
        kind=watch.kind,
        feature=name,
        state=calm if alarm is None else "alarm",
        since_ms=None if alarm is None else alarm.since_ms,
        reasons=() if alarm is None else tuple(alarm.what),
        severity=max((test.effect / least[test.what] for test in scores.tests), default=0.0) if scores else 0.0,
        psi=None if scores is None else scores.psi,
        psi_noise=None if scores is None else scores.psi_noise,
        ks=None if scores is None else scores.kolmogorov_smirnov,
        js=None if scores is None else scores.jensen_shannon,
        tv=None if scores is None else scores.total_variation,
        wasserstein=None if scores is None else scores.wasserstein,
        tests=_strongest(findings),
        reference=None if before is None else _statistics(plan, index, before),
        window=_statistics(plan, index, now),
        histogram=bins,
    )


def _strongest(findings: list[Finding]) -> tuple[CheckReport, ...]:
    best: dict[str, Finding] = {}
    for one in findings:
        if one.what not in best or (one.p_value, -one.effect) < (best[one.what].p_value, -best[one.what].effect):
            best[one.what] = one
    return tuple(
        CheckReport(what=one.what, p_value=one.p_value, effect=one.effect, windows=one.windows) for one in best.values()
    )


def _statistics(plan: Plan, index: int | None, side: Summary) -> Statistics:
    if index is None:
        total = max(1, int(side.items.sum()))
        return Statistics(rows=side.item_rows, unseen=float(side.items[-1] / total), distinct=side.distinct)
    moments = side.moments
    count, missing = int(moments.count[index]), int(moments.missing[index])
    shares = {
        "missing": missing / max(1, count + missing),
        "infinite": float(moments.infinite[index] / max(1, count)),
        "outside": float(side.outside[index].sum() / max(1, count)),
    }
    if moments.finite[index] < LEAST_ROWS:
        return Statistics(rows=count, **shares)
    at = [int(np.abs(RANKS - rank).argmin()) for rank in SHOWN_RANKS]
    quantiles = plan.grid.origin[index] + side.quantiles[index, at] * plan.grid.step[index]
    return Statistics(
        rows=count,
        mean=float(moments.mean[index]),
        deviation=float(moments.deviation[index]),
        quantiles=tuple(quantiles.tolist()),
        **shares,
    )


def _number_bins(plan: Plan, index: int, before: Summary | None, now: Summary) -> tuple[Bin, ...]:
    """Its bins, of which the outermost are open."""
    grid = plan.grid
    edges = grid.edges[index][np.isfinite(grid.edges[index])]
    ends = grid.origin[index] + edges.astype(np.float64) * grid.step[index]
    bounds: list[float | None] = [None, *ends.tolist(), None]
    here = now.histogram[index] / max(1, int(now.histogram[index].sum()))
    there = None if before is None else before.histogram[index] / max(1, int(before.histogram[index].sum()))
    return tuple(
        Bin(
            label="", low=bounds[at], high=bounds[at + 1], window=float(here[at]),
            reference=None if there is None else float(there[at]),
        )
        for at in range(len(ends) + 1)
    )  # fmt: skip


def _item_bins(plan: Plan, before: Summary | None, now: Summary) -> tuple[Bin, ...]:
    if plan.items is None:
        return ()
    names = [*(item_name(plan, int(item)) for item in plan.items.cells), "all other known", "unseen"]
    here = now.items / max(1, int(now.items.sum()))
    there = None if before is None else before.items / max(1, int(before.items.sum()))
    return tuple(
        Bin(label=name, window=float(here[at]), reference=None if there is None else float(there[at]))
        for at, name in enumerate(names)
    )


def item_name(plan: Plan, item: int) -> str:
    """A class by its label, a token by its id, anything that is salted by its hash."""
    labels = plan.watch.labels
    if plan.watch.kind == "classes" and 0 <= item < len(labels):
        return labels[item]
    unsigned = item & 0xFFFFFFFFFFFFFFFF
    if plan.watch.salted:
        return f"#{unsigned:016x}"
    return str(unsigned if plan.watch.datatype == "UINT64" else item)
