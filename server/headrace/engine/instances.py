"""The instances of one model version on the event loop: carries out what `roster` decides about them."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import TYPE_CHECKING, Protocol

from headrace.backends.base import InstanceLost, device_of
from headrace.engine.probe import Rejected
from headrace.engine.roster import FellBack, Forget, Make, Part, Roster
from headrace.pipeline.admission import wait_ns
from headrace.telemetry.logs import of_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from headrace.backends.base import Instance
    from headrace.clock import Clock
    from headrace.engine.roster import Command
    from headrace.engine.worker import Worker
    from headrace.messages import Batch
    from headrace.pipeline.batching import BatchLimits
    from headrace.pipeline.cost import CostModel
    from headrace.pipeline.queue import RequestQueue
    from headrace.telemetry.observer import ModelObserver

logger = logging.getLogger(__name__)


class Supply(Protocol):
    """What makes instances.

    backends: names, of that which serves and of those that may stand in for it, in order. first_ns, max_ns: the first
    and the longest pause before an instance is made anew; max_ns 0: it is not.
    """

    backends: Sequence[str]
    first_ns: int
    max_ns: int

    async def make(self, backend: str, index: int, *, hurry: bool) -> Instance:
        """A new instance that has proved to work. Raises any exception if there is none.

        hurry: nothing runs the model until it is there; else it may leave others the processor in between.
        """
        ...

    def total(self, backend: str) -> int:
        """How many instances of a backend there should be, once it has made one."""
        ...

    def cost_model(self, backend: str) -> CostModel:
        """One that knows nothing yet, for a backend that has made an instance."""
        ...

    def forget(self, backend: str) -> None:
        """Frees what it keeps for further instances of a backend."""
        ...


class NoSupply:
    """The `Supply` of a model whose instances are not made again."""

    first_ns = max_ns = 0

    def __init__(self, backend: str) -> None:
        self.backends: Sequence[str] = (backend,)

    async def make(self, backend: str, index: int, *, hurry: bool) -> Instance:
        """See `Supply`."""
        raise NotImplementedError

    def total(self, backend: str) -> int:
        """See `Supply`."""
        raise NotImplementedError

    def cost_model(self, backend: str) -> CostModel:
        """See `Supply`."""
        raise NotImplementedError

    def forget(self, backend: str) -> None:
        """See `Supply`."""


class Instances:
    """All instances of a model version, each behind a `Worker`.

    idle, running: the scheduler itself moves a worker from one to the other, and back by `ended`. cost: what predicts
    how long a batch will run on those that are usable. make_worker: takes an index and an instance. changed: called
    when some can be used that could not before, or hope is gone; not for what `ended` itself brings about. observer: of
    the model, when something is to be told.
    """

    def __init__(
        self,
        name: str,
        version: str,
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
        self._name = f"model {name} version {version}"
        self._logger = logging.LoggerAdapter(logger, of_model(name, version))
        self._supply = supply
        self._costs = {supply.backends[0]: cost}
        self._clock = clock
        self._make_worker = make_worker
        self._changed = changed
        self._observer = observer
        self._loop = asyncio.get_running_loop()
        self._roster: Roster[Worker] = Roster(supply.backends, supply.first_ns, supply.max_ns)
        self._timers: set[asyncio.TimerHandle] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._indices = len(instances)
        self._closed = False
        first = supply.backends[0]
        self._roster.begin([self._enter(index, one, first) for index, one in enumerate(instances)], clock())

    def __repr__(self) -> str:
        return f"<Instances {len(self.idle)} idle, {len(self.running)} running, {self._roster!r}>"

    # --- what there is ------------------------------------------------------------------------------------------------

    def wait_ns(self, queue: RequestQueue, limits: BatchLimits, alone_ns: int) -> int:
        """Predicted time until a request that arrives now would run, behind all that waits; 0: at once.

        alone_ns: of what is run again one by one, before all else.
        """
        ahead, rows = queue.rows // limits.max_rows, limits.max_rows
        if limits.policy == "single" and queue.requests:
            ahead, rows = queue.requests, max(queue.rows // queue.requests, 1)
        usable = max(self.usable, 1)
        return alone_ns // usable + wait_ns(ahead, self._clock(), rows, usable, self.running.values(), self.cost)

    @property
    def usable(self) -> int:
        """How many run, or can."""
        return self._roster.usable

    @property
    def hopeless(self) -> bool:
        """Whether nothing runs, and all that could be done about it has been tried at least once."""
        return self._roster.hopeless

    @property
    def backend(self) -> str:
        """The one that runs the model now, or is to run it again."""
        return next(iter(self._roster.serving), self._supply.backends[0])

    @property
    def note(self) -> str:
        """What is not as it was when the model was loaded; empty if nothing is."""
        return self._roster.note

    def count(self) -> dict[tuple[str, str], int]:
        """How many there are, by backend and state: idle, running, lost."""
        first = self._supply.backends[0]
        counts: Counter[tuple[str, str]] = Counter()
        counts.update({(first, "idle"): 0, (first, "running"): 0, (first, "lost"): self._roster.lost})
        counts.update((worker.backend, "idle") for worker in self.idle)
        counts.update((worker.backend, "running") for worker in self.running)
        return dict(counts)

    # --- from the scheduler -------------------------------------------------------------------------------------------

    def ended(self, worker: Worker, error: Exception | None) -> None:
        """A run of a worker, which is not in `running` any more, has ended: it can have another, or leaves."""
        if worker not in self._roster:
            worker.leave()
        elif isinstance(error, InstanceLost):
            self._lost(worker, error)
        else:
            self.idle.append(worker)

    def close(self) -> None:
        """Frees all; one that runs, when that is done, and one that is being made, when it is there."""
        self._closed = True
        for timer in self._timers:
            timer.cancel()
        for worker in (*self.idle, *self.running):
            worker.close()
        self.idle.clear()
        for backend in self._supply.backends:
            self._supply.forget(backend)

    # --- what the roster decides --------------------------------------------------------------------------------------

    def _lost(self, worker: Worker, error: InstanceLost) -> None:
        lost = [worker]
        if error.with_others:
            device = device_of(worker.instance)
            lost = [other for other in self._roster.all_of(worker) if device_of(other.instance) == device]
        why = str(error) or type(error).__name__
        said = "%s: %d instances of %s are lost: %s"
        self._logger.error(said, self._name, len(lost), worker.backend, why, exc_info=error)
        self._observer().instances_lost(len(lost))
        commands = self._roster.gone(lost, why, self._clock())
        for one in lost:
            self._part(one)
        self._obey(commands)
        self.cost = self._costs[self.backend]

    def _obey(self, commands: Iterable[Command[Worker]]) -> None:
        for command in commands:
            match command:
                case Make():
                    self._make_later(command)
                case Part(worker):
                    self._part(worker)
                case Forget(backend):
                    self._costs.pop(backend, None)
                    self._supply.forget(backend)
                case FellBack(backend, to, reason):
                    if to:
                        self._logger.warning("%s: falls back from %s to %s: %s", self._name, backend, to, reason)
                    else:
                        self._logger.error("%s: nothing is left to stand in for %s", self._name, backend)
                    self._observer().fell_back(backend, to, reason)

    def _part(self, worker: Worker) -> None:
        """Has one leave: at once, or when it has run."""
        worker.leaving = True
        if worker in self.running:
            return
        if worker in self.idle:
            self.idle.remove(worker)
        worker.leave()

    def _enter(self, index: int, instance: Instance, backend: str) -> Worker:
        worker = self._make_worker(index, instance)
        worker.backend = backend
        worker.cost = self._costs[backend]
        self.idle.append(worker)
        return worker

    # --- making -------------------------------------------------------------------------------------------------------

    def _make_later(self, make: Make) -> None:
        if self._closed:
            return

        def begin() -> None:
            self._timers.discard(timer)
            task = self._loop.create_task(self._make(make))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        timer = self._loop.call_later(max(make.at - self._clock(), 0) / 1e9, begin)
        self._timers.add(timer)

    async def _make(self, make: Make) -> None:
        backend = make.backend
        try:
            instance = await self._supply.make(backend, make.index, hurry=not self.usable)
        except Exception as error:
            if self._closed:
                return
            why = str(error) or repr(error)
            reason = error.reason if isinstance(error, Rejected) else "load"
            self._logger.warning("%s: instance %d of %s could not be made: %s", self._name, make.index, backend, why)
            commands = self._roster.failed(make, why, reason, self._clock())
        else:
            if self._closed:
                self._make_worker(make.index, instance).leave()
                return
            if backend not in self._costs:
                self._costs[backend] = self._supply.cost_model(backend)
            worker = self._enter(self._index_of(make), instance, backend)
            self._logger.info("%s: instance %d of %s serves", self._name, make.index, backend)
            commands = self._roster.made(make, worker, self._supply.total(backend), self._clock())
        self._obey(commands)
        self.cost = self._costs[self.backend]
        self._changed()

    def _index_of(self, make: Make) -> int:
        """What metrics call it: stand-ins count on behind the places."""
        return make.index + (0 if make.backend == self._supply.backends[0] else self._indices)
