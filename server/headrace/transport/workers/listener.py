"""Listening sockets whose connections others serve."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

_BACKLOG = 1024
_AT_ONCE = 128
"""Connections taken in one turn of the loop."""
_WITHOUT = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_PAUSE_SECONDS = 1.0
"""Without files or memory for another connection, as asyncio's servers have it."""


class Listener:
    """The addresses of one port. taken: given each connection, which it closes; called while `open`."""

    def __init__(self, taken: Callable[[socket.socket], None]) -> None:
        self._taken = taken
        self._sockets: list[socket.socket] = []
        self._open = False
        self._pause: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Listener {len(self._sockets)} sockets, {'open' if self._open else 'shut'}>"

    async def listen(self, host: str, port: int) -> int:
        """Listens on all addresses of `host`, and returns the port; `open` has connections taken. Raises OSError."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        try:
            for family, _, _, _, address in dict.fromkeys(found):
                self._sockets.append(_bound(family, address))
        except OSError:
            self.close()
            raise
        taken: int = self._sockets[0].getsockname()[1]
        return taken

    def open(self) -> None:
        """Takes connections, from now on."""
        if not self._open:
            self._open = True
            for sock in self._sockets:
                asyncio.get_running_loop().add_reader(sock.fileno(), self._accept, sock)

    def shut(self) -> None:
        """Takes none for a while; they wait."""
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        if self._open:
            self._open = False
            for sock in self._sockets:
                asyncio.get_running_loop().remove_reader(sock.fileno())

    def close(self) -> None:
        """Listens no more."""
        self.shut()
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()

    def _accept(self, sock: socket.socket) -> None:
        for _ in range(_AT_ONCE):
            if not self._open:
                return
            try:
                connection, _ = sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _WITHOUT:
                    raise
                logger.error("no connection can be accepted: %s", error.strerror)
                self.shut()
                self._pause = asyncio.get_running_loop().call_later(_PAUSE_SECONDS, self.open)
                return
            self._taken(connection)


def _bound(family: int, address: tuple[object, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            with suppress(OSError):
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock
