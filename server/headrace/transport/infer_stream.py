"""ModelStreamInfer: many requests on one call, whose replies leave in the order of the requests.

Source: Triton's extension of the Open Inference Protocol. A ModelStreamInferResponse has error_message=1 and
infer_response=2; a request that fails is answered inside the stream, which goes on.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from headrace.errors import reason_of
from headrace.pipeline.wire import Malformed, length_prefixed, read_varint, skip_field, varint
from headrace.rpc import inference_pb2 as pb
from headrace.transport.status import client_message

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.messages import Buffer, Cancellable
    from headrace.transport.service import Infer

MAX_IN_FLIGHT = 256
"""Requests of one stream that are at work at a time; further ones wait, and with them the client."""
MESSAGE_COST = 64
"""Octets that a waiting message takes beside its own: five octets on the wire may carry an empty one."""
ENABLE_FINAL, FINAL = "triton_enable_empty_final_response", "triton_final_response"

# Fields of a message may come in any order: this one follows a response that is whole already.
_FINAL_PARAMETER = pb.ModelInferResponse(parameters={FINAL: pb.InferParameter(bool_param=True)}).SerializeToString()
_RESPONSE_TAG = b"\x12"
_DESCRIBING = (0x1A, 0x22)
"""Tags of the id and the parameters of a ModelInferRequest."""
_SEARCHED = 1024
"""Fields of a request that failed which are searched for those."""


class StreamedRequest:
    """One request of a stream: the `service.InferCall` that inference answers."""

    __slots__ = ("_message", "_stream", "deadline", "error", "received", "request", "response", "under_way")

    door = "grpc_stream"

    def __init__(self, stream: InferStream, message: Buffer, received: int) -> None:
        self._stream = stream
        self._message: Buffer | None = message  # for the id that an error repeats
        self.request: Buffer | None = message
        self.received = received
        self.deadline = stream.deadline
        self.under_way: Cancellable | None = None
        self.response: bytes | None = None
        self.error: BaseException | None = None

    def __repr__(self) -> str:
        state = "answered" if self.response is not None else "under way" if self.under_way else "waiting"
        return f"<StreamedRequest {state}>"

    @property
    def traceparent(self) -> bytes:
        """That of the call: so many requests, so many spans in its trace."""
        return self._stream.traceparent

    @property
    def tracestate(self) -> bytes:
        """The same."""
        return self._stream.tracestate

    def reply(self, message: bytes) -> None:
        """See `messages.ReplySink`."""
        under_way = self.under_way
        if under_way is not None and under_way.template.final:
            message += _FINAL_PARAMETER
        self.response = b"".join((_RESPONSE_TAG, varint(len(message)), message))
        self._end()

    def fail(self, error: BaseException) -> None:
        """See `messages.ReplySink`."""
        self.error = error
        self.response = b"" if self._stream.breaks else _error_response(self._message or b"", error)
        self._end()

    def _end(self) -> None:
        self.under_way = None
        self._message = None
        self._stream.answered(self)


class InferStream:
    """The requests of one call and, in their order, what answers them.

    infer: takes requests. wake: called when `ready` is no longer empty. deadline: of the call, monotonic ns, 0 for
    none. breaks: the first error ends the call with its status, as the header `triton_grpc_error` asks for: `error`.
    ready: serialised ModelStreamInferResponses that may be sent; whoever sends them empties the list.
    waiting_octets: what requests take that are not at work yet. held: no more are to be at work, for the client does
    not read the answers, or the call is about to end.
    """

    __slots__ = (
        "_in_flight",
        "_infer",
        "_lingering",
        "_waiting",
        "_wake",
        "breaks",
        "deadline",
        "error",
        "held",
        "ready",
        "traceparent",
        "tracestate",
        "waiting_octets",
    )

    def __init__(self, infer: Infer, wake: Callable[[], None], deadline: int, *, breaks: bool) -> None:
        self._infer = infer
        self._wake = wake
        self.deadline = deadline
        self.breaks = breaks
        self.traceparent = self.tracestate = b""  # of the call; whoever makes this may say more
        self.error: BaseException | None = None
        self.ready: list[bytes] = []
        self.waiting_octets = 0
        self.held = False
        self._in_flight: deque[StreamedRequest] = deque()
        self._waiting: deque[tuple[Buffer, int]] = deque()
        self._lingering: list[Cancellable] = []

    def __repr__(self) -> str:
        return f"<InferStream {len(self._in_flight)} under way, {len(self._waiting)} wait, {len(self.ready)} ready>"

    @property
    def idle(self) -> bool:
        """Whether everything that was taken has been answered, and the answers have been sent."""
        return not (self._in_flight or self._waiting or self.ready)

    def take(self, message: Buffer, received: int) -> None:
        """A request has arrived. received: monotonic ns."""
        if len(self._in_flight) < MAX_IN_FLIGHT and not self._waiting and not self.held:
            self._start(message, received)
        else:
            self._waiting.append((message, received))
            self.waiting_octets += len(message) + MESSAGE_COST

    def pump(self) -> None:
        """Starts requests that wait, as long as there is room."""
        while self._waiting and len(self._in_flight) < MAX_IN_FLIGHT and not self.held:
            message, received = self._waiting.popleft()
            self.waiting_octets -= len(message) + MESSAGE_COST
            self._start(message, received)

    def answered(self, request: StreamedRequest) -> None:
        """One request has its answer. It may leave once those before it have."""
        in_flight = self._in_flight
        if not in_flight or in_flight[0] is not request:
            return
        while in_flight and (response := in_flight[0].response) is not None:
            first = in_flight.popleft()
            if first.error is not None and self.breaks:
                self.error = first.error
                self.held = True
                self._abandon()
                break
            self.ready.append(response)
        self._wake()

    def forget_waiting(self) -> None:
        """Gives up what is not at work yet."""
        self._waiting.clear()
        self.waiting_octets = 0

    def cancel(self) -> list[Cancellable]:
        """Nobody waits any more for what has not been answered. Returns what is still at work all the same."""
        self.forget_waiting()
        self._abandon()
        lingering, self._lingering = self._lingering, []
        return lingering

    def _abandon(self) -> None:
        """Cancels what is at work."""
        in_flight, self._in_flight = self._in_flight, deque()
        for request in in_flight:
            request.request = None
            under_way, request.under_way = request.under_way, None
            if under_way is not None:
                under_way.cancel()
                if not under_way.finished:
                    self._lingering.append(under_way)

    def _start(self, message: Buffer, received: int) -> None:
        request = StreamedRequest(self, message, received)
        self._in_flight.append(request)
        self._infer(request)


def _error_response(message: Buffer, error: BaseException) -> bytes:
    """The answer to a request that failed, with the id that it gave, if that can be read."""
    response = pb.ModelInferResponse()
    response.parameters["headrace_reason"].string_param = reason_of(error)
    with suppress(DecodeError):
        request = pb.ModelInferRequest.FromString(_described(message))
        response.id = request.id
        if request.parameters[ENABLE_FINAL].bool_param:
            response.parameters[FINAL].bool_param = True
    text = client_message(error).encode(errors="replace")
    return length_prefixed(1, text) + length_prefixed(2, response.SerializeToString())


def _described(message: Buffer) -> bytes:
    """Id and parameters of a ModelInferRequest, as they lie in it: what else it has may be much, and is not read."""
    found: list[Buffer] = []
    at = 0
    with suppress(Malformed):
        for _ in range(_SEARCHED):
            if at >= len(message):
                break
            tag, start = read_varint(message, at)
            end = skip_field(message, start, tag & 7)
            if tag in _DESCRIBING:
                found.append(message[at:end])
            at = end
    return b"".join(found)
