"""Requests that are run again, each by itself and before all that wait: their batch has come to nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.messages import Batch, State
from headrace.pipeline.queue import is_over

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from headrace.messages import InferRequest
    from headrace.pipeline.cost import CostModel


class Alone:
    """In the order in which they will run, each with how many instances it has lost. rows: of all of them."""

    __slots__ = ("_losses", "rows")

    def __init__(self) -> None:
        self.rows = 0
        self._losses: dict[InferRequest, int] = {}

    def __len__(self) -> int:
        return len(self._losses)

    def __iter__(self) -> Iterator[InferRequest]:
        return iter(self._losses)

    def __repr__(self) -> str:
        return f"<Alone {len(self._losses)} requests, {self.rows} rows>"

    @property
    def next_expiry(self) -> int:
        """When the first of them expires (monotonic ns); 0: none does."""
        return min((request.expires for request in self._losses if request.expires), default=0)

    def run_ns(self, cost: CostModel) -> int:
        """About how long an instance would run them all."""
        count = len(self._losses)
        return count * cost.mean(self.rows // count) if count else 0

    def append(self, requests: Iterable[InferRequest]) -> None:
        """Puts requests whose batch has failed behind the others."""
        added = dict.fromkeys(requests, 0)
        self.rows += _rows(added)
        self._losses |= added

    def put_first(self, requests: Iterable[InferRequest], losses: int) -> None:
        """Puts requests before the others that have lost so many instances."""
        added = dict.fromkeys(requests, losses)
        self.rows += _rows(added)
        self._losses = added | self._losses

    def pop(self, now: int) -> Batch:
        """Takes out the first, to be run."""
        request = next(iter(self._losses))
        losses = self._losses[request]
        self.remove(request)
        request.state = State.RUNNING
        reason = "rerun" if losses else "isolated"
        return Batch([request], request.template.rows, reason, batched=now, losses=losses)

    def remove(self, request: InferRequest) -> None:
        """Takes out one whose caller has gone away. Raises KeyError if it is not here."""
        del self._losses[request]
        self.rows -= request.template.rows

    def pop_expired(self, now: int) -> list[InferRequest]:
        """Takes out what has expired by `now`; one that its policy only delays goes on to the RPC's deadline."""
        gone = [request for request in self._losses if 0 < request.expires <= now]
        over = [request for request in gone if is_over(request, now)]
        for request in over:
            self.remove(request)
        for request in gone:
            if request in self._losses:
                request.expires = request.rpc_deadline
        return over

    def clear(self) -> None:
        """Forgets all."""
        self._losses.clear()
        self.rows = 0


def _rows(requests: Iterable[InferRequest]) -> int:
    return sum(request.template.rows for request in requests)
