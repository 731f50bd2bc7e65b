"""`headrace serve`, start to stop, as one script."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import sys
import threading
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

from headrace import __version__
from headrace.backends.tensorrt import policy
from headrace.clock import monotonic_ns, wall_ms
from headrace.engine.background import in_background
from headrace.engine.control import ModelControl
from headrace.engine.drift_metrics import DriftMetrics
from headrace.engine.drift_metrics import brief as brief_drift
from headrace.engine.drifting import DriftMonitoring
from headrace.engine.guard_metrics import GuardMetrics
from headrace.engine.guard_metrics import brief as brief_guards
from headrace.engine.guarding import Guards
from headrace.engine.lifecycle import Engine
from headrace.engine.shared_memory import NoSharedMemory, SharedMemoryRegions
from headrace.engine.turn import Turn
from headrace.engine.worker import THREAD_NAME
from headrace.errors import ConfigError
from headrace.interpreter import keep_memory, new_event_loop, settle, unsettle
from headrace.pipeline.response_cache import ResponseCache
from headrace.repository.catalog import Catalog
from headrace.telemetry import logs
from headrace.telemetry.collector import ignored, wants_traces
from headrace.telemetry.gpu import GpuMetrics
from headrace.telemetry.guard import ObserverGuard
from headrace.telemetry.metrics import Metrics
from headrace.telemetry.otlp import TraceExport, open_export
from headrace.telemetry.sampling import TailSampling
from headrace.telemetry.server_metrics import ServerMetrics, register_process_metrics
from headrace.telemetry.summary import Summary
from headrace.telemetry.workers import WorkerMetrics
from headrace.transport.admin import Admin
from headrace.transport.grpc_native import NativeTransport
from headrace.transport.grpc_reference import ReferenceTransport
from headrace.transport.health import Health
from headrace.transport.infer import InferService
from headrace.transport.open_files import most_connections
from headrace.transport.repository import RepositoryAdmin
from headrace.transport.rest.app import make_app
from headrace.transport.rest.infer import RestInfer
from headrace.transport.rest.json_text import JsonLimits
from headrace.transport.rest.server import HttpServer
from headrace.transport.runtime_settings import RuntimeSettings
from headrace.transport.service import service_table
from headrace.transport.shared_memory import SharedMemoryAdmin
from headrace.transport.status import statuses_by_reason
from headrace.transport.tls.security import Security
from headrace.transport.workers.front import WorkersTransport

if TYPE_CHECKING:
    from headrace.config import Settings
    from headrace.engine.served import Served
    from headrace.telemetry.logs import Severities
    from headrace.telemetry.traces import Tracer
    from headrace.transport.base import GrpcTransport
    from headrace.transport.service import ServiceTable

logger = logging.getLogger(__name__)

_FLUSH_SECONDS = 5.0
"""For the export of the last traces, out of the time to drain."""
_LAST_WORDS_SECONDS = 1.0
"""For telling those who are cut off that they are, before their connections are closed."""


class Status:
    """Whether the server lives, is ready, and is on its way out; read by health checks of all transports.

    workers: what takes gRPC's connections, if not the server itself.
    """

    def __init__(self) -> None:
        self.live = True
        self.ready = False
        self.exiting = False
        self.workers: WorkersTransport | None = None

    @property
    def reachable(self) -> bool:
        """Whether gRPC's connections are taken, for all that is known."""
        return self.workers is None or self.workers.serving


def run(settings: Settings) -> int:
    """Serves until SIGTERM or SIGINT. Returns the exit code: 0 after a clean drain, 1 if requests were cut off.

    Ends the process with that code itself where a model runs on regardless.
    """
    severities = logs.configure(settings.log_level, as_json=settings.log_format == "json")
    sys.setswitchinterval(settings.switch_interval_us / 1e6)
    keep_memory()
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        status = runner.run(serve(settings, severities))
    threads = [thread for thread in threading.enumerate() if thread.name.startswith(THREAD_NAME)]
    for thread in threads:
        thread.join(0 if status else _LAST_WORDS_SECONDS)
    if any(thread.is_alive() for thread in threads):
        # Nothing interrupts a model that runs, and the interpreter's end would take the runtime away under it.
        logging.shutdown()
        os._exit(status)
    unsettle()
    return status


async def serve(settings: Settings, severities: Severities) -> int:
    """Start, wait for a signal, stop. See `run`. severities: of what is logged."""
    stop = _Signals(reloads=bool(settings.tls.certificate))
    parts = _Parts(settings, severities)
    async with AsyncExitStack() as stack:
        if parts.export is not None:
            parts.export.start()
            seconds = min(settings.drain_seconds, _FLUSH_SECONDS)
            stack.push_async_callback(in_background, partial(parts.export.stop, seconds))
        stack.push_async_callback(parts.drift.close)
        stack.push_async_callback(parts.guards.close)
        stack.callback(parts.engine.close)
        parts.security.start()
        stack.push_async_callback(parts.security.close)
        http = parts.http()
        http_port = await http.start()
        stack.push_async_callback(http.close)
        _check_grpc_port(settings)
        if not await _load(parts.control, stop.first):
            logger.info("stopped before all models were loaded")
            return 0
        grpc = parts.grpc()
        try:
            grpc_port = await grpc.start()
        except OSError as error:
            raise _no_grpc_port(settings, error) from error
        stack.push_async_callback(grpc.close)
        settle()
        parts.security.announce()
        parts.set_ready(True)
        logger.info(
            "ready: gRPC (%s) on %s:%d, HTTP on port %d",
            settings.transport,
            f"[{settings.host}]" if ":" in settings.host else settings.host,
            grpc_port,
            http_port,
        )
        watching = asyncio.create_task(parts.control.watch(settings.repository_poll_seconds))
        await stop.first.wait()
        watching.cancel()

        parts.status.exiting = True
        parts.set_ready(False)
        await _linger(settings.drain_delay_seconds, stop.second)
        http.drain()
        end = monotonic_ns() + int(settings.drain_seconds * 1e9)
        drained = await _drain(grpc, parts.engine, settings.drain_seconds, stop.second)
        if drained:
            drained = await _hand_over(http, (end - monotonic_ns()) / 1e9, stop.second)
        logger.info("stopped%s", "" if drained else ": some requests were cut off")
    return 0 if drained else 1


def _within_open_files(settings: Settings) -> Settings:
    """The settings with no more connections than the process may open files."""
    grpc, http = most_connections(settings.http2.max_connections, settings.http.max_connections)
    return settings.model_copy(
        update={
            "http2": settings.http2.model_copy(update={"max_connections": grpc}),
            "http": settings.http.model_copy(update={"max_connections": http}),
        }
    )


class _Parts:
    """What a server is made of, put together and not yet started."""

    def __init__(self, settings: Settings, severities: Severities) -> None:
        settings = _within_open_files(settings)
        self._settings = settings
        self._severities = severities
        policy.use(settings.tensorrt)
        self._registry = CollectorRegistry()
        self.export, sampling = _tracing(settings)
        metrics = Metrics(self._registry, sampling=sampling)
        guard = ObserverGuard(metrics)
        self._counts = ServerMetrics(self._registry)
        register_process_metrics(self._registry)
        self._gpus = GpuMetrics(self._registry, in_background)
        self.status = Status()
        self._health = Health()
        self.security = Security(settings, self._registry)
        self._catalog: Catalog[Served] = Catalog()
        self._counts.model_states = lambda: [
            (entry.name, "" if entry.version is None else str(entry.version), entry.condition)
            for entry in self._catalog.index()
        ]
        self._turn = Turn(asyncio.get_running_loop())
        directory = _writable("drift.directory", settings.drift.directory) if settings.drift.directory else None
        self.drift = DriftMonitoring(settings.drift.cpu_share, directory)
        self._registry.register(DriftMetrics(self.drift))
        self.guards = Guards(self._catalog)
        self._registry.register(GuardMetrics(self.guards))
        self._summary = Summary(
            metrics, self._counts, lambda: brief_drift(self.drift), guards=lambda: brief_guards(self.guards)
        )
        self.engine = Engine(
            self._catalog,
            guard,
            metrics,
            monotonic_ns,
            self._turn,
            settings.inline_below_us * 1000,
            settings.drain_seconds,
            ResponseCache(settings.response_cache_bytes) if settings.response_cache_bytes else None,
            settings.record_requests,
            self.drift,
            self.guards,
        )
        startup = [name.strip() for name in settings.load_models.split(",") if name.strip()]
        self.control = ModelControl(settings.model_repository, settings.model_control_mode, self.engine, startup)
        regions = SharedMemoryRegions() if settings.allow_client_shm else None
        self._memory = regions or NoSharedMemory()
        self._grpc_infer = InferService(self._catalog, self._turn, self._refused, self._memory)
        limits = JsonLimits(settings.http.max_json_depth, settings.http.max_json_elements)
        self._json_limits = limits
        self._rest_infer = RestInfer(self._catalog, self._turn, self._refused, self._memory, self.status, limits)
        if sampling is not None:
            self._grpc_infer.failed = self._rest_infer.failed = guard.guarded("unrouted", sampling.unrouted)
        self._table = self._services(regions, severities, metrics.tracer)

    def _services(self, regions: SharedMemoryRegions | None, severities: Severities, tracer: Tracer) -> ServiceTable:
        """All RPCs, for every transport."""
        settings = self._settings
        return service_table(
            Admin(self.status, self._catalog, without=() if regions else ("system_shared_memory",)),
            self._health,
            self._grpc_infer,
            SharedMemoryAdmin(regions),
            RepositoryAdmin(
                self.control,
                self._catalog,
                allow_config=settings.allow_config_override,
                allow_files=settings.allow_file_override,
            ),
            RuntimeSettings(severities, tracer, self._catalog),
        )

    def http(self) -> HttpServer:
        """The HTTP port. Raises ConfigError if it is taken."""
        settings = self._settings
        requests = self._counts.http_requests
        return HttpServer(
            make_app(
                self.status,
                self._registry,
                self._table,
                self._json_limits,
                requests,
                self._refresh,
                self.engine.recording,
                self.engine.drift,
                self._summary.read,
                self.guards,
            ),
            _listen(settings.host, settings.http_port),
            self._rest_infer,
            settings=settings.http,
            max_message_bytes=settings.max_message_bytes,
            counts=self._counts,
            tls=self.security.http,
            traced=self.export is not None,
        )

    def grpc(self) -> GrpcTransport:
        """The gRPC port, by the transport that the settings name."""
        traced = self.export is not None
        if self._settings.grpc_workers:
            workers = WorkersTransport(
                self._settings,
                self._table,
                self._grpc_infer.gather,
                turn=self._turn,
                counts=self._counts,
                metrics=WorkerMetrics(self._registry),
                security=self.security,
                health=self._health,
                severities=self._severities,
                traced=traced,
            )
            self.status.workers = workers
            return workers
        return _transport(self._settings, self._table, self._turn, self._counts, self.security, traced=traced)

    async def _refresh(self) -> None:
        """Has what others count ready for a scrape."""
        if self.status.workers is not None:
            await self.status.workers.refresh()
        await self._gpus.refresh()

    def set_ready(self, ready: bool) -> None:
        """Tells all who ask, or watch, whether requests are taken."""
        self.status.ready = ready
        self._health.set_serving(ready)

    def _refused(self, reason: str) -> None:
        """A request ended before its model was known."""
        self._counts.refused[reason] += 1


async def _load(control: ModelControl, stop: asyncio.Event) -> bool:
    """Loads the models; False if `stop` was set before all were there."""
    loading = asyncio.create_task(control.start())
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait((loading, stopped), return_when=asyncio.FIRST_COMPLETED)
    loaded = loading.done()
    if loaded:
        loading.result()
    for task in (loading, stopped):
        task.cancel()
    await asyncio.wait((loading, stopped))
    return loaded


async def _linger(seconds: float, stop: asyncio.Event) -> None:
    """Lets those who send requests hear that the server leaves, while it still serves them. `stop` ends it."""
    if seconds:
        logger.info("not ready, and serving on for %g s; a second signal stops at once", seconds)
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), seconds)


async def _drain(grpc: GrpcTransport, engine: Engine, seconds: float, stop: asyncio.Event) -> bool:
    """Answers what was accepted. Whoever still waits after `seconds`, or when `stop` is set, is told so: False then."""
    leaving = asyncio.create_task(grpc.drain(seconds + _LAST_WORDS_SECONDS))
    answering = asyncio.create_task(engine.drain(seconds))
    stopped = asyncio.create_task(stop.wait())
    for _ in range(2):  # the engine's drain has begun, then those of its models, which take no more from here on
        await asyncio.sleep(0)
    logger.info("draining for at most %g s; a second signal stops at once", seconds)
    await asyncio.wait((answering, stopped), return_when=asyncio.FIRST_COMPLETED)
    drained = answering.done() and answering.result()
    engine.close()
    if drained:  # the last replies are on their way
        await asyncio.wait((leaving, stopped), return_when=asyncio.FIRST_COMPLETED)
    else:
        await asyncio.wait((leaving,), timeout=_LAST_WORDS_SECONDS)
    left = leaving.done() and leaving.result()
    tasks = (leaving, answering, stopped)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    return drained and left


async def _hand_over(http: HttpServer, seconds: float, stop: asyncio.Event) -> bool:
    """Lets HTTP's clients take the replies that are on their way, as `HttpServer.close` says. `stop` ends it."""
    closing = asyncio.create_task(http.close(seconds))
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait((closing, stopped), return_when=asyncio.FIRST_COMPLETED)
    for task in (closing, stopped):
        task.cancel()
    await asyncio.wait((closing, stopped))
    return not closing.cancelled() and closing.result()


def _transport(
    settings: Settings, table: ServiceTable, turn: Turn, counts: ServerMetrics, security: Security, *, traced: bool
) -> GrpcTransport:
    if settings.transport == "reference":
        return ReferenceTransport(
            table,
            settings.host,
            settings.grpc_port,
            max_message_bytes=settings.max_message_bytes,
            security=security if settings.secures("grpc") else None,
            traced=traced,
        )
    return NativeTransport(
        table,
        settings.host,
        settings.grpc_port,
        turn=turn,
        http2=settings.http2,
        max_message_bytes=settings.max_message_bytes,
        counts=counts,
        tls=security.grpc,
        traced=traced,
    )


def _tracing(settings: Settings) -> tuple[TraceExport | None, TailSampling | None]:
    """What exports traces, and what chooses them; neither where they go nowhere."""
    tracing = settings.tracing
    exported = wants_traces(tracing, os.environ)
    for line in ignored(os.environ, exported=exported):
        logger.warning("%s", line)
    if not exported:
        return None, None
    export = open_export(tracing, os.environ, __version__, statuses_by_reason())
    sampling = TailSampling(
        export.offer,
        monotonic_ns,
        wall_ms,
        ratio=tracing.ratio,
        slow_quantile=tracing.slow_quantile,
        per_second=tracing.max_per_second,
    )
    sampling.exported = export.exported
    return export, sampling


def _listen(host: str, port: int) -> socket.socket:
    try:
        return _bound(host, port)
    except OSError as error:
        raise ConfigError(_said(host, "http_port", port, error)) from error


def _check_grpc_port(settings: Settings) -> None:
    """Raises ConfigError now, and not when all models are loaded, if the port is taken."""
    try:
        _bound(settings.host, settings.grpc_port).close()
    except OSError as error:
        raise _no_grpc_port(settings, error) from error


def _writable(key: str, directory: str) -> Path:
    """A directory in which files can be made; it is made. Raises ConfigError now, and not when something is lost."""
    path = Path(directory)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ConfigError(f"{key} = {directory}: no file can be written there: {error.strerror or error}") from error
    return path


def _no_grpc_port(settings: Settings, error: OSError) -> ConfigError:
    if settings.grpc_port == settings.http_port:
        return ConfigError(f"grpc_port and http_port are both {settings.grpc_port}: expected a port for each")
    return ConfigError(_said(settings.host, "grpc_port", settings.grpc_port, error))


def _said(host: str, key: str, port: int, error: OSError) -> str:
    """What is said of an address that cannot be listened on: it may be the host's fault."""
    why = str(error.strerror or error).partition(" (while attempting")[0]  # the address is said already
    number = error.errno or 0
    if number < 0 or number == errno.EADDRNOTAVAIL:  # below 0: of getaddrinfo
        return f"host = {host}: cannot be listened on: {why}"
    return f"{key} = {port}: cannot listen on {host}: {why}"


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=128)


class _Signals:
    """SIGTERM and SIGINT, and SIGHUP where it has no other meaning: the first asks for a drain, the second for an end.

    reloads: SIGHUP has certificates read again. Under nohup it has no effect.
    """

    def __init__(self, *, reloads: bool) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()
        loop = asyncio.get_running_loop()
        hangs_up = not reloads and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
        for number in (signal.SIGTERM, signal.SIGINT, *((signal.SIGHUP,) if hangs_up else ())):
            loop.add_signal_handler(number, self._on_signal)

    def _on_signal(self) -> None:
        (self.second if self.first.is_set() else self.first).set()
