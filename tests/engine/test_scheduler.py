import pytest
from engine.scheduling import MS, World, timing, values

from headrace.errors import QueueFull
from headrace.messages import Signature, State, TensorSpec
from headrace.pipeline.encode import ReplyEncoder
from headrace.repository.model_config import BatchingConfig, QueueConfig
from headrace.testing.loop import VirtualTimeLoop


@pytest.fixture
def world():
    loop = VirtualTimeLoop()
    yield lambda **more: World(loop, **more)
    loop.close()


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
        # 40 ms less the run and three for the reply
        assert timing(call)["headrace_queue_us"] == 27_000

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


def test_a_batch_that_nobody_waits_for_is_described_once(world):
    """A description is as long as the batch: one for each of its requests would hold the event loop up for seconds."""
    here = world()
    records = []
    here.observer.refused = lambda *_, record, **__: records.append(record)
    calls = [here.send() for _ in range(8)]
    here.run(4)
    for call in calls:
        call.cancel()
    here.run(6)
    assert len(records) == 8
    assert len(set(map(id, records))) == 1
    assert len(records[0].requests) == 8
