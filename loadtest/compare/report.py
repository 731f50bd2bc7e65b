"""The outcome of a comparison as a table to read and as JSON to keep. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from compare.figures import Sample, Spread, Verdict, judge

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from compare.sides import Row

UNITS = {
    "throughput": "requests/s",
    "rows_per_second": "rows/s",
    "p50_us": "p50, us",
    "p99_us": "p99, us",
    "cpu_us_per_request": "CPU, us/request",
    "rss_peak_mib": "memory, MiB",
}
NOISY = 0.1
"""Above this share of the machine used by others while a load ran, the table says so."""


@dataclass
class Outcome:
    """One row's samples, by side in the row's order, and why it was left unmeasured if it was."""

    row: Row
    samples: dict[str, list[Sample]]
    unmeasured: str | None = None
    verdicts: list[Verdict] = field(default_factory=list)

    def judge(self) -> None:
        """Sets a verdict for each target of the row."""
        sides = list(self.samples.values())
        self.verdicts = [judge(target, sides[0], sides[-1]) for target in self.row.targets]

    @property
    def problems(self) -> list[str]:
        """What was wrong, each said once."""
        said = [f"{side}: {text}" for side, samples in self.samples.items() for s in samples for text in s.problems]
        return list(dict.fromkeys(([self.unmeasured] if self.unmeasured else []) + said))

    @property
    def noise(self) -> float:
        """The largest share of the machine that others used during a load."""
        return max((s.figures.get("other_cpu", 0.0) for samples in self.samples.values() for s in samples), default=0.0)


def number(value: float) -> str:
    """Three or more significant digits and no more decimals than that takes."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def spread(figure: Spread | None) -> str:
    """`median (low to high)`."""
    if figure is None:
        return "-"
    if figure.low == figure.high:
        return number(figure.median)
    return f"{number(figure.median)} ({number(figure.low)} to {number(figure.high)})"


def table(outcomes: Sequence[Outcome]) -> str:
    """One line for each target, then what was wrong."""
    lines: list[tuple[str, ...]] = [("row", "figure", "ours", "peer", "ratio", "target", "verdict")]
    notes = []
    for outcome in outcomes:
        lines += [_line(outcome, verdict) for verdict in outcome.verdicts]
        notes += [f"{outcome.row.name}: {problem}" for problem in outcome.problems]
        if outcome.noise > NOISY:
            notes.append(f"{outcome.row.name}: others used up to {outcome.noise:.0%} of the machine")
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, tuple("-" * width for width in widths))
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([*text, "", *notes] if notes else text)


def _line(outcome: Outcome, verdict: Verdict) -> tuple[str, ...]:
    sides = list(outcome.samples)
    return (
        outcome.row.name,
        UNITS.get(verdict.figure, verdict.figure),
        f"{sides[0]} {spread(verdict.ours)}",
        f"{sides[-1]} {spread(verdict.peer)}",
        "-" if verdict.ratio is None else f"{verdict.ratio:.2f}x",
        verdict.target,
        verdict.word,
    )


def document(
    outcomes: Sequence[Outcome], date: str, machine: Mapping[str, object], settings: Mapping[str, object]
) -> dict[str, object]:
    """Everything, all rounds included, ready for json.dumps."""
    return {
        "date": date,
        "machine": dict(machine),
        "settings": dict(settings),
        "rows": [
            {
                "name": outcome.row.name,
                "title": outcome.row.title,
                "verdicts": [asdict(verdict) | {"verdict": verdict.word} for verdict in outcome.verdicts],
                "problems": outcome.problems,
                "samples": {side: [asdict(s) for s in samples] for side, samples in outcome.samples.items()},
            }
            for outcome in outcomes
        ],
    }
