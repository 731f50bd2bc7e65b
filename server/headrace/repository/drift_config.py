"""What a model's `model.toml` may say of drift: `[drift]`, `[drift.inputs.NAME]`, `[drift.outputs.NAME]`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field

from headrace.drift.alarms import AlarmSettings
from headrace.drift.errors import DriftError
from headrace.drift.watch import (
    DEFAULT_BINS,
    DEFAULT_PROJECTIONS,
    MAX_FEATURES,
    Kind,
    Layout,
    Watch,
    watch_of,
)
from headrace.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headrace.messages import Signature, TensorSpec

_GREATEST = 1 << 40
_OF_KIND: Mapping[str, Kind] = {"layout": "image", "pad": "tokens", "projections": "embedding", "logits": "classes"}
"""Keys that one kind alone has a use for. `watch_of` knows that of `features`."""


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class TensorDrift(_Table):
    """What is watched of one tensor. An empty table is enough: its datatype and shape say the rest."""

    kind: Kind | None = Field(None, description="what its features are; default: by its datatype and shape")
    bins: int = Field(DEFAULT_BINS, ge=4, le=64, description="bins of a numeric feature, about")
    features: Annotated[tuple[Annotated[int, Field(ge=0, le=_GREATEST)], ...], Field(strict=False)] | None = Field(
        None,
        min_length=1,
        max_length=MAX_FEATURES,
        description="of kind numeric, which elements of a row, flattened, are features; default: all, 256 at most",
    )
    layout: Layout | None = Field(None, description="of an image, where its channels are; default: where they fit")
    pad: int | None = Field(None, description="of tokens, the id that is none")
    salted: bool | None = Field(
        None, description="keep items as keyed hashes alone; default: text, but not tokens and classes"
    )
    projections: int = Field(DEFAULT_PROJECTIONS, ge=1, le=64, description="of an embedding, random projections")
    logits: bool = Field(False, description="of classes, scores that need a softmax to be confidences")


class DriftConfig(_Table):
    """Which tensors are watched, over which windows, and when something is an alarm."""

    window_s: int = Field(600, ge=10, le=604_800, description="length of a window, in seconds")
    keep_windows: int = Field(16, ge=1, le=256, description="windows that are kept; the longest horizon of the alarms")
    quiet_days: float = Field(
        30.0, gt=0, le=36_500, description="days between false alarms of one model version, on average at least"
    )
    min_shift: float = Field(
        0.03, gt=0, lt=1, description="share of values that must have moved for a distribution to have changed"
    )
    min_share: float = Field(
        0.01, gt=0, lt=1, description="by how much the share of missing, outside or unseen values must have risen"
    )
    min_rows: int = Field(200, ge=10, le=_GREATEST, description="rows of a tensor below which nothing of it is judged")
    clear_after: int = Field(3, ge=1, le=1000, description="windows without any sign after which an alarm is over")
    design_effect: float = Field(
        1.0, ge=1, le=1e6, description="so many rows say as much as one that is independent of the others"
    )
    inputs: dict[str, TensorDrift] = Field({}, description="the inputs that are watched")
    outputs: dict[str, TensorDrift] = Field({}, description="the outputs that are watched")

    @property
    def alarms(self) -> AlarmSettings:
        """As the monitor takes them."""
        return AlarmSettings(
            window_ms=self.window_s * 1000,
            keep=self.keep_windows,
            quiet_days=self.quiet_days,
            min_shift=self.min_shift,
            min_share=self.min_share,
            min_rows=self.min_rows,
            clear_after=self.clear_after,
            design_effect=self.design_effect,
        )

    def watches(self, signature: Signature, layouts: Mapping[str, Layout] | None = None) -> list[Watch]:
        """What is watched of a model with this signature. Raises ConfigError with a line for each problem.

        layouts: of inputs that are images because `format` in `[inputs.NAME]` says so; what is said here comes first.
        """
        found: list[Watch] = []
        problems: list[str] = []
        for side, tables, specs in (
            ("inputs", self.inputs, signature.inputs),
            ("outputs", self.outputs, signature.outputs),
        ):
            by_name = {spec.name: spec for spec in specs}
            for name, table in tables.items():
                try:
                    layout = (layouts or {}).get(name) if side == "inputs" else None
                    found.append(_watch(table, _spec(by_name, side, name), side == "outputs", layout))
                except DriftError as error:
                    problems.append(f"drift.{side}.{name}: {error}")
        if problems:
            raise ConfigError("\n".join(problems))
        return found


def _spec(specs: Mapping[str, TensorSpec], side: str, name: str) -> TensorSpec:
    if name not in specs:
        raise DriftError(f"the model has no such {side.removesuffix('s')}, but {', '.join(sorted(specs)) or 'none'}")
    return specs[name]


def _watch(table: TensorDrift, spec: TensorSpec, output: bool, layout: Layout | None) -> Watch:
    kind = table.kind or ("image" if layout else None)
    watch = watch_of(
        spec,
        output=output,
        kind=kind,
        bins=table.bins,
        columns=table.features,
        layout=table.layout or (layout if kind == "image" else None),
        pad=table.pad,
        salted=table.salted,
        projections=table.projections,
        logits=table.logits,
    )
    for key, owner in _OF_KIND.items():
        if getattr(table, key) != TensorDrift.model_fields[key].default and watch.kind != owner:
            raise DriftError(f"{key} is for kind {owner}, and {spec.name} is watched as {watch.kind}")
    if watch.logits and watch.is_label:
        raise DriftError(f"logits is for scores of classes, and {spec.name} holds the class itself")
    return watch
