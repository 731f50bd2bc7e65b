"""The last requests of a model version: when they came, how large they were, when they were due, what became of them.

Nothing of what they said. Noting a batch extends no column: it keeps the lists that it makes of it, and forgets the
oldest batch when there are too many requests; arrays are made when somebody asks.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Sequence

    from headrace.messages import InferRequest
    from headrace.telemetry.observer import BatchRecord

    Array = np.ndarray[Any, Any]


class _Ran(NamedTuple):
    """A batch whose requests were answered with success.

    key: what they had to have in common to share it. row_bytes: of the first one's inputs.
    """

    batched: int
    started: int
    finished: int
    encoded: int
    rows: int
    reason: str
    instance: int
    key: Hashable
    row_bytes: int
    received: Sequence[int]
    decoded: Sequence[int]
    due: Sequence[int]
    each: Sequence[int]
    priority: Sequence[int]
    timeout: Sequence[int]


class _Ended(NamedTuple):
    """A request that ended without success."""

    reason: str
    key: Hashable
    row_bytes: int
    received: int
    decoded: int
    due: int
    rows: int
    priority: int
    timeout: int


class Diary:
    """Keeps the last `requests` requests that were answered, by whole batches, and as many that were not.

    The last batch is kept, however many requests it has.
    """

    __slots__ = ("_capacity", "_ended", "_kept", "_ran")

    def __init__(self, requests: int) -> None:
        self._capacity = requests
        self._ran: deque[_Ran] = deque()
        self._ended: deque[_Ended] = deque(maxlen=requests)
        self._kept = 0

    def __repr__(self) -> str:
        return f"<Diary {self._kept} requests in {len(self._ran)} batches, {len(self._ended)} without success>"

    def batch(self, record: BatchRecord) -> None:
        """Requests were answered; those of a split one by the last of its batches. The record's lists are kept."""
        requests, first = record.requests, record.first
        assert first is not None
        self._ran.append(
            _Ran(
                record.batched,
                record.started,
                record.finished,
                record.encoded,
                record.batch_rows,
                record.close_reason,
                record.instance,
                first.template.key,
                first.nbytes // first.template.rows,
                record.received,
                record.decoded,
                [request.rpc_deadline for request in requests],
                record.rows,
                [request.template.priority for request in requests],
                [request.template.timeout_ns for request in requests],
            )
        )
        self._kept += len(requests)
        while self._kept > self._capacity and len(self._ran) > 1:
            self._kept -= len(self._ran.popleft().each)

    def ended(self, request: InferRequest, reason: str) -> None:
        """A request ended without success, however far it had come. reason: a `HeadraceError.reason`."""
        template = request.template
        self._ended.append(
            _Ended(
                reason,
                template.key,
                request.nbytes // template.rows,
                request.received,
                getattr(request, "decoded", request.received),  # a rule refuses it before it is ready to be queued
                request.rpc_deadline,
                template.rows,
                template.priority,
                template.timeout_ns,
            )
        )

    def copy(self) -> Diary:
        """What is there now, for another thread."""
        other = Diary(self._capacity)
        other._ran.extend(self._ran)
        other._ended.extend(self._ended)
        other._kept = self._kept
        return other

    def columns(self) -> dict[str, Array]:
        """What is there, as `telemetry.recording.Recording` has it."""
        ran, kept = self._ran, self._since()
        keys: dict[Hashable, int] = {}
        number = {key: keys.setdefault(key, len(keys)) for key in (*(one.key for one in ran), *(e.key for e in kept))}
        counts = [len(one.each) for one in ran]

        def requests(name: str) -> Array:
            done = [value for one in ran for value in getattr(one, "each" if name == "rows" else name)]
            return np.array([*done, *(getattr(one, name) for one in kept)], np.int64)

        batch = np.repeat(np.arange(len(ran)), counts)
        shape = np.array([number[one.key] for one in ran], np.int32).repeat(counts)
        row_bytes = np.array([one.row_bytes for one in ran], np.int64).repeat(counts)
        return {
            **{name: requests(name) for name in ("received", "decoded", "due", "rows", "priority", "timeout")},
            "row_bytes": np.concatenate([row_bytes, np.array([one.row_bytes for one in kept], np.int64)]),
            "batch": np.concatenate([batch, np.full(len(kept), -1)]).astype(np.int64),
            "shape": np.concatenate([shape, _int32(number[one.key] for one in kept)]),
            "ended": _text([*([""] * len(batch)), *(one.reason for one in kept)]),
            **{
                f"batch_{name}": np.array([getattr(one, name) for one in ran], np.int64)
                for name in ("batched", "started", "finished", "encoded", "rows", "instance")
            },
            "batch_reason": _text([one.reason for one in ran]),
        }

    def _since(self) -> list[_Ended]:
        """Those that came no earlier than the oldest request that is kept of the others."""
        first = min((min(one.received, default=0) for one in self._ran if one.received), default=0)
        return [one for one in self._ended if one.received >= first]


def _int32(values: Iterable[int]) -> Array:
    return np.array(list(values), np.int32)


def _text(values: Sequence[str]) -> Array:
    return np.array(values, dtype=np.str_) if values else np.empty(0, "U1")
