import asyncio
import errno
import socket

import pytest

from headrace.transport.workers import listener as module
from headrace.transport.workers.listener import Listener


@pytest.fixture
def run():
    """Runs a scenario with a listener, and what it has taken."""

    def run(scenario):
        async def main():
            taken = asyncio.Queue()
            listener = Listener(taken.put_nowait)
            try:
                async with asyncio.timeout(20):
                    await scenario(listener, taken)
            finally:
                listener.close()
                while not taken.empty():
                    taken.get_nowait().close()

        asyncio.run(main())

    return run


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_connections_are_handed_out(run, host):
    async def scenario(listener, taken):
        port = await listener.listen(host, 0)
        with socket.create_connection(("127.0.0.1", port)) as client:
            listener.open()
            connection = await taken.get()
            with connection:
                assert connection.getpeername() == client.getsockname()
        assert "open" in repr(listener)

    run(scenario)


def test_while_it_is_shut_they_wait(run):
    async def scenario(listener, taken):
        port = await listener.listen("127.0.0.1", 0)
        listener.open()
        listener.open()
        listener.shut()
        with socket.create_connection(("127.0.0.1", port)):
            for _ in range(3):
                await asyncio.sleep(0)
            assert taken.empty()
            listener.open()
            (await taken.get()).close()

    run(scenario)


def test_a_port_that_is_taken(run):
    async def scenario(listener, taken):
        with socket.create_server(("127.0.0.1", 0)) as other:
            with pytest.raises(OSError, match=r"[Aa]ddress") as caught:
                await listener.listen("127.0.0.1", other.getsockname()[1])
            assert caught.value.errno == errno.EADDRINUSE

    run(scenario)


class Failing:
    """A listening socket that has nothing but errors."""

    def __init__(self, *errors):
        self.errors = list(errors)

    def accept(self):
        raise self.errors.pop(0)


def test_without_files_it_waits_a_while(run, monkeypatch, caplog):
    monkeypatch.setattr(module, "_PAUSE_SECONDS", 0)

    async def scenario(listener, taken):
        port = await listener.listen("127.0.0.1", 0)
        listener.open()
        listener._accept(Failing(OSError(errno.EMFILE, "too many")))
        assert "shut" in repr(listener)
        with socket.create_connection(("127.0.0.1", port)):
            (await taken.get()).close()

    run(scenario)
    assert "no connection can be accepted: too many" in caplog.text


def test_what_is_wrong_with_one_connection(run):
    async def scenario(listener, taken):
        await listener.listen("127.0.0.1", 0)
        listener.open()
        listener._accept(Failing(ConnectionAbortedError()))
        with pytest.raises(OSError, match="surprise"):
            listener._accept(Failing(OSError(errno.EIO, "surprise")))

    run(scenario)
