import asyncio
import threading
import time

import pytest

from headrace.testing.loop import Deadlock, VirtualTimeLoop, run_virtual

HOUR = 3600 * 10**9


@pytest.fixture
def loop():
    loop = VirtualTimeLoop(now=0)
    yield loop
    loop.close()


def test_an_hour_passes_at_once_and_exactly():
    async def main():
        clock = asyncio.get_running_loop().clock
        before = clock()
        await asyncio.sleep(3600)
        return clock() - before

    began = time.monotonic()
    assert run_virtual(main()) == HOUR
    assert time.monotonic() - began < 10


def test_timers_fire_in_order_at_their_time(loop):
    fired = []
    for delay in (3, 1, 2):
        loop.call_later(delay, lambda: fired.append(loop.clock()))
    loop.run_for(2 * 10**9)
    assert fired == [10**9, 2 * 10**9]
    assert loop.clock() == 2 * 10**9
    loop.run_for(10**9)
    assert fired[2:] == [3 * 10**9]


def test_run_until_idle_lets_no_time_pass(loop):
    seen = []
    loop.call_later(1, seen.append, "timer")
    loop.call_soon(lambda: loop.call_soon(seen.append, "second turn"))
    loop.run_until_idle()
    assert seen == ["second turn"]
    assert loop.clock() == 0


def test_a_callback_that_takes_time_makes_the_next_timer_late(loop):
    seen = []
    loop.call_later(1, loop.clock.advance, 5 * 10**9)
    loop.call_later(2, lambda: seen.append(loop.clock()))
    loop.run_for(7 * 10**9)
    assert seen == [6 * 10**9]


def test_a_thread_takes_no_virtual_time():
    async def main():
        clock = asyncio.get_running_loop().clock
        before = clock()
        late = asyncio.create_task(asyncio.sleep(1))
        gate = threading.Event()
        asyncio.get_running_loop().call_soon(gate.set)
        assert await asyncio.to_thread(gate.wait, 10)
        assert clock() == before
        await late
        return clock() - before

    assert run_virtual(main()) == 10**9


def test_nothing_left_to_happen_is_an_error():
    async def main():
        await asyncio.get_running_loop().create_future()

    with pytest.raises(Deadlock, match="nothing is scheduled"):
        run_virtual(main())


@pytest.mark.parametrize(
    ("now", "delay_ms", "fires"),
    [(0, 1.4, 1_000_000), (0, 1.6, 2_000_000), (900_000, 1.6, 2_000_000), (900_000, 0.4, 900_000)],
)
def test_timers_are_rounded_as_libuv_rounds_them(now, delay_ms, fires):
    loop = VirtualTimeLoop(now=now, resolution_ns=1_000_000)
    seen = []
    loop.call_later(delay_ms / 1e3, lambda: seen.append(loop.clock()))
    loop.run_for(10_000_000)
    loop.close()
    assert seen == [fires]


def test_ticks_bring_a_spinning_loop_onwards():
    loop = VirtualTimeLoop(now=0, tick_ns=1000)

    def spin():
        if loop.clock() < 50_000:
            loop.call_soon(spin)

    spin()
    loop.run_until_idle()
    loop.close()
    assert 50_000 <= loop.clock() <= 51_000
