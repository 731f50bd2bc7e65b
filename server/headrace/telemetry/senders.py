"""What sends spans to a collector: OpenTelemetry's exporters, which know retries, TLS, headers and their variables.

They take the SDK's spans and encode them; ours are encoded already. What is overridden here is not of their public API,
hence the narrow range of versions in pyproject.toml; tests/e2e/test_tracing.py sends by both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from opentelemetry.exporter.otlp.proto.grpc import trace_exporter as otlp_grpc
from opentelemetry.exporter.otlp.proto.http import trace_exporter as otlp_http
from opentelemetry.sdk.trace.export import SpanExportResult

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class _Grpc(otlp_grpc.OTLPSpanExporter):
    def _translate_data(self, data: Any) -> ExportTraceServiceRequest:  # noqa: ANN401 - the SDK's spans, elsewhere
        request: ExportTraceServiceRequest = data
        return request

    def _count_data(self, data: Any) -> int:  # noqa: ANN401
        return len(data.resource_spans[0].scope_spans[0].spans)

    def send(self, request: Any) -> bool:  # noqa: ANN401
        return self.export(request) is SpanExportResult.SUCCESS


class _Http(otlp_http.OTLPSpanExporter):
    def send(self, request: ExportTraceServiceRequest) -> bool:
        return bool(self._client.export(request.SerializeToString()).success)


def sender(
    protocol: Literal["grpc", "http"], endpoint: str
) -> tuple[Callable[[ExportTraceServiceRequest], bool], Callable[[], None]]:
    """(what sends spans and says whether it went well, what closes it). endpoint: empty for that of the environment."""
    exporter = (_Grpc if protocol == "grpc" else _Http)(endpoint=endpoint or None)
    return exporter.send, exporter.shutdown
