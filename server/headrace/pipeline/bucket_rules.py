"""What model.toml says of lengths, in terms of the model's signature: names as places, dimensions without the batch's.

All that the two could contradict one another in is found here, before the model serves.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Protocol

from headrace.errors import ModelLoadError
from headrace.pipeline.cropping import Follows
from headrace.pipeline.padding import MASK, Filling, Padding, Ragged, number

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from headrace.messages import Signature, TensorSpec
    from headrace.pipeline.padding import RaggedRule

MAX_BUCKETS = 1024
"""Buckets of a model, the sizes of several lengths multiplied: each has a cost model, and is warmed."""
_NO_LENGTHS = frozenset({"BOOL", "BYTES", "FP16", "BF16"})


class FollowingDim(Protocol):
    """A dimension of an output that follows a length: `(multiply * length + add) // divide`."""

    @property
    def dim(self) -> int:
        """Which one, as clients count: from 0 with the batch's, or from the end as -1."""

    @property
    def multiply(self) -> int:
        """Elements of the output for `divide` of the input."""

    @property
    def divide(self) -> int:
        """Elements of the input for `multiply` of the output."""

    @property
    def add(self) -> int:
        """What is added before dividing."""


class LengthRules(Protocol):
    """A `[buckets.NAME]` of model.toml. Dimensions are counted as in `FollowingDim`."""

    @property
    def bucket_sizes(self) -> Sequence[int]:
        """The sizes, ascending."""

    @property
    def inputs(self) -> Mapping[str, Sequence[int]]:
        """The dimensions that have this length, by input."""

    @property
    def masks(self) -> Mapping[str, Sequence[int]]:
        """The same of inputs that say where data is, which the server fills where a client leaves them out."""

    @property
    def lengths(self) -> str | None:
        """The input that says the length of each row, which the server fills likewise."""

    @property
    def outputs(self) -> Mapping[str, Sequence[FollowingDim]]:
        """What follows, by output; nothing: the output is left as it is."""


@dataclass(frozen=True, slots=True)
class Length:
    """A length: its name, and the sizes of its buckets, ascending."""

    name: str
    sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Resolved:
    """lengths: in the order of model.toml. inputs, outputs: of each of the signature's. filled: names of inputs."""

    lengths: list[Length]
    inputs: list[Padding | Ragged]
    outputs: list[tuple[Follows, ...]]
    filled: frozenset[str]


def resolve(
    rules: Mapping[str, LengthRules],
    signature: Signature,
    pads: Mapping[str, float],
    ragged: Mapping[str, RaggedRule] | None = None,
) -> Resolved:
    """The rules, by the names of lengths, for a model. pads: what fills an input up, by its name.

    ragged: see `Buckets`. Raises ModelLoadError where they contradict one another, or the model.
    """
    ragged = ragged or {}
    lengths = [Length(name, tuple(rule.bucket_sizes)) for name, rule in rules.items()]
    buckets = prod(len(length.sizes) for length in lengths)
    if buckets > MAX_BUCKETS:
        raise ModelLoadError(f"the sizes of all lengths make {buckets} buckets, at most {MAX_BUCKETS} may be")
    tensors = _Tensors(signature)
    axes: dict[str, dict[int, int]] = {}
    for index, (name, rule) in enumerate(rules.items()):
        for input_name, dims in [*rule.inputs.items(), *rule.masks.items()]:
            spec = tensors.input(f"buckets.{name}", input_name)
            if spec.datatype == "BYTES":
                raise ModelLoadError(f"buckets.{name}: input '{input_name}' is BYTES, which cannot be padded")
            if input_name in ragged:
                raise ModelLoadError(f"buckets.{name}: rows of input '{input_name}' may be of any size already")
            for dim in dims:
                at = tensors.dim(f"buckets.{name}", "input", spec, dim)
                if axes.setdefault(input_name, {}).setdefault(at, index) != index:
                    raise ModelLoadError(
                        f"buckets.{name}: dimension {dim} of input '{input_name}' has a length already"
                    )
    filled = _filled(rules, tensors)
    for name in filled:
        tensors.known(name, axes.get(name, {}))
    for name in pads:
        if name not in axes or name in filled:
            raise ModelLoadError(f"inputs.{name} has a pad, but no buckets are for its data")
    return Resolved(
        lengths,
        [
            Ragged(spec, ragged[spec.name])
            if spec.name in ragged
            else _padding(spec, axes.get(spec.name, {}), pads, filled.get(spec.name))
            for spec in signature.inputs
        ],
        _outputs(rules, tensors),
        frozenset(filled),
    )


class _Tensors:
    """The tensors of a signature by name, and dimensions as clients count them."""

    def __init__(self, signature: Signature) -> None:
        self.inputs = {spec.name: spec for spec in signature.inputs}
        self.outputs = {spec.name: spec for spec in signature.outputs}
        self._lead = 1 if signature.max_batch else 0

    def input(self, where: str, name: str) -> TensorSpec:
        """The input of that name."""
        if name not in self.inputs:
            raise ModelLoadError(f"{where} speaks of input '{name}', but the inputs of the model are {[*self.inputs]}")
        return self.inputs[name]

    def output(self, where: str, name: str) -> TensorSpec:
        """The output of that name."""
        if name not in self.outputs:
            raise ModelLoadError(
                f"{where} speaks of output '{name}', but the outputs of the model are {[*self.outputs]}"
            )
        return self.outputs[name]

    def dim(self, where: str, kind: str, spec: TensorSpec, dim: int) -> int:
        """The place of a dimension in `spec.shape`; it must be there, and vary."""
        whole = (-1,) * self._lead + spec.shape
        at = dim + len(whole) if dim < 0 else dim
        if not 0 <= at < len(whole):
            raise ModelLoadError(f"{where}: {kind} '{spec.name}' has shape {list(whole)}, no dimension {dim}")
        if at < self._lead or whole[at] >= 0:
            why = "is the batch's" if at < self._lead else "does not vary"
            raise ModelLoadError(f"{where}: {kind} '{spec.name}' has shape {list(whole)}; dimension {dim} {why}")
        return at - self._lead

    def known(self, name: str, axes: Iterable[int]) -> None:
        """Whether all dimensions of an input are fixed or among `axes`."""
        shape = self.inputs[name].shape
        for at, dim in enumerate(shape):
            if dim < 0 and at not in axes:
                raise ModelLoadError(
                    f"input '{name}' is filled by the server, but dimension {at + self._lead} of "
                    f"{list((-1,) * self._lead + shape)} varies and no buckets say how"
                )


def _filled(rules: Mapping[str, LengthRules], tensors: _Tensors) -> dict[str, Filling]:
    """What the server fills, by the input's name."""
    filled: dict[str, Filling] = {}
    for index, (name, rule) in enumerate(rules.items()):
        for input_name in rule.masks:
            filled[input_name] = MASK
        if rule.lengths is None:
            continue
        spec = tensors.input(f"buckets.{name}.lengths", rule.lengths)
        if spec.datatype in _NO_LENGTHS or prod(spec.shape) != 1:
            raise ModelLoadError(
                f"buckets.{name}.lengths: input '{spec.name}' is {spec.datatype} {list(spec.shape)} in each row, "
                "expected a single number"
            )
        _number(rule.bucket_sizes[-1], spec, f"buckets.{name}.lengths")
        if spec.name in filled:
            raise ModelLoadError(f"buckets.{name}.lengths: input '{spec.name}' is filled in another way already")
        filled[spec.name] = Filling(index)
    for name, rule in rules.items():
        for input_name in rule.inputs:
            if input_name in filled:
                raise ModelLoadError(f"buckets.{name}: input '{input_name}' is data here and filled by the server too")
    return filled


def _padding(spec: TensorSpec, axes: Mapping[int, int], pads: Mapping[str, float], filling: Filling | None) -> Padding:
    pad = pads.get(spec.name, 0.0)
    if axes:
        _number(pad, spec, f"inputs.{spec.name}.pad")
    return Padding(spec, tuple(sorted(axes.items())), pad, filling)


def _number(value: float, spec: TensorSpec, where: str) -> None:
    try:
        number(value, spec.datatype)
    except ValueError as error:
        raise ModelLoadError(f"{where}: {error}, which input '{spec.name}' is") from None


def _outputs(rules: Mapping[str, LengthRules], tensors: _Tensors) -> list[tuple[Follows, ...]]:
    """What of each output follows a length."""
    found: dict[str, dict[int, Follows]] = {}
    for index, (length, rule) in enumerate(rules.items()):
        for name, dims in rule.outputs.items():
            spec = tensors.output(f"buckets.{length}", name)
            axes = found.setdefault(name, {})
            for one in dims:
                at = tensors.dim(f"buckets.{length}", "output", spec, one.dim)
                if at in axes:
                    raise ModelLoadError(f"buckets.{length}: dimension {one.dim} of output '{name}' follows already")
                axes[at] = Follows(at, index, one.multiply, one.divide, one.add)
    for spec in tensors.outputs.values():
        if rules and not spec.fixed and spec.name not in found:
            raise ModelLoadError(
                f"output '{spec.name}' has dimensions {list(spec.shape)}, and no buckets say which of them follows a "
                f"length: outputs.{spec.name} = that dimension, or [] to leave the output as it is"
            )
    return [tuple(found.get(name, {}).values()) for name in tensors.outputs]
