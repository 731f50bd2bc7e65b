"""Whom a batch holds when not everybody can wait for a full one: one deadline against the rows that wait behind it."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from headrace.messages import InferRequest
    from headrace.pipeline.batching import BatchLimits
    from headrace.pipeline.cost import CostModel

_NEARLY = 0.9
"""A batch that computes this share of the rows/s of one that pays takes next to nothing from those behind it."""
_LOOK = 64
"""Batches ahead that are looked at, at most."""


@dataclass(slots=True)
class Choice:
    """hopeless: requests that would most likely be late even if they ran now and alone, while others can be in time.

    members: those to run now, in queue order, and their rows; empty: nobody is in anybody's way, and a batch is filled
    as always.
    """

    hopeless: list[InferRequest] = field(default_factory=list)
    members: list[InferRequest] = field(default_factory=list)
    rows: int = 0


def choose(
    group: Sequence[InferRequest], pays: int, now: int, limits: BatchLimits, cost: CostModel, instances: int
) -> Choice:
    """For a group in queue order of which someone may be due before a full batch is done.

    pays: rows of the batch that is wanted. now: when it would begin, with what is kept in hand of deadlines added.
    instances: how many serve the group.

    A smaller batch is done sooner, but computes fewer rows a second. While all who wait behind it are served in time
    nevertheless, it is as small as the earliest deadline asks. Else it would make more of them late than it saves, and
    those of the next batch would be in as much of a hurry: so a batch that pays is filled with those who can wait for
    its end, and who cannot is passed over (as by the early drop of Nexus: Shen et al., SOSP 2019).
    """
    hopeless: list[InferRequest] = []
    able, rows = gather(_others(group, hopeless, now, cost), pays, limits)
    if not able:
        return Choice()
    end = now + cost.predict(rows)
    if _in_time(able, end):
        return Choice(hopeless)
    quick, few = _before_the_earliest(able, now, cost)
    # nobody is passed over in favour of a lower priority level
    level = min(member.template.priority for member in able if 0 < member.expires < end)
    behind = _of_level(group[len(hopeless) + len(quick) :], level)
    if not _pays(few, pays, cost) and not _served(behind, pays, now + cost.mean(few), cost, instances):
        patient, many = _who_can_wait(group, pays, now, limits, cost)
        if _rows(_of_level(patient, level)) > _rows(_of_level(quick, level)):
            return Choice(hopeless, patient, many)
    return Choice(hopeless, quick, few)


def _of_level(requests: Sequence[InferRequest], level: int) -> list[InferRequest]:
    """The first of them: those of this priority level, and of those above."""
    return list(takewhile(lambda request: request.template.priority <= level, requests))


def _rows(requests: Iterable[InferRequest]) -> int:
    return sum(request.template.rows for request in requests)


def _others(
    group: Iterable[InferRequest], hopeless: list[InferRequest], now: int, cost: CostModel
) -> Iterator[InferRequest]:
    """Those that are not hopeless; the ones before them that are go to `hopeless`."""
    for request in group:
        template = request.template
        ends = request.rpc_deadline if template.policy.delays else request.expires
        if 0 < ends < now + min(cost.mean(template.rows), cost.predict(template.rows)):
            hopeless.append(request)
        else:
            yield request


def gather(requests: Iterable[InferRequest], most: int, limits: BatchLimits) -> tuple[list[InferRequest], int]:
    """As many from the front as a batch of `most` rows holds, at least one; and their rows."""
    members: list[InferRequest] = []
    rows = nbytes = 0
    for request in requests:
        more = rows + request.template.rows
        if members and (more > most or 0 < limits.max_bytes < nbytes + request.nbytes):
            break
        members.append(request)
        rows = more
        nbytes += request.nbytes
    return members, rows


def _in_time(members: Iterable[InferRequest], end: int) -> bool:
    return all(not member.expires or member.expires >= end for member in members)


def _before_the_earliest(members: Sequence[InferRequest], now: int, cost: CostModel) -> tuple[list[InferRequest], int]:
    """As many from the front as are done when the earliest of them is due, at least one; and their rows."""
    rows = earliest = 0
    for count, member in enumerate(members):
        more = rows + member.template.rows
        if member.expires and now + cost.predict(member.template.rows) <= member.expires:
            earliest = min(earliest, member.expires) if earliest else member.expires
        if count and earliest and now + cost.predict(more) > earliest:
            return list(members[:count]), rows
        rows = more
    return list(members), rows


def _pays(rows: int, most: int, cost: CostModel) -> bool:
    """Whether a batch of so many rows computes nearly as many of them a second as one that pays."""
    return rows * cost.mean(most) >= _NEARLY * most * cost.mean(rows)


def _served(behind: Sequence[InferRequest], pays: int, start: int, cost: CostModel, instances: int) -> bool:
    """Whether all of them are expected to be in time, in batches that pay, the first of which starts at `start`."""
    at = 0
    for _ in range(_LOOK):
        if at >= len(behind):
            break
        first = behind[at]
        count = min(max(pays // first.template.rows, 1), len(behind) - at)
        rows = min(count * first.template.rows, pays)
        if 0 < first.expires < start + cost.predict(rows):
            return False
        start += cost.mean(rows) // instances
        at += count
    return True


def _who_can_wait(
    group: Sequence[InferRequest], pays: int, now: int, limits: BatchLimits, cost: CostModel
) -> tuple[list[InferRequest], int]:
    """The most rows of requests that are in time in one batch."""
    best: list[InferRequest] = []
    best_rows, most = 0, pays
    while most > best_rows:
        end = now + cost.predict(most)
        able = (request for request in group if not request.expires or request.expires >= end)
        members, rows = gather(able, most, limits)
        if rows > best_rows and _in_time(members, now + cost.predict(rows)):  # a first one may have more than `most`
            best, best_rows = members, rows
        most //= 2
    return best, best_rows
