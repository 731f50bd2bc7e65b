"""One background thread that looks at batches for all monitors, within a budget. The only part with a thread.

Everything that touches a monitor happens on this thread, so that nothing is locked: batches are handed over with
`offer`, anything else (ticks, reports, saving) with `submit`.
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np

from headrace.drift.sampler import Budget, RowCost, choose_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from headrace.clock import Clock
    from headrace.drift.alarms import Event
    from headrace.drift.monitor import Monitor

    Tensors = Mapping[str, NDArray[Any]]

P = ParamSpec("P")
R = TypeVar("R")

logger = logging.getLogger(__name__)

DEFAULT_SHARE = 0.03
MAX_BATCHES = 16
"""Batches that wait at most: each keeps its tensors in memory."""
MAX_BYTES = 64 << 20
"""Octets of tensors that wait at most, or one batch that has more."""


class Watched:
    """A monitor and what the worker knows of it. Counters are written by one thread each, and read by any.

    offered, refused: rows, the latter those of batches that found no place; as of the thread that offers. looked_at,
    passed_over, failed: rows of the batches that did; as of the worker.
    """

    __slots__ = (
        "_counted", "cost", "failed", "last_error", "looked_at", "monitor", "offered", "passed_over", "refused"
    )  # fmt: skip

    def __init__(self, monitor: Monitor) -> None:
        self.monitor = monitor
        self.cost = RowCost()
        self.offered = 0
        self.refused = 0
        self.looked_at = 0
        self.passed_over = 0
        self.failed = 0
        self.last_error = ""
        self._counted = 0

    @property
    def skipped(self) -> int:
        """Rows that were not looked at, to keep the budget."""
        return self.refused + self.passed_over

    def newly_offered(self) -> int:
        """Rows offered since the last call. Of the worker alone."""
        offered = self.offered
        new, self._counted = offered - self._counted, offered
        return new


class DriftWorker:
    """The thread, its queue and its budget.

    share: of a core, all models together. clock, cpu_clock: nanoseconds, monotonic and of the calling thread's CPU
    time. wall_ms: milliseconds since the epoch. seed: of the choice of rows.
    """

    def __init__(
        self, share: float, clock: Clock, cpu_clock: Clock, wall_ms: Callable[[], int], seed: int | None = None
    ) -> None:
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._wall_ms = wall_ms
        self._budget = Budget(share, clock())
        self._random = np.random.default_rng(seed)
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._cpu_at = 0  # what this thread's CPU clock said when it was last paid for
        self._exhausted = False  # the last batch was too dear
        self._resume_ns = 0  # written here, read by who offers: until then the budget is overdrawn
        self._batches_in = self._bytes_in = 0  # of the offering thread
        self._batches_out = self._bytes_out = 0  # of the worker

    def __repr__(self) -> str:
        return f"<DriftWorker: {self._batches_in - self._batches_out} batches waiting, {self._budget!r}>"

    @property
    def cpu_ns(self) -> int:
        """CPU time that the thread has spent, on rows and everything else."""
        return self._budget.spent_ns

    def offer(self, watched: Watched, tensors: Tensors, rows: int, now_ns: int) -> None:
        """A batch, by reference; never waits. Of one thread alone, the event loop's.

        tensors: by `Watch.key`, each [at least rows, ...]; nobody may write to them afterwards. If the budget is spent
        or too much waits, its rows are skipped, and counted.
        """
        if self.skips(watched, rows, now_ns):
            return
        watched.offered += rows
        size = 0
        for tensor in tensors.values():
            size += tensor.nbytes
        waiting = self._bytes_in - self._bytes_out
        if waiting and waiting + size > MAX_BYTES:
            watched.refused += rows
            return
        self._batches_in += 1
        self._bytes_in += size
        self._queue.put(lambda: self._look(watched, tensors, rows, size))

    def skips(self, watched: Watched, rows: int, now_ns: int) -> bool:
        """Whether a batch would find no place, without a look at it; then its rows are counted. Of who offers."""
        if now_ns >= self._resume_ns and self._batches_in - self._batches_out < MAX_BATCHES:
            return False
        watched.offered += rows
        watched.refused += rows
        return True

    def submit(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Calls on the worker's thread, between batches, and says what came of it."""
        future: Future[R] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(call(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)

        self._queue.put(run)
        return future

    def tick(self, watched: Watched) -> list[Event]:
        """Judges the windows that are over, see `Monitor.tick`: to be submitted now and then, every few seconds."""
        now_ms = self._wall_ms()
        if offered := watched.newly_offered():
            watched.monitor.count(now_ms, {}, offered)
        return watched.monitor.tick(now_ms)

    def start(self) -> None:
        """Starts the thread."""
        self._thread = threading.Thread(target=self._run, name="headrace-drift", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Finishes what waits, if it takes no longer than that."""
        self._queue.put(None)
        if self._thread is not None:
            self._thread.join(timeout_s)

    def run_waiting(self) -> None:
        """What the thread would do until nothing waits: for tests, and for whoever has a thread of his own."""
        self._cpu_at = self._cpu_clock()
        while not self._queue.empty():
            step = self._queue.get()
            if step is not None:
                step()
                self._settle()

    def _run(self) -> None:
        self._cpu_at = self._cpu_clock()
        while (step := self._queue.get()) is not None:
            step()
            del step  # or the last batch's tensors would be kept until the next one comes
            self._settle()

    def _settle(self) -> None:
        """Pays for everything that this thread did since the last time, and rests when the budget is spent."""
        cpu = self._cpu_clock()
        self._budget.spend(cpu - self._cpu_at)
        self._cpu_at = cpu
        now = self._clock()
        if self._exhausted or self._budget.available(now) <= 0:
            self._resume_ns = now + self._budget.rest_ns(now)

    def _look(self, watched: Watched, tensors: Tensors, rows: int, size: int) -> None:
        try:
            now = self._clock()
            take = watched.cost.rows(self._budget.available(now), rows)
            if not take and self._budget.full(now):
                take = min(rows, 1)  # a row that is dearer than all that can be saved is looked at now and then
            watched.passed_over += rows - take
            self._exhausted = not take
            if take:
                begun = self._cpu_clock()
                self._count(watched, tensors, rows, take)
                watched.cost.learn(take, self._cpu_clock() - begun)
        finally:
            self._batches_out += 1
            self._bytes_out += size

    def _count(self, watched: Watched, tensors: Tensors, rows: int, take: int) -> None:
        try:
            chosen = choose_rows(rows, take, self._random)
            some = {key: tensor[:rows] if take == rows else tensor[chosen] for key, tensor in tensors.items()}
            watched.monitor.count(self._wall_ms(), some, watched.newly_offered())
            watched.looked_at += take
        except Exception as error:  # a tensor that surprises must not end the watch over all others
            watched.failed += take
            if str(error) != watched.last_error:
                watched.last_error = str(error)
                logger.warning("rows could not be counted for drift", exc_info=error)
