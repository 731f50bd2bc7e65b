"""The gRPC port of a server whose connections are in worker processes: the engine's side."""

from __future__ import annotations

import asyncio
import logging
import socket
from functools import partial
from typing import TYPE_CHECKING, Any

from headrace.errors import ConfigError
from headrace.transport.workers import counts as counting
from headrace.transport.workers.listener import Listener
from headrace.transport.workers.records import Malformed
from headrace.transport.workers.worker import Worker

if TYPE_CHECKING:
    from headrace.config import Settings
    from headrace.engine.turn import Turn
    from headrace.telemetry.logs import Severities
    from headrace.telemetry.server_metrics import ServerMetrics
    from headrace.telemetry.workers import WorkerMetrics
    from headrace.transport.health import Health
    from headrace.transport.service import Infer, ServiceTable
    from headrace.transport.tls.security import Security

logger = logging.getLogger(__name__)

_TICK_SECONDS = 1.0
_START_SECONDS = 60.0
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.1, 10.0
"""Before another worker is started in the place of one that has ended; it doubles with each that ends soon."""
_STEADY_SECONDS = 10.0
"""One that has worked for so long had nothing wrong with its start."""
_SILENT_SECONDS = 5.0
"""A worker that has not said for so long what it counts, as it does every second, hangs."""
_HUNG_TICKS = 30
"""One that says nothing for so many looks is ended, for another to take its place. Not by the clock: where the whole
machine stood still, it is as many seconds older at once."""
_COUNT_SECONDS = 2.0
"""A scrape waits for the counts of workers for so long."""


class WorkersTransport:
    """A `GrpcTransport`.

    infer: takes requests for models that have arrived together. counts, metrics: get what workers count. health,
    severities: what workers are told of. traced: as `NativeTransport` has it.
    """

    def __init__(
        self,
        settings: Settings,
        table: ServiceTable,
        infer: Infer,
        *,
        turn: Turn,
        counts: ServerMetrics,
        metrics: WorkerMetrics,
        security: Security,
        health: Health,
        severities: Severities,
        traced: bool,
    ) -> None:
        self._settings = settings
        self._turn, self._table, self._infer = turn, table, infer
        self._counts = counts
        self._metrics = metrics
        self._metrics.wanted = settings.grpc_workers
        self._security = security
        self._health = health
        self._severities = severities
        self._traced = traced
        self.workers: list[Worker] = []
        self._listener = Listener(self._serve)
        self._ticker: asyncio.TimerHandle | None = None
        self._pause_s = _FIRST_PAUSE_SECONDS
        self._leaving = False
        self._homeless: list[socket.socket] = []  # connections that no worker is there for
        self._starting: dict[Worker, asyncio.Future[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._lost: set[Worker] = set()  # whose processes nobody has asked for their exit code yet
        self._counting: asyncio.Event = asyncio.Event()
        self._awaited: set[Worker] = set()
        self._told: tuple[bool, dict[str, bool]] | None = None

    def __repr__(self) -> str:
        return f"<WorkersTransport {self.workers}>"

    @property
    def serving(self) -> bool:
        """Whether any worker takes connections, and responds."""
        return self._metrics.ready > 0

    # --- GrpcTransport ------------------------------------------------------------------------------------------------

    async def start(self) -> int:
        """See `base.GrpcTransport`. Raises ConfigError, too: a worker does not start."""
        settings = self._settings
        if not hasattr(socket, "send_fds"):
            raise ConfigError("grpc_workers: expected 0 on this system, where no socket can be handed over")
        port = await self._listener.listen(settings.host, settings.grpc_port)
        most, more = divmod(settings.http2.max_connections, settings.grpc_workers)
        places = [self._start_one(place, most + (place < more)) for place in range(settings.grpc_workers)]
        results = await asyncio.gather(*places, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                await self.close()
                raise result
        self._health.heard = self._tell_state
        self._security.reloaded = partial(self._tell, reload=True)
        self._ticker = asyncio.get_running_loop().call_later(_TICK_SECONDS, self._tick)
        self._listener.open()
        pids = [worker.pid for worker in self.workers]
        logger.info("gRPC's connections are served by %d processes", len(pids), extra={"pids": pids})
        return port

    async def drain(self, seconds: float) -> bool:
        """See `base.GrpcTransport`. False, too, if a worker that has connections has not said that it answered all."""
        self._leave()
        self._tell(drain=seconds)
        workers = [worker for worker in self.workers if worker.ready]
        waited = [worker.drained.wait() for worker in workers if not worker.silent]
        try:
            await asyncio.wait_for(asyncio.gather(*waited), seconds)
        except TimeoutError:
            logger.warning("workers had calls under way, or did not say, when the time to drain was over")
        return all(worker.emptied or not worker.open for worker in workers)

    async def close(self) -> None:
        """See `base.GrpcTransport`."""
        self._leave()
        if self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None
        for task in self._tasks:
            task.cancel()
        workers, self.workers = self.workers, []
        ends = [worker.end() for worker in (*workers, *self._lost)]
        await asyncio.gather(*ends, *self._tasks, return_exceptions=True)

    def _leave(self) -> None:
        self._leaving = True
        self._listener.close()
        for connection in self._homeless:
            connection.close()
        self._homeless.clear()

    # --- connections --------------------------------------------------------------------------------------------------

    def _serve(self, connection: socket.socket) -> None:
        """A connection goes to the worker that has the fewest; to one that is full only if all are, to be told so.

        While none is there that responds, it waits.
        """
        while ready := [worker for worker in self.workers if worker.ready and not worker.silent]:
            chosen = min(ready, key=lambda worker: (worker.open >= worker.share, worker.open))
            chosen.serve(connection)
            if chosen.ready:
                return
            chosen.waiting.pop()
        self._homeless.append(connection)
        self._listener.shut()

    def _open_or_shut(self) -> None:
        """Connections are taken while a worker is there that responds; then first those that wait for one.

        Not before the start, nor at the end.
        """
        if self._ticker is None or self._leaving:
            return
        if not self.serving:
            self._listener.shut()
            return
        homeless, self._homeless = self._homeless, []
        for connection in homeless:
            self._serve(connection)
        self._listener.open()

    # --- the life of workers ------------------------------------------------------------------------------------------

    async def _start_one(self, place: int, share: int) -> None:
        """Starts a worker for so many connections, and returns when it is ready. Raises ConfigError."""
        settings = self._settings
        worker = Worker(
            self._turn,
            self._table,
            self._infer,
            place,
            share,
            setup=self._setup(share),
            region_bytes=settings.grpc_worker_memory_bytes,
            heard=self._on_notice,
            lost=self._on_lost,
        )
        ready = self._starting[worker] = asyncio.get_running_loop().create_future()
        self.workers.append(worker)
        try:
            await worker.start()
            async with asyncio.timeout(_START_SECONDS):
                await ready
        except (OSError, TimeoutError) as error:
            if worker in self.workers:
                self.workers.remove(worker)
                await worker.end()
            raise ConfigError(f"grpc_workers = {settings.grpc_workers}: a worker does not start: {error!r}") from error
        finally:
            del self._starting[worker]

    def _setup(self, share: int) -> dict[str, Any]:
        settings = self._settings
        return {
            "settings": settings.model_dump_json(),
            "connections": share,
            "traced": self._traced,
            "serving": self._health.serving,
            "severities": self._severities.all(),
            "later": list(self._table.unary),
            "tasks": list(self._table.tasks),
        }

    def _on_lost(self, worker: Worker, error: Exception | None) -> None:
        """A worker has ended; unless the server does as well, there will be another one."""
        counting.take_away_open(self._counts, worker.counts)
        self._metrics.memory.pop(worker.place, None)
        self._awaited.discard(worker)
        if not self._awaited:
            self._counting.set()
        kept = worker in self.workers
        if kept:
            self.workers.remove(worker)
        self._count_ready()
        if not kept:
            return
        self._lost.add(worker)
        if not self._leaving:
            self._homeless += worker.waiting
            worker.waiting.clear()
            self._open_or_shut()
        task = asyncio.get_running_loop().create_task(self._replace(worker, error))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _replace(self, worker: Worker, error: Exception | None) -> None:
        code = await worker.end()
        self._lost.discard(worker)
        what = f"exit code {code}" if code >= 0 else f"signal {-code}"
        if isinstance(error, Malformed):
            what = f"it was told to, since it sent what is no record: {error}"
        ready = self._starting.get(worker)
        if ready is not None:
            if not ready.done():
                ready.set_exception(
                    ConfigError(
                        f"grpc_workers = {self._settings.grpc_workers}: a worker ended as it started: {what}; what it "
                        "said, if anything, stands above"
                    )
                )
            return
        if self._leaving and not code:
            return
        logger.error("a worker has ended, and with it %d connections: %s", worker.open, what, extra={"pid": worker.pid})
        if worker.ready_for >= _STEADY_SECONDS:
            self._pause_s = _FIRST_PAUSE_SECONDS
        while not self._leaving:
            await asyncio.sleep(self._pause_s)
            self._pause_s = min(self._pause_s * 2, _LONGEST_PAUSE_SECONDS)
            self._metrics.restarts += 1
            try:
                await self._start_one(worker.place, worker.share)
            except ConfigError as problem:
                logger.error("no worker in its place yet: %s", problem)
            else:
                logger.info("another worker serves in its place")
                break

    def _on_notice(self, worker: Worker, notice: dict[str, Any]) -> None:
        for name, value in notice.items():
            match name:
                case "ready":
                    self._on_ready(worker)
                case "counts":
                    self._on_counts(worker, value)
                case "drained":
                    worker.emptied = value
                    worker.drained.set()

    def _on_counts(self, worker: Worker, counts: dict[str, Any]) -> None:
        metrics, place = self._metrics, worker.place
        counting.add(self._counts, self._security.metrics, worker.counts, counts)
        used = counts["cpu_seconds"] - worker.counts.get("cpu_seconds", 0.0)
        metrics.cpu_seconds[place] = metrics.cpu_seconds.get(place, 0.0) + used
        metrics.memory[place] = counts["resident_bytes"]
        worker.counts = counts
        worker.heard_at = asyncio.get_running_loop().time()
        worker.unheard = 0
        self._awaited.discard(worker)
        if not self._awaited:
            self._counting.set()

    def _count_ready(self) -> None:
        self._metrics.ready = sum(worker.ready and not worker.silent for worker in self.workers)

    def _on_ready(self, worker: Worker) -> None:
        worker.gets_ready()
        self._count_ready()
        ready = self._starting.get(worker)
        if ready is not None and not ready.done():
            ready.set_result(None)
        worker.desk.tell(serving=self._health.serving, severities=self._severities.all())
        self._open_or_shut()

    # --- what workers are told, and say -------------------------------------------------------------------------------

    def _tell(self, **notice: object) -> None:
        """Says something to all workers but those that only start: these have their setup to come."""
        for worker in self.workers:
            if worker.ready:
                worker.desk.tell(**notice)

    def _tell_state(self) -> None:
        """Tells what has changed."""
        state = self._health.serving, self._severities.all()
        if state != self._told:
            self._told = state
            self._tell(serving=state[0], severities=state[1])

    def _tick(self) -> None:
        now = asyncio.get_running_loop().time()
        for worker in self.workers:
            worker.desk.tick()
            self._listen_to(worker, now)
        self._tell_state()
        self._ticker = asyncio.get_running_loop().call_later(_TICK_SECONDS, self._tick)

    def _listen_to(self, worker: Worker, now: float) -> None:
        """Whether the worker still says every second what it has counted: one that hangs gets no more connections.

        Those that it has are its own, until it is ended.
        """
        silent = worker.ready and now - worker.heard_at > _SILENT_SECONDS
        if silent != worker.silent:
            worker.silent = silent
            self._count_ready()
            self._open_or_shut()
            if silent and self._leaving:
                worker.drained.set()  # nothing is to be waited for
            say = logger.error if silent else logger.info
            text = "a worker does not respond; others get its connections" if silent else "a worker responds again"
            say("%s", text, extra={"pid": worker.pid})
        worker.unheard += 1
        if worker.unheard == _HUNG_TICKS and worker.ready and not self._leaving:
            logger.error("a worker has not responded for long: it is ended, for another", extra={"pid": worker.pid})
            worker.kill()

    async def refresh(self) -> None:
        """Asks for what the workers have counted up to now; what they said last is good enough if they are slow."""
        self._awaited = {worker for worker in self.workers if worker.ready and not worker.silent}
        if self._awaited:
            self._counting.clear()
            self._tell(count=True)
            try:
                await asyncio.wait_for(self._counting.wait(), _COUNT_SECONDS)
            except TimeoutError:
                logger.debug("workers did not say in time what they have counted")
