"""The requests that wait for one model version, ordered by deadline within priority, grouped by what can be batched."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from operator import attrgetter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Iterator, Sequence

    from headrace.messages import InferRequest, Template

_order = attrgetter("order")

PRIORITY_STEP = 1 << 64
"""What one priority level adds to `order`: more than twice what any monotonic clock in nanoseconds reaches."""

DELAYED = PRIORITY_STEP >> 1
"""What a timeout adds to the `order` of a request that is delayed by it: behind all others of its level."""

HORIZON_NS = 1_000_000_000
"""What is due later than this after its arrival, or never, is queued as if it were due then: in the order of arrival,
no later for having a deadline than without one, and not starved by a stream of requests with earlier ones."""


def order_of(priority: int, expires: int, now: int) -> int:
    """Sort key of a request that arrives at `now`: lower is served first. `expires` 0: no deadline."""
    horizon = now + HORIZON_NS
    return priority * PRIORITY_STEP + (expires if 0 < expires < horizon else horizon)


def is_over(request: InferRequest, now: int) -> bool:
    """Whether a request whose `expires` has come is refused: its timeout may only delay it, its deadline never."""
    return not request.template.policy.delays or 0 < request.rpc_deadline <= now


class RequestQueue:
    """Waiting requests of one model version; counts requests, rows and bytes.

    One sorted list a group, a group being the requests of one batch key. Nearly every model has one group and nearly
    every request is due after those before it, so that the common insertion is an append.
    """

    __slots__ = ("_groups", "_next_expiry", "nbytes", "requests", "rows")

    def __init__(self) -> None:
        self._groups: dict[Hashable, list[InferRequest]] = {}
        self._next_expiry = 0
        self.requests = 0
        self.rows = 0
        self.nbytes = 0

    def __len__(self) -> int:
        return self.requests

    def __iter__(self) -> Iterator[InferRequest]:
        for group in self._groups.values():
            yield from group

    def __repr__(self) -> str:
        return f"<RequestQueue {self.requests} requests, {self.rows} rows, {len(self._groups)} groups>"

    @property
    def next_expiry(self) -> int:
        """No waiting request expires before this moment (monotonic ns); 0: none expires at all. May be too early."""
        return self._next_expiry

    def push(self, request: InferRequest) -> None:
        """Adds a request whose `order` is set."""
        self.extend((request,), request.template.rows, request.nbytes, request.expires)

    def extend(self, requests: Sequence[InferRequest], rows: int, nbytes: int, soonest: int) -> None:
        """Adds requests of one key, whose `order` is set.

        rows, nbytes: of all of them. soonest: the first moment at which one of them expires, 0 for none.
        """
        group = self._groups.setdefault(requests[0].template.key, [])
        orders = [request.order for request in requests]
        in_order = (not group or group[-1].order <= orders[0]) and orders == sorted(orders)
        group += requests
        if not in_order:
            group.sort(key=_order)  # stable, and quick on what is two sorted lists for the most part
        self.requests += len(requests)
        self.rows += rows
        self.nbytes += nbytes
        if soonest and not 0 < self._next_expiry <= soonest:
            self._next_expiry = soonest

    def remove(self, request: InferRequest) -> bool:
        """Takes a waiting request out (its caller has gone away). False if it was not here."""
        key = request.template.key
        group = self._groups.get(key, [])
        at = bisect_left(group, request.order, key=_order)
        while at < len(group) and group[at].order == request.order:
            if group[at] is request:
                del group[at]
                if not group:
                    del self._groups[key]
                self._uncount(request)
                return True
            at += 1
        return False

    def pop_expired(self, now: int) -> list[InferRequest]:
        """Takes out what has expired by `now`, and finds the next expiry. Costs nothing before `next_expiry`.

        What its policy delays stays, behind the others of its priority.
        """
        if not 0 < self._next_expiry <= now:
            return []
        expired: list[InferRequest] = []
        next_expiry = 0
        for key, group in list(self._groups.items()):
            gone = [r for r in group if 0 < r.expires <= now]
            if gone:
                group[:] = [r for r in group if not 0 < r.expires <= now]
                expired += [r for r in gone if is_over(r, now)]
                _delay(group, [r for r in gone if not is_over(r, now)])
            if not group:
                del self._groups[key]
            soonest = min((r.expires for r in group if r.expires), default=0)
            if soonest and not 0 < next_expiry <= soonest:
                next_expiry = soonest
        self._next_expiry = next_expiry
        for request in expired:
            self._uncount(request)
        return expired

    def head_group(self, but: Collection[Hashable] = ()) -> list[InferRequest]:
        """The group whose first request is to be served first; read it, do not change it. Empty if there is none.

        but: keys of groups to leave out.
        """
        groups = self._groups
        if len(groups) == 1 and not but:
            return next(iter(groups.values()))
        return min(
            (group for key, group in groups.items() if key not in but), key=lambda group: group[0].order, default=[]
        )

    def pop_front(self, group: list[InferRequest], count: int) -> list[InferRequest]:
        """Takes the first `count` requests out of `group`, which `head_group` has returned."""
        taken = group[:count]
        if count == len(group):
            del self._groups[taken[0].template.key]
        else:
            del group[:count]
        rows = nbytes = 0
        for request in taken:
            rows += request.template.rows
            nbytes += request.nbytes
        self.requests -= count
        self.rows -= rows
        self.nbytes -= nbytes
        if not self.requests:
            self._next_expiry = 0
        return taken

    def pop(self, group: list[InferRequest], chosen: Sequence[InferRequest]) -> list[InferRequest]:
        """Takes these requests, which stand in `group` in this order, out of it."""
        if group[: len(chosen)] == chosen:
            return self.pop_front(group, len(chosen)) if chosen else []
        end = group.index(chosen[-1]) + 1
        gone = set(map(id, chosen))
        group[:end] = [request for request in group[:end] if id(request) not in gone]
        if not group:
            del self._groups[chosen[0].template.key]
        for request in chosen:
            self._uncount(request)
        return list(chosen)

    @property
    def groups(self) -> int:
        """How many batch keys wait."""
        return len(self._groups)

    def groups_ahead(self, order: int) -> Iterator[tuple[Template, int]]:
        """The same as `rows_ahead` for each group by itself, with the template of one of its requests."""
        for group in self._groups.values():
            requests = bisect_right(group, order, key=_order)
            yield group[0].template, requests * self.rows // self.requests

    def rows_ahead(self, order: int) -> int:
        """About how many rows would be served before a request of this order, were it admitted now."""
        requests = 0
        for group in self._groups.values():
            requests += len(group) if group[-1].order <= order else bisect_right(group, order, key=_order)
        return requests * self.rows // self.requests if requests else 0

    def waiting(self, priority: int) -> int:
        """How many requests of one priority wait."""
        start = priority * PRIORITY_STEP
        bounds = (start, start + PRIORITY_STEP)
        cuts = [[bisect_left(group, bound, key=_order) for bound in bounds] for group in self._groups.values()]
        return sum(stop - start for start, stop in cuts)

    def _uncount(self, request: InferRequest) -> None:
        self.requests -= 1
        self.rows -= request.template.rows
        self.nbytes -= request.nbytes
        if not self.requests:
            self._next_expiry = 0


def _delay(group: list[InferRequest], late: list[InferRequest]) -> None:
    """Puts requests whose timeout has come back into their group; what is left to them is the RPC's deadline."""
    for request in late:
        request.order += DELAYED
        request.expires = request.rpc_deadline
    if late:
        group += late
        group.sort(key=_order)
