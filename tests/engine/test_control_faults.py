"""What must not stop a server from following what it is told: changes while it looks, its own end, any names."""

import asyncio
from unittest.mock import AsyncMock

import pytest
from engine.controlling import Control, virtual

from headrace.errors import LoadFailed, ShuttingDown
from headrace.testing.backend import FakeBackend
from headrace.testing.loop import run_virtual


@virtual
async def test_names_that_nobody_has_heard_of_are_not_kept(repository):
    repository.write("a")
    world = Control(repository, "explicit", "a")
    await world.control.start()
    await asyncio.gather(*(world.control.unload(f"never heard of {number}") for number in range(100)))
    assert list(world.control._locks) == ["a"]
    await world.control.unload("a")
    assert world.states() == {"a/1": ("UNAVAILABLE", "unloaded")}


@virtual
async def test_nothing_is_loaded_any_more_once_the_server_drains(repository):
    repository.write("a")
    world = Control(repository, "explicit", "a")
    await world.control.start()
    loading = asyncio.create_task(world.engine.load(world.engine.serving("a")[1]))
    await asyncio.sleep(0)
    assert await world.engine.drain(1)
    assert await loading == "the server is leaving"
    with pytest.raises(LoadFailed, match="the server is leaving"):
        await world.control.load("a")
    with pytest.raises(ShuttingDown):
        await world.serves()
    assert [instance.closed for model in FakeBackend.loaded for instance in model.instances] == [False, True]
    world.engine.close()


@virtual
async def test_a_setting_may_be_nan(repository):
    toml = """
        buckets.l = {sizes = [2, 4], inputs = {x = 1}, outputs = {y = 1}}
        inputs.x.pad = nan
        backend_options.dims = [-1]
    """
    repository.write("a", toml)
    world = Control(repository, "poll")
    await world.control.start()
    await world.control.poll()
    assert len(FakeBackend.loaded) == 1  # nothing has changed
    repository.write("a", f"{toml}instances = 2\n", versions=[1, 2])
    await world.control.poll()
    assert len(FakeBackend.loaded) == 2
    assert await world.serves() == "2"


def test_polling_outlives_what_nobody_foresaw(repository, caplog):
    async def main():
        world = Control(repository, "poll")
        await world.control.start()
        look = world.control._look
        world.control._look = failing = AsyncMock(side_effect=ZeroDivisionError)
        watching = asyncio.create_task(world.control.watch(10))
        await asyncio.sleep(15)
        failing.assert_awaited_once()
        world.control._look = look
        repository.write("a")
        await asyncio.sleep(15)
        assert await world.serves() == "1"
        watching.cancel()

    run_virtual(main())
    assert "the repository was not followed" in caplog.text
    assert "ZeroDivisionError" in caplog.text


@virtual
async def test_labels_stay_where_they_are_when_a_load_fails(repository):
    repository.write("a", 'versions = "all"\nversion_labels = {stable = 1}\n')
    world = Control(repository, "explicit", "a")
    await world.control.start()
    repository.write("a", "versions = [1, 2]\nversion_labels = {stable = 2}\n")
    with pytest.raises(LoadFailed, match="asks for version 2"):
        await world.control.load("a")
    assert await world.serves(version="stable") == "1"
    repository.write("a", 'versions = "all"\nversion_labels = {stable = 2}\n', versions=[2])
    await world.control.load("a")
    assert await world.serves(version="stable") == "2"


@virtual
async def test_labels_of_what_serves_though_another_version_does_not(repository):
    repository.write("a", "versions = [1, 2]\nversion_labels = {stable = 1}\n")
    world = Control(repository, "explicit", "a")
    await world.control.start()
    assert await world.serves(version="stable") == "1"
