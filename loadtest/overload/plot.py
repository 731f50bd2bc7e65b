"""Pictures of what was answered in time, by what was asked: SVG that stands by itself, on white."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

_COLOURS = ("#0969da", "#8250df", "#bc4c00", "#9a6700", "#57606a")
_WIDTH, _HEIGHT = 760, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 520, 48, 350


class Line(NamedTuple):
    """One server: (asked, answered in time) at each load, as shares of what the model alone can do."""

    name: str
    points: Sequence[tuple[float, float]]


def svg(title: str, lines: Sequence[Line]) -> str:
    """The lines, their names beside their ends, and the line of a server that misses nothing that can be done."""
    most = max(x for line in lines for x, _ in line.points)

    def across(x: float) -> float:
        return _LEFT + x / most * (_RIGHT - _LEFT)

    def up(y: float) -> float:
        return _BOTTOM - y / 1.1 * (_BOTTOM - _TOP)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="24" font-size="14">{escape(title)}</text>',
    ]
    for y in (0, 0.25, 0.5, 0.75, 1):
        parts.append(f'<path d="M{_LEFT} {up(y):.1f}H{_RIGHT}" stroke="#d0d7de"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{up(y) + 4:.1f}" text-anchor="end">{y:.0%}</text>')
    parts += [
        f'<text x="{across(half / 2):.1f}" y="{_BOTTOM + 18}" text-anchor="middle">{half / 2:.0%}</text>'
        for half in range(int(2 * most) + 1)
    ]
    caption = "asked for; both as shares of what the model alone can do on that core"
    parts.append(f'<text x="{(_LEFT + _RIGHT) / 2}" y="{_BOTTOM + 38}" text-anchor="middle">{caption}</text>')
    ideal = f"{across(0):.1f},{up(0):.1f} {across(1):.1f},{up(1):.1f} {across(most):.1f},{up(1):.1f}"
    parts.append(f'<polyline points="{ideal}" fill="none" stroke="#afb8c1" stroke-dasharray="4 4"/>')
    places = _apart([up(line.points[-1][1]) for line in lines])
    for line, colour, place in zip(lines, _COLOURS, places, strict=False):
        path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in line.points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{across(x):.1f}" cy="{up(y):.1f}" r="3" fill="{colour}">'
            f"<title>{escape(line.name)}, {x:.0%} asked: {y:.1%}</title></circle>"
            for x, y in line.points
        ]
        parts.append(f'<text x="{_RIGHT + 10}" y="{place + 4:.1f}" fill="{colour}">{escape(line.name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _apart(places: Sequence[float], least: float = 16) -> list[float]:
    """Heights of texts, moved down where they would lie on one another."""
    moved: dict[int, float] = {}
    last = float("-inf")
    for at in sorted(range(len(places)), key=places.__getitem__):
        last = moved[at] = max(places[at], last + least)
    return [moved[at] for at in range(len(places))]
