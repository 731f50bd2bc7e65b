"""`engine.waiting`: one timer for many moments, and who waits until no work is left. In virtual time."""

import asyncio

import pytest

from headrace.engine.waiting import Quiet, Wakeup
from headrace.testing.loop import VirtualTimeLoop

MS = 1_000_000


@pytest.fixture
def loop():
    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(now=1000 * MS)) as runner:
        yield runner.get_loop()


def test_the_soonest_moment_is_the_one(loop):
    calls = []
    wakeup = Wakeup(loop, loop.clock, lambda: calls.append(loop.clock()))
    for moment in (1030 * MS, 0, 1010 * MS, 1020 * MS):
        wakeup.at(moment)
    assert wakeup.moment == 1010 * MS
    loop.run_until_complete(asyncio.sleep(1))
    assert calls == [1010 * MS]
    assert not wakeup.moment


def test_a_moment_that_is_past_is_due_at_once_and_one_asked_for_in_the_step_comes_after_it(loop):
    calls = []

    def step():
        calls.append(loop.clock())
        if len(calls) < 3:
            wakeup.at(loop.clock() + MS)

    wakeup = Wakeup(loop, loop.clock, step)
    wakeup.at(5)
    loop.run_until_complete(asyncio.sleep(1))
    assert calls == [1000 * MS, 1001 * MS, 1002 * MS]


def test_a_long_wait_is_as_exact_as_a_short_one(loop, monkeypatch):
    """Where timers come a thousandth of their time late, as Linux has it."""
    calls = []
    in_time = loop.call_later
    monkeypatch.setattr(loop, "call_later", lambda delay, step: in_time(delay * 1.001, step))
    wakeup = Wakeup(loop, loop.clock, lambda: calls.append(loop.clock()))
    wakeup.at(1000 * MS + 60_000 * MS)
    loop.run_for(70_000 * MS)
    assert calls == [pytest.approx(61_000 * MS, abs=MS // 50)]
    assert calls[0] >= 61_000 * MS


def test_what_is_cancelled_does_not_come_and_can_be_asked_for_again(loop):
    calls = []
    wakeup = Wakeup(loop, loop.clock, lambda: calls.append(loop.clock()))
    wakeup.at(1010 * MS)
    wakeup.cancel()
    wakeup.cancel()
    assert not wakeup.moment
    wakeup.at(1020 * MS)
    loop.run_until_complete(asyncio.sleep(1))
    assert calls == [1020 * MS]


def test_quiet_waits_for_the_end_of_the_work_and_no_longer_than_it_may(loop):
    work = [1]
    quiet = Quiet(lambda: not work)
    quiet.check()  # nobody waits

    async def all_of_it():
        began = loop.time()
        assert not await quiet.wait(2)
        assert loop.time() - began == 2
        waits = [asyncio.create_task(quiet.wait(9)) for _ in range(2)]
        await asyncio.sleep(1)
        quiet.check()
        await asyncio.sleep(1)
        assert not any(wait.done() for wait in waits)
        work.clear()
        quiet.check()
        assert await asyncio.gather(*waits) == [True, True]
        assert loop.time() - began == 4
        assert await quiet.wait(0)

    loop.run_until_complete(all_of_it())
