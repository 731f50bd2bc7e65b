"""The settings of a server: one frozen tree; defaults < TOML file < environment < flags.

Each setting is declared here and nowhere else: flags, environment variables, help texts and error messages are made
from its type, bounds and description. A key `a` in table `t` is `--t-a` on the command line and `HEADRACE_T__A` in
the environment.
"""

from __future__ import annotations

import json
import os
import re
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from headrace import settings_sources as sources

if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Mapping
    from typing import Self

ENV_PREFIX = "HEADRACE_"
CONFIG_VARIABLE = "HEADRACE_CONFIG"
"""Names the settings file where --config is not given."""

MIB = 1 << 20
MAX_INT32 = (1 << 31) - 1
MAX_SECONDS = 10**6


def _usable_cores() -> int:
    """Cores that this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


INLINE_BELOW_US = 200 if _usable_cores() > 2 else 5000
"""A thread pays where a core is free for it: elsewhere it only competes with the event loop for the interpreter lock,
and the batches that run meanwhile are read from the sockets in smaller pieces. docs/design.md has the figures."""


def is_http_url(text: str) -> bool:
    """Whether it is http://host, or https, with a port and a path or without (RFC 3986)."""
    try:
        parts = urlsplit(text)
        port = parts.port  # raises above 65535
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and port != 0 and not re.search(r"\s", text)


def _collector(endpoint: str) -> str:
    if endpoint and not is_http_url(endpoint):
        raise PydanticCustomError("url", "no URL")
    return endpoint


class _Settings(BaseModel):
    # strict: `max_message_bytes = "1"` or `= true` in a file is a mistake, not a number
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Http2Settings(_Settings):
    """Limits of a connection of the native transport."""

    max_concurrent_streams: int = Field(256, ge=1, le=MAX_INT32, description="calls open on one connection at a time")
    initial_window_bytes: int = Field(
        MIB, ge=65_535, le=MAX_INT32, description="what a stream may send before it is told to go on, in bytes"
    )
    connection_window_bytes: int = Field(
        16 * MIB, ge=65_535, le=MAX_INT32, description="the same for all streams of a connection together, in bytes"
    )
    max_header_list_bytes: int = Field(
        16_384, ge=1024, le=MAX_INT32, description="headers of one call, decoded, in bytes (RFC 9113, 6.5.2)"
    )
    max_buffered_bytes: int = Field(
        64 * MIB, ge=1, description="incomplete messages that a connection may hold in memory, in bytes"
    )
    handshake_timeout_s: float = Field(
        10.0,
        gt=0,
        allow_inf_nan=False,
        description="time for a new connection to say that it speaks HTTP/2, in seconds",
    )
    idle_timeout_s: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="a connection without a call for this long is closed, in seconds; 0: never",
    )
    keepalive_s: float = Field(
        7200.0, gt=0, allow_inf_nan=False, description="a quiet connection is pinged after this long, in seconds"
    )
    keepalive_timeout_s: float = Field(
        20.0, gt=0, allow_inf_nan=False, description="and closed when no answer comes within this time, in seconds"
    )
    max_connections: int = Field(
        4096,
        ge=1,
        le=MAX_INT32,
        description="connections open at a time; fewer where the process may not open as many files",
    )
    stall_timeout_s: float = Field(
        60.0,
        gt=0,
        allow_inf_nan=False,
        description="a request that does not arrive, or a reply that is not taken, is given up when it has stood still "
        "for this long, in seconds",
    )
    min_bytes_per_s: int = Field(
        100,
        ge=0,
        le=MAX_INT32,
        description="what moves more slowly than this stands still, in bytes per second; 0: any pace will do",
    )


def _file(description: str) -> Any:  # noqa: ANN401 - as pydantic's Field
    """A file; empty: none."""
    return Field("", description=description, json_schema_extra={"format": "path"})


class TlsSettings(_Settings):
    """TLS on the ports. It is on where `certificate` is set."""

    certificate: str = _file("PEM file of the server's certificate and its chain; with it the ports speak TLS")
    key: str = _file("PEM file of its private key; without, it is in the certificate's file")
    key_password_file: str = _file("file whose first line is the password of an encrypted key")
    client_ca: str = _file("PEM file of the authorities of client certificates; with it clients are asked for one")
    client_certificates: Literal["required", "optional"] = Field(
        "required", description="whether a client without one is refused; one that is shown is checked in any case"
    )
    minimum_version: Literal["1.2", "1.3"] = Field("1.2", description="oldest version of TLS that is spoken")
    ports: Literal["both", "grpc", "http"] = Field("both", description="which ports speak it")
    handshake_timeout_s: float = Field(10.0, gt=0, allow_inf_nan=False, description="time for a handshake, in seconds")
    reload_s: float = Field(
        10.0,
        ge=0,
        allow_inf_nan=False,
        description="how often the files are looked at for a change, in seconds; 0: only on SIGHUP",
    )
    require: bool = Field(
        False, description="do not start where a port would speak plain text on an address beyond this machine"
    )


class TensorRtSettings(_Settings):
    """TensorRT's engines, of all models."""

    allow_plan_files: bool = Field(
        False,
        description="load plans that were built elsewhere (.plan, .engine): whoever has made one runs what he likes as "
        "this server",
    )
    engine_cache: str = Field(
        "",
        description="directory of built engines, which nobody but the server's user may enter; by default "
        "headrace/engines in the user's cache",
        json_schema_extra={"format": "path"},
    )
    engine_cache_bytes: int = Field(
        16 << 30,
        ge=0,
        description="of that directory, in bytes: what was not used for longest goes first; 0: none is kept",
    )


class TracingSettings(_Settings):
    """Traces, exported by OpenTelemetry's protocol (OTLP)."""

    endpoint: Annotated[str, AfterValidator(_collector)] = Field(
        "",
        description="URL of the collector, as http://127.0.0.1:4317; empty: what OTEL_EXPORTER_OTLP_ENDPOINT says, "
        "and without that no request is traced",
        json_schema_extra={"allowed": "http://host:port, or https"},
    )
    protocol: Literal["", "grpc", "http"] = Field(
        "", description="how OTLP is spoken; empty: what OTEL_EXPORTER_OTLP_PROTOCOL says, else grpc"
    )
    ratio: float = Field(
        0.01,
        ge=0,
        le=1,
        description="of the requests whose callers bring no trace, the share that is traced; with one, it says whether",
    )
    slow_quantile: float = Field(
        0.99,
        gt=0,
        lt=1,
        description="requests that take longer than this share of the model's requests of late are traced in any case",
    )
    max_per_second: float = Field(
        100.0,
        gt=0,
        allow_inf_nan=False,
        description="requests that are traced at most, per second; slow ones get half of that",
    )


class DriftSettings(_Settings):
    """Drift monitoring of the models that ask for it."""

    cpu_share: float = Field(
        0.03, gt=0, le=1, allow_inf_nan=False, description="share of a core for drift monitoring, all models together"
    )
    directory: str = Field(
        "",
        description="where windows of drift are kept over restarts, a file for each version; empty: nowhere",
    )


class HttpSettings(_Settings):
    """Limits of the HTTP port."""

    max_connections: int = Field(
        512,
        ge=1,
        le=MAX_INT32,
        description="connections open at a time, more are told so; fewer where the process may not open as many files",
    )
    max_head_bytes: int = Field(
        64 << 10, ge=1024, le=MAX_INT32, description="request line and headers of one request, in bytes"
    )
    max_buffered_bytes: int = Field(
        256 * MIB,
        ge=1,
        description="requests of all connections that have not arrived whole or wait for their turn, in bytes",
    )
    max_json_depth: int = Field(100, ge=4, le=1000, description="JSON arrays and objects inside one another")
    max_json_elements: int = Field(
        4 * MIB, ge=1, le=MAX_INT32, description="elements of the JSON of one request; binary tensors are none"
    )
    head_timeout_s: float = Field(
        10.0, gt=0, allow_inf_nan=False, description="time for the request line and headers to arrive, in seconds"
    )
    body_timeout_s: float = Field(
        120.0, gt=0, allow_inf_nan=False, description="time for the body of a request to arrive, in seconds"
    )
    keep_alive_s: float = Field(
        60.0,
        gt=0,
        allow_inf_nan=False,
        description="a connection without a request for this long is closed, in seconds",
    )
    stalled_timeout_s: float = Field(
        60.0,
        gt=0,
        allow_inf_nan=False,
        description="a client that does not read its replies for this long is dropped, in seconds",
    )


class Settings(_Settings):
    """All that can be set for `headrace serve`."""

    model_repository: Path = Field(
        Path("models"), strict=False, description="directory of models: NAME/VERSION/model.onnx"
    )
    model_control_mode: Literal["none", "poll", "explicit"] = Field(
        "none",
        description="none: serve what the repository holds at the start; poll: follow its changes; explicit: load and "
        "unload models by request",
    )
    repository_poll_seconds: float = Field(
        15.0, ge=0.1, allow_inf_nan=False, description="between looks at the repository in mode poll, in seconds"
    )
    load_models: str = Field(
        "", description="models to load at the start in mode explicit, with commas between them; *: all"
    )
    allow_config_override: bool = Field(
        False, description="let clients bring a configuration with a load: they decide how models run"
    )
    allow_file_override: bool = Field(
        False, description="let clients bring the files of a model with a load: they decide what runs"
    )
    host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="address to listen on; 0.0.0.0: all IPv4 addresses of this machine; '::' its IPv6 ones",
    )
    grpc_port: int = Field(8001, ge=0, le=65_535, description="port of the gRPC service; 0: any free one")
    http_port: int = Field(
        8000, ge=0, le=65_535, description="port of the HTTP service, health and metrics; 0: any free one"
    )
    transport: Literal["native", "reference"] = Field(
        "native", description="gRPC by Headrace's own HTTP/2, or by grpcio: slower, for comparison and as a way out"
    )
    grpc_workers: int = Field(
        0,
        ge=0,
        le=64,
        description="processes that receive and answer gRPC's connections, so that the one that batches and runs need "
        "not; 0: it does all itself",
    )
    grpc_worker_memory_bytes: int = Field(
        256 * MIB,
        ge=0,
        le=1 << 40,
        description="memory of each of them that large requests are received into, in bytes; what is never used takes "
        "none",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least severity that is logged")
    log_format: Literal["text", "json"] = Field("text", description="lines for people, or a JSON object in each")
    drain_seconds: float = Field(
        30.0,
        ge=0,
        le=MAX_SECONDS,
        allow_inf_nan=False,
        description="time to finish accepted requests after SIGTERM, in seconds",
    )
    drain_delay_seconds: float = Field(
        0.0,
        ge=0,
        le=MAX_SECONDS,
        allow_inf_nan=False,
        description="time after SIGTERM in which the server says that it is not ready and serves on, until load "
        "balancers have noticed, in seconds",
    )
    max_message_bytes: int = Field(64 * MIB, ge=1, le=MAX_INT32, description="largest request taken, in bytes")
    response_cache_bytes: int = Field(
        0, ge=0, description="memory for replies of models with `response_cache`, in bytes; 0: none are kept"
    )
    record_requests: int = Field(
        65_536,
        ge=0,
        le=1 << 24,
        description="requests of each model version of which `headrace record` gets arrival, size, deadline and what "
        "became of them; 0: none are kept",
    )
    allow_client_shm: bool = Field(
        False,
        description="let clients pass tensors in this machine's POSIX shared memory; they can disturb the server by it",
    )
    inline_below_us: int = Field(
        INLINE_BELOW_US,
        ge=0,
        description="batches that usually run shorter run on the event loop, in microseconds; 0: none; by default 5000 "
        "where there are at most two cores, else 200",
    )
    switch_interval_us: int = Field(
        20,
        ge=1,
        description="longest wait of a thread for the interpreter lock (sys.setswitchinterval), in microseconds",
    )
    http2: Http2Settings = Field(Http2Settings(), description="limits of a connection of the native transport")
    http: HttpSettings = Field(HttpSettings(), description="limits of the HTTP port")
    drift: DriftSettings = Field(DriftSettings(), description="drift monitoring")
    tls: TlsSettings = Field(TlsSettings(), description="TLS on the ports")
    tracing: TracingSettings = Field(
        TracingSettings(), description="traces, exported by OpenTelemetry's protocol (OTLP)"
    )
    tensorrt: TensorRtSettings = Field(TensorRtSettings(), description="TensorRT's engines, of all models")

    def secures(self, port: Literal["grpc", "http"]) -> bool:
        """Whether this port speaks TLS."""
        return bool(self.tls.certificate) and self.tls.ports in ("both", port)

    @property
    def local(self) -> bool:
        """Whether only this machine can reach `host`."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"  # RFC 6761, 6.3

    @model_validator(mode="after")
    def _tls_has_a_certificate(self) -> Self:
        for name in ("key", "key_password_file", "client_ca"):
            if (value := getattr(self.tls, name)) and not self.tls.certificate:
                raise ValueError(f"tls.{name} = {json.dumps(value)}: expected tls.certificate with it")
        return self

    @model_validator(mode="after")
    def _plain_text_stays_here(self) -> Self:
        if self.tls.require and not self.local and not (self.secures("grpc") and self.secures("http")):
            raise ValueError(
                f"tls.require = true and host = {json.dumps(self.host)}: expected tls.certificate, and tls.ports = "
                '"both", or a host of this machine alone'
            )
        return self

    @model_validator(mode="after")
    def _grpcio_can_do_it(self) -> Self:
        if self.transport == "reference" and self.secures("grpc"):
            beyond = {
                "tls.minimum_version": self.tls.minimum_version == "1.3",
                "tls.client_certificates": bool(self.tls.client_ca) and self.tls.client_certificates == "optional",
                "tls.key_password_file": bool(self.tls.key_password_file),
            }
            for name, used in beyond.items():
                if used:
                    raise ValueError(f'transport = "reference": grpcio cannot do what {name} asks for')
        return self

    @model_validator(mode="after")
    def _workers_are_native(self) -> Self:
        if self.transport == "reference" and self.grpc_workers:
            raise ValueError(f'transport = "reference": expected grpc_workers = 0, not {self.grpc_workers}')
        return self

    @model_validator(mode="after")
    def _a_message_fits(self) -> Self:
        for table, limit in (("http2", self.http2.max_buffered_bytes), ("http", self.http.max_buffered_bytes)):
            if limit < self.max_message_bytes:
                raise ValueError(
                    f"{table}.max_buffered_bytes = {limit} is below max_message_bytes = {self.max_message_bytes}: "
                    "a message of that size could not be received"
                )
        return self


def add_flags(parser: ArgumentParser) -> None:
    """Adds --config and one flag for each setting."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        help=f"TOML file of the settings below (environment: {CONFIG_VARIABLE})",
    )
    sources.add_flags(parser, Settings)


def load_settings(arguments: Mapping[str, object], environ: Mapping[str, str]) -> Settings:
    """The settings from parsed arguments (`vars(namespace)`) and the environment, and the file that either names.

    Raises ConfigError, one line for each problem.
    """
    config = arguments.get("config") or environ.get(CONFIG_VARIABLE)
    return sources.build(
        Settings,
        [
            sources.read_toml(Path(str(config))) if config else sources.Source(),
            sources.read_environment(Settings, environ, ENV_PREFIX, ignore=[CONFIG_VARIABLE]),
            sources.read_flags(Settings, arguments),
        ],
    )
