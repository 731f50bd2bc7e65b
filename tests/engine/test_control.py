import asyncio
import contextlib
import gc
import json
import tempfile
import threading
import weakref

import pytest
from e2e.onnx_models import scale
from engine.controlling import BROKEN, ROW, Control, Repository, virtual

from headrace.engine.opening import load_model
from headrace.errors import InvalidRequest, LoadFailed, ModelControlDisabled, ModelNotFound, ModelNotInRepository
from headrace.messages import State as RequestState
from headrace.repository.overrides import REMOVER
from headrace.testing.backend import FakeBackend
from headrace.testing.client import infer_request
from headrace.testing.loop import run_virtual


@virtual
async def test_without_control_what_is_there_is_served_and_nothing_else(repository):
    repository.write("a")
    world = Control(repository, "none")
    await world.control.start()
    assert await world.serves() == "1"
    for operation in (world.control.load, world.control.unload):
        with pytest.raises(ModelControlDisabled, match="model_control_mode is 'none', expected 'explicit'"):
            await operation("a")
    await world.control.watch(1)  # there is nothing to watch
    assert repr(world.control) == "<ModelControl none, 1 models>"


@virtual
async def test_explicit_begins_with_what_it_is_told(repository):
    for name in "abc":
        repository.write(name, BROKEN if name == "b" else "")
    world = Control(repository, "explicit", "a", "b", "z")
    await world.control.start()
    assert world.states() == {
        "a/1": ("READY", ""),
        "b/1": ("UNAVAILABLE", "no such operator"),
        "c/None": ("UNAVAILABLE", "not loaded"),
    }
    everything = Control(repository, "explicit", "*")
    await everything.control.start()
    assert everything.states().keys() == {"a/1", "b/1", "c/1"}


@pytest.mark.parametrize("mode", ["none", "poll", "explicit"])
def test_a_model_that_has_yet_to_be_built_is_no_error(repository, mode, caplog):
    async def scenario():
        caplog.clear()
        repository.write("a", 'built_by = "make a"\n')
        (repository.root / "a" / "1" / "model.fake").unlink()
        (repository.root / "a" / "1").rmdir()
        world = Control(repository, mode, *(["*"] if mode == "explicit" else []))
        with caplog.at_level("INFO"):
            await world.control.start()
        (line,) = [record for record in caplog.records if "model a" in record.message]
        assert (line.levelname, line.message) == (
            "INFO", "model a is not served: not built yet; to build it, run 'make a'"
        )  # fmt: skip
        assert world.states() == {"a/None": ("UNAVAILABLE", "not built yet")}
        if mode == "explicit":
            with pytest.raises(LoadFailed, match="load failed for model 'a': not built yet; to build it, run 'make a'"):
                await world.control.load("a")
        repository.write("a", 'built_by = "make a"\n')
        if mode == "none":
            return
        await (world.control.poll() if mode == "poll" else world.control.load("a"))
        assert world.states() == {"a/1": ("READY", "")}

    run_virtual(scenario())


@virtual
async def test_load_and_unload(repository):
    world = Control(repository, "explicit")
    await world.control.start()
    with pytest.raises(ModelNotInRepository, match="failed to load 'a', failed to poll from model repository"):
        await world.control.load("a")
    repository.write("a")
    await world.control.index()
    assert world.states() == {"a/None": ("UNAVAILABLE", "not loaded")}
    await world.control.load("a")
    assert world.states() == {"a/1": ("READY", "")}
    assert await world.serves() == "1"
    gate = asyncio.Event()
    world.engine.schedulers[0].drain = lambda seconds: asyncio.wait_for(gate.wait(), seconds)
    await world.control.unload("a")
    assert world.states() == {"a/1": ("UNLOADING", "")}
    gate.set()
    with pytest.raises(ModelNotFound, match="'a' has no available versions"):
        await world.serves()
    assert world.states() == {"a/1": ("UNAVAILABLE", "unloaded")}
    await world.control.unload("a")
    await world.control.unload("never heard of")
    assert [instance.closed for model in FakeBackend.loaded for instance in model.instances] == [True]
    assert world.metrics.recorder("a", "1") is None
    await world.control.load("a")
    assert await world.serves() == "1"


@virtual
async def test_models_that_are_gone_from_the_disk_leave_the_index(repository):
    repository.write("a")
    world = Control(repository, "explicit")
    await world.control.start()
    repository.remove("a")
    await world.control.index()
    assert world.states() == {}


@virtual
async def test_a_name_is_no_path(repository):
    repository.write("a")
    (repository.root / "inside").mkdir()
    world = Control(repository, "explicit")
    world.control._root = repository.root / "inside"
    for name in ("../a", "..", ".", "", "/", str(repository.root / "a")):
        with pytest.raises(ModelNotInRepository):
            await world.control.load(name)


@virtual
async def test_a_load_that_fails_says_why_and_what_served_still_does(repository):
    repository.write("a")
    world = Control(repository, "explicit", "a")
    await world.control.start()
    repository.write("a", BROKEN)
    text = "load failed for model 'a': version 1 is at UNAVAILABLE state: no such operator;"
    with pytest.raises(LoadFailed, match=f"^{text}$"):
        await world.control.load("a")
    assert world.states() == {"a/1": ("READY", "loading it again failed: no such operator")}
    assert await world.serves() == "1"
    repository.write("a", "max_bach = 1\n")
    with pytest.raises(LoadFailed, match=r"^load failed for model 'a': .*max_bach"):
        await world.control.load("a")
    assert await world.serves() == "1"
    repository.write("a", "versions = [1, 5]\n")
    with pytest.raises(LoadFailed, match=r"version 5 is at UNAVAILABLE state: model.toml asks for version 5"):
        await world.control.load("a")
    assert world.states()["a/1"] == ("READY", "")
    assert world.states()["a/5"][0] == "UNAVAILABLE"


@pytest.mark.parametrize("mode", ["explicit", "poll"])
@pytest.mark.parametrize("end", ["mended", "gone"])
def test_what_failed_and_is_wanted_no_more_is_forgotten(repository, mode, end):
    """An alert that a model cannot be served ends when it can, or when nobody wants it to be."""

    async def scenario():
        repository.write("a", versions=(1,))
        repository.write("b", BROKEN)
        world = Control(repository, mode, *(["*"] if mode == "explicit" else []))
        await world.control.start()
        repository.write("a", "versions = [9]\n")
        if mode == "poll":
            await world.control.poll()
        else:
            with pytest.raises(LoadFailed):
                await world.control.load("a")
        assert {entry.condition for entry in world.engine.catalog.index()} >= {"failed"}
        if end == "mended":
            repository.write("a")
            repository.write("b")
        else:
            repository.remove("a")
            repository.remove("b")
        for name in "ab":
            if mode == "poll":
                await world.control.poll()
            else:
                await (world.control.load if end == "mended" else world.control.unload)(name)
        await asyncio.sleep(1)
        left = {(entry.name, entry.version): entry.condition for entry in world.engine.catalog.index()}
        assert "failed" not in left.values()
        if end == "mended":
            assert left == {("a", 1): "ready", ("b", 1): "ready"}

    run_virtual(scenario())


@virtual
async def test_a_version_is_made_before_another_is_broken(repository):
    """While the new one is loaded the old one serves; what the old one has accepted is answered by it."""
    repository.write("a", versions=[1])
    world = Control(repository, "explicit", "a")
    await world.control.start()
    repository.write("a", versions=[1, 2])
    call = world.client.send(infer_request("a", {"x": ROW}))
    loading = asyncio.create_task(world.control.load("a"))
    answered = []
    while not loading.done():
        answered.append(await world.serves())
    assert set(answered) <= {"1", "2"}
    assert call.response.model_version == "1"
    assert await world.serves() == "2"
    assert world.states() == {"a/1": ("UNAVAILABLE", "unloaded"), "a/2": ("READY", "")}


@virtual
async def test_the_same_version_again(repository):
    repository.write("a")
    world = Control(repository, "explicit", "a")
    await world.control.start()
    await world.serves()
    (before,) = world.engine.schedulers
    await world.control.load("a")
    (after,) = world.engine.schedulers
    assert before is not after
    assert await world.serves() == "1"
    assert [instance.closed for model in FakeBackend.loaded for instance in model.instances] == [True, False]
    assert after.statistics().success.count == 2  # counters only grow
    assert repr(world.engine) == "<Engine 1 versions serve>"


@virtual
async def test_requests_under_way_when_their_version_is_replaced_are_answered(repository):
    """Those that wait, too: the old scheduler runs them, though it takes no more."""
    repository.write("a", '[batching]\npolicy = "delay"\ndelay_us = 100000\n')
    world = Control(repository, "explicit", "a")
    await world.control.start()
    call = world.client.send(infer_request("a", {"x": ROW}))
    await asyncio.sleep(0.01)
    assert call.under_way.state is RequestState.WAITING
    await world.control.load("a")
    await asyncio.sleep(1)
    assert call.response.model_version == "1"


@virtual
async def test_the_end_of_the_server_waits_for_versions_that_leave(repository):
    repository.write("a", '[batching]\npolicy = "delay"\ndelay_us = 100000\n')
    world = Control(repository, "explicit", "a")
    await world.control.start()
    call = world.client.send(infer_request("a", {"x": ROW}))
    await asyncio.sleep(0.01)
    await world.control.unload("a")
    assert repr(world.engine) == "<Engine 0 versions serve, 1 leave>"
    assert await world.engine.drain(1)
    assert call.response.model_version == "1"
    world.engine.close()
    assert [instance.closed for model in FakeBackend.loaded for instance in model.instances] == [True]


@virtual
async def test_what_is_loaded_when_the_server_has_ended_is_freed(repository):
    repository.write("a")
    world = Control(repository, "explicit")
    await world.control.start()
    loading = asyncio.create_task(world.control.load("a"))
    await asyncio.sleep(0)
    world.engine.close()
    with pytest.raises(LoadFailed, match="the server is leaving"):
        await loading
    assert all(instance.closed for model in FakeBackend.loaded for instance in model.instances)


@virtual
async def test_loads_of_one_model_follow_one_another(repository):
    repository.write("a")
    world = Control(repository, "explicit")
    await world.control.start()
    await asyncio.gather(*(world.control.load("a") for _ in range(3)))
    await world.control.unload("a")
    assert world.engine.schedulers == []
    assert len(FakeBackend.loaded) == 3
    await asyncio.gather(world.control.load("a"), world.control.unload("a"), world.control.load("a"))
    assert world.states() == {"a/1": ("READY", "")}


@virtual
async def test_labels(repository):
    repository.write("a", 'versions = "all"\nversion_labels = {stable = 1, canary = 2}\n', versions=[1, 2])
    world = Control(repository, "explicit", "a")
    await world.control.start()
    assert [await world.serves("a", label) for label in ("stable", "canary", "")] == ["1", "2", "2"]
    repository.write("a", 'versions = "all"\nversion_labels = {stable = 2}\n')
    await world.control.load("a")
    assert await world.serves("a", "stable") == "2"


@virtual
async def test_the_newest_version_is_there_first(repository):
    """Else who asks for none would find an old one for a while."""
    repository.write("a", 'versions = "all"\n', versions=[1, 2, 3])
    world = Control(repository, "explicit")
    await world.control.start()
    loading, load = [], world.engine.load
    world.engine.load = lambda found, **more: loading.append(found.version) or load(found, **more)
    await world.control.load("a")
    assert loading == [3, 2, 1]
    assert await world.serves() == "3"


def test_a_label_of_a_version_that_is_not_served_is_told_of(repository, caplog):
    async def main():
        repository.write("a", "version_labels = {stable = 1, canary = 7}\n")
        world = Control(repository, "explicit", "a")
        await world.control.start()
        assert await world.serves("a", "stable") == "1"

    run_virtual(main())
    assert "model a: label canary is of version 7, which is not served" in caplog.text
    assert "label stable" not in caplog.text


@virtual
async def test_a_load_goes_on_when_whoever_asked_for_it_has_gone_away(repository):
    repository.write("a")
    world = Control(repository, "explicit")
    await world.control.start()
    asked = asyncio.create_task(world.control.load("a"))
    await asyncio.sleep(0)
    asked.cancel()
    await asyncio.wait([asked])
    assert asked.cancelled()
    await asyncio.wait(world.control._at_work)
    assert world.states() == {"a/1": ("READY", "")}


@pytest.mark.parametrize("mode", ["explicit", "poll"])
def test_a_change_that_cannot_be_read_is_told_of_what_serves_until_it_is_past(repository, caplog, mode):
    async def scenario():
        repository.write("a")
        world = Control(repository, mode, *(["a"] if mode == "explicit" else []))
        await world.control.start()

        async def look():
            if mode == "poll":
                await world.control.poll()
                return
            with contextlib.suppress(LoadFailed):
                await world.control.load("a")

        for spoil in ("max_batch = -2\n", "junk = 3\n"):
            repository.write("a", spoil)
            await look()
            state, reason = world.states()["a/1"]
            assert state == "READY"
            assert reason.startswith("loading it again failed: ")
            assert spoil.split()[0] in reason
            assert await world.serves() == "1"
            repository.write("a")
            await look()
            assert world.states()["a/1"] == ("READY", "")
        assert "model a version 1 serves as before, loading it again failed: " in caplog.text
        assert "cannot be served" not in caplog.text

    run_virtual(scenario())


def test_models_to_load_are_for_explicit_control(repository, caplog):
    async def scenario():
        repository.write("a")
        await Control(repository, "none", "a").control.start()

    run_virtual(scenario())
    assert "load_models has no effect: model_control_mode is 'none', expected 'explicit'" in caplog.text


@pytest.fixture
def staged(tmp_path, monkeypatch):
    """The directories that there are of what clients have brought; the garbage collector removes none."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    gc.disable()

    def staged():
        for thread in threading.enumerate():
            if thread.name == REMOVER:
                thread.join()
        return list(tmp_path.glob("headrace-load-*"))

    yield staged
    gc.enable()


class Files(dict):
    """Whose end can be seen."""


@pytest.mark.parametrize(
    ("file", "error"), [("7/model.onnx", LoadFailed), ("model.onnx", InvalidRequest), ("7/../../x", InvalidRequest)]
)
def test_of_a_load_that_fails_nothing_stays(repository, staged, file, error):
    """Though errors and what raises them refer to one another."""
    repository.write("a")

    async def scenario():
        world = Control(repository, "explicit", "a")
        await world.control.start()
        files = Files({file: b"nonsense"})
        there = weakref.ref(files)
        failed = False
        try:
            await world.control.load("a", config=json.dumps({"backend": "onnxruntime"}), files=files)
        except error:  # pytest.raises would keep it
            failed = True
        assert failed
        del files
        await asyncio.sleep(1)  # the loop has what it runs just now
        assert there() is None
        assert staged() == []

    run_virtual(scenario())


def test_what_a_client_has_brought_stays_while_it_serves(repository, staged):
    """An instance that is lost is made anew of it, as often as need be."""

    async def scenario():
        repository.write("a")
        world = Control(repository, "explicit", "a")
        await world.control.start()
        config = json.dumps({"backend": "onnxruntime", "maxBatchSize": 3})
        model = {"7/model.onnx": scale(9, "N", 2)}
        await world.control.load("a", config=config, files=model)
        found = world.engine.serving("a")[7]
        instance = load_model(found, "onnxruntime", None).make_instance(0)
        assert instance.run([[ROW.tobytes()]], [(1, 2)], [0])[0].tolist() == (9 * ROW).tolist()
        instance.close()
        there = found.path.parents[1]
        del found, instance
        with pytest.raises(LoadFailed):
            await world.control.load("a", config=config, files={"7/model.onnx": b"nonsense"})
        for files in ({"model.onnx": b""}, {"7/../../x": b""}):
            with pytest.raises(InvalidRequest):
                await world.control.load("a", config=config, files=files)
        assert staged() == [there], "which serves still"
        await world.control.load("a")
        await asyncio.sleep(60)
        assert staged() == []
        await world.control.load("a", config=config, files=model)
        assert len(staged()) == 1
        await world.control.unload("a")
        await asyncio.sleep(60)
        assert staged() == []

    run_virtual(scenario())


@virtual
async def test_what_is_wrong_with_a_configuration_that_a_client_brings(repository):
    """Nothing is said of the files that it was laid out in."""
    repository.write("a")
    world = Control(repository, "explicit")
    await world.control.start()
    for config, text in (
        ('{"version_policy": {"specific": {"versions": ["3"]}}}', "asks for version 3, but there is no a/3"),
        ('{"max_batch_size": -1}', "max_batch_size"),
    ):
        with pytest.raises(LoadFailed) as caught:
            await world.control.load("a", config)
        assert text in str(caught.value)
        assert "/" not in str(caught.value).replace("a/3", "")
        assert "/tmp" not in world.states().get("a/1", ("", ""))[1]
    with pytest.raises(ModelNotInRepository, match="a model's name is letters, digits"):
        await world.control.load("no name")


@pytest.mark.parametrize("mode", ["none", "explicit"])
def test_a_repository_that_is_none_is_told_of(repository, caplog, mode):
    async def main():
        await Control(repository, mode).control.start()
        assert f"{repository.root} holds no models: expected directories such as NAME/1" in caplog.text
        repository.write("a")
        caplog.clear()
        await Control(repository, mode).control.start()
        assert caplog.text == ""
        await Control(Repository(repository.root / "a"), mode).control.start()

    with caplog.at_level("WARNING"):
        run_virtual(main())
    assert f"{repository.root / 'a'} has the configuration of a model: is it a model's directory" in caplog.text
