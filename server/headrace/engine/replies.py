"""What a scheduler makes of a batch that has run, beside the replies themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.messages import State
from headrace.telemetry.observer import BatchRecord

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.engine.worker import OutputRows
    from headrace.messages import Batch, InferRequest


def output_shapes(rows: int, outputs: Sequence[OutputRows], *, batched: bool) -> tuple[tuple[int, ...], ...]:
    """The shapes of the outputs of a request of so many rows."""
    if not batched:
        return tuple(output.dims for output in outputs)
    return tuple((rows, *output.dims) for output in outputs)


def record_of(answered: Sequence[InferRequest], batch: Batch, instance: int, encoded: int) -> BatchRecord:
    """What observers hear of a batch. encoded: when its replies were written, monotonic ns."""
    return BatchRecord(
        received=[request.received for request in answered],
        decoded=[request.decoded for request in answered],
        admitted=[request.admitted for request in answered],
        rows=[request.template.rows for request in answered],
        batched=batch.batched,
        started=batch.started,
        finished=batch.finished,
        encoded=encoded,
        batch_rows=batch.rows,
        close_reason=batch.reason,
        instance=instance,
    )


def whole_requests(answered: Sequence[InferRequest]) -> list[InferRequest]:
    """The requests that are now answered: of a split one, each piece but the last is not yet an answer."""
    wholes = [request.template.whole or request for request in answered]
    return [whole for whole, request in zip(wholes, answered, strict=True) if whole.state is State.DONE]
