"""What an input must be beyond its datatype and shape, and what becomes of a request that breaks a rule.

`engine/rules.py` makes these of model.toml and schema.toml, once for a model version.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    Numbers = np.ndarray[Any, np.dtype[Any]]

Policy = Literal["reject", "clip", "count"]
"""reject: the request is refused. clip: its values are changed to keep the rule. count: it is taken as it is."""
_CHANNELS = (1, 3, 4)
_EXACT = 2**53
"""Integers below it are what FP64 makes of them."""
RuleName = Literal["missing", "finite", "range", "values", "size", "length", "pattern"]


def image_layout(shape: tuple[int, ...]) -> Literal["NHWC", "NCHW"] | None:
    """How rows of this shape, if nobody says, are images: 1, 3 or 4 channels are last, or first; None: they are not."""
    if len(shape) != 3:
        return None
    return "NHWC" if shape[2] in _CHANNELS else "NCHW" if shape[0] in _CHANNELS else None


def span(low: float | None, high: float | None) -> str:
    """From one to the other, in words; None: there is no bound."""
    if low is not None and high is not None:
        return f"from {exactly(low)} to {exactly(high)}"
    if high is not None:
        return f"of at most {exactly(high)}"
    return "of any size" if low is None else f"of at least {exactly(low)}"


def exactly(value: float) -> str:
    """A number, Python's or NumPy's, in as few digits as tell it from all others of its kind."""
    short = f"{value:g}"
    return short if float(short) == value and -_EXACT < value < _EXACT else str(value)


def some(values: Sequence[object]) -> str:
    """One of these values, in words; of many, the first."""
    shown = ", ".join(repr(value) for value in values[:8])
    return f"one of {shown}{', ...' if len(values) > 8 else ''}"


@dataclass(frozen=True, slots=True, eq=False)
class NumberRules:
    """Of an input of numbers. Its arrays are of its datatype (BF16: FP32), a single value or one for each feature.

    A feature is a place in the last dimension. low, high: the range, its ends included; -inf and inf, or the ends of an
    integer datatype, where there is none. ranged: whether there is one. finite: neither infinity nor, unless
    `max_missing` says how many there may be, NaN. max_missing: the share of a row that may be NaN; None: not said.
    values: those allowed, ascending; None: any. fill: what stands for a value that is clipped and has no nearest bound.
    strict: the rules that NaN breaks although `max_missing` or `finite` say more of it, because another file does.
    """

    low: Numbers
    high: Numbers
    ranged: bool = False
    finite: bool = False
    max_missing: float | None = None
    values: Numbers | None = None
    fill: Numbers | None = None
    strict: frozenset[RuleName] = frozenset()


@dataclass(frozen=True, slots=True)
class TextRules:
    """Of an input of texts. Lengths are in characters (Unicode code points). pattern: see `text_screen.matcher`."""

    min_length: int = 0
    max_length: int | None = None
    pattern: str | None = None
    values: frozenset[bytes] | None = None


@dataclass(frozen=True, slots=True)
class SizeRules:
    """Of an input of images. height, width: least and greatest number of pixels, None for any.

    channels_first: whether a row is [channels, height, width].
    """

    height: tuple[int | None, int | None]
    width: tuple[int | None, int | None]
    channels_first: bool = False

    def refusal(self, dims: tuple[int, ...]) -> str:
        """What is wrong with a row of these dimensions; empty if nothing is."""
        height, width = dims[-2:] if self.channels_first else dims[-3:-1]
        for what, own, (least, most) in (("height", height, self.height), ("width", width, self.width)):
            if (least is not None and own < least) or (most is not None and own > most):
                return f"{height} x {width} pixels (height x width), expected a {what} {span(least, most)}"
        return ""


@dataclass(frozen=True, slots=True)
class Rules:
    """Of one input. policies: of rules whose policy is not `reject`. names: of its features, for error messages."""

    numbers: NumberRules | None = None
    texts: TextRules | None = None
    size: SizeRules | None = None
    policies: Mapping[str, Policy] = field(default_factory=dict)
    names: tuple[str, ...] = ()

    def policy(self, rule: RuleName) -> Policy:
        """What becomes of a request that breaks it."""
        return self.policies.get(rule, "reject")
