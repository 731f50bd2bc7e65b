"""What sends spans to a collector: OpenTelemetry's exporters, which know retries, TLS, headers and their variables.

They take the SDK's spans and encode them; ours are encoded already. What is overridden here is not of their public API,
hence the narrow range of versions in pyproject.toml; tests/e2e/test_tracing.py sends by both.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, Protocol

import grpc
from opentelemetry.exporter.otlp.proto.grpc import trace_exporter as otlp_grpc
from opentelemetry.exporter.otlp.proto.http import trace_exporter as otlp_http
from opentelemetry.sdk.trace.export import SpanExportResult

if TYPE_CHECKING:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

_UNTOLD = "the exporter does not say why"


class Sender(Protocol):
    """where: the collector's address, without what may be secret in it."""

    @property
    def where(self) -> str: ...  # noqa: D102

    def send(self, request: ExportTraceServiceRequest) -> str:
        """Sends spans; returns why that failed, or nothing."""
        ...

    def shutdown(self) -> None:
        """Ends what is under way, and closes the connection."""
        ...


class _Grpc(otlp_grpc.OTLPSpanExporter):
    _why = ""

    @property
    def where(self) -> str:
        return _address(self._endpoint)

    def _initialize_channel_and_stub(self) -> None:  # again at each attempt to connect anew
        super()._initialize_channel_and_stub()  # type: ignore[no-untyped-call]
        assert self._client is not None
        export = self._client.Export

        def told(**call: Any) -> Any:  # noqa: ANN401 - the arguments of the SDK
            try:
                return export(**call)
            except grpc.RpcError as error:
                self._why = f"{error.code().name}: {error.details()}"
                raise

        self._client = SimpleNamespace(Export=told)

    def _translate_data(self, data: Any) -> ExportTraceServiceRequest:  # noqa: ANN401 - the SDK's spans, elsewhere
        request: ExportTraceServiceRequest = data
        return request

    def _count_data(self, data: Any) -> int:  # noqa: ANN401
        return len(data.resource_spans[0].scope_spans[0].spans)

    def send(self, request: Any) -> str:  # noqa: ANN401
        self._why = ""
        return "" if self.export(request) is SpanExportResult.SUCCESS else self._why or _UNTOLD


class _Http(otlp_http.OTLPSpanExporter):
    @property
    def where(self) -> str:
        return _address(self._endpoint)

    def send(self, request: ExportTraceServiceRequest) -> str:
        result = self._client.export(request.SerializeToString())
        if result.success:
            return ""
        if result.status_code is not None:
            return f"HTTP {result.status_code} {result.reason or ''}"
        inner = result.error.args[0] if result.error is not None and result.error.args else result.error
        return str(getattr(inner, "reason", inner) or _UNTOLD)  # of urllib3, whose own text has the whole URL


def _address(endpoint: str) -> str:
    """An endpoint without user, password and query."""
    return endpoint.rpartition("@")[2].partition("?")[0]


def sender(protocol: Literal["grpc", "http"], endpoint: str) -> Sender:
    """What sends spans. endpoint: empty for that of the environment."""
    return (_Grpc if protocol == "grpc" else _Http)(endpoint=endpoint or None)
