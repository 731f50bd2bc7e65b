"""A collector that keeps what OpenTelemetry's exporters send it: OTLP over gRPC on one port, over HTTP on another."""

import gzip
import threading
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
from e2e.server_process import eventually
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """A context manager. spans: all that came; resources: the attributes of what sent them."""

    def __init__(self):
        self.spans = []
        self.resources = []
        self.paths = []

    def __enter__(self):
        self._grpc = grpc.server(futures.ThreadPoolExecutor(2))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._grpc)
        self.grpc = f"http://127.0.0.1:{self._grpc.add_insecure_port('127.0.0.1:0')}"
        self._grpc.start()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.http = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._grpc.stop(None).wait()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def Export(self, request, context):  # noqa: N802 - its name in the protocol
        self.take(request)
        return pb.ExportTraceServiceResponse()

    def take(self, request):
        for resource in request.resource_spans:
            self.resources.append(attributes(resource.resource))
            for scope in resource.scope_spans:
                self.spans.extend(scope.spans)

    def trace(self, trace_id, spans=1):
        """The spans of a trace by name, once there are so many."""

        def found():
            of_it = [span for span in self.spans if span.trace_id.hex() == trace_id]
            return of_it if len(of_it) >= spans else None

        return {span.name: span for span in eventually(found)}

    def linked(self, span):
        """The span of the batch that is linked to a request's."""
        return next(
            other
            for other in self.spans
            if span.span_id in {link.span_id for link in other.links} and other is not span
        )


def attributes(span):
    """Those of a span or a resource."""
    return {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in span.attributes}


def _handler(collector):
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            collector.paths.append(self.path)
            collector.take(pb.ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    return Handler
