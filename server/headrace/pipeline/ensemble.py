"""A graph of models: which tensor goes from which step to which, and what the whole takes and gives. Pure.

Source: Triton's ensemble scheduling: a step maps the inputs and outputs of a model to names of tensors of the ensemble.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from headrace.messages import Signature, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


class StepLike(Protocol):
    """A step as configured. inputs, outputs: names of the model's tensors to names of the ensemble's."""

    @property
    def model(self) -> str: ...  # noqa: D102
    @property
    def inputs(self) -> Mapping[str, str]: ...  # noqa: D102
    @property
    def outputs(self) -> Mapping[str, str]: ...  # noqa: D102


class BadGraph(ValueError):
    """The steps do not form a graph that can run; says what is wrong."""


@dataclass(frozen=True, slots=True)
class Step:
    """One run of a model. inputs: (the model's name, the ensemble's); outputs: (the model's, the ensemble's)."""

    index: int
    model: str
    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Graph:
    """Steps in an order in which each can run, and the signature of the whole."""

    steps: tuple[Step, ...]
    signature: Signature

    def needed(self, outputs: Iterable[str]) -> tuple[Step, ...]:
        """The steps without which these outputs do not come about, in order."""
        wanted = set(outputs)
        found = []
        for step in reversed(self.steps):
            if wanted.intersection(name for _, name in step.outputs):
                found.append(step)
                wanted.update(name for _, name in step.inputs)
        return tuple(reversed(found))


def build_graph(
    steps: Sequence[StepLike], signatures: Sequence[Signature], outputs: Sequence[str], max_batch: int | None = None
) -> Graph:
    """The graph of the steps, whose models have these signatures. Raises BadGraph.

    outputs: the tensors that the ensemble gives; empty for all that no step takes. max_batch: rows of a request; None
    for as many as the least of the models takes. Where one model has no batch dimension, or it is 0, the ensemble has
    none, and those of the others are dimensions like any other.
    """
    if not steps:
        raise BadGraph("an ensemble needs at least one step")
    batched = max_batch != 0 and all(signature.max_batch for signature in signatures)
    made: dict[str, TensorSpec] = {}
    taken: dict[str, TensorSpec] = {}
    for step, signature in zip(steps, signatures, strict=True):
        for name, spec in _mapped(step, "output", step.outputs, signature.outputs):
            if name in made:
                raise BadGraph(f"tensor '{name}' is the output of two steps, the second of model '{step.model}'")
            made[name] = _of_ensemble(name, spec, signature, batched)
        missing = [spec.name for spec in signature.inputs if spec.name not in step.inputs]
        if missing:
            raise BadGraph(f"input '{missing[0]}' of model '{step.model}' is not mapped to a tensor of the ensemble")
        for name, spec in _mapped(step, "input", step.inputs, signature.inputs):
            wanted = _of_ensemble(name, spec, signature, batched)
            taken[name] = _agreed(wanted, taken.get(name, wanted), f"two steps, one of them of model '{step.model}',")
    for name, spec in taken.items():
        if name in made:
            _agreed(spec, made[name], "the step that gives it and one that takes it")
    given = outputs or [name for name in made if name not in taken]
    for name in given:
        if name not in made:
            raise BadGraph(f"output '{name}' of the ensemble is not the output of a step; those are {sorted(made)}")
    if batched:
        least = min(signature.max_batch for signature in signatures)
        rows = least if max_batch is None else max_batch
        if rows > least or rows < 1:
            raise BadGraph(f"max_batch = {rows}, expected 1 to {least}, which is the least of the models")
    elif max_batch:
        raise BadGraph(f"max_batch = {max_batch}, but a model of a step has no batch dimension")
    inputs = tuple(spec for name, spec in taken.items() if name not in made)
    return Graph(_ordered(steps), Signature(inputs, tuple(made[name] for name in given), rows if batched else 0))


def _mapped(
    step: StepLike, kind: str, mapping: Mapping[str, str], specs: Sequence[TensorSpec]
) -> Iterable[tuple[str, TensorSpec]]:
    """(name in the ensemble, spec of the model) of each mapped tensor."""
    known = {spec.name: spec for spec in specs}
    for model_name, name in mapping.items():
        if model_name not in known:
            raise BadGraph(f"model '{step.model}' has no {kind} '{model_name}'; it has {sorted(known)}")
        yield name, known[model_name]


def _of_ensemble(name: str, spec: TensorSpec, signature: Signature, batched: bool) -> TensorSpec:
    """A model's tensor under its name in the ensemble, without the batch dimension if the ensemble has one."""
    shape = spec.shape if batched or not signature.max_batch else (-1, *spec.shape)
    return replace(spec, name=name, shape=shape)


def _agreed(one: TensorSpec, other: TensorSpec, who: str) -> TensorSpec:
    """A tensor that both can mean: where one knows a dimension, it holds."""
    fits = len(one.shape) == len(other.shape) and all(
        a == b or -1 in (a, b) for a, b in zip(one.shape, other.shape, strict=True)
    )
    if one.datatype != other.datatype or not fits:
        raise BadGraph(
            f"{who} do not agree on tensor '{one.name}': {one.datatype} {list(one.shape)} and "
            f"{other.datatype} {list(other.shape)}"
        )
    return TensorSpec(one.name, one.datatype, tuple(map(max, one.shape, other.shape)))


def _ordered(steps: Sequence[StepLike]) -> tuple[Step, ...]:
    """Each step behind those whose outputs it takes. Raises BadGraph for a circle."""
    left = [
        Step(index, step.model, tuple(step.inputs.items()), tuple(step.outputs.items()))
        for index, step in enumerate(steps)
    ]
    ordered: list[Step] = []
    while left:
        to_come = {name for step in left for _, name in step.outputs}
        ready = [step for step in left if not to_come.intersection(name for _, name in step.inputs)]
        if not ready:
            models = [step.model for step in left]
            raise BadGraph(f"the steps of the models {models} wait for one another")
        ordered += ready
        left = [step for step in left if step not in ready]
    return tuple(ordered)


def circle(name: str, members: Mapping[str, Sequence[str]]) -> list[str]:
    """A way from an ensemble through those that it runs back to itself; empty if there is none.

    members: the models that each ensemble runs.
    """
    ways = [[name]]
    seen = {name}
    while ways:
        way = ways.pop(0)
        for model in members.get(way[-1], ()):
            if model == name:
                return [*way, name]
            if model not in seen:
                seen.add(model)
                ways.append([*way, model])
    return []
