"""Inference over HTTP: from the body of a request to the queue of its model.

As on gRPC, requests of one look are recognised and not parsed: the JSON before tensors in binary form repeats from call
to call but for the id, which is cut out of it. What carries its elements in the JSON has to be parsed; checked is it,
too, only once for each look.
"""

from __future__ import annotations

import re
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any, Protocol

import orjson

from headrace.datatypes import DATATYPES
from headrace.errors import InvalidRequest, ModelNotReady
from headrace.messages import InferMessage, InputTensor
from headrace.pipeline.decode import build_template
from headrace.pipeline.wire import length_prefixed
from headrace.transport.admin import NOT_READY
from headrace.transport.intake import Intake
from headrace.transport.rest.head import WHOLE_JSON, InferHead, Target
from headrace.transport.rest.infer_json import BINARY_SIZE, IN_JSON, Described, describe, take_out
from headrace.transport.rest.json_text import JsonLimits, dump, parse
from headrace.transport.rest.reply import RestReplies
from headrace.transport.service import InferCall

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from headrace.engine.served import Served
    from headrace.engine.turn import Turn
    from headrace.messages import Buffer, SharedMemory, TensorSpec
    from headrace.pipeline.decode import RequestTemplate
    from headrace.repository.catalog import Catalog
    from headrace.transport.rest.infer_json import InputForm

    Opened = tuple[RequestTemplate, Sequence[Buffer], bytes]

_ID = re.compile(rb'\s*\{\s*"id"\s*:\s*"([^"\\\x00-\x1f]*)"')
"""The beginning of a request's JSON, where clients put the id."""

_LEAD = 4096
"""Octets of a look that is kept."""

_LOOKS = 1024
"""Looks that are kept, a few kilobytes each; with one more all are forgotten, so that nobody can fill the memory."""


class Availability(Protocol):
    """Whether the server takes requests. exiting: it drains, and its schedulers say so themselves."""

    @property
    def ready(self) -> bool: ...  # noqa: D102
    @property
    def exiting(self) -> bool: ...  # noqa: D102


class RestCall(InferCall, Protocol):
    """An inference request whose body has arrived, as `request`, and is not compressed any more."""

    head: InferHead


class _Look:
    """What requests have in common whose JSON is the same but for the id and the elements of tensors.

    forms: of the inputs, in the request's order. octets: of all that come in binary form. single: that is the only one.
    parsed: whether the JSON of such a request holds elements.
    """

    __slots__ = ("forms", "octets", "parsed", "single", "template")

    def __init__(self, template: RequestTemplate, forms: tuple[InputForm, ...]) -> None:
        self.template = template
        self.forms = forms
        self.octets = sum(max(form.size, 0) for form in forms)
        self.single = len(forms) == 1 and forms[0].size >= 0
        self.parsed = any(form.size == IN_JSON for form in forms)

    def raw(self, body: Buffer, at: int, data: Sequence[object] = ()) -> list[Buffer]:
        """The tensors that are not in shared memory; those in binary form fill the body from `at` on.

        data: elements of each input, None where the JSON has none. Raises InvalidRequest.
        """
        if at + self.octets != len(body):
            wrong = "unexpected additional" if at + self.octets < len(body) else "missing"
            raise InvalidRequest(
                f"{wrong} input data for model '{self.template.model.name}': {len(body) - at} octets follow the JSON, "
                f"expected {self.octets} by the '{BINARY_SIZE}' of its inputs"
            )
        tensors: list[Buffer] = []
        for form, elements in zip(self.forms, data or [None] * len(self.forms), strict=True):
            size = max(form.size, 0)
            tensor = form.raw(body[at : at + size], elements)
            at += size
            if tensor is not None:
                tensors.append(tensor)
        return tensors


class RestInfer(Intake[RestCall]):
    """The `Infer` of the HTTP port.

    catalog, turn, refused: see `Intake`. memory: of tensors that are not in the bodies. available: asked at each
    request. limits: of JSON.
    """

    def __init__(
        self,
        catalog: Catalog[Served],
        turn: Turn,
        refused: Callable[[str], None],
        memory: SharedMemory,
        available: Availability,
        limits: JsonLimits,
    ) -> None:
        super().__init__(catalog, turn, refused)
        self._memory = memory
        self._available = available
        self._limits = limits
        self._targets: dict[Target, dict[bytes, _Look]] = {}
        self._looks = 0

    def __repr__(self) -> str:
        return f"<RestInfer {len(self._targets)} targets, {self._looks} looks, generation {self._generation}>"

    def _open(self, message: Buffer, call: RestCall) -> Opened:
        """See `Intake`. Raises HeadraceError."""
        head = call.head
        if not self._available.ready and not self._available.exiting:
            raise ModelNotReady(NOT_READY)
        at = head.json_length
        if at == 0:
            return self._open_raw(message, head.target)
        if at == WHOLE_JSON:
            at = len(message)
        elif at > len(message):
            raise InvalidRequest(
                f"inference header size should be in range (0, {len(message)}), got: {at}: the body is shorter than "
                "Inference-Header-Content-Length says"
            )
        if at <= _LEAD:
            text = bytes(message[:at])
            looks = self._targets.get(head.target)
            if looks is not None:
                look, id_field = _recognise(looks, text)
                if look is not None:
                    whole = look.single and at + look.octets == len(message)
                    raw = (message[at:],) if whole else look.raw(message, at)
                    return (*look.template.bound(raw, id_field), id_field)
        return self._parse(message, at, head.target)

    def _named(self, message: Buffer, call: RestCall) -> tuple[str, str]:
        """See `Intake`."""
        return call.head.target

    def _parse(self, message: Buffer, at: int, target: Target) -> Opened:
        """The same for a request that is not recognised; one without elements in its JSON will be, from now on."""
        text = bytes(message[:at])
        request = parse(text, self._limits)
        request_id, data = take_out(request)
        id_field = _id_field(request_id)
        form = _form(request) if at <= _LEAD else b""
        look = self._targets.get(target, {}).get(form)
        if look is None:
            described = describe(request, request_id, *target)
            look = _Look(self._template(described), described.inputs)
            self._remember(target, form, look)
        raw = look.raw(message, at, data)
        if not look.parsed and at <= _LEAD:  # and no input has elements beside its octets
            self._remember(target, _recognisable(text, request_id), look)
        return (*look.template.bound(raw, id_field), id_field)

    def _template(self, described: Described) -> RequestTemplate:
        message = described.message
        scheduler = self._catalog.resolve(message.model_name, message.model_version)
        replies = partial(RestReplies, binary=described.binary)
        return build_template(message, scheduler.view, replies, self._memory)

    def _open_raw(self, message: Buffer, target: Target) -> Opened:
        """A body that is the only input of its model, without JSON; its shape follows from its size."""
        key = b"#%d" % len(message)
        look = self._targets.get(target, {}).get(key)
        if look is None:
            signature = self._catalog.resolve(*target).signature
            if len(signature.inputs) != 1:
                raise InvalidRequest(
                    f"a body without JSON is the only input of its model, but model '{target.name}' has "
                    f"{len(signature.inputs)} inputs"
                )
            spec = signature.inputs[0]
            shape = _raw_shape(spec, len(message), target.name, batched=signature.max_batch > 0)
            tensor = InputTensor(spec.name, spec.datatype, shape)
            described = Described(InferMessage(*target, "", {}, (tensor,), ()), (), binary=True)
            look = _Look(self._template(described), ())
            self._remember(target, key, look)
        if not DATATYPES[look.template.model.signature.inputs[0].datatype].itemsize:
            message = len(message).to_bytes(4, "little") + bytes(message)
        return (*look.template.bound((message,), b""), b"")

    def _remember(self, target: Target, key: bytes, look: _Look) -> None:
        if not key:
            return
        if self._looks >= _LOOKS:
            self._forget()
        looks = self._targets.setdefault(target, {})
        self._looks += key not in looks
        looks[key] = look

    def _forget(self) -> None:
        self._targets.clear()
        self._looks = 0


def _recognise(looks: dict[bytes, _Look], text: bytes) -> tuple[_Look | None, bytes]:
    """The look of a request's JSON, and its id as protobuf has it. Raises InvalidRequest for one that is not UTF-8."""
    look = looks.get(text)
    if look is not None:
        return look, b""
    match = _ID.match(text)
    if match is None:
        return None, b""
    look = looks.get(text[match.end(1) :])
    request_id = match[1]
    if look is None or not request_id:
        return look, b""
    if not request_id.isascii():
        try:
            request_id.decode()
        except UnicodeDecodeError:
            raise InvalidRequest("the request is not valid JSON: its id is not UTF-8") from None
    return look, length_prefixed(3, request_id)


def _recognisable(text: bytes, request_id: str) -> bytes:
    """What `_recognise` shall know a request's JSON by: all of it, or what follows its id; empty for nothing."""
    match = _ID.match(text)
    if match is None:
        return b"" if request_id else text
    # only if it is this that tells the id: a member of that name may come again, and the last one counts
    try:
        other = orjson.loads(text[: match.end(1)] + b"?" + text[match.end(1) :])
    except ValueError:  # with NaN in it
        return b""
    return text[match.end(1) :] if other["id"] == request_id + "?" else b""


def _form(request: dict[str, Any]) -> bytes:
    """A look by what has been parsed of it; no JSON text is the same. Empty if it cannot be written again."""
    try:
        return b"=" + dump(request)
    except TypeError:
        return b""


def _id_field(request_id: str) -> bytes:
    try:
        return length_prefixed(3, request_id.encode()) if request_id else b""
    except UnicodeEncodeError:
        raise InvalidRequest("the request's id has half of a surrogate pair, expected Unicode") from None


def _raw_shape(spec: TensorSpec, size: int, model: str, *, batched: bool) -> tuple[int, ...]:
    """The shape of an input that came as `size` octets: at most one of its dimensions follows from that.

    The batch is that dimension where no other is free, and else of one row. BYTES are one element.
    """
    dims = ((-1 if spec.fixed else 1), *spec.shape) if batched else spec.shape
    free = dims.count(-1)
    if free > 1:
        raise InvalidRequest(
            f"a body without JSON does not tell the shape of input '{spec.name}' for model '{model}': {free} of its "
            f"dimensions are free in {list(spec.shape)}"
        )
    known = prod(dim for dim in dims if dim >= 0) * (DATATYPES[spec.datatype].itemsize or 1)
    if not DATATYPES[spec.datatype].itemsize:
        return tuple(1 if dim < 0 else dim for dim in dims)
    rest = max(size // known, 1 if batched and spec.fixed else 0) if known else 1
    return tuple(rest if dim < 0 else dim for dim in dims)
