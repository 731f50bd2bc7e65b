"""Drift monitoring of what is served: feeds one worker with batches, judges windows, keeps them over restarts.

The request path hands over references and returns (`ModelDrift.batch`); everything else happens on the worker's thread,
or in a task that wakes up every few seconds.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from contextlib import suppress
from itertools import groupby
from mmap import mmap
from threading import Lock
from typing import TYPE_CHECKING, Any, cast

from headrace.clock import monotonic_ns, wall_ms
from headrace.drift.errors import DriftError
from headrace.drift.monitor import Monitor
from headrace.drift.packing import read_bounded, write_atomically
from headrace.drift.reference import REFERENCE_FILE, read_reference
from headrace.drift.report import report
from headrace.drift.sketches import datasketches
from headrace.drift.worker import DriftWorker, Watched
from headrace.engine.drift_rows import LazyRows
from headrace.errors import ConfigError, ModelLoadError, Unimplemented
from headrace.pipeline.cropping import Crop

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from headrace.clock import Clock
    from headrace.drift.report import DriftReport
    from headrace.engine.watching import Watcher
    from headrace.engine.worker import OutputRows
    from headrace.messages import Batch, Buffer, InferRequest, Signature
    from headrace.pipeline.response_cache import Outputs
    from headrace.repository.discovery import Found

logger = logging.getLogger(__name__)

TICK_SECONDS = 5.0
SAVE_SECONDS = 60.0
STOP_SECONDS = 2.0
_MOST_LEFT = 64
"""Versions that were unloaded and not saved, whose windows are kept in memory."""
_TELLING = 1 / 3
"""What metrics are of may take this part of the share: the rest is for rows, and for judging windows."""
LATEST_WINDOWS = 2
"""What metrics are of: the window that is not over, and the one before it."""


class ModelDrift:
    """What is watched of one model version. Told of batches on the event loop.

    inputs, outputs: by the place in the model's signature, the `Watch.key` of each that is watched. latest: the report
    at the last look, None before the first.
    """

    def __init__(self, worker: DriftWorker, monitor: Monitor, signature: Signature, clock: Clock) -> None:
        self.watched = Watched(monitor)
        self.latest: DriftReport | None = None
        self.ended_ms = -1  # the start of the newest window that was over at the last look, since the epoch
        keys = {watch.key for watch in monitor.watches}
        self._inputs = _watched("inputs", signature.inputs, keys)
        self._outputs = _watched("outputs", signature.outputs, keys)
        self._signature = signature
        self._worker = worker
        self._clock = clock

    def __repr__(self) -> str:
        return f"<ModelDrift {self.watched.monitor!r}>"

    def batch(
        self, batch: Batch, inputs: Sequence[Sequence[Buffer]], indices: Sequence[int], outputs: Sequence[OutputRows]
    ) -> None:
        """A batch has run. inputs: as a `Job` has them; indices: of the outputs that were computed.

        Rows of different dimensions are offered one after another: each by itself is a tensor.
        """
        now = self._clock()
        start = at = 0
        batched = self._signature.max_batch > 0
        for _, group in groupby(batch.requests, key=own_shapes):
            requests = list(group)
            counts = [request.template.rows if batched else 1 for request in requests]
            rows, stop = sum(counts), at + len(requests)
            shapes = own_shapes(requests[0])
            tensors: dict[str, Any] = {}
            for index, key in self._inputs:
                dims = shapes[index]
                parts = inputs[index][at:stop]
                if dims is not None and not any(map(in_shared_memory, parts)):
                    tensors[key] = LazyRows(self._signature.inputs[index], parts, counts, dims)
            for index, key in self._outputs:
                if index in indices:
                    at_reply = indices.index(index)
                    output = outputs[at_reply]
                    part, own = output.cut(start, start + rows), self._own_dims(requests[0], at_reply, output.dims)
                    tensors[key] = LazyRows(self._signature.outputs[index], [part], [rows], output.dims, own)
            if tensors:
                self._worker.offer(self.watched, tensors, rows, now)
            start, at = start + rows, stop

    def cached(self, request: InferRequest, parts: Sequence[Buffer], outputs: Outputs) -> None:
        """See `watching.Watcher`: it flowed by as any other, though nothing ran."""
        now, template = self._clock(), request.template
        tensors: dict[str, Any] = {}
        batched = self._signature.max_batch > 0
        rows = template.rows if batched else 1
        if self._worker.skips(self.watched, rows, now):
            return
        for index, key in self._inputs:
            part = parts[index]
            if part and not in_shared_memory(part):  # without octets it was left out
                tensors[key] = LazyRows(self._signature.inputs[index], (part,), (rows,), template.shapes[index])
        for index, key in self._outputs:
            if index in template.outputs:
                at = template.outputs.index(index)
                dims = outputs.shapes[at][1:] if batched else outputs.shapes[at]
                tensors[key] = LazyRows(self._signature.outputs[index], (outputs.raw[at],), (rows,), dims)
        if tensors:
            self._worker.offer(self.watched, tensors, rows, now)

    def _own_dims(self, request: InferRequest, place: int, dims: tuple[int, ...]) -> tuple[int, ...]:
        """Of a row of the output in this place of a reply, what is no padding."""
        writer = request.template.reply
        if not isinstance(writer, Crop):
            return dims
        if not self._signature.max_batch:
            return writer.own_shape(place, dims)
        return writer.own_shape(place, (request.template.rows, *dims))[1:]

    def close(self) -> None:
        """See `watching.Watcher`: its counts are the worker's to keep."""


class DriftMonitoring:
    """All monitors of a server. share: of a core, for all of them. directory: where windows are kept, None: nowhere."""

    def __init__(
        self,
        share: float,
        directory: Path | None,
        clock: Clock = monotonic_ns,
        cpu_clock: Clock = time.thread_time_ns,
    ) -> None:
        self.models: dict[tuple[str, str], ModelDrift] = {}
        self._directory = directory
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._share = share
        self._worker = DriftWorker(share, clock, cpu_clock, wall_ms)
        self._left: dict[tuple[str, str], ModelDrift] = {}
        self._task: asyncio.Task[None] | None = None
        self._saved_at = 0
        self._writing = Lock()
        self._telling_ns = 0  # processor time of the worker's, in the last look at all models
        self._tell_at = 0  # when that is paid for

    def __repr__(self) -> str:
        return f"<DriftMonitoring of {len(self.models)} model versions, {self._worker!r}>"

    def open(self, found: Found, signature: Signature) -> ModelDrift | None:
        """A monitor for a version, if its model.toml asks for one. Reads files. Raises ModelLoadError."""
        config = found.config.drift
        if config is None or not (config.inputs or config.outputs):
            return None
        layouts = {name: said.format for name, said in found.config.inputs.items() if said.format is not None}
        file = found.path / REFERENCE_FILE
        try:
            watches = config.watches(signature, layouts)
        except ConfigError as error:
            raise ModelLoadError(f"{found.config_file}: {error}") from error
        try:
            datasketches()  # now, and not with the first rows, of which no request would tell
            reference = read_reference(file) if file.exists() else None
        except (DriftError, OSError) as error:
            raise ModelLoadError(str(error)) from error
        try:
            monitor = Monitor(
                found.name, str(found.version), watches, config.alarms, secrets.token_bytes(16), reference
            )
        except DriftError as error:
            raise ModelLoadError(f"{file}: {error}") from error
        drift = ModelDrift(self._worker, monitor, signature, self._clock)
        state = self._state_file(found.name, str(found.version))
        if state is not None:
            try:
                monitor.restore(read_bounded(state))
                drift.latest = report(monitor, wall_ms(), LATEST_WINDOWS)  # an alarm that is on is on at once
            except FileNotFoundError:
                pass
            except (DriftError, OSError) as error:
                logger.warning("model %s version %d: windows of drift begin anew: %s", found.name, found.version, error)
        return drift

    def add(self, name: str, version: str, watcher: Watcher | None) -> None:
        """The version serves; what was counted of one that is replaced, or left a while ago, goes on."""
        before = self.models.pop((name, version), None) or self._left.pop((name, version), None)
        if watcher is None:
            return
        drift = cast("ModelDrift", watcher)
        self.models[name, version] = drift
        if self._task is None:
            self._worker.start()
            self._task = asyncio.get_running_loop().create_task(self._watch())
        if before is not None:
            self._worker.submit(_carry_over, before, drift)  # so after its rows, and before those that come

    def forget(self, name: str, version: str) -> None:
        """The version has left. It may come back; until it is saved, or others have left, its windows are kept."""
        drift = self.models.pop((name, version), None)
        if drift is not None:
            self._left[name, version] = drift
        while len(self._left) > _MOST_LEFT:
            del self._left[next(iter(self._left))]

    async def report(self, name: str, version: str) -> DriftReport:
        """What is known of a version's drift now. Raises Unimplemented for one that is not watched."""
        drift = self.models.get((name, version))
        if drift is None:
            raise Unimplemented(f"nothing of model '{name}' is watched for drift: see [drift] of model.toml")
        return await asyncio.wrap_future(self._worker.submit(report, drift.watched.monitor, wall_ms()))

    async def close(self) -> None:
        """Keeps the windows and ends the thread."""
        if self._task is None:
            return
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        await self._save()
        await asyncio.to_thread(self._worker.stop, STOP_SECONDS)
        self._task = None

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            try:
                await self.look()
            except Exception:
                logger.exception("drift could not be judged; the next look is in %g s", TICK_SECONDS)

    async def look(self) -> None:
        """Judges the windows that are over, and saves what has news; every `SAVE_SECONDS`, everything."""
        look, submit = self._look, self._worker.submit
        served = list(self.models.values())
        now = self._clock()
        tell = now >= self._tell_at
        if tell:
            self._telling_ns = 0
        news = [drift for drift in served if await asyncio.wrap_future(submit(look, drift, tell))]
        if tell:
            self._tell_at = now + int(self._telling_ns / (self._share * _TELLING))
        if self._clock() - self._saved_at > SAVE_SECONDS * 1e9:
            await self._save()
        elif news:
            await self._save(news)

    def _look(self, drift: ModelDrift, tell: bool) -> bool:
        """Whether a window is over, or an alarm has changed, since the last look. On the worker's thread.

        tell: whether the report is due; it is made anyway where an alarm has changed.
        """
        monitor = drift.watched.monitor
        events = self._worker.tick(drift.watched)
        for event in events:
            fields = {"model": monitor.record.model, "version": monitor.record.version, **event.fields}
            if event.state == "alarm":
                logger.warning("a feature has drifted", extra=fields)
            else:
                logger.info("a feature is as it was", extra=fields)
        now = wall_ms()
        if tell or events or drift.latest is None:
            begun = self._cpu_clock()
            drift.latest = report(monitor, now, LATEST_WINDOWS)
            self._telling_ns += self._cpu_clock() - begun
        ended, before = max(monitor.record.ended(now), default=-1), drift.ended_ms
        drift.ended_ms = ended
        return bool(events) or ended > before

    async def _save(self, only: Sequence[ModelDrift] | None = None) -> None:
        """Of these, or of all."""
        if only is None:
            self._saved_at = self._clock()
        for (name, version), drift in [*self._left.items(), *self.models.items()]:
            file = self._state_file(name, version)
            if file is None or not (only is None or drift in only):
                continue
            try:
                data = await asyncio.wrap_future(self._worker.submit(drift.watched.monitor.pack))
                await asyncio.to_thread(self._write, file, data)
                if self._left.get((name, version)) is drift:
                    del self._left[name, version]
            except OSError as error:
                logger.warning("windows of drift cannot be kept in %s: %s", file, error.strerror or error)

    def _write(self, file: Path, data: bytes) -> None:
        with self._writing:  # who was to wait for one that is under way may have been cancelled, at the end
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, data)

    def _state_file(self, name: str, version: str) -> Path | None:
        return None if self._directory is None else self._directory / f"{name}.{version}.drift"


def _carry_over(before: ModelDrift, drift: ModelDrift) -> None:
    """On the worker's thread: windows and alarms of a monitor go on in the one that takes its place, if it fits."""
    monitor = drift.watched.monitor
    try:
        monitor.restore(before.watched.monitor.pack())
        drift.latest = report(monitor, wall_ms(), LATEST_WINDOWS)
    except DriftError as error:
        record = monitor.record
        logger.warning("model %s version %s: windows of drift begin anew: %s", record.model, record.version, error)
    except Exception:
        logger.exception("windows of drift could not be carried over to a model that was loaded again")


def in_shared_memory(part: Buffer) -> bool:
    """Whether a client may change it, or take it away, before anybody looks: then it is not looked at."""
    return type(part) is memoryview and isinstance(part.obj, mmap)


def own_shapes(request: Any) -> tuple[tuple[int, ...] | None, ...]:  # noqa: ANN401 - an InferRequest
    """Of each input the dimensions of the request's rows, before padding; None: it was left out."""
    template = request.template
    return template.shapes if template.fit is None else template.fit.shapes  # type: ignore[no-any-return]


def _watched(side: str, specs: Sequence[Any], keys: set[str]) -> list[tuple[int, str]]:
    return [(at, f"{side}.{spec.name}") for at, spec in enumerate(specs) if f"{side}.{spec.name}" in keys]
