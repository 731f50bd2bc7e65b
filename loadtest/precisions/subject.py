"""What there is to say of a model for its lower precisions to be made and judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    Array = np.ndarray[Any, Any]
    Run = Callable[[Mapping[str, Array]], list[Array]]
    """Runs a version of the model on any number of rows; returns all its outputs."""


@dataclass(frozen=True)
class Precision:
    """A version to be made. arguments: of `headrace quantize`."""

    name: str
    version: int
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Data:
    """Rows, by input, to quantize with and to judge by. labels: the name of those in `evaluation`, "" if none.

    measure: of a version and of the FP32 one, what the card says, by the names that `card` has headings for.
    """

    calibration: Mapping[str, Array]
    evaluation: Mapping[str, Array]
    labels: str
    measure: Callable[[Run, Run], dict[str, float]]


@dataclass(frozen=True)
class Subject:
    """A model. directory: of the model, which `data` is asked with. rows: that run at once when it is measured."""

    model: str
    precisions: tuple[Precision, ...]
    data: Callable[[Path], Data]
    rows: int = 64


FP32 = Precision("fp32", 1, ())


def in_parts(run: Run, rows: int) -> Run:
    """The same for any number of rows, of which the model gets so many at once."""

    def whole(feeds: Mapping[str, Array]) -> list[Array]:
        count = len(next(iter(feeds.values())))
        parts = [run({name: array[at : at + rows] for name, array in feeds.items()}) for at in range(0, count, rows)]
        return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]

    return whole
