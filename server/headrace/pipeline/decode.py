"""Checks what a request says against what the model takes; the result serves all requests of the same look.

The texts are those that clients of the Open Inference Protocol know from Triton, completed by what was expected.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from headrace.datatypes import DATATYPES
from headrace.errors import InvalidRequest
from headrace.messages import ANY_WAIT, ReplyOutput, RequestedOutput, SequenceFlags
from headrace.pipeline.cropping import Crop
from headrace.pipeline.delivery import Delivery, described
from headrace.pipeline.screen import Screen, screen_of
from headrace.pipeline.wire import field_text

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    from headrace.messages import (
        Buffer,
        Fit,
        InferMessage,
        InferRequest,
        InputTensor,
        Owner,
        ParameterValue,
        QueuePolicy,
        Region,
        ReplyWriter,
        SharedMemory,
        Signature,
        TensorSpec,
    )
    from headrace.pipeline.buckets import Buckets
    from headrace.pipeline.rules import Rules

    MakeWriter = Callable[[str, str, Sequence[ReplyOutput]], ReplyWriter]

TIMING_PARAMETER = "headrace_timing"
FINAL_PARAMETER = "triton_enable_empty_final_response"
"""Of the keys that the protocol reserves, the one that clients may send; without effect but on a stream."""
SEQUENCE_ID, SEQUENCE_START, SEQUENCE_END = SEQUENCE_PARAMETERS = ("sequence_id", "sequence_start", "sequence_end")

MAX_SEQUENCE_ID = 128
"""Characters of a sequence_id that is text; Triton's limit."""

MAX_ELEMENTS = 1 << 40
"""More elements than any message can carry: a product of dimensions above it is refused before it is used."""


@dataclass(frozen=True, slots=True)
class ModelView:
    """What decoding needs to know of a model version.

    rules: of inputs, by name. owner: who runs its requests. split_oversize: whether a request may hold more
    rows than a batch. default_level: the priority level of a request that names none, or one that does not exist.
    labels: of the classes of an output, by its name. policies: how requests of a priority (from 0 on) wait; those that
    are not there, by `policy`. buckets: of inputs whose length varies; the signature is that of the model, clients need
    not know of what the server fills. pads: whether the owner lays rows into buckets, or has another do it.
    """

    name: str
    version: str
    signature: Signature
    rules: Mapping[str, Rules]
    owner: Owner
    split_oversize: bool = True
    priority_levels: int = 1
    default_level: int = 1
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    policy: QueuePolicy = ANY_WAIT
    policies: Mapping[int, QueuePolicy] = field(default_factory=dict)
    buckets: Buckets | None = None
    pads: bool = True

    def policy_of(self, priority: int) -> QueuePolicy:
        """How requests of a priority wait."""
        return self.policies.get(priority, self.policy)


class RequestTemplate:
    """A `messages.Template` for requests off the wire; `build_template` fills it.

    sizes: for each input of the signature, the raw bytes that a request must bring, -1 for BYTES. positions: for each
    input of the signature, its place among the `given` inputs of the request, -1 for one that the server fills.
    contents: raw forms of typed contents, in the request's order, or None where the tensors arrive raw. regions: of the
    request's inputs, in its order, those that lie in shared `memory`, None for the others. total: bytes of all tensors,
    0 where BYTES make it vary. pins: outputs go to shared memory. plain: one raw input of `total` bytes, and nothing
    pinned. screen: what the tensors must hold, None for anything; who takes a request asks it. timeout_ns: the
    request's own `timeout` or what the policy says instead, 0 for none. sequence: a model that keeps no state goes on
    without looking at it.
    """

    __slots__ = (
        "contents",
        "final",
        "fit",
        "given",
        "key",
        "memory",
        "model",
        "outputs",
        "owner",
        "pins",
        "plain",
        "policy",
        "positions",
        "priority",
        "regions",
        "reply",
        "rows",
        "screen",
        "sequence",
        "shapes",
        "sizes",
        "timeout_ns",
        "timing",
        "total",
    )

    whole: InferRequest | None = None

    def __init__(self, model: ModelView) -> None:
        self.model = model
        self.owner = model.owner
        self.reply: ReplyWriter
        self.rows = 1
        self.plain = False
        self.pins = False
        self.key: Hashable = ()
        self.shapes: tuple[tuple[int, ...], ...] = ()
        self.sizes: tuple[int, ...] = ()
        self.total = 0
        self.positions: tuple[int, ...] = ()
        self.given = 0
        self.contents: tuple[bytes, ...] | None = None
        self.memory: SharedMemory
        self.regions: tuple[Region | None, ...] | None = None
        self.screen: Screen | None = None
        self.outputs: tuple[int, ...] = ()
        self.priority = model.default_level - 1
        self.policy = model.policy
        self.timeout_ns = 0
        self.timing = False
        self.final = False
        self.fit: Fit | None = None
        self.sequence: SequenceFlags | None = None

    def of_sequence(self, sequence: SequenceFlags) -> RequestTemplate:
        """The same, for requests that are part of a sequence."""
        template = self._copy()
        template.sequence = sequence
        return template

    def bound(self, raw: Sequence[Buffer], id_field: bytes) -> tuple[RequestTemplate, Sequence[Buffer]]:
        """The template of one request, and what `bind` gives. Raises as `bind`.

        It is a template of the request's own where outputs go to shared memory, which is found here and now.
        """
        parts = self.bind(raw, id_field)
        if not self.pins:
            return self, parts
        template = self._copy()
        template.reply = _pinned(self.reply)
        return template, parts

    def _copy(self) -> RequestTemplate:
        template: RequestTemplate = object.__new__(RequestTemplate)
        for name in RequestTemplate.__slots__:
            setattr(template, name, getattr(self, name))
        return template

    def bind(self, raw: Sequence[Buffer], id_field: bytes) -> Sequence[Buffer]:
        """The request's tensors in the signature's order, each of the right size; what they hold is for `screen`.

        raw: `raw_input_contents`. id_field: the request's id on the wire, for the error. Raises InvalidRequest, and
        RegionNotFound.
        """
        if self.plain and len(raw) == 1 and len(raw[0]) == self.total:
            return raw
        if self.contents is not None:
            if raw:
                raise InvalidRequest(
                    "contents field must not be specified when using raw_input_contents for "
                    f"'{self._name(0)}' for model '{self.model.name}'"
                )
            raw = self.contents
        if self.regions is not None:
            raw = self._with_regions(raw)
        elif len(raw) != self.given:
            self._wrong_count(raw, self.given)
        parts = [raw[at] if at >= 0 else b"" for at in self.positions]
        for index, size in enumerate(self.sizes):
            if size >= 0 and len(parts[index]) != size:
                request_id = field_text(id_field) or "<id_unknown>"
                raise InvalidRequest(
                    f"[request id: {request_id}] input byte size mismatch for input "
                    f"'{self._name(index)}' for model '{self.model.name}'. Expected {size}, got {len(parts[index])}"
                )
        return parts

    def _name(self, index: int) -> str:
        return self.model.signature.inputs[index].name

    def _with_regions(self, raw: Sequence[Buffer]) -> list[Buffer]:
        """The tensors in the request's order: those that are not in shared memory are in `raw`, one after another."""
        assert self.regions is not None
        expected = self.regions.count(None)
        if len(raw) != expected:
            self._wrong_count(raw, expected)
        given = iter(raw)
        return [next(given) if region is None else self.memory.view(region) for region in self.regions]

    def _wrong_count(self, raw: Sequence[Buffer], expected: int) -> None:
        if len(raw) < expected:
            regions = self.regions or (None,) * self.given
            places = [place for place, region in enumerate(regions) if region is None]
            missing = self._name(self.positions.index(places[len(raw)]))
            raise InvalidRequest(
                f"unable to find data for input tensor '{missing}' for model '{self.model.name}' in request."
            )
        raise InvalidRequest(
            f"raw_input_contents has {len(raw)} entries, expected one for each of the {expected} inputs of "
            f"the request to model '{self.model.name}'{' that are not in shared memory' if self.regions else ''}"
        )


def build_template(
    message: InferMessage, model: ModelView, make_writer: MakeWriter, memory: SharedMemory
) -> RequestTemplate:
    """The template of `message`, checked against the model. Raises InvalidRequest.

    make_writer: makes what writes replies, of the model's name, its version and the outputs that a reply holds.
    memory: where tensors lie that are not in the message.
    """
    prefix = f"[request id: {message.id or '<id_unknown>'}] "
    template = RequestTemplate(model)
    _read_parameters(message.parameters, template)
    template.sequence = read_sequence(message.parameters)
    _match_inputs(message, model, prefix)
    by_name = {tensor.name: at for at, tensor in enumerate(message.inputs)}
    template.positions = tuple(by_name.get(spec.name, -1) for spec in model.signature.inputs)
    template.given = len(message.inputs)
    tensors = [message.inputs[at] if at >= 0 else None for at in template.positions]
    template.rows = _rows(tensors, model, prefix)
    requested = _outputs(message, model)
    template.outputs, template.reply = _delivery(requested, model, make_writer, memory)
    template.pins = any(output.region is not None for output in requested)
    shapes, template.sizes = _shapes_and_sizes(tensors, model, prefix)
    template.shapes = tuple(shape or () for shape in shapes)
    if model.buckets is not None:
        fit, bucket_shapes = model.buckets.fit(shapes, model.name)
        if model.pads:
            template.fit, template.shapes = fit, bucket_shapes
            template.reply = model.buckets.crop(template.reply, fit, template.outputs)
    template.total = 0 if -1 in template.sizes else sum(template.sizes)
    template.key = (template.shapes, template.outputs)
    template.contents = _contents(message, model)
    template.memory = memory
    if any(tensor.region for tensor in message.inputs):
        template.regions = tuple(tensor.region for tensor in message.inputs)
    for region in (*(tensor.region for tensor in message.inputs), *(output.region for output in message.outputs)):
        if region is not None:
            memory.view(region)  # known, and large enough, or refused now
    batched = model.signature.max_batch > 0
    template.screen = screen_of(model.signature.inputs, tensors, model.rules, model.name, batched=batched)
    template.plain = (
        len(template.sizes) == 1
        and template.sizes[0] >= 0
        and template.contents is None
        and template.regions is None
        and not template.pins
    )
    return template


def _read_parameters(parameters: Mapping[str, ParameterValue], template: RequestTemplate) -> None:
    for key, value in parameters.items():
        if key == "timeout":
            template.timeout_ns = _integer(key, value, "microseconds") * 1000
        elif key == "priority":
            level = _integer(key, value, "a priority level")
            levels = template.model.priority_levels
            template.priority = (level if 0 < level <= levels else template.model.default_level) - 1
        elif key == TIMING_PARAMETER:
            if not isinstance(value, bool):
                raise InvalidRequest(f"parameter '{key}' is {value!r}, expected a boolean")
            template.timing = value
        elif key == FINAL_PARAMETER:
            template.final = value is True
        elif key.startswith("triton_"):
            raise InvalidRequest(
                "parameter keys starting with 'triton_' are reserved for Triton usage. "
                f"Only ['{FINAL_PARAMETER}'] may be given, got '{key}'"
            )
    template.policy = template.model.policy_of(template.priority)
    template.timeout_ns = template.policy.limit_ns(template.timeout_ns)


def _integer(key: str, value: ParameterValue, unit: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InvalidRequest(f"parameter '{key}' is {value!r}, expected a non-negative integer ({unit})")
    return value


def read_sequence(parameters: Mapping[str, ParameterValue]) -> SequenceFlags | None:
    """Which sequence a request is part of; None if it says nothing of one. Raises InvalidRequest."""
    if not any(key in parameters for key in SEQUENCE_PARAMETERS):
        return None
    sequence_id = parameters.get(SEQUENCE_ID, 0)
    if isinstance(sequence_id, bool | float):
        raise InvalidRequest(f"parameter '{SEQUENCE_ID}' is {sequence_id!r}, expected an integer or a string")
    if isinstance(sequence_id, int):
        sequence_id %= 1 << 64  # a signed field may carry an unsigned number
    elif len(sequence_id) > MAX_SEQUENCE_ID:
        raise InvalidRequest(
            f"string correlation ID cannot be longer than {MAX_SEQUENCE_ID} characters, got {len(sequence_id)}"
        )
    flags = []
    for key in (SEQUENCE_START, SEQUENCE_END):
        flag = parameters.get(key, False)
        if not isinstance(flag, bool):
            raise InvalidRequest(f"parameter '{key}' is {flag!r}, expected a boolean")
        flags.append(flag)
    return SequenceFlags(sequence_id, *flags)


def _match_inputs(message: InferMessage, model: ModelView, prefix: str) -> None:
    """Each input of the model is there once, but for those that the server fills, and nothing else; datatypes agree."""
    expected = {spec.name: spec for spec in model.signature.inputs}
    got: set[str] = set()
    for tensor in message.inputs:
        spec = expected.get(tensor.name)
        if spec is None:
            raise InvalidRequest(
                f"unexpected inference input '{tensor.name}' for model '{model.name}'. Expected {sorted(expected)}"
            )
        if tensor.name in got:
            raise InvalidRequest(f"{prefix}input '{tensor.name}' already exists in request")
        got.add(tensor.name)
    optional = model.buckets.optional if model.buckets is not None else frozenset()
    if missing := [name for name in expected if name not in got and name not in optional]:
        raise InvalidRequest(
            f"{prefix}expected {len(got) + len(missing)} inputs but got {len(got)} inputs for model '{model.name}'. "
            f"Got input(s) {sorted(got)}, but missing required input(s) {missing}. "
            "Please provide all required input(s)."
        )
    for tensor in message.inputs:
        wanted = expected[tensor.name].datatype
        if tensor.datatype != wanted:
            known = "" if tensor.datatype in DATATYPES else f" ('{tensor.datatype}' is not a datatype of the protocol)"
            raise InvalidRequest(
                f"{prefix}inference input '{tensor.name}' data-type is '{tensor.datatype}', but model '{model.name}' "
                f"expects '{wanted}'{known}"
            )


def _rows(tensors: Sequence[InputTensor | None], model: ModelView, prefix: str) -> int:
    """The batch size that all inputs agree upon; 1 for a model without batching."""
    limit = model.signature.max_batch
    if not limit:
        return 1
    rows = 0
    for spec, tensor in zip(model.signature.inputs, tensors, strict=True):
        if tensor is None:
            continue
        if not tensor.shape or tensor.shape[0] < 1:
            raise InvalidRequest(prefix + _unexpected_shape(spec, tensor, model))
        if rows and tensor.shape[0] != rows:
            raise InvalidRequest(
                f"{prefix}input '{tensor.name}' batch size does not match other inputs for '{model.name}': "
                f"{tensor.shape[0]} and {rows}"
            )
        rows = tensor.shape[0]
    rows = rows or 1  # a model without inputs
    if rows > limit and not model.split_oversize:
        raise InvalidRequest(f"{prefix}inference request batch-size must be <= {limit} for '{model.name}'")
    return rows


def _shapes_and_sizes(
    tensors: Sequence[InputTensor | None], model: ModelView, prefix: str
) -> tuple[tuple[tuple[int, ...] | None, ...], tuple[int, ...]]:
    """Of each input of the signature, the non-batch dimensions and the bytes; None and 0 of one that is left out."""
    shapes: list[tuple[int, ...] | None] = []
    sizes: list[int] = []
    for spec, tensor in zip(model.signature.inputs, tensors, strict=True):
        if tensor is None:
            shapes.append(None)
            sizes.append(0)
            continue
        dims = tensor.shape[1:] if model.signature.max_batch else tensor.shape
        fits = len(dims) == len(spec.shape) and all(
            got >= 0 if want < 0 else got == want for got, want in zip(dims, spec.shape, strict=True)
        )
        elements = most = 1
        for dim in tensor.shape if fits else ():
            elements *= dim
            most *= dim or 1  # what has no elements for another dimension may have too many in this one
            fits = fits and most <= MAX_ELEMENTS
        if not fits:
            raise InvalidRequest(prefix + _unexpected_shape(spec, tensor, model))
        itemsize = DATATYPES[spec.datatype].itemsize
        shapes.append(dims)
        sizes.append(elements * itemsize if itemsize else -1)
    return tuple(shapes), tuple(sizes)


def _unexpected_shape(spec: TensorSpec, tensor: InputTensor, model: ModelView) -> str:
    batched = model.signature.max_batch > 0
    expected = [-1, *spec.shape] if batched else list(spec.shape)
    note = (
        " NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension to be prepended to "
        "each input shape."
        if batched
        else ""
    )
    return (
        f"unexpected shape for input '{spec.name}' for model '{model.name}'. Expected {_dims(expected)}, "
        f"got {_dims(tensor.shape)}.{note}"
    )


def _dims(shape: Sequence[int]) -> str:
    return "[" + ",".join(map(str, shape)) + "]"


def _outputs(message: InferMessage, model: ModelView) -> Sequence[RequestedOutput]:
    """The requested outputs, each one that there is; all of them where the request names none."""
    known = [spec.name for spec in model.signature.outputs]
    names = [output.name for output in message.outputs]
    for name in names:
        if name not in known:
            raise InvalidRequest(
                f"unexpected inference output '{name}' for model '{model.name}'. Expected some of {sorted(known)}"
            )
    if len(set(names)) != len(names):
        raise InvalidRequest(f"an output is requested twice of model '{model.name}': {names}")
    return message.outputs or [RequestedOutput(name) for name in known]


def _delivery(
    requested: Sequence[RequestedOutput], model: ModelView, make_writer: MakeWriter, memory: SharedMemory
) -> tuple[tuple[int, ...], ReplyWriter]:
    """Indices of the outputs in the signature, and what writes the replies that hold them."""
    index = {spec.name: at for at, spec in enumerate(model.signature.outputs)}
    indices = tuple(index[output.name] for output in requested)
    specs = [model.signature.outputs[at] for at in indices]
    writer = make_writer(
        model.name, model.version, [described(output, spec) for output, spec in zip(requested, specs, strict=True)]
    )
    if any(output.classes or output.region for output in requested):
        batched = model.signature.max_batch > 0
        writer = Delivery(requested, specs, writer, memory, model.labels, batched=batched)
    return indices, writer


def _pinned(writer: ReplyWriter) -> ReplyWriter:
    """The writer with what it holds of `Delivery` pinned."""
    if isinstance(writer, Crop):
        return writer.around(_pinned(writer.inner))
    return writer.pinned() if isinstance(writer, Delivery) else writer


def _contents(message: InferMessage, model: ModelView) -> tuple[bytes, ...] | None:
    given = [tensor.contents for tensor in message.inputs if tensor.contents is not None]
    if not given:
        return None
    for tensor in message.inputs:
        if tensor.contents is None and tensor.region is None:
            raise InvalidRequest(
                f"unable to find data for input tensor '{tensor.name}' for model '{model.name}' in request."
            )
    return tuple(given)
