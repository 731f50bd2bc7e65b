import asyncio

import numpy as np
import pytest

from headrace.errors import (
    BackendFailed,
    DeadlineExceeded,
    DeadlineUnreachable,
    InvalidRequest,
    QueueFull,
    QueueTimeout,
    ShuttingDown,
)
from headrace.messages import Signature, State, TensorSpec
from headrace.pipeline.encode import ReplyEncoder
from headrace.repository.model_config import BatchingConfig, ModelConfig, QueueConfig
from headrace.testing.backend import ECHO, FakeModel
from headrace.testing.client import InProcessServer, infer_request
from headrace.testing.loop import VirtualTimeLoop

MS = 1_000_000


class World:
    """A model that adds one, behind a scheduler, on a loop that is stepped by hand."""

    def __init__(self, loop, *, signature=ECHO, latency_ns=10 * MS, compute=None, inline=False, learn=(), **config):
        self.loop = loop
        self.config = ModelConfig(**config)
        self.model = FakeModel(
            signature, compute or (lambda inputs: [inputs[0] + 1]), latency_ns=latency_ns, spend=loop.clock.advance
        )
        self.errors = []
        loop.set_exception_handler(lambda _, context: self.errors.append(context))
        self.learn = learn or [(1, 1)] if inline else learn
        self.inline = inline
        loop.run_until_complete(self._start())

    async def _start(self):
        self.server = InProcessServer(self.loop.clock)
        self.scheduler, self.observer = self.server.serve(
            self.model, config=self.config, inline_below_ns=10**12 if self.inline else 0, learn=self.learn
        )

    @property
    def now(self):
        return self.loop.clock()

    def send(self, rows=1, value=0.0, *, timeout_ns=0, on_end=None, dims=2, **parameters):
        request = infer_request("m", {"x": np.full((rows, dims), value, np.float32)}, parameters=parameters)
        return self.server.client.send(request, timeout_ns=timeout_ns, on_end=on_end)

    def run(self, ms=0):
        """Lets time pass, then checks that nothing went wrong behind the scenes."""
        self.loop.run_for(ms * MS) if ms else self.loop.run_until_idle()
        assert self.errors == []

    def drain(self, seconds):
        return self.loop.run_until_complete(self.scheduler.drain(seconds))

    def batches(self):
        return [(run.rows, run.requests) for run in self.model.runs]


@pytest.fixture
def world():
    loop = VirtualTimeLoop()
    yield lambda **more: World(loop, **more)
    loop.close()


def values(call):
    return np.frombuffer(call.response.raw_output_contents[0], np.float32).tolist()


def timing(call):
    parameters = call.response.parameters
    return {k: p.int64_param if p.WhichOneof("parameter_choice") == "int64_param" else p.string_param
            for k, p in parameters.items()}  # fmt: skip


def test_requests_of_one_turn_share_a_batch(world):
    here = world()
    calls = [here.send(2, value) for value in range(3)]
    here.run(10)
    assert [values(call) for call in calls] == [[value + 1.0] * 4 for value in range(3)]
    assert here.batches() == [(6, 3)]
    assert (here.observer.requests, here.observer.rows) == (3, 6)
    record = here.observer.batches[0]
    assert (record.batch_rows, record.close_reason, record.instance) == (6, "idle", 0)


def test_the_clock_of_a_reply_stops_before_it_is_put_together(world, monkeypatch):
    here = world()
    encode = ReplyEncoder.encode

    def slow(*arguments):
        here.loop.clock.advance(5 * MS)
        return encode(*arguments)

    monkeypatch.setattr(ReplyEncoder, "encode", slow)
    call = here.send(headrace_timing=True)
    here.run(20)
    assert (timing(call)["headrace_encode_us"], timing(call)["headrace_total_us"]) == (0, 10_000)
    (record,) = here.observer.batches
    assert record.encoded - record.finished == 5 * MS  # as metrics and spans have it


def test_while_all_instances_are_busy_requests_gather(world):
    here = world()
    here.send()
    here.run()
    later = [here.send(3), here.send(3), here.send(3)]
    here.run(9)
    assert here.scheduler.depth() == (3, 9)
    assert repr(here.scheduler) == ("<Scheduler m/1 serving, 1 running, <RequestQueue 3 requests, 9 rows, 1 groups>>")
    here.run(1)
    assert here.scheduler.depth() == (1, 3)
    here.run(20)
    assert all(call.response for call in later)
    assert here.batches() == [(1, 1), (6, 2), (3, 1)]


def test_the_wait_of_one_who_comes_now_is_predicted(world):
    here = world(learn=[(8, 10 * MS)])
    assert here.scheduler.wait_ns() == 0
    here.send(8)
    here.run()
    assert here.scheduler.wait_ns() == 10 * MS  # the batch that runs
    for _ in range(2):
        here.send(8)
    here.run(4)
    assert here.scheduler.wait_ns() == 26 * MS  # the rest of it, and two that wait
    here.run(26)
    assert here.scheduler.wait_ns() == 0


def test_where_requests_run_alone_each_that_waits_is_a_batch(world):
    signature = Signature((TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", "FP32", (-1, 2)),), 0)
    here = world(signature=signature, learn=[(1, 10 * MS)])
    for _ in range(3):
        here.send(dims=2)
    here.run(5)
    assert here.scheduler.wait_ns() == 25 * MS


def test_two_instances_run_at_the_same_time(world):
    here = world(instances=2)
    calls = [here.send(8), here.send(8)]
    here.run(10)
    assert all(call.ended for call in calls)
    assert {record.instance for record in here.observer.batches} == {0, 1}


def test_short_batches_run_on_the_loop(world):
    here = world(inline=True, latency_ns=MS)
    before = here.now
    call = here.send()
    here.run()
    assert call.ended
    assert here.now == before + MS  # the loop itself was busy


def test_a_model_without_batching_runs_one_by_one(world):
    signature = Signature((TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", "FP32", (-1, 2)),), 0)
    here = world(signature=signature)
    calls = [here.send(rows) for rows in (3, 1, 2)]
    here.run(30)
    assert [list(call.response.outputs[0].shape) for call in calls] == [[3, 2], [1, 2], [2, 2]]
    assert len(here.model.runs) == 3


def test_requests_that_cannot_share_a_tensor_run_apart(world):
    spec = TensorSpec("x", "FP32", (-1,))
    here = world(signature=Signature((spec,), (spec,), 8))
    calls = [here.send(1, dims=dims) for dims in (2, 3, 2)]
    here.run(20)
    assert [list(call.response.outputs[0].shape) for call in calls] == [[1, 2], [1, 3], [1, 2]]
    assert here.batches() == [(2, 2), (1, 1)]
    assert here.observer.batches[0].close_reason == "shape"


class TestDeadlines:
    def test_the_rpcs_deadline_ends_the_wait_on_time(self, world):
        here = world()
        here.send()
        here.run()
        call = here.send(timeout_ns=5 * MS)
        here.run(4)
        assert not call.ended
        here.run(1)
        assert type(call.error) is DeadlineExceeded
        assert here.observer.reasons == {"deadline_exceeded": 1}
        here.run(50)
        assert len(here.model.runs) == 1

    def test_the_requests_own_timeout_too(self, world):
        here = world()
        here.send()
        here.run()
        call = here.send(timeout=3000, timeout_ns=5 * MS)
        other = here.send(timeout=7000, timeout_ns=5 * MS)
        here.run(3)
        assert type(call.error) is QueueTimeout
        here.run(2)
        assert type(other.error) is DeadlineExceeded

    def test_the_models_objective_is_for_those_without_a_deadline(self, world):
        here = world(slo_ms=4.0)
        here.send()
        here.run()
        by_objective, by_timeout = here.send(), here.send(timeout=100_000)
        here.run(4)
        assert type(by_objective.error) is QueueTimeout
        here.run(20)
        assert by_timeout.response

    def test_what_cannot_make_it_is_refused_at_once(self, world):
        here = world(learn=[(1, 10 * MS)])
        call = here.send(timeout_ns=9 * MS)
        assert type(call.error) is DeadlineUnreachable
        assert call.under_way is None
        assert here.send(timeout_ns=11 * MS).under_way is not None
        assert here.observer.reasons == {"deadline_unreachable": 1}

    def test_an_earlier_expiry_moves_the_timer_a_later_one_does_not(self, world):
        here = world()
        here.send()
        here.run()
        middle = here.send(timeout_ns=5 * MS)
        late = here.send(timeout_ns=8 * MS)
        early = here.send(timeout_ns=2 * MS)
        ends = []
        for _ in range(9):
            here.run(1)
            ends.append([call.ended for call in (early, middle, late)].count(True))
        assert ends == [0, 1, 1, 1, 2, 2, 2, 3, 3]

    def test_a_server_that_was_slow_finds_back(self, world):
        here = world(learn=[(1, 100 * MS)], latency_ns=MS, slo_ms=50.0)
        refused = 0
        while (call := here.send()).error is not None:
            refused += 1
            here.run(1)
        assert 64 < refused < 1000
        here.run(10)
        assert call.response
        assert here.send().error is None


class TestCancelling:
    def test_a_waiting_request_does_not_run(self, world):
        here = world()
        calls = [here.send(1, 0.0), here.send(1, 1.0), here.send(1, 2.0)]
        calls[1].cancel()
        here.run(10)
        assert here.batches() == [(2, 2)]
        assert values(calls[2]) == [3.0, 3.0]
        assert here.observer.reasons == {"cancelled": 1}
        assert here.observer.wasted_rows == 0

    def test_a_running_ones_result_is_dropped_and_counted_as_waste(self, world):
        here = world()
        calls = [here.send(1, 1.0), here.send(3, 2.0), here.send(4, 3.0)]
        here.run(4)
        handle = calls[1].under_way
        calls[1].cancel()
        assert not handle.finished
        here.run(6)
        assert handle.finished
        assert values(calls[0]) == [2.0] * 2
        assert values(calls[2]) == [4.0] * 8
        assert here.observer.reasons == {"cancelled": 1}
        assert (here.observer.wasted_rows, here.observer.wasted_ns) == (3, 10 * MS * 3 // 8)
        assert here.observer.requests == 2

    def test_a_batch_that_nobody_waits_for(self, world):
        here = world()
        call = here.send(2)
        here.run(4)
        call.cancel()
        here.run(6)
        assert here.observer.batches == []
        assert here.observer.reasons == {"cancelled": 1}
        ((_, record),) = here.observer.failed
        assert (record.finished - record.started, record.encoded) == (10 * MS, record.finished)

    def test_twice_and_after_the_end_it_does_nothing(self, world):
        here = world()
        call = here.send()
        handle = call.under_way
        here.run(10)
        handle.cancel()
        waiting = here.send()
        waiting.cancel()
        handle = waiting.under_way
        handle.cancel()
        assert here.observer.reasons == {"cancelled": 1}

    def test_from_within_a_reply(self, world):
        """One caller's answer makes another go away: in the same batch, in the next one, in the queue."""
        here = world(instances=2, inline=True)
        others = []
        first = here.send(4, on_end=lambda: [other.cancel() for other in others])
        others += [here.send(4), here.send(8), here.send(8)]
        here.run(100)
        assert first.response
        assert here.scheduler.depth() == (0, 0)
        assert all(other.under_way.finished for other in others)
        assert here.observer.reasons == {"cancelled": 3}

    def test_from_within_an_expiry(self, world):
        here = world()
        here.send()
        here.run()
        others = []
        here.send(timeout_ns=MS, on_end=lambda: others[0].cancel())
        others.append(here.send(timeout_ns=MS))
        here.run(1)
        assert not others[0].error
        assert sum(here.observer.reasons.values()) == 2
        here.run(50)


class TestFailures:
    def poison(self, inputs):
        if (inputs[0] == 13).any():
            raise ValueError("unlucky")
        return [inputs[0] + 1]

    def test_only_the_one_at_fault_is_told(self, world, caplog):
        here = world(compute=self.poison)
        calls = [here.send(1, value) for value in (1, 13, 2)]
        here.run(40)
        assert [values(calls[0]), values(calls[2])] == [[2, 2], [3, 3]]
        error = calls[1].error
        assert type(error) is BackendFailed
        assert str(error).startswith("model 'm' could not run this request, correlation id ")
        assert error.detail == "unlucky"
        assert "unlucky" not in str(error)
        assert str(error).rpartition(" ")[2] in caplog.text
        assert here.observer.reasons == {"backend_failed": 1}
        assert here.batches() == [(3, 3), (1, 1), (1, 1), (1, 1)]
        assert {record.close_reason for record in here.observer.batches} == {"isolated"}
        ((reason, record),) = here.observer.failed
        assert (reason, record.close_reason, record.batch_rows) == ("backend_failed", "isolated", 1)
        assert (record.finished - record.started, record.encoded) == (10 * MS, 0)

    def test_those_run_alone_may_be_cancelled_meanwhile(self, world):
        here = world(compute=self.poison)
        calls = [here.send(1, value) for value in (13, 1, 2, 3)]
        here.run(10)
        calls[2].cancel()
        here.run(100)
        assert len(here.batches()) == 4
        assert here.observer.reasons == {"backend_failed": 1, "cancelled": 1}
        assert calls[3].response

    def test_those_run_alone_may_expire_meanwhile(self, world):
        here = world(compute=self.poison)
        calls = [here.send(1, value, timeout_ns=25 * MS) for value in (13, 1, 2, 3)]
        here.run(100)
        assert calls[1].error is None
        assert type(calls[3].error) is DeadlineExceeded
        assert len(here.batches()) == 3

    def test_a_cancelled_member_of_a_failed_batch_is_counted_once(self, world):
        here = world(compute=self.poison)
        calls = [here.send(1, value) for value in (13, 1)]
        here.run(5)
        calls[1].cancel()
        here.run(100)
        assert here.observer.reasons == {"backend_failed": 1, "cancelled": 1}

    def test_the_only_member_of_a_failed_batch_may_have_gone(self, world):
        here = world(compute=self.poison)
        call = here.send(1, 13)
        here.run(5)
        call.cancel()
        here.run(5)
        assert here.observer.reasons == {"cancelled": 1}

    def test_a_failed_run_teaches_nothing_about_the_time_runs_take(self, world):
        here = world(compute=self.poison, latency_ns=1, learn=[(1, 10 * MS)])
        for _ in range(200):
            here.send(1, 13)
            here.run(1)
        assert here.scheduler.cost.predict(1) == 10 * MS

    def test_an_output_of_the_wrong_shape_is_a_failure_of_the_model(self, world):
        here = world(compute=lambda inputs: [inputs[0][:, :1]])
        call = here.send()
        here.run(10)
        assert type(call.error) is BackendFailed

    def test_a_reply_that_cannot_be_written_is_one_callers_problem(self, world):
        here = world()
        calls = [here.send(), here.send(), here.send()]

        def broken(message):
            raise ZeroDivisionError

        calls[1].reply = broken
        here.run(10)
        assert type(calls[1].error) is ZeroDivisionError
        assert calls[0].response
        assert calls[2].response
        assert here.observer.requests == 2
        assert here.observer.reasons == {"internal": 1}


class TestSplitting:
    def test_a_large_request_is_answered_whole_and_counts_once(self, world):
        here = world(instances=2)
        call = here.send(20, 4.0)
        assert here.scheduler.depth() == (3, 20)
        here.run(20)
        assert values(call) == [5.0] * 40
        assert list(call.response.outputs[0].shape) == [20, 2]
        assert sorted(here.batches()) == [(4, 1), (8, 1), (8, 1)]
        assert (here.observer.requests, here.observer.rows) == (1, 20)
        assert len(here.observer.batches) == 3
        assert not here.observer.reasons

    def test_its_last_piece_shares_a_batch(self, world):
        here = world()
        large, small = here.send(10, 1.0), here.send(3, 7.0)
        here.run(20)
        assert values(large) == [2.0] * 20
        assert values(small) == [8.0] * 6
        assert here.batches() == [(8, 1), (5, 2)]
        assert (here.observer.requests, here.observer.rows) == (2, 13)

    def test_its_timing_adds_up(self, world):
        here = world()
        call = here.send(20, headrace_timing=True)
        here.run(30)
        parameters = timing(call)
        phases = ("decode", "admit", "queue", "batch", "execute", "encode")
        assert sum(parameters[f"headrace_{phase}_us"] for phase in phases) == parameters["headrace_total_us"] == 30_000
        assert parameters["headrace_queue_us"] == 20_000  # until its last piece was in a batch
        assert parameters["headrace_batch_rows"] == 4

    def test_all_its_pieces_expire_at_once_and_count_once(self, world):
        here = world()
        here.send()
        here.run()
        call = here.send(20, timeout_ns=5 * MS)
        other = here.send(1)
        here.run(5)
        assert type(call.error) is DeadlineExceeded
        here.run(20)
        assert other.response
        assert here.observer.reasons == {"deadline_exceeded": 1}

    def test_expiring_with_pieces_run_and_running(self, world):
        here = world()
        call = here.send(24, timeout_ns=15 * MS)
        handle = call.under_way
        here.run(12)
        assert len(here.model.runs) == 1
        here.run(3)
        assert type(call.error) is DeadlineExceeded
        assert not handle.finished
        here.run(10)
        assert handle.finished
        assert here.observer.reasons == {"deadline_exceeded": 1}
        assert here.observer.wasted_rows == 8
        assert here.observer.requests == 0

    def test_cancelling_with_pieces_in_all_states(self, world):
        here = world()
        call = here.send(24)
        here.run(12)
        call.cancel()
        here.run(50)
        assert len(here.model.runs) == 2
        assert here.observer.reasons == {"cancelled": 1}
        assert here.scheduler.depth() == (0, 0)
        assert call.under_way.finished

    def test_one_failing_piece_fails_it_once(self, world):
        here = world(instances=2)
        here.model.failures += [None, ValueError("second run")]
        call = here.send(30)
        here.run(100)
        assert type(call.error) is BackendFailed
        assert here.observer.reasons == {"backend_failed": 1}
        assert here.scheduler.depth() == (0, 0)

    def test_a_piece_that_waits_to_be_run_alone_leaves_with_the_rest(self, world):
        here = world(compute=TestFailures().poison)
        call, poison = here.send(10, 1.0), here.send(2, 13.0)
        here.run(20)  # the last piece's batch has failed
        call.cancel()
        here.run(50)
        assert type(poison.error) is BackendFailed
        assert here.observer.reasons == {"cancelled": 1, "backend_failed": 1}

    def test_it_needs_room_in_the_queue_and_time(self, world):
        here = world(queue=QueueConfig(max_rows=19), learn=[(8, 10 * MS)])
        assert type(here.send(20).error) is InvalidRequest
        assert type(here.send(17, timeout_ns=29 * MS).error) is DeadlineUnreachable
        assert here.send(17, timeout_ns=30 * MS).error is None


class TestLimits:
    def test_what_an_idle_instance_can_take_does_not_fill_the_queue(self, world):
        """Of three that arrive together the first runs, the second waits, and the third is too many."""
        here = world(queue=QueueConfig(max_requests=1))
        calls = [here.send(8) for _ in range(3)]
        assert [type(call.error) for call in calls] == [type(None), type(None), QueueFull]
        here.run(1000)
        assert [call.response is not None for call in calls[:2]] == [True, True]


class TestPolicies:
    def delay(self, world, **more):
        return world(batching=BatchingConfig(policy="delay", delay_us=5000), **more)

    def test_delay_waits_and_then_runs(self, world):
        here = self.delay(world)
        one = here.send(headrace_timing=True)
        here.run(3)
        two = here.send()
        here.run(1)
        assert here.scheduler.depth() == (2, 2)
        here.run(11)
        assert one.response
        assert two.response
        assert here.batches() == [(2, 2)]
        assert timing(one)["headrace_close_reason"] == "delay"
        assert timing(one)["headrace_queue_us"] == 5000

    def test_delay_does_not_wait_for_a_full_batch(self, world):
        here = self.delay(world)
        here.send(8)
        here.run()
        assert here.scheduler.depth() == (0, 0)

    def test_draining_does_not_wait_for_the_delay(self, world):
        here = self.delay(world)
        call = here.send(headrace_timing=True)
        before = here.now
        assert here.drain(1)
        assert here.now == before + 10 * MS
        assert timing(call)["headrace_close_reason"] == "drain"

    def test_deadline_waits_for_more_until_the_last_useful_moment(self, world):
        here = world(batching=BatchingConfig(policy="deadline"), learn=[(1, 10 * MS), (8, 10 * MS)])
        call = here.send(timeout_ns=40 * MS, headrace_timing=True)
        here.run(20)
        here.send(timeout_ns=40 * MS)
        here.run(20)
        assert here.batches() == [(2, 2)]
        # 40 ms less the run and half a millisecond for the reply
        assert timing(call)["headrace_queue_us"] == 29_500

    @pytest.mark.parametrize("start_us", [0, 250, 500, 999])
    def test_with_timers_of_a_millisecond_nobody_is_late_and_nobody_spins(self, start_us):
        """uvloop rounds timers to milliseconds, from a clock of whole milliseconds."""
        loop = VirtualTimeLoop(now=10**9 + start_us * 1000, resolution_ns=MS, tick_ns=5000)
        here = World(
            loop, batching=BatchingConfig(policy="deadline"), learn=[(1, 10 * MS), (8, 10 * MS)], latency_ns=10 * MS
        )
        turns = 0
        dispatch = here.scheduler._dispatch

        def counted():
            nonlocal turns
            turns += 1
            dispatch()

        here.scheduler._dispatch = counted
        sent = [(here.now, here.send(timeout_ns=timeout * 1000)) for timeout in (30_000, 31_300, 44_700)]
        ends = {}
        for at, call in sent:
            call._on_end = lambda at=at, call=call: ends.__setitem__(call, here.now - at)
        here.run(60)
        for (_, call), timeout in zip(sent, (30_000, 31_300, 44_700), strict=True):
            assert call.response
            assert ends[call] <= timeout * 1000
        assert turns < 300
        here.scheduler.close()
        loop.close()


class TestTheEnd:
    def test_draining_answers_all_that_was_accepted(self, world):
        here = world()
        calls = [here.send(8), here.send(8), here.send(20)]
        assert here.drain(1)
        assert all(call.response for call in calls)
        error = here.send().error
        assert type(error) is ShuttingDown
        assert here.observer.reasons == {"shutting_down": 1}
        assert repr(here.scheduler).startswith("<Scheduler m/1 draining, 0 running")

    def test_draining_waits_for_those_that_are_run_alone(self, world):
        here = world(compute=TestFailures().poison)
        calls = [here.send(1, value) for value in (13, 1, 2)]
        before = here.now
        assert here.drain(1)
        assert all(call.ended for call in calls)
        assert here.now == before + 40 * MS

    def test_draining_an_idle_scheduler_takes_no_time(self, world):
        here = world()
        before = here.now
        assert here.drain(5)
        assert here.drain(0)
        assert here.now == before

    def test_draining_gives_up_when_its_time_is_over(self, world):
        here = world()
        calls = [here.send(8) for _ in range(3)]
        before = here.now
        assert not here.drain(0.015)
        assert here.now == before + 15 * MS
        assert [call.ended for call in calls] == [True, False, False]

    def test_two_may_wait_for_the_same_end(self, world):
        here = world()
        here.send()

        async def both():
            return await asyncio.gather(here.scheduler.drain(1), here.scheduler.drain(2))

        assert here.loop.run_until_complete(both()) == [True, True]

    def test_cancelling_the_last_request_ends_a_drain(self, world):
        here = world()
        here.send()
        here.run()
        call = here.send()
        here.loop.call_later(0.001, call.cancel)
        before = here.now
        assert here.drain(1)
        assert here.now == before + 10 * MS

    def test_closing_fails_what_is_left_once(self, world):
        here = world(instances=2)
        waiting_for_a_timer = here.send(timeout_ns=50 * MS)
        running = [here.send(8), here.send(8)]
        here.run(2)
        running[1].cancel()
        waiting = [here.send(8), here.send(20)]
        here.scheduler.close()
        for call in [waiting_for_a_timer, running[0], *waiting]:
            assert type(call.error) is ShuttingDown
            assert str(call.error) == "Server is shutting down and could not finish this request in time"
        assert here.observer.reasons == {"shutting_down": 4, "cancelled": 1}
        here.run(100)  # the instances finish what they were at
        assert here.observer.reasons == {"shutting_down": 4, "cancelled": 1}
        assert here.observer.batches == []
        assert [instance.closed for instance in here.model.instances] == [True, True]
        here.scheduler.close()
        assert type(here.send().error) is ShuttingDown

    def test_closing_with_requests_to_be_run_alone(self, world):
        here = world(compute=TestFailures().poison)
        calls = [here.send(1, value) for value in (1, 2, 13)]
        here.run(15)
        here.scheduler.close()
        assert [type(call.error) for call in calls] == [ShuttingDown] * 3
        here.run(100)
        assert len(here.model.runs) == 2

    def test_closing_from_within_an_answer_may_cancel_others(self, world):
        here = world()
        others = []
        here.send(on_end=lambda: others[0].cancel())
        here.run()
        here.send(on_end=lambda: others[0].cancel())
        others.append(here.send())
        here.scheduler.close()
        assert sum(here.observer.reasons.values()) == 3
        here.run(50)


def test_states_only_move_forward(world):
    here = world()
    call = here.send()
    request = call.under_way
    assert request.state is State.WAITING
    here.run()
    assert request.state is State.RUNNING
    here.run(10)
    assert request.state is State.DONE
    assert request.parts == ()


def test_timing_of_a_request(world):
    here = world()
    here.send()
    here.run(4)
    call = here.send(2, headrace_timing=True)
    here.run(16)
    assert timing(call) == {
        "headrace_decode_us": 0,
        "headrace_admit_us": 0,
        "headrace_queue_us": 6000,
        "headrace_batch_us": 0,
        "headrace_execute_us": 10_000,
        "headrace_encode_us": 0,
        "headrace_total_us": 16_000,
        "headrace_batch_rows": 2,
        "headrace_batch_requests": 1,
        "headrace_close_reason": "idle",
    }


def test_levels_of_urgency(world):
    here = world(priority_levels=2)
    here.send(8)
    here.run()
    order = []
    for name, priority in (("low", 2), ("unnamed", 0), ("high", 1)):
        here.send(8, priority=priority, on_end=lambda name=name: order.append(name))
    here.run(100)
    assert order == ["high", "low", "unnamed"]
