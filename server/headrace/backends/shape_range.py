"""The shapes that TensorRT's engines are built for, whoever builds them."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

Size = Annotated[int, Field(ge=0)]
Sizes = Annotated[tuple[Size, ...], Field(strict=False)]


class ShapeRange(BaseModel):
    """Shapes of an input, its batch dimension left out."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    min: Sizes = Field(description="the smallest")
    opt: Sizes = Field(description="the one that engines are tuned for")
    max: Sizes = Field(description="the largest")

    @model_validator(mode="after")
    def _ordered(self) -> ShapeRange:
        if not len(self.min) == len(self.opt) == len(self.max):
            raise ValueError("min, opt and max must have equally many dimensions")
        if not all(a <= b <= c for a, b, c in zip(self.min, self.opt, self.max, strict=True)):
            raise ValueError("min, opt and max must not decrease in any dimension")
        return self
