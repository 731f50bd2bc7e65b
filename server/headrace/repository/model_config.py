"""What a model's `model.toml` may say. Every key has a default; a model without the file is served with them."""

from __future__ import annotations

from itertools import pairwise
from math import prod
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from headrace import settings_sources as sources
from headrace.repository.bucket_config import BucketConfig  # noqa: TC001 - pydantic reads the annotation
from headrace.repository.drift_config import DriftConfig  # noqa: TC001 - pydantic reads the annotation
from headrace.repository.fallback_config import FallbackConfig
from headrace.repository.guard_config import GuardConfig  # noqa: TC001 - pydantic reads the annotation
from headrace.repository.processing_config import (  # noqa: TC001 - pydantic reads the annotations
    PostprocessConfig,
    PreprocessConfig,
)
from headrace.repository.schema_config import InputRules
from headrace.repository.sequence_config import SequenceConfig  # noqa: TC001 - pydantic reads the annotation

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Self

CONFIG_FILE = "model.toml"

LatestVersions = Annotated[str, Field(pattern=r"^latest:[1-9][0-9]*$", json_schema_extra={"allowed": '"latest:N"'})]
VersionLabel = Annotated[
    str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]{0,127}$", json_schema_extra={"allowed": "a name that is no number"})
]
# TOML knows lists only, and a frozen model wants tuples: strict mode would refuse the one for the other
IntegerTuple = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False, min_length=1)]
Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BF16",
    "BYTES",
]  # fmt: skip


def _level(text: str) -> str:
    if not (text.isascii() and text.isdecimal()) or text.startswith("0"):
        raise ValueError(f"{text!r} is no priority level, expected a number of at least 1")
    return text


def _not_zero(dims: tuple[int, ...]) -> tuple[int, ...]:
    if 0 in dims:
        raise ValueError(f"{list(dims)} has a dimension of 0, expected integers of at least 1, or -1 for any size")
    return dims


def _inside(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{name!r} leaves the model's directory, expected a path within it")
    return name


Dims = Annotated[tuple[Annotated[int, Field(ge=-1)], ...], Field(strict=False), AfterValidator(_not_zero)]
FileName = Annotated[str, AfterValidator(_inside)]
Level = Annotated[str, AfterValidator(_level)]
BackendName = Annotated[str, Field(min_length=1)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class BatchingConfig(_Table):
    """When a batch is closed."""

    policy: Literal["slot", "deadline", "delay", "single"] = Field(
        "slot",
        description="slot: as soon as an instance is idle; deadline: wait for more as long as all members still make "
        "theirs; delay: wait delay_us; single: each request runs alone",
    )
    delay_us: int = Field(0, ge=0, description="how long policy `delay` waits for more, in microseconds")
    margin_us: int = Field(
        3000, ge=0, description="kept in hand of a deadline where a batch waits for more: for the reply, and its way"
    )
    preferred_sizes: IntegerTuple | None = Field(
        None, description="rows of a batch that runs at once, the largest that what waits can make"
    )
    quantile: float = Field(
        0.95, gt=0, lt=1, description="share of batches that must not run longer than the cost model predicts"
    )


class LevelConfig(_Table):
    """The queue of one priority level, where it differs from what `[queue]` says for all."""

    timeout_us: int | None = Field(None, ge=0, description="see queue.timeout_us")
    on_timeout: Literal["reject", "delay"] | None = Field(None, description="see queue.on_timeout")
    timeout_override: bool | None = Field(None, description="see queue.timeout_override")
    max_level_requests: int | None = Field(None, ge=0, description="see queue.max_level_requests")


class QueueConfig(_Table):
    """How much may wait, and how long. What would exceed the former is refused."""

    max_requests: int = Field(4096, ge=1, description="requests that may wait")
    max_rows: int = Field(65_536, ge=1, description="rows that may wait")
    max_bytes: int = Field(256 << 20, ge=1, description="input bytes that may wait")
    max_level_requests: int = Field(0, ge=0, description="requests of one priority level that may wait; 0: any number")
    timeout_us: int = Field(0, ge=0, description="longest wait of any request, in microseconds; 0: any")
    on_timeout: Literal["reject", "delay"] = Field(
        "reject",
        description="reject: a request that has waited so long is refused; delay: it goes behind all of its level that "
        "have not",
    )
    timeout_override: bool = Field(True, description="whether a request's own `timeout` counts, where it is sooner")
    levels: dict[Level, LevelConfig] = Field({}, description="what differs for a priority level, by its number")


class TensorConfig(_Table):
    """How clients see an input or output; what is not given is as in the model file."""

    datatype: Datatype | None = Field(None, description="its datatype, which must be the model file's")
    dims: Dims | None = Field(None, description="its dimensions but the batch's; -1: any size")
    reshape: Dims | None = Field(None, description="the dimensions in the model file, if they are not dims")

    @model_validator(mode="after")
    def _same_size(self) -> Self:
        if self.reshape is not None and (self.dims is None or _runs(self.dims) != _runs(self.reshape)):
            dims = "none" if self.dims is None else list(self.dims)
            raise ValueError(f"dims {dims} and reshape {list(self.reshape)} do not hold the same number of elements")
        return self


class InputConfig(TensorConfig, InputRules):
    """An input, and what its values must be; a version's schema.toml says the rest."""

    format: Literal["NHWC", "NCHW"] | None = Field(None, description="how clients lay out an image; for them to read")
    pad: float | None = Field(None, description="what fills a bucket up, 0 by default; see `buckets`")

    @model_validator(mode="after")
    def _image_has_three_dims(self) -> Self:
        if self.format is not None and (self.dims is None or len(self.dims) != 3):
            raise ValueError(f"format {self.format} needs three dims")
        return self


class OutputConfig(TensorConfig):
    """An output."""

    labels: FileName = Field("", description="file in the model's directory with the name of a class in each line")


class WarmupInput(_Table):
    """One input of a warm-up request: zeros, unless it says otherwise."""

    datatype: Datatype | None = Field(None, description="its datatype, which must be the input's")
    dims: IntegerTuple | None = Field(None, description="its dimensions but the batch's; default: the input's")
    fill: Literal["zeros", "random"] = Field("zeros", description="what its values are")
    file: FileName = Field("", description="file in `warmup/` with the bytes of one row, in place of `fill`")


class WarmupData(_Table):
    """A request that each instance runs before the model serves."""

    name: str = Field("", description="what the log calls it")
    rows: int = Field(1, ge=1, description="how often its row is repeated")
    runs: int = Field(1, ge=1, description="how often it runs")
    inputs: dict[str, WarmupInput] = Field({}, description="its inputs; zeros for those left out")


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
    threads: int = Field(
        1, ge=0, le=1024, description="threads that one instance computes with; 0: as the backend chooses"
    )
    backend: BackendName | Annotated[tuple[BackendName, ...], Field(strict=False, min_length=1)] = Field(
        "onnxruntime",
        description="a backend's name, or your own as package.module:attr; or a list of them, of which the first that "
        "works serves",
    )
    slo_ms: float = Field(
        0.0,
        ge=0,
        le=1e18,
        allow_inf_nan=False,
        description="deadline of a request that brings none, in milliseconds; 0: none",
    )
    versions: Literal["all"] | LatestVersions | IntegerTuple = Field(
        "latest:1", description="versions to serve: the N newest, all, or these"
    )
    built_by: str = Field(
        "", description="the command that makes the versions; until it has run, there being none is no error"
    )
    version_labels: dict[VersionLabel, Annotated[int, Field(ge=1)]] = Field(
        {}, description="names that a request may use in place of a version, such as stable or canary"
    )
    warmup: bool | IntegerTuple = Field(
        True, description="batch sizes to run before serving; true: those that can occur"
    )
    warmup_data: Annotated[tuple[WarmupData, ...], Field(strict=False)] = Field(
        (), description="requests to run before serving; the batch sizes of `warmup` then repeat the first one's row"
    )
    split_oversize: bool = Field(
        True, description="split a request of more rows than a batch holds and join its replies; false: refuse it"
    )
    priority_levels: int = Field(1, ge=1, description="levels of urgency; 1 is the most urgent")
    default_priority: int = Field(0, ge=0, description="level of a request that names none; 0: the least urgent")
    backend_options: dict[str, Any] = Field(
        {}, description="options of the backend itself; where `backend` is a list, a table for each, by its name"
    )
    fallback: FallbackConfig = Field(FallbackConfig(), description="how the backends of a list are tried")
    batching: BatchingConfig = Field(BatchingConfig(), description="when a batch is closed")
    queue: QueueConfig = Field(QueueConfig(), description="how much may wait")
    inputs: dict[str, InputConfig] = Field({}, description="how clients see an input, and its rules, by its name")
    outputs: dict[str, OutputConfig] = Field({}, description="how clients see an output, by its name")
    buckets: dict[str, BucketConfig] = Field({}, description="lengths that vary, by a name of your own")
    preprocess: dict[str, PreprocessConfig] = Field({}, description="what is made of what clients send, by input")
    postprocess: dict[str, PostprocessConfig] = Field({}, description="what is made of what the model gives, by output")
    serve_outputs: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] | None = Field(
        None, description="outputs that clients see, in this order; default: all"
    )
    unit_dims: bool = Field(
        False, description="what has no dimension but the batch's, and no dims here, is served with dims [1]"
    )
    response_cache: bool = Field(False, description="answer a request whose inputs were seen before without running")
    cache_ttl_s: float = Field(
        0.0,
        ge=0,
        le=1e18,
        allow_inf_nan=False,
        description="how long a reply is kept in the cache, in seconds; 0: while it fits",
    )
    sequence: SequenceConfig | None = Field(None, description="what the model keeps from one request to the next")
    drift: DriftConfig | None = Field(None, description="what is watched for drift")
    guard: GuardConfig | None = Field(None, description="a trusted version that the others are compared with")
    ensemble: EnsembleConfig = Field(EnsembleConfig(), description="the models that run in its place")

    @model_validator(mode="after")
    def _options_have_a_backend(self) -> Self:
        if isinstance(self.backend, str):
            return self
        twice = [name for name in self.backend if self.backend.count(name) > 1]
        if twice:
            raise ValueError(f"backend names {twice[0]!r} twice")
        for name, options in self.backend_options.items():
            how = (
                f"where backend is a list, options are tables by its names, such as [backend_options.'{self.chain[0]}']"
            )
            if name not in self.backend:
                raise ValueError(f"backend_options.{name} is for none of backend = {list(self.backend)}; {how}")
            if not isinstance(options, dict):
                raise ValueError(f"backend_options.{name} = {options!r} is no table; {how}")
        return self

    @model_validator(mode="after")
    def _state_is_its_own(self) -> Self:
        if self.sequence is not None and self.response_cache:
            raise ValueError("response_cache = true, but with [sequence] a reply depends on more than the inputs")
        if self.sequence is not None and self.ensemble.steps:
            raise ValueError("an ensemble has no [sequence] of its own: its models have")
        if self.sequence is not None and (self.buckets or any(said.pad is not None for said in self.inputs.values())):
            raise ValueError("buckets and pad are not for a model with [sequence]: its state would be padded as well")
        return self

    @model_validator(mode="after")
    def _guards_one_request_at_a_time(self) -> Self:
        if self.guard is not None and self.sequence is not None:
            raise ValueError("[guard] is not for a model with [sequence]: its reference would need the same state")
        if self.guard is not None and self.ensemble.steps:
            raise ValueError("an ensemble has no [guard] of its own: its models may have one")
        return self

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        too_large = [size for size in self.batching.preferred_sizes or () if size > (self.max_batch or size)]
        if too_large:
            raise ValueError(
                f"batching.preferred_sizes has {too_large[0]}, which is above max_batch = {self.max_batch}"
            )
        return self

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if self.slo_ms and self.queue.timeout_us:
            raise ValueError("slo_ms has no effect beside queue.timeout_us, which bounds all requests; leave one out")
        return self

    @model_validator(mode="after")
    def _models_pad(self) -> Self:
        for table in ("buckets", "preprocess", "postprocess"):
            if getattr(self, table) and self.ensemble.steps:
                raise ValueError(f"{table} have no effect in an ensemble; its models may have some")
        return self

    @model_validator(mode="after")
    def _models_keep_time(self) -> Self:
        queue = self.queue
        of_models = {
            "slo_ms": self.slo_ms,
            "queue.timeout_us": queue.timeout_us,
            "queue.max_level_requests": queue.max_level_requests,
            "queue.levels": queue.levels,
            "response_cache": self.response_cache,
        }
        said = [key for key, value in of_models.items() if value]
        if said and self.ensemble.steps:
            raise ValueError(f"{said[0]} has no effect in an ensemble; its models may have it")
        return self

    @model_validator(mode="after")
    def _models_are_watched(self) -> Self:
        if self.drift is not None and self.ensemble.steps:
            raise ValueError("an ensemble has no [drift] of its own: its models may have some")
        return self

    @model_validator(mode="after")
    def _priority_exists(self) -> Self:
        unknown = [level for level in self.queue.levels if int(level) > self.priority_levels]
        if unknown:
            raise ValueError(f"queue.levels.{unknown[0]} is above priority_levels = {self.priority_levels}")
        if self.default_priority > self.priority_levels:
            raise ValueError(
                f"default_priority = {self.default_priority} is above priority_levels = {self.priority_levels}"
            )
        return self

    @property
    def chain(self) -> tuple[str, ...]:
        """The backends to try, in order."""
        return (self.backend,) if isinstance(self.backend, str) else self.backend

    def options_of(self, backend: str) -> Mapping[str, Any]:
        """The options of one of them."""
        options: Mapping[str, Any] = (
            self.backend_options if isinstance(self.backend, str) else self.backend_options.get(backend, {})
        )
        return options

    @property
    def probes(self) -> bool:
        """Whether a backend's results are compared before it serves."""
        own = self.fallback.probe
        return not isinstance(self.backend, str) if own is None else own

    @property
    def default_level(self) -> int:
        """The priority level of a request that names none, or one that does not exist."""
        return self.default_priority or self.priority_levels


def _runs(dims: tuple[int, ...]) -> list[int]:
    """The elements between the dimensions of any size: equal for shapes that are views of one another."""
    cuts = [-1, *(at for at, dim in enumerate(dims) if dim < 0), len(dims)]
    return [prod(dims[start + 1 : stop]) for start, stop in pairwise(cuts)]


def load_model_config(path: Path) -> ModelConfig:
    """The configuration in the file `path`. Raises ConfigError with a line for each problem."""
    return sources.build(ModelConfig, [sources.read_toml(path)])
