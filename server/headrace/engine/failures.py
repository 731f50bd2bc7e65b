"""What the log says of batches that a model fails, and what the callers of the requests in them are told."""

from __future__ import annotations

import logging
import secrets
from typing import TYPE_CHECKING

from headrace.errors import BackendFailed
from headrace.sparing import KINDS, Sparing
from headrace.telemetry.logs import of_model

if TYPE_CHECKING:
    from headrace.clock import Clock

logger = logging.getLogger(__name__)


class FailureLog:
    """Of one model version: one line a second for each class of error, for any caller may cause any number of them.

    Those that no line tells of have the correlation id of the last that one does: who looks for it finds their like.
    """

    def __init__(self, model: str, version: str, clock: Clock) -> None:
        self._model = model
        self._version = version
        self._fields = of_model(model, version)
        self._sparing = Sparing(clock)
        self._told: dict[str, str] = {}  # class of error -> the id of the last that was logged

    def request(self, error: Exception, trace_id: str) -> BackendFailed:
        """The error of a request that was run alone and failed, told in the log with its traceback."""
        kind = type(error).__name__
        left_out = self._sparing.left_out(kind)
        if left_out is None:
            return could_not_run(self._model, error, trace_id, self._told.get(kind, ""))[0]
        failure, ids = could_not_run(self._model, error, trace_id)
        if kind not in self._told and len(self._told) >= KINDS:
            self._told.clear()
        self._told[kind] = ids["correlation_id"]
        logger.error(
            "version %s of %s%s",
            self._version,
            failure,
            _more(left_out),
            exc_info=error,
            extra={**self._fields, **ids},
        )
        return failure

    def batch(self, error: Exception, requests: int) -> None:
        """A batch failed; so many of its requests are run one by one."""
        left_out = self._sparing.left_out(("batch", type(error).__name__))
        if left_out is not None:
            logger.warning(
                "model %s version %s failed a batch of %d requests, which are run one by one: %s%s",
                self._model,
                self._version,
                requests,
                error,
                _more(left_out),
                extra=self._fields,
            )


def could_not_run(
    model: str, error: Exception, trace_id: str = "", correlation_id: str = ""
) -> tuple[BackendFailed, dict[str, str]]:
    """The error of a request that a model has failed, and the ids for the log: one that its text has; of its trace.

    correlation_id: a new one by default.
    """
    ids = {"correlation_id": correlation_id or secrets.token_hex(8)}
    text = f"model '{model}' could not run this request, correlation id {ids['correlation_id']}"
    return BackendFailed(text, str(error)), {**ids, "trace_id": trace_id} if trace_id else ids


def _more(left_out: int) -> str:
    return f"; {left_out} more like it were not logged" if left_out else ""
