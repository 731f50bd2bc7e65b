"""Traced requests and batches as OpenTelemetry spans. Runs on the exporter's thread, never on the event loop.

A request is a server span with one child for each stage that it came to. A batch is a trace of its own, linked to every
request in it that is traced; their stage `execute` links back to it.

Names: OpenTelemetry's semantic conventions for RPC and HTTP (1.45); what they do not know begins with `headrace.`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from headrace.messages import PHASES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from random import Random

    from headrace.telemetry.sampling import BatchTrace, RequestTrace

    Attributes = dict[str, str | int]

_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_NO_STATE = TraceState()
_OK = Status(StatusCode.UNSET)
_METHOD = "inference.GRPCInferenceService/"
_ROUTE = "/v2/models/{model_name}/infer"
_SERVER_ERRORS = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
"""gRPC statuses that are errors of a server's span (semantic conventions for gRPC)."""


class _Resource(Resource):
    """A resource that is hashed once: exporters group spans by it, and its hash is that of its JSON."""

    def __init__(self, resource: Resource) -> None:
        super().__init__(resource.attributes, resource.schema_url)
        self._hashed = super().__hash__()

    def __hash__(self) -> int:
        return self._hashed

    def __eq__(self, other: object) -> bool:
        return self is other or super().__eq__(other)


def server_resource(version: str) -> Resource:
    """What OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say of this server; without a name, it is `headrace`."""
    resource = Resource.create({"service.version": version})
    if str(resource.attributes.get("service.name", "")).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": "headrace"}))
    return _Resource(resource)


class SpanBuilder:
    """Makes spans.

    wall_offset: what to add to monotonic ns for ns since the Unix epoch. statuses: the names of gRPC statuses and the
    HTTP statuses of `HeadraceError.reason`. rng: of span ids.
    """

    def __init__(
        self,
        resource: Resource,
        version: str,
        wall_offset: Callable[[], int],
        statuses: Mapping[str, tuple[str, int]],
        rng: Random,
    ) -> None:
        self._resource = resource
        self._scope = InstrumentationScope("headrace", version)
        self._wall_offset = wall_offset
        self._statuses = statuses
        self._rng = rng

    def build(self, traces: Sequence[tuple[BatchTrace | None, Sequence[RequestTrace]]]) -> list[ReadableSpan]:
        """The spans of batches and their requests, and of requests that came into none."""
        offset = self._wall_offset()
        spans: list[ReadableSpan] = []
        for batch, requests in traces:
            contexts = [self._context(request) for request in requests]
            link: tuple[Link, ...] = ()
            if batch is not None:
                context = SpanContext(batch.trace_id, batch.span_id, False, _SAMPLED, _NO_STATE)
                spans.append(self._batch(batch, context, contexts, offset))
                link = (Link(context),)
            for request, context in zip(requests, contexts, strict=True):
                spans.append(self._server(request, context, batch, offset))
                spans.extend(self._stages(request, context, batch, link, offset))
        return spans

    def _context(self, request: RequestTrace) -> SpanContext:
        state = TraceState.from_header([request.tracestate.decode()]) if request.tracestate else _NO_STATE
        return SpanContext(request.trace_id, request.span_id, False, _SAMPLED, state)

    def _batch(
        self, batch: BatchTrace, context: SpanContext, requests: Sequence[SpanContext], offset: int
    ) -> ReadableSpan:
        attributes: Attributes = {
            "headrace.model.name": batch.model,
            "headrace.model.version": batch.version,
            "headrace.batch.rows": batch.rows,
            "headrace.batch.requests": batch.requests,
            "headrace.batch.close_reason": batch.close_reason,
            "headrace.batch.instance": batch.instance,
            "headrace.batch.execute_us": (batch.finished - batch.started) // 1000,
        }
        if batch.predicted_ns:
            attributes["headrace.batch.predicted_us"] = batch.predicted_ns // 1000
        if batch.padding_percent >= 0:
            attributes["headrace.batch.padding_percent"] = batch.padding_percent
        return ReadableSpan(
            f"batch {batch.model}",
            context,
            None,
            self._resource,
            attributes,
            links=[Link(request) for request in requests],
            start_time=batch.batched + offset,
            end_time=batch.encoded + offset,
            instrumentation_scope=self._scope,
        )

    def _server(
        self, request: RequestTrace, context: SpanContext, batch: BatchTrace | None, offset: int
    ) -> ReadableSpan:
        attributes: Attributes = {"headrace.sampled_for": request.cause}
        if request.model:
            attributes["headrace.model.name"] = request.model
            attributes["headrace.model.version"] = request.version
            attributes["headrace.rows"] = request.rows
        if batch is not None:
            attributes["headrace.batch.rows"] = batch.rows
            attributes["headrace.batch.close_reason"] = batch.close_reason
        if request.error:
            attributes["error.type"] = request.error
        code, http = self._statuses.get(request.error, ("INTERNAL", 500)) if request.error else ("OK", 200)
        failed = http >= 500 if request.door == "http" else code in _SERVER_ERRORS
        if request.cause == "failed" and request.error == "cancelled":
            failed = False
        name = f"infer {request.model}"
        if request.door == "http":
            name = f"POST {_ROUTE}"
            attributes |= {"http.request.method": "POST", "http.route": _ROUTE, "http.response.status_code": http}
        elif request.door:
            name = _METHOD + ("ModelStreamInfer" if request.door == "grpc_stream" else "ModelInfer")
            attributes |= {"rpc.system.name": "grpc", "rpc.method": name, "rpc.response.status_code": code}
        parent = None
        if request.parent_id:
            parent = SpanContext(request.trace_id, request.parent_id, True, _SAMPLED, context.trace_state)
        return ReadableSpan(
            name,
            context,
            parent,
            self._resource,
            attributes,
            kind=SpanKind.SERVER if request.door else SpanKind.INTERNAL,
            status=Status(StatusCode.ERROR, request.error) if failed else _OK,
            start_time=request.received + offset,
            end_time=request.ended + offset,
            instrumentation_scope=self._scope,
        )

    def _stages(
        self, request: RequestTrace, parent: SpanContext, batch: BatchTrace | None, link: Sequence[Link], offset: int
    ) -> Iterator[ReadableSpan]:
        """One span for each stage that was come to; the last one of a failed request ends with it."""
        moments = [request.received, request.decoded, request.admitted]
        if batch is None:
            moments = [moment for moment in moments if moment]
        else:
            moments += [batch.batched, batch.started, batch.finished]
        moments.append(request.ended)
        for stage, began, ended in zip(PHASES, moments, moments[1:], strict=False):
            yield ReadableSpan(
                stage,
                SpanContext(request.trace_id, self._rng.getrandbits(64) or 1, False, _SAMPLED, parent.trace_state),
                parent,
                self._resource,
                links=link if stage == "execute" else (),
                start_time=began + offset,
                end_time=ended + offset,
                instrumentation_scope=self._scope,
            )
