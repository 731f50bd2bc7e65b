"""Bare ONNX Runtime on one thread, no server around it: rows per second at each batch size.

    python -m compare.bare MODEL.onnx --seconds 0.5

It prints one JSON object: batch size -> rows/s. Run it under taskset to keep it to one core.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

if TYPE_CHECKING:
    from collections.abc import Iterable

BATCHES = (1, 2, 4, 8, 16, 32, 64)


def rows_per_second(model: Path, batches: Iterable[int], seconds: float) -> dict[int, float]:
    """The rate at each batch size, each measured for `seconds` after a tenth of that to warm up."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    tensor = session.get_inputs()[0]
    rng = np.random.default_rng(1)
    rates = {}
    for batch in batches:
        feed = {tensor.name: rng.random((batch, *tensor.shape[1:]), np.float32)}
        _runs_per_second(session, feed, seconds / 10)
        rates[batch] = batch * _runs_per_second(session, feed, seconds)
    return rates


def _runs_per_second(
    session: onnxruntime.InferenceSession, feed: dict[str, np.ndarray[Any, Any]], seconds: float
) -> float:
    runs, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds or not runs:
        session.run(None, feed)
        runs += 1
    return runs / elapsed


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--seconds", type=float, default=0.5)
    args = parser.parse_args()
    print(json.dumps(rows_per_second(args.model, BATCHES, args.seconds)))


if __name__ == "__main__":
    main()
