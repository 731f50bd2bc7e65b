"""The values that flow through the server: tensor and model descriptions, a request, a finished batch.

Requests are the one thing made per call, so they are bare slots without validation: `pipeline/decode.py` is where a
request is checked.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

Buffer = bytes | bytearray | memoryview
"""Contiguous bytes: a tensor as it came off the wire."""

ParameterValue = bool | int | float | str

SequenceId = int | str
"""The correlation ID of a sequence: 0 to 2^64 - 1, or text. 0 and the empty text: none."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a model. `shape` leaves the batch dimension out; -1 is a dimension of any size.

    labels: of an output that holds a value for each class, the names of the classes, as far as they are known.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    labels: tuple[str, ...] = ()

    @property
    def fixed(self) -> bool:
        """Whether every dimension is known."""
        return all(d >= 0 for d in self.shape)


@dataclass(frozen=True, slots=True)
class Signature:
    """What a model version takes and gives. `max_batch` is in rows; 0: the model has no batch dimension."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch: int


@dataclass(frozen=True, slots=True)
class Region:
    """`size` bytes from `offset` on of the shared memory region registered as `name`: where a tensor lies."""

    name: str
    offset: int
    size: int


LONGEST_NS = 1 << 62
"""146 years: a longer wait is taken for one of so long, so that all moments fit in 64 bits."""


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """How requests of one priority level wait.

    timeout_ns: at most so long from their receipt, 0: any time. override: a request's own timeout counts where it is
    sooner. delays: one that has waited so long is not refused but goes behind those of its level that have not.
    max_requests: so many of the level may wait, 0: any number.
    """

    timeout_ns: int = 0
    override: bool = True
    delays: bool = False
    max_requests: int = 0

    def limit_ns(self, own: int) -> int:
        """How long a request may wait that asks for `own` ns, 0 for nothing; 0: any time."""
        limit = own if own and self.override and not 0 < self.timeout_ns <= own else self.timeout_ns
        return min(limit, LONGEST_NS)


ANY_WAIT = QueuePolicy()


@dataclass(frozen=True, slots=True)
class Fit:
    """How rows of variable length lie in the bucket that they are padded to (`pipeline/buckets.py`).

    lengths: their own, in each dimension that model.toml names. sizes: those of the bucket, on which the cost of a
    batch depends. shapes: of each input of the signature, the row's own; None: the server fills it. elements, padding:
    of a row, how many its caller has sent and how many were added, in all inputs that are padded.
    """

    lengths: tuple[int, ...]
    sizes: tuple[int, ...]
    shapes: tuple[tuple[int, ...] | None, ...]
    elements: int
    padding: int

    @property
    def padding_percent(self) -> int:
        """The share of padding in what runs, rounded."""
        return round(100 * self.padding / max(self.elements + self.padding, 1))


@dataclass(frozen=True, slots=True)
class InputTensor:
    """One input as a request describes it. `contents` are typed contents already turned into raw bytes, or None.

    region: where its bytes lie, if they are not in the message.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    contents: bytes | None = None
    region: Region | None = None


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """One output as a request asks for it.

    classes: this many of the greatest values as `value:index[:label]`, 0 for the tensor itself. region: where its bytes
    shall be written, if not into the reply. binary: the client's choice of form, where the transport has one.
    """

    name: str
    classes: int = 0
    region: Region | None = None
    binary: bool | None = None


@dataclass(frozen=True, slots=True)
class ReplyOutput:
    """One output as a reply states it. `spec.shape` is without the batch dimension; region, binary: as requested."""

    spec: TensorSpec
    region: Region | None = None
    binary: bool | None = None


@dataclass(frozen=True, slots=True)
class SequenceFlags:
    """Which sequence a request is part of, and whether it is the first or the last of it."""

    id: SequenceId
    start: bool = False
    end: bool = False


@dataclass(frozen=True, slots=True)
class InferMessage:
    """All of a ModelInferRequest but its raw tensor bytes, free of the wire's types.

    `outputs` are the requested outputs; empty means all of them.
    """

    model_name: str
    model_version: str
    id: str
    parameters: dict[str, ParameterValue]
    inputs: tuple[InputTensor, ...]
    outputs: tuple[RequestedOutput, ...]


PHASES = ("decode", "admit", "queue", "batch", "execute", "encode")
"""The stages of a request, in order; names of metric labels and of the reply's timing parameters."""


class Cancellable(Protocol):
    """An inference request under way."""

    @property
    def template(self) -> Template:
        """What it shares with others of its look."""
        ...

    def cancel(self) -> None:
        """The caller has gone away. The sink is not called any more; without effect on a request already answered."""
        ...

    @property
    def finished(self) -> bool:
        """Whether nothing is done for the request any more; one that runs goes on after `cancel`."""
        ...


class Untraced:
    """What a `ReplySink` says of traces if it knows of none."""

    __slots__ = ()

    door = ""
    traceparent = b""
    tracestate = b""


class ReplySink(Protocol):
    """Where the reply to one request goes: a stream of a transport. Exactly one of the two is called, once.

    under_way: set when the request is admitted; the sink forgets it when it is answered. door: how the request came:
    `grpc`, `grpc_stream`, or of HTTP scheme and path, `http:/v2/...`; empty for one of the server itself. traceparent:
    its caller's span, well-formed (55 octets, W3C Trace Context), or empty: there is none, or nobody asks. tracestate:
    what goes with it.
    """

    under_way: Cancellable | None

    @property
    def door(self) -> str: ...  # noqa: D102
    @property
    def traceparent(self) -> bytes: ...  # noqa: D102
    @property
    def tracestate(self) -> bytes: ...  # noqa: D102

    def reply(self, message: Any) -> None:  # noqa: ANN401
        """Takes what the template's `encode` made: for a stream, a serialised ModelInferResponse. Status OK."""

    def fail(self, error: BaseException) -> None:
        """Ends the call with the status of the error; what is not a HeadraceError is answered with a fixed text."""


class Owner(Protocol):
    """The scheduler of a model version, as far as a request knows it."""

    def cancel(self, request: InferRequest) -> None:
        """The caller has gone away."""


class ReplyWriter(Protocol):
    """Makes the messages that `ReplySink.reply` is given. shapes: with the batch dimension."""

    def encode(
        self,
        id_field: bytes,
        raw: Sequence[Buffer],
        shapes: tuple[tuple[int, ...], ...],
        parameters: bytes = b"",
        /,
    ) -> Any:  # noqa: ANN401
        """One message. id_field: see `InferRequest`. raw: its rows of each output. parameters: encoded."""

    def opening(self, shapes: tuple[tuple[int, ...], ...], /) -> bytes | None:
        """What `encode` writes before the bytes of the only output if there are no id and no parameters.

        None: there is not one output, or it does not end the message, or its size varies.
        """


class SharedMemory(Protocol):
    """The shared memory regions that clients have registered."""

    def view(self, region: Region, /) -> memoryview:
        """The bytes of a region, writable. Raises RegionNotFound and InvalidRequest."""
        ...

    def pin(self, region: Region, /) -> Place:
        """Where an output shall go, whatever the region's name comes to mean. Raises as `view`."""
        ...


class Place(Protocol):
    """Shared memory for one output; mapped while this is there."""

    def write(self, data: Buffer, /) -> None:
        """Writes an output, which must fit. Raises InvalidRequest if its owner has left less of the memory since."""
        ...


class Template(Protocol):
    """What all requests of one look share: checked against the model once, then looked up by their bytes.

    rows: batch rows of a request (1 for a model without batching). key: requests of equal key may share a batch.
    shapes: for each input of the signature, its non-batch dimensions (all dimensions for a model without batching).
    outputs: indices into the signature's outputs, in the order asked for. priority: 0 is served first. policy: how
    requests of that priority wait. timeout_ns: how long such a request may, from its receipt, 0 for any time. timing:
    whether the reply shall carry its Timeline. final: whether a reply on a stream shall say that it is the last to its
    request. owner: who runs such requests. reply: what writes their replies. whole: the request that such a request is
    a piece of, if it is one. fit: how it is padded to `shapes`, None for a model without buckets. sequence: None where
    the request says nothing of one.
    """

    rows: int
    key: Hashable
    shapes: tuple[tuple[int, ...], ...]
    outputs: tuple[int, ...]
    priority: int
    policy: QueuePolicy
    timeout_ns: int
    timing: bool
    final: bool
    owner: Owner
    reply: ReplyWriter
    whole: InferRequest | None
    fit: Fit | None
    sequence: SequenceFlags | None


class State(IntEnum):
    """Where a request is. It only ever moves forward."""

    WAITING = 0
    RUNNING = 1
    ABANDONED = 2
    """Under way, and its caller has gone away: the result will be dropped."""
    DONE = 3


class InferRequest:
    """One request under way, or one piece of a split one.

    parts: for each input of the model, in the signature's order, the raw bytes of this request's rows, not padded, and
    empty where the server fills an input; nbytes: their sum. id_field: the request's id as it stood on the wire (tag,
    length, text), which the reply repeats; may be empty.
    order: sorts the queue; earliest deadline first within a priority level; the scheduler sets it.
    expires: monotonic ns after which the request must not start; 0: never. rpc_deadline: the part of it that came
    from the RPC, which decides the status of an expiry; 0: none.
    received, decoded, admitted: the first moments of its Timeline, monotonic ns; the scheduler sets the latter two.
    """

    __slots__ = (
        "admitted",
        "decoded",
        "expires",
        "id_field",
        "nbytes",
        "order",
        "parts",
        "received",
        "rpc_deadline",
        "sink",
        "state",
        "template",
    )

    def __init__(
        self,
        template: Template,
        parts: Sequence[Buffer],
        nbytes: int,
        sink: ReplySink,
        id_field: bytes,
        received: int,
        rpc_deadline: int = 0,
        expires: int = 0,
    ) -> None:
        self.template = template
        self.parts = parts
        self.nbytes = nbytes
        self.sink = sink
        self.id_field = id_field
        self.received = received
        self.decoded: int
        self.admitted: int
        self.rpc_deadline = rpc_deadline
        self.expires = expires
        self.order: int
        self.state = State.WAITING

    @property
    def finished(self) -> bool:
        """Whether nothing is done for this request any more."""
        return self.state is State.DONE

    def cancel(self) -> None:
        """The caller has gone away: waiting, the request leaves the queue; running, its result is dropped."""
        self.template.owner.cancel(self)

    def __repr__(self) -> str:
        return f"<InferRequest {self.template.rows} rows, {self.state.name.lower()}>"


@dataclass(slots=True)
class Batch:
    """Requests that run together, in queue order. reason: why the batch was closed, one of `CLOSE_REASONS`.

    losses: how many instances its only request has lost before.
    """

    requests: list[InferRequest]
    rows: int
    reason: str
    batched: int = 0
    started: int = 0
    finished: int = 0
    losses: int = 0

    @property
    def fit(self) -> Fit | None:
        """That of its first request: the bucket is the same for all."""
        return self.requests[0].template.fit if self.requests else None

    def __repr__(self) -> str:
        return f"<Batch {len(self.requests)} requests, {self.rows} rows, closed: {self.reason}>"


CLOSE_REASONS = (
    "full", "cost", "preferred", "deadline", "idle", "delay", "shape", "single", "isolated", "rerun", "drain",
    "ensemble", "cached",
)  # fmt: skip
"""full: no further row fits. cost: a further row would wait without becoming cheaper. preferred: its size is one that
the configuration prefers. deadline: a further row, or further waiting, would make a member late. idle: an idle instance
took all there was. delay: the fixed delay was over. shape: what waits next cannot share a tensor with it. single:
requests of this model run alone. isolated: the batch that it was in has failed, so it is run alone. rerun: the instance
that ran it was lost, so it is run again, alone. drain: the server is leaving. ensemble: a request that runs through
other models, in whose batches it is. cached: no batch, the reply was there."""
