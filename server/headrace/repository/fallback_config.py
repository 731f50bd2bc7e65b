"""What a model's `model.toml` may say of a chain of backends: `[fallback]`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from headrace.datatypes import DATATYPES
from headrace.settings_sources import nearest

if TYPE_CHECKING:
    from typing import Self

QUANTIZED = "quantized"
"""The tolerance of outputs in floating point of a model that computes in integers."""


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ToleranceConfig(_Table):
    """How far an element of an output may be from the reference's: `absolute + relative * greatest magnitude`."""

    absolute: float = Field(0.0, ge=0, allow_inf_nan=False, description="however small the output is")
    relative: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="share of the greatest magnitude in the reference's output"
    )


# A product of matrices errs in proportion to the greatest terms that it adds up, not to each of its elements (Higham,
# Accuracy and Stability of Numerical Algorithms, 3.5): hence a share of the greatest magnitude. GPUs multiply FP32 as
# TF32 unless told otherwise, whose unit roundoff is FP16's, 2^-11: 20 of it for the depth of a network make 1 %. FP16
# rounds between layers as well: twice that. BF16's is 2^-8, eight times as much: 10 % is about 25 of it. A model in
# integers of 8 bits moves by whole steps of 1/127 of a range where two sums differ in the last place: 10 % is about 13.
# What the probe is to find (a wrong layout, an overflow, NaN, rows of others) is off by far more. Numbers of integer
# types are indices and labels as a rule: equal.
DEFAULT_TOLERANCES = {
    "FP64": ToleranceConfig(absolute=1e-9, relative=1e-6),
    "FP32": ToleranceConfig(absolute=1e-5, relative=0.01),
    "FP16": ToleranceConfig(absolute=1e-3, relative=0.02),
    "BF16": ToleranceConfig(absolute=1e-2, relative=0.1),
    QUANTIZED: ToleranceConfig(absolute=1e-2, relative=0.1),
}


def _kind(name: str) -> str:
    known = [*(name for name in DATATYPES if name != "BYTES"), QUANTIZED]
    if name not in known:
        raise ValueError(f"{name!r} has no tolerance{nearest(name, known)}")
    return name


class FallbackConfig(_Table):
    """How backends of a chain are tried, and what becomes of an instance that is lost."""

    probe: bool | None = Field(
        None,
        description="compare a backend's results with onnxruntime-cpu's before it serves; default: if `backend` is a "
        "list",
    )
    tolerance: dict[Annotated[str, AfterValidator(_kind)], ToleranceConfig] = Field(
        {}, description="how far results may differ, by datatype of the output, or `quantized`"
    )
    at_run_time: bool = Field(
        True,
        description="while all instances of the backend are lost, those of the next in the list run its requests",
    )
    rebuild_first_s: float = Field(
        1.0,
        gt=0,
        le=86_400,
        allow_inf_nan=False,
        description="how long after its loss an instance is made anew, in seconds; twice as long each further time",
    )
    rebuild_max_s: float = Field(
        60.0, gt=0, le=86_400, allow_inf_nan=False, description="but never longer than this, in seconds"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.rebuild_first_s > self.rebuild_max_s:
            raise ValueError(
                f"rebuild_first_s = {self.rebuild_first_s:g} is above rebuild_max_s = {self.rebuild_max_s:g}"
            )
        return self

    def tolerance_of(self, datatype: str, *, quantized: bool) -> ToleranceConfig:
        """What holds for an output of that datatype. quantized: the model computes in integers."""
        kind = QUANTIZED if quantized and datatype in DEFAULT_TOLERANCES else datatype
        return self.tolerance.get(kind) or DEFAULT_TOLERANCES.get(kind) or ToleranceConfig()
