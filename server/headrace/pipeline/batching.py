"""When to run what: the one decision of the batcher, a deterministic function of its arguments."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from headrace.messages import Batch
from headrace.pipeline.urgency import choose, gather

if TYPE_CHECKING:
    from collections.abc import Hashable

    from headrace.messages import InferRequest
    from headrace.pipeline.cost import CostModel
    from headrace.pipeline.queue import RequestQueue

Policy = Literal["slot", "deadline", "delay", "single"]

_ROUNDED_FROM_NS, _ROUNDED = 1_000_000_000, 100
"""A timeout of a second or more may be longer than the caller's own by a hundredth: gRPC's C core rounds it up to so
many milliseconds, so that field blocks repeat (src/core/lib/transport/timeout_encoding.h)."""
_IN_HAND = 8
"""One part in so many of the longest run, though no more than the margin, is kept in hand of a deadline: runs beside
one another and a busy event loop make replies late by about as much."""


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How batches of one model are formed.

    max_rows: rows of a batch. max_bytes: raw input bytes of a batch, 0 for no limit; a single request may exceed it.
    policy: `slot` runs what has arrived as soon as an instance is idle; `deadline` lets an idle instance wait until the
    batch is full or waiting longer would make a member late; `delay` waits until the batch is full, its first request
    has waited `delay_ns` (as Triton's dynamic batcher does), or waiting longer would make a member late; `single` runs
    each request alone. preferred: ascending sizes in rows; the largest that the first requests make is run at once,
    whatever else waits, but not a smaller batch than there can be for one who has waited `delay_ns`. margin_ns: what is
    kept in hand of a deadline, for encoding and sending.
    """

    max_rows: int
    max_bytes: int = 0
    policy: Policy = "slot"
    delay_ns: int = 0
    margin_ns: int = 500_000
    preferred: tuple[int, ...] = ()


@dataclass(slots=True)
class Decision:
    """drop: expired requests, to be failed. give_up: those that would be late, to be refused in favour of others.

    take: batches to run now, one for each idle instance at most.

    wake_at: monotonic ns at which to decide again if nothing else happens before; 0: no need.
    """

    drop: list[InferRequest] = field(default_factory=list)
    give_up: list[InferRequest] = field(default_factory=list)
    take: list[Batch] = field(default_factory=list)
    wake_at: int = 0


def decide(
    queue: RequestQueue,
    now: int,
    limits: BatchLimits,
    slots: int,
    cost: CostModel,
    *,
    instances: int = 1,
    draining: bool = False,
) -> Decision:
    """Takes expired requests and closed batches out of `queue`.

    An idle instance (`slots` counts them, of all `instances`) is what forms a batch: while all are busy, requests
    gather. Whom a batch holds: the requests of one key, in queue order, as many as fit and as make a row cheaper; and
    where someone cannot wait so long, whom `urgency.choose` says.
    """
    decision = Decision(drop=queue.pop_expired(now))
    held: dict[Hashable, int] = {}
    while slots > len(decision.take) and (group := queue.head_group(held)):
        single = limits.policy == "single"
        own_cost = cost.of(group[0].template.fit)
        pays = 1 if single else _rows_that_pay(queue, limits, own_cost)
        longest = own_cost.predict(limits.max_rows)
        ready = now + min(limits.margin_ns, longest // _IN_HAND)
        if 0 < queue.next_expiry < ready + longest:  # else every deadline is met by any batch
            choice = choose(group, pays, ready, limits, own_cost, instances)
            decision.give_up += queue.pop(group, choice.hopeless)
            if choice.members:
                reason = "single" if single else "deadline"
                decision.take.append(Batch(queue.pop(group, choice.members), choice.rows, reason, batched=now))
                continue
        if single:
            alone = queue.pop_front(group, 1)
            decision.take.append(Batch(alone, alone[0].template.rows, "single", batched=now))
            continue
        count, rows, reason = _fill(group, queue, pays, limits)
        if limits.preferred and not draining:
            count, rows, reason = _preferred(group, count, rows, reason, now, limits)
        close_at = 0 if reason != "all" or draining else _close_at(group[:count], rows, limits, own_cost)
        if close_at > now:
            held[group[0].template.key] = close_at
            continue
        if reason == "all":
            reason = _why(queue.requests > count, limits.policy, draining)
        decision.take.append(Batch(queue.pop_front(group, count), rows, reason, batched=now))
    if queue.requests:
        decision.wake_at = min((moment for moment in (queue.next_expiry, *held.values()) if moment), default=0)
    return decision


def _rows_that_pay(queue: RequestQueue, limits: BatchLimits, cost: CostModel) -> int:
    """Rows of the batch that is wanted; there may be fewer."""
    if limits.policy == "delay" or limits.preferred:  # which are told how large a batch pays
        return limits.max_rows
    return min(limits.max_rows, cost.efficient_rows(queue.rows))


def _fill(group: list[InferRequest], queue: RequestQueue, pays: int, limits: BatchLimits) -> tuple[int, int, str]:
    """How many requests from the front of `group` form a batch, their rows, and what stopped it (`all`: nothing)."""
    max_rows = limits.max_rows
    if queue.rows == queue.requests and not limits.max_bytes:  # of one row each: nothing to add up
        count = min(len(group), pays)
        return count, count, "all" if count < pays else "full" if count >= max_rows else "cost"
    members, rows = gather(group, pays, limits)
    count = len(members)
    if count < len(group):
        more = rows + group[count].template.rows
        return count, rows, "cost" if pays < more <= max_rows else "full"
    if rows >= pays:
        return count, rows, "full" if rows >= max_rows else "cost"
    return count, rows, "all"


def _preferred(
    group: list[InferRequest], count: int, rows: int, reason: str, now: int, limits: BatchLimits
) -> tuple[int, int, str]:
    """What of the first `count` requests makes the largest preferred batch; all of them, if there is none."""
    if limits.policy == "delay" and min(request.admitted for request in group[:count]) + limits.delay_ns <= now:
        return count, rows, reason
    some = rows
    for members in range(count, 0, -1):
        if some in limits.preferred:
            return members, some, reason if some == limits.max_rows else "preferred"
        some -= group[members - 1].template.rows
    return count, rows, reason


def _close_at(members: list[InferRequest], rows: int, limits: BatchLimits, cost: CostModel) -> int:
    """The moment at which a batch that could still grow closes under the policy; 0: at once."""
    if limits.policy == "slot":
        return 0
    close_at = [_surely_due(request) - cost.predict(rows) - limits.margin_ns for request in members if request.expires]
    if limits.policy == "delay":
        close_at.append(min(request.admitted for request in members) + limits.delay_ns)
    elif len(close_at) < len(members):
        return 0  # a member without a deadline has nothing that it could wait for
    return min(close_at)


def _surely_due(request: InferRequest) -> int:
    """When a request expires, however its timeout was rounded."""
    given = request.expires - request.received
    return request.expires - (given // _ROUNDED if given >= _ROUNDED_FROM_NS else 0)


def _why(others_wait: bool, policy: Policy, draining: bool) -> str:
    if draining:
        return "drain"
    if others_wait:
        return "shape"
    return {"slot": "idle", "deadline": "deadline", "delay": "delay"}[policy]
