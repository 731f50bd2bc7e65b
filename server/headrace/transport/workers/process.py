"""A worker process: the native transport on sockets that the engine hands over, with doors that lead to the engine."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry

from headrace.config import Settings
from headrace.engine.turn import Turn
from headrace.interpreter import keep_memory, new_event_loop, settle
from headrace.telemetry import logs
from headrace.telemetry.server_metrics import ServerMetrics
from headrace.transport.grpc_messages import large_buffer
from headrace.transport.grpc_native import NativeTransport
from headrace.transport.grpc_peer import Peer
from headrace.transport.health import Health
from headrace.transport.service import SERVICE_NAMES, ServiceTable, as_stream, standing
from headrace.transport.tls.security import Security
from headrace.transport.workers.counts import snapshot
from headrace.transport.workers.forward import Forwarding
from headrace.transport.workers.records import Malformed
from headrace.transport.workers.region import Region

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

logger = logging.getLogger(__name__)

_AT_ONCE = 16
"""Connections that are begun in one turn of the loop."""
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(arguments: Sequence[str]) -> int:
    """Works until the engine is gone. arguments: file descriptors of link, sockets, region; the engine's process."""
    link, sockets, region, engine = map(int, arguments)
    _end_with(engine)
    keep_memory()
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(_work(socket.socket(fileno=link), socket.socket(fileno=sockets), region))
    return 0


def _end_with(engine: int) -> None:
    """Has the system end this process with the engine, however that ends (prctl(2)); elsewhere its socket tells."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    except (OSError, AttributeError):
        return
    if os.getppid() != engine:  # it has ended before that
        sys.exit(1)


async def _work(link: socket.socket, sockets: socket.socket, region: int) -> None:
    worker = _Worker(sockets, Region(region, os.fstat(region).st_size, large_buffer))
    os.close(region)
    link.setblocking(False)
    await asyncio.get_running_loop().create_unix_connection(lambda: worker.doors.link, sock=link)
    await worker.run()


class _Transport(NativeTransport):
    """The native transport, whose sockets come from elsewhere. changed: told that a connection has ended."""

    changed: Callable[[], None]
    ticked: Callable[[], None]

    async def start(self) -> int:
        """Begins; there is no port."""
        self._tick()
        return 0

    def connection(self) -> asyncio.BaseProtocol:
        """The protocol of another connection."""
        peer = Peer(self, asyncio.get_running_loop())
        return peer if self._tls is None else self._tls.protect(peer)

    @property
    def open(self) -> int:
        """Connections, those in their handshake included."""
        return len(self.peers) + (len(self._tls.handshakes) if self._tls is not None else 0)

    def hold(self, held: bool) -> None:
        """Has nothing read of the peers any more, or again."""
        self.held = held
        for peer in list(self.peers):
            peer.read()

    def check_empty(self) -> None:
        """See `NativeTransport`; called when a connection ends."""
        super().check_empty()
        self.changed()

    def _tick(self) -> None:
        super()._tick()
        self.ticked()


class _Worker:
    """Puts the parts together once the engine has said how, and does as it says."""

    def __init__(self, sockets: socket.socket, region: Region) -> None:
        self._loop = asyncio.get_running_loop()
        self._turn = Turn(self._loop)
        self.doors = Forwarding(
            self._turn, region, notice=self._on_notice, lost=self._on_lost, paused=self._hold, load=self._load
        )
        self._sockets = sockets
        self._sockets.setblocking(False)
        self._setup: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self._over = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._health = Health()
        self._severities: logs.Severities
        self._counts = ServerMetrics(CollectorRegistry())
        self._security: Security
        self._transport: _Transport
        self._taken = 0
        self._arriving = 0  # sockets whose connection has not begun
        self._said = (0, 0)

    async def run(self) -> None:
        """Works until the engine is gone."""
        setup = await self._setup
        settings = Settings.model_validate_json(setup["settings"], strict=False)
        self._severities = logs.configure(settings.log_level, as_json=settings.log_format == "json")
        self._severities.set(setup["severities"])
        # the engine says of the same files that they are taken; here it is said if that could not be done
        logging.getLogger("headrace.transport.tls.security").setLevel(logging.ERROR)
        self._security = Security(settings, CollectorRegistry())
        self._security.start(follows=True)
        self._health.set_serving(setup["serving"])
        self._transport = _Transport(
            self._table(setup["later"], setup["tasks"]),
            settings.host,
            0,
            turn=self._turn,
            http2=settings.http2,
            max_message_bytes=settings.max_message_bytes,
            counts=self._counts,
            tls=self._security.grpc,
            traced=setup["traced"],
        )
        self._transport.max_connections = setup["connections"]
        if self._security.grpc is not None:
            self._security.grpc.most = setup["connections"]
        self._transport.large_buffer = self.doors.region.buffer
        self._transport.changed = self.doors.link.wake
        self._transport.ticked = self._tell_counts
        await self._transport.start()
        settle()
        self._loop.add_reader(self._sockets.fileno(), self._take_sockets)
        self.doors.tell(ready=True)
        await self._over.wait()
        self._loop.remove_reader(self._sockets.fileno())
        self._sockets.close()
        await self._transport.close()
        await self._security.close()

    def _table(self, later: Sequence[str], tasks: Sequence[str]) -> ServiceTable:
        """All services: what the engine alone knows is asked of it."""
        doors = self.doors
        forwarded = {path: doors.task(path) for path in tasks}
        return ServiceTable(
            unary={},
            tasks=forwarded,
            streams={
                **{path: as_stream(handler) for path, handler in forwarded.items()},
                **standing(self._health),
            },
            infer=doors.infer,
            service_names=SERVICE_NAMES,
            later={path: doors.unary(path) for path in later},
        )

    # --- sockets ------------------------------------------------------------------------------------------------------

    def _take_sockets(self) -> None:
        """Connections that the engine has accepted: few at a time, so that the end of others is noticed in between."""
        for _ in range(_AT_ONCE):
            try:
                data, descriptors, _, _ = socket.recv_fds(self._sockets, 1, 1)
            except BlockingIOError:
                return
            except OSError as error:
                logger.warning("a connection was lost on its way to a worker: %s", error)
                data, descriptors = b"", []
            if not data:  # the engine takes no more
                self._loop.remove_reader(self._sockets.fileno())
                return
            self._taken += 1
            self.doors.link.wake()
            for descriptor in descriptors:
                task = self._loop.create_task(self._take(socket.socket(fileno=descriptor)))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _take(self, connection: socket.socket) -> None:
        self._arriving += 1
        try:
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as loops do with what they accept
            await self._loop.connect_accepted_socket(self._transport.connection, connection)
        except OSError as error:  # it has ended
            logger.debug("a connection was lost: %s", error)
            connection.close()
        finally:
            self._arriving -= 1
            self.doors.link.wake()

    def _load(self) -> tuple[int, int] | None:
        if not self._taken:
            return None
        load = self._taken, self._arriving + self._transport.open
        if load == self._said:
            return None
        self._said = load
        return load

    def _hold(self, held: bool) -> None:
        if self._taken:
            self._transport.hold(held)

    # --- the engine ---------------------------------------------------------------------------------------------------

    def _on_notice(self, notice: dict[str, Any]) -> None:
        for name, value in notice.items():
            match name:
                case "setup":
                    self._setup.set_result(value)
                case "serving":
                    self._health.set_serving(value)
                case "severities":
                    self._severities.set(value)
                case "drain":
                    task = self._loop.create_task(self._drain(value))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
                case "reload":
                    self._security.reload()
                case "count":
                    self._tell_counts()

    async def _drain(self, seconds: float) -> None:
        drained = await self._transport.drain(seconds)
        self._tell_counts()
        self.doors.tell(drained=drained)

    def _tell_counts(self) -> None:
        self.doors.tell(counts=snapshot(self._counts, self._security.metrics))

    def _on_lost(self, error: Exception | None) -> None:
        """The engine is gone, or has no more use for this worker."""
        if isinstance(error, Malformed):
            logger.error("the engine sent what is no record: %s", error)
        if not self._setup.done():
            self._setup.cancel()
        self._over.set()
