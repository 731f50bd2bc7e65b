"""When there is proof that a version is beyond its limits: sequences that begin again and again.

One confidence sequence from the start on would have to outweigh a long good past before it saw a change. So another
begins after every `BLOCK` requests; the k-th has a level of alpha 6 / (pi k)^2, which add up to alpha: whatever the
number of sequences, the chance that any of them ever speaks against a version that keeps its limits is at most alpha.
A request is one observation, the mean over its rows: rows of one request may have much in common. The same request
again is none (`distinct`).
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from math import log, log1p, pi
from typing import TYPE_CHECKING, Literal

from headrace.guard.confidence import MeanBound, at_most, below

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.guard.settings import GuardSettings

BLOCK = 128
"""Requests after which another sequence begins."""
KEPT = 12
"""Sequences at a time. Leaving out some takes nothing from what is promised."""


LEAST = 30
"""Requests of a sequence before it may prove anything. The bounds hold without: two misses at once are proof, at a
limit of 0.99, if requests come as they are assumed to. This is for when they do not: a few that have something in
common, at the beginning of a sequence, are to be no more than a part of what decides. What is far off costs 30
requests; what is near the limit needs more in any case."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Proof that a limit is not kept.

    what: which limit. bound: of the mean agreement from above, of the mean error from below, at `level`. mean: of
    `requests` requests, from the `since`-th on. sequence: the number of the sequence that proves it, from 1.
    """

    what: Literal["agreement", "error"]
    limit: float
    mean: float
    bound: float
    level: float
    requests: int
    since: int
    sequence: int

    def __str__(self) -> str:
        """A clause for the log."""
        side = "at most" if self.what == "agreement" else "at least"
        return (
            f"mean {self.what} {self.mean:.4f} in {self.requests} requests, {side} {self.bound:.4f} "
            f"(limit {self.limit:g}, confidence 1 - {self.level:.2g}, compared since request {self.since})"
        )


class _Sequence:
    """From request `since` on, counted from 1. number: k."""

    __slots__ = ("agreement", "error", "level", "number", "requests", "since")

    def __init__(self, number: int, since: int, alpha: float) -> None:
        self.number = number
        self.since = since
        self.level = alpha * 6 / (pi * number) ** 2
        self.requests = 0
        self.agreement = 0.0
        self.error = MeanBound(self.level)

    def add(self, requests: int, agreement: float, error: float, squares: float) -> None:
        """The sums of their agreements, errors, and squared errors."""
        self.requests += requests
        self.agreement += agreement
        self.error.add(requests, error, squares)

    def finding(self, settings: GuardSettings) -> Finding | None:
        if self.requests < LEAST:
            return None
        limit, worst = settings.limit, settings.max_mean_error
        level = self.level if worst is None else self.level / 2
        misses = self.requests - self.agreement
        if self._could(limit, log(1 / level)) and below(limit, self.agreement, misses) >= log(1 / level):
            bound = at_most(level, self.agreement, misses)
            mean = self.agreement / self.requests
            return Finding("agreement", limit, mean, bound, level, self.requests, self.since, self.number)
        if worst is not None and (bound := self.error.at_least(level)) > worst:
            return Finding("error", worst, self.error.mean, bound, level, self.requests, self.since, self.number)
        return None

    def _could(self, limit: float, enough: float) -> bool:
        """Whether the likelihood ratio of the mean itself, which no mixture exceeds, is enough."""
        mean = self.agreement / self.requests
        if mean >= limit:
            return False
        information = (1 - mean) * (log1p(-mean) - log1p(-limit)) + (mean * log(mean / limit) if mean else 0.0)
        return self.requests * information >= enough


class Evidence:
    """What was observed of a version, and whether that proves anything. finding: the first proof; nothing follows it.

    overall: since the start. Not for several threads.
    """

    def __init__(self, settings: GuardSettings) -> None:
        self._settings = settings
        self._sequences = [_Sequence(1, 1, settings.alpha)]
        self._begun = 1
        self.finding: Finding | None = None

    def __repr__(self) -> str:
        return f"<Evidence of {self.requests} requests in {len(self._sequences)} sequences: {self.finding or 'none'}>"

    @property
    def requests(self) -> int:
        """That were observed."""
        return self._sequences[0].requests

    def add(self, agreements: Sequence[float], errors: Sequence[float]) -> Finding | None:
        """More requests, in order: of each its agreement and its error, in [0, 1]. What they prove, the first time."""
        last = self._sequences[-1]
        if last.requests >= BLOCK:
            self._begun += 1
            self._sequences.append(_Sequence(self._begun, self.requests + 1, self._settings.alpha))
            self._thin()
        sums = len(agreements), sum(agreements), sum(errors), sum(error * error for error in errors)
        for sequence in self._sequences:
            sequence.add(*sums)
        if self.finding is not None:
            return None
        self.finding = next(filter(None, (one.finding(self._settings) for one in self._sequences)), None)
        return self.finding

    def totals(self, *, recent: bool = False) -> Totals:
        """As they are now. recent: of the last requests, `BLOCK` to twice as many, instead of all."""
        full = [one for one in self._sequences if one.requests >= BLOCK]
        one = full[-1] if recent and full else self._sequences[0]
        return Totals(one.requests, one.agreement, copy(one.error), self._settings.alpha)

    def _thin(self) -> None:
        """Leaves out the sequence whose neighbours are closest to it, by the ratio of their ages."""
        kept = self._sequences
        if len(kept) > KEPT:
            end = self.requests + 1 + BLOCK
            ages = [end - one.since for one in kept]
            del kept[min(range(1, len(kept) - 2), key=lambda at: ages[at - 1] / ages[at + 1])]


@dataclass(frozen=True, slots=True)
class Totals:
    """What one sequence has seen. agreement: the sum over all requests."""

    requests: int
    agreement: float
    error: MeanBound
    alpha: float

    @property
    def mean_agreement(self) -> float | None:
        """None before the first request."""
        return self.agreement / self.requests if self.requests else None

    @property
    def mean_error(self) -> float | None:
        """None before the first request."""
        return self.error.mean if self.requests else None

    def agreement_bounds(self) -> tuple[float, float]:
        """Of the mean agreement: they hold at all times, all of them, with probability 1 - alpha."""
        level, misses = self.alpha / 2, self.requests - self.agreement
        return 1 - at_most(level, misses, self.agreement), at_most(level, self.agreement, misses)

    def error_bounds(self) -> tuple[float, float]:
        """The same of the mean error."""
        return self.error.at_least(self.alpha / 2), self.error.at_most(self.alpha / 2)
