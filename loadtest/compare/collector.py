"""An OTLP collector that counts what it gets and throws it away, for the server that traces."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass
class Collector:
    """url: of its port on loopback (OTLP over gRPC). exports: calls that it has taken."""

    url: str = ""
    exports: int = 0

    def take(self, _request: bytes, _context: grpc.ServicerContext) -> bytes:
        """Answers with an ExportTraceServiceResponse that says nothing, so the empty message."""
        self.exports += 1
        return b""


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector for the length of the block."""
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(1))
    take = grpc.unary_unary_rpc_method_handler(collector.take)  # without serializers: octets in and out
    service = "opentelemetry.proto.collector.trace.v1.TraceService"
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": take}),))
    collector.url = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield collector
    finally:
        server.stop(None).wait()
