"""`[backend_options]` of a model that TensorRT runs."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from headrace import settings_sources as sources
from headrace.backends.gpu_fields import BatchBuckets, BusyWait, Devices  # noqa: TC001 - pydantic reads the annotations
from headrace.backends.shape_range import ShapeRange  # noqa: TC001 - pydantic reads the annotation
from headrace.errors import ConfigError, ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Mapping

MODEL_FILE = "model.onnx"
PLAN_FILE = "model.plan"
PLAN_SUFFIXES = frozenset({".plan", ".engine"})


class Options(BaseModel):
    """`[backend_options]` of model.toml."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    file: str = Field(MODEL_FILE, description="the model file's name within the version")
    devices: Devices = Field((0,), description="GPUs that each instance is on, by their numbers")
    in_flight: int = Field(2, ge=1, le=64, description="batches that an instance has on each of its GPUs at a time")
    batch_buckets: BatchBuckets = Field(
        (), description="numbers of rows to build for, ascending; by default powers of two and max_batch"
    )
    busy_wait: BusyWait = False
    profiles: dict[str, ShapeRange] = Field(
        {}, description="for each input with other dynamic dimensions: min, opt and max, batch dimension left out"
    )
    optimization_level: int = Field(3, ge=0, le=5, description="how long the builder searches; 5: longest")
    workspace_bytes: int = Field(4 << 30, ge=0, description="memory that a layer may use to compute, in bytes")
    tf32: bool = Field(True, description="let products of FP32 be computed in TF32; false: exact, and slower")
    sparse_weights: bool = Field(False, description="use that weights are 2:4 sparse, where they are")
    strip_weights: bool = Field(False, description="keep weights out of the cached engine, and take them from the file")
    refit: bool = Field(
        False,
        description="build engines that take other weights: a version that differs in its weights alone is not built",
    )
    hardware_compatibility: Literal["none", "ampere_plus", "same_compute_capability"] = Field(
        "none", description="GPUs besides this one on which the engine is to run too, at the cost of speed"
    )
    plugins: tuple[str, ...] = Field((), strict=False, description="libraries of plugins to load; they are run")
    cuda_graphs: bool = Field(True, description="record the work of each batch bucket once and launch it as a whole")

    @field_validator("file")
    @classmethod
    def _inside(cls, file: str) -> str:
        path = PurePosixPath(file)
        if path.is_absolute() or ".." in path.parts or not path.name:
            raise ValueError(f"{file!r} is no file within the version directory")
        return file

    @property
    def is_plan(self) -> bool:
        """Whether the file is one that TensorRT has built."""
        return PurePosixPath(self.file).suffix in PLAN_SUFFIXES


def read(options: Mapping[str, Any]) -> Options:
    """The options, checked. Raises ModelLoadError with a line for each that is wrong."""
    try:
        return sources.build(Options, [sources.Source(dict(options), {(): "in backend_options of model.toml"})])
    except ConfigError as error:
        raise ModelLoadError(str(error)) from error
