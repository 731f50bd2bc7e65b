"""From a parsed ModelInferRequest to an `InferMessage`: the only place that knows both."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from headrace.datatypes import DATATYPES
from headrace.errors import InvalidRequest
from headrace.messages import InferMessage, InputTensor, RequestedOutput
from headrace.transport.elements import raw_numbers
from headrace.transport.tensor_parameters import classes_of, region_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headrace.messages import ParameterValue
    from headrace.rpc import inference_pb2 as pb

CONTENTS_FIELD: Mapping[str, str] = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""Field of InferTensorContents that carries each datatype; FP16 and BF16 travel raw only."""

MAX_TENSORS = 65_536
MAX_DIMS = 64
"""Bounds on what is turned into objects, far above any model: each costs a hundred times its bytes on the wire."""


def infer_message(request: pb.ModelInferRequest) -> InferMessage:
    """All of `request` but its raw tensors. Raises InvalidRequest."""
    most = max(len(request.inputs), len(request.outputs), len(request.parameters))
    if most > MAX_TENSORS:
        raise InvalidRequest(f"the request has {most} inputs, outputs or parameters, at most {MAX_TENSORS} are taken")
    return InferMessage(
        model_name=request.model_name,
        model_version=request.model_version,
        id=request.id,
        parameters=parameters_of(request.parameters),
        inputs=tuple(_input(tensor, request.model_name) for tensor in request.inputs),
        outputs=tuple(_output(tensor, request.model_name) for tensor in request.outputs),
    )


def parameters_of(parameters: Mapping[str, pb.InferParameter]) -> dict[str, ParameterValue]:
    """By name; a parameter without a value is empty text."""
    return {key: _parameter(value) for key, value in parameters.items()}


def _parameter(value: pb.InferParameter) -> ParameterValue:
    kind = value.WhichOneof("parameter_choice")
    found: ParameterValue = getattr(value, kind) if kind else ""
    return found


def _input(tensor: pb.ModelInferRequest.InferInputTensor, model: str) -> InputTensor:
    what = f"input '{tensor.name}' for model '{model}'"
    if len(tensor.shape) > MAX_DIMS:
        raise InvalidRequest(f"{what} has {len(tensor.shape)} dimensions, expected at most {MAX_DIMS}")
    region = region_of(parameters_of(tensor.parameters), what) if tensor.parameters else None
    contents = _contents(tensor, model) if tensor.HasField("contents") else None
    if region is not None and contents:
        raise InvalidRequest(f"{what} has contents and a shared memory region, expected one of them")
    return InputTensor(tensor.name, tensor.datatype, tuple(tensor.shape), None if region else contents, region)


def _output(tensor: pb.ModelInferRequest.InferRequestedOutputTensor, model: str) -> RequestedOutput:
    if not tensor.parameters:
        return RequestedOutput(tensor.name)
    what = f"output '{tensor.name}' of model '{model}'"
    parameters = parameters_of(tensor.parameters)
    return RequestedOutput(tensor.name, classes_of(parameters, what), region_of(parameters, what))


def _contents(tensor: pb.ModelInferRequest.InferInputTensor, model: str) -> bytes | None:
    """Typed contents as raw little-endian bytes; None if the field is there but empty and elements are expected."""
    filled = [field.name for field, _ in tensor.contents.ListFields()]
    expected = CONTENTS_FIELD.get(tensor.datatype)
    elements = prod(max(dim, 0) for dim in tensor.shape)
    if not filled:
        return b"" if elements == 0 else None
    what = f"input '{tensor.name}' for model '{model}'"
    if tensor.datatype not in DATATYPES:
        return None  # decoding says what is wrong with it
    if expected is None or filled != [expected]:
        wanted = f"'{expected}'" if expected else "raw_input_contents"
        raise InvalidRequest(f"{what} has {', '.join(filled)}, but datatype '{tensor.datatype}' takes {wanted}")
    values = getattr(tensor.contents, expected)
    if len(values) != elements:
        raise InvalidRequest(
            f"{what} has {len(values)} elements in its contents, but its shape {list(tensor.shape)} holds {elements}"
        )
    if tensor.datatype == "BYTES":
        return b"".join(len(value).to_bytes(4, "little") + value for value in values)
    return raw_numbers(values, tensor.datatype, what)
