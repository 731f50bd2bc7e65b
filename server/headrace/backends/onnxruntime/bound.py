"""Batches in flight on a device: what an instance is to the engine, behind ONNX Runtime.

`BoundInstance`: tensors of fixed dimensions but the batch's. It has buffers for the largest batch on the device and in
page-locked memory, and for each batch bucket an IOBinding over them; a batch is filled up with zeros to its bucket, so
that the session sees few shapes, and always the same addresses. `NamedInstance`: texts, which no device has; ONNX
Runtime copies what it needs to the device and back by itself, and the caller waits. What is between is in `flexible`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.backends.base import InstanceLost
from headrace.backends.buffers import row_bytes
from headrace.backends.lane_steps import NO_STEPS
from headrace.backends.onnxruntime.feeds import BFLOAT16, run_by_name
from headrace.backends.onnxruntime.placement import inputs_on_host
from headrace.backends.onnxruntime.sessions import run_options
from headrace.backends.staging import Lane
from headrace.datatypes import DATATYPES
from headrace.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import onnxruntime as ort

    from headrace.backends.device import Graph
    from headrace.backends.lane_steps import LaneSteps
    from headrace.backends.onnxruntime.executor import Executor
    from headrace.backends.onnxruntime.gpu_options import GpuOptions
    from headrace.messages import Buffer, Signature, TensorSpec

    Array = np.ndarray[Any, Any]

log = logging.getLogger(__name__)

HOST = ("cpu", 0)
"""The host's memory, as IOBinding calls it."""
ASYNCHRONOUS = {"disable_synchronize_execution_providers": "1"}
WARM_RUNS = 1
"""Before those that a graph's are compared with: what is planned, loaded or allocated at first is none of a graph."""
_TOLERANCE = 0.01
"""Of the greatest magnitude: between a graph's results and those of a run without it. Kernels that add up in any order
differ by far less, one that did not see its inputs by far more."""


def lane_bytes(signature: Signature, rows: int) -> tuple[list[int], list[int]]:
    """Bytes of each input and each output of a batch of so many rows."""
    inputs = [rows * row_bytes(spec) for spec in signature.inputs]
    return inputs, [rows * row_bytes(spec) for spec in signature.outputs]


@dataclass(frozen=True, slots=True)
class _Bound:
    """A binding of the buffers as tensors of one bucket, and the options of its runs."""

    binding: ort.IOBinding
    options: ort.RunOptions


class BoundInstance:
    """One batch in flight, by persistent buffers and bindings. Not for two threads at once.

    buckets: rows of each, ascending. closed: called at its end. steps: of its lane. graphs: whether the work of each
    bucket is recorded, and launched as a whole from then on: not by ONNX Runtime, whose own graphs belong to a thread
    and each take a call of its session.
    Runs each bucket before it returns. Raises InstanceLost, and ModelLoadError if a graph cannot be recorded.
    """

    def __init__(
        self,
        executor: Executor,
        signature: Signature,
        buckets: Sequence[int],
        options: GpuOptions,
        closed: Callable[[], None],
        steps: LaneSteps = NO_STEPS,
        *,
        graphs: bool = False,
    ) -> None:
        self.device = executor.device
        self._executor = executor
        self._signature = signature
        self._buckets = buckets
        self._options = options
        self._closed = closed
        self._row_in = [row_bytes(spec) for spec in signature.inputs]
        self._row_out = [row_bytes(spec) for spec in signature.outputs]
        on_host = inputs_on_host(executor.session)
        self._on_host = [spec.name in on_host for spec in signature.inputs]
        for at in steps.inputs:
            if self._on_host[at]:
                raise ModelLoadError(
                    f"input {signature.inputs[at].name!r} is made on the device, but it is the processor that reads it"
                )
        self._bound: dict[int, _Bound] = {}
        self._graphs: dict[int, Graph] = {}
        launched: dict[int, list[list[Array]]] = {}
        self._lane = Lane(executor.device, *lane_bytes(signature, buckets[-1]), steps, busy_wait=options.busy_wait)
        try:
            runs = True
            for rows in reversed(buckets):  # the largest first: the arena grows once
                self._bound[rows] = self._bind(rows)
                if graphs:
                    launched[rows] = self._record(rows)
                else:
                    runs = runs and self._first_run(rows)
            for rows, results in launched.items():  # what later ones were planned for may have cost these something
                for value, expected in enumerate(results):
                    self._check_alike(rows, self._run_filled(rows, value), expected)
        except BaseException:
            self._forget_graphs()
            self._lane.close()
            raise

    def __repr__(self) -> str:
        return f"<BoundInstance of {self._executor!r}, buckets {list(self._buckets)}>"

    def run(
        self, inputs: Sequence[Sequence[Buffer]], shapes: Sequence[tuple[int, ...]], outputs: Sequence[int]
    ) -> Sequence[Array]:
        """See `backends.base.Instance`."""
        rows = self._rows(shapes)
        bucket = self._bound_bucket(rows)
        lane = self._lane
        try:
            self._upload(inputs, rows, bucket)
            self._compute(bucket)
            for index in outputs:
                lane.download(index, rows * self._row_out[index])
            lane.stream.synchronize()
        except Exception as error:
            self._executor.failed(error, lane.stream)
            raise
        batch = (rows,) if self._signature.max_batch else ()
        return [
            lane.result(index, spec, batch + spec.shape)
            for index, spec in ((index, self._signature.outputs[index]) for index in outputs)
        ]

    def close(self) -> None:
        """See `backends.base.Instance`."""
        self._forget_graphs()
        self._bound.clear()
        self._lane.close()
        self._closed()

    def _forget_graphs(self) -> None:
        for graph in self._graphs.values():
            graph.close()
        self._graphs.clear()

    # --- a batch ------------------------------------------------------------------------------------------------------

    def _rows(self, shapes: Sequence[tuple[int, ...]]) -> int:
        """The rows of a batch of these shapes. Raises ValueError for any others than the signature's."""
        batch = shapes[0][:1] if self._signature.max_batch else ()
        for spec, shape in zip(self._signature.inputs, shapes, strict=True):
            if shape != batch + spec.shape:
                raise ValueError(f"input {spec.name!r} has shape {list(shape)}, expected {list(batch + spec.shape)}")
        return batch[0] if batch else 1

    def _bound_bucket(self, rows: int) -> int:
        for bucket in self._buckets:
            if rows <= bucket:
                return bucket
        raise ValueError(f"batch of {rows} rows, at most {self._buckets[-1]} fit")

    def _upload(self, inputs: Sequence[Sequence[Buffer]], rows: int, bucket: int) -> None:
        lane = self._lane
        lane.device.use()
        for index, (parts, size) in enumerate(zip(inputs, self._row_in, strict=True)):
            lane.lay(index, parts, rows * size, padded=bucket * size)
            if not self._on_host[index]:
                lane.upload(index, bucket * size)

    def _compute(self, bucket: int) -> None:
        graph = self._graphs.get(bucket)
        if graph is None:
            self._executor.compute(self._lane.stream, lambda: self._launch(self._bound[bucket]))
        else:
            self._executor.compute(self._lane.stream, lambda: graph.launch(self._executor.stream))

    def _launch(self, bound: _Bound) -> None:
        self._executor.session.run_with_iobinding(bound.binding, bound.options)

    def _bind(self, rows: int) -> _Bound:
        """The buffers as tensors of so many rows."""
        lane, device = self._lane, self._executor.device
        batch = (rows,) if self._signature.max_batch else ()
        binding = self._executor.session.io_binding()
        there = device.kind, device.index
        for at, spec in enumerate(self._signature.inputs):
            place, memory = (HOST, lane.laid[at]) if self._on_host[at] else (there, lane.inputs[at])
            binding.bind_input(spec.name, *place, element_of(spec), batch + spec.shape, memory.pointer)
        for spec, memory in zip(self._signature.outputs, lane.outputs, strict=True):
            binding.bind_output(spec.name, *there, element_of(spec), batch + spec.shape, memory.pointer)
        options = run_options(self._options, **ASYNCHRONOUS)
        assert options is not None
        return _Bound(binding, options)

    # --- before it serves ---------------------------------------------------------------------------------------------

    def _first_run(self, rows: int) -> bool:
        """Runs zeros: engines are built, kernels loaded, memory is taken. Whether the model can run them.

        Raises InstanceLost.
        """
        try:
            self._run_filled(rows, 0)
        except InstanceLost:
            raise
        except Exception as error:  # whether a model has to run zeros is for the engine's warm-up to say
            # as a text: the error would keep the session alive where somebody keeps the record
            log.warning("a first run of %d rows of zeros failed: %s", rows, str(error))
            return False
        return True

    def _record(self, rows: int) -> list[list[Array]]:
        """Has a graph recorded; what it makes of zeros, and of ones, as a run without it does. Raises as the class."""
        try:
            for _ in range(WARM_RUNS):
                self._run_filled(rows, 0)
            expected = self._of_zeros_and_ones(rows)
            bound = self._bound[rows]
            self._graphs[rows] = self._executor.record(lambda: self._launch(bound))
            launched = self._of_zeros_and_ones(rows)
        except InstanceLost:
            raise
        except Exception as error:
            raise ModelLoadError(f"no CUDA graph can be recorded of {rows} rows of zeros: {error}") from error
        for got, want in zip(launched, expected, strict=True):  # one of which would still be there, if it did nothing
            self._check_alike(rows, got, want)
        return launched

    def _of_zeros_and_ones(self, rows: int) -> list[list[Array]]:
        """Copies of all outputs of each."""
        return [[array.copy() for array in self._run_filled(rows, value)] for value in (0, 1)]

    def _check_alike(self, rows: int, launched: Sequence[Array], expected: Sequence[Array]) -> None:
        for spec, got, want in zip(self._signature.outputs, launched, expected, strict=True):
            if not _alike(got, want, spec):
                raise ModelLoadError(
                    f"the CUDA graph of {rows} rows gives another {spec.name!r} than a run without it: this model "
                    "cannot be recorded, expected cuda_graphs = false"
                )

    def _run_filled(self, rows: int, value: int) -> Sequence[Array]:
        """All outputs of so many rows of zeros or ones."""
        batch = (rows,) if self._signature.max_batch else ()
        shapes = [batch + spec.shape for spec in self._signature.inputs]
        return self.run(self._filled(rows, value), shapes, range(len(self._signature.outputs)))

    def _filled(self, rows: int, value: int) -> list[list[bytes]]:
        """Inputs that hold nothing but 0 or 1, which are valid whatever they mean."""
        filled = []
        for spec, size in zip(self._signature.inputs, self._row_in, strict=True):
            dtype = DATATYPES[spec.datatype].numpy
            one = 0x3F80 if spec.datatype == "BF16" else 1
            row = np.full(size // dtype.itemsize, one * value, dtype).tobytes()
            filled.append([row] * rows)
        return filled


class NamedInstance:
    """One batch at a time of the session, by the names of its tensors. Not for two threads at once."""

    def __init__(
        self, executor: Executor, signature: Signature, options: GpuOptions, closed: Callable[[], None]
    ) -> None:
        self.device = executor.device
        self._executor = executor
        self._signature = signature
        self._run_options = run_options(options)
        self._closed = closed

    def __repr__(self) -> str:
        return f"<NamedInstance of {self._executor!r}>"

    def run(
        self, inputs: Sequence[Sequence[Buffer]], shapes: Sequence[tuple[int, ...]], outputs: Sequence[int]
    ) -> Sequence[Array]:
        """See `backends.base.Instance`."""
        executor = self._executor

        def work() -> list[Array]:
            executor.device.use()
            return run_by_name(executor.session, self._signature, self._run_options, inputs, shapes, outputs)

        try:
            return executor.call(work)
        except Exception as error:
            executor.failed(error, for_good=False)
            raise

    def close(self) -> None:
        """See `backends.base.Instance`."""
        self._closed()


def element_of(spec: TensorSpec) -> Any:  # noqa: ANN401  -- ONNX Runtime is not typed
    """What IOBinding takes for the elements of a tensor: a type of NumPy's, or ONNX's number."""
    return BFLOAT16 if spec.datatype == "BF16" else DATATYPES[spec.datatype].numpy.type


def _alike(got: Array, want: Array, spec: TensorSpec) -> bool:
    if spec.datatype == "BF16":
        got, want = ((array.astype(np.uint32) << 16).view(np.float32) for array in (got, want))
    if want.dtype.kind != "f":
        return bool(np.array_equal(got, want))
    got, want = got.astype(np.float64), want.astype(np.float64)
    finite = np.isfinite(want)
    scale = float(np.abs(want[finite]).max(initial=0))
    return bool(
        np.array_equal(got[~finite], want[~finite], equal_nan=True)
        and np.allclose(got[finite], want[finite], rtol=0, atol=_TOLERANCE * scale)
    )
