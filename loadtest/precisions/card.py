"""The table of precisions in a model's card, README.md, between two marks."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

BEGIN, END = "<!-- precisions: written by `python -m precisions` -->", "<!-- end -->"
_BLOCK = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
_COLUMNS = {
    "accuracy": ("held-out accuracy", "{:.4f}"),
    "malignant_found": ("malignant found", "{:.4f}"),
    "recall_at_1": ("right paragraph first", "{:.4f}"),
    "mean_reciprocal_rank": ("mean reciprocal rank", "{:.4f}"),
    "cosine_with_fp32": ("cosine with FP32", "{:.4f}"),
    "lines_read": ("lines read to the letter", "{:.4f}"),
    "characters_wrong": ("characters wrong", "{:.4f}"),
}
"""Heading and format of a measure."""
BATCHES = ("1", "8", "64")


def table(precisions: Mapping[str, Mapping[str, Any]]) -> str:
    """In Markdown, of what metrics.json says. Raises KeyError for a measure without a heading."""
    fp32 = precisions["fp32"]
    measures = [name for name in fp32 if name not in ("version", "bytes", "speed")]
    batches = [batch for batch in BATCHES if any(batch in told.get("speed", {}) for told in precisions.values())]
    head = ["", "version", "size", *(_COLUMNS[name][0] for name in measures)]
    head += [f"rows/s, batch of {batch}" for batch in batches]
    lines = [head, ["---"] * len(head)]
    for name, told in precisions.items():
        speed = ["1" if told is fp32 else f"{told['speed'][batch]:.2f}" for batch in batches]
        measured = [_COLUMNS[key][1].format(told[key]) for key in measures]
        lines.append([name.upper(), str(told["version"]), _size(told["bytes"]), *measured, *speed])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"


def with_table(text: str, precisions: Mapping[str, Mapping[str, Any]]) -> str:
    """The card with the table in the place of the one that it has. Raises ValueError if it has no place for it."""
    if not _BLOCK.search(text):
        raise ValueError(f"no place for the table: expected a line {BEGIN} and, below, a line {END}")
    block = f"{BEGIN}\n{table(precisions)}\n{END}"
    return _BLOCK.sub(lambda _: block, text)


def write_table(card: Path, precisions: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes it into the card."""
    card.write_text(with_table(card.read_text(encoding="utf-8"), precisions), encoding="utf-8")
