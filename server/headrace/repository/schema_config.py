"""What inputs must be: the rules of `[inputs.NAME]` in model.toml, and of a version's `schema.toml`.

A schema is a file of its own because it belongs to a version, as the data that it was made from do, and because it is
read whatever else says how the model is served: model.toml, config.pbtxt or nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from headrace import settings_sources as sources
from headrace.errors import ConfigError
from headrace.repository.toml_text import toml_text

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path
    from typing import Self

SCHEMA_FILE = "schema.toml"
"""Its name in a version's directory."""
SCHEMA_FORMAT: Final = "headrace schema 1"
LARGEST_SIDE = 32767
_GREATEST = 1 << 40


def _not_nan(value: float) -> float:
    if value != value:
        raise PydanticCustomError("nan", "NaN is no bound")
    return value


_Number = int | Annotated[float, Field(allow_inf_nan=False)]
_PerFeature = Annotated[tuple[int | Annotated[float, AfterValidator(_not_nan)], ...], Field(strict=False, min_length=1)]
_Bound = _Number | _PerFeature
_BOUND: dict[str, JsonValue] = {
    "allowed": "a finite number, or a list with a number for each feature"  # inf there: no bound
}
_Side = Annotated[int, Field(ge=1, le=LARGEST_SIDE)]
_Length = Annotated[int, Field(ge=0, le=_GREATEST)]
_Rule = Literal["missing", "finite", "range", "values", "size", "length", "pattern"]
_Policy = Literal["reject", "clip", "count"]

RULE_KEYS: Final[dict[_Rule, tuple[str, ...]]] = {
    "missing": ("max_missing",),
    "finite": ("finite",),
    "range": ("min", "max"),
    "values": ("values",),
    "size": ("min_height", "max_height", "min_width", "max_width"),
    "length": ("min_length", "max_length"),
    "pattern": ("pattern",),
}
"""Of each rule, the keys that make it one."""


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class InputRules(_Table):
    """What the values of an input must be. A feature is a place in the last dimension."""

    finite: bool = Field(False, description="neither infinity nor, unless max_missing allows some, NaN")
    min: _Bound | None = Field(
        None, description="smallest value allowed, or that of each feature", json_schema_extra=_BOUND
    )
    max: _Bound | None = Field(
        None, description="largest value allowed, or that of each feature", json_schema_extra=_BOUND
    )
    values: Annotated[tuple[_Number | str, ...], Field(strict=False, min_length=1)] | None = Field(
        None,
        description="the numbers or texts that are allowed",
        json_schema_extra={"allowed": "a list of numbers or of texts that is not empty"},
    )
    max_missing: float | None = Field(None, ge=0, le=1, description="share of a row's elements that may be NaN")
    fill: _Bound | None = Field(
        None, description="what policy clip puts in the place of NaN, or for each feature", json_schema_extra=_BOUND
    )
    min_height: _Side | None = Field(None, description="pixels that an image is high at least")
    max_height: _Side | None = Field(None, description="and at most")
    min_width: _Side | None = Field(None, description="pixels that an image is wide at least")
    max_width: _Side | None = Field(None, description="and at most")
    min_length: _Length | None = Field(None, description="characters (Unicode code points) of a text, at least")
    max_length: _Length | None = Field(None, description="and at most")
    pattern: str | None = Field(None, description="regular expression that a whole text matches")
    names: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        (), description="of the features, for error messages"
    )
    policy: dict[_Rule, _Policy] = Field(
        {}, description="what becomes of a request, by the rule that it breaks: reject (default), clip, count"
    )

    @model_validator(mode="after")
    def _rules_agree(self) -> Self:
        low, high = self.min, self.max
        if low is not None and high is not None:
            for at, (one, other) in enumerate(_pairs(low, high)):
                if one > other:
                    where = f" of feature {at}" if isinstance(low, tuple) or isinstance(high, tuple) else ""
                    raise ValueError(f"min = {one:g}{where} is above max = {other:g}")
        for least, most in (("min_height", "max_height"), ("min_width", "max_width"), ("min_length", "max_length")):
            one, other = getattr(self, least), getattr(self, most)
            if one is not None and other is not None and one > other:
                raise ValueError(f"{least} = {one} is above {most} = {other}")
        if self.values is not None and len({isinstance(value, str) for value in self.values}) > 1:
            raise ValueError("values has numbers and texts, expected one kind")
        twice = next((name for name in self.names if self.names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"names has {twice!r} twice")
        for rule, policy in self.policy.items():
            if policy == "clip" and rule not in ("range", "finite"):
                raise ValueError(f'policy.{rule} = "clip" has no meaning; range and finite can be clipped')
        return self

    def both_say(self, others: InputRules) -> list[str]:
        """The rules that are given here and in `others`."""
        here, there = self.model_fields_set, others.model_fields_set
        return [rule for rule, keys in RULE_KEYS.items() if not (here.isdisjoint(keys) or there.isdisjoint(keys))]

    def over(self, others: InputRules) -> InputRules:
        """These rules, and of `others` those that are not given here. Raises ValueError if they contradict them.

        A rule of which a key is given here is whole: neither keys nor the policy of `others` are added to it. A policy
        that is given here is also that of a rule of `others`.
        """
        own = self.model_dump(include=self.model_fields_set & InputRules.model_fields.keys())
        base = others.model_dump(include=others.model_fields_set & InputRules.model_fields.keys())
        policy = dict(others.policy)
        for rule, keys in RULE_KEYS.items():
            if not own.keys().isdisjoint(keys):
                policy.pop(rule, None)
                for key in (*keys, "fill") if rule == "finite" else keys:
                    base.pop(key, None)
        merged = base | own | {"policy": policy | self.policy}
        try:
            return InputRules.model_validate(merged)
        except ValidationError as error:
            raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None


class Schema(_Table):
    """The file. format: told apart from others, and from later ones. source: what it was made of, for people."""

    format: Literal["headrace schema 1"] = Field(description="says what the file is")
    source: str = Field("", description="what it was made of")
    inputs: dict[str, InputRules] = Field({}, description="the rules, by the name of the input")


def read_schema(version_directory: Path) -> Schema | None:
    """The schema of the version in a directory; None: it has none. Raises ConfigError with a line for each problem."""
    path = version_directory / SCHEMA_FILE
    try:
        if not path.exists():
            return None
        return sources.build(Schema, [sources.read_toml(path)])
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error


def schema_text(schema: Schema) -> str:
    """The file: TOML, with what is given alone."""
    return toml_text(schema.model_dump(exclude_unset=True))


def _pairs(low: _Bound, high: _Bound) -> Iterable[tuple[float, float]]:
    lows = low if isinstance(low, tuple) else (low,)
    highs = high if isinstance(high, tuple) else (high,)
    if len(lows) != len(highs) and min(len(lows), len(highs)) > 1:
        raise ValueError(f"min has {len(lows)} values and max {len(highs)}, expected one for each feature")
    length = max(len(lows), len(highs))
    return zip(lows * (length // len(lows)), highs * (length // len(highs)), strict=True)
