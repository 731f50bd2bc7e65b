"""Requests that are run again, each by itself and before all that wait: their batch has come to nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.pipeline.queue import is_over

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from headrace.messages import InferRequest


class Alone:
    """In the order in which they will run, each with the close reason of the batch that it will make."""

    __slots__ = ("_reasons",)

    def __init__(self) -> None:
        self._reasons: dict[InferRequest, str] = {}

    def __len__(self) -> int:
        return len(self._reasons)

    def __iter__(self) -> Iterator[InferRequest]:
        return iter(self._reasons)

    def __repr__(self) -> str:
        return f"<Alone {len(self._reasons)} requests>"

    @property
    def rows(self) -> int:
        """Of all of them."""
        return sum(request.template.rows for request in self._reasons)

    @property
    def next_expiry(self) -> int:
        """When the first of them expires (monotonic ns); 0: none does."""
        return min((request.expires for request in self._reasons if request.expires), default=0)

    def append(self, requests: Iterable[InferRequest], reason: str) -> None:
        """Puts requests behind the others."""
        self._reasons |= dict.fromkeys(requests, reason)

    def put_first(self, requests: Iterable[InferRequest], reason: str) -> None:
        """Puts requests before the others."""
        self._reasons = dict.fromkeys(requests, reason) | self._reasons

    def pop(self) -> tuple[InferRequest, str]:
        """Takes out the first, with its reason."""
        request = next(iter(self._reasons))
        return request, self._reasons.pop(request)

    def remove(self, request: InferRequest) -> None:
        """Takes out one whose caller has gone away. Raises KeyError if it is not here."""
        del self._reasons[request]

    def pop_expired(self, now: int) -> list[InferRequest]:
        """Takes out what has expired by `now`; one that its policy only delays goes on to the RPC's deadline."""
        gone = [request for request in self._reasons if 0 < request.expires <= now]
        over = [request for request in gone if is_over(request, now)]
        for request in over:
            del self._reasons[request]
        for request in gone:
            if request in self._reasons:
                request.expires = request.rpc_deadline
        return over

    def pop_unbounded(self) -> list[InferRequest]:
        """Takes out what would wait for ever."""
        found = [request for request in self._reasons if not request.expires]
        for request in found:
            del self._reasons[request]
        return found

    def clear(self) -> None:
        """Forgets all."""
        self._reasons.clear()
