"""The pictures of a quantization's page, as SVG: size, the gate, speed by batch size, what each layer costs."""

from __future__ import annotations

from html import escape
from math import ceil, floor, log2, log10
from typing import TYPE_CHECKING

from headrace.pages import picture

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from headrace.quantize.report import LayerError, Measure, SpeedPoint

MOST_LAYERS = 60
"""That are drawn; all are in the JSON."""
STYLE = """
svg.wide { width: 40rem; } svg.half { width: 24rem; }
.axis { stroke: var(--line); } .gate { stroke: var(--alarm); stroke-dasharray: 3 2; }
.left { fill: var(--paper); stroke: var(--alarm); stroke-width: 2; }
.line { fill: none; stroke-width: 1.5; } .line.before { fill: none; stroke: var(--before); }
.line.now { fill: none; stroke: var(--now); } svg text.strong { fill: var(--ink); }
svg text.before { fill: var(--before); } svg text.now { fill: var(--now); }
"""
_LEAST_ERROR = 1e-9
"""Where a logarithmic axis ends, for errors of nothing."""


def _place(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """A linear scale from values to coordinates."""
    span = high - low or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> str:
    css = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{css}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _dot(x: float, y: float, kind: str, title: str, radius: float = 4) -> str:
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"><title>{escape(title)}</title></circle>'


def octets(count: int) -> str:
    """A size for people, in powers of 1024."""
    size, units = float(count), ["B", "KiB", "MiB", "GiB"]
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.0f} B" if units[0] == "B" else f"{size:.1f} {units[0]}"


def size_plot(source_bytes: int, result_bytes: int) -> str:
    """Two bars from 0."""
    place = _place(0, max(source_bytes, result_bytes, 1), 0, 190)
    parts = []
    for row, (name, kind, count) in enumerate([("source", "before", source_bytes), ("result", "now", result_bytes)]):
        y = 4 + row * 22
        width = max(0.5, place(count))
        parts.append(_text(0, y + 10, name))
        parts.append(f'<rect class="{kind}" x="44" y="{y}" width="{width:.1f}" height="14"/>')
        parts.append(_text(50 + width, y + 10, octets(count), kind="strong"))
    return _sized("half", picture(320, 48, "size of source and result", parts))


def gate_plot(measure: Measure, gate: float, tries: Sequence[tuple[int, float]]) -> str:
    """The result's measure relative to the source's, its interval, what was tried on the way, and the gate."""
    shown = [1.0, gate, measure.relative, measure.low, measure.high, *(value for _, value in tries)]
    low, high = max(min(shown), -1.0), min(max(shown), 2.0)
    margin = (high - low) * 0.08 or 0.01
    place = _place(low - margin, high + margin, 8, 312)

    def at(value: float) -> float:
        return min(312.0, max(8.0, place(value)))

    parts = [_line(8, 44, 312, 44, "axis")]
    parts += [_line(at(1), 28, at(1), 52, "axis"), _text(at(1), 24, "source", _anchor(at(1)))]
    parts += [_line(at(gate), 14, at(gate), 52, "gate"), _text(at(gate), 10, f"gate {gate:g}", _anchor(at(gate)))]
    parts.append(
        f'<rect class="now" opacity="0.3" x="{at(measure.low):.1f}" y="40" '
        f'width="{max(0.5, at(measure.high) - at(measure.low)):.1f}" height="8"/>'
    )
    parts += [
        _dot(at(value), 44, "before", f"{count} layers in float: {value:.4f}", 2.5)
        for count, value in tries
        if value != measure.relative
    ]
    held = measure.relative >= gate
    parts.append(_dot(at(measure.relative), 44, "now" if held else "left", f"result: {measure.relative:.4f}", 5))
    parts.append(
        _text(at(measure.relative), 64, f"{measure.relative:.4f}", _anchor(at(measure.relative)), kind="strong")
    )
    return _sized("half", picture(320, 68, "what the result reaches of the source, and the gate", parts))


def _anchor(x: float) -> str:
    """Of a text at x, which must not leave the picture."""
    return "start" if x < 60 else "end" if x > 260 else "middle"


def speed_plot(points: Sequence[SpeedPoint]) -> str:
    """Rows a second over the batch size, on a logarithmic axis; the ratio is written above both."""
    most = max(max(point.source_rows_per_second, point.result_rows_per_second) for point in points)
    first, last = log2(points[0].batch), log2(points[-1].batch)
    across, up = _place(first, last, 60, 470) if last > first else (lambda _: 265.0), _place(0, most * 1.1, 150, 8)
    parts = []
    for value in _ticks(most):
        parts += [_line(46, up(value), 510, up(value), "axis"), _text(42, up(value) + 3, f"{value:,.6g}", "end")]
    parts += [_text(across(log2(point.batch)), 162, str(point.batch), "middle") for point in points]
    parts.append(_text(265, 175, "rows in a batch; rows/s on one thread", "middle"))
    for name, kind in (("source", "before"), ("result", "now")):
        rates = [getattr(point, f"{name}_rows_per_second") for point in points]
        places = [(across(log2(point.batch)), up(rate)) for point, rate in zip(points, rates, strict=True)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline class="line {kind}" points="{path}"/>')
        parts.append(_text(places[-1][0] + 8, places[-1][1] + 3, name, kind=kind))
        parts += [
            _dot(x, y, kind, f"{name}, batch of {point.batch}: {rate:,.0f} rows/s", 3)
            for (x, y), point, rate in zip(places, points, rates, strict=True)
        ]
    parts += [
        _text(
            across(log2(point.batch)),
            up(max(point.source_rows_per_second, point.result_rows_per_second)) - 6,
            f"{point.ratio:.2f}x",
            "middle",
            "strong",
        )
        for point in points
    ]
    return _sized("wide", picture(520, 180, "rows a second by batch size, source and result", parts))


def _ticks(most: float) -> list[float]:
    """A few round numbers from 0 to `most`."""
    if most <= 0:
        return [0.0]
    step = 10 ** floor(log10(most))
    step = next(part * step for part in (0.2, 0.5, 1, 2) if most / (part * step) <= 5)
    return [step * at for at in range(int(most / step) + 1)]


def layer_plot(layers: Sequence[LayerError]) -> str:
    """The most sensitive layers first; those that were left in float are hollow. Errors on a logarithmic axis."""
    ordered = sorted(layers, key=lambda layer: -layer.error)[:MOST_LAYERS]
    errors = [max(_LEAST_ERROR, layer.error) for layer in ordered]
    low, high = floor(log10(min(errors))), max(ceil(log10(max(errors))), floor(log10(min(errors))) + 1)
    place, bottom = _place(low, high, 290, 510), len(ordered) * 13 + 4
    parts = []
    for decade in range(low, high + 1, max(1, (high - low) // 5)):
        x = place(decade)
        parts += [_line(x, 0, x, bottom, "axis"), _text(x, bottom + 10, f"{10.0**decade:g}", "middle")]
    for row, (layer, error) in enumerate(zip(ordered, errors, strict=True)):
        y, told = row * 13 + 9, f"{layer.name} ({layer.op_type}): {layer.error:.3g}"
        parts.append(_line(290, y, place(log10(error)), y, "axis"))
        parts.append(_text(0, y + 3, f"{_shortened(layer.name)} ({layer.op_type})"))
        kind, told = ("left", f"{told}, left in float") if layer.kept_float else ("now", told)
        parts.append(_dot(place(log10(error)), y, kind, told))
    return _sized("wide", picture(520, bottom + 14, "the error that each layer brings", parts))


def _shortened(name: str, most: int = 48) -> str:
    """The end of a name is what tells it from others."""
    return name if len(name) <= most else f"…{name[1 - most :]}"


def _sized(kind: str, svg: str) -> str:
    return svg.replace("<svg ", f'<svg class="{kind}" ', 1)
