"""Lengths that vary from request to request, and the buckets that rows are padded to so that they can share a batch.

A length is what model.toml has named: a dimension of one or several inputs, which masks and outputs may follow. A
request's lengths choose its bucket: of each, the least size that holds it. All requests of a bucket have the same batch
key; how one lies in it is its `messages.Fit`. Requests wait as they came, and are padded when their batch runs, so that
a small request takes no more memory than it has sent.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import replace
from itertools import product
from math import prod
from typing import TYPE_CHECKING

from headrace.errors import InvalidRequest, ModelLoadError
from headrace.messages import Fit
from headrace.pipeline.bucket_rules import resolve
from headrace.pipeline.cropping import Crop, Cut
from headrace.pipeline.padding import Ragged

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from headrace.messages import Batch, Buffer, ReplyWriter, Signature
    from headrace.pipeline.bucket_rules import LengthRules
    from headrace.pipeline.padding import RaggedRule

    Shape = tuple[int, ...]
    Member = tuple[Fit, int]  # of a batch: how a request lies in its bucket, and its rows


_MOST = 1 << 28
"""Elements that an input of a row is padded to, at most: a length of 0 beside another dimension of any size takes no
octet of a request, and would take all memory in its bucket."""


class Buckets:
    """The buckets of one model version. Raises ModelLoadError where the rules and the model contradict one another.

    rules: by the name of the length. signature: as the model takes it. pads: what fills up an input, by its name.
    ragged: inputs, UINT8, whose rows share batches whatever their dimensions are, by name.
    optional: names of the inputs that the server fills. offered: the signature without them, as clients see it.
    certain: whether the shapes of all inputs are known, but for their lengths.
    """

    def __init__(
        self,
        rules: Mapping[str, LengthRules],
        signature: Signature,
        pads: Mapping[str, float],
        ragged: Mapping[str, RaggedRule] | None = None,
    ) -> None:
        resolved = resolve(rules, signature, pads, ragged)
        self._lead = 1 if signature.max_batch else 0
        self._lengths = resolved.lengths
        self._inputs = list(zip(signature.inputs, resolved.inputs, strict=True))
        self._outputs = list(zip(signature.outputs, resolved.outputs, strict=True))
        self.optional = resolved.filled
        self.offered = replace(
            signature, inputs=tuple(spec for spec in signature.inputs if spec.name not in self.optional)
        )
        self.certain = all(
            dim >= 0 or at in dict(padding.axes) or isinstance(padding, Ragged)
            for spec, padding in self._inputs
            for at, dim in enumerate(spec.shape)
        )

    def __repr__(self) -> str:
        return f"<Buckets {', '.join(f'{length.name} {list(length.sizes)}' for length in self._lengths)}>"

    def fit(self, shapes: Sequence[Shape | None], model: str) -> tuple[Fit, tuple[Shape, ...]]:
        """How a request lies in its bucket, and the shapes of the bucket's inputs. Raises InvalidRequest.

        shapes: for each input of the signature, as the model takes it, the request's own; None: it is left out.
        """
        lengths = self._own_lengths(shapes, model)
        sizes = tuple(
            length.sizes[bisect_left(length.sizes, own)] for length, own in zip(self._lengths, lengths, strict=True)
        )
        bucket = []
        elements = padded = 0
        for (spec, padding), own in zip(self._inputs, shapes, strict=True):
            if isinstance(padding, Ragged) and own is not None and (why := padding.rule.refusal(own)):
                raise InvalidRequest(f"input '{spec.name}' for model '{model}' has rows of {list(own)}: {why}")
            shape = padding.shape(own, sizes)
            bucket.append(shape)
            if own is not None and padding.axes and prod(shape) > max(_MOST, prod(own)):
                raise InvalidRequest(
                    f"input '{spec.name}' for model '{model}' has rows of {list(own)}, {list(shape)} in their bucket: "
                    f"expected at most {_MOST} elements there"
                )
            if own is not None and padding.axes and padding.filling is None:
                elements += prod(own)
                padded += prod(shape)
        return Fit(lengths, sizes, tuple(shapes), elements, padded - elements), tuple(bucket)

    def all(self) -> Iterator[tuple[Fit, tuple[Shape, ...]]]:
        """What `fit` gives for a request as long as its bucket, for each bucket, the longest first.

        It leaves out what it may. Dimensions that vary and have no buckets are 1, or those of a typical ragged row.
        """
        for sizes in product(*(reversed(length.sizes) for length in self._lengths)):
            yield self.fit([None if padding.filling else padding.shape(None, sizes) for _, padding in self._inputs], "")

    def pack(
        self, members: Sequence[Member], inputs: Sequence[Sequence[Buffer]], shapes: Sequence[Shape]
    ) -> list[Sequence[Buffer]]:
        """A batch's inputs as the model takes them: what varies is padded, what clients have left out is filled.

        inputs: for each input of the signature, the bytes of each member. shapes: of the batch's inputs, batch
        dimension included. Touches nothing else, and so may run on any thread.
        """
        return [
            padding.lay(index, parts, members, shape if self._lead else (1, *shape))
            for index, ((_, padding), parts, shape) in enumerate(zip(self._inputs, inputs, shapes, strict=True))
        ]

    def pack_alike(
        self, fit: Fit, dims: Sequence[Shape], inputs: Sequence[Sequence[Buffer]]
    ) -> tuple[list[Sequence[Buffer]], list[Shape]]:
        """`pack` of requests of one row that all lie alike; and the shapes of the batch's inputs.

        fit, dims: as from `fit`. inputs: for each input of the signature, the bytes of each row.
        """
        rows = len(inputs[0])
        shapes = [(rows, *shape) if self._lead else shape for shape in dims]
        return self.pack([(fit, 1)] * rows, inputs, shapes), shapes

    def crop(self, writer: ReplyWriter, fit: Fit, outputs: Sequence[int]) -> ReplyWriter:
        """What writes the replies to requests that lie like `fit`: each output is cut back before `writer` gets it.

        outputs: indices into the signature's outputs, as the reply holds them.
        """
        if fit.lengths == fit.sizes:
            return writer
        chosen = [self._outputs[index] for index in outputs]
        cuts = [
            [Cut(self._lead + axis.dim, axis.size(fit.sizes), axis.size(fit.lengths)) for axis in axes]
            for _, axes in chosen
        ]
        return Crop(writer, [spec for spec, _ in chosen], cuts)

    def check_outputs(self, fit: Fit, shapes: Sequence[Shape]) -> None:
        """Whether the outputs of a batch of the bucket are as large as model.toml says. Raises ModelLoadError.

        shapes: of all outputs, batch dimension included.
        """
        for (spec, axes), shape in zip(self._outputs, shapes, strict=True):
            for axis in axes:
                dim, expected, length = self._lead + axis.dim, axis.size(fit.sizes), self._lengths[axis.length].name
                if shape[dim] != expected:
                    raise ModelLoadError(
                        f"output '{spec.name}' has shape {list(shape)} where {length} is {fit.sizes[axis.length]}; "
                        f"by buckets.{length}.outputs, dimension {dim} would be {expected}"
                    )

    def _own_lengths(self, shapes: Sequence[Shape | None], model: str) -> tuple[int, ...]:
        """The lengths of a request, each one that all inputs which have it agree upon. Raises InvalidRequest."""
        found: dict[int, tuple[int, str]] = {}
        for (spec, padding), shape in zip(self._inputs, shapes, strict=True):
            for dim, index in padding.axes if shape is not None else ():
                own, length = shape[dim], self._lengths[index]  # type: ignore[index]
                what = f"input '{spec.name}' for model '{model}' has {own} in dimension {self._lead + dim}"
                if own > length.sizes[-1]:
                    raise InvalidRequest(f"{what}, expected at most {length.sizes[-1]}, the greatest bucket")
                known, other = found.setdefault(index, (own, spec.name))
                if own != known:
                    raise InvalidRequest(f"{what}, expected {known}, the {length.name} of input '{other}'")
        return tuple(found[index][0] for index in range(len(self._lengths)))


def members_of(batch: Batch) -> list[Member]:
    """The requests of a batch of a model with buckets."""
    templates = [request.template for request in batch.requests]
    return [(template.fit, template.rows) for template in templates if template.fit is not None]


def elements_of(members: Sequence[Member]) -> tuple[int, int]:
    """Of what a batch runs, the elements that its callers have sent, and those that are padding."""
    return sum(rows * fit.elements for fit, rows in members), sum(rows * fit.padding for fit, rows in members)
