"""Envoy as a process, with servers behind it: gRPC, gRPC-Web and REST on one port."""

import json
import re
import subprocess
import urllib.request
from collections import deque

from e2e.server_process import eventually
from interop.peers import ENVOY

START_SECONDS = 30
CONFIG = """
admin:
  address: {{ socket_address: {{ address: 127.0.0.1, port_value: 0 }} }}
static_resources:
  listeners:
  - name: front
    address: {{ socket_address: {{ address: 127.0.0.1, port_value: 0 }} }}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          codec_type: AUTO
          stat_prefix: front
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {{ prefix: "/v2/models/held" }}
                route: {{ cluster: rest, timeout: 0.5s }}
              - match: {{ prefix: "/v2" }}
                route: {{ cluster: rest, timeout: 20s }}
              - match: {{ prefix: "/" }}
                route:
                  cluster: grpc
                  max_stream_duration: {{ grpc_timeout_header_max: 0s }}
                  timeout: 0s
{retry}
          http_filters:
          - name: envoy.filters.http.grpc_web
            typed_config: {{ "@type": type.googleapis.com/envoy.extensions.filters.http.grpc_web.v3.GrpcWeb }}
          - name: envoy.filters.http.router
            typed_config: {{ "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }}
  clusters:
  - name: grpc
    type: STATIC
    connect_timeout: 5s
    circuit_breakers: {{ thresholds: [ {{ max_retries: 100 }} ] }}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{ http2_protocol_options: {{}} }}
    common_lb_config: {{ healthy_panic_threshold: {{ value: 0 }} }}
    health_checks:
    - timeout: 2s
      interval: 0.1s
      no_traffic_interval: 0.1s
      unhealthy_threshold: 1
      healthy_threshold: 1
      grpc_health_check: {{ service_name: inference.GRPCInferenceService }}
    load_assignment: {{ cluster_name: grpc, endpoints: [ {{ lb_endpoints: [{grpc}] }} ] }}
  - name: rest
    type: STATIC
    connect_timeout: 5s
    health_checks:
    - timeout: 2s
      interval: 0.1s
      no_traffic_interval: 0.1s
      unhealthy_threshold: 1
      healthy_threshold: 1
      http_health_check: {{ path: /v2/health/ready }}
    load_assignment: {{ cluster_name: rest, endpoints: [ {{ lb_endpoints: [{rest}] }} ] }}
"""
RETRY = """
                  retry_policy:
                    retry_on: "connect-failure,refused-stream,unavailable,cancelled"
                    num_retries: 2
                    host_selection_retry_max_attempts: 5
                    retry_host_predicate:
                    - name: envoy.retry_host_predicates.previous_hosts
                      typed_config:
                        "@type": type.googleapis.com/{previous}
"""
PREVIOUS = "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
"""Istio's defaults: of what did not reach a model, and at another server."""


class Envoy:
    """The proxy before these servers, ready when the constructor returns; a context manager that ends it."""

    def __init__(self, path, *servers, retry=False):
        config = path / "envoy.yaml"
        config.write_text(
            CONFIG.format(
                grpc=", ".join(_endpoint(server.port) for server in servers),
                rest=", ".join(_endpoint(server.http.rpartition(":")[2]) for server in servers),
                retry=RETRY.format(previous=PREVIOUS) if retry else "",
            )
        )
        self._admin_file = path / "admin"
        self.log = path / "envoy.log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [ENVOY, "-c", config, "--admin-address-path", self._admin_file, "--concurrency", "1",
                 "--disable-hot-restart", "-l", "warning"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        try:
            eventually(self._up, START_SECONDS)
            front = json.loads(self.admin("/listeners?format=json"))["listener_statuses"][0]["local_address"]
            self.port = front["socket_address"]["port_value"]
            self.address = f"127.0.0.1:{self.port}"
            self.http = f"http://{self.address}"
            eventually(lambda: self.healthy("grpc") == self.healthy("rest") == len(servers), START_SECONDS)
        except BaseException:
            self.kill()
            print(*deque(self.log.read_text().splitlines(), 30), sep="\n")
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()

    def _up(self):
        assert self._process.poll() is None, self.log.read_text()[-4000:]
        return self._admin_file.exists() and self._admin_file.stat().st_size > 0

    def admin(self, path):
        """What its administration says."""
        with urllib.request.urlopen(f"http://{self._admin_file.read_text()}{path}", timeout=START_SECONDS) as reply:
            return reply.read().decode()

    def statistic(self, name):
        """The value of a counter or gauge of its own."""
        found = re.search(rf"^{re.escape(name)}: (\d+)$", self.admin("/stats"), re.MULTILINE)
        return int(found[1]) if found else 0

    def healthy(self, cluster):
        """How many servers of a cluster its health checks find well."""
        return self.statistic(f"cluster.{cluster}.membership_healthy")

    def kill(self):
        """Ends it for certain."""
        self._process.kill()
        self._process.wait()


def _endpoint(port):
    return f"{{ endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }} }} }}"
