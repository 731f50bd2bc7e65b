import asyncio

import pytest

from headrace.errors import ServiceNotFound
from headrace.rpc.health_pb2 import HealthCheckRequest, HealthCheckResponse, HealthListRequest
from headrace.transport.health import Health

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING


@pytest.mark.parametrize("service", ["", "inference.GRPCInferenceService"])
def test_check_follows_the_server(service):
    health = Health()
    request = HealthCheckRequest(service=service)
    assert health.check(request).status == NOT_SERVING
    health.set_serving(True)
    assert health.check(request).status == SERVING
    assert repr(health) == "<Health serving>"
    health.set_serving(False)
    assert health.check(request).status == NOT_SERVING


def test_check_of_an_unknown_service():
    with pytest.raises(ServiceNotFound, match=r"unknown service 'no.such.Service'"):
        Health().check(HealthCheckRequest(service="no.such.Service"))


def test_list_names_both_services():
    health = Health()
    health.set_serving(True)
    statuses = health.list(HealthListRequest()).statuses
    assert {name: state.status for name, state in statuses.items()} == {
        "": SERVING,
        "inference.GRPCInferenceService": SERVING,
    }


class Watcher:
    """Reads a watch in a task and keeps what it saw."""

    def __init__(self, health, service=""):
        self.seen = []
        self.task = asyncio.create_task(self._read(health.watch(HealthCheckRequest(service=service))))

    async def _read(self, responses):
        async for response in responses:
            self.seen.append(response.status)

    async def stop(self):
        self.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self.task


async def settle():
    """Lets every task run until it waits."""
    for _ in range(5):
        await asyncio.sleep(0)


def test_watch_tells_each_change_once_to_every_watcher():
    async def scenario():
        health = Health()
        watchers = [Watcher(health), Watcher(health, "inference.GRPCInferenceService")]
        await settle()
        for serving in (True, True, False):
            health.set_serving(serving)
            await settle()
        for watcher in watchers:
            assert watcher.seen == [NOT_SERVING, SERVING, NOT_SERVING]
            await watcher.stop()

    asyncio.run(scenario())


def test_a_slow_watcher_sees_the_latest_state_and_no_repetition():
    async def scenario():
        health = Health()
        responses = health.watch(HealthCheckRequest())
        assert (await anext(responses)).status == NOT_SERVING
        health.set_serving(True)  # while the watcher is not looking
        health.set_serving(False)
        health.set_serving(True)
        assert (await anext(responses)).status == SERVING
        health.set_serving(False)
        health.set_serving(True)
        unchanged = asyncio.ensure_future(anext(responses))
        await settle()
        assert not unchanged.done()
        health.set_serving(False)
        assert (await unchanged).status == NOT_SERVING
        await responses.aclose()

    asyncio.run(scenario())


def test_watch_of_an_unknown_service_stays_open():
    async def scenario():
        health = Health()
        watcher = Watcher(health, "no.such.Service")
        await settle()
        health.set_serving(True)
        await settle()
        assert watcher.seen == [HealthCheckResponse.SERVICE_UNKNOWN]
        assert not watcher.task.done()
        await watcher.stop()

    asyncio.run(scenario())
