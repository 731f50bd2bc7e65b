"""textline: lines that are drawn, of words that nobody has chosen: summaries in docstrings.

Sizes, colours and noise are random, the font is Pillow's own. There is no lower precision: none was found to pay.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from precisions.subject import Data, Subject
from precisions.texts import documented

if TYPE_CHECKING:
    from pathlib import Path

    from precisions.subject import Array, Run

READ = 100
WIDTH, HEIGHT, CHARACTERS = 512, 48, 30
"""Columns and rows of every line, padded with mid grey as the server pads; characters of a text, at most."""
NOISE = 12
"""Standard deviation, of 255."""


def draw(text: str, rng: np.random.Generator) -> Array | None:
    """FP32 [3,HEIGHT,WIDTH] from -1 to 1; None if the text is wider than that. A fifth is light on dark."""
    size = int(rng.integers(22, 36))
    paper, ink = rng.integers(150, 256, 3), rng.integers(0, 90, 3)
    if rng.random() < 0.2:
        paper, ink = ink, paper
    font = ImageFont.load_default(size)
    width = int(font.getlength(text)) + 14
    if width > WIDTH:
        return None
    image = Image.new("RGB", (width, HEIGHT), tuple(map(int, paper)))
    ImageDraw.Draw(image).text((7, (HEIGHT - 1.2 * size) / 2), text, fill=tuple(map(int, ink)), font=font)
    pixels = np.asarray(image, np.float64) + rng.normal(0, NOISE, (HEIGHT, width, 3))
    line = np.zeros((3, HEIGHT, WIDTH), np.float32)
    line[:, :, :width] = (pixels.clip(0, 255) / 127.5 - 1).transpose(2, 0, 1)
    return line


def drawn(package: str, count: int, seed: int) -> tuple[Array, list[str]]:
    """So many lines, and what stands in them."""
    rng = np.random.default_rng(seed)
    lines: dict[str, Array] = {}
    for summary, _ in documented(package):
        text = summary[:CHARACTERS].strip()
        if summary.isascii() and text not in lines and (line := draw(text, rng)) is not None:
            lines[text] = line
        if len(lines) == count:
            break
    return np.array(list(lines.values())), list(lines)


def read(probabilities: Array, characters: list[str]) -> str:
    """The text of [columns, characters], by connectionist temporal classification, greedily."""
    best = probabilities.argmax(axis=1)
    counts = (best != 0) & np.append(True, best[1:] != best[:-1])
    return "".join(characters[index] for index in best[counts]).strip()


def distance(one: str, other: str) -> int:
    """Characters to insert, delete or replace to make one text the other (Levenshtein 1966)."""
    before = list(range(len(other) + 1))
    for row, letter in enumerate(one, 1):
        now = [row]
        for column, against in enumerate(other, 1):
            now.append(min(before[column] + 1, now[-1] + 1, before[column - 1] + (letter != against)))
        before = now
    return before[-1]


def _data(directory: Path) -> Data:
    characters = json.loads((directory / "characters.json").read_text(encoding="utf-8"))["characters"]
    lines, texts = drawn("sklearn", READ, seed=2)

    def measure(run: Run, reference: Run) -> dict[str, float]:
        found = [read(one, characters) for at in range(0, len(lines), 10) for one in run({"x": lines[at : at + 10]})[0]]
        wrong = sum(distance(text, one) for text, one in zip(texts, found, strict=True))
        return {
            "lines_read": float(np.mean([text == one for text, one in zip(texts, found, strict=True)])),
            "characters_wrong": wrong / sum(map(len, texts)),
        }

    return Data({}, {"x": lines}, "", measure)


TEXTLINE = Subject("textline", (), _data, rows=4)
