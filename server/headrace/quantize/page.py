"""A quantization's report as one HTML file that needs no other: what it cost, what it brought, and how it was made."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from headrace.pages import document, facts
from headrace.quantize.gate import verdict
from headrace.quantize.plots import MOST_LAYERS, STYLE, gate_plot, layer_plot, octets, size_plot, speed_plot

if TYPE_CHECKING:
    from collections.abc import Iterable

    from headrace.quantize.report import Lineage, Report, SpeedPoint


def page(report: Report) -> str:
    """The HTML. Everything that comes from outside is escaped."""
    title = f"Quantization of {report.model}, version {report.source_version}: {report.recipe} for {report.target}"
    body = [*_head(report), _what_it_cost(report)]
    if report.speed:
        body.append(_section("Speed", speed_plot(report.speed), _speeds(report.speed)))
    if report.layers:
        body.append(_layers(report))
    if report.excluded:
        rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(why)}</td></tr>" for name, why in report.excluded)
        body.append(_section("Left in float", f'<table class="reasons">{rows}</table>'))
    body.append(_section("How it was made", facts(_origin(report))))
    return document(title, body, STYLE + ".reasons td { text-align: left; }")


def _head(report: Report) -> list[str]:
    judged = escape(verdict(report.measure, report.gate))
    if report.passed:
        made = f"Version {report.version} was made of version {report.source_version}: the gate holds."
    else:
        made = '<span class="alarm">The gate does not hold: no version was made.</span>'
    lines = [f"<p>{made}</p>", f'<p class="faint">{judged}</p>']
    if not report.measure.labelled:
        lines.append(
            "<p>There were no labels: this is agreement with the source, and says nothing of how often either is "
            "right.</p>"
        )
    return lines + [f'<p class="alarm">{escape(warning)}</p>' for warning in report.warnings]


def _what_it_cost(report: Report) -> str:
    measure = report.measure
    share = report.result_bytes / report.source_bytes if report.source_bytes else 0.0
    named = f"{'by labels' if measure.labelled else 'agreement with the source'}: {measure.metric.replace('_', ' ')}"
    figures = [
        (f"size: {share:.0%} of {octets(report.source_bytes)}", size_plot(report.source_bytes, report.result_bytes)),
        (f"{named}, relative to the source's", gate_plot(measure, report.gate, report.tries)),
    ]
    drawn = "".join(f"<figure><figcaption>{escape(text)}</figcaption>{plot}</figure>" for text, plot in figures)
    tried = [
        f"<tr><td>{count}</td><td>{value:.4f}</td><td>{'holds' if value >= report.gate else 'does not hold'}</td></tr>"
        for count, value in report.tries
    ]
    head = "<tr><th>layers in float</th><th>relative</th><th>gate</th></tr>"
    table = f"<table>{head}{''.join(tried)}</table>" if len(tried) > 1 else ""
    return _section("Size and quality", f'<div class="pair">{drawn}</div>', table, _outputs(report))


def _outputs(report: Report) -> str:
    if not report.outputs:
        return ""
    rows = "".join(f"<tr><th>{escape(one.name)}</th><td>{one.error:.3g}</td></tr>" for one in report.outputs)
    return f"<table><tr><th>output</th><th>relative error, without labels</th></tr>{rows}</table>"


def _speeds(points: Iterable[SpeedPoint]) -> str:
    rows = "".join(
        f"<tr><td>{point.batch}</td><td>{point.source_rows_per_second:,.0f}</td>"
        f"<td>{point.result_rows_per_second:,.0f}</td><td>{point.ratio:.2f}</td>"
        f"<td>{point.low:.2f} to {point.high:.2f}</td></tr>"
        for point in points
    )
    head = "".join(f"<th>{name}</th>" for name in ("batch", "source, rows/s", "result, rows/s", "ratio", "within"))
    told = "Rows a second are medians of a side's own rounds, the ratio is the median of the ratios within a round."
    return f'<table><tr>{head}</tr>{rows}</table><p class="faint">{told}</p>'


def _layers(report: Report) -> str:
    kept = sum(layer.kept_float for layer in report.layers)
    shown = min(MOST_LAYERS, len(report.layers))
    told = (
        "Relative error of the model's outputs where this layer alone is changed, on 16 rows or fewer that are evenly "
        "spaced among those for calibration, or else for evaluation: a rough figure. "
        f"{kept} of {len(report.layers)} layers were left in float, drawn hollow."
        + (f" The {shown} most sensitive ones are shown." if shown < len(report.layers) else "")
    )
    return _section("What each layer costs", f'<p class="faint">{told}</p>', layer_plot(report.layers))


def _origin(report: Report) -> list[tuple[str, str]]:
    lineage: Lineage = report.lineage
    rows = [(name.replace("_", " "), str(value)) for name, value in report.options.items()]
    rows += [("source, SHA-256", lineage.source_sha256), ("result, SHA-256", lineage.result_sha256)]
    for name in ("calibration", "evaluation"):
        digest, count = getattr(lineage, f"{name}_sha256"), getattr(lineage, f"{name}_rows")
        if digest:
            rows.append((f"{name} data, SHA-256 of the arrays", f"{digest} ({count:,} rows)"))
    rows += [(name, version) for name, version in lineage.tools.items()]
    processor = f"{lineage.processor} {' '.join(lineage.processor_flags)}".strip()
    rows += [("processor", processor), ("made", lineage.created)]
    return [(name, value) for name, value in rows if value]


def _section(title: str, *parts: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>"
