"""Batches in flight on a device: what an instance is to the engine, behind ONNX Runtime.

`BoundInstance`: rows of a few known forms, most often of one. It has buffers for the largest batch on the device and in
page-locked memory, and for each form and batch bucket an IOBinding over them; a batch is filled up with zeros to its
bucket, so that the session sees few shapes, and always the same addresses. `NamedInstance`: texts, which no device has;
ONNX Runtime copies what it needs to the device and back by itself, and the caller waits. What is between is in
`flexible`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from itertools import islice
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.backends.base import InstanceLost
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

    from headrace.backends.base import Instance
    from headrace.backends.device import Graph
    from headrace.backends.lane_steps import LaneSteps
    from headrace.backends.onnxruntime.executor import Executor
    from headrace.backends.onnxruntime.gpu_options import GpuOptions
    from headrace.messages import Buffer, Signature, TensorSpec

    Array = np.ndarray[Any, Any]
    Shape = tuple[int, ...]
    Recorder = Callable[[Callable[[], None]], Graph]

log = logging.getLogger(__name__)

_SAID = 4
"""Forms that a message names, at most."""
_KEPT = 1 << 14
"""Elements of each output by which a graph is known again when all are recorded: of a spoiled one nothing is right."""
HOST = ("cpu", 0)
"""The host's memory, as IOBinding calls it."""
ASYNCHRONOUS = {"disable_synchronize_execution_providers": "1"}
WARM_RUNS = 1
"""Before those that a graph's are compared with: what is planned, loaded or allocated at first is none of a graph."""
_TOLERANCE = 0.01
"""Of the greatest magnitude: between a graph's results and those of a run without it. Kernels that add up in any order
differ by far less, one that did not see its inputs by far more."""


@dataclass(frozen=True, slots=True)
class Form:
    """The dimensions that a row has in each input and each output, the batch's left out."""

    inputs: tuple[Shape, ...]
    outputs: tuple[Shape, ...]


def fixed_form(signature: Signature) -> Form:
    """The only form of a model all of whose dimensions are fixed."""
    return Form(tuple(spec.shape for spec in signature.inputs), tuple(spec.shape for spec in signature.outputs))


def lane_bytes(signature: Signature, forms: Sequence[Form], rows: int) -> tuple[list[int], list[int]]:
    """Bytes that each input and each output of a batch of so many rows takes, at most."""
    inputs, outputs = zip(*(_row_bytes(signature, form) for form in forms), strict=True)
    return [rows * max(sizes) for sizes in zip(*inputs, strict=True)], [
        rows * max(sizes) for sizes in zip(*outputs, strict=True)
    ]


def _row_bytes(signature: Signature, form: Form) -> tuple[list[int], list[int]]:
    """Bytes of a row of each input and each output."""
    inputs = zip(signature.inputs, form.inputs, strict=True)
    outputs = zip(signature.outputs, form.outputs, strict=True)
    return (
        [DATATYPES[spec.datatype].itemsize * prod(shape) for spec, shape in inputs],
        [DATATYPES[spec.datatype].itemsize * prod(shape) for spec, shape in outputs],
    )


@dataclass(frozen=True, slots=True)
class _Bound:
    """A binding of the buffers as tensors of one bucket, and the options of its runs."""

    binding: ort.IOBinding
    options: ort.RunOptions


@dataclass(frozen=True, slots=True)
class _Rows:
    """What there is for rows of a form: bytes of one in each input and output; of each bucket binding and graph."""

    form: Form
    row_in: list[int]
    row_out: list[int]
    bound: dict[int, _Bound] = field(default_factory=dict)
    graphs: dict[int, Graph] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<_Rows of {self.form.inputs}, buckets {[*self.bound]}, graphs of {[*self.graphs]}>"


class BoundInstance:
    """One batch in flight, by persistent buffers and bindings. Not for two threads at once.

    forms: of rows; batches have no others. buckets: rows of each, ascending. closed: called at its end. steps: of its
    lane. record: what makes a graph of the work of each form's buckets, which is launched as a whole from then on: not
    ONNX Runtime, whose own graphs belong to a thread and each take a call of its session. None: there are no graphs.
    Runs each bucket of each form before it returns. Raises InstanceLost, and ModelLoadError if a graph cannot be
    recorded.
    """

    def __init__(
        self,
        executor: Executor,
        signature: Signature,
        forms: Sequence[Form],
        buckets: Sequence[int],
        options: GpuOptions,
        closed: Callable[[], None],
        steps: LaneSteps = NO_STEPS,
        *,
        record: Recorder | None = None,
    ) -> None:
        self.device = executor.device
        self._executor = executor
        self._signature = signature
        self._buckets = buckets
        self._options = options
        self._closed = closed
        self._forms = {form.inputs: _Rows(form, *_row_bytes(signature, form)) for form in forms}
        on_host = inputs_on_host(executor.session)
        self._on_host = [spec.name in on_host for spec in signature.inputs]
        for at in steps.inputs:
            if self._on_host[at]:
                raise ModelLoadError(
                    f"input {signature.inputs[at].name!r} is made on the device, but it is the processor that reads it"
                )
        taken = lane_bytes(signature, forms, buckets[-1])
        self._lane = Lane(executor.device, *taken, steps, busy_wait=options.busy_wait)
        try:
            self._prepare(record)
        except BaseException:
            self._forget_graphs()
            self._lane.close()
            raise

    def __repr__(self) -> str:
        return f"<BoundInstance of {self._executor!r}, {len(self._forms)} forms, buckets {list(self._buckets)}>"

    def run(
        self, inputs: Sequence[Sequence[Buffer]], shapes: Sequence[tuple[int, ...]], outputs: Sequence[int]
    ) -> Sequence[Array]:
        """See `backends.base.Instance`."""
        of, rows = self._rows(shapes)
        bucket = self._bound_bucket(rows)
        lane = self._lane
        try:
            self._upload(inputs, of, rows, bucket)
            self._compute(of, bucket)
            for index in outputs:
                lane.download(index, rows * of.row_out[index])
            lane.stream.synchronize()
        except Exception as error:
            self._executor.failed(error, lane.stream)
            raise
        batch = self._batch(rows)
        return [lane.result(index, self._signature.outputs[index], batch + of.form.outputs[index]) for index in outputs]

    def close(self) -> None:
        """See `backends.base.Instance`."""
        self._forget_graphs()
        for of in self._forms.values():
            of.bound.clear()
        self._lane.close()
        self._closed()

    def _forget_graphs(self) -> None:
        for of in self._forms.values():
            for graph in of.graphs.values():
                graph.close()
            of.graphs.clear()

    # --- a batch ------------------------------------------------------------------------------------------------------

    def _rows(self, shapes: Sequence[Shape]) -> tuple[_Rows, int]:
        """The form and the rows of a batch of these shapes. Raises ValueError for any that there is nothing for."""
        lead = 1 if self._signature.max_batch else 0
        rows = shapes[0][0] if lead else 1
        batch = self._batch(rows)
        of = self._forms.get(tuple(shape[lead:] for shape in shapes))
        if of is None or any(shape[:lead] != batch for shape in shapes):
            given = ", ".join(
                f"{spec.name!r} {list(shape)}" for spec, shape in zip(self._signature.inputs, shapes, strict=True)
            )
            known = [", ".join(str([*batch, *shape]) for shape in inputs) for inputs in islice(self._forms, _SAID)]
            more = f" or one of {len(self._forms) - _SAID} more" if len(self._forms) > _SAID else ""
            raise ValueError(f"inputs have the shapes {given}, expected {' or '.join(known)}{more}")
        return of, rows

    def _batch(self, rows: int) -> Shape:
        """The dimension of the batch, if the model has one."""
        return (rows,) if self._signature.max_batch else ()

    def _bound_bucket(self, rows: int) -> int:
        for bucket in self._buckets:
            if rows <= bucket:
                return bucket
        raise ValueError(f"batch of {rows} rows, at most {self._buckets[-1]} fit")

    def _upload(self, inputs: Sequence[Sequence[Buffer]], of: _Rows, rows: int, bucket: int) -> None:
        lane = self._lane
        lane.device.use()
        for index, (parts, size) in enumerate(zip(inputs, of.row_in, strict=True)):
            lane.lay(index, parts, rows * size, padded=bucket * size)
            if not self._on_host[index]:
                lane.upload(index, bucket * size)

    def _compute(self, of: _Rows, bucket: int) -> None:
        graph = of.graphs.get(bucket)
        if graph is None:
            self._executor.compute(self._lane.stream, lambda: self._launch(of.bound[bucket]))
        else:
            self._executor.compute(self._lane.stream, lambda: graph.launch(self._executor.stream))

    def _launch(self, bound: _Bound) -> None:
        self._executor.session.run_with_iobinding(bound.binding, bound.options)

    def _bind(self, form: Form, rows: int) -> _Bound:
        """The buffers as tensors of so many rows."""
        lane, device = self._lane, self._executor.device
        batch = self._batch(rows)
        binding = self._executor.session.io_binding()
        there = device.kind, device.index
        for at, (spec, shape) in enumerate(zip(self._signature.inputs, form.inputs, strict=True)):
            place, memory = (HOST, lane.laid[at]) if self._on_host[at] else (there, lane.inputs[at])
            binding.bind_input(spec.name, *place, element_of(spec), batch + shape, memory.pointer)
        for spec, shape, memory in zip(self._signature.outputs, form.outputs, lane.outputs, strict=True):
            binding.bind_output(spec.name, *there, element_of(spec), batch + shape, memory.pointer)
        options = run_options(self._options, **ASYNCHRONOUS)
        assert options is not None
        return _Bound(binding, options)

    # --- before it serves ---------------------------------------------------------------------------------------------

    def _prepare(self, record: Recorder | None) -> None:
        """Binds, and runs or records, each bucket of each form."""
        runs = True
        launched: list[tuple[_Rows, int, list[list[Array]]]] = []  # with the beginnings of what they made
        for rows in reversed(self._buckets):  # the largest first: the arena grows once
            for of in self._forms.values():
                of.bound[rows] = self._bind(of.form, rows)
                if record is not None:
                    launched.append((of, rows, self._record(of, rows, record)))
                else:
                    runs = runs and self._first_run(of, rows)
        for of, rows, results in launched:  # what later ones were planned for may have cost these something
            for value, expected in enumerate(results):
                self._check_alike(of, rows, _beginnings(self._run_filled(of, rows, value)), expected)

    def _first_run(self, of: _Rows, rows: int) -> bool:
        """Runs zeros: engines are built, kernels loaded, memory is taken. Whether the model can run them.

        Raises InstanceLost.
        """
        try:
            self._run_filled(of, rows, 0)
        except InstanceLost:
            raise
        except Exception as error:  # whether a model has to run zeros is for the engine's warm-up to say
            # as a text: the error would keep the session alive where somebody keeps the record
            log.warning("a first run of %s of zeros failed: %s", self._called(of, rows), str(error))
            return False
        return True

    def _record(self, of: _Rows, rows: int, record: Recorder) -> list[list[Array]]:
        """Has a graph recorded; how begins what it makes of zeros, and of ones, as a run without it does.

        Raises as the class.
        """
        try:
            for _ in range(WARM_RUNS):
                self._run_filled(of, rows, 0)
            expected = self._of_zeros_and_ones(of, rows)
            bound = of.bound[rows]
            of.graphs[rows] = record(lambda: self._launch(bound))
            launched = self._of_zeros_and_ones(of, rows)
        except InstanceLost:
            raise
        except Exception as error:
            raise ModelLoadError(
                f"no CUDA graph can be recorded of {self._called(of, rows)} of zeros: {error}"
            ) from error
        for got, want in zip(launched, expected, strict=True):  # one of which would still be there, if it did nothing
            self._check_alike(of, rows, got, want)
        return [_beginnings(results) for results in launched]

    def _of_zeros_and_ones(self, of: _Rows, rows: int) -> list[list[Array]]:
        """Copies of all outputs of each."""
        return [[array.copy() for array in self._run_filled(of, rows, value)] for value in (0, 1)]

    def _check_alike(self, of: _Rows, rows: int, launched: Sequence[Array], expected: Sequence[Array]) -> None:
        for spec, got, want in zip(self._signature.outputs, launched, expected, strict=True):
            if not _alike(got, want, spec):
                raise ModelLoadError(
                    f"the CUDA graph of {self._called(of, rows)} gives another {spec.name!r} than a run without it: "
                    "this model cannot be recorded, expected cuda_graphs = false"
                )

    def _called(self, of: _Rows, rows: int) -> str:
        """What a message calls them."""
        return f"{rows} rows" + (f", {' and '.join(map(str, of.form.inputs))} each," if len(self._forms) > 1 else "")

    def _run_filled(self, of: _Rows, rows: int, value: int) -> Sequence[Array]:
        """All outputs of so many rows of zeros or ones."""
        return run_filled(self, self._signature, of.form.inputs, rows, value)


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


def _beginnings(arrays: Sequence[Array]) -> list[Array]:
    """Copies of the first elements of each."""
    return [array.reshape(-1)[:_KEPT].copy() for array in arrays]


def run_filled(
    instance: Instance, signature: Signature, form: Sequence[Shape], rows: int, value: int
) -> Sequence[Array]:
    """All outputs of so many rows that hold nothing but `value`, 0 or 1, which are valid whatever they mean.

    form: the dimensions of a row of each input.
    """
    filled = []
    for spec, shape in zip(signature.inputs, form, strict=True):
        one = 0x3F80 if spec.datatype == "BF16" else 1
        row = np.full(prod(shape), one * value, DATATYPES[spec.datatype].numpy).tobytes()
        filled.append([row] * rows)
    batch = (rows,) if signature.max_batch else ()
    return instance.run(filled, [batch + tuple(shape) for shape in form], range(len(signature.outputs)))


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
