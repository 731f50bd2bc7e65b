"""How the rows of a batch are laid into one tensor of their bucket's shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from headrace.datatypes import DATATYPES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.messages import Buffer, Fit, TensorSpec

    Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Filling:
    """What the server puts into an input that clients may leave out.

    length: the place of the length that each row's is, among the model's; None: a mask, 1 where the row has data.
    """

    length: int | None = None


MASK = Filling()


def number(value: float, datatype: str) -> Any:  # noqa: ANN401
    """A value as an element of the datatype, for BF16 its bits. Raises ValueError if it has no such value."""
    if datatype == "BF16":
        bits = int(np.float32(value).view(np.uint32))
        rounded = bits >> 16 if value != value else (bits + 0x7FFF + (bits >> 16 & 1)) >> 16  # to the nearest, or even
        return np.uint16(rounded)
    dtype = DATATYPES[datatype].numpy
    with np.errstate(all="ignore"):
        found = np.array(value).astype(dtype)
    exact = dtype.kind == "f" or found == value
    if not exact or (np.isfinite(value) and not np.isfinite(found)):
        raise ValueError(f"{value} is no {datatype}")
    return found[()]


class Padding:
    """How one input is laid.

    axes: its dimensions that have a length, without the batch's, and the place of that length. pad: what fills it up.
    filling: where clients may leave it out, what it holds instead.
    """

    __slots__ = ("_dtype", "_one", "_spec", "axes", "filling", "pad")

    def __init__(
        self, spec: TensorSpec, axes: tuple[tuple[int, int], ...], pad: float, filling: Filling | None
    ) -> None:
        self.axes = axes
        self.filling = filling
        self._spec = spec
        self._dtype = DATATYPES[spec.datatype].numpy
        self.pad = number(pad, spec.datatype) if axes else 0
        self._one = number(1, spec.datatype) if filling else 1

    def __repr__(self) -> str:
        return f"<Padding of {self._spec.name} along {dict(self.axes)} by {self.pad}>"

    def shape(self, own: Shape | None, sizes: Sequence[int]) -> Shape:
        """The dimensions in the bucket of these sizes. own: before padding; None: left out, and as the model has it."""
        dims = [max(dim, 1) for dim in self._spec.shape] if own is None else list(own)
        for dim, length in self.axes:
            dims[dim] = sizes[length]
        return tuple(dims)

    def lay(
        self, index: int, parts: Sequence[Buffer], members: Sequence[tuple[Fit, int]], shape: Shape
    ) -> Sequence[Buffer]:
        """The input of a batch of that shape, batch dimension included: as one part, or `parts` as they are.

        index: its place in the signature. parts, members: of each request, its bytes, its fit and its rows.
        """
        if all(fit.shapes[index] == shape[1:] for fit, _ in members):
            return parts
        array = np.full(shape, self.pad, self._dtype)
        start = 0
        for part, (fit, rows) in zip(parts, members, strict=True):
            stop = start + rows
            own = fit.shapes[index]
            if own is not None:
                array[(slice(start, stop), *map(slice, own))] = np.frombuffer(part, self._dtype).reshape(rows, *own)
            elif self.filling == MASK:
                own = self.shape(None, fit.lengths)
                array[(slice(start, stop), *map(slice, own))] = self._one
            elif self.filling is not None and self.filling.length is not None:
                array[start:stop] = fit.lengths[self.filling.length]
            start = stop
        return [array.reshape(-1).view(np.uint8).data]


class RaggedRule(Protocol):
    """What is known of the rows of an input that share batches whatever their dimensions are."""

    @property
    def typical(self) -> Shape:
        """The dimensions of a row to warm the model with."""

    def refusal(self, dims: Shape) -> str:
        """Why rows of these dimensions cannot be taken; empty if they can."""


class Ragged:
    """How an input is laid whose rows keep their dimensions: not at all. In `Padding`'s place."""

    __slots__ = ("_spec", "axes", "filling", "rule")

    def __init__(self, spec: TensorSpec, rule: RaggedRule) -> None:
        self.axes: tuple[tuple[int, int], ...] = ()
        self.filling = None
        self.rule = rule
        self._spec = spec

    def __repr__(self) -> str:
        return f"<Ragged {self._spec.name}>"

    def shape(self, own: Shape | None, sizes: Sequence[int]) -> Shape:
        """The dimensions of its batches, -1 where rows differ. own: None: those of a row to warm the model with."""
        return self._spec.shape if own is not None else self.rule.typical

    def lay(
        self, index: int, parts: Sequence[Buffer], members: Sequence[tuple[Fit, int]], shape: Shape
    ) -> Sequence[Buffer]:
        """Each part as a view of its shape [rows, ...], of the datatype UINT8."""
        views = []
        for part, (fit, rows) in zip(parts, members, strict=True):
            own = fit.shapes[index]
            assert own is not None  # nobody may leave it out
            views.append(memoryview(part).cast("B", (rows, *own)))
        return views
