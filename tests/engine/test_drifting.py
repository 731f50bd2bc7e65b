"""What a server knows of drift, and keeps: with time that stands still until it is told to go on."""

import asyncio
from dataclasses import replace
from threading import Event

import numpy as np
import pytest

from headrace.drift import sketches
from headrace.drift.fit import Source, fit_reference
from headrace.drift.monitor import Monitor
from headrace.drift.watch import watch_of
from headrace.engine import drifting
from headrace.engine.drift_metrics import DriftMetrics
from headrace.engine.drifting import DriftMonitoring, ModelDrift
from headrace.errors import ModelLoadError
from headrace.messages import Signature, TensorSpec
from headrace.repository.discovery import Found
from headrace.repository.drift_config import DriftConfig
from headrace.repository.model_config import ModelConfig
from headrace.testing.backend import FakeModel
from headrace.testing.client import InProcessServer, infer_request
from headrace.testing.loop import VirtualTimeLoop

WINDOW_MS = 10_000
SPEC = TensorSpec("x", "FP32", (2,))
SIGNATURE = Signature((SPEC,), (), 8)
KEY = "inputs.x"


@pytest.fixture
def now(monkeypatch):
    """Milliseconds since the epoch, in a list of one."""
    found = [WINDOW_MS]
    monkeypatch.setattr(drifting, "wall_ms", lambda: found[0])
    monkeypatch.setattr(drifting, "TICK_SECONDS", 3600.0)
    return found


def rows(shift=0.0, count=400):
    return np.random.default_rng(3).normal((0, shift), size=(count, 2)).astype(np.float32)


@pytest.fixture
def found(tmp_path):
    version = tmp_path / "m" / "1"
    version.mkdir(parents=True)
    data = Source("data", lambda: iter([rows(count=4000)]), 4000)
    fit_reference([(watch_of(SPEC), data)], bytes(16), "data", 0).write(version / "drift.json")
    return Found("m", 1, version, ModelConfig(drift={"window_s": 10, "inputs": {"x": {}}}))


def serving(tmp_path, found):
    """All monitors, and that of the model, which serves. On an event loop."""
    monitoring = DriftMonitoring(1.0, tmp_path / "state", lambda: 0)
    drift = monitoring.open(found, SIGNATURE)
    monitoring.add("m", "1", drift)
    return monitoring, drift


def alarms(monitoring):
    """What the gauge says, by feature."""
    family = next((one for one in DriftMetrics(monitoring).collect() if one.name == "headrace_drift_alarm"), None)
    return {} if family is None else {one.labels["feature"]: one.value for one in family.samples}


def test_a_window_that_is_over_and_an_alarm_outlive_a_crash(tmp_path, found, now):
    file = tmp_path / "state" / "m.1.drift"

    async def crash():
        monitoring, drift = serving(tmp_path, found)
        drift.watched.monitor.count(now[0], {KEY: rows(3.0)}, 400)
        await monitoring.look()
        assert not file.exists()  # nothing is new but a window that is not over
        now[0] += WINDOW_MS
        await monitoring.look()
        assert alarms(monitoring) == {"0": 0, "1": 1}
        written = file.stat().st_mtime_ns
        await monitoring.look()
        assert file.stat().st_mtime_ns == written  # nothing is
        monitoring._task.cancel()
        monitoring._worker.stop(5)

    async def start_again():
        monitoring, drift = serving(tmp_path, found)
        assert drift.watched.monitor.record.windows.keys() == {WINDOW_MS}
        assert alarms(monitoring) == {"0": 0, "1": 1}  # before anything was looked at
        await monitoring.close()

    asyncio.run(crash())
    asyncio.run(start_again())


def test_windows_are_kept_without_a_reference_to_judge_them_by(tmp_path, found, now):
    (found.path / "drift.json").unlink()

    async def scenario():
        monitoring, drift = serving(tmp_path, found)
        drift.watched.monitor.count(now[0], {KEY: rows(count=600)}, 600)
        now[0] += WINDOW_MS
        await monitoring.look()
        assert (tmp_path / "state" / "m.1.drift").exists()
        await monitoring.close()

    asyncio.run(scenario())


def test_an_alarm_stays_in_the_metrics_while_nothing_flows(tmp_path, found, now):
    async def scenario():
        monitoring, drift = serving(tmp_path, found)
        drift.watched.monitor.count(now[0], {KEY: rows(3.0)}, 400)
        for later in (1, 3, 40):
            now[0] = (1 + later) * WINDOW_MS
            await monitoring.look()
            states = {one.feature: one.state for one in (await monitoring.report("m", "1")).features}
            assert states["1"] == "alarm"
            assert alarms(monitoring)["1"] == 1, later
        await monitoring.close()

    asyncio.run(scenario())


def test_without_the_package_a_version_that_is_to_be_watched_is_not_served(tmp_path, found, monkeypatch):
    """With the first rows, of which no request tells, it would only be in the log."""

    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(sketches, "import_module", missing)
    with pytest.raises(ModelLoadError, match=r"pip install 'headrace\[drift\]'"):
        DriftMonitoring(1.0, None, lambda: 0).open(found, SIGNATURE)
    assert DriftMonitoring(1.0, None, lambda: 0).open(replace(found, config=ModelConfig()), SIGNATURE) is None


def test_a_model_whose_windows_no_file_can_hold_is_watched_all_the_same(tmp_path, found, caplog):
    monitoring = DriftMonitoring(1.0, tmp_path / "state", lambda: 0)
    (tmp_path / "state").mkdir()
    drift = monitoring.open(replace(found, name="m" * 250), SIGNATURE)
    assert drift.watched.monitor.reference is not None
    assert "windows of drift begin anew" in caplog.text


def test_the_last_save_waits_for_one_that_is_under_way(tmp_path, found, now, monkeypatch):
    """Of one file there is one part at a time: on a slow disk the last two would have written to the same."""
    begun, go, steps = Event(), Event(), []

    def slow(file, data):
        steps.append("begin")
        begun.set()
        assert go.wait(10)
        write_atomically(file, data)
        steps.append("end")

    write_atomically = drifting.write_atomically
    monkeypatch.setattr(drifting, "write_atomically", slow)

    async def scenario():
        monitoring, drift = serving(tmp_path, found)
        drift.watched.monitor.count(now[0], {KEY: rows()}, 400)
        now[0] += WINDOW_MS
        looking = asyncio.create_task(monitoring.look())
        await asyncio.to_thread(begun.wait, 10)
        looking.cancel()
        closing = asyncio.create_task(monitoring.close())
        await asyncio.to_thread(monitoring._worker.submit(int).result, 10)
        await asyncio.to_thread(int)
        go.set()
        await closing

    asyncio.run(scenario())
    assert steps == ["begin", "end"] * 2


def test_what_is_told_takes_no_more_than_its_part_of_the_share(tmp_path, found, now, monkeypatch):
    """Of many features a report takes longer than the share of a look: then there was nothing left for rows."""
    clock, cpu, made = [0], [0], []

    def report(monitor, *more):
        cpu[0] += 10**9  # a second of the processor's
        made.append(clock[0])
        return drift_report(monitor, *more)

    drift_report = drifting.report
    monkeypatch.setattr(drifting, "report", report)

    async def scenario():
        monitoring = DriftMonitoring(0.5, None, lambda: clock[0], lambda: cpu[0])
        drift = monitoring.open(found, SIGNATURE)
        monitoring.add("m", "1", drift)
        drift.watched.monitor.count(now[0], {KEY: rows()}, 400)
        for seconds in range(0, 20, 2):
            clock[0] = seconds * 10**9
            await monitoring.look()
        assert made == [0, 6 * 10**9, 12 * 10**9, 18 * 10**9]  # half a core, a third of it: six seconds for one
        now[0] += WINDOW_MS
        await monitoring.look()
        assert len(made) == 4
        drift.watched.monitor.count(now[0], {KEY: rows(3.0)}, 400)
        now[0] += WINDOW_MS
        await monitoring.look()
        assert len(made) == 5  # an alarm is told at once
        assert alarms(monitoring)["1"] == 1
        await monitoring.close()

    asyncio.run(scenario())


class Offered:
    """A worker that keeps what it is offered."""

    def __init__(self):
        self.tensors = []

    def skips(self, watched, rows, now_ns):
        return False

    def offer(self, watched, tensors, rows, now_ns):
        self.tensors.append({key: tensor[:rows].tolist() for key, tensor in tensors.items()})


@pytest.mark.parametrize("max_batch", [4, 0])
def test_outputs_are_watched_as_clients_get_them_without_the_padding_of_their_bucket(max_batch):
    signature = Signature((TensorSpec("ids", "INT32", (-1,)),), (TensorSpec("each", "INT32", (-1,)),), max_batch)
    buckets = {"tokens": {"sizes": [4], "inputs": {"ids": 1}, "outputs": {"each": 1}}}
    if not max_batch:
        buckets["tokens"] |= {"inputs": {"ids": 0}, "outputs": {"each": 0}}
    config = ModelConfig.model_validate({"buckets": buckets, "inputs": {"ids": {"pad": -7}}})
    loop, offered = VirtualTimeLoop(), Offered()

    async def start():
        server = InProcessServer(loop.clock)
        scheduler, _ = server.serve(FakeModel(signature, lambda inputs: [inputs[0] + 1]), config=config)
        watches = [
            watch_of(spec, output=bool(output)) for output, (spec,) in enumerate((signature.inputs, signature.outputs))
        ]
        monitor = Monitor("m", "1", watches, DriftConfig().alarms, bytes(16))
        scheduler.watchers = [ModelDrift(offered, monitor, signature, loop.clock)]
        return server

    server = loop.run_until_complete(start())
    for ids in ([1, 2], [3, 4, 5, 6], [7]):
        server.client.send(infer_request("m", {"ids": np.array([ids] if max_batch else ids, np.int32)}))
    loop.run_until_idle()
    loop.close()
    seen = sorted((one["inputs.ids"], one["outputs.each"]) for one in offered.tensors)
    assert seen == [([[1, 2]], [[2, 3]]), ([[3, 4, 5, 6]], [[4, 5, 6, 7]]), ([[7]], [[8]])]
