"""One instance and the thread that runs its longer batches."""

from __future__ import annotations

import logging
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING

from headrace.backends.base import device_of
from headrace.datatypes import DATATYPES
from headrace.pipeline import bytes_tensor

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence
    from typing import Any

    import numpy as np

    from headrace.backends.base import Instance
    from headrace.clock import Clock
    from headrace.messages import Batch, Buffer, TensorSpec
    from headrace.pipeline.cost import CostModel

    Inputs = Sequence[Sequence[Buffer]]
    Pack = Callable[[Inputs, Sequence[tuple[int, ...]]], Inputs]

logger = logging.getLogger(__name__)

THREAD_NAME = "headrace-instance"
"""What the names of the threads that run models begin with."""


VIEW_BYTES = 32 << 10
"""From here on, a row of an output is not copied out of it: what takes it copies it anyway."""


def as_exception(error: BaseException) -> Exception:
    """What a backend's code has raised. A panic in Rust and SystemExit are no Exception, but end no server either."""
    if isinstance(error, Exception):
        return error
    made = RuntimeError(repr(error))
    made.__cause__ = error
    return made


class OutputRows:
    """One output of a batch, ready to be cut into the requests' rows. Owns its bytes.

    dims: its shape without the batch dimension (all of it for a model without batching).
    """

    __slots__ = ("_bounds", "_data", "_row_size", "_rows", "_source", "dims")

    def __init__(self, array: np.ndarray[Any, Any], spec: TensorSpec, rows: int, *, batched: bool) -> None:
        shape = array.shape
        self.dims: tuple[int, ...] = shape[1:] if batched else shape
        wanted = spec.shape
        if (
            (batched and (not shape or shape[0] != rows))
            or len(self.dims) != len(wanted)
            or any(want >= 0 and got != want for got, want in zip(self.dims, wanted, strict=True))
        ):
            expected = [rows, *wanted] if batched else list(wanted)
            raise ValueError(f"output '{spec.name}' has shape {list(shape)}, its signature says {expected}")
        datatype = DATATYPES[spec.datatype]
        if datatype.itemsize and array.dtype != datatype.numpy:
            raise ValueError(f"output '{spec.name}' is {array.dtype}, its signature says {spec.datatype}")
        self._rows = rows
        self._bounds: list[int] | None = None
        self._row_size = 0
        self._data: bytes
        if datatype.itemsize:
            self._data = array.tobytes()
            self._row_size = len(self._data) // rows
        elif batched:
            pieces = bytes_tensor.encode_rows(array)
            self._data = b"".join(pieces)
            self._bounds = [0]
            for piece in pieces:
                self._bounds.append(self._bounds[-1] + len(piece))
        else:
            self._data = bytes_tensor.encode(array)
            self._row_size = len(self._data)
        self._source: Buffer = memoryview(self._data) if self._row_size >= VIEW_BYTES else self._data

    def cut(self, start: int, stop: int) -> Buffer:
        """The bytes of rows `start` to `stop`."""
        if self._bounds is not None:
            return self._data[self._bounds[start] : self._bounds[stop]]
        if stop - start == self._rows:
            return self._data
        return self._source[start * self._row_size : stop * self._row_size]


class Job:
    """A batch as an instance runs it, and what came of it: `outputs`, or `error`.

    pack: makes of `inputs` and `shapes` what the instance is given, where that is not the requests' own bytes.
    """

    __slots__ = ("batch", "error", "indices", "inputs", "outputs", "pack", "shapes", "specs")

    def __init__(
        self,
        batch: Batch,
        inputs: Sequence[Sequence[Buffer]],
        shapes: Sequence[tuple[int, ...]],
        indices: Sequence[int],
        specs: Sequence[TensorSpec],
        pack: Pack | None = None,
    ) -> None:
        self.batch = batch
        self.inputs = inputs
        self.shapes = shapes
        self.indices = indices
        self.specs = specs
        self.pack = pack
        self.outputs: list[OutputRows] = []
        self.error: Exception | None = None


class Worker:
    """Runs batches on one instance, one at a time: on the calling thread, or on a thread of its own.

    done: called on the event loop with the worker and each job that `start` was given.
    cost, backend, leaving: kept here for `instances.Instances`; what learns from its runs, what has made the instance,
    and whether the run under way is its last.
    """

    cost: CostModel
    backend = ""
    leaving = False

    def __init__(
        self,
        index: int,
        instance: Instance,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        done: Callable[[Worker, Job], None],
        *,
        batched: bool,
    ) -> None:
        self.index = index
        self.instance = instance
        self._loop = loop
        self._clock = clock
        self._done = done
        self._batched = batched
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._thread: Thread | None = None

    def __repr__(self) -> str:
        return f"<Worker {self.index}{', with a thread' if self._thread else ''}>"

    def run(self, job: Job) -> None:
        """Runs a batch here and now. Never raises: see `Job.error`."""
        batch = job.batch
        batch.started = batch.finished = self._clock()
        try:
            inputs = job.inputs
            if job.pack is not None:
                inputs = job.pack(inputs, job.shapes)
                batch.started = self._clock()
            arrays = self.instance.run(inputs, job.shapes, job.indices)
            batch.finished = self._clock()
            rows = batch.rows
            job.outputs = [
                OutputRows(array, spec, rows, batched=self._batched)
                for array, spec in zip(arrays, job.specs, strict=True)
            ]
        except BaseException as error:
            batch.finished = self._clock()
            job.error = as_exception(error)

    def start(self, job: Job) -> None:
        """Runs a batch on the worker's thread; `done` is called on the loop, also if there is no thread to be had."""
        try:
            self._begin()
        except RuntimeError as error:
            job.batch.started = job.batch.finished = self._clock()
            job.error = error
            self._loop.call_soon(self._done, self, job)
        else:
            self._jobs.put(job)

    def close(self) -> None:
        """Ends the thread, and frees the instance once no batch runs on it.

        One on a device is freed on a thread if it has never run: that waits for whatever the device does, and for a
        model that is being loaded there.
        """
        if self._thread is None and device_of(self.instance) is None:
            self._free()
        else:
            self.leave()

    def leave(self) -> None:
        """The same for an instance that may take its time, or be broken: on its thread, whatever comes of it."""
        try:
            self._begin()
        except RuntimeError:  # there is no thread to be had
            self._free()
        else:
            self._jobs.put(None)

    def _begin(self) -> None:
        if self._thread is None:
            thread = Thread(target=self._work, name=f"{THREAD_NAME}-{self.index}", daemon=True)
            thread.start()
            self._thread = thread

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            self.run(job)
            try:
                self._loop.call_soon_threadsafe(self._done, self, job)
            except RuntimeError:  # the loop is closed: the server is gone, and with it whoever waited
                break
        self._free()

    def _free(self) -> None:
        """Closes the instance, whatever comes of it: others are still to be closed, and their callers to be told."""
        try:
            self.instance.close()
        except Exception:
            logger.exception("an instance could not be closed; what it held may not be free")
