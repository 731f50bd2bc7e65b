"""A request of more rows than a batch holds: cut into pieces that are queued like requests, and joined again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.datatypes import DATATYPES
from headrace.messages import InferRequest, State
from headrace.pipeline import bytes_tensor

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from headrace.messages import Buffer, Owner, Signature, Template

Piece = tuple["Sequence[Buffer]", "tuple[tuple[int, ...], ...]", bytes]


class PieceTemplate:
    """A `messages.Template` whose `encode` keeps the piece's outputs as they are, for `Split` to join."""

    __slots__ = ("key", "outputs", "owner", "priority", "rows", "shapes", "timing")

    def __init__(self, whole: Template, rows: int) -> None:
        self.rows = rows
        self.key: Hashable = whole.key
        self.shapes = whole.shapes
        self.outputs = whole.outputs
        self.priority = whole.priority
        self.timing = whole.timing
        self.owner: Owner = whole.owner

    def encode(
        self, request: InferRequest, outputs: Sequence[Buffer], shapes: tuple[tuple[int, ...], ...], parameters: bytes
    ) -> Piece:
        """See `messages.Template`."""
        return outputs, shapes, parameters


class _PieceSink:
    """The `ReplySink` of one piece."""

    __slots__ = ("_index", "_split")

    def __init__(self, split: Split, index: int) -> None:
        self._split = split
        self._index = index

    def reply(self, message: Piece) -> None:
        self._split.arrived(self._index, message)

    def fail(self, error: BaseException) -> None:
        self._split.failed(error)


class Split:
    """A split request under way. Answers the whole once all pieces have arrived, or at the first that fails."""

    def __init__(self, whole: InferRequest, signature: Signature, max_rows: int) -> None:
        self.whole = whole
        rows = whole.template.rows
        starts = range(0, rows, max_rows)
        templates = {count: PieceTemplate(whole.template, count) for count in {max_rows, rows - starts[-1]}}
        columns = [
            _cut(part, rows, starts, max_rows, spec.datatype)
            for part, spec in zip(whole.parts, signature.inputs, strict=True)
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
    def finished(self) -> bool:
        """Whether no piece is at work any more."""
        return all(piece.finished for piece in self.pieces)

    def cancel(self) -> None:
        """The caller has gone away."""
        self.whole.state = State.DONE
        for piece in self.pieces:
            piece.cancel()

    def arrived(self, index: int, piece: Piece) -> None:
        """One piece is done."""
        if self.whole.state is State.DONE:
            return
        self._arrived[index] = piece
        self._missing -= 1
        if self._missing:
            return
        self.whole.state = State.DONE
        pieces = [found for found in self._arrived if found is not None]
        outputs = [b"".join(column) for column in zip(*(found[0] for found in pieces), strict=True)]
        rows = self.whole.template.rows
        shapes = tuple((rows, *shape[1:]) for shape in pieces[0][1])
        self.whole.sink.reply(self.whole.template.encode(self.whole, outputs, shapes, piece[2]))

    def failed(self, error: BaseException) -> None:
        """One piece has failed, and with it the whole."""
        if self.whole.state is State.DONE:
            return
        self.cancel()
        self.whole.sink.fail(error)


def _cut(part: Buffer, rows: int, starts: range, max_rows: int, datatype: str) -> list[Buffer]:
    """The bytes of each piece of one input."""
    view = memoryview(part)
    if DATATYPES[datatype].itemsize:
        size = len(view) // rows
        return [view[start * size : (start + max_rows) * size] for start in starts]
    elements = _count_elements(view)
    bounds = bytes_tensor.offsets(view, elements)[:: max(elements // rows, 1)]
    return [view[bounds[start] : bounds[min(start + max_rows, rows)]] for start in starts]


def _count_elements(view: memoryview) -> int:
    """How many elements a BYTES tensor holds, which decoding has found to be well-formed."""
    at = count = 0
    while at < len(view):
        at += 4 + int.from_bytes(view[at : at + 4], "little")
        count += 1
    return count
