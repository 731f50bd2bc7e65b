"""What a scheduler makes of a batch that has run, or has not, beside the replies themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.errors import ModelNotReady, StateLost
from headrace.messages import State
from headrace.pipeline.timing import timing_parameters
from headrace.telemetry.observer import BatchRecord

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.clock import Clock
    from headrace.engine.worker import OutputRows
    from headrace.messages import Batch, InferRequest
    from headrace.pipeline.cost import CostModel
    from headrace.telemetry.observer import ModelObserver


def output_shapes(rows: int, outputs: Sequence[OutputRows], *, batched: bool) -> tuple[tuple[int, ...], ...]:
    """The shapes of the outputs of a request of so many rows."""
    if not batched:
        return tuple(output.dims for output in outputs)
    return tuple((rows, *output.dims) for output in outputs)


def record_of(
    answered: Sequence[InferRequest], batch: Batch, instance: int, encoded: int, cost: CostModel | None = None
) -> BatchRecord:
    """What observers hear of a batch. encoded: when its replies were written, monotonic ns; 0: its run has failed."""
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
        late=len([r for r in answered if 0 < r.expires < encoded and not r.template.policy.delays]),
        requests=answered,
        cost=cost,
        first=batch.requests[0],
    )


def timing(request: InferRequest, batch: Batch, clock: Clock, observer: ModelObserver) -> bytes:
    """Parameters of a reply whose request asked for its timing."""
    return timing_parameters(request, batch, clock(), observer.trace_id(request))


def whole_requests(answered: Sequence[InferRequest]) -> list[InferRequest]:
    """The requests that are now answered: of a split one, each piece but the last is not yet an answer."""
    wholes = [request.template.whole or request for request in answered]
    return [whole for whole, request in zip(wholes, answered, strict=True) if whole.state is State.DONE]


def no_instance(model: str, version: str) -> ModelNotReady:
    """The error of a request that no instance is there for, nor will be soon."""
    return ModelNotReady(
        f"Request for unknown model: '{model}' version {version} is not at ready state: its instances are lost and "
        "could not be made anew yet"
    )


def state_lost(model: str) -> StateLost:
    """The error of a request that cannot be run again elsewhere."""
    return StateLost(
        f"the instance of model '{model}' that ran this request was lost, and what the model kept of the sequence with "
        "it: the sequence has ended, begin it anew"
    )
