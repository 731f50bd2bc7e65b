import asyncio
import os
from itertools import count
from mmap import mmap

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from headrace.clock import monotonic_ns
from headrace.engine.guard_metrics import GuardMetrics
from headrace.engine.guard_verdict import subject_of
from headrace.engine.guarding import Guards, ModelGuard
from headrace.engine.lifecycle import Engine
from headrace.engine.trusted import Trusted, open_trusted
from headrace.engine.turn import Turn
from headrace.errors import ModelLoadError, ModelNotFound, Unimplemented
from headrace.messages import Signature, TensorSpec
from headrace.repository.catalog import Catalog
from headrace.repository.discovery import Found
from headrace.repository.guard_config import GuardConfig
from headrace.repository.model_config import ModelConfig
from headrace.telemetry.guard import ObserverGuard
from headrace.telemetry.metrics import Metrics
from headrace.testing.backend import ECHO, FakeBackend, FakeModel
from headrace.testing.client import InProcessServer, infer_request
from headrace.testing.clock import FakeClock
from headrace.testing.loop import VirtualTimeLoop

NOW_MS = 1_700_000_000_000
FAKE = "headrace.testing.backend:FakeBackend"


def swapped(inputs):
    """The other class."""
    return [inputs[0][:, ::-1].copy()]


class World:
    """Version 1, an echo that is trusted, and version 2, which is guarded; nothing runs on a thread.

    repeats: the same inputs again are the same to the guard; without, each request counts as another.
    """

    def __init__(self, compute=swapped, signature=ECHO, *, repeats=False, **guard):
        self.repeats = repeats
        self.loop = VirtualTimeLoop()
        self.config = GuardConfig(**{"reference": 1, "share": 1.0, "cpu_budget": 1.0, "kind": "classes"} | guard)
        self.model, self.reference = FakeModel(signature, compute), FakeModel(signature)
        self.loop.run_until_complete(self._start())

    async def _start(self):
        self.server = InProcessServer(self.loop.clock)
        self.server.serve(FakeModel(self.model.signature), version=1)
        self.scheduler, self.observer = self.server.serve(self.model, version=2)
        self.guards = Guards(self.server.catalog, FakeClock(), lambda: 0, lambda: NOW_MS)
        self.add()

    def add(self, draw=lambda: 0.5, subject="these files"):
        """As `open` and `add` do, without a thread."""
        signature = self.model.signature
        trusted = Trusted(self.reference.make_instance(0), signature.max_batch, None)
        guard = ModelGuard(
            self.config, self.config.settings(signature), trusted, signature, subject, self.guards._act,
            FakeClock(), lambda: 0, draw,
        )  # fmt: skip
        if not self.repeats:
            numbers = count()
            guard.worker._digest = lambda one: next(numbers).to_bytes(8, "little")
        guard._loop = self.loop
        guard.start = lambda: None
        self.guards.add("m", "2", guard)
        self.guard = guard
        self.scheduler.watchers = [guard]

    def send(self, rows=((1, 0),), count=1, **more):
        calls = [
            self.server.client.send(infer_request("m", {"x": np.array(rows, np.float32)}, **more)) for _ in range(count)
        ]
        self.loop.run_until_idle()
        return [call.response.model_version for call in calls]

    def look(self):
        """What the guard's thread would do; then what the event loop makes of it."""
        self.guard.worker.run_waiting()
        self.loop.run_until_idle()
        return self.guards.report("m")


@pytest.fixture
def world():
    made = []
    yield lambda *arguments, **more: made.append(World(*arguments, **more)) or made[-1]
    for one in made:
        one.loop.close()


def test_requests_find_the_reference_once_there_is_proof(world, caplog):
    here = world()
    assert here.send(count=40) == ["2"] * 40
    told = here.look()
    assert (told.state, told.requests, told.proof.at_ms, told.proof.compared) == ("fallen_back", 40, NOW_MS, 40)
    assert here.send(count=3) == ["1"] * 3
    assert here.send(version="2") == ["2"], "who asks for it by its number gets it"
    assert "model m version 2 does not answer as version 1 does, by output 'y': mean agreement 0.0000" in caplog.text
    assert "find version 1 from now on" in caplog.text
    assert here.look().requests == 41, "it goes on watching"
    assert len(caplog.records) == 1


def test_what_was_accepted_before_is_still_answered_by_the_version(world):
    here = world()
    here.send(count=40)
    here.guard.worker.run_waiting()
    waiting = here.server.client.send(infer_request("m", {"x": np.ones((1, 2), np.float32)}))
    here.loop.run_until_idle()
    assert waiting.response.model_version == "2"
    assert here.guards.report("m").state == "fallen_back"
    assert here.send() == ["1"]


def test_a_label_moves_and_moves_back(world):
    here = world()
    here.server.catalog.label("m", {"stable": 2, "old": 1})
    assert here.send(count=40, version="stable") == ["2"] * 40
    here.look()
    assert here.send(version="stable") == ["1"]
    assert here.guards.reset("m").state == "watching"
    assert here.send(version="stable") == here.send() == ["2"]
    here.send(count=40)
    assert here.look().state == "fallen_back", "it acts again"


def test_a_good_version_stays(world):
    here = world(lambda inputs: [inputs[0] * 1.01])
    for _ in range(20):
        here.send(count=50)
        assert here.look().state == "watching"
    assert here.send() == ["2"]


def test_who_sends_one_input_again_and_again_moves_nobody(world):
    """A client that retries, a probe, or one that means ill: of a good version that is wrong in one place."""
    here = world(lambda inputs: [np.where(inputs[0] == 7, 0, inputs[0])], repeats=True)
    here.send([[7, 5]], count=100)
    assert here.look().state == "watching"
    here.send([[7, 5]], count=100)
    for number in range(100):
        here.send([[number + 8, 5]])
    told = here.look()
    assert (told.state, told.requests, told.agreement.mean) == ("watching", 101, 100 / 101)
    assert told.skipped["repeated"] == 199
    assert here.send() == ["2"]


def test_report_alone(world, caplog):
    here = world(action="report")
    here.send(count=40)
    assert here.look().state == "reported"
    assert here.send() == ["2"]
    assert "nothing is done about it: guard.action is report" in caplog.text


def test_a_reference_that_is_not_ready(world, caplog):
    here = world()
    here.server.catalog.unloading("m", 1)
    here.send(count=40)
    assert here.look().state == "reported"
    assert "version 1 is not ready: requests find this one until it is" in caplog.text
    assert here.send() == ["2"]
    here.loop.run_until_complete(_again(here))
    assert here.send() == ["1"]
    assert here.guards.report("m").state == "fallen_back"


async def _again(here):
    here.server.serve(FakeModel(ECHO), version=1)


def test_what_was_proved_stands_when_the_same_is_loaded_again(world, caplog):
    here = world()
    here.send(count=40)
    before = here.look()
    here.add()
    told = here.guards.report("m")
    assert (told.state, told.requests, told.proof) == ("fallen_back", 0, before.proof)
    assert here.send() == ["1"]
    assert "model m version 2 is loaded again and is what it was when its guard acted" in caplog.text
    here.send(count=40, version="2")
    assert here.look().proof == before.proof, "what it proves again is no news"
    assert caplog.text.count("does not answer as version 1 does") == 1
    here.guards.forget("m", "2")
    assert here.send() == ["2"]
    here.add()
    assert here.send() == ["1"], "though it had been unloaded"
    assert here.guards.reset("m").state == "watching"
    here.add()
    assert here.send() == ["2"]
    assert here.guards.report("m").state == "watching"


def test_what_was_proved_of_other_files_is_forgotten(world):
    here = world()
    here.send(count=40)
    here.look()
    here.add(subject="others")
    assert here.guards.report("m").state == "watching"
    assert here.send() == ["2"]
    here.add()
    assert here.send() == ["2"], "for good"


def test_what_stands_is_only_told_where_the_action_says_so(world):
    here = world()
    here.send(count=40)
    here.look()
    here.config = here.config.model_copy(update={"action": "report"})
    here.add()
    assert here.guards.report("m").state == "reported"
    assert here.send() == ["2"]


def test_a_version_that_is_replaced_begins_anew(world):
    here = world()
    here.send(count=40)
    here.look()
    here.guards.add("m", "2", None)
    assert here.reference.instances[0].closed
    assert here.send() == ["2"]
    with pytest.raises(Unimplemented, match="model 'm' is not guarded: see"):
        here.guards.report("m")


def test_a_proof_of_one_that_has_left_or_begun_anew_moves_nothing(world):
    here = world()
    here.send(count=40)
    here.guard.worker.run_waiting()
    here.guards.reset("m")
    here.loop.run_until_idle()
    assert here.send() == ["2"]
    here.send(count=40)
    here.guard.worker.run_waiting()
    here.guards.forget("m", "2")
    here.loop.run_until_idle()
    assert here.send() == ["2"]


def test_a_share_is_sampled(world):
    here = world(share=0.25)
    here.add(draw=np.random.default_rng(0).random)
    here.send(count=400)
    assert 60 < here.look().requests < 140


def test_rows_are_those_of_the_request(world):
    """Of a batch of several requests, of one and more rows, each is compared with its own."""
    here = world(lambda inputs: [np.where(inputs[0][:, :1] > 5, inputs[0][:, ::-1], inputs[0])])
    for rows in ([[1, 0]], [[9, 0], [8, 0]], [[2, 0], [3, 0]], [[0, 1]]):
        here.server.client.send(infer_request("m", {"x": np.array(rows, np.float32)}))
    here.loop.run_until_idle()
    assert len(here.model.runs) == 1
    told = here.look()
    assert (told.requests, told.rows, told.agreement.mean) == (4, 6, 0.75)


def test_what_is_sampled_is_copied(world):
    here = world(lambda inputs: [inputs[0].copy()])
    here.send(count=2)
    queued = here.guard.worker._queue.get_nowait()
    assert [type(part) for part in queued.parts] == [bytes]
    assert type(queued.output) is bytes


def test_inputs_in_shared_memory_are_left_alone(world):
    here = world()
    memory = memoryview(mmap(-1, 4096))[:8]
    here.guard._offer([0], [type("R", (), {"template": None})()], [[memory]], [0], [object()])
    assert here.guards.report("m").skipped["shared_memory"] == 1
    memory.release()


def test_requests_for_other_outputs_are_passed_over(world):
    two = Signature(ECHO.inputs, (TensorSpec("y", "FP32", (2,)), TensorSpec("z", "FP32", (2,))), 8)
    here = world(lambda inputs: [inputs[0], inputs[0]], two, output="z")
    here.reference.compute = lambda inputs: [inputs[0], inputs[0]]
    here.send(outputs=["y"])
    here.send(outputs=["z"])
    here.send(outputs=["z", "y"])
    told = here.look()
    assert (told.requests, told.skipped["output"], told.agreement.mean) == (2, 1, 1.0)


def test_who_is_asked_for(world):
    here = world()
    assert here.guards.report("m", "2").version == "2"
    with pytest.raises(Unimplemented, match="version 1 of model 'm' is not guarded"):
        here.guards.report("m", "1")
    with pytest.raises(ModelNotFound):
        here.guards.report("absent")
    assert repr(here.guards) == "<Guards of 1 model versions>"
    assert repr(here.guard).startswith("<ModelGuard watching, <GuardWorker")


def test_metrics(world):
    here = world()
    registry = CollectorRegistry()
    registry.register(GuardMetrics(here.guards))
    here.send(count=40)
    here.look()
    text = generate_latest(registry).decode()
    labels = 'model="m",version="2"'
    assert f"headrace_guard_alarm{{{labels}}} 1.0" in text
    assert f"headrace_guard_fallen_back_state{{{labels}}} 1.0" in text
    assert f"headrace_guard_requests_total{{{labels}}} 40.0" in text
    assert f'headrace_guard_agreement{{bound="mean",{labels}}} 0.0' in text
    assert f'headrace_guard_margin_rows{{low="0.9",{labels}}} 40.0' in text
    assert f'headrace_guard_margin_disagreement{{low="0.9",{labels}}} 1.0' in text
    assert 'headrace_guard_absolute_error{model="m",statistic="max",version="2"} 1.0' in text
    assert f"headrace_guard_nonfinite_elements_total{{{labels}}} 0.0" in text
    here.guards.models.clear()
    assert b"headrace_guard" not in generate_latest(registry)


def test_metrics_of_what_is_not_finite(world):
    """No number in the place of a difference that there is none of."""
    here = world(lambda inputs: [np.full_like(inputs[0], np.nan)])
    registry = CollectorRegistry()
    registry.register(GuardMetrics(here.guards))
    here.send(count=3)
    told = here.look()
    assert (told.nonfinite_differences, told.max_absolute_error, told.agreement.mean) == (6, None, 0.0)
    text = generate_latest(registry).decode()
    assert 'headrace_guard_nonfinite_elements_total{model="m",version="2"} 6.0' in text
    assert "headrace_guard_absolute_error{" not in text


class TestOpening:
    """Of a version whose reference lies beside it."""

    def found(self, tmp_path, version=2, **config):
        for number in ("1", "2"):
            (tmp_path / "m" / number).mkdir(parents=True, exist_ok=True)
        guard = {"reference": 1, "kind": "classes"}
        return Found(
            "m", version, tmp_path / "m" / str(version),
            ModelConfig.model_validate({"backend": FAKE, "guard": guard, "threads": 4} | config),
        )  # fmt: skip

    def test_it_has_one_instance_of_its_own(self, tmp_path, monkeypatch):
        monkeypatch.setattr(FakeBackend, "loaded", [])
        guards = Guards(Catalog())
        guard = guards.open(self.found(tmp_path), ECHO)
        assert len(FakeBackend.loaded[0].instances) == 1
        assert guard.worker.settings.kind == "classes"
        guard.close()
        assert FakeBackend.loaded[0].instances[0].closed

    def test_what_a_verdict_is_about(self, tmp_path):
        def subject(**config):
            found = self.found(tmp_path, **config)
            return subject_of(found, 1, found.config.guard.settings(ECHO))

        files = [tmp_path / "m" / part for part in ("1/model.fake", "2/model.fake", "2/more/weights")]
        subject()
        files[2].parent.mkdir()
        for file in files:
            file.write_bytes(b"as it was")
        guard = {"reference": 1, "kind": "classes"}
        before = subject()
        for file in files:
            os.utime(file, (1, 1))
        (tmp_path / "m/2/.hidden").touch()
        assert subject() == before
        assert subject(guard=guard | {"share": 0.5, "action": "report"}) == before
        assert subject(version_labels={"canary": 2}, instances=2) == before
        seen = {before, subject(guard=guard | {"limit": 0.9}), subject(threads=2)}
        for file in files:
            file.write_bytes(b"as it is")
            seen.add(subject())
        (tmp_path / "m/2/model.fake").rename(tmp_path / "m/2/another.fake")
        seen.add(subject())
        assert len(seen) == 3 + 3 + 1, "each of them another"

    def test_files_that_cannot_be_read(self, tmp_path):
        found = self.found(tmp_path)
        (tmp_path / "m/1").rmdir()
        with pytest.raises(ModelLoadError, match="m/1 cannot be read: No such file"):
            subject_of(found, 1, found.config.guard.settings(ECHO))

    def test_nothing_for_the_reference_itself_or_without_a_guard(self, tmp_path):
        guards = Guards(Catalog())
        assert guards.open(self.found(tmp_path, version=1), ECHO) is None
        assert guards.open(self.found(tmp_path, guard=None), ECHO) is None

    @pytest.mark.parametrize(
        ("dims", "max_batch", "message"),
        [
            ([3], 8, "guard.reference = 1: it has inputs 'x' FP32 [3], expected 'x' FP32 [2]"),
            ([-1], 8, "guard.reference = 1: its 'x' has dimensions [-1], expected [2]"),
        ],
    )
    def test_another_signature(self, tmp_path, dims, max_batch, message):
        options = {"dims": dims}
        with pytest.raises(ModelLoadError) as caught:
            Guards(Catalog()).open(self.found(tmp_path, backend_options=options, max_batch=max_batch), ECHO)
        assert str(caught.value) == message

    def test_a_reference_that_cannot_be_loaded(self, tmp_path):
        with pytest.raises(ModelLoadError, match=r"guard\.reference = 1: no such operator"):
            open_trusted(self.found(tmp_path, backend_options={"refuse": "no such operator"}), 1, ECHO)

    def test_an_output_that_is_not_there(self, tmp_path):
        with pytest.raises(ModelLoadError, match=r'guard\.output = "q": the model has no such output, but y'):
            Guards(Catalog()).open(self.found(tmp_path, guard={"reference": 1, "output": "q"}), ECHO)


def test_threads_begin_and_end(tmp_path, monkeypatch):
    monkeypatch.setattr(FakeBackend, "loaded", [])

    async def main():
        guards = Guards(Catalog())
        guard = guards.open(TestOpening().found(tmp_path), ECHO)
        guards.add("m", "2", guard)
        await guards.close()
        assert guards.models == {}
        assert FakeBackend.loaded[0].instances[0].closed

    asyncio.run(main())


class TestEngine:
    """Guards of what an engine loads."""

    def load(self, tmp_path, monkeypatch, guard, check):
        monkeypatch.setattr(FakeBackend, "loaded", [])
        for version in "12":
            (tmp_path / "m" / version).mkdir(parents=True)
            (tmp_path / "m" / version / "model.fake").touch()
        (tmp_path / "m" / "model.toml").write_text(f'backend = "{FAKE}"\n[guard]\nreference = 1\n{guard}')

        async def main():
            catalog, metrics = Catalog(), Metrics(CollectorRegistry())
            guards = Guards(catalog)
            engine = Engine(
                catalog, ObserverGuard(metrics), metrics, monotonic_ns, Turn(asyncio.get_running_loop()), 0,
                guards=guards,
            )  # fmt: skip
            await engine.load_all(tmp_path)
            check({entry.version: (entry.state, entry.reason) for entry in catalog.index()}, guards)
            engine.close()
            await guards.close()

        asyncio.run(main())
        assert all(instance.closed for model in FakeBackend.loaded for instance in model.instances)

    def test_the_newest_is_guarded_and_both_serve(self, tmp_path, monkeypatch):
        def check(states, guards):
            assert states == {1: ("READY", ""), 2: ("READY", "")}
            assert list(guards.models) == [("m", "2")]
            assert len(FakeBackend.loaded) == 3, "the reference once more, for the guard"

        self.load(tmp_path, monkeypatch, 'kind = "values"', check)

    def test_a_guard_that_cannot_be_made_leaves_nothing_open(self, tmp_path, monkeypatch):
        def check(states, guards):
            assert states[1] == ("READY", "")
            assert states[2][0] == "UNAVAILABLE"
            assert states[2][1].startswith("guard.kind is needed")
            assert not guards.models
            assert FakeBackend.loaded[1].instances[0].closed

        self.load(tmp_path, monkeypatch, "", check)
