"""The RPCs about the server and its models: everything of the inference service but inference.

Messages in, messages out. What fails raises a HeadraceError, with Triton's text where Triton has one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from headrace import __version__
from headrace.errors import InvalidRequest, ModelNotFound, ModelNotReady
from headrace.rpc import inference_pb2 as pb
from headrace.transport.model_config import Configured, describe_model

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from headrace.engine.served import Condition
    from headrace.messages import TensorSpec
    from headrace.repository.catalog import Catalog
    from headrace.telemetry.statistics import Duration, Statistics

EXTENSIONS = (
    "classification",
    "sequence",
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "model_configuration",
    "system_shared_memory",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "trace",
    "logging",
)
"""What ServerMetadata advertises of Triton's extensions: those that are implemented, in Triton's order."""

NOT_READY = "Server not ready"
"""What is said before all models are loaded, and while the server leaves."""

DURATIONS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")
BATCH_DURATIONS = ("compute_input", "compute_infer", "compute_output")


class Engine(Protocol):
    """The state of the server as a whole."""

    @property
    def live(self) -> bool:
        """Whether it is up."""
        ...

    @property
    def ready(self) -> bool:
        """Whether it takes inference requests."""
        ...


class Served(Configured, Protocol):
    """A model version that is ready."""

    @property
    def version(self) -> str:
        """The version's number, in decimal."""
        ...

    @property
    def condition(self) -> Condition:
        """What it can run requests with."""
        ...

    def statistics(self) -> Statistics:
        """What it has done since it was loaded."""
        ...


ServedT = TypeVar("ServedT", bound=Served)


class Admin(Generic[ServedT]):
    """Answers from the catalogue of models and the state of the engine; changes neither.

    without: extensions that are switched off.
    """

    def __init__(self, engine: Engine, catalog: Catalog[ServedT], without: Collection[str] = ()) -> None:
        self._engine = engine
        self._catalog = catalog
        self._extensions = [extension for extension in EXTENSIONS if extension not in without]

    def server_live(self, request: pb.ServerLiveRequest) -> pb.ServerLiveResponse:
        """Whether the server is up."""
        return pb.ServerLiveResponse(live=self._engine.live)

    def server_ready(self, request: pb.ServerReadyRequest) -> pb.ServerReadyResponse:
        """Whether the server takes inference requests."""
        return pb.ServerReadyResponse(ready=self._engine.ready)

    def server_metadata(self, request: pb.ServerMetadataRequest) -> pb.ServerMetadataResponse:
        """Name, version and extensions."""
        return pb.ServerMetadataResponse(name="headrace", version=__version__, extensions=self._extensions)

    def model_ready(self, request: pb.ModelReadyRequest) -> pb.ModelReadyResponse:
        """True, or the error that says why not: one that is unknown, loading or without an instance is an error here.

        A server that leaves says no for its models too, so that a balancer that asks this way looks elsewhere.
        """
        if not self._engine.ready:
            raise ModelNotReady(NOT_READY)
        served = self._catalog.resolve(request.name, request.version)
        if not served.condition.usable:
            raise ModelNotReady(
                f"Request for unknown model: '{served.name}' version {served.version} is not at ready state: "
                f"{served.condition.note}"
            )
        return pb.ModelReadyResponse(ready=True)

    def model_metadata(self, request: pb.ModelMetadataRequest) -> pb.ModelMetadataResponse:
        """Inputs and outputs, shapes with the batch dimension, and the version asked for or all that are ready."""
        served = self._catalog.resolve(request.name, request.version)
        versions = [served.version] if request.version else map(str, self._catalog.ready_versions(request.name))
        batched = served.signature.max_batch >= 1
        return pb.ModelMetadataResponse(
            name=served.name,
            versions=versions,
            platform=served.platform,
            inputs=(_tensor_metadata(spec, batched) for spec in served.signature.inputs),
            outputs=(_tensor_metadata(spec, batched) for spec in served.signature.outputs),
        )

    def model_config(self, request: pb.ModelConfigRequest) -> pb.ModelConfigResponse:
        """The configuration, in Triton's terms: what config.pbtxt says, if there is one, completed."""
        return pb.ModelConfigResponse(config=describe_model(self._catalog.resolve(request.name, request.version)))

    def model_statistics(self, request: pb.ModelStatisticsRequest) -> pb.ModelStatisticsResponse:
        """Of one version, of all ready versions of a model, or of all models."""
        if request.name:
            served = self._ready(request.name, request.version)
        else:
            served = [
                self._catalog.resolve(name, str(version))
                for name in self._catalog.names()
                for version in self._catalog.ready_versions(name)
            ]
        return pb.ModelStatisticsResponse(model_stats=map(_statistics, served))

    def _ready(self, name: str, version: str) -> list[ServedT]:
        """Where other RPCs say NOT_FOUND, Triton's statistics say INVALID_ARGUMENT."""
        versions = self._catalog.ready_versions(name)
        if not versions:
            raise InvalidRequest(f"requested model '{name}' is not available")
        try:
            return [self._catalog.resolve(name, v) for v in ([version] if version else map(str, versions))]
        except (ModelNotFound, ModelNotReady):
            raise InvalidRequest(f"requested model version is not available for model '{name}'") from None


def _tensor_metadata(spec: TensorSpec, batched: bool) -> pb.ModelMetadataResponse.TensorMetadata:
    shape = (-1, *spec.shape) if batched else spec.shape
    return pb.ModelMetadataResponse.TensorMetadata(name=spec.name, datatype=spec.datatype, shape=shape)


def _statistics(served: Served) -> pb.ModelStatistics:
    statistics = served.statistics()
    return pb.ModelStatistics(
        name=served.name,
        version=served.version,
        last_inference=statistics.last_inference_ms,
        inference_count=statistics.inference_count,
        execution_count=statistics.execution_count,
        inference_stats=pb.InferStatistics(**_durations(statistics, DURATIONS)),
        batch_stats=(
            pb.InferBatchStatistics(batch_size=batch.batch_size, **_durations(batch, BATCH_DURATIONS))
            for batch in statistics.batches
        ),
    )


def _durations(source: object, names: Iterable[str]) -> dict[str, pb.StatisticDuration]:
    durations: dict[str, Duration] = {name: getattr(source, name) for name in names}
    return {name: pb.StatisticDuration(count=d.count, ns=d.ns) for name, d in durations.items()}
