"""A request of more rows than a batch holds: cut into pieces that are queued like requests, and joined again."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from headrace.datatypes import DATATYPES
from headrace.errors import Cancelled, InvalidRequest, reason_of
from headrace.messages import InferRequest, State, Untraced
from headrace.pipeline import bytes_tensor
from headrace.pipeline.cropping import Crop

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from headrace.messages import Buffer, Cancellable, Owner, ReplyWriter, Signature, Template

Piece = tuple["Sequence[Buffer]", "tuple[tuple[int, ...], ...]", bytes]


class PieceWriter:
    """A `messages.ReplyWriter` that keeps outputs as they are, for whoever goes on with them inside the server."""

    def encode(
        self, id_field: bytes, raw: Sequence[Buffer], shapes: tuple[tuple[int, ...], ...], parameters: bytes = b""
    ) -> Piece:
        """See `messages.ReplyWriter`."""
        return raw, shapes, parameters

    def opening(self, shapes: tuple[tuple[int, ...], ...]) -> None:
        """See `messages.ReplyWriter`."""


PIECES = PieceWriter()


class PieceTemplate:
    """The `messages.Template` of pieces of so many rows."""

    __slots__ = (
        "final",
        "fit",
        "key",
        "outputs",
        "owner",
        "policy",
        "priority",
        "reply",
        "rows",
        "sequence",
        "shapes",
        "timeout_ns",
        "timing",
        "whole",
    )

    def __init__(self, whole: InferRequest, rows: int) -> None:
        template = whole.template
        self.rows = rows
        self.key: Hashable = template.key
        self.shapes = template.shapes
        self.fit = template.fit
        self.outputs = template.outputs
        self.priority = template.priority
        self.policy = template.policy
        self.timeout_ns = template.timeout_ns
        self.timing = template.timing
        self.final = False
        self.owner: Owner = template.owner
        crop = template.reply
        # cut each by itself: what is to be joined need not hold the padding
        self.reply: ReplyWriter = crop.around(PIECES) if isinstance(crop, Crop) else PIECES
        self.whole: InferRequest | None = whole
        self.sequence = template.sequence


class _PieceSink(Untraced):
    """The `ReplySink` of one piece. Of traces, that of the whole speaks."""

    __slots__ = ("_index", "_split", "under_way")

    def __init__(self, split: Split, index: int) -> None:
        self.under_way: Cancellable | None = None
        self._split = split
        self._index = index

    def reply(self, message: Piece) -> None:
        self._split.arrived(self._index, message)

    def fail(self, error: BaseException) -> None:
        self._split.failed(error)


class Split:
    """A split request under way. Answers the whole once all pieces have arrived, or at the first that fails.

    refused: hears the reason if the whole ends without success, once; its pieces are not counted one by one.
    """

    def __init__(
        self, whole: InferRequest, signature: Signature, max_rows: int, refused: Callable[[str], None]
    ) -> None:
        self.whole = whole
        self._refused = refused
        rows = whole.template.rows
        starts = range(0, rows, max_rows)
        templates = {count: PieceTemplate(whole, count) for count in {max_rows, rows - starts[-1]}}
        columns = [
            _cut(part, rows, prod(dims), starts, max_rows, spec.datatype)
            for part, dims, spec in zip(whole.parts, whole.template.shapes, signature.inputs, strict=True)
        ]
        self.pieces: list[InferRequest] = []
        for index, start in enumerate(starts):
            parts = [column[index] for column in columns]
            piece = InferRequest(
                templates[min(max_rows, rows - start)],
                parts,
                sum(map(len, parts)),
                _PieceSink(self, index),
                b"",
                whole.received,
                whole.rpc_deadline,
            )
            piece.decoded, piece.expires, piece.order = whole.decoded, whole.expires, whole.order
            self.pieces.append(piece)
        self._arrived: list[Piece | None] = [None] * len(self.pieces)
        self._missing = len(self.pieces)
        whole.state = State.RUNNING
        whole.parts = ()

    def __repr__(self) -> str:
        return f"<Split into {len(self.pieces)} pieces, {self._missing} missing>"

    @property
    def template(self) -> Template:
        """Of the whole."""
        return self.whole.template

    @property
    def finished(self) -> bool:
        """Whether no piece is at work any more."""
        return all(piece.finished for piece in self.pieces)

    def cancel(self) -> None:
        """The caller has gone away."""
        if self.whole.state is State.RUNNING:
            self._refused(Cancelled.reason)
            self._leave(State.ABANDONED)

    def arrived(self, index: int, piece: Piece) -> None:
        """One piece is done. Raises what its reply or that of the whole fails by, which `failed` is then told."""
        if self.whole.state is not State.RUNNING:
            return
        self._arrived[index] = piece
        self._missing -= 1
        if self._missing:
            return
        self.whole.state = State.DONE
        try:
            self._answer([found for found in self._arrived if found is not None], piece[2])
        except Exception:
            self.whole.state = State.RUNNING  # it has no answer yet, and is still to be told why
            raise

    def _answer(self, pieces: Sequence[Piece], parameters: bytes) -> None:
        """Joins the pieces. Raises InvalidRequest for outputs whose sizes a run decides, each in another way."""
        outputs = [b"".join(column) for column in zip(*(found[0] for found in pieces), strict=True)]
        rows = self.whole.template.rows
        dims = [tuple(shape[1:] for shape in found[1]) for found in pieces]
        for other in dims:
            if other != dims[0]:
                raise InvalidRequest(
                    f"the request has {rows} rows, of which at most {self.pieces[0].template.rows} run at once: the "
                    f"outputs of one run and another have rows of {list(map(list, dims[0]))} and "
                    f"{list(map(list, other))}, which make no tensors together; send fewer rows at a time"
                )
        shapes = tuple((rows, *shape) for shape in dims[0])
        writer = self.whole.template.reply
        if isinstance(writer, Crop):  # the pieces have been cut
            writer = writer.inner
        self.whole.sink.reply(writer.encode(self.whole.id_field, outputs, shapes, parameters))

    def failed(self, error: BaseException) -> None:
        """One piece has failed, and with it the whole."""
        if self.whole.state is State.RUNNING:
            self._refused(reason_of(error))
            self._leave(State.DONE)
            self.whole.sink.fail(error)

    def _leave(self, state: State) -> None:
        """Gives up the pieces that are left; the result of one that runs is dropped."""
        self.whole.state = state
        for piece in self.pieces:
            piece.cancel()


def _cut(part: Buffer, rows: int, per_row: int, starts: range, max_rows: int, datatype: str) -> list[Buffer]:
    """The bytes of each piece of one input of `per_row` elements a row."""
    view = memoryview(part)
    if DATATYPES[datatype].itemsize:
        size = len(view) // rows
        return [view[start * size : (start + max_rows) * size] for start in starts]
    bounds = bytes_tensor.offsets(view, rows * per_row)
    return [view[bounds[start * per_row] : bounds[min(start + max_rows, rows) * per_row]] for start in starts]
