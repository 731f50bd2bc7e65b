"""From what was chosen on the event loop to a collector: a bounded queue, and one thread that builds and sends spans.

OpenTelemetry's packages (`pip install headrace[otel]`) are imported where traces are exported, and only there.
"""

from __future__ import annotations

import logging
import random
from collections import deque
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING

from headrace.clock import monotonic_ns, wall_ns
from headrace.errors import ConfigError
from headrace.telemetry.collector import target
from headrace.telemetry.sampling import Exported

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from headrace.clock import Clock
    from headrace.config import TracingSettings
    from headrace.telemetry.sampling import BatchTrace, RequestTrace

    Traces = list[tuple[BatchTrace | None, Sequence[RequestTrace]]]

logger = logging.getLogger(__name__)

_QUEUE = 4096
"""Requests that wait for the thread."""
_AT_ONCE = 256
"""Requests that are built and sent together, or some more where a batch has them: 300 kB."""
_EVERY_SECONDS = 1.0
_LOG_EVERY_NS = 60 * 10**9
_LONGEST_CAUSE = 400
_SDK_LOGGERS = ("opentelemetry", "urllib3")


class TraceExport:
    """The queue and the thread. `send` of what was queued: on the thread; it returns why that failed, or nothing.

    where: a collector's address, for the log. exported: counts what becomes of requests that were queued.
    """

    def __init__(
        self,
        send: Callable[[Traces], str],
        close: Callable[[], None] = lambda: None,
        *,
        where: str = "",
        clock: Clock = monotonic_ns,
        every_seconds: float = _EVERY_SECONDS,
        most: int = _QUEUE,
    ) -> None:
        self._send = send
        self._close = close
        self._where = where
        self._clock = clock
        self._every = every_seconds
        self._most = most
        self._waiting: deque[tuple[BatchTrace | None, Sequence[RequestTrace]]] = deque()
        self._requests = 0
        self._lock = Lock()
        self._wake = Event()
        self._stopping = False
        self._thread = Thread(target=self._run, name="headrace-traces", daemon=True)
        self._logged_at = 0
        self._given_up = False
        self.exported = Exported()

    def __repr__(self) -> str:
        return f"<TraceExport {self._requests} requests wait, {self.exported.failures} exports failed>"

    def start(self) -> None:
        """Starts the thread."""
        logger.info("traces are exported to %s", self._where)
        self._thread.start()

    def offer(self, batch: BatchTrace | None, requests: Sequence[RequestTrace]) -> bool:
        """Queues what is to be exported; False: there is no room. On the event loop: it waits for nothing."""
        if self._stopping or self._requests + len(requests) > self._most:
            return False
        with self._lock:  # held for an addition
            self._requests += len(requests)
        self._waiting.append((batch, requests))
        if self._requests >= _AT_ONCE and not self._wake.is_set():
            self._wake.set()
        return True

    def stop(self, seconds: float) -> None:
        """Sends what waits, in at most so many seconds. Blocks; call it from a thread."""
        self._stopping = True
        self._wake.set()
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._given_up = True
            logger.warning("traces of %d requests were not exported to %s before the end", self._requests, self._where)
        self._close()

    def _run(self) -> None:
        while True:
            self._wake.wait(self._every)
            self._wake.clear()
            while self._waiting:
                self._export()
            if self._stopping:
                return

    def _export(self) -> None:
        traces: Traces = []
        count = 0
        while self._waiting and count < _AT_ONCE:
            traces.append(self._waiting.popleft())
            count += len(traces[-1][1])
        error: Exception | None = None
        try:
            why = self._send(traces)
        except Exception as raised:  # a bug, here or in the exporter, ends no thread
            error, why = raised, f"{type(raised).__name__}: {raised}"
        with self._lock:
            self._requests -= count
        exported = self.exported
        if not why:
            for _, requests in traces:
                for request in requests:
                    exported.traced[request.cause] += 1
            return
        exported.failures += 1
        exported.lost += count
        now = self._clock()
        if not self._given_up and (not self._logged_at or now - self._logged_at >= _LOG_EVERY_NS):
            self._logged_at = now
            logger.warning(
                "traces could not be exported to %s: %s; of %d requests so far, in %d exports",
                self._where,
                " ".join(why.split())[:_LONGEST_CAUSE],
                exported.lost,
                exported.failures,
                exc_info=error,
            )


def open_export(
    settings: TracingSettings, environ: Mapping[str, str], version: str, statuses: Mapping[str, tuple[str, int]]
) -> TraceExport:
    """The export to a collector, not started. Raises ConfigError if packages are missing or variables make no sense."""
    protocol, endpoint = target(settings, environ)
    try:
        from headrace.telemetry.senders import sender
        from headrace.telemetry.spans import SpanBuilder, server_resource

        made = sender(protocol, endpoint)
    except ImportError as error:
        raise ConfigError(
            f"traces are to be exported, but {error.name} is not installed: expected pip install headrace[otel]"
        ) from error
    except Exception as error:  # OpenTelemetry's own, of many kinds, for values of its variables that make no sense
        raise ConfigError(f"no traces can be exported with the OTEL_EXPORTER_OTLP_* that are set: {error}") from error
    for name in _SDK_LOGGERS:  # they log each attempt; here it is once in a while, and counted
        logging.getLogger(name).setLevel(logging.CRITICAL)
    builder = SpanBuilder(
        server_resource(version), version, lambda: wall_ns() - monotonic_ns(), statuses, random.Random()
    )

    return TraceExport(lambda traces: made.send(builder.build(traces)), made.shutdown, where=made.where)
