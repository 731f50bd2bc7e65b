"""The latency breakdown that a reply carries when its request asked for it (parameter `headrace_timing`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.messages import PHASES
from headrace.pipeline.encode import encode_parameters

if TYPE_CHECKING:
    from headrace.messages import Batch, InferRequest


def phases_us(request: InferRequest, batch: Batch, encoded: int) -> dict[str, int]:
    """Each phase in whole microseconds. They add up to the total: the moments are rounded, not the differences."""
    moments = (
        request.received,
        request.decoded,
        request.admitted,
        batch.batched,
        batch.started,
        batch.finished,
        encoded,
    )
    since = [(moment - request.received) // 1000 for moment in moments]
    return {phase: after - before for phase, before, after in zip(PHASES, since, since[1:], strict=False)}


def timing_parameters(request: InferRequest, batch: Batch, encoded: int, trace_id: str = "") -> bytes:
    """Reply parameters, all `headrace_`: `<phase>_us`, `total_us`, `batch_rows`, `batch_requests`, `close_reason`.

    `padding_percent`, where the model has buckets: how much of what ran for the request was padding. `trace_id`, where
    its spans are exported.
    """
    phases = phases_us(request, batch, encoded)
    values: dict[str, int | str] = {f"headrace_{phase}_us": spent for phase, spent in phases.items()}
    values["headrace_total_us"] = sum(phases.values())
    values["headrace_batch_rows"] = batch.rows
    values["headrace_batch_requests"] = len(batch.requests)
    values["headrace_close_reason"] = batch.reason
    fit = request.template.fit
    if fit is not None:
        values["headrace_padding_percent"] = fit.padding_percent
    if trace_id:
        values["headrace_trace_id"] = trace_id
    return encode_parameters(values)
