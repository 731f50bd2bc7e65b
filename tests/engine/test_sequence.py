import logging

import numpy as np
import pytest

from headrace.engine.sequence import SequenceScheduler
from headrace.errors import (
    BackendFailed,
    DeadlineExceeded,
    DeadlineUnreachable,
    InvalidRequest,
    QueueFull,
    QueueTimeout,
    RegionTooSmall,
    ShuttingDown,
)
from headrace.messages import Signature, TensorSpec
from headrace.repository.model_config import BatchingConfig, ModelConfig, QueueConfig
from headrace.repository.sequence_config import (
    SequenceConfig,
    SequenceControl,
    SequenceControls,
    SequenceIdControl,
    SequenceState,
)
from headrace.testing.backend import FakeModel
from headrace.testing.client import InProcessServer, infer_request, output_arrays
from headrace.testing.loop import VirtualTimeLoop

MS = 1_000_000


def spec(name, datatype="INT64", shape=(1,)):
    return TensorSpec(name, datatype, shape)


ADDER = Signature((spec("before"), spec("x")), (spec("after"), spec("y"), spec("negative")), 8)
STATE = (SequenceState(input="before", output="after"),)


def add(inputs):
    before, x = inputs
    return [before + x, before + x, -before - x]


class World:
    """A model that adds up, behind a SequenceScheduler, on a loop that is stepped by hand."""

    def __init__(
        self, loop, *, signature=ADDER, compute=add, latency_ns=10 * MS, inline=False, sequence=None, **config
    ):
        self.loop = loop
        self.model = FakeModel(signature, compute, latency_ns=latency_ns, spend=loop.clock.advance)
        self.errors = []
        loop.set_exception_handler(lambda _, context: self.errors.append(context))
        self.config = ModelConfig(sequence=sequence or SequenceConfig(state=STATE), **config)
        self.inline = inline
        loop.run_until_complete(self._start())

    async def _start(self):
        self.server = InProcessServer(self.loop.clock)
        self.scheduler, self.observer = self.server.serve_stateful(
            self.model,
            self.config,
            inline_below_ns=10**12 if self.inline else 0,
            learn=[(1, 10 * MS)],
        )

    def send(self, sequence, x=1, start=False, end=False, *, timeout_ns=0, on_end=None, outputs=(), **more):
        flags = {"sequence_id": sequence, "sequence_start": start, "sequence_end": end}
        message = infer_request("m", {"x": np.array([[x]])}, parameters=flags | more, outputs=outputs)
        return self.server.client.send(message, timeout_ns=timeout_ns, on_end=on_end)

    def run(self, ms=0):
        self.loop.run_for(ms * MS) if ms else self.loop.run_until_idle()
        assert self.errors == []

    def drain(self, seconds):
        return self.loop.run_until_complete(self.scheduler.drain(seconds))

    def batches(self):
        return [run.rows for run in self.model.runs]


@pytest.fixture
def world():
    loop = VirtualTimeLoop()
    yield lambda **more: World(loop, **more)
    loop.close()


def value(call, name="y"):
    return output_arrays(call.response)[name].item()


def test_rows_of_different_sequences_share_batches(world):
    here = world()
    calls = [here.send(name, number, number == 1) for number in (1, 2, 3) for name in ("a", "b", 7)]
    assert here.scheduler.depth() == (9, 9)
    assert here.scheduler.counts() == (0, 3)
    here.run(30)
    assert [value(call) for call in calls] == [1, 1, 1, 3, 3, 3, 6, 6, 6]
    assert here.batches() == [3, 3, 3]
    assert here.scheduler.counts() == (3, 0)
    assert (here.observer.requests, here.observer.reasons) == (9, {})
    assert repr(here.scheduler) == (
        "<SequenceScheduler m/1 serving, <Sequences 3 active, 0 in the backlog, 0 requests wait>, "
        "<Scheduler m/1 serving, 0 running, <RequestQueue 0 requests, 0 rows, 0 groups>>>"
    )


def test_the_next_of_a_sequence_runs_in_the_turn_after_the_last(world):
    here = world()
    calls = [here.send(1, 1, True), here.send(1), here.send(1)]
    here.run(30)
    assert all(call.ended for call in calls)
    assert [record.started for record in here.observer.batches] == [
        here.observer.batches[0].started + at * 10 * MS for at in range(3)
    ]


def test_clients_see_their_own_tensors_alone(world):
    here = world()
    assert [one.name for one in here.scheduler.signature.inputs] == ["x"]
    assert [one.name for one in here.scheduler.signature.outputs] == ["y", "negative"]
    everything, one = here.send(1, 5, True), here.send(2, 6, True, outputs=["negative"])
    here.run(20)
    assert {name: array.tolist() for name, array in output_arrays(everything.response).items()} == {
        "y": [[5]],
        "negative": [[-5]],
    }
    assert {name: array.tolist() for name, array in output_arrays(one.response).items()} == {"negative": [[-6]]}
    refused = here.server.client.send(infer_request("m", {"x": np.array([[1]]), "before": np.array([[1]])}))
    assert "unexpected inference input 'before' for model 'm'" in str(refused.error)


def test_the_inputs_are_laid_out_as_the_model_has_them(world):
    inputs = (
        spec("id", "UINT64"),
        spec("x"),
        spec("start", "FP32"),
        spec("before"),
        spec("ready", "BOOL"),
        spec("end", "INT32"),
    )
    outputs = (spec("y"), spec("after"))
    controls = SequenceControls(
        start=SequenceControl(input="start", false_true=(-1.0, 1.0)),
        end=SequenceControl(input="end"),
        ready=SequenceControl(input="ready"),
        corrid=SequenceIdControl(input="id"),
    )
    here = world(
        signature=Signature(inputs, outputs, 8),
        compute=lambda tensors: [tensors[1] + tensors[3]] * 2,
        sequence=SequenceConfig(state=STATE, controls=controls),
    )
    calls = [here.send(77, 5, True), here.send(77, 6), here.send(77, 7, end=True), here.send(77, 8, True, True)]
    here.run(40)
    assert [value(call) for call in calls] == [5, 11, 18, 8]
    seen = [[array.item() for array in run.inputs] for run in here.model.runs]
    assert seen == [
        [77, 5, 1.0, 0, True, 0],
        [77, 6, -1.0, 5, True, 0],
        [77, 7, -1.0, 11, True, 1],
        [77, 8, 1.0, 0, True, 1],
    ]
    refused = here.send("text", 1, True)
    assert str(refused.error) == "sequence id 'text' is text, but the model takes it as UINT64"


def test_a_model_without_a_batch_dimension_runs_one_by_one(world):
    signature = Signature((spec("before", shape=(-1,)), spec("x", shape=(1, 1))), (spec("after", shape=(-1,)),), 0)
    grown = SequenceConfig(state=(SequenceState(input="before", output="after", initial_dims=[0]),))
    here = world(
        signature=Signature(signature.inputs, (*signature.outputs, spec("y", shape=())), 0),
        compute=lambda inputs: [np.append(inputs[0], inputs[1]), np.array(inputs[0].size)],
        sequence=grown,
    )
    calls = [here.send(name, 1, start) for start in (True, False, False) for name in ("a", "b")]
    here.run(60)
    assert [value(call) for call in calls] == [0, 0, 1, 1, 2, 2]
    assert here.batches() == [1] * 6


def test_a_kept_state_is_not_a_view_of_a_whole_batch(world):
    wide = Signature((spec("x"), spec("before", shape=(1 << 13,))), (spec("after", shape=(1 << 13,)), spec("y")), 8)
    here = world(signature=wide, compute=lambda inputs: [inputs[1] + inputs[0], inputs[1][:, :1] + inputs[0]])
    calls = [here.send(name, name, True) for name in (1, 2, 3)]
    here.run(10)
    assert [value(call) for call in calls] == [1, 2, 3]
    assert {type(part) for sequence in here.scheduler.sequences for part in sequence.state.data} == {bytes}
    again = [here.send(name) for name in (1, 2, 3)]
    here.run(10)
    assert [value(call) for call in again] == [2, 3, 4]


def test_timing_tells_where_it_waited(world):
    here = world()
    here.send(1, start=True)
    call = here.send(1, headrace_timing=True)
    here.run(20)
    timing = {name: parameter.int64_param for name, parameter in call.response.parameters.items()}
    assert timing["headrace_queue_us"] == timing["headrace_execute_us"] == 10_000
    assert timing["headrace_total_us"] == 20_000


def test_errors_of_a_request_reach_no_model(world):
    here = world()
    errors = [here.send(1).error, here.send(0, start=True).error]
    two = {"sequence_id": 1, "sequence_start": True}
    errors.append(here.server.client.send(infer_request("m", {"x": np.array([[1], [2]])}, parameters=two)).error)
    assert [type(error) for error in errors] == [InvalidRequest] * 3
    here.run(10)
    assert here.batches() == []
    assert here.observer.reasons == {"invalid_request": 3}


class TestFailures:
    def test_one_that_the_model_fails_leaves_the_state(self, world):
        here = world()
        here.model.failures.extend([None, ValueError("no"), None])
        calls = [here.send(1, 1, True), here.send(1, 10), here.send(1, 100)]
        here.run(30)
        assert [value(calls[0]), type(calls[1].error), value(calls[2])] == [1, BackendFailed, 101]
        assert here.observer.reasons == {"backend_failed": 1}

    def test_a_batch_that_fails_is_run_one_by_one_and_each_sequence_goes_on(self, world):
        def compute(inputs):
            if (inputs[1] < 0).any():
                raise ValueError("negative")
            return add(inputs)

        here = world(compute=compute)
        good, bad = [here.send("a", 1, True), here.send("a", 2)], [here.send("b", -1, True), here.send("b", 2)]
        here.run(60)
        assert [value(call) for call in good] == [1, 3]
        assert [type(call.error) for call in bad] == [BackendFailed, InvalidRequest]
        assert "must specify the START flag" in str(bad[1].error)

    def test_a_state_that_the_model_does_not_take_back(self, world, caplog):
        signature = Signature((spec("before", shape=(-1, 2)), spec("x")), (spec("after", shape=(-1, -1)), spec("y")), 8)
        here = world(signature=signature, compute=lambda inputs: [np.zeros((1, 1, 3), int), inputs[1]])
        calls = [here.send(1, 1, True), here.send(1, 2)]
        with caplog.at_level(logging.ERROR):
            here.run(20)
        assert value(calls[0]) == 1
        assert type(calls[1].error) is BackendFailed
        assert "could not run this request, correlation id" in str(calls[1].error)
        assert "does not take the states that it gave" in caplog.text
        assert here.observer.reasons == {"backend_failed": 1}
        fresh = here.send(1, 3, True)
        here.run(10)
        assert value(fresh) == 3

    def test_a_reply_that_cannot_be_written_is_an_error_and_the_sequence_goes_on(self, world):
        here = world()
        call, after = here.send(1, 1, True), here.send(1, 2)
        template = here.scheduler.sequences._by_id[1].waiting[0].template

        class Unwritable:
            def encode(self, *_):
                raise RegionTooSmall("too small")

        template.reply = Unwritable()
        here.run(20)
        assert type(call.error) is RegionTooSmall
        assert value(after) == 3
        assert here.observer.reasons == {"region_too_small": 1}


class TestGoneAway:
    def test_what_runs_counts_for_the_state_alone(self, world):
        here = world()
        first = here.send(1, 1, True)
        here.run(5)
        second = here.send(1, 2)
        first.cancel()
        here.run(20)
        assert value(second) == 3
        assert here.observer.reasons == {"cancelled": 1}
        assert (here.observer.requests, here.observer.wasted_rows) == (1, 1)

    def test_so_does_what_waits(self, world):
        here = world()
        first, gone, last = here.send(1, 1, True), here.send(1, 2), here.send(1, 4)
        under_way = gone.under_way
        gone.cancel()
        assert not under_way.finished
        here.run(30)
        assert under_way.finished
        assert [value(first), value(last)] == [1, 7]
        assert here.observer.reasons == {"cancelled": 1}

    def test_a_refusal_cancels_one_that_expires_at_that_moment(self, world):
        here = world()
        others = []
        late = here.send("a", start=True, timeout_ns=12 * MS, on_end=lambda: [other.cancel() for other in others])
        others.append(here.send("b", start=True, timeout=1))
        patient = [here.send("c", start=True), here.send("c", 5)]
        here.loop.clock.advance(6 * MS)  # the loop is busy until it gets to them
        here.run()
        assert type(late.error) is DeadlineUnreachable
        assert here.observer.reasons == {"deadline_unreachable": 1, "queue_timeout": 1}
        here.run(20)
        assert [value(call) for call in patient] == [1, 6]

    def test_a_sequence_that_has_not_begun_is_forgotten(self, world):
        here = world(sequence=SequenceConfig(state=STATE, max_candidate_sequences=1))
        here.send("a", 1, True)
        calls = [here.send("b", 1, True), here.send("b", 1)]
        here.run()
        assert here.scheduler.counts() == (1, 1)
        under_way = [call.under_way for call in calls]
        for call in calls:
            call.cancel()
        assert here.scheduler.counts() == (1, 0)
        assert all(request.finished for request in under_way)
        here.run(20)
        assert here.batches() == [1]
        assert here.observer.reasons == {"cancelled": 2}


class TestTime:
    def test_the_deadline_of_one_that_waits_for_its_turn(self, world):
        here = world(latency_ns=100 * MS)
        first, late, last = here.send(1, 1, True), here.send(1, 2, timeout_ns=50 * MS), here.send(1, 4)
        own = here.send(1, 8, timeout=60_000)
        here.run(50)
        assert type(late.error) is DeadlineExceeded
        here.run(10)
        assert type(own.error) is QueueTimeout
        here.run(140)
        assert [value(first), value(last)] == [1, 5]
        assert here.observer.reasons == {"deadline_exceeded": 1, "queue_timeout": 1}

    def test_a_sequence_that_is_idle_too_long_is_over(self, world):
        here = world()
        here.send(1, 1, True)
        here.run(1009)
        assert here.scheduler.counts() == (1, 0)
        here.run(1)
        assert here.scheduler.counts() == (0, 0)
        assert here.observer.expired_sequences == 1
        assert type(here.send(1).error) is InvalidRequest
        assert here.send(1, 1, True).error is None
        here.run(20)

    def test_its_time_counts_from_the_last_reply(self, world):
        here = world(sequence=SequenceConfig(state=STATE, idle_timeout_ms=15))
        for at in range(5):
            call = here.send(1, 1, at == 0)
            here.run(24)
            assert value(call) == at + 1
        here.run(1)
        assert here.observer.expired_sequences == 1

    def test_an_earlier_deadline_is_looked_at_earlier(self, world):
        here = world(latency_ns=500 * MS)
        here.send(1, 1, True)
        here.run(10)
        slow, quick = here.send(1, timeout_ns=400 * MS), here.send(1, timeout_ns=100 * MS)
        here.run(100)
        assert (slow.ended, type(quick.error)) == (False, DeadlineExceeded)


class TestStrategies:
    def test_direct_has_a_slot_for_each_row_of_each_instance(self, world):
        small = Signature(ADDER.inputs, ADDER.outputs, 2)
        here = world(signature=small, instances=2, sequence=SequenceConfig(strategy="direct", state=STATE))
        calls = [here.send(name, 1, True, name == 0) for name in range(1, 7)]
        here.run(10)
        assert [call.ended for call in calls] == [True] * 4 + [False] * 2
        assert here.scheduler.counts() == (4, 2)
        done = here.send(3, 5, end=True)
        here.run(20)
        assert value(done) == 6
        assert [call.ended for call in calls] == [True] * 5 + [False]

    def test_oldest_has_a_number_for_each_instance(self, world):
        here = world(instances=2, sequence=SequenceConfig(max_candidate_sequences=3, state=STATE))
        for name in range(1, 9):
            here.send(name, 1, True)
        here.run(10)
        assert here.scheduler.counts() == (6, 2)

    def test_a_delay_is_for_rows_of_other_sequences(self, world):
        here = world(batching=BatchingConfig(policy="delay", delay_us=5000))
        first = here.send(1, 1, True)
        here.run(3)
        second = here.send(2, 1, True)
        here.run(12)
        assert first.ended
        assert second.ended
        assert here.batches() == [2]


def test_no_more_wait_than_may(world):
    here = world(queue=QueueConfig(max_requests=3))
    calls = [here.send(name, 1, True) for name in ("a", "b", "c", "d")]
    assert [type(call.error) for call in calls] == [type(None)] * 3 + [QueueFull]
    here.run()  # the three run now
    assert [here.send("a").error, here.send("a").error, here.send("b").error] == [None] * 3
    assert type(here.send("c").error) is QueueFull
    here.run(20)
    assert here.observer.reasons == {"queue_full": 2}


def test_large_requests_that_run_at_once_do_not_pile_up_on_the_stack(world):
    large = Signature((spec("x", "UINT8", (300_000,)), spec("before")), (spec("after"), spec("y")), 8)
    here = world(signature=large, compute=lambda inputs: [inputs[1] + 1, inputs[1] + 1], latency_ns=1000, inline=True)
    pixels = np.zeros((1, 300_000), np.uint8)
    calls = []
    for at in range(500):
        flags = {"sequence_id": 1, "sequence_start": at == 0}
        calls.append(here.server.client.send(infer_request("m", {"x": pixels}, parameters=flags)))
    here.run()
    assert [value(call) for call in calls] == list(range(1, 501))


class TestTheEnd:
    def test_draining_answers_what_was_accepted(self, world):
        here = world(sequence=SequenceConfig(state=STATE, max_candidate_sequences=1, idle_timeout_ms=10_000))
        calls = [here.send(name, 1, start) for name in ("a", "b") for start in (True, False)]
        here.run(5)
        assert here.drain(1)
        assert [value(call) for call in calls] == [1, 2, 1, 2]
        assert type(here.send("a").error) is ShuttingDown
        assert here.observer.expired_sequences == 0
        here.scheduler.close()
        assert here.model.instances[0].closed

    def test_with_nothing_to_answer_it_is_drained_at_once(self, world):
        here = world()
        here.send(1, 1, True)
        here.run(20)
        assert here.drain(0)
        assert here.scheduler.counts() == (0, 0)

    def test_what_is_not_answered_in_time(self, world):
        here = world()
        calls = [here.send(1, 1, True), here.send(1, 1)]
        assert not here.drain(0.005)
        here.scheduler.close()
        here.scheduler.close()
        assert [type(call.error) for call in calls] == [ShuttingDown] * 2
        assert here.observer.reasons == {"shutting_down": 2}
        here.run(100)
        assert here.model.instances[0].closed
        assert type(here.send(1, 1, True).error) is ShuttingDown


def test_it_is_what_lifecycle_and_transports_ask_for(world):
    here = world()
    assert isinstance(here.scheduler, SequenceScheduler)
    assert (here.scheduler.level, here.scheduler.platform, here.scheduler.version) == (0, "fake", "1")
    other = type(here.observer)()
    here.scheduler.observer = other
    here.send(1, 1, True)
    here.run(10)
    assert other.requests == 1
