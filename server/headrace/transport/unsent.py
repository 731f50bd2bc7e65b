"""How much of what was written to a connection its peer has not yet got."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING

try:
    import fcntl
    import termios
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    import asyncio


def unsent(transport: asyncio.Transport) -> int:
    """Octets in the transport's buffer and in the system's that the peer's system has not acknowledged.

    Source: TIOCOUTQ, tcp(7). Where the system does not say, those of the transport alone.
    """
    octets = transport.get_write_buffer_size()
    sock = transport.get_extra_info("socket")
    if sock is not None and fcntl is not None:
        with suppress(OSError, ValueError):  # it is closed, or not TCP
            octets += int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    return octets
