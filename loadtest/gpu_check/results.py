"""What came of each check, and the file that keeps it."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from gpu_check.registry import Figures

PASS, FAIL, SKIP = "PASS", "FAIL", "SKIP"
SHOWN = 200
"""Characters of a figure that are printed."""


@dataclass(frozen=True)
class Outcome:
    """status: PASS, FAIL or SKIP. reason: why not PASS. seconds: that it took. output: of a process that failed."""

    name: str
    status: str
    reason: str = ""
    figures: Figures = field(default_factory=dict)
    seconds: float = 0
    output: str = ""

    def document(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    def __str__(self) -> str:
        """A line, and one for each figure."""
        reason = f": {self.reason[:2000]}" if self.reason else ""
        figures = "".join(f"\n    {name} = {_shown(value)}" for name, value in self.figures.items())
        return f"{self.status} {self.name}{reason} ({self.seconds:.1f} s){figures}"


def _shown(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..., all of it in the result"


def file_name(date: str, gpu: str) -> str:
    """`2026-11-26-nvidia-h100-80gb-hbm3.json`. date: as ISO 8601 has it, of which the day is used."""
    slug = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    return f"{date[:10]}-{slug}.json"


def free_path(directory: Path, name: str) -> Path:
    """`name` in the directory, or `-2` and so on behind it where there is one: a result is never written over."""
    path, number = directory / name, 1
    while path.exists():
        number += 1
        path = directory / f"{name.removesuffix('.json')}-{number}.json"
    return path


def write(path: Path, facts: Mapping[str, object], settings: Mapping[str, object], outcomes: Sequence[Outcome]) -> None:
    """Writes the file whole: who reads it meanwhile sees the last one or this one."""
    document = {"machine": facts, "settings": settings, "checks": [outcome.document() for outcome in outcomes]}
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(document, indent=1) + "\n")
    unfinished.replace(path)


def keep_drawings(path: Path, drawings: Path) -> list[Path]:
    """Copies what a check has drawn to beside the result: `NAME.svg` for RESULT.json becomes `RESULT-NAME.svg`."""
    kept = []
    for drawing in sorted(drawings.glob("*")):
        kept.append(path.with_name(f"{path.stem}-{drawing.name}"))
        kept[-1].write_bytes(drawing.read_bytes())
    return kept
