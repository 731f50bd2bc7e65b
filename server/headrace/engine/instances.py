"""The instances of one model version: which are idle, run or are lost, and what is made in the place of lost ones.

A model has as many places as it was loaded with instances. One that is lost leaves its place, is closed on its own
thread and made anew in the background, again and again until that works, the pauses between doubling. While no place is
filled, instances of the next backend of the chain stand in; they leave when one of the first backend is back.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import TYPE_CHECKING, Protocol

from headrace.backends.base import InstanceLost
from headrace.engine.probe import Rejected

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from headrace.backends.base import Instance
    from headrace.clock import Clock
    from headrace.engine.worker import Worker
    from headrace.messages import Batch
    from headrace.pipeline.cost import CostModel
    from headrace.telemetry.observer import ModelObserver

logger = logging.getLogger(__name__)


class Supply(Protocol):
    """What makes instances.

    backends: names, of that which serves and of those that may stand in for it, in order. stand_ins: how many instances
    of one of the latter there will be. first_ns, max_ns: the first and the longest pause before an instance is made
    anew; 0: it is not.
    """

    backends: Sequence[str]
    stand_ins: int
    first_ns: int
    max_ns: int

    async def make(self, backend: str, index: int) -> Instance:
        """A new instance that has proved to work. Raises any exception if there is none."""
        ...

    def cost_model(self) -> CostModel:
        """One that knows nothing yet, for a backend that stands in."""
        ...

    def forget(self, backend: str) -> None:
        """Frees what it keeps for further instances of a backend that has stood in."""
        ...


class NoSupply:
    """The `Supply` of a model whose instances are not made again."""

    first_ns = max_ns = stand_ins = 0

    def __init__(self, backend: str) -> None:
        self.backends: Sequence[str] = (backend,)

    async def make(self, backend: str, index: int) -> Instance:
        """See `Supply`."""
        raise NotImplementedError

    def cost_model(self) -> CostModel:
        """See `Supply`."""
        raise NotImplementedError

    def forget(self, backend: str) -> None:
        """See `Supply`."""


class _Place:
    """Where an instance of the first backend belongs.

    since: when it came, ns. failures: losses and vain attempts in a row. tried: whether it was tried to fill the place
    since it is empty. timer: until the next attempt.
    """

    __slots__ = ("failures", "index", "since", "timer", "tried", "worker")

    def __init__(self, index: int, worker: Worker, since: int) -> None:
        self.index = index
        self.worker: Worker | None = worker
        self.since = since
        self.failures = 0
        self.tried = False
        self.timer: asyncio.TimerHandle | None = None


class Instances:
    """All instances of a model version, each behind a `Worker`. On the event loop.

    idle, running: the scheduler itself moves a worker from one to the other, and back by `ended`. cost: what predicts
    how long a batch will run on those that are usable. make_worker: takes an index and an instance. changed: called
    when some can be used that could not before, or hope is gone; not for what `ended` itself brings about. observer: of
    the model, when something is to be told.
    """

    def __init__(
        self,
        name: str,
        instances: Sequence[Instance],
        supply: Supply,
        cost: CostModel,
        clock: Clock,
        make_worker: Callable[[int, Instance], Worker],
        changed: Callable[[], None],
        observer: Callable[[], ModelObserver],
    ) -> None:
        self.cost = cost
        self.idle: list[Worker] = []
        self.running: dict[Worker, Batch] = {}
        self._name = name
        self._supply = supply
        self._own_cost = cost
        self._clock = clock
        self._make_worker = make_worker
        self._changed = changed
        self._observer = observer
        self._loop = asyncio.get_running_loop()
        self._places = [
            _Place(index, self._enter(index, instance, supply.backends[0]), clock())
            for index, instance in enumerate(instances)
        ]
        self._stand_ins: list[Worker] = []
        self._making = 0  # tasks that make stand-ins
        self._tasks: set[asyncio.Task[None]] = set()
        self._why = ""
        self._closed = False

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {backend} {state}" for (backend, state), count in sorted(self.count().items()))
        return f"<Instances {counts}>"

    # --- what there is ------------------------------------------------------------------------------------------------

    @property
    def usable(self) -> int:
        """How many run, or can."""
        return len(self.idle) + sum(not worker.leaving for worker in self.running)

    @property
    def hopeless(self) -> bool:
        """Whether nothing runs, and all that could be done about it has been tried at least once."""
        return not self.usable and not self._making and all(place.tried for place in self._places)

    @property
    def backends(self) -> list[str]:
        """Those of which there is a usable instance, in order."""
        workers = [*self.idle, *(worker for worker in self.running if not worker.leaving)]
        found = {worker.backend for worker in workers}
        return [backend for backend in self._supply.backends if backend in found]

    @property
    def backend(self) -> str:
        """The one that runs it now, or ran it last."""
        return next(iter(self.backends), self._supply.backends[0])

    @property
    def note(self) -> str:
        """What is not as it was when the model was loaded; empty if nothing is."""
        lost = sum(place.worker is None for place in self._places)
        if not lost:
            return ""
        by = ", ".join(self.backends) or "nothing"
        what = f"{lost} of {len(self._places)} instances of {self._supply.backends[0]} lost"
        return f"{what} and being made anew, served by {by}: {self._why}"

    def count(self) -> dict[tuple[str, str], int]:
        """How many there are, by backend and state: idle, running, lost."""
        counts: Counter[tuple[str, str]] = Counter()
        first = self._supply.backends[0]
        counts.update({(first, state): 0 for state in ("idle", "running", "lost")})
        counts.update((worker.backend, "idle") for worker in self.idle)
        counts.update((worker.backend, "running") for worker in self.running)
        counts[first, "lost"] += sum(place.worker is None for place in self._places)
        return dict(counts)

    # --- from the scheduler -------------------------------------------------------------------------------------------

    def ended(self, worker: Worker, error: Exception | None) -> None:
        """A run of a worker, which is not in `running` any more, has ended: it can have another, or leaves."""
        if worker.leaving:
            worker.leave()
        elif isinstance(error, InstanceLost):
            self._lost(worker, error)
        else:
            self.idle.append(worker)

    def close(self) -> None:
        """Frees all; one that runs, when that is done, and one that is being made, when it is there."""
        self._closed = True
        for place in self._places:
            if place.timer is not None:
                place.timer.cancel()
        for worker in (*self.idle, *self.running):
            worker.close()
        self.idle.clear()

    # --- losses -------------------------------------------------------------------------------------------------------

    def _lost(self, worker: Worker, error: InstanceLost) -> None:
        self._why = str(error) or type(error).__name__
        gone = [worker]
        if error.with_others:
            others = [*self.idle, *self.running]
            gone += [other for other in others if other.backend == worker.backend and not other.leaving]
        logger.error(
            "%s: %d instances of %s are lost and will be made anew: %s",
            self._name,
            len(gone),
            worker.backend,
            self._why,
            exc_info=error,
        )
        self._observer().instances_lost(len(gone))
        for one in gone:
            self._remove(one)
        if not self.usable and not self._making:
            self._stand_in(self._supply.backends.index(worker.backend) + 1)

    def _remove(self, worker: Worker) -> None:
        """Takes one out of its place, and has that filled again."""
        self._part(worker)
        if worker in self._stand_ins:
            self._stand_ins.remove(worker)
            return
        for place in self._places:
            if place.worker is worker:
                place.worker = None
                place.tried = not self._supply.max_ns
                now = self._clock()
                if now - place.since >= self._supply.max_ns:  # else it is lost again and again
                    place.failures = 0
                self._try_later(place)

    def _part(self, worker: Worker) -> None:
        """Has one leave: at once, or when it has run."""
        worker.leaving = True
        if worker in self.running:
            return
        if worker in self.idle:
            self.idle.remove(worker)
        worker.leave()

    # --- making anew --------------------------------------------------------------------------------------------------

    def _try_later(self, place: _Place) -> None:
        if self._supply.max_ns and not self._closed:
            pause = min(self._supply.first_ns << min(place.failures, 40), self._supply.max_ns)
            place.failures += 1
            place.timer = self._loop.call_later(pause / 1e9, self._start, self._refill, place)

    def _start(self, work: Callable[[_Place], Coroutine[None, None, None]], place: _Place) -> None:
        place.timer = None
        self._spawn(work(place))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _refill(self, place: _Place) -> None:
        backend = self._supply.backends[0]
        try:
            instance = await self._supply.make(backend, place.index)
        except Exception as error:
            if self._closed:
                return
            self._why = str(error) or repr(error)
            logger.warning("%s: an instance of %s could not be made anew: %s", self._name, backend, self._why)
            place.tried = True
            self._try_later(place)
            if not self.usable and not self._making:
                self._stand_in(1)
            self._changed()
            return
        worker = self._enter(place.index, instance, backend)
        if self._closed:
            self._part(worker)
            return
        place.worker, place.since, place.tried = worker, self._clock(), False
        logger.info("%s: instance %d of %s is back", self._name, place.index, backend)
        for stand_in in self._stand_ins:
            self._part(stand_in)
        self._forget_stand_ins()
        self.cost = self._own_cost
        self._changed()

    def _enter(self, index: int, instance: Instance, backend: str, cost: CostModel | None = None) -> Worker:
        worker = self._make_worker(index, instance)
        worker.backend = backend
        worker.cost = cost or self._own_cost
        self.idle.append(worker)
        return worker

    # --- standing in --------------------------------------------------------------------------------------------------

    def _stand_in(self, after: int) -> None:
        """Has instances made of the first backend that works, from that of this number on."""
        candidates = self._supply.backends[after:]
        if candidates and not self._closed:
            self._making += 1
            self._spawn(self._make_stand_ins(candidates))

    async def _make_stand_ins(self, candidates: Sequence[str]) -> None:
        first = self._supply.backends[0]
        try:
            for backend in candidates:
                if await self._fill_with(backend):
                    return
        finally:
            self._making -= 1
            if not self._closed and not self.usable:
                logger.error("%s: nothing stands in for %s", self._name, first)
                self._changed()

    async def _fill_with(self, backend: str) -> bool:
        """Has instances of a backend stand in. False if there is none."""
        cost = self._supply.cost_model()
        for index in range(self._supply.stand_ins):
            try:
                instance = await self._supply.make(backend, index)
            except Exception as error:
                if self._closed:
                    return True
                why = str(error) or repr(error)
                logger.warning("%s: instance %d of %s cannot stand in: %s", self._name, index, backend, why)
                if index == 0:
                    self._observer().fell_back(backend, error.reason if isinstance(error, Rejected) else "load")
                return index > 0
            worker = self._enter(len(self._places) + index, instance, backend, cost)
            if self._closed or any(place.worker is not None for place in self._places):
                self._part(worker)  # it comes too late
                self._supply.forget(backend)
                return True
            self._stand_ins.append(worker)
            if index == 0:
                self.cost = cost
                first = self._supply.backends[0]
                logger.warning("%s: falls back from %s to %s: %s", self._name, first, backend, self._why)
                self._observer().fell_back(first, "lost")
            self._changed()
        return True

    def _forget_stand_ins(self) -> None:
        for backend in {worker.backend for worker in self._stand_ins}:
            self._supply.forget(backend)
        self._stand_ins.clear()
