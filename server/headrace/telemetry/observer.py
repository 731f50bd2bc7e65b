"""What the engine hands to telemetry: finished batches as columns, refusals as counts.

Observers record; they never steer, and an exception in one never reaches the request path (the engine logs it and
goes on without it).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.messages import InferRequest, ReplySink
    from headrace.pipeline.cost import CostModel

FALLBACK_REASONS = ("unavailable", "load", "signature", "probe_failed", "probe_differs", "lost")
"""unavailable: the backend's module is not there, or fails. load: it cannot load or warm the model. signature:
its inputs, outputs or batches are others than those of the backend that it is compared with. probe_failed: it fails to
run the probe. probe_differs: its results are others. lost: its instances were lost while they served."""


@dataclass(slots=True)
class BatchRecord:
    """One finished batch. Times are monotonic nanoseconds; the lists hold one entry for each request, in batch order.

    The phases of a request (`messages.PHASES`) are the differences of neighbours: decode = decoded - received,
    admit = admitted - decoded, queue = batched - admitted, batch = started - batched, execute = finished - started,
    encode = encoded - finished.

    late: how many were answered after they were due: by the RPC's deadline, their own timeout or the model's objective.
    requests, cost: for whoever traces them; the requests themselves, and what predicts how long such a batch runs.
    first: the first request that was in the batch, a piece of a split one perhaps, which may have no answer yet.
    """

    received: Sequence[int]
    decoded: Sequence[int]
    admitted: Sequence[int]
    rows: Sequence[int]
    batched: int
    started: int
    finished: int
    encoded: int
    batch_rows: int
    close_reason: str
    instance: int
    late: int = 0
    requests: Sequence[InferRequest] = ()
    cost: CostModel | None = None
    first: InferRequest | None = None

    @property
    def predicted(self) -> int:
        """How long such a batch was to run, ns; 0: unknown."""
        return self.cost.of(self.requests[0].template.fit).predict(self.batch_rows) if self.cost else 0


class ModelObserver(Protocol):
    """Hears what happens to one model version. Called on the event loop."""

    def batch(self, record: BatchRecord) -> None:
        """A batch was run and its requests were answered with success."""
        ...

    def refused(
        self, reason: str, requests: int = 1, request: InferRequest | None = None, record: BatchRecord | None = None
    ) -> None:
        """Requests ended without success. `reason` is a `HeadraceError.reason`. request: the one, where it is one.

        record: of the batch that it was in, where that was run; `encoded` is 0 if the run has failed.
        """
        ...

    def unfit(self, sink: ReplySink, received: int, reason: str) -> None:
        """A request for the model ended before it was one: it contradicts the protocol or the model's signature.

        sink: whoever waits for its reply. received: monotonic ns.
        """
        ...

    def trace_id(self, request: InferRequest) -> str:
        """Has a request traced that has not ended; in hexadecimal, for its reply or the log; empty: it is not."""
        ...

    def wasted(self, rows: int, execute_ns: int) -> None:
        """Rows that were computed although their caller had gone away, and the compute time that they took."""
        ...

    def padded(self, elements: int, padding: int) -> None:
        """A batch of a model with buckets was run on so many input elements of its callers, and so many of padding."""
        ...

    def rule_broken(self, name: str, rule: str, policy: str, requests: int) -> None:
        """So many requests broke a rule for the input `name`. policy: what has become of them."""
        ...

    def sequences_expired(self, sequences: int) -> None:
        """Sequences of a stateful model are over because no request of theirs came for too long."""
        ...

    def fell_back(self, backend: str, to: str, reason: str) -> None:
        """A backend of the model's chain does not run it, now or at all: `to` is taken, or tried; empty: none is left.

        reason: one of `FALLBACK_REASONS`.
        """
        ...

    def instances_lost(self, instances: int) -> None:
        """Instances cannot be used any more, and are to be made anew."""
        ...

    def rerun(self, requests: int) -> None:
        """Requests wait again because the instance that ran them was lost."""
        ...


class Observer(Protocol):
    """Makes one `ModelObserver` per model version when it is loaded."""

    def model(self, name: str, version: str, queue_depth: QueueDepth) -> ModelObserver:
        """`queue_depth` is called at scrape time: requests and rows that wait now."""
        ...

    def forget(self, name: str, version: str) -> None:
        """The version was unloaded: its queue depth is no longer pulled."""
        ...


class QueueDepth(Protocol):
    """What waits for execution."""

    def __call__(self) -> tuple[int, int]:
        """Returns (requests, rows)."""
        ...
