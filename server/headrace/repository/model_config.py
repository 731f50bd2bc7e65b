"""What a model's `model.toml` may say. Every key has a default; a model without the file is served with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from headrace import settings_sources as sources

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self

CONFIG_FILE = "model.toml"

LatestVersions = Annotated[str, Field(pattern=r"^latest:[1-9][0-9]*$", json_schema_extra={"allowed": '"latest:N"'})]
VersionLabel = Annotated[
    str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]{0,127}$", json_schema_extra={"allowed": "a name that is no number"})
]
# TOML knows lists only, and a frozen model wants tuples: strict mode would refuse the one for the other
IntegerTuple = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False, min_length=1)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class BatchingConfig(_Table):
    """When a batch is closed."""

    policy: Literal["slot", "deadline", "delay"] = Field(
        "slot",
        description="slot: as soon as an instance is idle; deadline: wait for more as long as all members still make "
        "theirs; delay: wait delay_us",
    )
    delay_us: int = Field(0, ge=0, description="how long policy `delay` waits for more, in microseconds")
    quantile: float = Field(
        0.95, gt=0, lt=1, description="share of batches that must not run longer than the cost model predicts"
    )


class QueueConfig(_Table):
    """How much may wait. What would exceed any of these is refused."""

    max_requests: int = Field(4096, ge=1, description="requests that may wait")
    max_rows: int = Field(65_536, ge=1, description="rows that may wait")
    max_bytes: int = Field(256 << 20, ge=1, description="input bytes that may wait")


class InputCheck(_Table):
    """What the values of a numeric input must be; a request that has others is refused."""

    finite: bool = Field(False, description="refuse NaN and infinity")
    min: float | None = Field(None, allow_inf_nan=False, description="smallest value allowed")
    max: float | None = Field(None, allow_inf_nan=False, description="largest value allowed")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min = {self.min:g} is above max = {self.max:g}")
        return self


class EnsembleStep(_Table):
    """One run of a model in an ensemble."""

    model: str = Field(min_length=1, description="name of the model that runs")
    version: int = Field(0, ge=0, description="its version; 0: the newest that serves")
    inputs: dict[str, str] = Field({}, description="names of the model's inputs to names of the ensemble's tensors")
    outputs: dict[str, str] = Field(
        min_length=1, description="names of the model's outputs to names of the ensemble's tensors"
    )


class EnsembleConfig(_Table):
    """A graph of models that is served as one; there is no model file."""

    steps: Annotated[tuple[EnsembleStep, ...], Field(strict=False)] = Field(
        (), description="the runs; each begins when the tensors that it takes are there"
    )
    outputs: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        (), description="the tensors that a reply holds; default: those that no step takes"
    )


class ModelConfig(_Table):
    """How one model is served."""

    max_batch: int | None = Field(
        None,
        ge=0,
        le=1 << 20,
        description="rows a batch may hold; 0: no batching; default: by the model file, 64 where it can batch",
    )
    instances: int = Field(1, ge=1, le=1024, description="batches that run at the same time")
    threads: int = Field(1, ge=1, le=1024, description="threads that one instance computes with")
    backend: str = Field(
        "onnxruntime", min_length=1, description="a backend's name, or your own as package.module:attr"
    )
    slo_ms: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="deadline of a request that brings none, in milliseconds; 0: none"
    )
    versions: Literal["all"] | LatestVersions | IntegerTuple = Field(
        "latest:1", description="versions to serve: the N newest, all, or these"
    )
    version_labels: dict[VersionLabel, Annotated[int, Field(ge=1)]] = Field(
        {}, description="names that a request may use in place of a version, such as stable or canary"
    )
    warmup: bool | IntegerTuple = Field(
        True, description="batch sizes to run before serving; true: those that can occur"
    )
    split_oversize: bool = Field(
        True, description="split a request of more rows than a batch holds and join its replies; false: refuse it"
    )
    priority_levels: int = Field(1, ge=1, description="levels of urgency; 1 is the most urgent")
    default_priority: int = Field(0, ge=0, description="level of a request that names none; 0: the least urgent")
    backend_options: dict[str, Any] = Field({}, description="options of the backend itself")
    batching: BatchingConfig = Field(BatchingConfig(), description="when a batch is closed")
    queue: QueueConfig = Field(QueueConfig(), description="how much may wait")
    inputs: dict[str, InputCheck] = Field({}, description="checks of input values, by input name")
    response_cache: bool = Field(False, description="answer a request whose inputs were seen before without running")
    cache_ttl_s: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="how long a reply is kept in the cache, in seconds; 0: while it fits",
    )
    ensemble: EnsembleConfig = Field(EnsembleConfig(), description="the models that run in its place")

    @model_validator(mode="after")
    def _priority_exists(self) -> Self:
        if self.default_priority > self.priority_levels:
            raise ValueError(
                f"default_priority = {self.default_priority} is above priority_levels = {self.priority_levels}"
            )
        return self

    @property
    def default_level(self) -> int:
        """The priority level of a request that names none, or one that does not exist."""
        return self.default_priority or self.priority_levels


def load_model_config(path: Path) -> ModelConfig:
    """The configuration in the file `path`. Raises ConfigError with a line for each problem."""
    return sources.build(ModelConfig, [sources.read_toml(path)])
