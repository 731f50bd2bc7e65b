"""What a model's `model.toml` may say of dimensions that vary: `[buckets.NAME]`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

if TYPE_CHECKING:
    from typing import Self

MAX_SIZES = 256
"""Buckets of one length: each is warmed, and has a cost model of its own."""
GREATEST = 1 << 24
_FOLLOWING = "a dimension, or a table {dim = N, multiply = N, divide = N, add = N}"


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class SizeRule(_Table):
    """Sizes by a rule: the multiples or the powers of a number, from a least to a greatest size, which is one too."""

    multiple_of: int | None = Field(None, ge=1, le=GREATEST, description="the multiples of it")
    power_of: int | None = Field(None, ge=2, le=GREATEST, description="its powers")
    min: int = Field(1, ge=1, le=GREATEST, description="no size is below it")
    max: int = Field(ge=1, le=GREATEST, description="the greatest size")

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if (self.multiple_of is None) == (self.power_of is None):
            raise ValueError("sizes by a rule have either multiple_of or power_of")
        if self.min > self.max:
            raise ValueError(f"min = {self.min} is above max = {self.max}")
        return self

    def sizes(self) -> tuple[int, ...]:
        """All of them, ascending."""
        found: list[int] = []
        size = self.multiple_of or 1
        while size < self.max and len(found) <= MAX_SIZES:
            if size >= self.min:
                found.append(size)
            size = size + self.multiple_of if self.multiple_of else size * (self.power_of or 2)
        return (*found, self.max)


class FollowingDim(_Table):
    """A dimension of an output that follows a length: `(multiply * length + add) // divide`, at least 0."""

    model_config = ConfigDict(json_schema_extra={"allowed": _FOLLOWING})

    dim: int = Field(description="which one, counted from 0 with the batch's, or from the end as -1")
    multiply: int = Field(1, ge=1, le=GREATEST, description="elements of the output for `divide` of the input")
    divide: int = Field(1, ge=1, le=GREATEST, description="elements of the input for `multiply` of the output")
    add: int = Field(0, ge=-GREATEST, le=GREATEST, description="added before dividing; divide - 1 rounds up")


def _as_list(value: object) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _following(value: object) -> list[Any]:
    return [{"dim": one} if type(one) is int else one for one in _as_list(value)]


def _ascending(sizes: tuple[int, ...] | SizeRule) -> tuple[int, ...] | SizeRule:
    count = len(sizes.sizes()) if isinstance(sizes, SizeRule) else len(sizes)
    if count > MAX_SIZES:
        raise ValueError(f"more than {MAX_SIZES} sizes")
    return sizes if isinstance(sizes, SizeRule) else tuple(sorted(set(sizes)))


_Size = Annotated[int, Field(ge=1, le=GREATEST)]
Sizes = Annotated[
    Annotated[tuple[_Size, ...], Field(strict=False, min_length=1), Tag("list")] | Annotated[SizeRule, Tag("rule")],
    Discriminator(lambda value: "rule" if isinstance(value, dict | SizeRule) else "list"),
    AfterValidator(_ascending),
    Field(
        json_schema_extra={
            "allowed": f"a list of integers from 1 to {GREATEST}, or a table {{multiple_of = N, max = N}} or "
            "{power_of = N, max = N}, both of which may have a min"
        }
    ),
]
DimsOf = Annotated[
    tuple[int, ...],
    BeforeValidator(_as_list),
    Field(strict=False, min_length=1, json_schema_extra={"allowed": "a dimension, or a list of some"}),
]
Following = Annotated[
    tuple[FollowingDim, ...],
    BeforeValidator(_following),
    Field(strict=False, json_schema_extra={"allowed": f"{_FOLLOWING}, or a list of those"}),
]


class BucketConfig(_Table):
    """A length that varies from request to request: padded to the next size, so that all of one size share batches.

    Dimensions are counted from 0 with the batch's, or from the end as -1.
    """

    sizes: Sizes = Field(description="lengths that the model runs with; a longer request is refused")
    inputs: dict[str, DimsOf] = Field(min_length=1, description="the dimensions of inputs that have this length")
    masks: dict[str, DimsOf] = Field(
        {}, description="inputs that clients may leave out, and their dimensions: 1 where the data is, 0 where padding"
    )
    lengths: str | None = Field(
        None, min_length=1, description="an input that clients may leave out: the length of each row"
    )
    outputs: dict[str, Following] = Field(
        {}, description="the dimensions of outputs that follow this length, and are cut back to it"
    )

    @property
    def bucket_sizes(self) -> tuple[int, ...]:
        """All sizes, ascending."""
        return self.sizes.sizes() if isinstance(self.sizes, SizeRule) else self.sizes
