"""Writes deploy/grafana/dashboards/*.json from scripts/dashboards/; --check compares and exits 1 where they differ."""

from __future__ import annotations

import sys
from pathlib import Path

from dashboards import batching, drift, gpu, guard, latency, model, overview

TARGET = Path(__file__).parents[1] / "deploy" / "grafana" / "dashboards"


def files() -> dict[Path, str]:
    """The text of each file."""
    return {
        TARGET / f"{module.__name__.rpartition('.')[2]}.json": module.text()
        for module in (overview, model, latency, batching, drift, guard, gpu)
    }


def main() -> int:
    """Writes the files, or compares them."""
    wanted = files()
    if "--check" in sys.argv[1:]:
        there = {path: path.read_text(encoding="utf-8") for path in TARGET.glob("*")}
        return int(there != wanted)
    TARGET.mkdir(parents=True, exist_ok=True)
    for path, text in wanted.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
