"""How the batches of a model lie in memory, and by which profile of its engine each runs."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from headrace.backends.tensorrt.engine import infer, nbytes, rows_of
from headrace.backends.tensorrt.profiles import batch_buckets
from headrace.errors import ModelLoadError
from headrace.messages import Signature

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.backends.tensorrt import bindings as b
    from headrace.backends.tensorrt.engine import Engine, Face
    from headrace.backends.tensorrt.profiles import Range, Shape


@dataclass(frozen=True, slots=True)
class Bucket:
    """Batches that are padded to the same shapes. rows: of them; low: of the smallest that is not another bucket's.

    inputs, outputs: whole shapes.
    """

    rows: int
    low: int
    profile: int
    inputs: tuple[Shape, ...]
    outputs: tuple[Shape, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """signature: as clients see it. inputs, outputs: bytes that each tensor takes at most.

    buckets: by rows, ascending; none where dimensions other than the batch vary. Without a batch dimension there is
    one, of a single row.
    """

    signature: Signature
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    buckets: tuple[Bucket, ...]

    def bucket_at(self, rows: int) -> int:
        """The place of the bucket that a batch of so many rows is in."""
        return bisect_left(self.buckets, rows, key=lambda bucket: bucket.rows)


def lay_out(engine: Engine, face: Face, max_batch: int | None, sizes: Sequence[int]) -> Layout:
    """The layout of an engine's batches. max_batch, sizes: as configured, the latter the rows of buckets.

    Raises ModelLoadError where the engine is not built for that, or has outputs whose sizes depend on values.
    """
    rows = _resolve(face, max_batch, sizes)
    lead = 1 if rows else 0
    specs = [replace(spec, shape=spec.shape[lead:]) for spec in face.inputs]
    given = [replace(spec, shape=spec.shape[lead:]) for spec in face.outputs]
    with _Inference(engine, face, lead) as inference:
        largest = [_largest(profile, lead) for profile in face.profiles]
        inputs = [list(map(nbytes, specs, shapes)) for shapes in largest]
        outputs = [list(map(nbytes, given, inference.outputs(at, shapes))) for at, shapes in enumerate(largest)]
        buckets: list[Bucket] = []
        if all(spec.fixed for spec in specs):
            low = 1
            for size in batch_buckets(rows, sizes) if rows else [1]:
                shapes = tuple((size,) * lead + spec.shape for spec in specs)
                bucket = _bucket(size, low, shapes, face, inference)
                if low <= bucket.rows:  # else the one before is as large: its profile asks for more rows
                    buckets.append(bucket)
                    low = bucket.rows + 1
            # what follows from the inputs is known now
            given = [replace(spec, shape=shape[lead:]) for spec, shape in zip(given, buckets[-1].outputs, strict=True)]
    return Layout(Signature(tuple(specs), tuple(given), rows), _most(inputs), _most(outputs), tuple(buckets))


class _Inference:
    """Shapes of outputs, from those of inputs. lead: batch dimensions, 0 or 1."""

    def __init__(self, engine: Engine, face: Face, lead: int) -> None:
        self._engine = engine
        self._inputs = [spec.name for spec in face.inputs]
        self._outputs = [spec.name for spec in face.outputs]
        self.lead = lead
        self._contexts: dict[int, b.IExecutionContext] = {}
        engine.device.use()
        self._stream = engine.device.stream()

    def __enter__(self) -> _Inference:
        return self

    def __exit__(self, *_: object) -> None:
        self._contexts.clear()
        self._stream.close()

    def outputs(self, profile: int, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
        """Raises ModelLoadError."""
        context = self._contexts.get(profile)
        if context is None:
            context = self._contexts[profile] = self._engine.context(profile, self._stream)
        try:
            found = infer(self._engine.api, context, self._inputs, shapes, self._outputs)
        except (RuntimeError, ValueError) as error:
            raise ModelLoadError(f"the engine does not take what it was built for: {error}") from error
        for name, shape in zip(self._outputs, found, strict=True):
            if min(shape, default=0) < 0:
                raise ModelLoadError(
                    f"output {name!r} has shape {list(shape)}: its size depends on values, which this backend cannot "
                    "serve"
                )
            if self.lead and shape[:1] != shapes[0][:1]:
                raise ModelLoadError(f"output {name!r} has shape {list(shape)} for a batch of {shapes[0][0]} rows")
        return tuple(found)


def _resolve(face: Face, max_batch: int | None, sizes: Sequence[int]) -> int:
    """Rows a batch may hold; 0: none."""
    most = face.max_batch
    rows = most if max_batch is None else max_batch
    if rows > most:
        what = f"batches of {most} rows at most" if most else "no batches: the first dimension of a tensor is fixed"
        raise ModelLoadError(f"max_batch = {rows}, but the engine is built for {what}")
    if sizes and sizes[-1] != rows:
        raise ModelLoadError(f"batch_buckets = {list(sizes)}: expected the last bucket to be max_batch = {rows}")
    return rows


def _largest(profile: Sequence[Range], lead: int) -> list[Shape]:
    """Inputs of one batch have equally many rows."""
    return [limits.high if not lead else (rows_of(profile)[1], *limits.high[1:]) for limits in profile]


def _bucket(size: int, low: int, shapes: Sequence[Shape], face: Face, inference: _Inference) -> Bucket:
    batched = bool(inference.lead)
    profile = face.profile_for(shapes, batched=batched)
    if profile is None:
        raise ModelLoadError(f"the engine has no profile for a batch of {size} rows")
    if batched:
        size = max(size, rows_of(face.profiles[profile])[0])
        shapes = [(size, *shape[1:]) for shape in shapes]
    return Bucket(size, low, profile, tuple(shapes), inference.outputs(profile, shapes))


def _most(sizes: Sequence[Sequence[int]]) -> tuple[int, ...]:
    return tuple(map(max, *sizes)) if len(sizes) > 1 else tuple(sizes[0])
