"""What this machine cannot show, for Prometheus to scrape: GPUs.

Their metrics come from the server's own collectors, around an NVML that is made up. Counters grow with each scrape.
"""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

from prometheus_client import CollectorRegistry, generate_latest

from headrace.telemetry.gpu import GpuReader
from headrace.telemetry.metrics import Metrics
from headrace.telemetry.observer import BatchRecord
from headrace.telemetry.server_metrics import ServerMetrics


class StandIn:
    """On a free port, until the `with` statement ends."""

    def __init__(self):
        registry = CollectorRegistry()
        ServerMetrics(registry)
        self._recorder = Metrics(registry).model("m", "1", lambda: (0, 0))
        self._recorder.loaded(1.0, lambda: ({"cuda:0": 1 << 30}, {"CUDAExecutionProvider": 7}))
        self._registry = registry
        self._scrapes = 0
        self._gpus = GpuReader(lambda: self._nvml())
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                body = stand_in.text()
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.target = f"127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _nvml(self):
        return SimpleNamespace(
            nvmlInit=lambda: None,
            nvmlDeviceGetCount=lambda: 1,
            nvmlDeviceGetHandleByIndex=int,
            nvmlDeviceGetUUID=lambda handle: f"GPU-{handle}",
            nvmlDeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu=50),
            nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(total=80 << 30, used=20 << 30),
            nvmlDeviceGetPowerUsage=lambda handle: 300_000,
            nvmlDeviceGetEnforcedPowerLimit=lambda handle: 700_000,
            nvmlDeviceGetTotalEnergyConsumption=lambda handle: 1000 * self._scrapes,
        )

    def text(self):
        """The exposition of one scrape, before which a request was answered."""
        self._scrapes += 1
        self._recorder.batch(BatchRecord([0], [1], [2], [1], 3, 4, 5, 6, 1, "idle", 0))
        gpus = generate_latest(SimpleNamespace(collect=self._gpus.read))
        return generate_latest(self._registry) + gpus
