"""Whether outputs are those of the reference: ONNX Runtime's CPU provider in FP32."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gpu_check.registry import Failed

if TYPE_CHECKING:
    from gpu_check.registry import Figures

    Array = np.ndarray[Any, Any]

BOUNDS = {"fp32": 1e-3, "fp16": 0.02, "int8": 0.5}
"""Largest error by precision. FP32 is without TF32. Where each row is that of another the error is about 1.4."""


def error(got: Array, want: Array) -> float:
    """Of all rows, as a share of what the rows of `want` differ in (of their norm, for a single row)."""
    if got.shape != want.shape:
        raise Failed(f"shape {got.shape}, expected {want.shape}")
    wanted = want.astype(np.float64)
    common = wanted.mean(axis=0) if len(wanted) > 1 else 0
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted - common))


def checked(got: Array, want: Array, precision: str, what: str = "the output", figures: Figures | None = None) -> float:
    """The error. Raises Failed, with the figures so far, where it is above the precision's bound, or not a number."""
    found = error(got, want)
    if not found <= BOUNDS[precision]:
        text = f"{what}: error {found:.3g}, expected at most {BOUNDS[precision]}"
        raise Failed(text, {**(figures or {}), "error": found})
    return found
