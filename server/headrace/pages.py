"""Pages that need no other file: HTML with pictures in it, readable on dark and on light."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --faint: #6a737d; --line: #d0d7de;
        --before: #57606a; --now: #0969da; --alarm: #b42318; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --paper: #0d1117; --faint: #8b949e; --line: #30363d;
        --before: #9da7b1; --now: #58a6ff; --alarm: #ff7b72; } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
       max-width: 72rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.05rem; margin: 0; }
section { border-top: 1px solid var(--line); padding: 1rem 0; }
.alarm { color: var(--alarm); font-weight: 600; } .faint { color: var(--faint); }
.pair { display: flex; flex-wrap: wrap; gap: 2rem; margin-top: .5rem; }
figure { margin: 0; } figcaption { font-size: .85rem; color: var(--faint); }
svg { max-width: 100%; display: block; } svg text { font: 9px system-ui, sans-serif; fill: var(--faint); }
.before { fill: var(--before); } .now { fill: var(--now); }
table { border-collapse: collapse; font-size: .85rem; } td, th { padding: .1rem .7rem .1rem 0; text-align: right; }
th { font-weight: 400; color: var(--faint); text-align: left; }
"""
"""before, now: the two sides of a comparison."""


def document(title: str, body: Iterable[str], style: str = "") -> str:
    """A whole page with `title` at its top. body: HTML, escaped already. style: CSS beside what all pages have."""
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>{_STYLE}{style}</style></head><body>",
            f"<h1>{escape(title)}</h1>",
            *body,
            "</body></html>\n",
        ]
    )


def picture(width: int, height: int, label: str, parts: Iterable[str]) -> str:
    """An SVG to stand in a page. label: what it shows, for those who hear it. parts: SVG, escaped already."""
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """A table of names and values."""
    lines = (f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows)
    return f"<table>{''.join(lines)}</table>"
