"""A model as its configuration shows it: which tensors, in which order, of which dimensions, with which labels.

Clients and the pipeline see the configured signature alone; the backend sees its own. Where both are laid out alike
nothing stands between them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from headrace.backends.base import TakesForms, device_of, memory_of, nodes_of
from headrace.errors import ModelLoadError
from headrace.messages import Signature, TensorSpec
from headrace.repository.labels import read_labels

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np

    from headrace.backends.base import Instance, LoadedModel
    from headrace.messages import Buffer
    from headrace.repository.model_config import ModelConfig, TensorConfig

    Shape = tuple[int, ...]


def present(model: LoadedModel, config: ModelConfig, directory: Path) -> LoadedModel:
    """The model as `config` shows it; `model` itself if that is how it is.

    directory: of the model, where files of labels are. Raises ModelLoadError where the two contradict one another.
    """
    own = model.signature
    for size in config.batching.preferred_sizes or ():
        if size > max(own.max_batch, 1):
            raise ModelLoadError(f"preferred batch size {size} is above the largest batch, {own.max_batch}")
    inputs = [_face("input", own, at, spec, config.inputs, config) for at, spec in enumerate(own.inputs)]
    outputs = [_face("output", own, at, spec, config.outputs, config) for at, spec in enumerate(own.outputs)]
    inputs = _in_order("input", inputs, list(config.inputs))
    outputs = _in_order("output", outputs, list(config.outputs))
    if config.serve_outputs is not None:
        states = config.sequence.state if config.sequence else ()  # which clients do not see either, but the server
        outputs = _chosen(outputs, [*config.serve_outputs, *(state.output for state in states)])
    outputs = [_with_labels(face, config, directory) for face in outputs]
    signature = Signature(tuple(f.spec for f in inputs), tuple(f.spec for f in outputs), own.max_batch)
    if signature == own:
        return model
    return PresentedModel(model, signature, inputs, outputs)


def check_described(signature: Signature, config: ModelConfig, directory: Path) -> Signature:
    """The signature of what has no file of its own, as `config` shows it.

    directory: of the model, where files of labels are. Raises ModelLoadError for a contradiction.
    """
    inputs = [_face("input", signature, at, spec, config.inputs, config) for at, spec in enumerate(signature.inputs)]
    outputs = [
        _face("output", signature, at, spec, config.outputs, config) for at, spec in enumerate(signature.outputs)
    ]
    reshaped = [face.spec.name for face in (*inputs, *outputs) if face.inside is not None]
    if reshaped or config.serve_outputs:
        raise ModelLoadError("reshape and serve_outputs are for models that have a file of their own")
    outputs = [_with_labels(face, config, directory) for face in outputs]
    return Signature(
        tuple(face.spec for face in _in_order("input", inputs, list(config.inputs))),
        tuple(face.spec for face in _in_order("output", outputs, list(config.outputs))),
        signature.max_batch,
    )


@dataclass(frozen=True, slots=True)
class _Face:
    """A tensor as clients see it. at: its place in the backend's signature. inside: its dimensions there, if others."""

    spec: TensorSpec
    at: int
    inside: Shape | None = None


class PresentedModel:
    """A `LoadedModel` behind a configured signature.

    behind: that model. alike: whether all of its tensors have the same places and dimensions there.
    """

    def __init__(
        self, model: LoadedModel, signature: Signature, inputs: Sequence[_Face], outputs: Sequence[_Face]
    ) -> None:
        self.signature = signature
        self.behind = model
        self._inputs = inputs
        self._outputs = outputs
        self.alike = (
            all(face.inside is None for face in (*inputs, *outputs))
            and all(face.at == at for at, face in enumerate(inputs))
            and all(face.at == at for at, face in enumerate(outputs))
        )

    def __repr__(self) -> str:
        return f"<PresentedModel of {self.behind!r}, {'alike' if self.alike else 'laid out anew'}>"

    @property
    def platform(self) -> str:
        """See `backends.base.LoadedModel`."""
        return self.behind.platform

    @property
    def executors_per_instance(self) -> int:
        """See `backends.base.LoadedModel`."""
        return self.behind.executors_per_instance

    @property
    def inline(self) -> bool:
        """See `backends.base.LoadedModel`."""
        return self.behind.inline

    @property
    def memory(self) -> Mapping[str, int]:
        """See `backends.base.memory_of`."""
        return memory_of(self.behind)

    @property
    def nodes(self) -> Mapping[str, int]:
        """See `backends.base.nodes_of`."""
        return nodes_of(self.behind)

    def take_forms(self, forms: Sequence[Sequence[Shape]]) -> None:
        """See `backends.base.TakesForms`."""
        if isinstance(self.behind, TakesForms):
            faces = sorted(enumerate(self._inputs), key=lambda place: place[1].at)
            self.behind.take_forms([[_inward(face, form[place]) for place, face in faces] for form in forms])

    def make_instance(self, index: int) -> Instance:
        """See `backends.base.LoadedModel`."""
        instance = self.behind.make_instance(index)
        if self.alike:
            return instance
        return _PresentedInstance(instance, self._inputs, self._outputs, 1 if self.signature.max_batch else 0)


class _PresentedInstance:
    """An `Instance` that lays tensors out as the backend knows them, and back. lead: batch dimensions, 0 or 1."""

    def __init__(self, instance: Instance, inputs: Sequence[_Face], outputs: Sequence[_Face], lead: int) -> None:
        self.device = device_of(instance)
        self._instance = instance
        self._inputs = sorted(enumerate(inputs), key=lambda place: place[1].at)
        self._outputs = outputs
        self._lead = lead

    def run(
        self, inputs: Sequence[Sequence[Buffer]], shapes: Sequence[Shape], outputs: Sequence[int]
    ) -> Sequence[np.ndarray[Any, Any]]:
        """See `backends.base.Instance`."""
        faces = [self._outputs[index] for index in outputs]
        arrays = self._instance.run(
            [inputs[place] for place, _ in self._inputs],
            [shapes[place][: self._lead] + _inward(face, shapes[place][self._lead :]) for place, face in self._inputs],
            [face.at for face in faces],
        )
        return [self._outward(face, array) for face, array in zip(faces, arrays, strict=True)]

    def close(self) -> None:
        """See `backends.base.Instance`."""
        self._instance.close()

    def _outward(self, face: _Face, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if face.inside is None:
            return array
        dims = array.shape[self._lead :]
        if not _fits(dims, face.inside):
            raise ValueError(f"output {face.spec.name!r} has dimensions {list(dims)}, expected {list(face.inside)}")
        return array.reshape(array.shape[: self._lead] + _filled(face.spec.shape, face.inside, dims))


def _inward(face: _Face, dims: Shape) -> Shape:
    """Dimensions of a row as the backend knows them."""
    return dims if face.inside is None else _filled(face.inside, face.spec.shape, dims)


def _filled(pattern: Shape, like: Shape, dims: Shape) -> Shape:
    """`pattern` with its dimensions of any size, in order, taken from where `dims` has those of `like`."""
    free = iter([dim for dim, declared in zip(dims, like, strict=True) if declared < 0])
    return tuple(next(free) if dim < 0 else dim for dim in pattern)


def _fits(dims: Shape, declared: Shape) -> bool:
    """Whether dimensions, which may be -1, are among those that are declared."""
    return len(dims) == len(declared) and all(want < 0 or got == want for got, want in zip(dims, declared, strict=True))


def _face(
    kind: str, own: Signature, at: int, spec: TensorSpec, described: Mapping[str, TensorConfig], config: ModelConfig
) -> _Face:
    """One tensor of the file as clients see it. Raises ModelLoadError if it is not as it is described."""
    said = described.get(spec.name)
    dims = None if said is None else said.dims
    if said is not None and said.datatype not in (None, spec.datatype):
        raise ModelLoadError(
            f"the configuration expects datatype {said.datatype} for {kind} '{spec.name}', the model provides "
            f"{spec.datatype}"
        )
    if dims is None:
        one = config.unit_dims and not spec.shape
        return _Face(replace(spec, shape=(1,)), at, ()) if one else _Face(spec, at)
    reshape = None if said is None else said.reshape
    inside = dims if reshape is None else reshape
    scalar = not spec.shape and not own.max_batch and set(dims) <= {1}
    if scalar and reshape is None:  # a single value, which Triton shows as [1]
        return _Face(replace(spec, shape=dims), at, ())
    if not _fits(inside, spec.shape):
        batch = (-1,) if own.max_batch else ()
        note = " (the first is the batch's)" if own.max_batch else ""
        raise ModelLoadError(
            f"the configuration says {list(batch + inside)} of {kind} '{spec.name}'{note}, the model has "
            f"{list(batch + spec.shape)}; each dimension must be the model's, and may be any where it has -1"
        )
    return _Face(replace(spec, shape=dims), at, None if inside == dims else inside)


def _in_order(kind: str, faces: Sequence[_Face], described: Sequence[str]) -> list[_Face]:
    """As they are described, if all are, else as they are in the file. Raises ModelLoadError for one that is not."""
    by_name = {face.spec.name: face for face in faces}
    unknown = [name for name in described if name not in by_name]
    if unknown:
        raise ModelLoadError(
            f"the configuration speaks of {kind} {unknown}, but the {kind}s of the model are {list(by_name)}"
        )
    return [by_name[name] for name in described] if len(described) == len(by_name) else list(faces)


def _chosen(faces: Sequence[_Face], names: Sequence[str]) -> list[_Face]:
    by_name = {face.spec.name: face for face in faces}
    unknown = [name for name in names if name not in by_name]
    if unknown:
        raise ModelLoadError(f"serve_outputs names {unknown}, but the outputs of the model are {list(by_name)}")
    return [by_name[name] for name in dict.fromkeys(names)]


def _with_labels(face: _Face, config: ModelConfig, directory: Path) -> _Face:
    said = config.outputs.get(face.spec.name)
    if said is None or not said.labels:
        return face
    return replace(face, spec=replace(face.spec, labels=read_labels(directory / said.labels)))
