"""Which layers stay in float: the most sensitive ones, and no more of them than the gate asks for. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Found(Generic[T]):
    """What a search ended with. kept: layers in float. passed: whether it holds. tries: (layers in float, value)."""

    kept: tuple[str, ...]
    outcome: T
    passed: bool
    tries: tuple[tuple[int, float], ...]


def search(
    order: Sequence[str], attempt: Callable[[tuple[str, ...]], T], value: Callable[[T], float], gate: float
) -> Found[T]:
    """Leaves in float the first layers of `order`, which has the most sensitive first, until the gate holds.

    attempt: the outcome where these layers are in float, which is asked for once for each number of them. value: what
    the gate is for. The number is doubled until the gate holds, then halved towards the least that was seen to hold:
    2 log2(n) attempts, of which each is a quantization and an evaluation. More layers in float may be worse now and
    then; what is returned was measured, whatever lies between. At least one layer is quantized: a model without would
    be the source again. Where nothing holds, the outcome is the best that was seen.
    """
    outcomes: dict[int, T] = {}

    def reached(kept: int) -> float:
        if kept not in outcomes:
            outcomes[kept] = attempt(tuple(order[:kept]))
        return value(outcomes[kept])

    most = max(0, len(order) - 1)
    below, above = -1, 0
    while reached(above) < gate and above < most:
        below, above = above, min(most, max(1, 2 * above))
    if passed := reached(above) >= gate:
        while above - below > 1:
            middle = (above + below) // 2
            if reached(middle) >= gate:
                above = middle
            else:
                below = middle
    else:
        above = max(outcomes, key=reached)
    tries = tuple((kept, value(outcome)) for kept, outcome in outcomes.items())
    return Found(tuple(order[:above]), outcomes[above], passed, tries)
