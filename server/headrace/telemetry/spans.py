"""Traced requests and batches as spans of OpenTelemetry's protocol. Runs on the exporter's thread, never on the loop.

A request is a server span with one child for each stage that it came to. A batch is a trace of its own, linked to every
request in it that is traced; their stage `execute` links back to it.

Spans are made when they are over, and as messages of OTLP (opentelemetry-proto, trace.proto) at once: by way of the
SDK's objects they take several times as long, on a thread that competes with the event loop for the interpreter.

Names: OpenTelemetry's semantic conventions for RPC and HTTP (1.45); what they do not know begins with `headrace.`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.sdk.resources import Resource as SdkResource

from headrace.messages import PHASES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from random import Random

    from headrace.telemetry.sampling import BatchTrace, RequestTrace

    Add = Callable[..., Span]  # makes one in its place: to copy it there costs as much again

_FLAGS = 0x101
"""Sampled; and it is known whether the parent is remote: it is not (trace.proto, SpanFlags)."""
_REMOTE = 0x200
_METHOD = "inference.GRPCInferenceService/"
_ROUTE = "/v2/models/{model_name}/infer"
_SERVER_ERRORS = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
"""gRPC statuses that are errors of a server's span (semantic conventions for gRPC)."""


@lru_cache(4096)
def _attribute(key: str, value: str | int) -> KeyValue:
    if isinstance(value, bool):
        return KeyValue(key=key, value=AnyValue(bool_value=value))
    said = AnyValue(string_value=value) if isinstance(value, str) else AnyValue(int_value=value)
    return KeyValue(key=key, value=said)


def server_resource(version: str) -> Resource:
    """What OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say of this server; without a name, it is `headrace`."""
    said = dict(SdkResource.create({"service.version": version}).attributes)
    if str(said.get("service.name", "")).startswith("unknown_service"):
        said["service.name"] = "headrace"
    return Resource(attributes=[_attribute(key, str(value)) for key, value in said.items()])


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
        self._scope = InstrumentationScope(name="headrace", version=version)
        self._wall_offset = wall_offset
        self._statuses = statuses
        self._rng = rng

    def build(self, traces: Sequence[tuple[BatchTrace | None, Sequence[RequestTrace]]]) -> ExportTraceServiceRequest:
        """The spans of batches and their requests, and of requests that came into none."""
        offset = self._wall_offset()
        request = ExportTraceServiceRequest()
        resource = request.resource_spans.add(resource=self._resource)
        add = resource.scope_spans.add(scope=self._scope).spans.add
        for batch, requests in traces:
            links: Sequence[Span.Link] = ()
            if batch is not None:
                _batch(add, batch, requests, offset)
                links = (_link(batch),)
            for traced in requests:
                self._server(add, traced, batch, offset)
                self._stages(add, traced, links, offset)
        return request

    def _server(self, add: Add, request: RequestTrace, batch: BatchTrace | None, offset: int) -> None:
        said: dict[str, str | int] = {"headrace.sampled_for": request.cause}
        if request.model:
            said["headrace.model.name"] = request.model
            said["headrace.model.version"] = request.version
        if request.rows:
            said["headrace.rows"] = request.rows
        if batch is not None:
            said["headrace.batch.rows"] = batch.rows
            said["headrace.batch.close_reason"] = batch.close_reason
        if request.cached:
            said["headrace.cached"] = True
        if request.error:
            said["error.type"] = request.error
        code, http = self._statuses.get(request.error, ("INTERNAL", 500)) if request.error else ("OK", 200)
        scheme, _, path = request.door.partition(":")
        failed = http >= 500 if path else code in _SERVER_ERRORS
        name = f"infer {request.model}"
        if path:
            name = f"POST {_ROUTE}"
            said |= {"http.request.method": "POST", "http.route": _ROUTE, "http.response.status_code": http}
            said |= {"url.scheme": scheme, "url.path": path}
        elif request.door:
            name = _METHOD + ("ModelStreamInfer" if request.door == "grpc_stream" else "ModelInfer")
            said |= {"rpc.system.name": "grpc", "rpc.method": name, "rpc.response.status_code": code}
        add(
            trace_id=request.trace_id.to_bytes(16, "big"),
            span_id=request.span_id.to_bytes(8, "big"),
            parent_span_id=request.parent_id.to_bytes(8, "big") if request.parent_id else b"",
            trace_state=request.tracestate.decode(),
            flags=_FLAGS | _REMOTE if request.parent_id else _FLAGS,
            name=name,
            kind=Span.SPAN_KIND_SERVER if request.door else Span.SPAN_KIND_INTERNAL,
            status=Status(code=Status.STATUS_CODE_ERROR, message=request.error) if failed else None,
            start_time_unix_nano=request.received + offset,
            end_time_unix_nano=request.ended + offset,
            attributes=[_attribute(key, value) for key, value in said.items()],
        )

    def _stages(self, add: Add, request: RequestTrace, links: Sequence[Span.Link], offset: int) -> None:
        """One span for each stage that was come to; the last one of a failed request ends with it."""
        came = (request.received, request.decoded, request.admitted, request.batched, request.started, request.finished)
        moments = [*(moment for moment in came if moment), request.ended]
        trace_id, parent_id = request.trace_id.to_bytes(16, "big"), request.span_id.to_bytes(8, "big")
        state = request.tracestate.decode()
        for stage, began, ended in zip(PHASES, moments, moments[1:], strict=False):
            add(
                trace_id=trace_id,
                span_id=self._rng.getrandbits(64).to_bytes(8, "big"),
                parent_span_id=parent_id,
                trace_state=state,
                flags=_FLAGS,
                name=stage,
                kind=Span.SPAN_KIND_INTERNAL,
                start_time_unix_nano=began + offset,
                end_time_unix_nano=ended + offset,
                links=links if stage == "execute" else (),
            )


def _batch(add: Add, batch: BatchTrace, requests: Sequence[RequestTrace], offset: int) -> None:
    said: dict[str, str | int] = {
        "headrace.model.name": batch.model,
        "headrace.model.version": batch.version,
        "headrace.batch.rows": batch.rows,
        "headrace.batch.requests": batch.requests,
        "headrace.batch.close_reason": batch.close_reason,
        "headrace.batch.instance": batch.instance,
        "headrace.batch.execute_us": (batch.finished - batch.started) // 1000,
    }
    if batch.error:
        said["error.type"] = batch.error
    if batch.predicted_ns:
        said["headrace.batch.predicted_us"] = batch.predicted_ns // 1000
    if batch.padding_percent >= 0:
        said["headrace.batch.padding_percent"] = batch.padding_percent
    add(
        trace_id=batch.trace_id.to_bytes(16, "big"),
        span_id=batch.span_id.to_bytes(8, "big"),
        flags=_FLAGS,
        name=f"batch {batch.model}",
        kind=Span.SPAN_KIND_INTERNAL,
        status=Status(code=Status.STATUS_CODE_ERROR, message=batch.error) if batch.error else None,
        start_time_unix_nano=batch.batched + offset,
        end_time_unix_nano=batch.encoded + offset,
        attributes=[_attribute(key, value) for key, value in said.items()],
        links=[_link(request) for request in requests],
    )


def _link(to: BatchTrace | RequestTrace) -> Span.Link:
    return Span.Link(trace_id=to.trace_id.to_bytes(16, "big"), span_id=to.span_id.to_bytes(8, "big"), flags=_FLAGS)
