"""The reference of a guarded version, opened beside it: an instance of its own that no live request waits for."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from headrace.backends import registry
from headrace.engine.opening import load_model
from headrace.engine.policies import make_buckets
from headrace.engine.probe import MODEL_FILE, Rejected, check_alike, reference_options
from headrace.engine.processed import ragged_inputs
from headrace.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    import numpy as np

    from headrace.backends.base import Instance
    from headrace.messages import Buffer, Fit, Signature
    from headrace.pipeline.buckets import Buckets
    from headrace.repository.discovery import Found


class Trusted:
    """One instance of a reference, with one thread. `run` and `close` are for one thread at a time.

    max_batch: rows that it takes at once, 0: it has no batch dimension.
    """

    def __init__(self, instance: Instance, max_batch: int, buckets: Buckets | None) -> None:
        self.max_batch = max_batch
        self.buckets = buckets
        self._instance = instance

    def __repr__(self) -> str:
        return f"<Trusted {self._instance!r}>"

    def run(
        self,
        inputs: Sequence[Sequence[Buffer]],
        shapes: Sequence[tuple[int, ...]],
        members: Sequence[tuple[Fit, int]],
        output: int,
    ) -> np.ndarray[Any, Any]:
        """One output of a batch. inputs, shapes: as a `Job` has them. members: see `Buckets.pack`."""
        if self.buckets is not None:
            inputs = self.buckets.pack(members, inputs, shapes)
        return self._instance.run(inputs, shapes, [output])[0]

    def close(self) -> None:
        """Frees it."""
        self._instance.close()


def open_trusted(found: Found, version: int, signature: Signature) -> Trusted:
    """A version of the model of `found`, whose requests it has to take as they are. Blocks. Raises ModelLoadError.

    It runs on the processor, by ONNX Runtime where there is an ONNX file, else by the first backend of the chain:
    devices are for requests, and a reference is to be as exact as can be.
    """
    config = found.config.model_copy(update={"threads": 1})
    path = found.path.parent / str(version)
    chosen = replace(found, version=version, path=path, config=config)
    first = config.chain[0]
    options = reference_options(config, first)
    file = path / str(options.get("file", MODEL_FILE))
    on_cpu = file.is_dir() or (file.suffix == ".onnx" and file.exists())
    try:
        backend = registry.REFERENCE if on_cpu else first
        model = load_model(chosen, backend, signature.max_batch, options if on_cpu else config.options_of(first))
        _check_same(signature, model.signature)
        buckets = make_buckets(config, model.signature, ragged_inputs(model))
        return Trusted(model.make_instance(0), model.signature.max_batch, buckets)
    except ModelLoadError as error:
        raise ModelLoadError(f"guard.reference = {version}: {error}") from error


def _check_same(signature: Signature, other: Signature) -> None:
    """Whether all that one takes, and no more, is taken by the other. Raises ModelLoadError."""
    try:
        check_alike(signature, other, "it")
    except Rejected as error:
        raise ModelLoadError(str(error)) from error
    pairs = zip((*signature.inputs, *signature.outputs), (*other.inputs, *other.outputs), strict=True)
    for own, its in pairs:
        if own.shape != its.shape:
            raise ModelLoadError(f"its '{own.name}' has dimensions {list(its.shape)}, expected {list(own.shape)}")
