"""Runs every bucket of a model before it serves: memory is allocated, costs are learned, outputs are checked."""

from __future__ import annotations

import logging
from math import prod
from typing import TYPE_CHECKING

from headrace.clock import no_rest
from headrace.datatypes import DATATYPES
from headrace.engine.warmup import RUNS, WARM_BYTES, WARM_SECONDS
from headrace.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.backends.base import Instance
    from headrace.clock import Clock, Rest
    from headrace.messages import Fit, Signature
    from headrace.pipeline.buckets import Buckets
    from headrace.pipeline.cost import CostModel

    Shape = tuple[int, ...]

logger = logging.getLogger(__name__)

_LONG_NS = 10_000_000
"""Where a run takes so long, a second one says enough: there are other buckets to run."""


def warm_buckets(
    name: str,
    signature: Signature,
    buckets: Buckets,
    instance: Instance,
    sizes: Sequence[int],
    cost: CostModel,
    clock: Clock,
    rest: Rest = no_rest,
) -> None:
    """Runs rows of zeros, unpadded: one row of each bucket, the longest first, then the other batch sizes of each.

    Stops after `WARM_SECONDS`, and leaves out what is expected to go on for longer. Raises ModelLoadError if a bucket
    fails, or gives other outputs than model.toml says.
    """
    end = clock() + int(WARM_SECONDS * 1e9)
    for rows in sizes:
        for fit, dims in buckets.all():
            if clock() > end:
                return
            expected = RUNS * cost.of(fit).mean(rows) if rows > 1 else 0
            if clock() + expected > end or rows * _row_bytes(signature, fit, dims) > WARM_BYTES:
                continue
            try:
                elapsed = _run(signature, buckets, instance, rows, fit, dims, clock)
            except ModelLoadError:
                raise
            except Exception as error:
                each = [list(own or dim) for own, dim in zip(fit.shapes, dims, strict=True)]
                what = f"{rows} rows of zeros, {' and '.join(map(str, each))} each"
                if buckets.certain:
                    raise ModelLoadError(f"a first run on {what}, failed: {error}") from error
                logger.warning("model %s is not warmed: %s, failed: %s", name, what, error)
                return
            rest(RUNS * elapsed)
            cost.observe(rows, max(elapsed, 1), fit)


def _row_bytes(signature: Signature, fit: Fit, dims: Sequence[Shape]) -> int:
    return sum(
        prod(own if own is not None and min(shape, default=0) < 0 else shape)  # ragged: a batch has no dimensions
        * (DATATYPES[spec.datatype].itemsize or 4)
        for spec, own, shape in zip(signature.inputs, fit.shapes, dims, strict=True)
    )


def _run(
    signature: Signature,
    buckets: Buckets,
    instance: Instance,
    rows: int,
    fit: Fit,
    dims: Sequence[Shape],
    clock: Clock,
) -> int:
    """Runs a batch of a bucket; how long it took at last, ns."""
    parts = [
        [b"" if own is None else bytes(prod(own) * (DATATYPES[spec.datatype].itemsize or 4)) for _ in range(rows)]
        for spec, own in zip(signature.inputs, fit.shapes, strict=True)
    ]
    inputs, shapes = buckets.pack_alike(fit, dims, parts)
    elapsed = runs = 0
    while runs < (RUNS if elapsed < _LONG_NS else 2):  # the first allocates
        began = clock()
        outputs = instance.run(inputs, shapes, range(len(signature.outputs)))
        elapsed = clock() - began
        runs += 1
    buckets.check_outputs(fit, [output.shape for output in outputs])
    return elapsed
