import asyncio
import json
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from headrace.messages import PHASES
from headrace.telemetry.metrics import Metrics
from headrace.telemetry.observer import BatchRecord
from headrace.telemetry.recorder import REQUEST_EDGES
from headrace.telemetry.server_metrics import ServerMetrics
from headrace.telemetry.summary import FRESH_NS, Summary
from headrace.testing.clock import FakeClock

US = 1_000


class World:
    """A model that serves and one that could not be loaded."""

    def __init__(self, drift=tuple, guards=tuple):
        registry = CollectorRegistry()
        self.clock = FakeClock()
        self.metrics = Metrics(registry)
        self.counts = ServerMetrics(registry)
        self.counts.model_states = lambda: [("broken", "", "failed"), ("m", "1", "ready")]
        self.recorder = self.metrics.model("m", "1", lambda: (3, 7))
        self.summary = Summary(self.metrics, self.counts, drift, self.clock, guards)

    def read(self):
        return asyncio.run(self.summary.read())


@pytest.fixture
def world():
    return World()


def record(rows=4, reason="idle", instance=0, late=0):
    """Phases of 10, 20, 3000, 40, 5000 and 60 us."""
    return BatchRecord(
        [0, 0], [10 * US] * 2, [30 * US] * 2, [rows // 2] * 2, 3030 * US, 3070 * US, 8070 * US, 8130 * US, rows, reason,
        instance, late,
    )  # fmt: skip


def test_all_of_a_model(world):
    world.recorder.batch(record())
    world.recorder.batch(record(reason="full", instance=1, late=1))
    world.recorder.batch(record(rows=8))
    world.recorder.refused("queue_full", 2)
    world.recorder.wasted(3, 1)
    world.recorder.padded(30, 10)
    world.recorder.wait_ns = lambda: 250_000_000
    world.clock.advance(2_500_000_000)
    told = json.loads(json.dumps(world.read()))
    broken, model = told["models"]
    assert broken == {"name": "broken", "version": "", "state": "failed"}
    latency = model.pop("latency")
    phases = model.pop("phases_s")
    assert model == {
        "name": "m",
        "version": "1",
        "state": "ready",
        "seconds": world.clock() / 1e9,
        "requests": 6,
        "rows": 16,
        "refused": {"queue_full": 2},
        "late": 1,
        "queue": {"requests": 3, "rows": 7, "wait_s": 0.25},
        "phase_requests": 6,
        "batches": {"4": 2, "8": 1},
        "close_reasons": {"idle": 2, "full": 1},
        "busy_s": {"0": 0.01, "1": 0.005},
        "wasted_rows": 3,
        "elements": 30,
        "padding": 10,
    }
    assert (sum(latency), len(latency), len(told["latency_edges_s"])) == (6, len(REQUEST_EDGES) + 1, len(REQUEST_EDGES))
    assert list(phases) == list(PHASES)
    assert phases["execute"] == pytest.approx(6 * 0.005)
    assert (told["server"], told["connections"], told["drift"]) == ("headrace", 0, [])


def test_however_many_ask_it_is_made_twice_a_second_at_most(world):
    first = world.read()
    world.recorder.batch(record())
    world.clock.advance(FRESH_NS - 1)
    assert world.read() is first
    world.clock.advance(1)
    assert world.read()["models"][1]["requests"] == 2


def test_those_who_ask_at_once_share_an_answer(world):
    async def main():
        return await asyncio.gather(*(world.summary.read() for _ in range(3)))

    first, *others = asyncio.run(main())
    assert all(other is first for other in others)


def test_the_loop_has_its_turn_between_models(world):
    world.counts.model_states = lambda: [("m", "1", "ready")] * 10

    async def main():
        reading, turns = asyncio.create_task(world.summary.read()), 0
        while not reading.done():
            turns += 1
            await asyncio.sleep(0)
        return turns

    assert asyncio.run(main()) >= 10


def test_drift_is_told_as_it_is_at_the_moment():
    entry = {
        "model": "m",
        "version": "1",
        "tensor": "x",
        "feature": "mean",
        "score": "psi",
        "value": 0.3,
        "state": "alarm",
    }
    assert World(lambda: iter([entry])).read()["drift"] == [entry]


def test_guards_are_told_as_they_are_at_the_moment():
    entry = {"model": "m", "version": "2", "state": "watching"}
    assert World(guards=lambda: iter([entry])).read()["guards"] == [entry]


def test_every_member_is_documented(world):
    page = (Path(__file__).parents[2] / "docs" / "rest.md").read_text()
    told = world.read()
    assert [name for name in told if f"`{name}" not in page] == []
    assert [name for name in told["models"][1] if f"`{name}`" not in page and f"`.{name}`" not in page] == []
