"""What a device did when, by its own clock: spans of lanes, what they share, and a picture of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Sequence

COMPUTE = "compute"
STEPS = ("upload", COMPUTE, "download")
_COLOURS = {"upload": "#4878a8", COMPUTE: "#d88038", "download": "#60a060"}
_WIDTH, _LEFT, _ROW, _TOP, _GAP = 960, 110, 22, 40, 14


class Span(NamedTuple):
    """One step of a batch of a lane, from `start` to `end` in milliseconds."""

    lane: int
    batch: int
    step: str
    start: float
    end: float


def beside_computation(spans: Sequence[Span]) -> float:
    """The share of the time of all copies in which another lane was computing; 0 without copies."""
    computing = [span for span in spans if span.step == COMPUTE]
    copies = [span for span in spans if span.step != COMPUTE]
    whole = sum(copy.end - copy.start for copy in copies)
    shared = sum(_covered(copy, [other for other in computing if other.lane != copy.lane]) for copy in copies)
    return shared / whole if whole else 0.0


def _covered(span: Span, others: Sequence[Span]) -> float:
    """How much of the span lies within any of the others."""
    covered, at = 0.0, span.start
    for other in sorted(others, key=lambda other: other.start):
        start, end = max(other.start, at), min(other.end, span.end)
        if end > start:
            covered, at = covered + end - start, end
    return covered


def svg(title: str, spans: Sequence[Span]) -> str:
    """A picture: a row for each step of each lane, time from left to right. It has a title and needs nothing else."""
    begin, end = min(span.start for span in spans), max(span.end for span in spans)
    scale = (_WIDTH - _LEFT - 20) / max(end - begin, 1e-9)
    lanes = sorted({span.lane for span in spans})
    height = _TOP + len(lanes) * (len(STEPS) * _ROW + _GAP) + 30

    def row(lane: int, step: str) -> int:
        return _TOP + lanes.index(lane) * (len(STEPS) * _ROW + _GAP) + STEPS.index(step) * _ROW

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" font-family="sans-serif"'
        ' font-size="12">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        f'<text x="10" y="20" font-size="14">{escape(title)}</text>',
    ]
    lines += [f'<text x="10" y="{row(lane, step) + 14}">lane {lane} {step}</text>' for lane in lanes for step in STEPS]
    lines += [
        f'<rect x="{_LEFT + (span.start - begin) * scale:.1f}" y="{row(span.lane, span.step)}"'
        f' width="{max((span.end - span.start) * scale, 0.5):.1f}" height="{_ROW - 4}"'
        f' fill="{_COLOURS[span.step]}"><title>batch {span.batch}, {span.step}:'
        f" {span.start - begin:.3f} to {span.end - begin:.3f} ms</title></rect>"
        for span in spans
    ]
    lines += [
        f'<text x="{_LEFT}" y="{height - 10}">0 ms</text>',
        f'<text x="{_WIDTH - 20}" y="{height - 10}" text-anchor="end">{end - begin:.2f} ms</text>',
        "</svg>",
    ]
    return "\n".join(lines) + "\n"
