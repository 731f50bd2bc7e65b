"""Whether a request may enter the queue: refused at once and with a reason, or expected to make its deadline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.errors import DeadlineExceeded, DeadlineUnreachable, HeadraceError, QueueFull, QueueTimeout, ShuttingDown

if TYPE_CHECKING:
    from headrace.messages import InferRequest
    from headrace.pipeline.cost import CostModel
    from headrace.pipeline.queue import RequestQueue


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """What may wait for one model version: requests, rows and raw input bytes."""

    max_requests: int = 4096
    max_rows: int = 65536
    max_bytes: int = 256 << 20


def expired(request: InferRequest, now: int) -> HeadraceError:
    """The error of a request whose time is over: the RPC's deadline, or else its own timeout or the model's objective."""
    if 0 < request.rpc_deadline <= now:
        return DeadlineExceeded("Deadline exceeded while the request waited for execution")
    return QueueTimeout("Request timeout expired")


def wait_ns(rows_ahead: int, max_rows: int, instances: int, busy: int, cost: CostModel) -> int:
    """Predicted time until a new request's batch starts: what is ahead, in full batches, over all instances.

    busy: instances that run a batch now; of each, half is taken as still to come.
    """
    batch = cost.mean(max_rows)
    ahead = rows_ahead // max_rows * batch
    return (ahead + (busy * batch) // 2) // instances if busy == instances else 0


def admit(
    request: InferRequest,
    now: int,
    queue: RequestQueue,
    limits: QueueLimits,
    cost: CostModel,
    *,
    max_rows: int,
    instances: int,
    busy: int,
    draining: bool,
) -> HeadraceError | None:
    """None if the request may enter, else why not. `request.order` and `.expires` are set."""
    template = request.template
    if draining:
        return ShuttingDown("Server is shutting down and has stopped accepting new requests")
    if (
        queue.requests >= limits.max_requests
        or queue.rows + template.rows > limits.max_rows
        or queue.nbytes + request.nbytes > limits.max_bytes
    ):
        wait = wait_ns(queue.rows, max_rows, instances, busy, cost)
        return QueueFull(
            f"Exceeds maximum queue size: {queue.requests} requests, {queue.rows} rows and {queue.nbytes} bytes wait; "
            f"at most {limits.max_requests} requests, {limits.max_rows} rows and {limits.max_bytes} bytes may",
            retry_after_ms=max(wait // 1_000_000, 1),
        )
    expires = request.expires
    if expires:
        if expires <= now:
            return expired(request, now)
        need = wait_ns(queue.rows_ahead(request.order), max_rows, instances, busy, cost) + cost.predict(template.rows)
        if now + need > expires:
            return DeadlineUnreachable(
                f"The deadline is {(expires - now) / 1e6:.3f} ms away and the reply is expected to take "
                f"{need / 1e6:.3f} ms ({queue.rows} rows wait)"
            )
    return None
