"""One worker, as the engine sees it: its process, its memory, its connections and its calls."""

from __future__ import annotations

import asyncio
import os
import site
import socket
import subprocess
import sys
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import headrace
from headrace.transport.workers.desk import Desk
from headrace.transport.workers.region import Borrowed, make_region

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.engine.turn import Turn
    from headrace.transport.service import Infer, ServiceTable

_END_SECONDS = 1.0
"""A process whose socket is closed gets so long to end by itself."""


class Worker:
    """A worker process, from its start to its end.

    place: its number, which the one that replaces it takes over. share: connections that it may have open. setup: what
    it is told first. region_bytes: of the memory for large messages. heard: told its notices. lost: told its end, with
    what was wrong, if anything.
    began: it has been ready. ready: it takes connections. open: its connections, with those on their way to it.
    waiting: those that it has not been given yet. counts: its last `counts.snapshot`; heard_at: when it said that, by
    the loop's time. silent: it has not for too long; unheard: for so many looks. drained: there is nothing left to wait
    for, be it that it has ended; emptied: it has said that all its calls are answered.
    """

    def __init__(
        self,
        turn: Turn,
        table: ServiceTable,
        infer: Infer,
        place: int,
        share: int,
        *,
        setup: dict[str, Any],
        region_bytes: int,
        heard: Callable[[Worker, dict[str, Any]], None],
        lost: Callable[[Worker, Exception | None], None],
    ) -> None:
        self.place = place
        self.share = share
        self._setup = setup
        self._region_bytes = region_bytes
        self._turn, self._table, self._infer = turn, table, infer
        self._heard, self._lost = heard, lost
        self.counts: dict[str, Any] = {}
        self.ready = False
        self.began = False
        self.heard_at = 0.0
        self.silent = False
        self.unheard = 0
        self._since = 0.0
        self.ended = False
        self.drained: asyncio.Event = asyncio.Event()
        self.emptied = False
        self.desk: Desk
        self._process: subprocess.Popen[bytes] | None = None
        self._sockets: socket.socket
        self._passed = self._taken = self._left = 0  # sockets: given to it, taken by it, of those still open
        self.waiting: deque[socket.socket] = deque()

    def __repr__(self) -> str:
        return f"<Worker {self.pid}, {self.open} connections, {'ended' if self.ended else self.desk!r}>"

    @property
    def pid(self) -> int:
        """Of its process; 0 before it has one."""
        return self._process.pid if self._process is not None else 0

    @property
    def open(self) -> int:
        """Its connections, with those on their way to it."""
        return self._passed - self._taken + self._left + len(self.waiting)

    def gets_ready(self) -> None:
        """It takes connections from now on."""
        self.ready = self.began = True
        self.unheard = 0
        self._since = self.heard_at = asyncio.get_running_loop().time()

    @property
    def ready_for(self) -> float:
        """Seconds since then; 0 if it never was."""
        return asyncio.get_running_loop().time() - self._since if self.began else 0.0

    async def start(self) -> None:
        """Starts the process; it says `ready` later."""
        link, their_link = socket.socketpair()
        self._sockets, their_sockets = socket.socketpair()
        region = make_region(self._region_bytes)
        self.desk = Desk(
            self._turn,
            self._table,
            self._infer,
            Borrowed(region, self._region_bytes),
            notice=lambda notice: self._heard(self, notice),
            load=self._on_load,
            lost=self._on_lost,
        )
        try:
            # Not from a thread: Linux would end the worker with the thread that has started it.
            self._process = _spawn(their_link.fileno(), their_sockets.fileno(), region)
        finally:
            os.close(region)
            their_link.close()
            their_sockets.close()
        self._sockets.setblocking(False)
        link.setblocking(False)
        self.desk.tell(setup=self._setup)
        await asyncio.get_running_loop().create_unix_connection(lambda: self.desk.link, sock=link)

    def serve(self, connection: socket.socket) -> None:
        """Has a connection served. It is in `waiting` until the process takes it."""
        self.waiting.append(connection)
        if len(self.waiting) == 1:
            self._pass_on()

    def _pass_on(self) -> None:
        loop = asyncio.get_running_loop()
        while self.waiting:
            try:
                socket.send_fds(self._sockets, [b"."], [self.waiting[0].fileno()])
            except BlockingIOError:
                loop.add_writer(self._sockets.fileno(), self._pass_on)
                return
            except OSError:  # it has ended, which `lost` tells in a moment
                self.ready = False
                break
            self._passed += 1
            self.waiting.popleft().close()
        loop.remove_writer(self._sockets.fileno())

    def _on_load(self, taken: int, left: int) -> None:
        self._taken, self._left = taken, left

    def _on_lost(self, error: Exception | None) -> None:
        self.ready = False
        self.ended = True
        self.drained.set()
        self._close_sockets()
        self._lost(self, error)

    def _close_sockets(self) -> None:
        if self._sockets.fileno() >= 0:
            asyncio.get_running_loop().remove_writer(self._sockets.fileno())
            self._sockets.close()

    def kill(self) -> None:
        """Has the process end whatever it does; `lost` tells when it has."""
        if self._process is not None:
            self._process.kill()

    async def end(self) -> int:
        """Lets the process end, and returns its exit code (subprocess): what it has not been told yet it is told."""
        if self._process is None:
            return 0
        try:
            self._close_sockets()
            while self.waiting:
                self.waiting.popleft().close()
            self.desk.link.close()
        finally:
            code = await asyncio.to_thread(_reap, self._process)
        return code


def _reap(process: subprocess.Popen[bytes]) -> int:
    with suppress(subprocess.TimeoutExpired):
        return process.wait(_END_SECONDS)
    process.kill()
    return process.wait()


def _spawn(*descriptors: int) -> subprocess.Popen[bytes]:
    """Starts a worker with this interpreter and this package, wherever it was imported from."""
    home = str(Path(headrace.__file__).parents[1])
    paths = [os.environ.get("PYTHONPATH", "")]
    if home not in site.getsitepackages():  # where it is found, and would come before the standard library
        paths.insert(0, home)
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "headrace.transport.workers", *map(str, descriptors), str(os.getpid())],
        stdin=subprocess.DEVNULL,
        pass_fds=descriptors,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )
