"""What starting a server on loopback needs, whichever it is."""

from __future__ import annotations

import socket


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listened on a moment ago, all different."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [s.getsockname()[1] for s in sockets]
    finally:
        for s in sockets:
            s.close()
