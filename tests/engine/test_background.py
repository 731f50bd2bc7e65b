import asyncio
import sys
import threading

import pytest

from headrace.engine.background import in_background


def test_what_the_work_returns_and_raises():
    async def main():
        assert await in_background(lambda: threading.current_thread().daemon) is True
        with pytest.raises(ValueError, match="invalid literal"):
            await in_background(lambda: int("no"))

    asyncio.run(main())


def test_what_is_no_exception_ends_the_work_alone():
    async def main():
        with pytest.raises(RuntimeError, match=r"^SystemExit\('enough'\)$"):
            await in_background(lambda: sys.exit("enough"))

    asyncio.run(main())


def test_nobody_waits_for_work_that_is_given_up():
    gate = threading.Event()
    ended = threading.Event()

    def work():
        gate.wait()
        ended.set()

    async def main():
        task = asyncio.create_task(in_background(work))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())  # ends though the work goes on
    gate.set()
    assert ended.wait(10)  # and its result has nowhere to go


def test_a_result_that_comes_after_the_cancellation_is_dropped():
    gate = threading.Event()

    async def main():
        task = asyncio.create_task(in_background(gate.wait))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        gate.set()
        for thread in threading.enumerate():
            if thread.name.endswith("-loader"):
                await asyncio.to_thread(thread.join)
        await asyncio.sleep(0)

    asyncio.run(main())
