"""What `[sequence]` of model.toml means for a model: which tensors are the client's, how the server fills others."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from headrace.datatypes import DATATYPES
from headrace.errors import InvalidRequest, ModelLoadError
from headrace.messages import Signature
from headrace.pipeline import bytes_tensor
from headrace.pipeline.sequences import SequenceLimits

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from headrace.messages import SequenceFlags, SequenceId, TensorSpec
    from headrace.repository.sequence_config import SequenceConfig, SequenceControls, SequenceState

    Shape = tuple[int, ...]

_ID_DATATYPES = ("UINT64", "INT64", "UINT32", "INT32", "BYTES")
_LEAST, _MOST = -(1 << 31), (1 << 31) - 1  # of a flag, in Triton's terms, which ModelConfig speaks
_PLACES = tuple((start, end) for start in (False, True) for end in (False, True))


class Kept(NamedTuple):
    """The states of one sequence: whole shapes, with a batch dimension of 1 where the model has one, and bytes."""

    shapes: tuple[Shape, ...]
    data: tuple[bytes, ...]
    nbytes: int


@dataclass(frozen=True, slots=True)
class SequencePlan:
    """How a request of a client becomes one of the model.

    signature: what clients see. states: of the model, (input, output) by state. initial: what a sequence begins with.
    order: for each input of the model its place among the client's inputs, the states, the flags and the id, one after
    another. flags: the bytes of those inputs by (start, end). id_input: what takes the id of the sequence. extra: the
    inputs of the flags and the id.
    """

    signature: Signature
    limits: SequenceLimits
    states: tuple[tuple[TensorSpec, TensorSpec], ...]
    initial: Kept
    order: tuple[int, ...]
    flags: Mapping[tuple[bool, bool], tuple[bytes, ...]]
    id_input: TensorSpec | None
    extra: tuple[TensorSpec, ...]

    def controls(self, flags: SequenceFlags) -> tuple[bytes, ...]:
        """The bytes of what tells the model where it is. Raises InvalidRequest for an id that it cannot take."""
        values = self.flags[flags.start, flags.end]
        return values if self.id_input is None else (*values, id_bytes(flags.id, self.id_input))


def plan_sequences(config: SequenceConfig, signature: Signature, instances: int, directory: Path) -> SequencePlan:
    """The plan for a model of this signature. directory: the model's, with the files of initial states.

    Raises ModelLoadError where configuration, model and files contradict one another.
    """
    batch = (1,) if signature.max_batch else ()
    states = _states(config.state, signature)
    flags = _flags(config.controls, signature)
    id_input = _id_input(config.controls, signature)
    extra = [spec for spec, _ in flags] + ([] if id_input is None else [id_input])
    filled = [*(spec.name for spec, _ in states), *(spec.name for spec in extra)]
    taken = [spec.name for _, spec in states]
    twice = [name for names in (filled, taken) for name in names if names.count(name) > 1]
    if twice:
        raise ModelLoadError(f"sequence speaks twice of '{twice[0]}'")
    visible = Signature(
        tuple(spec for spec in signature.inputs if spec.name not in filled),
        tuple(spec for spec in signature.outputs if spec.name not in taken),
        signature.max_batch,
    )
    pool = [*(spec.name for spec in visible.inputs), *filled]
    initial = _initial(config.state, [spec for spec, _ in states], batch, directory)
    return SequencePlan(
        signature=visible,
        limits=_limits(config, signature.max_batch, instances, initial.nbytes),
        states=states,
        initial=initial,
        order=tuple(pool.index(spec.name) for spec in signature.inputs),
        flags={place: tuple(values[place] for _, values in flags) for place in _PLACES},
        id_input=id_input,
        extra=tuple(extra),
    )


def id_bytes(sequence_id: SequenceId, spec: TensorSpec) -> bytes:
    """A sequence's id as an input takes it. Raises InvalidRequest where it cannot."""
    if spec.datatype == "BYTES":
        text = str(sequence_id).encode()
        return len(text).to_bytes(4, "little") + text
    if isinstance(sequence_id, str):
        raise InvalidRequest(f"sequence id '{sequence_id}' is text, but the model takes it as {spec.datatype}")
    size = DATATYPES[spec.datatype].itemsize
    most = (1 << 64) - 1 if size == 8 else int(np.iinfo(DATATYPES[spec.datatype].numpy).max)
    if sequence_id > most:
        raise InvalidRequest(f"sequence id {sequence_id} is above {most}: the model takes it as {spec.datatype}")
    return sequence_id.to_bytes(size, "little")


def _limits(config: SequenceConfig, max_batch: int, instances: int, initial_bytes: int) -> SequenceLimits:
    if initial_bytes > config.max_state_bytes:
        raise ModelLoadError(
            f"sequence.max_state_bytes = {config.max_state_bytes}, but the states of one sequence take {initial_bytes}"
        )
    active = {"oldest": config.max_candidate_sequences, "direct": max(max_batch, 1)}[config.strategy]
    return SequenceLimits(
        active * instances, round(config.idle_timeout_ms * 1e6), config.max_state_bytes, initial_bytes
    )


def _named(kind: str, name: str, specs: Sequence[TensorSpec]) -> TensorSpec:
    found = [spec for spec in specs if spec.name == name]
    if not found:
        known = [spec.name for spec in specs]
        raise ModelLoadError(f"sequence speaks of {kind} '{name}', but the {kind}s of the model are {known}")
    return found[0]


def _states(config: Sequence[SequenceState], signature: Signature) -> tuple[tuple[TensorSpec, TensorSpec], ...]:
    states = tuple(
        (_named("input", state.input, signature.inputs), _named("output", state.output, signature.outputs))
        for state in config
    )
    for before, after in states:
        _check_fit(before, after)
    return states


def _check_fit(before: TensorSpec, after: TensorSpec) -> None:
    fits = len(before.shape) == len(after.shape) and all(
        a == b or -1 in (a, b) for a, b in zip(before.shape, after.shape, strict=True)
    )
    if before.datatype != after.datatype or not fits:
        raise ModelLoadError(
            f"sequence.state: output '{after.name}' is {after.datatype} {list(after.shape)}, which input "
            f"'{before.name}' cannot take: it is {before.datatype} {list(before.shape)}"
        )


def _flags(controls: SequenceControls, signature: Signature) -> list[tuple[TensorSpec, dict[tuple[bool, bool], bytes]]]:
    """The inputs that take flags, and for each its bytes by (start, end)."""
    found = []
    for kind, control in (("start", controls.start), ("end", controls.end), ("ready", controls.ready)):
        if control is not None:
            spec = _single(control.input, signature)
            no, yes = (_flag_bytes(value, spec) for value in control.false_true)
            values = {place: yes if kind == "ready" or place[("start", "end").index(kind)] else no for place in _PLACES}
            found.append((spec, values))
    return found


def _id_input(controls: SequenceControls, signature: Signature) -> TensorSpec | None:
    if controls.corrid is None:
        return None
    spec = _single(controls.corrid.input, signature)
    if spec.datatype not in _ID_DATATYPES:
        raise ModelLoadError(
            f"sequence.controls.corrid: input '{spec.name}' is {spec.datatype}, expected one of {list(_ID_DATATYPES)}"
        )
    return spec


def _single(name: str, signature: Signature) -> TensorSpec:
    """An input of one element a row."""
    spec = _named("input", name, signature.inputs)
    if any(dim not in (1, -1) for dim in spec.shape):
        raise ModelLoadError(
            f"sequence.controls: input '{name}' has dimensions {list(spec.shape)}, expected one element a row"
        )
    return spec


def _flag_bytes(value: float, spec: TensorSpec) -> bytes:
    dtype = DATATYPES[spec.datatype].numpy
    if spec.datatype in ("BYTES", "BF16"):
        raise ModelLoadError(f"sequence.controls: input '{spec.name}' is {spec.datatype}, expected a number or BOOL")
    if dtype.kind == "b":
        fits = value in (0, 1)
    elif dtype.kind == "f":
        fits = True
    else:
        fits = float(value).is_integer() and max(np.iinfo(dtype).min, _LEAST) <= value <= min(
            np.iinfo(dtype).max, _MOST
        )
    if not fits:
        raise ModelLoadError(
            f"sequence.controls: {value!r} is no value of input '{spec.name}', which is {spec.datatype}"
        )
    return np.array(value).astype(dtype).tobytes()


def _initial(states: Sequence[SequenceState], specs: Sequence[TensorSpec], batch: Shape, directory: Path) -> Kept:
    shapes, data = [], []
    for state, spec in zip(states, specs, strict=True):
        dims = state.initial_dims
        if dims is None:
            dims = tuple(1 if dim < 0 else dim for dim in spec.shape)
        if len(dims) != len(spec.shape) or any(
            want not in (-1, dim) for dim, want in zip(dims, spec.shape, strict=True)
        ):
            raise ModelLoadError(
                f"sequence.state: initial_dims {list(dims)} of '{spec.name}', which has dimensions {list(spec.shape)}"
            )
        shapes.append((*batch, *dims))
        data.append(_initial_bytes(state, spec, prod(dims), directory))
    return Kept(tuple(shapes), tuple(data), sum(map(len, data)))


def _initial_bytes(state: SequenceState, spec: TensorSpec, elements: int, directory: Path) -> bytes:
    itemsize = DATATYPES[spec.datatype].itemsize
    if state.initial == "zero":
        return bytes(elements * (itemsize or 4))  # of BYTES: elements of no length
    inside, path = PurePosixPath(state.initial), directory / state.initial
    if inside.is_absolute() or ".." in inside.parts:  # links are the operator's: a load with a configuration has some
        raise ModelLoadError(f"sequence.state: initial = '{state.initial}' is not in the model's directory")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelLoadError(f"sequence.state: {path} cannot be read: {error.strerror or error}") from error
    if itemsize and len(data) != elements * itemsize:
        raise ModelLoadError(
            f"sequence.state: {path} has {len(data)} bytes, expected {elements * itemsize} for '{spec.name}'"
        )
    if not itemsize:
        try:
            bytes_tensor.decode(data, elements)
        except InvalidRequest as error:
            raise ModelLoadError(f"sequence.state: {path}: {error}") from error
    return data
