import threading

import numpy as np
import pytest
from drift.conftest import monitor_of, reference_of

from headrace.drift.worker import MAX_BATCHES, DriftWorker, Watched
from headrace.testing.clock import FakeClock

KEY = "inputs.x"
MS = 1_000_000


class Cpu:
    """CPU time that grows by so much a row that a monitor counts."""

    def __init__(self, row_ns=1000):
        self.now = 0
        self.row_ns = row_ns

    def __call__(self):
        return self.now


@pytest.fixture
def reference(random):
    return reference_of(random.normal(size=(500, 3)))


@pytest.fixture
def made(reference):
    """A worker on clocks of the test's, and what it watches."""
    cpu = Cpu()
    monitor = monitor_of(reference)
    count = monitor.count

    def counted(now_ms, tensors, offered):
        cpu.now += cpu.row_ns * sum(map(len, tensors.values()))
        count(now_ms, tensors, offered)

    monitor.count = counted
    clock = FakeClock()
    worker = DriftWorker(0.03, clock, cpu, lambda: 5, seed=1)
    return worker, Watched(monitor), clock, cpu


def batch(rows, value=0.0):
    return {KEY: np.full((rows, 3), value, np.float32)}


def window(watched):
    return watched.monitor.record.at(5)


def test_rows_reach_the_monitor(made):
    worker, watched, clock, _ = made
    for _ in range(3):
        worker.offer(watched, batch(10), 10, clock())
    assert repr(worker).startswith("<DriftWorker: 3 batches waiting")
    worker.run_waiting()
    assert (watched.offered, watched.looked_at, watched.skipped) == (30, 30, 0)
    assert (window(watched).offered, window(watched).sampled) == (30, 30)


def test_a_batch_is_longer_than_its_rows(made):
    """A buffer that is filled up holds rows of nobody's."""
    worker, watched, clock, _ = made
    worker.offer(watched, batch(10), 7, clock())
    worker.run_waiting()
    assert window(watched).sampled == 7


def test_what_waits_is_bounded(made):
    worker, watched, clock, _ = made
    for _ in range(MAX_BATCHES + 5):
        worker.offer(watched, batch(2), 2, clock())
    assert watched.skipped == 10
    worker.run_waiting()
    worker.offer(watched, batch(2), 2, clock())
    worker.run_waiting()
    assert watched.looked_at == 2 * MAX_BATCHES + 2
    assert window(watched).offered == watched.offered == 2 * MAX_BATCHES + 12


def test_octets_that_wait_are_bounded(made, monkeypatch):
    worker, watched, clock, _ = made
    monkeypatch.setattr("headrace.drift.worker.MAX_BYTES", 12 * 25)
    for _ in range(4):
        worker.offer(watched, batch(10), 10, clock())
    assert watched.skipped == 20


def test_one_batch_may_have_more_octets_than_may_wait(made, monkeypatch):
    """Else of a model whose batches are large nothing would ever be looked at."""
    worker, watched, clock, _ = made
    monkeypatch.setattr("headrace.drift.worker.MAX_BYTES", 12 * 25)
    for _ in range(2):
        worker.offer(watched, batch(30), 30, clock())
    assert watched.skipped == 30
    worker.run_waiting()
    worker.offer(watched, batch(30), 30, clock())
    assert watched.skipped == watched.passed_over + 30


def test_the_budget_holds(made):
    """Of 100 batches of 1000 rows in a second, at 20 us a row, 3 % of a core see 1500 rows, and what was saved."""
    worker, watched, clock, cpu = made
    cpu.row_ns = 20_000
    for _ in range(1000):
        worker.offer(watched, batch(1000), 1000, clock())
        worker.run_waiting()
        clock.advance(10 * MS)
    assert worker.cpu_ns == cpu.now
    assert watched.offered == watched.looked_at + watched.skipped
    assert 0.25e9 < cpu.now < 0.35e9
    assert watched.looked_at == pytest.approx(cpu.now / 20_000)
    worker.tick(watched)
    assert watched.offered == window(watched).offered == 1_000_000


def test_an_overdrawn_budget_is_not_even_asked(made):
    worker, watched, clock, cpu = made
    cpu.row_ns = 10 * MS
    worker.offer(watched, batch(100), 100, clock())
    worker.run_waiting()
    assert (watched.looked_at, watched.skipped) == (16, 84)
    worker.offer(watched, batch(100), 100, clock())
    assert watched.refused == 100, "skipped by who offers, without waking the worker"
    clock.advance(10_000 * MS)
    worker.offer(watched, batch(100), 100, clock())
    worker.run_waiting()
    assert watched.looked_at > 16


def test_rows_are_a_fair_sample(made):
    worker, watched, clock, cpu = made
    cpu.row_ns = 100_000
    rows = np.repeat(np.arange(1000, dtype=np.float32)[:, None], 3, axis=1)
    for _ in range(2000):
        worker.offer(watched, {KEY: rows}, 1000, clock())
        worker.run_waiting()
        clock.advance(100 * MS)
    mean = window(watched).tallies[KEY].moments.mean
    assert watched.looked_at > 10_000
    np.testing.assert_allclose(mean, 499.5, atol=5 * 289 / np.sqrt(watched.looked_at))


def test_rows_that_cannot_be_counted_end_nothing(made, caplog):
    worker, watched, clock, _ = made
    for _ in range(2):
        worker.offer(watched, {KEY: np.zeros((5, 4), np.float32)}, 5, clock())
    worker.offer(watched, batch(5), 5, clock())
    worker.run_waiting()
    assert (watched.failed, watched.looked_at) == (10, 5)
    assert [record.message for record in caplog.records] == ["rows could not be counted for drift"]
    assert "expected [3]" in watched.last_error


def test_rows_that_are_not_there_end_nothing(made):
    worker, watched, clock, cpu = made
    cpu.row_ns = 3 * MS
    for _ in range(2):
        worker.offer(watched, batch(3), 1000, clock())
        worker.run_waiting()
    assert watched.failed == 16
    clock.advance(10_000 * MS)
    worker.offer(watched, batch(3), 3, clock())
    worker.run_waiting()
    assert watched.looked_at > 0


def test_a_thread_does_it_all_and_ends(reference):
    worker = DriftWorker(1.0, FakeClock(), lambda: 0, lambda: 5)
    watched = Watched(monitor_of(reference))
    worker.start()
    worker.offer(watched, batch(8), 8, 0)
    assert worker.submit(lambda: threading.current_thread().name).result(20) == "headrace-drift"
    assert worker.submit(lambda: watched.monitor.record.at(5).sampled).result(20) == 8
    with pytest.raises(ZeroDivisionError):
        worker.submit(lambda: 1 // 0).result(20)
    worker.stop(20)
    assert not worker._thread.is_alive()


def test_a_call_that_was_given_up_is_not_made(made):
    worker, *_ = made
    calls = []
    worker.submit(calls.append, 1).cancel()
    worker.submit(calls.append, 2)
    worker.run_waiting()
    assert calls == [2]
