"""Long blocking work beside the event loop, that does not hold up the end of the process."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor, Future
from threading import Thread
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from headrace.engine.worker import THREAD_NAME, as_exception

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
P = ParamSpec("P")


class _DaemonThreads(Executor):
    """A thread for each work, which nobody waits for at the end, unlike those of `asyncio.to_thread`."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """See concurrent.futures."""
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:
                future.set_exception(as_exception(error))
            else:
                future.set_result(result)

        Thread(target=run, name=f"{THREAD_NAME}-loader", daemon=True).start()
        return future


_THREADS = _DaemonThreads()


async def in_background(work: Callable[[], T]) -> T:
    """Runs `work` on a thread of its own; returns what it does, or raises that, by `as_exception`.

    Cancelled, it leaves the thread to itself.
    """
    return await asyncio.get_running_loop().run_in_executor(_THREADS, work)
