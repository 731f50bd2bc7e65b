"""ONNX Runtime on the CPU: `model.onnx` in the version directory.

Where every dimension but the batch is fixed, an instance keeps input and output buffers and, for each number of rows
seen, an IOBinding over them: a run is then one copy of the request bytes and one call, 4 us of overhead where feeding
NumPy arrays by name costs 7. Other models go by name. Large requests can also be run one by one where they lie, which
saves the copy and forgoes what the model gains from a batch: the instance learns which is quicker.
"""

from __future__ import annotations

import ctypes
import logging
import math
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnxruntime as ort
from pydantic import BaseModel, ConfigDict, Field, field_validator

from headrace import settings_sources as sources
from headrace.backends.buffers import aligned_bytes, lay, row_bytes, typed
from headrace.backends.quicker import Quicker
from headrace.clock import monotonic_ns
from headrace.datatypes import DATATYPES
from headrace.errors import ConfigError, ModelLoadError
from headrace.messages import Signature, TensorSpec
from headrace.pipeline import bytes_tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from headrace.messages import Buffer

    Array = np.ndarray[Any, Any]

log = logging.getLogger(__name__)

MODEL_FILE = "model.onnx"
DEFAULT_MAX_BATCH = 64
IN_PLACE_BYTES = 192 << 10
"""From here on, copying the input of a single request costs more than binding it anew."""
MAX_BINDINGS = 512
"""IOBindings kept by an instance; there is one for each number of rows and choice of outputs."""

_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16
_DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(bfloat16)": "BF16",
    "tensor(string)": "BYTES",
}
_OPTIMIZATION = {
    "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


_EXECUTION = {
    "sequential": ort.ExecutionMode.ORT_SEQUENTIAL,
    "parallel": ort.ExecutionMode.ORT_PARALLEL,
}


class Options(BaseModel):
    """`[backend_options]` of model.toml."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    graph_optimization_level: Literal["disabled", "basic", "extended", "all"] = Field(
        "all", description="how far ONNX Runtime rewrites the graph when it loads it"
    )
    arena: bool = Field(
        True, description="keep freed memory for the next run; false: give it back, at the cost of speed"
    )
    memory_pattern: bool = Field(True, description="plan the memory of a run from that of the last of equal shapes")
    execution_mode: Literal["sequential", "parallel"] = Field(
        "sequential", description="parallel: run branches of the graph at the same time"
    )
    inter_op_threads: int = Field(1, ge=0, description="threads for branches; 0: one for each core")
    share_session: bool = Field(False, description="one session for all instances: their weights are in memory once")
    file: str = Field(MODEL_FILE, description="the model file's name within the version")
    op_libraries: tuple[str, ...] = Field((), strict=False, description="libraries of custom operators to load")
    session: dict[str, str] = Field({}, description="ONNX Runtime's own session options, by their keys")
    run: dict[str, str] = Field({}, description="ONNX Runtime's own options of each run, by their keys")

    @field_validator("file")
    @classmethod
    def _inside(cls, file: str) -> str:
        path = PurePosixPath(file)
        if path.is_absolute() or ".." in path.parts or not path.name:
            raise ValueError(f"{file!r} is no file within the version directory")
        return file


class OnnxRuntimeBackend:
    """Opens ONNX files with ONNX Runtime's CPU execution provider."""

    def load(self, path: Path, *, max_batch: int | None, threads: int, options: Mapping[str, Any]) -> OnnxModel:
        """See `backends.base.Backend`."""
        try:
            checked = sources.build(Options, [sources.Source(dict(options), {(): "in backend_options of model.toml"})])
        except ConfigError as error:
            raise ModelLoadError(str(error)) from error
        file = path / checked.file
        if file.is_dir():  # a model of several files
            file /= MODEL_FILE
        if not file.is_file():
            raise ModelLoadError(f"there is no {file}")
        return OnnxModel(file, max_batch, threads, checked)


class OnnxModel:
    """An ONNX file whose signature has been read."""

    platform = "onnxruntime_onnx"
    executors_per_instance = 1
    inline = True

    def __init__(self, file: Path, max_batch: int | None, threads: int, options: Options) -> None:
        self._file = file
        self._threads = threads
        self._options = options
        session = _open_session(file, threads, options)
        self.signature = _signature(session, max_batch)
        self._spare: list[ort.InferenceSession] = [session]  # for the first instance: opening is slow

    def make_instance(self, index: int) -> OnnxInstance:
        """See `backends.base.LoadedModel`."""
        try:
            session = self._spare.pop()
        except IndexError:
            session = _open_session(self._file, self._threads, self._options)
        if self._options.share_session:
            self._spare.append(session)
        return OnnxInstance(session, self.signature, run_options=_run_options(self._options))

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
        specs = (*signature.inputs, *signature.outputs)
        self._bindable = bool(signature.inputs) and all(s.fixed and s.datatype != "BYTES" for s in specs)
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
        binding = self._binding(0, shapes, outputs)
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
            binding = self._binding(start, own, outputs).binding
            for spec, part, shape in zip(specs, parts, own, strict=True):
                binding.bind_ortvalue_input(spec.name, _ort_value(_array(spec, part, shape), spec))
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

    def _binding(self, start: int, shapes: Sequence[tuple[int, ...]], outputs: Sequence[int]) -> _Binding:
        """A binding of the instance's buffers from row `start` on. Raises ValueError for shapes that do not fit."""
        key = (start, shapes[0], *outputs)  # the batch of one input is that of all
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
            binding.bind_ortvalue_input(spec.name, _ort_value(array, spec))
            views.append(buffer.data[: array.nbytes])
        results = self._results(start, batch, outputs)
        for index, array in zip(outputs, results, strict=True):
            spec = signature.outputs[index]
            binding.bind_ortvalue_output(spec.name, _ort_value(array, spec))
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
        feeds = {
            spec.name: _tensor(spec, parts, shape)
            for spec, parts, shape in zip(self._signature.inputs, inputs, shapes, strict=True)
        }
        specs = [self._signature.outputs[index] for index in outputs]
        names = [spec.name for spec in specs]
        if any(spec.datatype == "BF16" for spec in specs):
            values = {k: v if isinstance(v, ort.OrtValue) else _ort_value(v) for k, v in feeds.items()}
            return [_to_numpy(value) for value in self._session.run_with_ort_values(names, values, self._run_options)]
        results: list[Array] = self._session.run(names, feeds, self._run_options)
        return results


class _Binding:
    """An IOBinding and the parts of the instance's buffers that it reads and writes."""

    __slots__ = ("binding", "inputs", "outputs")

    def __init__(self, binding: ort.IOBinding, inputs: list[memoryview], outputs: list[Array]) -> None:
        self.binding = binding
        self.inputs = inputs
        self.outputs = outputs


def _open_session(file: Path, threads: int, options: Options) -> ort.InferenceSession:
    configured = ort.SessionOptions()
    configured.intra_op_num_threads = threads
    configured.inter_op_num_threads = options.inter_op_threads
    configured.execution_mode = _EXECUTION[options.execution_mode]
    configured.graph_optimization_level = _OPTIMIZATION[options.graph_optimization_level]
    configured.enable_cpu_mem_arena = options.arena
    configured.enable_mem_pattern = options.memory_pattern
    configured.log_severity_level = _ort_severity()
    configured.logid = f"{file.parent.parent.name}/{file.parent.name}"
    # Idle threads that spin take a full core between requests; 500 us of it keep most of the latency it buys.
    serving = {"session.intra_op.allow_spinning": "0"} if threads == 1 else {"session.intra_op.spin_duration_us": "500"}
    _log_through_python()
    try:
        for key, value in (serving | options.session).items():
            configured.add_session_config_entry(key, value)
        for library in options.op_libraries:
            configured.register_custom_ops_library(library)
        return ort.InferenceSession(file, configured, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        raise ModelLoadError(f"ONNX Runtime cannot load {file}: {error}") from error


def _run_options(options: Options) -> ort.RunOptions | None:
    if not options.run:
        return None
    made = ort.RunOptions()
    for key, value in options.run.items():
        made.add_run_config_entry(key, value)
    return made


def _signature(session: ort.InferenceSession, max_batch: int | None) -> Signature:
    """What the file declares. Its tensors can batch when the first dimension of all of them is dynamic."""
    inputs = [_spec("input", argument) for argument in session.get_inputs()]
    outputs = [_spec("output", argument) for argument in session.get_outputs()]
    fixed = [spec for spec in (*inputs, *outputs) if spec.shape[:1] != (-1,)]
    if max_batch and (fixed or not inputs):
        why = f"{fixed[0].name!r} has shape {list(fixed[0].shape)}" if fixed else "there is no input"
        raise ModelLoadError(
            f"max_batch = {max_batch}, but the file cannot batch: the first dimension of every input and output "
            f"must be dynamic, and {why}"
        )
    if max_batch is None:
        max_batch = 0 if fixed or not inputs else DEFAULT_MAX_BATCH
    if max_batch:
        inputs, outputs = ([TensorSpec(s.name, s.datatype, s.shape[1:]) for s in specs] for specs in (inputs, outputs))
    return Signature(tuple(inputs), tuple(outputs), max_batch)


def _spec(kind: str, argument: ort.NodeArg) -> TensorSpec:
    datatype = _DATATYPES.get(argument.type)
    if datatype is None:
        hint = "; export the classifier without ZipMap" if argument.type.startswith(("seq(map", "map")) else ""
        raise ModelLoadError(f"{kind} {argument.name!r} is {argument.type}, which the protocol cannot carry{hint}")
    return TensorSpec(argument.name, datatype, tuple(d if isinstance(d, int) else -1 for d in argument.shape or ()))


def _tensor(spec: TensorSpec, parts: Sequence[Buffer], shape: tuple[int, ...]) -> Array | ort.OrtValue:
    """A tensor to feed by name; of a single part that is aligned, without a copy."""
    data = parts[0] if len(parts) == 1 else b"".join(parts)
    if spec.datatype == "BYTES":
        # ONNX Runtime takes strings as `str`; admitted requests hold UTF-8 alone.
        elements = bytes_tensor.decode(data, math.prod(shape))
        return np.array([element.decode() for element in elements], dtype=object).reshape(shape)
    array = _array(spec, data, shape)
    return _ort_value(array, spec) if spec.datatype == "BF16" else array


def _array(spec: TensorSpec, data: Buffer, shape: tuple[int, ...]) -> Array:
    """The numbers of a request; where they lie, if that is where the processor can read them."""
    array: Array = np.frombuffer(data, DATATYPES[spec.datatype].numpy).reshape(shape)
    return array if array.flags.aligned else array.copy()


def _ort_value(array: Array, spec: TensorSpec | None = None) -> ort.OrtValue:
    """An OrtValue over the array's own memory."""
    if spec is not None and spec.datatype == "BF16":
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, _BFLOAT16)
    return ort.OrtValue.ortvalue_from_numpy(array)


def _to_numpy(value: ort.OrtValue) -> Array:
    """A copy of a tensor; BF16, which ONNX Runtime does not hand to NumPy, as its bit patterns."""
    if value.element_type() != _BFLOAT16:
        array: Array = value.numpy()
        return array
    data = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return np.frombuffer(data, np.uint16).reshape(value.shape())


_LEVELS = (logging.DEBUG, logging.DEBUG, logging.WARNING, logging.ERROR, logging.CRITICAL)  # by ORT's severity, 0 to 4


def _ort_severity() -> int:
    """ONNX Runtime's least severity (2 warning, 3 error, 4 fatal) for our logger's level; its 'info' is our debug."""
    if log.isEnabledFor(logging.DEBUG):
        return 1
    return next((severity for severity in (2, 3) if log.isEnabledFor(_LEVELS[severity])), 4)


def _log_through_python() -> None:
    """Sends ONNX Runtime's messages to our logger, where its version can do so (1.32 and later); else to stderr."""
    register = getattr(ort, "set_default_logger_callback", None)
    if register is not None:
        register(_on_ort_message, _ort_severity())


def _on_ort_message(severity: int, category: str, logid: str, location: str, message: str) -> None:
    log.log(_LEVELS[severity], "%s: %s", logid or category, message)
