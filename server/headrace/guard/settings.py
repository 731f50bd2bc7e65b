"""What a guard is to compare, and when it has to act."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["classes", "values", "equal"]
"""How an output is compared. classes: by the place of the greatest along the last dimension. values: by the relative
error of a row. equal: element by element."""
Action = Literal["fall_back", "report"]


@dataclass(frozen=True, slots=True)
class GuardSettings:
    """What decides, and when.

    output: its name. kind: see `Kind`. tolerance: of kind values, the relative error up to which a row agrees. limit:
    of the mean agreement. max_mean_error: of the mean error; None: any. alpha: the chance that a version within the
    limits is ever acted upon.
    """

    output: str
    kind: Kind
    tolerance: float = 0.05
    limit: float = 0.99
    max_mean_error: float | None = None
    alpha: float = 0.01
