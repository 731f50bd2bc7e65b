"""One batch at a time through an engine: the instance that the server's engine runs.

Where every dimension but the batch is fixed, the way of a batch to the device and through the engine is recorded as a
CUDA graph for each bucket, when the model is loaded: a run is then one launch, and copies back of what is asked for.
A batch that does not fill its bucket is padded with zeros, unless it was measured that running it as it is costs less.
Everything else is run as it is. All of it shares the lane's buffers and one block of memory for activations, for only
one batch is on its way at a time; further batches in flight are other executors'.
"""

from __future__ import annotations

import logging
import math
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headrace.backends.base import InstanceLost
from headrace.backends.device import DeviceError
from headrace.backends.lane_steps import NO_STEPS
from headrace.backends.staging import Lane
from headrace.backends.tensorrt.engine import Context, nbytes, rows_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

    from headrace.backends.device import Graph, Stream
    from headrace.backends.lane_steps import LaneSteps
    from headrace.backends.tensorrt.engine import Engine, Face
    from headrace.backends.tensorrt.layout import Bucket, Layout
    from headrace.backends.tensorrt.profiles import Shape
    from headrace.messages import Buffer

log = logging.getLogger(__name__)

TRIALS = 5
"""Runs of each way that are timed; the quickest counts, for what else runs on the device only ever delays one."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """A bucket's way as a graph. pad_from: rows from which a batch takes it. context: what the graph works in."""

    bucket: Bucket
    graph: Graph
    context: Context
    pad_from: int


@dataclass(frozen=True, slots=True)
class Way:
    """How a batch of certain shapes runs: as `recorded`, else as it is by a profile.

    padded: shapes of the inputs as they run. laid: bytes of each input, its rows' and padded. results: shape and bytes
    of each output's rows, if that is known beforehand.
    """

    recorded: Recorded | None
    profile: int
    padded: list[Shape]
    laid: list[tuple[int, int]]
    results: list[tuple[Shape, int]]


class Executor:
    """An `Instance`. graphs: whether to record them. steps, busy_wait: of its lane.

    device: that it is on. nbytes: of its memory that this takes, beside the engine's; 0 when closed.
    Raises ModelLoadError, `InstanceLost`.
    """

    def __init__(
        self,
        engine: Engine,
        face: Face,
        layout: Layout,
        *,
        graphs: bool,
        steps: LaneSteps = NO_STEPS,
        busy_wait: bool = False,
    ) -> None:
        self.device = engine.device
        self.nbytes = 0
        self._engine = engine
        self._face = face
        self._layout = layout
        self._lead = 1 if layout.signature.max_batch else 0
        self._contexts: dict[int, Context] = {}
        self._recorded: list[Recorded | None] = [None] * len(layout.buckets)
        self._ways: dict[tuple[Shape, ...], Way] = {}
        self._specs = layout.signature.outputs
        with ExitStack() as opened:
            self._lane = Lane(engine.device, layout.inputs, layout.outputs, steps, busy_wait=busy_wait)
            opened.callback(self._lane.close)
            self._scratch = engine.device.allocate(face.scratch)
            opened.callback(self._scratch.close)
            opened.callback(self._let_go)  # before the memory goes that the contexts work in
            self._set_up(graphs)
            self._opened = opened.pop_all()
        self.nbytes = sum(layout.inputs) + sum(layout.outputs) + self._scratch.nbytes

    def __repr__(self) -> str:
        recorded = sum(one is not None for one in self._recorded)
        buckets = f"{recorded} of {len(self._recorded)} buckets recorded"
        return f"<Executor of {self._engine.label}, {buckets}, {len(self._ways)} ways known>"

    def run(
        self, inputs: Sequence[Sequence[Buffer]], shapes: Sequence[Shape], outputs: Sequence[int]
    ) -> list[np.ndarray[Any, Any]]:
        """See `backends.base.Instance`."""
        lane = self._lane
        lane.device.use()
        try:
            results = self._put(inputs, shapes)
            for index in outputs:
                lane.download(index, results[index][1])
            lane.stream.synchronize()
        except InstanceLost:
            raise
        except Exception:
            lane.stream.synchronize()  # nothing of it may be under way when the next is laid; tells a lost device too
            raise
        return [lane.result(index, self._specs[index], results[index][0]) for index in outputs]

    def close(self) -> None:
        """See `backends.base.Instance`."""
        with suppress(InstanceLost):
            self._lane.device.use()
        self._opened.close()
        self.nbytes = 0

    # --- a run --------------------------------------------------------------------------------------------------------

    def _put(self, inputs: Sequence[Sequence[Buffer]], shapes: Sequence[Shape]) -> list[tuple[Shape, int]]:
        """Puts a batch and its run into the stream. Returns shape and bytes of each output's rows."""
        key = tuple(shapes)
        way = self._ways.get(key)
        if way is None:
            way = self._find_way(shapes)
            if self._layout.buckets:  # then there are no more of them than rows in a batch
                self._ways[key] = way
        for index, (rows, padded) in enumerate(way.laid):
            self._lane.lay(index, inputs[index], rows, padded)
        if way.recorded is not None:
            way.recorded.graph.launch(self._lane.stream)
            return way.results
        return self._results(self._enqueue(self._contexts[way.profile], way.padded), self._rows(shapes))

    def _find_way(self, shapes: Sequence[Shape]) -> Way:
        """Raises ValueError for shapes that cannot run."""
        rows = self._check(shapes)
        recorded = None
        if self._layout.buckets:
            at = self._layout.bucket_at(rows)
            profile: int | None = self._layout.buckets[at].profile
            recorded = self._recorded[at]
            if recorded is not None and rows < recorded.pad_from:
                recorded = None
        else:
            profile = self._face.profile_for(shapes, batched=bool(self._lead))
        if profile is None:
            raise ValueError(f"inputs have shapes {list(map(list, shapes))}, for which the engine has no profile")
        padded = self._padded(profile, shapes) if recorded is None else list(recorded.bucket.inputs)
        inputs = self._layout.signature.inputs
        laid = list(zip(map(nbytes, inputs, shapes), map(nbytes, inputs, padded), strict=True))
        results = [] if recorded is None else self._results(recorded.bucket.outputs, rows)
        return Way(recorded, profile, padded, laid, results)

    def _results(self, shapes: Sequence[Shape], rows: int) -> list[tuple[Shape, int]]:
        """What of outputs that have these shapes is the rows'."""
        if self._lead:
            shapes = [(rows, *shape[1:]) for shape in shapes]
        return [(shape, nbytes(spec, shape)) for spec, shape in zip(self._specs, shapes, strict=True)]

    def _rows(self, shapes: Sequence[Shape]) -> int:
        return shapes[0][0] if self._lead else 1

    def _check(self, shapes: Sequence[Shape]) -> int:
        """Rows of a batch. Raises ValueError for shapes that are not the signature's."""
        signature, lead = self._layout.signature, self._lead
        batch = shapes[0][:lead] if shapes else ()
        for spec, shape in zip(signature.inputs, shapes, strict=True):
            dims = shape[lead:]
            if (
                shape[:lead] != batch
                or len(dims) != len(spec.shape)
                or any(want not in (-1, size) for want, size in zip(spec.shape, dims, strict=True))
            ):
                raise ValueError(f"input {spec.name!r} has shape {list(shape)}, expected {list(batch + spec.shape)}")
        rows = self._rows(shapes)
        if batch and not 0 < rows <= signature.max_batch:
            raise ValueError(f"batch of {rows} rows, from 1 to {signature.max_batch} fit")
        return rows

    def _enqueue(self, context: Context, shapes: Sequence[Shape]) -> list[Shape]:
        """Puts into the stream: what was laid, and a run. Returns the shapes of the outputs."""
        found = context.shape(shapes)
        self._feed(context, shapes)
        return found

    def _feed(self, context: Context, shapes: Sequence[Shape]) -> None:
        """The same for a context that has these shapes."""
        for index, spec in enumerate(self._layout.signature.inputs):
            self._lane.upload(index, nbytes(spec, shapes[index]))
        context.enqueue()

    def _padded(self, profile: int, shapes: Sequence[Shape]) -> list[Shape]:
        """Shapes of a batch that has as many rows as the profile asks for."""
        if not self._lead:
            return list(shapes)
        return [(max(shape[0], rows_of(self._face.profiles[profile])[0]), *shape[1:]) for shape in shapes]

    # --- when the model is loaded -------------------------------------------------------------------------------------

    def _set_up(self, graphs: bool) -> None:
        profiles = {bucket.profile for bucket in self._layout.buckets} or set(range(len(self._face.profiles)))
        self._contexts = {profile: self._context(profile) for profile in sorted(profiles)}
        if not graphs or not self._layout.buckets:
            return
        for at, bucket in enumerate(self._layout.buckets):
            try:
                self._recorded[at] = self._record(bucket)
            except (DeviceError, RuntimeError) as error:
                self._lane.stream.synchronize()
                log.warning(
                    "%s: batches of %d to %d rows run without a CUDA graph, for none can be recorded: %s",
                    self._engine.label,
                    bucket.low,
                    bucket.rows,
                    error,
                )
        for profile in profiles - {
            bucket.profile
            for bucket, recorded in zip(self._layout.buckets, self._recorded, strict=True)
            if recorded is None or recorded.pad_from > bucket.low
        }:
            del self._contexts[profile]  # nothing runs as it is

    def _context(self, profile: int) -> Context:
        lane = self._lane
        places = (*lane.inputs, *lane.outputs)
        return Context(self._engine, self._face, profile, lane.stream, places, self._scratch)

    def _record(self, bucket: Bucket) -> Recorded:
        """Records a bucket's way. It has a context of its own: a graph is not valid for another shape.

        Raises DeviceError and RuntimeError where it cannot be.
        """
        stream = self._lane.stream
        context = self._context(bucket.profile)
        for index, spec in enumerate(self._layout.signature.inputs):
            # zeros: undefined bytes may be indices out of bounds
            self._lane.lay(index, [b""], 0, nbytes(spec, bucket.inputs[index]))
        self._enqueue(context, bucket.inputs)  # the first run may allocate, which cannot be recorded
        stream.synchronize()
        graph = stream.capture(lambda: self._feed(context, bucket.inputs))
        try:
            graph.launch(stream)
            stream.synchronize()
            return Recorded(bucket, graph, context, self._pad_from(bucket, graph))
        except BaseException:
            graph.close()
            raise

    def _pad_from(self, bucket: Bucket, graph: Graph) -> int:
        """Rows from which padding costs less than running a batch as it is, measured."""
        if not self._lead or bucket.low >= bucket.rows:
            return bucket.low
        stream, context = self._lane.stream, self._contexts[bucket.profile]
        few = self._padded(bucket.profile, [(bucket.low, *shape[1:]) for shape in bucket.inputs])
        return break_even(
            bucket.low,
            bucket.rows,
            quickest(stream, lambda: self._enqueue(context, few)),
            quickest(stream, lambda: self._enqueue(context, bucket.inputs)),
            quickest(stream, lambda: graph.launch(stream)),
        )

    def _let_go(self) -> None:
        for recorded in self._recorded:
            if recorded is not None:
                recorded.graph.close()
        self._ways.clear()
        self._recorded.clear()
        self._contexts.clear()


def break_even(low: int, high: int, few: float, full: float, padded: float) -> int:
    """Rows from which a run padded to `high` rows costs no more than one of the rows alone; `high` at most.

    few, full, padded: what runs of `low` rows, of `high` rows, and the padded one cost. Between them cost is linear.
    """
    if padded <= few:
        return low
    if full <= few:
        return high
    return min(low + math.ceil((padded - few) / (full - few) * (high - low)), high)


def quickest(stream: Stream, work: Callable[[], object]) -> float:
    """How long the device takes for what `work` puts into a stream, in milliseconds."""
    times = []
    for _ in range(1 + TRIALS):
        first = stream.record(timed=True)
        work()
        last = stream.record(timed=True)
        last.synchronize()
        times.append(last.milliseconds_since(first))
        first.close()
        last.close()
    return min(times[1:])  # the first may set up what the others use
