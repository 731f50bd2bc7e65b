"""Keeps the failures of an observer away from the request path."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, ParamSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.messages import InferRequest, ReplySink
    from headrace.telemetry.observer import BatchRecord, ModelObserver, Observer, QueueDepth

    Report = Callable[[str, Exception], None]

logger = logging.getLogger(__name__)
P = ParamSpec("P")


class ObserverGuard:
    """The `Observer` that the engine is given: passes everything on to another, and never raises.

    Each kind of failure (method and exception class) is logged once, with its traceback; what the failing call would
    have recorded is lost, the next call is made as ever.
    """

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._seen: set[tuple[str, type[Exception]]] = set()

    def model(self, name: str, version: str, queue_depth: QueueDepth) -> ModelObserver:
        """The other's `ModelObserver`, guarded; one that hears nothing if there is none."""
        try:
            return _GuardedModel(self._observer.model(name, version, queue_depth), self._report)
        except Exception as error:
            self._report("model", error)
            return _Deaf()

    def forget(self, name: str, version: str) -> None:
        """The version was unloaded."""
        try:
            self._observer.forget(name, version)
        except Exception as error:
            self._report("forget", error)

    def guarded(self, name: str, function: Callable[P, None]) -> Callable[P, None]:
        """The same function, which does not raise either."""

        def call(*args: P.args, **kwargs: P.kwargs) -> None:
            try:
                function(*args, **kwargs)
            except Exception as error:
                self._report(name, error)

        return call

    def _report(self, method: str, error: Exception) -> None:
        kind = (method, type(error))
        if kind not in self._seen:
            self._seen.add(kind)
            logger.error(
                "an observer failed; more of this kind will not be logged",
                exc_info=error,
                extra={"method": method, "error": type(error).__name__},
            )


class _GuardedModel:
    __slots__ = ("_batch", "_model", "_report")

    def __init__(self, model: ModelObserver, report: Report) -> None:
        self._model = model
        self._batch = model.batch  # bound once: this is called for each batch
        self._report = report

    def batch(self, record: BatchRecord) -> None:
        try:
            self._batch(record)
        except Exception as error:
            self._report("batch", error)

    def refused(
        self, reason: str, requests: int = 1, request: InferRequest | None = None, record: BatchRecord | None = None
    ) -> None:
        try:
            self._model.refused(reason, requests, request, record)
        except Exception as error:
            self._report("refused", error)

    def unfit(self, sink: ReplySink, received: int, reason: str) -> None:
        try:
            self._model.unfit(sink, received, reason)
        except Exception as error:
            self._report("unfit", error)

    def trace_id(self, request: InferRequest) -> str:
        try:
            return self._model.trace_id(request)
        except Exception as error:
            self._report("trace_id", error)
            return ""

    def wasted(self, rows: int, execute_ns: int) -> None:
        try:
            self._model.wasted(rows, execute_ns)
        except Exception as error:
            self._report("wasted", error)

    def padded(self, elements: int, padding: int) -> None:
        try:
            self._model.padded(elements, padding)
        except Exception as error:
            self._report("padded", error)

    def rule_broken(self, name: str, rule: str, policy: str, requests: int) -> None:
        try:
            self._model.rule_broken(name, rule, policy, requests)
        except Exception as error:
            self._report("rule_broken", error)

    def sequences_expired(self, sequences: int) -> None:
        try:
            self._model.sequences_expired(sequences)
        except Exception as error:
            self._report("sequences_expired", error)

    def fell_back(self, backend: str, to: str, reason: str) -> None:
        try:
            self._model.fell_back(backend, to, reason)
        except Exception as error:
            self._report("fell_back", error)

    def instances_lost(self, instances: int) -> None:
        try:
            self._model.instances_lost(instances)
        except Exception as error:
            self._report("instances_lost", error)

    def rerun(self, requests: int) -> None:
        try:
            self._model.rerun(requests)
        except Exception as error:
            self._report("rerun", error)


class _Deaf:
    def batch(self, record: BatchRecord) -> None:
        pass

    def refused(
        self, reason: str, requests: int = 1, request: InferRequest | None = None, record: BatchRecord | None = None
    ) -> None:
        pass

    def unfit(self, sink: ReplySink, received: int, reason: str) -> None:
        pass

    def trace_id(self, request: InferRequest) -> str:
        return ""

    def wasted(self, rows: int, execute_ns: int) -> None:
        pass

    def padded(self, elements: int, padding: int) -> None:
        pass

    def rule_broken(self, name: str, rule: str, policy: str, requests: int) -> None:
        pass

    def sequences_expired(self, sequences: int) -> None:
        pass

    def fell_back(self, backend: str, to: str, reason: str) -> None:
        pass

    def instances_lost(self, instances: int) -> None:
        pass

    def rerun(self, requests: int) -> None:
        pass
