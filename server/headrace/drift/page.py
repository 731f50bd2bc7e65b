"""A report as one HTML file that needs no other: the two histograms of each feature side by side, the worst first."""

from __future__ import annotations

from datetime import UTC, datetime
from html import escape
from typing import TYPE_CHECKING

from headrace.pages import document, facts, picture

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.drift.report import Bin, DriftReport, FeatureReport, Statistics

_WIDTH, _HEIGHT = 320, 120
_ITEMS = 24  # items that are drawn; the others are in the JSON
_STYLE = "svg { width: 20rem; }"


def page(report: DriftReport) -> str:
    """The HTML. Everything that comes from outside is escaped."""
    title = f"Drift of {report.model}, version {report.version}"
    return document(title, [*_head(report), *(_section(feature) for feature in report.features)], _STYLE)


def _head(report: DriftReport) -> list[str]:
    span = report.span
    on = sum(feature.state == "alarm" for feature in report.features)
    state = {
        "alarm": f'<span class="alarm">{on} of {len(report.features)} features have an alarm</span>',
        "quiet": f"No alarm in {len(report.features)} features",
        "no reference": "There is no reference to hold this against",
    }[report.state]
    skipped = span.rows_offered - span.rows_sampled
    seen = (
        f"{_time(span.start_ms)} to {_time(span.end_ms)} UTC, {span.windows} windows of {span.window_ms / 1000:g} s. "
        f"{span.rows_sampled:,} of {span.rows_offered:,} rows were counted; {max(0, skipped):,} were skipped to keep "
        "the budget."
    )
    lines = [f"<p>{state}.</p>", f'<p class="faint">{seen}</p>']
    if report.reference is not None:
        lines.append(
            f'<p class="faint">Reference: {report.reference_rows:,} rows of {escape(report.reference)}. Where nothing '
            f"changes, an alarm is to be expected once in {report.quiet_days:g} days at most.</p>"
        )
    return lines


def _section(feature: FeatureReport) -> str:
    name = f"{feature.direction[:-1]} {feature.tensor}: {feature.feature}"
    alarm = ""
    if feature.state == "alarm" and feature.since_ms is not None:
        reasons = escape(", ".join(feature.reasons))
        alarm = f' <span class="alarm">alarm since {_time(feature.since_ms)} UTC: {reasons}</span>'
    figures = []
    if feature.reference is not None:
        figures.append(_figure(feature, "reference", feature.reference))
    figures.append(_figure(feature, "window", feature.window))
    return (
        f'<section><h2>{escape(name)} <span class="faint">({escape(feature.kind)})</span>{alarm}</h2>'
        f'<p class="faint">{_scores(feature)}</p><div class="pair">{"".join(figures)}</div></section>'
    )


def _scores(feature: FeatureReport) -> str:
    noise = "" if feature.psi_noise is None else f" (by chance {feature.psi_noise:.3f})"
    shown = [
        None if feature.psi is None else f"PSI {feature.psi:.3f}{noise}",
        None if feature.ks is None else f"Kolmogorov-Smirnov {feature.ks:.3f}",
        None if feature.js is None else f"Jensen-Shannon {feature.js:.3f}",
        None if feature.wasserstein is None else f"Wasserstein {feature.wasserstein:.3f} deviations",
    ]
    tests = [f"{test.what}: p = {test.p_value:.2g}, effect {test.effect:.3f}" for test in feature.tests]
    return escape(" · ".join([part for part in shown if part is not None] + tests))


def _figure(feature: FeatureReport, side: str, statistics: Statistics) -> str:
    bins = feature.histogram
    numeric = bool(bins) and not bins[0].label
    drawn = _density(bins, side, _range(feature)) if numeric else _bars(bins, side)
    return (
        f"<figure><figcaption>{side}: {statistics.rows:,} rows</figcaption>{drawn}{facts(_facts(statistics))}</figure>"
    )


def _facts(statistics: Statistics) -> list[tuple[str, str]]:
    told: list[tuple[str, str]] = []
    if statistics.mean is not None and statistics.deviation is not None:
        told.append(("mean ± deviation", f"{statistics.mean:.5g} ± {statistics.deviation:.4g}"))
    if statistics.quantiles is not None:
        told.append(("5, 25, 50, 75, 95 %", ", ".join(f"{value:.4g}" for value in statistics.quantiles)))
    if statistics.distinct is not None:
        told.append(("different items", f"about {statistics.distinct:,.0f}"))
    for name in ("missing", "outside", "unseen"):
        share = getattr(statistics, name)
        if share:
            told.append((name, f"{share:.2%}"))
    return told


def _range(feature: FeatureReport) -> tuple[float, float]:
    """What both pictures show: all edges, and as much again of the outermost bins on either side."""
    inner = [one.low for one in feature.histogram if one.low is not None]
    sides = [one for one in (feature.reference, feature.window) if one is not None]
    inner += [value for one in sides for value in one.quantiles or ()]
    if not inner:
        return -1.0, 1.0
    low, high = min(inner), max(inner)
    margin = (high - low) * 0.08 or abs(low) * 0.1 or 1.0
    return low - margin, high + margin


def _density(bins: Sequence[Bin], side: str, bounds: tuple[float, float]) -> str:
    """Areas are shares: both sides are drawn to the same scale."""
    low, high = bounds
    ends = [(one.low if one.low is not None else low, one.high if one.high is not None else high) for one in bins]
    widths = [max(right - left, (high - low) / 400) for left, right in ends]
    tallest = max(
        (max(one.window, one.reference or 0.0) / width for one, width in zip(bins, widths, strict=True)), default=1.0
    )
    parts = []
    for one, (left, _), width in zip(bins, ends, widths, strict=True):
        share = one.window if side == "window" else (one.reference or 0.0)
        x, w = ((left - low) / (high - low) * _WIDTH, width / (high - low) * _WIDTH)
        h = share / width / (tallest or 1.0) * (_HEIGHT - 4)
        style = "now" if side == "window" else "before"
        title = f"<title>{left:.4g} to {left + width:.4g}: {share:.2%}</title>"
        parts.append(
            f'<rect class="{style}" x="{x:.1f}" y="{_HEIGHT - h:.1f}" width="{max(0.5, w - 0.5):.1f}" '
            f'height="{h:.1f}">{title}</rect>'
        )
    axis = (
        f'<text x="0" y="{_HEIGHT + 11}">{low:.4g}</text>'
        f'<text x="{_WIDTH}" y="{_HEIGHT + 11}" text-anchor="end">{high:.4g}</text>'
    )
    return _svg(_HEIGHT + 14, side, [*parts, axis])


def _bars(bins: Sequence[Bin], side: str) -> str:
    order = sorted(range(len(bins)), key=lambda at: -max(bins[at].window, bins[at].reference or 0.0))[:_ITEMS]
    longest = max((max(bins[at].window, bins[at].reference or 0.0) for at in order), default=0.0) or 1.0
    parts = []
    for line, at in enumerate(sorted(order)):
        share = bins[at].window if side == "window" else (bins[at].reference or 0.0)
        style = "now" if side == "window" else "before"
        parts.append(
            f'<text x="0" y="{line * 12 + 9}">{escape(bins[at].label[:22])}</text>'
            f'<rect class="{style}" x="120" y="{line * 12 + 1}" width="{share / longest * 160:.1f}" height="9"/>'
            f'<text x="{124 + share / longest * 160:.1f}" y="{line * 12 + 9}">{share:.1%}</text>'
        )
    return _svg(len(order) * 12 + 2, side, parts)


def _svg(height: int, side: str, parts: Sequence[str]) -> str:
    return picture(_WIDTH, height, f"histogram, {side}", parts)


def _time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")
