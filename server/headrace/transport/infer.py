"""ModelInfer: from a serialised request to the queue of its model, with next to no work for a look already seen.

A ModelInferRequest is, in the order in which protobuf libraries write it: name and version (the head), the id, the
description of parameters, inputs and outputs (the look), and the raw tensors. Head and look repeat from call to call
while id and tensors differ, so the first two are parsed and checked once and then recognised by their bytes; the id is
copied to the reply as it is, the tensors are cut out. Messages of any other order go through the parser whole.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from headrace.errors import InvalidRequest
from headrace.pipeline.decode import SEQUENCE_PARAMETERS, build_template, read_sequence
from headrace.pipeline.encode import ReplyEncoder
from headrace.pipeline.wire import Malformed, length_prefixed, read_varint, skip_field, varint
from headrace.rpc import inference_pb2 as pb
from headrace.transport.infer_message import MAX_TENSORS, infer_message, parameters_of
from headrace.transport.intake import Intake
from headrace.transport.sequence_look import cut_sequence
from headrace.transport.service import InferCall

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from headrace.engine.served import Served
    from headrace.engine.turn import Turn
    from headrace.messages import Buffer, ParameterValue, SequenceFlags, SharedMemory
    from headrace.pipeline.decode import RequestTemplate
    from headrace.repository.catalog import Catalog

NAME_TAG, VERSION_TAG, ID_TAG, RAW_TAG = 0x0A, 0x12, 0x1A, 0x3A
_LEAD = 4096
"""How much of a message is searched for its head, id and look."""
_LONGEST_ID = 2 + 0x7F
"""What the id field of a recognised message may take of it."""
_MOST_FIELDS = 4 * MAX_TENSORS
"""Fields that a message is searched through: what has more than that has more tensors or parameters than are taken."""
_LOOKS = 1024
"""Looks that are kept, a few kilobytes each; with one more all are forgotten, so that nobody can fill the memory."""
_SEQUENCE_LOOKS = 4096
"""The same for looks that differ from others in their sequence alone; they take half a kilobyte each."""


class _Looks:
    """The looks of one head. guess: length of the one seen last, which is nearly always that of the next."""

    __slots__ = ("guess", "templates")

    def __init__(self) -> None:
        self.guess = 0
        self.templates: dict[bytes, RequestTemplate] = {}


class InferService(Intake[InferCall]):
    """The `Infer` of the gRPC transports.

    catalog, turn, refused: see `Intake`. memory: of tensors that are not in the messages.
    """

    def __init__(
        self, catalog: Catalog[Served], turn: Turn, refused: Callable[[str], None], memory: SharedMemory
    ) -> None:
        super().__init__(catalog, turn, refused)
        self._memory = memory
        self._heads: dict[bytes, _Looks] = {}
        self._looks = 0
        self._openings: dict[bytes, RequestTemplate] = {}  # see _remember
        self._opening = 0  # length of that of the last message that had one
        self._sequence_looks: list[tuple[dict[bytes, RequestTemplate], bytes]] = []

    def __repr__(self) -> str:
        return f"<InferService {len(self._heads)} heads, {self._looks} looks, generation {self._generation}>"

    def _open(self, message: Buffer, call: InferCall) -> tuple[RequestTemplate, Sequence[Buffer], bytes]:
        """Template, tensors and id field of a message. Raises InvalidRequest, ModelNotFound, ModelNotReady."""
        size = self._opening
        template = self._openings.get(message[:size] if type(message) is bytes else bytes(message[:size]))
        if template is not None and len(message) - size == template.total:
            return template, (message[size:],), b""
        try:
            template, raw, id_field = self._recognise(message)
        except (LookupError, ValueError):
            template, raw, id_field = self._parse(message)
        if template.plain and not id_field and template.total and template.sequence is None:
            self._opening = len(message) - template.total
        return (*template.bound(raw, id_field), id_field)

    def _named(self, message: Buffer, call: InferCall) -> tuple[str, str]:
        """See `Intake`; what stands behind a large field is not looked at."""
        lead = bytes(message[:_LEAD])
        said = {NAME_TAG: "", VERSION_TAG: ""}
        at = 0
        with suppress(ValueError):  # it ends, or is no message from here on
            while at < len(lead):
                tag, start = lead[at], at + 1
                at = skip_field(lead, start, tag & 7)
                if tag in said:
                    said[tag] = lead[read_varint(lead, start)[1] : at].decode()
        return said[NAME_TAG], said[VERSION_TAG]

    def _recognise(self, message: Buffer) -> tuple[RequestTemplate, Sequence[Buffer], bytes]:
        """Template, raw tensors and id of a message whose look is known. Raises LookupError or ValueError if not."""
        lead = message if type(message) is bytes else bytes(message[:_LEAD])
        at = 2 + lead[1] if lead[0] == NAME_TAG and lead[1] < 0x80 else 0
        if lead[at] == VERSION_TAG and lead[at + 1] < 0x80:
            at += 2 + lead[at + 1]
        looks = self._heads[lead[:at]]
        id_field = b""
        if lead[at] == ID_TAG and lead[at + 1] < 0x80:
            start = at
            at += 2 + lead[at + 1]
            id_field = lead[start:at]
            if at > len(lead):
                raise Malformed("message ends inside the id")
            if not id_field.isascii():  # the parser, too, refuses what is not UTF-8: a reply could not be read
                id_field.decode()
        stop = at + looks.guess
        template = looks.templates.get(lead[at:stop])
        if template is None:
            stop = _end_of_look(lead, at)
            look = lead[at:stop]
            template = looks.templates.get(look) or self._of_sequence(looks, look)
            looks.guess = stop - at
        return template, _cut_raw(message, stop), id_field

    def _parse(self, message: Buffer) -> tuple[RequestTemplate, Sequence[Buffer], bytes]:
        """The same for a message that is not recognised; one in the usual order will be, from now on."""
        try:
            head, id_end, look_end = _split(message)
            raw = _cut_raw(message, look_end)
            prefix = bytes(message[:look_end])
            look = prefix[id_end:]
            rest, cut = cut_sequence(look)
            flags = _flags(cut)
        except (IndexError, Malformed):
            _check_fields(message)
            parsed = _parsed(bytes(message))
            id_field = length_prefixed(3, parsed.id.encode()) if parsed.id else b""
            return self._build(parsed), list(parsed.raw_input_contents), id_field
        template = self._build(_parsed(prefix[:id_end] + rest))
        fits = head + _LONGEST_ID + len(look) <= _LEAD and template.contents is None
        if fits:
            self._remember(prefix[:head], rest, template)
        if cut:
            template = template.of_sequence(_sequence(flags))
            if fits:
                self._remember_sequence(self._heads[prefix[:head]], look, template)
        return template, raw, prefix[head:id_end]

    def _of_sequence(self, looks: _Looks, look: bytes) -> RequestTemplate:
        """The template of a look that is known but for its sequence. Raises LookupError."""
        rest, cut = cut_sequence(look)
        if not cut:
            raise KeyError(look)
        template = looks.templates[rest].of_sequence(_sequence(_flags(cut)))
        self._remember_sequence(looks, look, template)
        return template

    def _build(self, parsed: pb.ModelInferRequest) -> RequestTemplate:
        served = self._catalog.resolve(parsed.model_name, parsed.model_version)
        return build_template(infer_message(parsed), served.view, ReplyEncoder, self._memory)

    def _remember(self, head: bytes, look: bytes, template: RequestTemplate) -> None:
        if self._looks >= _LOOKS:
            self._forget()
        looks = self._heads.setdefault(head, _Looks())
        self._looks += look not in looks.templates
        looks.templates[look] = template
        looks.guess = len(look)
        if template.plain:  # without an id, all that comes before the only tensor's bytes is always the same
            self._openings[head + look + varint(RAW_TAG) + varint(template.total)] = template

    def _remember_sequence(self, looks: _Looks, look: bytes, template: RequestTemplate) -> None:
        """Keeps the look of a request of one sequence, which costs little to make: it pushes out no others."""
        if len(self._sequence_looks) >= _SEQUENCE_LOOKS:
            for templates, known in self._sequence_looks:
                templates.pop(known, None)
            self._sequence_looks.clear()
        looks.templates[look] = template
        self._sequence_looks.append((looks.templates, look))

    def _forget(self) -> None:
        self._heads.clear()
        self._openings.clear()
        self._sequence_looks.clear()
        self._looks = 0


def _parsed(message: bytes) -> pb.ModelInferRequest:
    try:
        return pb.ModelInferRequest.FromString(message)
    except DecodeError:
        raise InvalidRequest("the request is not a valid inference.ModelInferRequest message") from None


def _flags(cut: bytes) -> dict[str, ParameterValue]:
    """The parameters that `cut_sequence` has cut out. Raises Malformed where one is another by a second key."""
    parameters = parameters_of(_parsed(cut).parameters)
    if not parameters.keys() <= set(SEQUENCE_PARAMETERS):
        raise Malformed("a parameter has two keys")
    return parameters


def _sequence(flags: dict[str, ParameterValue]) -> SequenceFlags:
    """What the parameters say, of which there is one at least. Raises InvalidRequest."""
    sequence = read_sequence(flags)
    assert sequence is not None
    return sequence


def _end_of_look(lead: Buffer, at: int) -> int:
    """Where the raw tensors begin: the first field 7 from `at` on, or the end. Raises Malformed on other order."""
    end = len(lead)
    for _ in range(_MOST_FIELDS):
        if at >= end:
            return at
        tag = lead[at]
        if tag == RAW_TAG:
            return at
        if tag & 7 != 2 or not ID_TAG < tag < RAW_TAG:
            raise Malformed("fields are not in the usual order")
        at = skip_field(lead, at + 1, 2)
    raise _too_many()


def _check_fields(message: Buffer) -> None:
    """Raises InvalidRequest if there are so many fields that parsing them would take the memory of the server."""
    end = len(message)
    at = 0
    with suppress(Malformed):  # for the parser, which says so of all that it cannot read
        for _ in range(_MOST_FIELDS):
            if at >= end:
                return
            tag, at = read_varint(message, at)
            at = skip_field(message, at, tag & 7)
        raise _too_many()


def _too_many() -> InvalidRequest:
    return InvalidRequest(f"the request has more inputs, outputs, parameters or tensors than {MAX_TENSORS}")


def _split(message: Buffer) -> tuple[int, int, int]:
    """Ends of head, id and look of a message in the usual order; raises Malformed if it is not in that order."""
    end = len(message)
    at = 0
    ends = []
    for tags in ((NAME_TAG, VERSION_TAG), (ID_TAG,)):
        for tag in tags:
            if at < end and message[at] == tag:
                at = skip_field(message, at + 1, 2)
        ends.append(at)
    if not ends[0]:
        raise Malformed("no model name")
    return ends[0], ends[1], _end_of_look(message, at)


def _cut_raw(message: Buffer, at: int) -> list[Buffer]:
    """The entries of raw_input_contents, which fill the message from `at` on. Raises Malformed or IndexError."""
    end = len(message)
    raw: list[Buffer] = []
    while at < end:
        if message[at] != RAW_TAG:
            raise Malformed("fields are not in the usual order")
        size = message[at + 1]
        at += 2
        if size >= 0x80:
            if message[at] < 0x80:  # a varint of two octets: 128 bytes to 16 kB
                size += (message[at] << 7) - 0x80
                at += 1
            else:
                size, at = read_varint(message, at - 1)
        elif len(raw) > MAX_TENSORS:  # of larger ones there is no room for as many
            raise _too_many()
        stop = at + size
        if stop > end:
            raise Malformed("message ends inside a tensor")
        raw.append(message[at:stop])
        at = stop
    return raw
