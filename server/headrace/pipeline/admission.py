"""Whether a request may enter the queue: refused at once and with a reason, or expected to make its deadline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.errors import (
    DeadlineExceeded,
    DeadlineUnreachable,
    HeadraceError,
    InvalidRequest,
    QueueFull,
    QueueTimeout,
    ShuttingDown,
)
from headrace.pipeline.queue import HORIZON_NS, order_of

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from headrace.messages import Batch, Fit, InferRequest
    from headrace.pipeline.cost import CostModel
    from headrace.pipeline.queue import RequestQueue


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """What may wait for one model version: requests, rows and raw input bytes.

    by_level: whether a policy limits the requests of a priority level as well.
    """

    max_requests: int = 4096
    max_rows: int = 65536
    max_bytes: int = 256 << 20
    by_level: bool = False


def expired(request: InferRequest, now: int) -> HeadraceError:
    """The error of a request whose time is over: by the RPC's deadline, or by its own timeout or the objective."""
    if 0 < request.rpc_deadline <= now:
        return DeadlineExceeded("Deadline exceeded while the request waited for execution")
    return QueueTimeout("Request timeout expired")


def given_up(request: InferRequest, now: int, cost: CostModel) -> HeadraceError:
    """The error of a request that waited, and that running it can help no more."""
    template = request.template
    return DeadlineUnreachable(
        f"The deadline is {(request.expires - now) / 1e6:.3f} ms away and the request, which has waited, is expected "
        f"to run for {cost.of(template.fit).mean(template.rows) / 1e6:.3f} ms"
    )


def set_deadlines(requests: Sequence[InferRequest], now: int, slo_ns: int) -> int:
    """Sets when requests of one template expire and what orders them; returns the first such moment, 0 for none.

    slo_ns: the deadline of those that bring none, from their receipt; 0: none.
    """
    template = requests[0].template
    own_limit = template.timeout_ns
    horizon, last = now + HORIZON_NS, order_of(template.priority, 0, now)
    soonest = 0
    for request in requests:
        request.decoded = now
        expires = request.rpc_deadline
        if own_limit:
            limit = request.received + own_limit
            expires = min(expires, limit) if expires else limit
        elif slo_ns and not expires:
            expires = request.received + slo_ns
        if expires:
            request.expires = expires
            request.order = last if expires >= horizon else last - (horizon - expires)  # as order_of
            if not 0 < soonest <= expires:
                soonest = expires
        else:
            request.order = last
    return soonest


def wait_ns(
    batches_ahead: int,
    now: int,
    max_rows: int,
    instances: int,
    running: Collection[Batch],
    cost: CostModel,
    fit: Fit | None = None,
) -> int:
    """Predicted time until the batch behind so many others starts, on the instance that is free first.

    fit: of those others; None: the mix of what there is.
    """
    if batches_ahead + len(running) < instances:
        return 0
    free_in = [0] * (instances - len(running))
    free_in += sorted(max(batch.batched + cost.of(batch.fit).mean(batch.rows) - now, 0) for batch in running)
    turns, place = divmod(batches_ahead, instances)
    return free_in[place] + turns * cost.of(fit).mean(max_rows)


def reply_ns(
    rows: int,
    rows_ahead: int,
    now: int,
    max_rows: int,
    instances: int,
    running: Collection[Batch],
    cost: CostModel,
    fit: Fit | None = None,
    others_ns: int = 0,
) -> int:
    """Predicted time until the batch with (the last of) `rows` new rows has run.

    What is ahead is taken to run in full batches, and the new rows together with what is left over of it; in a full
    batch, too, if there are others before: more will have come by then, and who is let in for a small one is late.
    fit: of both. others_ns: run time of batches of other buckets that are ahead.
    """
    own = cost.of(fit)
    if not rows_ahead and not others_ns and len(running) < instances and rows <= max_rows:
        return own.predict(rows)
    batches_ahead = (rows_ahead + rows - 1) // max_rows
    batch = max_rows if batches_ahead else max(rows_ahead + rows, min(rows, max_rows))
    wait = wait_ns(batches_ahead, now, max_rows, instances, running, cost, fit) + others_ns // instances
    return wait + own.predict(batch)


def ahead_of(request: InferRequest, queue: RequestQueue, max_rows: int, cost: CostModel) -> tuple[int, int]:
    """About what would be served before a request: rows that run like its own, and ns of other buckets' batches."""
    template = request.template
    if template.fit is None:
        return queue.rows_ahead(request.order), 0
    rows = others_ns = 0
    for other, ahead in queue.groups_ahead(request.order):
        if other.key == template.key:
            rows = ahead
        else:
            own = cost.of(other.fit)
            full, rest = divmod(ahead, max_rows)
            others_ns += full * own.mean(max_rows) + own.mean(rest)
    return rows, others_ns


def admit_all(
    requests: int,
    rows: int,
    nbytes: int,
    soonest: int,
    now: int,
    queue: RequestQueue,
    limits: QueueLimits,
    cost: CostModel,
    *,
    max_rows: int,
    wary: bool,
) -> bool:
    """Whether so many requests may all enter, by a look that is quick because it is cautious.

    False: have `admit` decide on each. soonest: the first moment at which one of them expires, 0 for none. wary:
    there is something that this look does not see.
    """
    if (
        wary
        or limits.by_level
        or queue.requests + requests > limits.max_requests
        or queue.rows + rows > limits.max_rows
        or queue.nbytes + nbytes > limits.max_bytes
    ):
        return False
    if not soonest:
        return True
    # at the worst the last of them waits for a batch that runs and all that is in the queue, each at its slowest
    batches = (queue.rows + rows) // max_rows + max(queue.groups, 1) + 1
    return now < soonest >= now + batches * cost.slowest


def admit(
    request: InferRequest,
    now: int,
    queue: RequestQueue,
    limits: QueueLimits,
    cost: CostModel,
    *,
    max_rows: int,
    instances: int,
    running: Collection[Batch],
    draining: bool,
    alone_ns: int = 0,
) -> HeadraceError | None:
    """None if the request may enter, else why not. Its `order` and `expires` are set; running: batches under way.

    alone_ns: run time of what is run one by one before all that wait.
    """
    template = request.template
    if draining:
        return ShuttingDown("Server is shutting down and has stopped accepting new requests")
    if (
        queue.requests >= limits.max_requests
        or queue.rows + template.rows > limits.max_rows
        or queue.nbytes + request.nbytes > limits.max_bytes
    ):
        if template.rows > limits.max_rows or request.nbytes > limits.max_bytes:
            return InvalidRequest(
                f"the request has {template.rows} rows and {request.nbytes} bytes, more than may ever wait for this "
                f"model: {limits.max_rows} rows and {limits.max_bytes} bytes"
            )
        wait = wait_ns(queue.rows // max_rows, now, max_rows, instances, running, cost)
        return QueueFull(
            f"Exceeds maximum queue size: {queue.requests} requests, {queue.rows} rows and {queue.nbytes} bytes wait; "
            f"at most {limits.max_requests} requests, {limits.max_rows} rows and {limits.max_bytes} bytes may",
            retry_after_ms=max(wait // 1_000_000, 1),
        )
    most = template.policy.max_requests
    if most and queue.waiting(template.priority) >= most:
        wait = wait_ns(queue.rows_ahead(request.order) // max_rows, now, max_rows, instances, running, cost)
        return QueueFull(
            f"Exceeds maximum queue size: {most} requests of priority level {template.priority + 1} wait, no more may",
            retry_after_ms=max(wait // 1_000_000, 1),
        )
    expires = request.rpc_deadline if template.policy.delays else request.expires
    if expires:
        if expires <= now:
            return expired(request, now)
        ahead, others_ns = ahead_of(request, queue, max_rows, cost)
        others_ns += alone_ns
        need = reply_ns(template.rows, ahead, now, max_rows, instances, running, cost, template.fit, others_ns)
        if now + need > expires:
            return DeadlineUnreachable(
                f"The deadline is {(expires - now) / 1e6:.3f} ms away and the reply is expected to take "
                f"{need / 1e6:.3f} ms ({queue.rows} rows wait)"
            )
    return None
