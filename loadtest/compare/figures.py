"""What is measured and what is asked of it: samples, medians, targets, verdicts. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence


class Unmeasured(Exception):
    """A load gave no figures: a server did not start, a client failed. The message says which and where to look."""


@dataclass
class Sample:
    """One load on one side in one round.

    figures: name -> value; the unit is in the name, or requests/s for `throughput`.
    problems: why the figures must not be believed; empty when every reply was accounted for.
    details: what else is worth keeping: lists, texts.
    """

    figures: dict[str, float]
    problems: list[str] = field(default_factory=list)
    details: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Spread:
    """The median of a figure over the rounds, and its extremes."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        return cls(median(values), min(values), max(values))


@dataclass(frozen=True)
class Target:
    """A bound on ours / peer's for one figure. `base` is the peer's figure where it has another name."""

    figure: str
    bound: float
    direction: Literal[">=", "<="]
    base: str | None = None

    def __str__(self) -> str:
        return f"{self.direction} {self.bound:g}x"

    def met_by(self, ratio: float) -> bool:
        """Whether a ratio keeps the bound; the bound itself does."""
        return ratio >= self.bound if self.direction == ">=" else ratio <= self.bound


@dataclass(frozen=True)
class Verdict:
    """What a target came to: the ratio of the medians, and the ratio within each round.

    met: None when the target could not be judged: a side is missing, or its samples are not to be believed.
    """

    figure: str
    target: str
    ours: Spread | None = None
    peer: Spread | None = None
    ratio: float | None = None
    ratios: tuple[float, ...] = ()
    met: bool | None = None

    @property
    def word(self) -> str:
        """met, MISSED or void."""
        return "void" if self.met is None else "met" if self.met else "MISSED"


def judge(target: Target, ours: Sequence[Sample], peer: Sequence[Sample]) -> Verdict:
    """The verdict on one target from all rounds of both sides.

    Samples with problems are shown like the others but leave the verdict void: a fast wrong reply is no result.
    """
    base = target.base or target.figure
    mine = [s.figures[target.figure] for s in ours if target.figure in s.figures]
    theirs = [s.figures[base] for s in peer if base in s.figures]
    name = target.figure
    if not mine or not theirs or not median(theirs):
        return Verdict(name, str(target), Spread.of(mine) if mine else None, Spread.of(theirs) if theirs else None)
    ratio = median(mine) / median(theirs)
    sound = not any(s.problems for s in (*ours, *peer))
    ratios = tuple(a / b for a, b in zip(mine, theirs, strict=False) if b)
    return Verdict(
        name, str(target), Spread.of(mine), Spread.of(theirs), ratio, ratios, target.met_by(ratio) if sound else None
    )


def unsound(
    *, requests: int, failed: int, replies: int | None, confirmed: int | None, refused: int | None, exact: bool
) -> list[str]:
    """Why a load's count of requests is not a count of right replies; empty when it is.

    HTTP clients call any reply with status 200 a success, and so is every gRPC error. So three counts are compared:
    requests: what the client counted.
    replies: how many bodies of exactly the verified reply's size it received; None if it does not say.
    confirmed, refused: successes and failures that the server's own ModelStatistics gained; None if it has none.
    exact: whether the client counts all that it sends; one that does not may be exceeded by the others.
    """
    problems = []
    if not requests:
        problems.append("no request was counted")
    if failed:
        problems.append(f"the client counted {failed} failures")
    if refused:
        problems.append(f"the server counted {refused} failures")
    for name, count in (("replies of the verified size", replies), ("successes in ModelStatistics", confirmed)):
        if count is not None and (count < requests or (exact and count > requests)):
            problems.append(f"{count} {name} for {requests} requests")
    return problems
