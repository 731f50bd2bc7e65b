"""A `ModelObserver` that remembers."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from headrace.telemetry.observer import FALLBACK_REASONS

if TYPE_CHECKING:
    from headrace.messages import InferRequest, ReplySink
    from headrace.telemetry.observer import BatchRecord


class RecordingObserver:
    """Keeps batches, counts refusals by reason, and keeps the batches in which requests failed."""

    def __init__(self) -> None:
        self.batches: list[BatchRecord] = []
        self.reasons: Counter[str] = Counter()
        self.failed: list[tuple[str, BatchRecord]] = []
        self.wasted_rows = 0
        self.wasted_ns = 0
        self.elements = 0
        self.padding = 0
        self.expired_sequences = 0
        self.rules: Counter[tuple[str, str, str]] = Counter()
        self.fallbacks: list[tuple[str, str, str]] = []
        self.lost = 0
        self.reruns = 0

    def __repr__(self) -> str:
        return f"<RecordingObserver {self.requests} requests in {len(self.batches)} batches, {dict(self.reasons)}>"

    @property
    def requests(self) -> int:
        """Requests that were answered with success."""
        return sum(len(record.rows) for record in self.batches)

    @property
    def rows(self) -> int:
        """Their rows."""
        return sum(sum(record.rows) for record in self.batches)

    def batch(self, record: BatchRecord) -> None:
        """See `ModelObserver`."""
        columns = (record.received, record.decoded, record.admitted, record.rows)
        assert len({len(column) for column in columns}) == 1, f"columns of different lengths: {record}"
        self.batches.append(replace(record, requests=(), first=None))  # which know their callers, who may go

    def refused(
        self, reason: str, requests: int = 1, request: InferRequest | None = None, record: BatchRecord | None = None
    ) -> None:
        """See `ModelObserver`."""
        self.reasons[reason] += requests
        if record is not None:
            self.failed.append((reason, replace(record, requests=(), first=None)))

    def unfit(self, sink: ReplySink, received: int, reason: str) -> None:
        """See `ModelObserver`."""
        self.reasons[reason] += 1

    def trace_id(self, request: InferRequest) -> str:
        """See `ModelObserver`."""
        return ""

    def wasted(self, rows: int, execute_ns: int) -> None:
        """See `ModelObserver`."""
        self.wasted_rows += rows
        self.wasted_ns += execute_ns

    def padded(self, elements: int, padding: int) -> None:
        """See `ModelObserver`."""
        self.elements += elements
        self.padding += padding

    def rule_broken(self, name: str, rule: str, policy: str, requests: int) -> None:
        """See `ModelObserver`."""
        self.rules[name, rule, policy] += requests

    def sequences_expired(self, sequences: int) -> None:
        """See `ModelObserver`."""
        self.expired_sequences += sequences

    def fell_back(self, backend: str, to: str, reason: str) -> None:
        """See `ModelObserver`."""
        assert reason in FALLBACK_REASONS
        self.fallbacks.append((backend, to, reason))

    def instances_lost(self, instances: int) -> None:
        """See `ModelObserver`."""
        self.lost += instances

    def rerun(self, requests: int) -> None:
        """See `ModelObserver`."""
        self.reruns += requests
