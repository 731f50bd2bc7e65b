"""What an ONNX file declares of its inputs and outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxruntime.capi import _pybind_state

from headrace.errors import ModelLoadError
from headrace.messages import Signature, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import onnxruntime as ort

DEFAULT_MAX_BATCH = 64

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


def session_signature(session: ort.InferenceSession, max_batch: int | None) -> Signature:
    """Inputs and outputs of a session. See `make_signature`."""
    return make_signature(session.get_inputs(), session.get_outputs(), max_batch)


def file_signature(file: Path, options: ort.SessionOptions, max_batch: int | None) -> Signature:
    """Inputs and outputs of a file, before any provider has seen it: it may have operators for GPUs alone.

    ONNX Runtime's Python classes open a file and choose providers in one step; below them these are two (all versions
    from 1.22 to 1.32). Raises ModelLoadError if it is no model.
    """
    try:
        unplaced = _pybind_state.InferenceSession(options, str(file), True, False)
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        raise ModelLoadError(f"ONNX Runtime cannot load {file}: {error}") from error
    return make_signature(unplaced.inputs_meta, unplaced.outputs_meta, max_batch)


def make_signature(
    inputs_meta: Sequence[ort.NodeArg], outputs_meta: Sequence[ort.NodeArg], max_batch: int | None
) -> Signature:
    """The signature of these. Tensors can batch when the first dimension of all of them is dynamic.

    max_batch: the configured one, None for none. Raises ModelLoadError for what the protocol cannot carry, or a
    max_batch of tensors that cannot batch.
    """
    inputs = [_spec("input", argument) for argument in inputs_meta]
    outputs = [_spec("output", argument) for argument in outputs_meta]
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


def bindable(signature: Signature) -> bool:
    """Whether its tensors can have buffers once and for all: `writable`, with all dimensions known but the batch's."""
    return writable(signature) and all(spec.fixed for spec in (*signature.inputs, *signature.outputs))


def writable(signature: Signature) -> bool:
    """Whether ONNX Runtime reads its inputs from buffers that it is given, and writes its outputs into such.

    Not texts, and not an output that is an input as it came: ONNX Runtime gives back the input itself.
    """
    specs = (*signature.inputs, *signature.outputs)
    as_it_came = {spec.name for spec in signature.inputs}.intersection(spec.name for spec in signature.outputs)
    return bool(signature.inputs) and all(spec.datatype != "BYTES" for spec in specs) and not as_it_came


def _spec(kind: str, argument: ort.NodeArg) -> TensorSpec:
    datatype = _DATATYPES.get(argument.type)
    if datatype is None:
        hint = "; export the classifier without ZipMap" if argument.type.startswith(("seq(map", "map")) else ""
        raise ModelLoadError(f"{kind} {argument.name!r} is {argument.type}, which the protocol cannot carry{hint}")
    return TensorSpec(argument.name, datatype, tuple(d if isinstance(d, int) else -1 for d in argument.shape or ()))
