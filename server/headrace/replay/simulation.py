"""The recorded requests, through a real scheduler, on instances that take as long as recorded ones did.

The event loop's time is virtual: it jumps to the next thing that happens. Requests enter the queue when they did; what
runs is drawn from the recorded batches of as many rows (or, where there are few, from all, in proportion to what the
cost model expects) that ran at about that time, for a machine that is slow now is slow in a moment, too; together with
what came before it, packing and the change of threads, and behind it, the writing of replies. A batch that runs on the
event loop keeps it from everything else meanwhile, as it does in the server.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.engine.policies import cost_model, model_view
from headrace.engine.scheduler import Scheduler
from headrace.engine.turn import Turn
from headrace.engine.worker import Worker
from headrace.errors import reason_of
from headrace.messages import InferRequest, Signature, TensorSpec, Untraced
from headrace.pipeline.cost import CostModel
from headrace.repository.model_config import ModelConfig
from headrace.telemetry.recording import NOT_QUEUED
from headrace.testing.loop import VirtualTimeLoop
from headrace.testing.observer import RecordingObserver

if TYPE_CHECKING:
    from collections.abc import Hashable

    from headrace.clock import Clock
    from headrace.engine.worker import Job
    from headrace.messages import Buffer, Cancellable, Owner, QueuePolicy
    from headrace.telemetry.recording import Recording

    Array = np.ndarray[Any, Any]

ENOUGH = 20
"""Recorded batches of a size from which its times are drawn from them alone."""

NEAR = 8
"""Of those, how many that began at about the same time a draw is among."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """latency_ns: INT64, of each request that was answered. refused: requests by the reason why they were not.

    batches, rows: that ran. seconds: from the first request to the last reply.
    """

    latency_ns: Array
    refused: dict[str, int]
    batches: int
    rows: int
    seconds: float

    def percentile(self, percent: float) -> float:
        """Of the latency, in ms; NaN if no request was answered."""
        return float(np.percentile(self.latency_ns, percent)) / 1e6 if len(self.latency_ns) else float("nan")


def recorded(recording: Recording) -> Outcome:
    """What did happen."""
    ended, counts = np.unique(recording.requests["ended"], return_counts=True)
    refused = {str(why): int(count) for why, count in zip(ended, counts, strict=True) if why}
    batches = recording.batches
    span = int(batches["encoded"].max()) - int(recording.requests["received"].min())
    return Outcome(recording.latency_ns, refused, len(batches["rows"]), int(batches["rows"].sum()), span / 1e9)


def replay(recording: Recording, config: ModelConfig, seed: int = 0) -> Outcome:
    """What would have happened with these settings of the model. seed: of the times that are drawn."""
    loop = VirtualTimeLoop(now=int(recording.requests["decoded"].min()) - 1)
    try:
        return loop.run_until_complete(_Simulation(recording, config, seed, loop).run())
    finally:
        loop.close()


class Times:
    """How long batches take, by the recording. max_rows: of any that will run."""

    def __init__(self, recording: Recording, max_rows: int, rng: np.random.Generator) -> None:
        batches = recording.batches
        self._cost = CostModel(max(max_rows, int(batches["rows"].max())))
        self._rng = rng
        self._rows = batches["rows"]
        self._before = np.maximum(batches["started"] - batches["batched"], 0)
        self._run = np.maximum(batches["finished"] - batches["started"], 1)
        self._after = np.maximum(batches["encoded"] - batches["finished"], 0)
        for rows, run in zip(batches["rows"].tolist(), self._run.tolist(), strict=True):
            self._cost.observe(rows, run)
        order = np.argsort(batches["batched"], kind="stable")
        self._all = order, batches["batched"][order]
        self._of: dict[int, tuple[Array, Array]] = {}
        for rows in np.unique(self._rows):
            of = order[self._rows[order] == rows]
            if len(of) >= ENOUGH:
                self._of[int(rows)] = of, batches["batched"][of]

    def draw(self, rows: int, now: int) -> tuple[int, int, int]:
        """Nanoseconds before, in and behind the run of a batch of so many rows that is formed now."""
        of = self._of.get(rows)
        if of is not None:
            at = self._near(of, now)
            return int(self._before[at]), int(self._run[at]), int(self._after[at])
        at = self._near(self._all, now)
        factor = self._cost.mean(rows) / max(self._cost.mean(int(self._rows[at])), 1)
        return int(self._before[at]), max(round(self._run[at] * factor), 1), int(self._after[at])

    def _near(self, of: tuple[Array, Array], now: int) -> int:
        """One of the batches that were formed at about that time. of: batches, and when they were, ascending."""
        batches, moments = of
        first = max(min(int(moments.searchsorted(now)) - NEAR // 2, len(batches) - NEAR), 0)
        return int(batches[first + self._rng.integers(min(NEAR, len(batches)))])


@dataclass(slots=True)
class _Template:
    """The `messages.Template` of requests of one look."""

    rows: int
    key: Hashable
    priority: int
    policy: QueuePolicy
    timeout_ns: int
    owner: Owner
    shapes: tuple[tuple[int, ...], ...] = ((1,),)
    outputs: tuple[int, ...] = (0,)
    timing: bool = False
    final: bool = False
    whole: None = None
    fit: None = None
    sequence: None = None

    @property
    def reply(self) -> _Nothing:
        """What replies are made of: nothing."""
        return _Nothing()


class _Nothing:
    """A `messages.ReplyWriter` whose replies are empty."""

    def encode(self, *_: object) -> bytes:
        return b""

    def opening(self, _: object) -> None:
        return None


@dataclass(slots=True)
class _Sink(Untraced):
    """Notes when a request is answered. received: when it came."""

    simulation: _Simulation
    received: int
    under_way: Cancellable | None = None

    def reply(self, _: Any) -> None:  # noqa: ANN401
        self.simulation.latency.append(self.simulation.clock() + self.simulation.behind - self.received)
        self.simulation.answered()

    def fail(self, error: BaseException) -> None:
        reason = reason_of(error)
        self.simulation.refused[reason] = self.simulation.refused.get(reason, 0) + 1
        self.simulation.answered()


class _Rows:
    """An output of no bytes."""

    dims = (1,)

    def cut(self, start: int, stop: int) -> Buffer:
        return bytes(4 * (stop - start))


@dataclass(slots=True)
class _Model:
    """A `LoadedModel` that is never asked to run."""

    signature: Signature
    platform: str = "replay"
    executors_per_instance: int = 1
    inline: bool = True


class _NoInstance:
    def close(self) -> None:
        """There is nothing to free."""


@dataclass(slots=True)
class _Simulation:
    recording: Recording
    config: ModelConfig
    seed: int
    loop: VirtualTimeLoop
    latency: list[int] = field(default_factory=list)
    refused: dict[str, int] = field(default_factory=dict)
    behind: int = 0
    left: int = 0
    done: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def clock(self) -> Clock:
        return self.loop.clock

    async def run(self) -> Outcome:
        spec = TensorSpec("x", "FP32", (1,))
        signature = Signature((spec,), (spec,), self.config.max_batch or 0)
        cost = cost_model(self.config, signature, self.recording.inline_below_us * 1000)
        batches = self.recording.batches
        columns = (batches[name][::-1] for name in ("rows", "started", "finished"))
        for rows, started, finished in zip(*columns, strict=True):  # the last first: it shall begin as it did then
            if rows <= max(signature.max_batch, 1):
                cost.observe(int(rows), int(finished - started))
        times = Times(self.recording, signature.max_batch, np.random.default_rng(self.seed))
        observer = RecordingObserver()
        scheduler = Scheduler(
            self.recording.model,
            self.recording.version,
            _Model(signature),  # type: ignore[arg-type]
            self.config,
            [_NoInstance() for _ in range(self.config.instances)],  # type: ignore[misc]
            cost,
            self.clock,
            Turn(self.loop),
            _worker_of(self, times),
        )
        scheduler.observer = observer
        self.left = len(self.recording)
        self._arrive(scheduler)
        await self.done.wait()
        scheduler.close()
        seconds = (self.clock() - int(self.recording.requests["received"].min())) / 1e9
        return Outcome(np.array(self.latency, np.int64), self.refused, len(observer.batches), observer.rows, seconds)

    def answered(self) -> None:
        """One more was."""
        self.left -= 1
        if not self.left:
            self.done.set()

    def _arrive(self, scheduler: Scheduler) -> None:
        """Has each request enter the queue at its moment; those of one moment and look at once, as in the server."""
        columns = self.recording.requests
        for reason in columns["ended"][np.isin(columns["ended"], NOT_QUEUED)].tolist():
            self.refused[reason] = self.refused.get(reason, 0) + 1
            self.answered()
        order = np.argsort(columns["decoded"], kind="stable")
        order = order[~np.isin(columns["ended"][order], NOT_QUEUED)]
        served = ModelConfig.model_validate(dict(self.recording.settings))
        before = model_view(scheduler.name, scheduler.version, scheduler.signature, served, scheduler, {})
        looks: dict[tuple[int, ...], _Template] = {}
        requests = []
        for at in order.tolist():
            look = tuple(int(columns[name][at]) for name in ("rows", "shape", "priority", "timeout"))
            template = looks.get(look)
            if template is None:
                rows, shape, priority, timeout = look
                if timeout == before.policy_of(priority).timeout_ns:  # not its own, but what the settings said
                    timeout = 0
                priority = priority if priority < self.config.priority_levels else self.config.default_level - 1
                policy = scheduler.view.policy_of(priority)
                template = looks[look] = _Template(rows, shape, priority, policy, policy.limit_ns(timeout), scheduler)
            received, due = int(columns["received"][at]), int(columns["due"][at])
            request = InferRequest(
                template,  # type: ignore[arg-type]
                [bytes(4 * template.rows)],
                int(columns["row_bytes"][at]) * template.rows,
                _Sink(self, received),
                b"",
                received,
                due,
            )
            requests.append((int(columns["decoded"][at]), template, request))
        for (moment, _), group in groupby(requests, key=lambda each: (each[0], id(each[1]))):
            self.loop.call_at(moment / 1e9, scheduler.submit, [request for _, _, request in group])


def _worker_of(simulation: _Simulation, times: Times) -> type[Worker]:
    """Workers whose batches take the times that are drawn."""

    class ReplayWorker(Worker):
        _under_way: tuple[Job, int] | None = None

        def run(self, job: Job) -> None:
            """On the event loop, which stands still meanwhile."""
            before, run, after = times.draw(job.batch.rows, self._clock())
            simulation.loop.clock.advance(before)
            job.batch.started = self._clock()
            simulation.loop.clock.advance(run)
            self._finish(job)
            simulation.loop.clock.advance(after)

        def start(self, job: Job) -> None:
            """As if on a thread."""
            before, run, after = times.draw(job.batch.rows, self._clock())
            job.batch.started = self._clock() + before
            self._under_way = job, after
            self._loop.call_later((before + run) / 1e9, self._over)

        def close(self) -> None:
            """There is no thread."""

        leave = close

        def _over(self) -> None:
            assert self._under_way is not None
            (job, simulation.behind), self._under_way = self._under_way, None
            self._finish(job)
            try:
                self._done(self, job)
            finally:
                simulation.behind = 0

        def _finish(self, job: Job) -> None:
            job.batch.finished = self._clock()
            job.outputs = [_Rows()]  # type: ignore[list-item]

    return ReplayWorker
