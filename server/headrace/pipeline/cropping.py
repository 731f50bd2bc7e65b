"""Outputs of a bucket, cut back to what belongs to a request's own length."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.datatypes import DATATYPES
from headrace.pipeline import bytes_tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.messages import Buffer, ReplyWriter, TensorSpec

    Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Follows:
    """A dimension of an output that follows a length: `(multiply * length + add) // divide`.

    dim: which one, without the batch's. length: the place of the length among the model's.
    """

    dim: int
    length: int
    multiply: int = 1
    divide: int = 1
    add: int = 0

    def size(self, lengths: Sequence[int]) -> int:
        """Its size for these lengths."""
        return max((self.multiply * lengths[self.length] + self.add) // self.divide, 0)


@dataclass(frozen=True, slots=True)
class Cut:
    """A dimension, the batch's counted: its size in the bucket, and that which belongs to the request."""

    dim: int
    full: int
    own: int


class Crop:
    """A `messages.ReplyWriter` that cuts each output before the writer `inner` gets it.

    specs: of the outputs that a reply holds. cuts: of each, what is cut.
    """

    def __init__(self, inner: ReplyWriter, specs: Sequence[TensorSpec], cuts: Sequence[Sequence[Cut]]) -> None:
        self.inner = inner
        self._outputs = list(zip(specs, cuts, strict=True))

    def __repr__(self) -> str:
        return f"<Crop of {', '.join(f'{spec.name} {list(cuts)}' for spec, cuts in self._outputs)}>"

    def encode(self, id_field: bytes, raw: Sequence[Buffer], shapes: tuple[Shape, ...], parameters: bytes = b"") -> Any:  # noqa: ANN401
        """See `messages.ReplyWriter`. Raises ValueError for an output that is not as large as its bucket makes it."""
        cut = [
            cropped(data, shape, spec, cuts) if cuts else (data, shape)
            for data, shape, (spec, cuts) in zip(raw, shapes, self._outputs, strict=True)
        ]
        return self.inner.encode(id_field, [data for data, _ in cut], tuple(shape for _, shape in cut), parameters)

    def opening(self, shapes: tuple[Shape, ...]) -> None:
        """See `messages.ReplyWriter`: there is none, every reply is made."""

    def own_shape(self, place: int, shape: Shape) -> Shape:
        """What is left of the output in this place, of this shape."""
        own = list(shape)
        for cut in self._outputs[place][1]:
            own[cut.dim] = cut.own
        return tuple(own)

    def around(self, inner: ReplyWriter) -> Crop:
        """The same before another writer."""
        return Crop(inner, [spec for spec, _ in self._outputs], [cuts for _, cuts in self._outputs])


def cropped(data: Buffer, shape: Shape, spec: TensorSpec, cuts: Sequence[Cut]) -> tuple[Buffer, Shape]:
    """The first elements of an output along each dimension that is cut, and their shape. Raises ValueError."""
    own = list(shape)
    for cut in cuts:
        if shape[cut.dim] != cut.full:
            raise ValueError(
                f"output '{spec.name}' has {shape[cut.dim]} in dimension {cut.dim}, buckets.*.outputs makes it "
                f"{cut.full}"
            )
        own[cut.dim] = cut.own
    where = tuple(map(slice, own))
    datatype = DATATYPES[spec.datatype]
    if datatype.itemsize:
        return np.frombuffer(data, datatype.numpy).reshape(shape)[where].tobytes(), tuple(own)
    elements = np.empty(prod(shape), object)
    elements[:] = bytes_tensor.decode(data, prod(shape))
    return bytes_tensor.encode(elements.reshape(shape)[where]), tuple(own)
