"""From the JSON of an inference request to an `InferMessage`: the only place that knows both.

Source: Open Inference Protocol, "Inference Request JSON Object", and Triton's binary tensor data extension.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from headrace.errors import InvalidRequest
from headrace.messages import InferMessage, InputTensor, RequestedOutput
from headrace.transport.infer_message import MAX_DIMS, MAX_TENSORS
from headrace.transport.rest.json_tensors import raw_of
from headrace.transport.tensor_parameters import classes_of, region_of

if TYPE_CHECKING:
    from headrace.messages import Buffer, ParameterValue

IN_JSON, IN_MEMORY = -1, -2
BINARY_SIZE, BINARY, ALL_BINARY = "binary_data_size", "binary_data", "binary_data_output"

T = TypeVar("T", str, dict[str, Any], list[Any], bool)

_NAMES: dict[type, str] = {str: "a string", dict: "an object", list: "an array", bool: "true or false"}


class InputForm(NamedTuple):
    """How an input of a request is given. size: octets in binary form, or `IN_JSON`, or `IN_MEMORY`."""

    name: str
    model: str
    datatype: str
    shape: tuple[int, ...]
    size: int

    def raw(self, binary: Buffer, elements: object) -> Buffer | None:
        """The raw tensor; None: it lies in shared memory. elements: None if the JSON has none. Raises InvalidRequest.

        binary: the octets, if it is in binary form.
        """
        what = f"input '{self.name}' for model '{self.model}'"
        if self.size != IN_JSON:
            if elements is not None:
                other = "a shared memory region" if self.size == IN_MEMORY else f"'{BINARY_SIZE}'"
                raise InvalidRequest(f"{what} has 'data' and {other}, expected one of them")
            return None if self.size == IN_MEMORY else binary
        if elements is None:
            if 0 in self.shape:
                return b""
            raise InvalidRequest(
                f"unable to find data for input tensor '{self.name}' for model '{self.model}' in request."
            )
        if not isinstance(elements, list):
            raise InvalidRequest(f"Unable to parse 'data' of {what}: it is {_name(elements)}, expected an array")
        return raw_of(elements, self.datatype, self.shape, what)


class Described(NamedTuple):
    """A request without its id and its tensors. binary: the form of outputs for which no form is asked."""

    message: InferMessage
    inputs: tuple[InputForm, ...]
    binary: bool


def take_out(request: Any) -> tuple[str, list[Any]]:  # noqa: ANN401
    """Takes the id and the elements of each input out of a request; what is left is the same for many requests.

    The elements of an input are None where there are none. Raises InvalidRequest.
    """
    if not isinstance(request, dict):
        raise InvalidRequest(f"the request's JSON is {_name(request)}, expected an object")
    inputs = _get(request, "inputs", list, "the request")
    if inputs is None:
        raise InvalidRequest("Unable to parse 'inputs': there are none, expected an array of tensors")
    request_id = _get(request, "id", str, "the request") or ""
    request.pop("id", None)
    return request_id, [tensor.pop("data", None) if isinstance(tensor, dict) else None for tensor in inputs]


def describe(request: dict[str, Any], request_id: str, name: str, version: str) -> Described:
    """What is left of a request when `take_out` has been there. name, version: the model's. Raises InvalidRequest."""
    parameters = _parameters(request, "the request")
    binary = _get(parameters, ALL_BINARY, bool, "the request")
    parameters.pop(ALL_BINARY, None)
    requested = _get(request, "outputs", list, "the request") or []
    most = max(len(request["inputs"]), len(requested), len(parameters))
    if most > MAX_TENSORS:
        raise InvalidRequest(f"the request has {most} inputs, outputs or parameters, at most {MAX_TENSORS} are taken")
    inputs = [_input(tensor, at, name) for at, tensor in enumerate(request["inputs"])]
    outputs = tuple(_output(output, at, name, bool(binary)) for at, output in enumerate(requested))
    tensors = tuple(tensor for tensor, _ in inputs)
    message = InferMessage(name, version, request_id, parameters, tensors, outputs)
    return Described(message, tuple(form for _, form in inputs), bool(binary))


def _input(tensor: object, at: int, model: str) -> tuple[InputTensor, InputForm]:
    what = f"input {at} of the request to model '{model}'"
    if not isinstance(tensor, dict):
        raise InvalidRequest(f"Unable to parse 'inputs': {what} is {_name(tensor)}, expected an object")
    name = _required(tensor, "name", str, what)
    what = f"input '{name}' for model '{model}'"
    datatype = _required(tensor, "datatype", str, what)
    shape = _shape(_required(tensor, "shape", list, what), what)
    parameters = _parameters(tensor, what)
    region = region_of(parameters, what)
    size = parameters.get(BINARY_SIZE)
    if size is not None and (type(size) is not int or size < 0):
        raise InvalidRequest(f"Unable to parse '{BINARY_SIZE}' of {what}: got {size!r}, expected a number of bytes")
    if region is not None and size is not None:
        raise InvalidRequest(f"{what} has '{BINARY_SIZE}' and a shared memory region, expected one of them")
    form = IN_MEMORY if region is not None else IN_JSON if size is None else size
    return InputTensor(name, datatype, shape, None, region), InputForm(name, model, datatype, shape, form)


def _output(output: object, at: int, model: str, binary: bool) -> RequestedOutput:
    what = f"output {at} that is requested of model '{model}'"
    if not isinstance(output, dict):
        raise InvalidRequest(f"Unable to parse 'outputs': {what} is {_name(output)}, expected an object")
    name = _required(output, "name", str, what)
    what = f"output '{name}' of model '{model}'"
    parameters = _parameters(output, what)
    own = _get(parameters, BINARY, bool, what)
    return RequestedOutput(
        name, classes_of(parameters, what), region_of(parameters, what), binary if own is None else own
    )


def _shape(shape: list[Any], what: str) -> tuple[int, ...]:
    if len(shape) > MAX_DIMS:
        raise InvalidRequest(f"{what} has {len(shape)} dimensions, expected at most {MAX_DIMS}")
    if not all(type(dim) is int for dim in shape):
        raise InvalidRequest(f"Unable to parse 'shape' of {what}: got {shape!r}, expected an array of integers")
    return tuple(shape)


def _parameters(owner: dict[str, Any], what: str) -> dict[str, ParameterValue]:
    parameters = _get(owner, "parameters", dict, what) or {}
    for key, value in parameters.items():
        if not isinstance(value, bool | int | float | str):
            raise InvalidRequest(
                f"{what}: parameter '{key}' is {_name(value)}, expected a string, a number, true or false"
            )
    return dict(parameters)


def _get(owner: dict[str, Any], key: str, kind: type[T], what: str) -> T | None:
    """A member of that type; None if it is not there, or null. Raises InvalidRequest."""
    value = owner.get(key)
    if value is not None and not isinstance(value, kind):
        raise InvalidRequest(f"Unable to parse '{key}' of {what}: it is {_name(value)}, expected {_NAMES[kind]}")
    return value


def _required(owner: dict[str, Any], key: str, kind: type[T], what: str) -> T:
    value = _get(owner, key, kind, what)
    if value is None:
        raise InvalidRequest(f"Unable to parse '{key}' of {what}: it is missing, expected {_NAMES[kind]}")
    return value


def _name(value: object) -> str:
    if value is None:
        return "null"
    return _NAMES.get(type(value), "a number")
