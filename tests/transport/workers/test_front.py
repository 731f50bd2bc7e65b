"""The engine's side with worker processes, real ones and such as do not what they shall."""

import asyncio
import gc
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import uvloop
from prometheus_client import CollectorRegistry
from transport.http2.bench import HELLO, INFER, Infer
from transport.http2.wire import Reader, grpc_call

from headrace.config import Settings
from headrace.engine.turn import Turn
from headrace.errors import ConfigError
from headrace.telemetry.logs import Severities
from headrace.telemetry.server_metrics import ServerMetrics
from headrace.telemetry.workers import WorkerMetrics
from headrace.transport.health import Health
from headrace.transport.service import ServiceTable
from headrace.transport.tls.security import Security
from headrace.transport.workers import front as module
from headrace.transport.workers import worker
from headrace.transport.workers.front import WorkersTransport


class Front:
    """A transport with one worker, as the server makes it, before an inference of the test's."""

    made: ClassVar[list["Front"]] = []

    def __init__(self, **settings):
        settings = Settings(grpc_port=0, grpc_workers=1, **settings)
        registry = CollectorRegistry()
        self.infer = Infer()
        self.counts = ServerMetrics(registry)
        self.metrics = WorkerMetrics(registry)
        self.transport = WorkersTransport(
            settings,
            ServiceTable({}, {}, self.infer, ()),
            self.infer,
            turn=Turn(asyncio.get_running_loop()),
            counts=self.counts,
            metrics=self.metrics,
            security=Security(settings, registry),
            health=Health(),
            severities=Severities("info"),
            traced=False,
        )
        self.made.append(self)

    async def asked(self, port):
        """The streams of a client whose request has arrived."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HELLO + grpc_call(INFER, b"request"))
        await settled(lambda: self.infer.calls)
        return reader, writer

    def kill(self):
        """Whatever has become of its workers: a stopped one would stay."""
        for one in self.transport.workers:
            if one._process is not None:
                one._process.kill()
                one._process.wait()


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request):
    """Runs a scenario; nothing may go wrong unseen."""

    def run(scenario):
        problems = []

        async def main():
            asyncio.get_running_loop().set_exception_handler(lambda loop, context: problems.append(context))
            async with asyncio.timeout(60):
                await scenario()

        with asyncio.Runner(loop_factory=request.param) as runner:
            try:
                runner.run(main())
            finally:
                while Front.made:
                    Front.made.pop().kill()
        assert not problems, problems

    return run


@pytest.fixture
def spawned(monkeypatch):
    """What is started in the place of workers, one after the other; then real ones."""
    scripts = []
    spawn = worker._spawn

    def start(*descriptors):
        if not scripts:
            return spawn(*descriptors)
        return subprocess.Popen([sys.executable, "-c", scripts.pop(0)], pass_fds=descriptors)

    monkeypatch.setattr(worker, "_spawn", start)
    monkeypatch.setattr(module, "_FIRST_PAUSE_SECONDS", 0)
    return scripts


async def settled(condition):
    while not condition():  # noqa: ASYNC110 - of other processes, which give no notice
        await asyncio.sleep(0.005)


def test_a_call_and_a_clean_end(run):
    async def scenario():
        front = Front()
        port = await front.transport.start()
        reader, writer = await front.asked(port)
        (work,) = front.infer.calls
        assert work.message == b"request"
        while not front.counts.connections_open:  # on a busy machine it may not answer in time
            await front.transport.refresh()
        assert (front.counts.connections_open, front.metrics.ready) == (1, 1)
        assert front.metrics.cpu_seconds[0] > 0
        assert front.transport.serving

        draining = asyncio.create_task(front.transport.drain(30))
        replies = Reader()
        lines = []
        work.sink.reply(b"reply")
        while "HEADERS 1 trailers END_STREAM" not in lines:
            lines += replies.feed(await reader.read(1 << 16))
        assert replies.messages(1) == [b"reply"]
        writer.close()
        assert await draining
        await front.transport.close()
        await front.transport.close()
        assert (front.counts.connections_open, front.metrics.ready) == (0, 0)
        assert not front.transport.serving
        assert front.metrics.restarts == 0

    run(scenario)


def test_nothing_is_accepted_before_all_have_started(run):
    """Though one that is ready sees another end as it starts."""

    async def scenario():
        front = Front()
        front.metrics.ready = 1
        front.transport._open_or_shut()
        assert repr(front.transport._listener) == "<Listener 0 sockets, shut>"

    run(scenario)


def test_a_worker_that_does_not_start(run, spawned):
    async def scenario():
        spawned.append("import sys; sys.exit(3)")
        with pytest.raises(ConfigError, match="grpc_workers = 1: a worker ended as it started: exit code 3"):
            await Front().transport.start()

    run(scenario)


def test_a_system_that_hands_no_sockets_over(run, monkeypatch):
    monkeypatch.delattr(socket, "send_fds")

    async def scenario():
        with pytest.raises(ConfigError, match="grpc_workers: expected 0"):
            await Front().transport.start()

    run(scenario)


def test_a_worker_that_does_not_get_ready(run, spawned, monkeypatch):
    monkeypatch.setattr(module, "_START_SECONDS", 0.01)

    async def scenario():
        spawned.append("import signal; signal.pause()")
        with pytest.raises(ConfigError, match="a worker does not start"):
            await Front().transport.start()

    run(scenario)


def test_one_that_replaces_another_may_fail_as_well(run, spawned, caplog):
    """Who connects meanwhile is served by the one after."""

    async def scenario():
        front = Front()
        port = await front.transport.start()
        spawned.append("import os; os._exit(4)")
        front.transport.workers[0]._process.kill()
        await settled(lambda: not front.transport.serving)
        _, writer = await front.asked(port)
        assert (front.metrics.ready, front.metrics.restarts) == (1, 2)
        writer.close()
        await front.transport.close()

    run(scenario)
    assert "a worker has ended, and with it 0 connections: signal 9" in caplog.text
    assert "no worker in its place yet" in caplog.text


def test_a_worker_that_says_nonsense_is_replaced(run, spawned, caplog):
    async def scenario():
        front = Front()
        await front.transport.start()
        front.transport.workers[0].desk.link.buffer_updated(16)
        await settled(lambda: front.metrics.restarts and front.transport.serving)
        await front.transport.close()

    run(scenario)
    assert "it sent what is no record" in caplog.text


def regions():
    """Those of workers that this process has mapped."""
    return Path("/proc/self/maps").read_text().count("headrace-worker")


def test_memory_of_a_worker_that_has_died_is_given_back(run):
    """At once, and not when the garbage collector happens to come by."""

    async def scenario():
        front = Front()
        await front.transport.start()
        before = regions()
        for restarts in (1, 2):
            front.transport.workers[0]._process.kill()
            await settled(lambda: front.metrics.restarts == restarts and front.transport.serving)  # noqa: B023
        assert regions() == before
        await front.transport.close()

    gc.disable()
    try:
        run(scenario)
    finally:
        gc.enable()


def test_a_worker_that_hangs_gets_no_connections_and_is_told_of(run, monkeypatch, caplog):
    monkeypatch.setattr(module, "_TICK_SECONDS", 0.02)
    monkeypatch.setattr(module, "_SILENT_SECONDS", 4)  # it says something each second, if it gets there
    monkeypatch.setattr(module, "_HUNG_TICKS", 10**6)
    caplog.set_level("INFO", module.__name__)

    async def scenario():
        front = Front()
        port = await front.transport.start()
        (hangs,) = front.transport.workers
        hangs._process.send_signal(signal.SIGSTOP)
        await settled(lambda: hangs.silent)
        assert (front.transport.serving, front.metrics.ready) == (False, 0)
        _, writer = await asyncio.open_connection("127.0.0.1", port)  # it waits
        writer.write(HELLO + grpc_call(INFER, b"request"))
        await front.transport.refresh()  # without waiting
        assert not hangs.open
        hangs._process.send_signal(signal.SIGCONT)
        await settled(lambda: not hangs.silent)
        assert (front.transport.serving, front.metrics.ready) == (True, 1)
        await settled(lambda: front.infer.calls)
        writer.close()
        await front.transport.close()

    run(scenario)
    said = [record.getMessage() for record in caplog.records if "respond" in record.getMessage()]
    assert said == ["a worker does not respond; others get its connections", "a worker responds again"]


def test_a_worker_that_hangs_for_long_is_replaced(run, monkeypatch, caplog):
    monkeypatch.setattr(module, "_TICK_SECONDS", 0.02)
    monkeypatch.setattr(module, "_HUNG_TICKS", 100)

    async def scenario():
        front = Front()
        port = await front.transport.start()
        front.transport.workers[0]._process.send_signal(signal.SIGSTOP)
        await settled(lambda: front.metrics.restarts == 1 and front.transport.serving)
        _, writer = await front.asked(port)
        writer.close()
        await front.transport.close()

    run(scenario)
    assert "a worker has not responded for long: it is ended, for another" in caplog.text
    assert "a worker has ended, and with it 0 connections: signal 9" in caplog.text


@pytest.mark.parametrize("connected", [False, True])
@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_worker_that_hangs_holds_up_no_drain(run, monkeypatch, caplog, when, connected):
    """What it owes nobody knows, but for one that has no connections."""
    monkeypatch.setattr(module, "_TICK_SECONDS", 0.02)
    monkeypatch.setattr(module, "_SILENT_SECONDS", 1.5)
    monkeypatch.setattr(module, "_HUNG_TICKS", 10**6)

    async def scenario():
        front = Front()
        port = await front.transport.start()
        (hangs,) = front.transport.workers
        if connected:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(HELLO)
            assert await reader.read(1)
            await settled(lambda: hangs.open)
        hangs._process.send_signal(signal.SIGSTOP)
        if when == "before":
            await settled(lambda: hangs.silent)
        assert await front.transport.drain(1000) is not connected
        await front.transport.close()
        if connected:
            writer.close()
        assert hangs._process.returncode == -signal.SIGKILL

    run(scenario)
    assert "a worker does not respond" in caplog.text


def test_the_time_to_drain_is_kept(run, caplog):
    async def scenario():
        front = Front()
        await front.transport.start()
        front.transport.workers[0]._process.send_signal(signal.SIGSTOP)
        assert await front.transport.drain(0.1)
        await front.transport.close()

    run(scenario)
    assert "when the time to drain was over" in caplog.text


def test_what_dies_while_it_drains_has_not_answered_all(run):
    async def scenario():
        front = Front()
        port = await front.transport.start()
        _, writer = await front.asked(port)
        draining = asyncio.create_task(front.transport.drain(30))
        front.transport.workers[0]._process.kill()
        assert not await draining
        writer.close()
        await front.transport.close()

    run(scenario)


def test_who_does_not_take_a_reply_is_cut_off(run):
    async def scenario():
        front = Front()
        port = await front.transport.start()
        _, writer = await front.asked(port)
        assert not await front.transport.drain(0.1)
        writer.close()
        await front.transport.close()

    run(scenario)


def test_connections_that_come_and_go_do_not_count(run):
    async def scenario():
        front = Front(http2={"max_connections": 40})
        port = await front.transport.start()
        try:
            for _ in range(1000):
                socket.create_connection(("127.0.0.1", port), 10).close()  # without the loop: they come all at once
            kept = [await asyncio.open_connection("127.0.0.1", port) for _ in range(40)]
            for _, writer in kept:
                writer.write(HELLO)
            for _ in range(1000):
                await front.transport.refresh()
                if front.counts.connections_open == 40:
                    break
            assert (front.counts.connections_open, front.counts.http2_limits["connections"]) == (40, 0)
            for _, writer in kept:
                writer.close()
        finally:
            await front.transport.close()

    run(scenario)
