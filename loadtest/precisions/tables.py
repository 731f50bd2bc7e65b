"""digits and cytology: classes of rows of numbers, with labels; the split is that of their train.py."""

from __future__ import annotations

import runpy
from typing import TYPE_CHECKING

import numpy as np

from precisions.subject import Data, Precision, Subject

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from precisions.subject import Array, Run

# The files are committed and run anywhere: weights of 7 bits, whose products no x86 processor saturates.
_ANYWHERE = ("--reduce-range", "yes")


def _split(directory: Path) -> list[Array]:
    """Training rows, held-out rows, training labels, held-out labels."""
    return list(runpy.run_path(str(directory / "train.py"))["split"]())


def _right(run: Run, rows: Mapping[str, Array], labels: Array) -> Array:
    _, predicted = run(rows)
    right: Array = predicted == labels
    return right


def _digits(directory: Path) -> Data:
    train, rows, _, labels = _split(directory)

    def measure(run: Run, reference: Run) -> dict[str, float]:
        return {"accuracy": float(np.mean(_right(run, {"pixels": rows}, labels)))}

    return Data({"pixels": train}, {"pixels": rows, "labels": labels}, "labels", measure)


def _cytology(directory: Path) -> Data:
    train, rows, _, labels = _split(directory)

    def measure(run: Run, reference: Run) -> dict[str, float]:
        right = _right(run, {"features": rows}, labels)
        return {"accuracy": float(np.mean(right)), "malignant_found": float(np.mean(right[labels == 0]))}

    return Data({"features": train}, {"features": rows, "labels": labels}, "labels", measure)


DIGITS = Subject(
    "digits",
    (Precision("fp16", 2, ("--recipe", "fp16")), Precision("int8", 3, ("--recipe", "int8", *_ANYWHERE))),
    _digits,
)
CYTOLOGY = Subject("cytology", (Precision("int8", 2, ("--recipe", "int8", *_ANYWHERE)),), _cytology)
