"""A batch that a backend has to run, and get right, before it serves: its results beside those of ONNX Runtime's CPU.

The inputs are those of the model's warm-up requests, or else numbers from a generator that always begins alike, within
the limits that model.toml gives. What is to be found is a backend that computes something else; that it is as exact as
the task needs is for an evaluation on real data to say.
"""

from __future__ import annotations

import logging
import mmap
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.backends import registry
from headrace.datatypes import DATATYPES
from headrace.engine.presented import present
from headrace.engine.processed import process
from headrace.engine.warmup import WARM_BYTES, Sample, random_values
from headrace.errors import ModelLoadError
from headrace.pipeline.agreement import Tolerance, difference

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from headrace.backends.base import Instance
    from headrace.messages import Buffer, Signature, TensorSpec
    from headrace.pipeline.buckets import Buckets
    from headrace.repository.discovery import Found
    from headrace.repository.model_config import ModelConfig

    Array = np.ndarray[Any, Any]
    Bound = float | tuple[float, ...] | None

logger = logging.getLogger(__name__)

ROWS = 3
"""Of a batch of random numbers, all different: that rows are mixed up shows, and nothing takes long."""
MODEL_FILE = "model.onnx"
_IN_INTEGERS = (b"QuantizeLinear", b"DequantizeLinear", b"MatMulInteger", b"ConvInteger", b"QLinear", b"QGemm")


class Rejected(ModelLoadError):
    """A backend cannot serve the model. reason: a value of the label of `headrace_backend_fallbacks_total`."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class ProbeBatch:
    """Inputs and shapes as `backends.base.Instance.run` takes them. certain: whether the model has to run them."""

    name: str
    inputs: Sequence[Sequence[Buffer]]
    shapes: Sequence[tuple[int, ...]]
    certain: bool


class Probe:
    """What is run, and what is expected to come of it; None: there is nothing to compare with."""

    def __init__(
        self,
        signature: Signature,
        batches: Sequence[ProbeBatch],
        expected: Sequence[Sequence[Array]] | None,
        tolerances: Sequence[Tolerance],
    ) -> None:
        self._signature = signature
        self._batches = batches
        self._expected = expected
        self._tolerances = tolerances

    def __repr__(self) -> str:
        what = "run" if self._expected is None else "compared"
        return f"<Probe of {len(self._batches)} batches, to be {what}>"

    def check(self, instance: Instance) -> None:
        """Raises Rejected if an instance fails, or differs."""
        specs = self._signature.outputs
        for at, batch in enumerate(self._batches):
            try:
                found = instance.run(batch.inputs, batch.shapes, range(len(specs)))
            except Exception as error:
                if self._expected is None and not batch.certain:
                    logger.warning("a probe on %s is without result: %s", batch.name, error)
                    continue
                raise Rejected("probe_failed", f"a probe on {batch.name} failed: {error or repr(error)}") from error
            if self._expected is not None:
                what = difference(specs, found, self._expected[at], self._tolerances)
                if what:
                    raise Rejected(
                        "probe_differs", f"a probe on {batch.name}, compared with {registry.REFERENCE}: {what}"
                    )


def make_probe(
    found: Found, backend: str, signature: Signature, samples: Sequence[Sample], buckets: Buckets | None
) -> Probe:
    """The probe of a backend whose model has this signature, as clients see it. Raises Rejected if it is another.

    samples: warm-up requests. buckets: of the model.
    """
    config = found.config
    batches = _batches(found, signature, samples, buckets)
    options = reference_options(config, backend)
    file = found.path / str(options.get("file", MODEL_FILE))
    if registry.is_reference(backend) or not file.exists():
        return Probe(signature, batches, None, ())
    quantized = computes_in_integers(file)
    said = [config.fallback.tolerance_of(spec.datatype, quantized=quantized) for spec in signature.outputs]
    tolerances = [Tolerance(one.absolute, one.relative) for one in said]
    return Probe(signature, batches, _reference_results(found, options, signature, batches), tolerances)


def check_alike(signature: Signature, other: Signature, backend: str) -> None:
    """Whether requests for a model of one signature run on one of another. Raises Rejected."""
    pairs = (("input", signature.inputs, other.inputs), ("output", signature.outputs, other.outputs))
    for kind, own, others in pairs:
        if len(own) != len(others) or not all(map(_alike, own, others)):
            raise Rejected("signature", f"{backend} has {kind}s {_described(others)}, expected {_described(own)}")
    if bool(signature.max_batch) != bool(other.max_batch) or other.max_batch < signature.max_batch:
        raise Rejected(
            "signature", f"{backend} takes batches of {other.max_batch} rows, expected {signature.max_batch}"
        )


def computes_in_integers(file: Path) -> bool:
    """Whether an ONNX file holds operators of quantized models: their names stand in it as they are."""
    if file.is_dir():
        file /= MODEL_FILE
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return any(content.find(name) >= 0 for name in _IN_INTEGERS)


def _alike(own: TensorSpec, other: TensorSpec) -> bool:
    return (
        (own.name, own.datatype, len(own.shape)) == (other.name, other.datatype, len(other.shape))
        and all(min(a, b) < 0 or a == b for a, b in zip(own.shape, other.shape, strict=True))
    )  # fmt: skip


def _described(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"'{spec.name}' {spec.datatype} {list(spec.shape)}" for spec in specs)


def reference_options(config: ModelConfig, backend: str) -> Mapping[str, Any]:
    """With which the reference runs what a backend runs.

    Those of the reference, if it is in the chain; else those of the backend that say what the model is.
    """
    for name in config.chain:
        if registry.is_reference(name):
            return config.options_of(name)
    own = config.options_of(backend)
    return {key: own[key] for key in ("file", "op_libraries") if key in own}


def _reference_results(
    found: Found, options: Mapping[str, Any], signature: Signature, batches: Sequence[ProbeBatch]
) -> list[list[Array]] | None:
    """What is expected; None if the reference does not run the model. Raises Rejected."""
    config = found.config
    try:
        reference = registry.get(registry.REFERENCE)
        model = reference.load(found.path, max_batch=signature.max_batch, threads=config.threads, options=options)
        model = process(present(model, config, found.path.parent), config)
    except ModelLoadError as error:
        logger.warning("model %s cannot be compared with %s: %s", found.name, registry.REFERENCE, error)
        return None
    check_alike(model.signature, signature, "this backend")
    instance = model.make_instance(0)
    results = []
    try:
        for batch in batches:
            outputs = instance.run(batch.inputs, batch.shapes, range(len(signature.outputs)))
            results.append([output.copy() for output in outputs])
    except Exception as error:
        logger.warning("model %s cannot be compared with %s: %s", found.name, registry.REFERENCE, error)
        return None
    finally:
        instance.close()
    return results


def _batches(
    found: Found, signature: Signature, samples: Sequence[Sample], buckets: Buckets | None
) -> list[ProbeBatch]:
    config = found.config
    if samples:
        return [
            ProbeBatch(sample.name, *sample.batch(signature, buckets, found.name), certain=True) for sample in samples
        ]
    rng = np.random.default_rng(0)
    if buckets is not None:
        return [_bucket_batch(config, signature, buckets, rng)]
    dims = [tuple(dim if dim >= 0 else 1 for dim in spec.shape) for spec in signature.inputs]
    row_bytes = sum(_bytes(spec, shape) for spec, shape in zip(signature.inputs, dims, strict=True))
    rows = max(min(ROWS, signature.max_batch or 1, WARM_BYTES // max(row_bytes, 1)), 1)
    inputs = [
        [_values(config, spec, shape, rng) for _ in range(rows)]
        for spec, shape in zip(signature.inputs, dims, strict=True)
    ]
    shapes = [(rows, *shape) if signature.max_batch else shape for shape in dims]
    return [ProbeBatch("random numbers", inputs, shapes, all(spec.fixed for spec in signature.inputs))]


def _bucket_batch(config: ModelConfig, signature: Signature, buckets: Buckets, rng: np.random.Generator) -> ProbeBatch:
    """One row as long as the longest bucket."""
    fit, dims = next(iter(buckets.all()))
    parts = [
        [b"" if own is None else _values(config, spec, own, rng)]
        for spec, own in zip(signature.inputs, fit.shapes, strict=True)
    ]
    return ProbeBatch("random numbers", *buckets.pack_alike(fit, dims, parts), buckets.certain)


def _values(config: ModelConfig, spec: TensorSpec, shape: Sequence[int], rng: np.random.Generator) -> bytes:
    """One row of an input, within its limits; of pixels, all there are."""
    elements = prod(shape)
    if spec.datatype == "BYTES":
        return bytes(4 * elements)
    limits = config.inputs.get(spec.name)
    low, high = (None, None) if limits is None else (limits.min, limits.max)
    if isinstance(low, tuple) or isinstance(high, tuple):
        return _by_feature(spec, elements, rng, low, high)
    if spec.name in config.preprocess and spec.datatype == "UINT8":
        low, high = low or 0, 255 if high is None else high
    return random_values(spec, elements, rng, low, high)


def _by_feature(spec: TensorSpec, elements: int, rng: np.random.Generator, low: Bound, high: Bound) -> bytes:
    """The same where limits are those of each place in the last dimension."""
    features = max(len(bound) for bound in (low, high) if isinstance(bound, tuple))
    lows, highs = (bound if isinstance(bound, tuple) else (bound,) * features for bound in (low, high))
    columns = [
        np.frombuffer(random_values(spec, -(-elements // features), rng, *limits), DATATYPES[spec.datatype].numpy)
        for limits in zip(lows, highs, strict=True)
    ]
    return np.stack(columns, axis=1).reshape(-1)[:elements].tobytes()


def _bytes(spec: TensorSpec, shape: Sequence[int]) -> int:
    return prod(shape) * (DATATYPES[spec.datatype].itemsize or 4)
