"""What is watched of a tensor: by which kind of features, derived from its datatype and shape where nobody says."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Literal

from headrace.drift.errors import DriftError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.messages import TensorSpec

Kind = Literal["numeric", "summary", "image", "tokens", "text", "embedding", "classes"]
Layout = Literal["NHWC", "NCHW"]

MAX_FEATURES = 256
"""Features of one tensor: each takes memory in every window, and has its share of the alarm level."""
DEFAULT_BINS = 20
DEFAULT_PROJECTIONS = 8
_CHANNELS = (1, 3, 4)
_LEAST_SIDE = 8  # of an image, where its size is fixed
_INTEGERS = ("UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64")
_SUMMARY = ("mean", "deviation", "minimum", "maximum", "length")


@dataclass(frozen=True, slots=True)
class Watch:
    """How one tensor becomes features.

    shape: without the batch; -1 is any size. bins: of a numeric feature, about. columns: of kind numeric, which
    elements of a row, flattened, are features. layout, channels: of an image. pad: of tokens, the id that is none.
    salted: whether items are kept as keyed hashes alone. projections: of embeddings. logits: whether scores of classes
    need a softmax. labels: names, of classes, or of the elements of a row where there are as many different ones.
    """

    tensor: str
    kind: Kind
    datatype: str
    shape: tuple[int, ...]
    output: bool = False
    bins: int = DEFAULT_BINS
    columns: tuple[int, ...] = ()
    layout: Layout = "NHWC"
    channels: int = 0
    pad: int | None = None
    salted: bool = False
    projections: int = DEFAULT_PROJECTIONS
    logits: bool = False
    labels: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Its name among all tensors of a model: an input and an output may be called the same."""
        return f"{'outputs' if self.output else 'inputs'}.{self.tensor}"

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the numeric features, in the order of their columns."""
        match self.kind:
            case "numeric":
                named = len(set(self.labels)) == len(self.labels) == prod(self.shape)  # labels may be there twice
                return tuple(self.labels[column] if named else str(column) for column in self.columns)
            case "summary":
                return _SUMMARY
            case "image":
                channels = range(self.channels)
                means, deviations = ([f"{what}_{c}" for c in channels] for what in ("mean", "deviation"))
                return (*means, *deviations, "brightness", "contrast", "sharpness")
            case "embedding":
                return (*(f"projection_{index}" for index in range(self.projections)), "norm")
            case "classes":
                return () if self.is_label else ("confidence",)
            case _:
                return ("length",)

    @property
    def items(self) -> str:
        """Name of the feature whose values are items, not numbers; empty if there is none."""
        return {"tokens": "tokens", "text": "text", "classes": "class"}.get(self.kind, "")

    def same_features(self, other: Watch) -> bool:
        """Whether both mean the same features, whatever they call them."""
        return replace(self, labels=()) == replace(other, labels=())

    @property
    def is_label(self) -> bool:
        """Of kind classes: whether the tensor holds the class itself, not a score for each."""
        return prod(self.shape) == 1 and self.datatype in _INTEGERS

    @property
    def classes(self) -> int:
        """Of kind classes, scores of a place: those of the last dimension, or all if it is 1 or labels name as many."""
        elements = prod(self.shape)
        whole = not self.shape or self.shape[-1] == 1 or len(self.labels) == elements
        return elements if whole else self.shape[-1]


def watch_of(
    spec: TensorSpec,
    *,
    output: bool = False,
    kind: Kind | None = None,
    bins: int = DEFAULT_BINS,
    columns: Sequence[int] | None = None,
    layout: Layout | None = None,
    pad: int | None = None,
    salted: bool | None = None,
    projections: int = DEFAULT_PROJECTIONS,
    logits: bool = False,
) -> Watch:
    """What to watch of a tensor; what is None is derived. Raises DriftError where the kind does not fit the tensor."""
    found = kind or default_kind(spec, output)
    axis = _channel_axis(spec.shape, layout) if found == "image" else None
    _check(spec, found, columns, axis, layout)
    elements = prod(spec.shape) if spec.fixed else 0
    if found == "numeric" and columns is None:
        columns = spread(elements, MAX_FEATURES)
    return Watch(
        tensor=spec.name,
        kind=found,
        datatype=spec.datatype,
        shape=spec.shape,
        output=output,
        bins=bins,
        columns=tuple(columns or ()),
        layout="NCHW" if axis == 0 else "NHWC",
        channels=0 if axis is None else spec.shape[axis],
        pad=pad,
        salted=(found == "text") if salted is None else salted,
        projections=projections,
        logits=logits,
        labels=spec.labels,
    )


def default_kind(spec: TensorSpec, output: bool) -> Kind:
    """By datatype and shape, and whether there are labels: docs/drift.md has the table."""
    if spec.datatype == "BYTES":
        return "text"
    if output and (spec.labels or (spec.datatype in _INTEGERS and prod(spec.shape) == 1)):
        return "classes"
    axis = _channel_axis(spec.shape, None)
    if axis is not None and all(dim < 0 or dim >= _LEAST_SIDE for at, dim in enumerate(spec.shape) if at != axis):
        return "image"
    if not spec.fixed:
        if spec.datatype in ("INT32", "INT64", "UINT32", "UINT64"):
            return "tokens"
    elif prod(spec.shape) <= MAX_FEATURES:
        return "numeric"
    return "embedding" if spec.shape[-1] > 1 else "summary"


def spread(elements: int, most: int) -> tuple[int, ...]:
    """All of so many elements, or `most` of them at even distances."""
    if elements <= most:
        return tuple(range(elements))
    return tuple(index * elements // most for index in range(most))


def _channel_axis(shape: tuple[int, ...], layout: Layout | None) -> int | None:
    """Which of three dimensions holds the channels of an image; None if none does."""
    if len(shape) != 3:
        return None
    candidates = {"NHWC": (2,), "NCHW": (0,), None: (2, 0)}[layout]
    return next((axis for axis in candidates if shape[axis] in _CHANNELS), None)


def _check(
    spec: TensorSpec, kind: Kind, columns: Sequence[int] | None, axis: int | None, layout: Layout | None
) -> None:
    shape = list(spec.shape)
    if (spec.datatype == "BYTES") != (kind == "text"):
        raise DriftError(
            f"{spec.name} is {spec.datatype}, which kind {kind} is not for: text is for BYTES and for it alone"
        )
    if kind == "tokens" and spec.datatype not in _INTEGERS:
        raise DriftError(f"{spec.name} is {spec.datatype}, expected integers for kind tokens")
    if kind == "image" and axis is None:
        expected = f"in the layout {layout}" if layout else "first or last"
        raise DriftError(
            f"{spec.name} is {shape}, expected for an image three dimensions, of which 1, 3 or 4 channels {expected}"
        )
    if kind in ("numeric", "classes") and not spec.fixed:
        raise DriftError(f"{spec.name} is {shape}, expected fixed dimensions for kind {kind}; kind summary takes any")
    if kind == "embedding" and (not shape or shape[-1] < 2):
        raise DriftError(f"{spec.name} is {shape}, expected a fixed last dimension of at least 2 for an embedding")
    if columns is None:
        return
    if kind != "numeric":
        raise DriftError(f"{spec.name}: features are chosen by number of kind numeric alone, not of {kind}")
    if len(columns) > MAX_FEATURES or len(set(columns)) != len(columns) or not columns:
        raise DriftError(f"{spec.name}: {len(columns)} features, expected 1 to {MAX_FEATURES} different ones")
    outside = [column for column in columns if not 0 <= column < prod(spec.shape)]
    if outside:
        raise DriftError(f"{spec.name} has no element {outside[0]}, expected 0 to {prod(spec.shape) - 1} of {shape}")
