"""What a model's `model.toml` may say of its guard: `[guard]`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from headrace.errors import ConfigError
from headrace.guard.settings import Action, GuardSettings, Kind

if TYPE_CHECKING:
    from headrace.messages import Signature, TensorSpec

_FLOATS = ("FP16", "FP32", "FP64", "BF16")


class GuardConfig(BaseModel):
    """A version that is trusted, and how far the others may be from it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    reference: int = Field(ge=1, description="the version that is trusted")
    share: float = Field(0.01, gt=0, le=1, description="of requests that are run on the reference as well")
    cpu_budget: float = Field(0.03, gt=0, le=1, description="of a core that a version's guard may take")
    output: str = Field("", description="the output that decides; default: the first that has labels, else the first")
    kind: Kind | None = Field(
        None,
        description="how it is compared. classes: top-1; values: relative error of a row; equal: element by element. "
        "Default: classes where it has labels, values for floats of any other shape than [C], equal for the rest",
    )
    tolerance: float = Field(0.05, ge=0, le=1, description="of kind values, relative error up to which a row agrees")
    limit: float = Field(0.99, gt=0, lt=1, description="mean agreement below which the guard acts")
    max_mean_error: float | None = Field(None, gt=0, lt=1, description="mean error above which it acts; default: any")
    alpha: float = Field(
        0.01, gt=0, lt=0.5, description="chance that it ever acts upon a version that keeps its limits"
    )
    action: Action = Field(
        "fall_back",
        description="fall_back: requests that name no version go to the reference; report: say so, and no more",
    )

    def settings(self, signature: Signature) -> GuardSettings:
        """What is compared of a model with this signature. Raises ConfigError."""
        spec = self._deciding(signature)
        return GuardSettings(
            spec.name, self._kind_of(spec), self.tolerance, self.limit, self.max_mean_error, self.alpha
        )

    def _deciding(self, signature: Signature) -> TensorSpec:
        outputs = {spec.name: spec for spec in signature.outputs}
        if self.output:
            if self.output not in outputs:
                raise ConfigError(
                    f'guard.output = "{self.output}": the model has no such output, but {", ".join(outputs)}'
                )
            return outputs[self.output]
        return next((spec for spec in signature.outputs if spec.labels), signature.outputs[0])

    def _kind_of(self, spec: TensorSpec) -> Kind:
        if self.kind in ("classes", "values") and spec.datatype == "BYTES":
            raise ConfigError(f'guard.kind = "{self.kind}": output {spec.name!r} is BYTES, expected "equal"')
        if self.kind == "values" and spec.datatype not in _FLOATS:
            raise ConfigError(
                f'guard.kind = "values": output {spec.name!r} is {spec.datatype}, expected floats: of integers, such '
                'as the number of a class, a small difference says nothing; use "equal", or another guard.output'
            )
        if self.kind == "classes" and (not spec.shape or spec.shape[-1] == 1):
            raise ConfigError(
                f'guard.kind = "classes": output {spec.name!r} is {list(spec.shape)}, expected a last dimension of '
                "several classes"
            )
        if self.kind is not None:
            return self.kind
        if spec.labels:
            return "classes"
        if spec.datatype not in _FLOATS:
            return "equal"
        if len(spec.shape) == 1 and spec.shape[0] != 1:
            raise ConfigError(
                f"guard.kind is needed: output {spec.name!r}, {spec.datatype} {list(spec.shape)} without labels, may "
                'be scores ("classes") or a vector ("values")'
            )
        return "values"
