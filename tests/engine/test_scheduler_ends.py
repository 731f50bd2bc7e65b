"""How requests end that get no reply, or part of one: deadlines, cancelling, failures, the end."""

import asyncio

import pytest
from engine.scheduling import MS, World, poison, values

from headrace.errors import (
    BackendFailed,
    DeadlineExceeded,
    DeadlineUnreachable,
    QueueTimeout,
    ShuttingDown,
)
from headrace.repository.model_config import QueueConfig
from headrace.testing.loop import VirtualTimeLoop


@pytest.fixture
def world():
    loop = VirtualTimeLoop()
    yield lambda **more: World(loop, **more)
    loop.close()


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

    def test_what_was_answered_after_it_was_due_is_counted(self, world):
        here = world(learn=[(1, MS)], latency_ns=10 * MS, slo_ms=5.0)
        late = here.send()
        here.run(10)
        in_time = here.send(timeout_ns=20 * MS)
        here.run(10)
        assert late.response
        assert in_time.response
        assert [record.late for record in here.observer.batches] == [1, 0]

    def test_one_that_its_policy_only_delays_is_not_late(self, world):
        here = world(latency_ns=10 * MS, queue=QueueConfig(timeout_us=5000, on_timeout="delay"))
        call = here.send()
        here.run(10)
        assert call.response
        assert [record.late for record in here.observer.batches] == [0]


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

    def test_an_expiry_cancels_one_that_is_given_up_at_that_moment(self, world):
        here = world(learn=[(1, 10 * MS), (8, 10 * MS)])
        here.send()
        here.run()
        others = []
        expired = here.send(timeout=21_500, on_end=lambda: [other.cancel() for other in others])
        others.append(here.send(timeout=32_500))
        patient = here.send()
        here.model.instances[0].hold()
        here.run(10)
        here.loop.clock.advance(12 * MS)  # the loop is busy: no timer is served meanwhile
        here.model.instances[0].release()
        here.run()
        assert type(expired.error) is QueueTimeout
        assert not others[0].error
        assert here.observer.reasons == {"queue_timeout": 1, "cancelled": 1}
        here.run(10)
        assert patient.response


class TestFailures:
    def test_only_the_one_at_fault_is_told(self, world, caplog):
        here = world(compute=poison)
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
        here = world(compute=poison)
        calls = [here.send(1, value) for value in (13, 1, 2, 3)]
        here.run(10)
        calls[2].cancel()
        here.run(100)
        assert len(here.batches()) == 4
        assert here.observer.reasons == {"backend_failed": 1, "cancelled": 1}
        assert calls[3].response

    def test_those_run_alone_may_expire_meanwhile(self, world):
        here = world(compute=poison)
        calls = [here.send(1, value, timeout_ns=25 * MS) for value in (13, 1, 2, 3)]
        here.run(100)
        assert calls[1].error is None
        assert type(calls[3].error) is DeadlineExceeded
        assert len(here.batches()) == 3

    def test_a_cancelled_member_of_a_failed_batch_is_counted_once(self, world):
        here = world(compute=poison)
        calls = [here.send(1, value) for value in (13, 1)]
        here.run(5)
        calls[1].cancel()
        here.run(100)
        assert here.observer.reasons == {"backend_failed": 1, "cancelled": 1}

    def test_the_only_member_of_a_failed_batch_may_have_gone(self, world):
        here = world(compute=poison)
        call = here.send(1, 13)
        here.run(5)
        call.cancel()
        here.run(5)
        assert here.observer.reasons == {"cancelled": 1}

    def test_a_failed_run_teaches_nothing_about_the_time_runs_take(self, world):
        here = world(compute=poison, latency_ns=1, learn=[(1, 10 * MS)])
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
        here = world(compute=poison)
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
        here = world(compute=poison)
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
