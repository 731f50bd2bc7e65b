"""Requests without a wire: for what queues, batches and cuts them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headrace.messages import ANY_WAIT, InferRequest
from headrace.pipeline.queue import order_of
from headrace.testing.sink import RecordingSink

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from headrace.messages import Buffer, Fit, Owner, QueuePolicy, ReplyWriter, SequenceFlags


class FakeOwner:
    """An `Owner` that keeps what was cancelled."""

    def __init__(self) -> None:
        self.cancelled: list[InferRequest] = []

    def cancel(self, request: InferRequest) -> None:
        """See `messages.Owner`."""
        self.cancelled.append(request)


class FakeWriter:
    """A `ReplyWriter` whose messages are its arguments, but for the id."""

    def encode(
        self, id_field: bytes, raw: Sequence[Buffer], shapes: tuple[tuple[int, ...], ...], parameters: bytes = b""
    ) -> Any:  # noqa: ANN401
        """See `messages.ReplyWriter`."""
        return list(raw), shapes, parameters

    def opening(self, shapes: tuple[tuple[int, ...], ...]) -> None:
        """See `messages.ReplyWriter`."""


class FakeTemplate:
    """A `Template` of whatever is asked for; see `FakeWriter` for its replies."""

    whole: InferRequest | None = None
    screen = None

    def __init__(
        self,
        rows: int = 1,
        *,
        key: Hashable = "",
        shapes: tuple[tuple[int, ...], ...] = ((1,),),
        outputs: tuple[int, ...] = (0,),
        priority: int = 0,
        policy: QueuePolicy = ANY_WAIT,
        timeout_ns: int = 0,
        timing: bool = False,
        owner: Owner | None = None,
        fit: Fit | None = None,
        sequence: SequenceFlags | None = None,
    ) -> None:
        self.rows = rows
        self.key = key
        self.shapes = shapes
        self.outputs = outputs
        self.priority = priority
        self.policy = policy
        self.timeout_ns = timeout_ns
        self.timing = timing
        self.final = False
        self.fit = fit
        self.owner: Owner = owner or FakeOwner()
        self.reply: ReplyWriter = FakeWriter()
        self.sequence = sequence


def make_request(
    rows: int = 1,
    *,
    now: int = 0,
    expires: int = 0,
    nbytes: int = 0,
    parts: Sequence[Buffer] = (),
    rpc_deadline: int = 0,
    **template: Any,  # noqa: ANN401
) -> InferRequest:
    """A request that was received, decoded and admitted at `now`. template: see `FakeTemplate`."""
    request = InferRequest(
        FakeTemplate(rows, **template), parts, nbytes or sum(map(len, parts)), RecordingSink(), b"", now, rpc_deadline
    )
    request.decoded = request.admitted = now
    request.expires = expires
    request.order = order_of(request.template.priority, expires, now)
    return request
