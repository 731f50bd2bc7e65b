"""The columns and their fold, against a count made one request at a time."""

from bisect import bisect_left

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.messages import PHASES
from headrace.telemetry import recorder as module
from headrace.telemetry.observer import BatchRecord
from headrace.telemetry.recorder import PHASE_EDGES, REQUEST_EDGES, Histogram, ModelRecorder
from headrace.telemetry.statistics import BatchStatistics, Duration

NOW = 10**12
WALL = 1_700_000_000_000


def make_recorder() -> ModelRecorder:
    return ModelRecorder("m", "1", lambda: (3, 7), clock=lambda: NOW, wall=lambda: WALL)


def make_record(requests=1, rows=1, start=0, steps=(1, 2, 3, 4, 5, 6), **changes) -> BatchRecord:
    """`requests` equal requests of `rows` rows whose phases take `steps` ns, in the order of PHASES."""
    received, decode, admit, queue, batch, execute, encode = start, *steps
    decoded = received + decode
    admitted = decoded + admit
    batched = admitted + queue
    fields = {
        "received": [received] * requests,
        "decoded": [decoded] * requests,
        "admitted": [admitted] * requests,
        "rows": [rows] * requests,
        "batched": batched,
        "started": batched + batch,
        "finished": batched + batch + execute,
        "encoded": batched + batch + execute + encode,
        "batch_rows": requests * rows,
        "close_reason": "idle",
        "instance": 0,
    }
    return BatchRecord(**{**fields, **changes})


class Slow:
    """The same counts, made in the plainest way."""

    def __init__(self):
        self.values = {name: [] for name in (*PHASES, "request")}
        self.executions = {}

    def batch(self, record):
        for received, decoded, admitted in zip(record.received, record.decoded, record.admitted, strict=True):
            moments = (
                received, decoded, admitted, record.batched, record.started, record.finished, record.encoded
            )  # fmt: skip
            for phase, a, b in zip(PHASES, moments[:-1], moments[1:], strict=True):
                self.values[phase].append(b - a)
            self.values["request"].append(record.encoded - received)
        execution = self.executions.setdefault(record.batch_rows, [0, 0, 0, 0])
        execution[0] += 1
        execution[1] += record.started - record.batched
        execution[2] += record.finished - record.started
        execution[3] += record.encoded - record.finished

    def counts(self, name, edges):
        counts = [0] * (len(edges) + 1)
        for value in self.values[name]:
            counts[bisect_left(edges.tolist(), value)] += 1
        return counts


nanoseconds = st.integers(0, 2 * 10**10)


@st.composite
def records(draw):
    start = draw(st.integers(0, 10**15))
    requests = draw(st.integers(0, 5))
    rows = [draw(st.integers(1, 4)) for _ in range(requests)]
    decoded = [start + draw(nanoseconds) for _ in range(requests)]
    admitted = [moment + draw(nanoseconds) for moment in decoded]
    batched = max(admitted, default=start) + draw(nanoseconds)
    started = batched + draw(nanoseconds)
    finished = started + draw(nanoseconds)
    return BatchRecord(
        received=[start] * requests,
        decoded=decoded,
        admitted=admitted,
        rows=rows,
        batched=batched,
        started=started,
        finished=finished,
        encoded=finished + draw(nanoseconds),
        batch_rows=sum(rows),
        close_reason=draw(st.sampled_from(("full", "idle"))),
        instance=draw(st.integers(0, 1)),
    )


@settings(max_examples=60)
@given(st.lists(records(), max_size=12), st.integers(1, 8), st.sets(st.integers(0, 11)))
def test_counts_are_those_of_a_plain_count(batches, fold_at, read_after):
    slow, recorder = Slow(), make_recorder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "FOLD_AT", fold_at)
        for number, record in enumerate(batches):
            recorder.batch(record)
            slow.batch(record)
            if number in read_after:
                assert recorder.statistics().success.count == len(slow.values["request"])
    reading = recorder.read()
    for name, histogram in {**reading.phases, "request": reading.request}.items():
        assert histogram.counts.tolist() == slow.counts(name, histogram.edges)
        assert histogram.duration == Duration(len(slow.values[name]), sum(slow.values[name]))
    statistics = reading.statistics
    assert statistics.inference_count == sum(sum(record.rows) for record in batches)
    assert statistics.execution_count == len(batches)
    assert statistics.batches == [
        BatchStatistics(size, Duration(count, a), Duration(count, b), Duration(count, c))
        for size, (count, a, b, c) in sorted(slow.executions.items())
    ]
    for how in {(record.close_reason, record.instance) for record in batches}:
        assert reading.closed[how] == sum((record.close_reason, record.instance) == how for record in batches)
    for instance in {record.instance for record in batches}:
        own = [record.finished - record.started for record in batches if record.instance == instance]
        assert reading.busy[instance] == sum(own)
    assert set(reading.busy) == {record.instance for record in batches}


def test_statistics_have_tritons_semantics():
    recorder = make_recorder()
    recorder.batch(make_record(requests=2, rows=3, steps=(10, 20, 30, 40, 50, 60)))
    recorder.batch(make_record(requests=1, rows=1, steps=(1, 1, 1, 1, 1, 1)))
    statistics = recorder.statistics()
    # Times per request: the batch of two counts twice. Executions per batch: it counts once.
    assert statistics.success == Duration(3, 2 * 210 + 6)
    assert statistics.queue == Duration(3, 2 * 30 + 1)
    assert statistics.compute_input == Duration(3, 2 * 40 + 1)
    assert statistics.compute_infer == Duration(3, 2 * 50 + 1)
    assert statistics.compute_output == Duration(3, 2 * 60 + 1)
    assert (statistics.inference_count, statistics.execution_count) == (7, 2)
    assert statistics.batches == [
        BatchStatistics(1, Duration(1, 1), Duration(1, 1), Duration(1, 1)),
        BatchStatistics(6, Duration(1, 40), Duration(1, 50), Duration(1, 60)),
    ]
    assert statistics.cache_hit == statistics.cache_miss == Duration(0, 0)


def test_last_inference_is_wall_clock_time_of_the_last_batch_and_stays():
    moments = iter([NOW, NOW + 10**9])
    recorder = ModelRecorder("m", "1", lambda: (0, 0), clock=lambda: next(moments), wall=lambda: WALL)
    assert recorder.statistics().last_inference_ms == 0
    recorder.batch(make_record(start=NOW - 250_000_021))  # encoded 250 ms ago
    recorder.batch(make_record(start=NOW - 500_000_021))  # another instance's, told later, ended earlier
    assert recorder.statistics().last_inference_ms == WALL - 250
    assert recorder.statistics().last_inference_ms == WALL - 250


def test_pending_columns_are_bounded():
    recorder = make_recorder()
    for _ in range(module.FOLD_AT - 1):
        recorder.batch(make_record())
    assert repr(recorder) == f"<ModelRecorder m/1 requests=0 pending={module.FOLD_AT - 1}>"
    recorder.batch(make_record())
    assert repr(recorder) == f"<ModelRecorder m/1 requests={module.FOLD_AT} pending=0>"


def test_the_record_is_not_kept():
    recorder, record = make_recorder(), make_record(steps=(1, 1, 1, 1, 1, 1))
    recorder.batch(record)
    record.received[0] -= 10**9
    record.encoded += 10**9
    assert recorder.statistics().success == Duration(1, 6)


def test_a_reading_does_not_change():
    recorder = make_recorder()
    recorder.batch(make_record())
    before = recorder.read()
    recorder.batch(make_record())
    recorder.refused("queue_full")
    recorder.wasted(1, 1)
    after = recorder.read()
    assert (before.request.count, before.phases["queue"].count, before.closed["idle", 0]) == (1, 1, 1)
    assert (before.refused, before.wasted_rows) == ({}, 0)
    assert (after.request.count, after.phases["queue"].count, after.closed["idle", 0]) == (2, 2, 2)
    assert (after.refused, after.wasted_rows) == ({"queue_full": 1}, 1)


def test_refusals_waste_load_time_and_queue_depth():
    recorder = make_recorder()
    recorder.refused("queue_full")
    recorder.refused("backend_failed", 4)
    recorder.wasted(rows=2, execute_ns=500)
    recorder.wasted(rows=1, execute_ns=250)
    recorder.padded(elements=5, padding=3)
    recorder.padded(elements=1, padding=0)
    recorder.rule_broken("x", "range", "reject", 2)
    recorder.rule_broken("x", "range", "reject", 1)
    recorder.rule_broken("x", "finite", "count", 1)
    recorder.loaded(1.5)
    reading = recorder.read()
    assert reading.rules == {("x", "range", "reject"): 3, ("x", "finite", "count"): 1}
    assert reading.refused == {"queue_full": 1, "backend_failed": 4}
    assert reading.statistics.fail == Duration(5, 0)
    assert reading.statistics.success == Duration(0, 0)
    assert (reading.wasted_rows, reading.wasted_ns, reading.load_seconds, reading.queue) == (3, 750, 1.5, (3, 7))
    assert (reading.elements, reading.padding) == (6, 3)


@pytest.mark.parametrize("column", ["received", "decoded", "admitted"])
def test_a_ragged_record_is_dropped_and_the_next_counts(column):
    recorder = make_recorder()
    recorder.batch(make_record(requests=2, **{column: [0]}))
    with pytest.raises(ValueError, match="columns of"):
        recorder.statistics()
    recorder.batch(make_record(requests=2))
    assert recorder.statistics().queue.count == recorder.statistics().success.count == 2


def test_sums_outlive_64_bits():
    histogram = Histogram(PHASE_EDGES)
    for _ in range(4):
        histogram.add_weighted(np.array([2**61]), np.array([3]))
        histogram.add(np.array([2**62]))
    assert histogram.duration == Duration(16, 4 * (3 * 2**61 + 2**62))


@pytest.mark.parametrize("edges", [PHASE_EDGES, REQUEST_EDGES], ids=["phase", "request"])
def test_edges_ascend_from_a_microsecond_to_ten_seconds_and_include_their_value(edges):
    assert (edges[0], edges[-1]) == (1_000, 10_000_000_000)
    assert (edges[1:] > edges[:-1]).all()
    histogram = Histogram(edges)
    histogram.add(np.array([0, 1_000, 1_001, 10**10, 10**10 + 1]))
    assert histogram.counts[[0, 1, -2, -1]].tolist() == [2, 1, 1, 1]
