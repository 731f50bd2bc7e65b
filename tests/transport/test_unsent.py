import contextlib
import socket

import pytest

from headrace.transport.unsent import unsent


class Transport:
    """buffered: octets that wait before the socket."""

    def __init__(self, sock, buffered=0):
        self.sock, self.buffered = sock, buffered

    def get_write_buffer_size(self):
        return self.buffered

    def get_extra_info(self, name):
        return {"socket": self.sock}[name]


@pytest.fixture
def connected():
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.create_connection(listening.getsockname()) as client,
        listening.accept()[0] as server,
    ):
        yield server, client


def test_nothing_was_written(connected):
    assert unsent(Transport(connected[0])) == 0
    assert unsent(Transport(connected[0], 7)) == 7


def test_a_peer_that_does_not_read(connected):
    server, _ = connected
    server.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            server.send(bytes(1 << 16))
    assert unsent(Transport(server, 7)) > 1 << 16


def test_a_socket_that_is_closed_or_not_there(connected):
    connected[0].close()
    assert unsent(Transport(connected[0], 7)) == 7
    assert unsent(Transport(None, 7)) == 7
