"""Requests that the server makes of its own models: tensors in and tensors out, without a wire between."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from headrace.engine.screening import screened
from headrace.engine.shared_memory import NoSharedMemory
from headrace.messages import InferMessage, InferRequest, InputTensor, RequestedOutput
from headrace.pipeline.decode import build_template
from headrace.pipeline.split import PIECES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from headrace.engine.served import Served
    from headrace.messages import Buffer, Cancellable, ReplyOutput, ReplySink, Template
    from headrace.pipeline.decode import RequestTemplate
    from headrace.pipeline.split import PieceWriter

    Look = tuple[object, ...]

_MAX_TEMPLATES = 256
_NO_MEMORY = NoSharedMemory()


class Tensor(NamedTuple):
    """One tensor between models: its wire datatype, whole shape, and bytes in the wire's form."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Buffer


class InnerCall:
    """The `messages.ReplySink` of one such request; exactly one of the two functions is called, once.

    done: takes the outputs in the order asked for, and the encoded timing parameters, empty if none were asked for.
    failed: takes the error. outer: of the client's request, in whose trace this is. door: see `messages.ReplySink`.
    """

    __slots__ = ("_done", "_failed", "_outer", "_outputs", "door", "under_way")

    def __init__(
        self,
        outputs: Sequence[tuple[str, str]],
        done: Callable[[list[Tensor], bytes], None],
        failed: Callable[[BaseException], None],
        outer: ReplySink,
        door: str,
    ) -> None:
        self.door = door
        self._outer = outer
        self.under_way: Cancellable | None = None
        self._outputs = outputs
        self._done = done
        self._failed = failed

    @property
    def traceparent(self) -> bytes:
        """Of the client's request."""
        return self._outer.traceparent

    @property
    def tracestate(self) -> bytes:
        """The same."""
        return self._outer.tracestate

    def reply(self, message: tuple[Sequence[Buffer], tuple[tuple[int, ...], ...], bytes]) -> None:
        """See `messages.ReplySink`; the message is what `split.PIECES` makes."""
        self.under_way = None
        raw, shapes, parameters = message
        tensors = [
            Tensor(name, datatype, shape, data)
            for (name, datatype), shape, data in zip(self._outputs, shapes, raw, strict=True)
        ]
        self._done(tensors, parameters)

    def fail(self, error: BaseException) -> None:
        """See `messages.ReplySink`."""
        self.under_way = None
        self._failed(error)


class InnerClient:
    """Makes requests of one model version.

    outputs: what is asked for, all if empty. screened: whether the tensors keep the model's rules for inputs, because
    somebody has looked. step: they are parts of a client's request, and not all of it.
    """

    def __init__(
        self, model: Served, outputs: Sequence[str] = (), *, screened: bool = False, step: bool = False
    ) -> None:
        self.model = model
        self._screened = screened
        self._step = step
        known = {spec.name: spec.datatype for spec in model.signature.outputs}
        self._requested = outputs
        self._outputs = [(name, known[name]) for name in outputs or known]
        self._templates: dict[Look, RequestTemplate] = {}

    def __repr__(self) -> str:
        return f"<InnerClient of {self.model!r}, {len(self._templates)} looks>"

    def send(
        self,
        tensors: Sequence[Tensor],
        whole: InferRequest,
        done: Callable[[list[Tensor], bytes], None],
        failed: Callable[[BaseException], None],
    ) -> InnerCall:
        """Hands tensors to the model on behalf of the request `whole`, whose deadline, priority and timing hold.

        Raises InvalidRequest if they do not fit the model; what happens after that `done` or `failed` is told, now or
        later.
        """
        template = self._template(tensors, whole)
        parts = template.bind([tensor.data for tensor in tensors], whole.id_field)
        call = InnerCall(self._outputs, done, failed, whole.sink, "" if self._step else whole.sink.door)
        request = InferRequest(
            template, parts, sum(map(len, parts)), call, b"", whole.received, rpc_deadline=whole.rpc_deadline
        )
        if template.screen is not None and not self._screened:
            for _, error in screened([request], template.screen, self.model.observer)[1]:
                raise error
        self.model.submit([request])
        return call

    def _template(self, tensors: Sequence[Tensor], whole: InferRequest) -> RequestTemplate:
        outer = whole.template
        look = (
            tuple(tensor[:3] for tensor in tensors),
            outer.priority,
            outer.timeout_ns,
            outer.timing,
        )
        template = self._templates.get(look)
        if template is None:
            template = inner_template(self.model, [tensor[:3] for tensor in tensors], self._requested, outer)
            if len(self._templates) >= _MAX_TEMPLATES:
                self._templates.clear()
            self._templates[look] = template
        return template if outer.sequence is None else template.of_sequence(outer.sequence)


def inner_template(
    model: Served, inputs: Iterable[tuple[str, str, tuple[int, ...]]], outputs: Iterable[str], outer: Template
) -> RequestTemplate:
    """The template of requests that the server makes of a model on behalf of requests of the template `outer`.

    inputs: (name, datatype, whole shape) of each. outputs: names, all if empty. Raises InvalidRequest.
    """
    described = tuple(InputTensor(*tensor) for tensor in inputs)
    requested = tuple(RequestedOutput(name) for name in outputs)
    message = InferMessage(model.name, model.version, "", {}, described, requested)
    template = build_template(message, model.view, _pieces, _NO_MEMORY)
    template.priority, template.timing = outer.priority, outer.timing
    template.policy = model.view.policy_of(outer.priority)
    template.timeout_ns = template.policy.limit_ns(outer.timeout_ns)
    return template


def _pieces(name: str, version: str, outputs: Sequence[ReplyOutput]) -> PieceWriter:
    """Replies to the server itself are not encoded."""
    return PIECES
