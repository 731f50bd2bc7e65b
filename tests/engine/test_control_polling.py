"""A repository that is looked at again and again: what has changed, and when it is acted on."""

import asyncio
import os

import pytest
from engine.controlling import BROKEN, Control, Repository, virtual

from headrace.errors import ConfigError, ModelControlDisabled, ModelNotFound
from headrace.testing.backend import FakeBackend
from headrace.testing.loop import run_virtual


@virtual
async def test_polling_follows_the_repository(repository):
    repository.write("a")
    world = Control(repository, "poll")
    await world.control.start()
    with pytest.raises(
        ModelControlDisabled, match=r"^explicit model load / unload is not allowed if polling is enabled$"
    ):
        await world.control.load("a")
    watching = asyncio.create_task(world.control.watch(10))
    await asyncio.sleep(25)
    assert len(FakeBackend.loaded) == 1  # nothing has changed

    repository.write("b")
    await asyncio.sleep(25)
    assert await world.serves("b") == "1"
    repository.write("a", versions=[2])
    await asyncio.sleep(25)
    assert await world.serves("a") == "2"
    repository.write("a", 'versions = "all"\n')
    await asyncio.sleep(25)
    assert world.states() == {"a/1": ("READY", ""), "a/2": ("READY", ""), "b/1": ("READY", "")}
    repository.remove("a", 2)
    await asyncio.sleep(25)
    assert await world.serves("a") == "1"
    repository.remove("b")
    await asyncio.sleep(25)
    with pytest.raises(ModelNotFound):
        await world.serves("b")
    assert not watching.done()
    watching.cancel()


@virtual
async def test_only_the_version_whose_files_changed_is_loaded_again(repository):
    repository.write("a", 'versions = "all"\n', versions=[1, 2])
    world = Control(repository, "poll")
    await world.control.start()
    file = repository.root / "a" / "2" / "model.fake"
    os.utime(file, ns=(1, 1))
    await world.control.poll()
    assert len(FakeBackend.loaded) == 3
    assert [world.engine.serving("a")[version].stamp[0][3] == 1 for version in (1, 2)] == [False, True]
    await world.control.poll()
    assert len(FakeBackend.loaded) == 3


@virtual
async def test_a_file_that_is_still_being_written_is_not_read(repository):
    repository.write("a")
    world = Control(repository, "poll")
    await world.control.start()
    file = repository.root / "a" / "1" / "model.fake"
    looks = []
    look = world.control._look

    async def writing():
        found = await look()
        looks.append(len(FakeBackend.loaded))
        if len(looks) <= 4:
            file.write_text("x" * len(looks))
        return found

    world.control._look = writing
    file.write_text("begun")
    await world.control.poll()
    assert looks == [1] * 6 + [2] * (len(looks) - 6)
    assert len(FakeBackend.loaded) == 2


@virtual
async def test_a_broken_change_is_tried_once_and_what_served_still_does(repository):
    repository.write("a")
    world = Control(repository, "poll")
    await world.control.start()
    repository.write("a", BROKEN)
    await world.control.poll()
    await world.control.poll()
    assert world.states() == {"a/1": ("READY", "loading it again failed: no such operator")}
    assert await world.serves() == "1"
    repository.write("a")
    await world.control.poll()
    assert world.states() == {"a/1": ("READY", "")}


def test_a_repository_that_cannot_be_read_for_a_while(repository, caplog):
    async def main():
        repository.write("a")
        world = Control(repository, "poll")
        await world.control.start()
        watching = asyncio.create_task(world.control.watch(10))
        repository.root.rename(repository.root.with_name("elsewhere"))
        await asyncio.sleep(45)
        assert await world.serves() == "1"
        repository.root.with_name("elsewhere").rename(repository.root)
        repository.write("b")
        await asyncio.sleep(15)
        assert await world.serves("b") == "1"
        watching.cancel()

    run_virtual(main())
    assert caplog.text.count("the repository is not looked at: model_repository") == 1


@virtual
async def test_a_repository_that_was_never_there(repository):
    for mode in ("none", "poll", "explicit"):
        world = Control(Repository(repository.root / "missing"), mode)
        with pytest.raises(ConfigError, match="not a readable directory"):
            await world.control.start()
