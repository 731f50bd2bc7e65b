"""What an input must be beyond its datatype and shape, and what becomes of a request that breaks a rule.

`engine/rules.py` makes these of model.toml and schema.toml, once for a model version.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    Numbers = np.ndarray[Any, np.dtype[Any]]

Policy = Literal["reject", "clip", "count"]
"""reject: the request is refused. clip: its values are changed to keep the rule. count: it is taken as it is."""
RuleName = Literal["missing", "finite", "range", "values", "size", "length", "pattern"]


@dataclass(frozen=True, slots=True, eq=False)
class NumberRules:
    """Of an input of numbers. Its arrays are of its datatype (BF16: FP32), a single value or one for each feature.

    A feature is a place in the last dimension. low, high: the range, its ends included; -inf and inf, or the ends of an
    integer datatype, where there is none. ranged: whether there is one. finite: neither infinity nor, unless
    `max_missing` says how many there may be, NaN. max_missing: the share of a row that may be NaN; None: not said.
    values: those allowed, ascending; None: any. fill: what stands for a value that is clipped and has no nearest bound.
    """

    low: Numbers
    high: Numbers
    ranged: bool = False
    finite: bool = False
    max_missing: float | None = None
    values: Numbers | None = None
    fill: Numbers | None = None


@dataclass(frozen=True, slots=True)
class TextRules:
    """Of an input of texts. Lengths are in characters (Unicode code points). pattern: see `text_screen.matcher`."""

    min_length: int = 0
    max_length: int | None = None
    pattern: str | None = None
    values: frozenset[bytes] | None = None


@dataclass(frozen=True, slots=True)
class SizeRules:
    """Of an input of images. height, width: least and greatest number of pixels. channels_first: of the layout."""

    height: tuple[int, float]
    width: tuple[int, float]
    channels_first: bool = False

    def refusal(self, dims: tuple[int, ...]) -> str:
        """What is wrong with a row of these dimensions; empty if nothing is."""
        height, width = dims[-2:] if self.channels_first else dims[-3:-1]
        for what, own, (least, most) in (("height", height, self.height), ("width", width, self.width)):
            if not least <= own <= most:
                return f"{height} x {width} pixels (height x width), expected a {what} from {least} to {most:g}"
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
