"""Requests that are run again, each by itself and before all that wait: their batch has come to nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.pipeline.queue import is_over

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from headrace.messages import InferRequest


class Alone:
    """In the order in which they will run, each with how many instances it has lost."""

    __slots__ = ("_losses",)

    def __init__(self) -> None:
        self._losses: dict[InferRequest, int] = {}

    def __len__(self) -> int:
        return len(self._losses)

    def __iter__(self) -> Iterator[InferRequest]:
        return iter(self._losses)

    def __repr__(self) -> str:
        return f"<Alone {len(self._losses)} requests>"

    @property
    def rows(self) -> int:
        """Of all of them."""
        return sum(request.template.rows for request in self._losses)

    @property
    def next_expiry(self) -> int:
        """When the first of them expires (monotonic ns); 0: none does."""
        return min((request.expires for request in self._losses if request.expires), default=0)

    def append(self, requests: Iterable[InferRequest]) -> None:
        """Puts requests whose batch has failed behind the others."""
        self._losses |= dict.fromkeys(requests, 0)

    def put_first(self, requests: Iterable[InferRequest], losses: int) -> None:
        """Puts requests before the others that have lost so many instances."""
        self._losses = dict.fromkeys(requests, losses) | self._losses

    def pop(self) -> tuple[InferRequest, int]:
        """Takes out the first, and how many instances it has lost."""
        request = next(iter(self._losses))
        return request, self._losses.pop(request)

    def remove(self, request: InferRequest) -> None:
        """Takes out one whose caller has gone away. Raises KeyError if it is not here."""
        del self._losses[request]

    def pop_expired(self, now: int) -> list[InferRequest]:
        """Takes out what has expired by `now`; one that its policy only delays goes on to the RPC's deadline."""
        gone = [request for request in self._losses if 0 < request.expires <= now]
        over = [request for request in gone if is_over(request, now)]
        for request in over:
            del self._losses[request]
        for request in gone:
            if request in self._losses:
                request.expires = request.rpc_deadline
        return over

    def clear(self) -> None:
        """Forgets all."""
        self._losses.clear()
