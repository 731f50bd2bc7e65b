"""ONNX Runtime on the CPU: `model.onnx` in the version directory.

Where every dimension but the batch is fixed, an instance keeps input and output buffers and, for each number of rows
seen, an IOBinding over them: a run is then one copy of the request bytes and one call, 4 us of overhead where feeding
NumPy arrays by name costs 7. Other models go by name. Large requests can also be run one by one where they lie, which
saves the copy and forgoes what the model gains from a batch: the instance learns which is quicker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from headrace.backends.buffers import aligned_bytes, lay, row_bytes, typed
from headrace.backends.onnxruntime.feeds import array_of, ort_value_of, run_by_name
from headrace.backends.onnxruntime.sessions import SessionSettings, find_file, open_session, read_options, run_options
from headrace.backends.onnxruntime.signature import bindable, session_signature
from headrace.backends.quicker import Quicker
from headrace.clock import monotonic_ns
from headrace.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    import onnxruntime as ort

    from headrace.messages import Buffer, Signature

    Array = np.ndarray[Any, Any]

IN_PLACE_BYTES = 192 << 10
"""From here on, copying the input of a single request costs more than binding it anew."""
MAX_BINDINGS = 512
"""IOBindings kept by an instance; there is one for each number of rows, choice of outputs and way to run."""


class Options(SessionSettings):
    """`[backend_options]` of model.toml."""

    share_session: bool = Field(False, description="one session for all instances: their weights are in memory once")


class OnnxRuntimeBackend:
    """Opens ONNX files with ONNX Runtime's CPU execution provider."""

    def load(self, path: Path, *, max_batch: int | None, threads: int, options: Mapping[str, Any]) -> OnnxModel:
        """See `backends.base.Backend`."""
        checked = read_options(Options, options)
        return OnnxModel(find_file(path, checked), max_batch, threads, checked)


class OnnxModel:
    """An ONNX file whose signature has been read."""

    platform = "onnxruntime_onnx"
    executors_per_instance = 1
    inline = True

    def __init__(self, file: Path, max_batch: int | None, threads: int, options: Options) -> None:
        self._file = file
        self._threads = threads
        self._options = options
        session = open_session(file, threads, options, ["CPUExecutionProvider"])
        self.signature = session_signature(session, max_batch)
        self._spare: list[ort.InferenceSession] = [session]  # for the first instance: opening is slow

    def make_instance(self, index: int) -> OnnxInstance:
        """See `backends.base.LoadedModel`."""
        try:
            session = self._spare.pop()
        except IndexError:
            session = open_session(self._file, self._threads, self._options, ["CPUExecutionProvider"])
        if self._options.share_session:
            self._spare.append(session)
        return OnnxInstance(session, self.signature, run_options=run_options(self._options))

    def __repr__(self) -> str:
        return f"<OnnxModel {self._file} max_batch {self.signature.max_batch}>"


class OnnxInstance:
    """One session with its buffers. Not for two threads at once."""

    def __init__(
        self,
        session: ort.InferenceSession,
        signature: Signature,
        clock: Callable[[], int] = monotonic_ns,
        run_options: ort.RunOptions | None = None,
    ) -> None:
        self._session = session
        self._signature = signature
        self._run_options = run_options
        self._bindings: dict[tuple[object, ...], _Binding] = {}
        self._clock = clock
        self._quicker = Quicker(2)
        self._inputs: list[Array] = []
        self._outputs: list[Array] = []
        self._bindable = bindable(signature)
        if self._bindable:
            # For the largest batch; the system provides memory only for what is touched.
            rows = max(signature.max_batch, 1)
            try:
                self._inputs = [aligned_bytes(rows * row_bytes(spec)) for spec in signature.inputs]
                self._outputs = [aligned_bytes(rows * row_bytes(spec)) for spec in signature.outputs]
            except (MemoryError, OverflowError, ValueError) as error:
                raise ModelLoadError(f"there is no memory for batches of max_batch = {rows} rows: {error}") from error
            self._widest = max(range(len(self._inputs)), key=lambda i: self._inputs[i].nbytes)

    def run(
        self, inputs: Sequence[Sequence[Buffer]], shapes: Sequence[tuple[int, ...]], outputs: Sequence[int]
    ) -> Sequence[Array]:
        """See `backends.base.Instance`."""
        if not self._bindable:
            return self._run_by_name(inputs, shapes, outputs)
        widest = inputs[self._widest]
        if len(widest[0]) < IN_PLACE_BYTES:
            return self._run_joined(inputs, shapes, outputs)
        if len(widest) == 1:
            return self._run_by_name(inputs, shapes, outputs)
        way = self._quicker.pick()
        began = self._clock()
        results = (self._run_each if way else self._run_joined)(inputs, shapes, outputs)
        self._quicker.took(way, (self._clock() - began) / shapes[0][0])
        return results

    def _run_joined(
        self, inputs: Sequence[Sequence[Buffer]], shapes: Sequence[tuple[int, ...]], outputs: Sequence[int]
    ) -> Sequence[Array]:
        """All requests in one run, copied into the instance's buffers."""
        binding = self._binding(False, 0, shapes, outputs)
        for view, parts in zip(binding.inputs, inputs, strict=True):
            lay(view, parts)
        self._session.run_with_iobinding(binding.binding, self._run_options)
        return binding.outputs

    def _run_each(
        self, inputs: Sequence[Sequence[Buffer]], shapes: Sequence[tuple[int, ...]], outputs: Sequence[int]
    ) -> Sequence[Array]:
        """Each request in a run of its own, where it lies; the outputs as if they had been run together."""
        specs = self._signature.inputs
        first_row = row_bytes(specs[self._widest])
        start = 0
        for parts in zip(*inputs, strict=True):
            rows = len(parts[self._widest]) // first_row
            own = [(rows, *shape[1:]) for shape in shapes]
            binding = self._binding(True, start, own, outputs).binding
            # kept until the run is over: before ONNX Runtime 1.30, a binding does not keep the copies made here
            values = [ort_value_of(array_of(*given), given[0]) for given in zip(specs, parts, own, strict=True)]
            for spec, value in zip(specs, values, strict=True):
                binding.bind_ortvalue_input(spec.name, value)
            self._session.run_with_iobinding(binding, self._run_options)
            binding.clear_binding_inputs()  # it would keep the request's memory
            start += rows
        if start != shapes[0][0]:
            raise ValueError(f"{start} rows of input, expected {shapes[0][0]}")
        return self._results(0, shapes[0][:1], outputs)

    def close(self) -> None:
        """See `backends.base.Instance`."""
        self._bindings.clear()
        self._inputs.clear()
        self._outputs.clear()
        self._bindable = False
        self._session = None

    def __repr__(self) -> str:
        state = "closed" if self._session is None else "bound" if self._bindable else "by name"
        return f"<OnnxInstance {state}, {len(self._bindings)} bindings>"

    def _binding(self, each: bool, start: int, shapes: Sequence[tuple[int, ...]], outputs: Sequence[int]) -> _Binding:
        """A binding of the instance's buffers from row `start` on. Raises ValueError for shapes that do not fit.

        each: it is for `_run_each`, which leaves it without inputs.
        """
        key = (each, start, shapes[0], *outputs)  # the batch of one input is that of all
        binding = self._bindings.get(key)
        if binding is None:
            if len(self._bindings) >= MAX_BINDINGS:
                del self._bindings[next(iter(self._bindings))]
            binding = self._bindings[key] = self._bind(start, shapes, outputs)
        return binding

    def _bind(self, start: int, shapes: Sequence[tuple[int, ...]], outputs: Sequence[int]) -> _Binding:
        signature = self._signature
        batch = shapes[0][:1] if signature.max_batch else ()
        if batch and not 0 <= start + batch[0] <= signature.max_batch:
            raise ValueError(f"batch of {start + batch[0]} rows, at most {signature.max_batch} fit")
        binding = self._session.io_binding()
        views = []
        for spec, shape, buffer in zip(signature.inputs, shapes, self._inputs, strict=True):
            if shape != batch + spec.shape:
                raise ValueError(f"input {spec.name!r} has shape {list(shape)}, expected {list(batch + spec.shape)}")
            array = typed(buffer, spec, start, shape)
            binding.bind_ortvalue_input(spec.name, ort_value_of(array, spec))
            views.append(buffer.data[: array.nbytes])
        results = self._results(start, batch, outputs)
        for index, array in zip(outputs, results, strict=True):
            spec = signature.outputs[index]
            binding.bind_ortvalue_output(spec.name, ort_value_of(array, spec))
        return _Binding(binding, views, results)

    def _results(self, start: int, batch: tuple[int, ...], outputs: Sequence[int]) -> list[Array]:
        """The parts of the output buffers that a batch writes whose first row is row `start`."""
        specs = [self._signature.outputs[index] for index in outputs]
        return [
            typed(self._outputs[index], spec, start, batch + spec.shape)
            for index, spec in zip(outputs, specs, strict=True)
        ]

    def _run_by_name(
        self, inputs: Sequence[Sequence[Buffer]], shapes: Sequence[tuple[int, ...]], outputs: Sequence[int]
    ) -> list[Array]:
        return run_by_name(self._session, self._signature, self._run_options, inputs, shapes, outputs)


class _Binding:
    """An IOBinding and the parts of the instance's buffers that it reads and writes."""

    __slots__ = ("binding", "inputs", "outputs")

    def __init__(self, binding: ort.IOBinding, inputs: list[memoryview], outputs: list[Array]) -> None:
        self.binding = binding
        self.inputs = inputs
        self.outputs = outputs
