"""A reference and a report as lines for a terminal."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headrace.drift.reference import Reference
    from headrace.drift.report import DriftReport, Span


def shown(name: str) -> str:
    """A name that is from data, and may hold anything, within one line."""
    return name if name.isprintable() else json.dumps(name)[1:-1]


def windows_text(span: Span) -> str:
    """How many windows, and of which length."""
    return f"{span.windows} window{'' if span.windows == 1 else 's'} of {span.window_ms / 1000:g} s"


def reference_lines(reference: Reference) -> Iterator[str]:
    """What was counted of each feature."""
    for key, (plan, summary) in reference.tensors.items():
        yield f"{key}: {plan.watch.kind}, {summary.rows:,} rows"
        for index, name in enumerate(plan.watch.features):
            moments = summary.moments
            total = max(1, int(moments.count[index] + moments.missing[index]))
            lost = f", {moments.missing[index] / total:.2%} missing" if moments.missing[index] else ""
            if moments.infinite[index]:
                lost += f", {moments.infinite[index]:,} infinite, which mean and deviation leave out"
            values = f"{moments.mean[index]:.5g} ± {moments.deviation[index]:.4g}, {plan.grid.bins_of(index)} bins"
            yield f"  {shown(name)}: {values if moments.count[index] else 'no values'}{lost}"
        if plan.items is not None:
            yield (
                f"  {plan.watch.items}: about {summary.distinct:,.0f} different ones, {len(plan.items.cells)} counted "
                f"one by one, {summary.items[-1] / max(1, summary.items.sum()):.2%} unseen"
            )


def report_lines(report: DriftReport) -> Iterator[str]:
    """A table, the worst first."""
    span = report.span
    if report.of_data:
        of = f"{span.rows_sampled:,} rows of data"
    else:
        of = f"{span.rows_sampled:,} of {span.rows_offered:,} rows, {windows_text(span)}"
    yield f"{report.model} version {report.version}: {report.state}; {of}"
    yield f"{'':6}{'PSI':>9} {'KS':>9} {'JS':>9} {'W1':>9}  feature"
    for one in report.features:
        scores = " ".join(f"{_number(score):>9}" for score in (one.psi, one.ks, one.js, one.wasserstein))
        why = f" ({', '.join(one.reasons)})" if one.reasons else ""
        state = "alarm" if one.state == "alarm" else ""
        yield f"{state:6}{scores}  {one.direction}.{shown(one.tensor)}: {shown(one.feature)}{why}"


def _number(score: float | None) -> str:
    """In at most nine characters."""
    if score is None:
        return "-"
    return f"{score:.3f}" if abs(score) < 1000 else f"{score:.3g}"
