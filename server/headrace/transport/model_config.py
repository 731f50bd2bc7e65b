"""The reply of the ModelConfig RPC: how a model is served, in Triton's terms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from headrace.rpc import model_config_pb2 as mc
from headrace.transport.sequence_batching import UINT64, data_type, sequence_batching

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from google.protobuf.descriptor import FieldDescriptor

    from headrace.engine.sequence_plan import SequencePlan
    from headrace.engine.served import Condition
    from headrace.messages import Signature, TensorSpec
    from headrace.repository.model_config import LevelConfig, ModelConfig, QueueConfig, TensorConfig, WarmupData

MODEL_FILENAMES = {"onnxruntime_onnx": "model.onnx"}
"""The file of a version, by platform."""
GPU_BACKENDS = frozenset({"onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt"})
"""Whose option `devices` names GPUs, the first by default."""
GRAPH_LEVELS = {"basic": -1, "all": 0, "extended": 1, "disabled": 2}
"""Triton's numbers for ONNX Runtime's levels of optimisation."""

_UINT32 = (1 << 32) - 1
"""See `UINT64`."""


class Configured(Protocol):
    """A model version and how it is served."""

    @property
    def name(self) -> str:
        """The model's name."""
        ...

    @property
    def platform(self) -> str:
        """What the backend calls its kind of model, such as `onnxruntime_onnx`."""
        ...

    @property
    def signature(self) -> Signature:
        """Inputs, outputs and the largest batch."""
        ...

    @property
    def config(self) -> ModelConfig:
        """How it is served."""
        ...

    @property
    def stated(self) -> mc.ModelConfig | None:
        """What its config.pbtxt says, if there is one."""
        ...

    @property
    def condition(self) -> Condition:
        """What runs it."""
        ...

    @property
    def plan(self) -> SequencePlan | None:
        """How the tensors of a stateful model are filled; None for others."""
        ...


def describe_model(served: Configured) -> mc.ModelConfig:
    """What the model's config.pbtxt says, completed as Triton completes it; else its settings in Triton's terms."""
    made = _from_settings(served)
    if served.stated is None:
        return made
    config = mc.ModelConfig()
    config.CopyFrom(served.stated)
    for field, value in made.ListFields():
        if not _says(config, field):
            config.MergeFrom(mc.ModelConfig(**{field.name: value}))
    _complete(config)
    return config


def _says(config: mc.ModelConfig, field: FieldDescriptor) -> bool:
    """Whether it says anything about a field, or about one that excludes it."""
    if field.containing_oneof is not None:
        return config.WhichOneof(field.containing_oneof.name) is not None
    return config.HasField(field.name) if field.has_presence else bool(getattr(config, field.name))


def _complete(config: mc.ModelConfig) -> None:
    """Fills what Triton fills: names and counts of instance groups, the preferred size."""
    for at, group in enumerate(config.instance_group):
        group.name = group.name or f"{config.name}_{at}"
        group.count = max(group.count, 1)
        if group.kind == mc.ModelInstanceGroup.KIND_AUTO:
            group.kind = mc.ModelInstanceGroup.KIND_GPU if group.gpus else mc.ModelInstanceGroup.KIND_CPU
        if group.kind == mc.ModelInstanceGroup.KIND_GPU and not group.gpus:
            group.gpus.append(0)
    dynamic = config.dynamic_batching
    if config.HasField("dynamic_batching") and not dynamic.preferred_batch_size and config.max_batch_size:
        dynamic.preferred_batch_size.append(config.max_batch_size)


def _from_settings(served: Configured) -> mc.ModelConfig:
    signature, config = served.signature, served.config
    ensemble = bool(config.ensemble.steps)
    backend = served.condition.backend
    options = config.options_of(backend)
    sequence = None if served.plan is None else sequence_batching(config, served.plan)
    dynamic = signature.max_batch > 1 and not ensemble and sequence is None
    return mc.ModelConfig(
        name=served.name,
        platform=served.platform,
        backend=backend,
        version_policy=_version_policy(config),
        max_batch_size=signature.max_batch,
        input=(_input(spec, config) for spec in signature.inputs),
        output=(_output(spec, config) for spec in signature.outputs),
        instance_group=[] if ensemble else [_instance_group(served.name, config, backend)],
        default_model_filename=options.get("file", MODEL_FILENAMES.get(served.platform, "")),
        optimization=_optimization(options),
        dynamic_batching=_dynamic_batching(config) if dynamic else None,
        sequence_batching=sequence,
        ensemble_scheduling=_ensemble_scheduling(config) if ensemble else None,
        model_warmup=(_warmup(data) for data in config.warmup_data),
        response_cache=mc.ModelResponseCache(enable=True) if config.response_cache else None,
    )


def _instance_group(name: str, config: ModelConfig, backend: str) -> mc.ModelInstanceGroup:
    group = mc.ModelInstanceGroup(name=name, kind=mc.ModelInstanceGroup.KIND_CPU, count=config.instances)
    if backend in GPU_BACKENDS:
        group.kind = mc.ModelInstanceGroup.KIND_GPU
        group.gpus.extend(config.options_of(backend).get("devices", [0]))
    return group


def _input(spec: TensorSpec, config: ModelConfig) -> mc.ModelInput:
    said = config.inputs.get(spec.name)
    layout = "FORMAT_NONE" if said is None or said.format is None else f"FORMAT_{said.format}"
    return mc.ModelInput(
        name=spec.name,
        data_type=data_type(spec.datatype),
        dims=spec.shape,
        format=layout,
        reshape=_reshape(said),
    )


def _output(spec: TensorSpec, config: ModelConfig) -> mc.ModelOutput:
    said = config.outputs.get(spec.name)
    return mc.ModelOutput(
        name=spec.name,
        data_type=data_type(spec.datatype),
        dims=spec.shape,
        label_filename="" if said is None else said.labels,
        reshape=_reshape(said),
    )


def _reshape(said: TensorConfig | None) -> mc.ModelTensorReshape | None:
    return None if said is None or said.reshape is None else mc.ModelTensorReshape(shape=said.reshape)


def _ensemble_scheduling(config: ModelConfig) -> mc.ModelEnsembling:
    return mc.ModelEnsembling(
        step=(
            mc.ModelEnsembling.Step(
                model_name=step.model,
                model_version=step.version or -1,
                input_map=step.inputs,
                output_map=step.outputs,
            )
            for step in config.ensemble.steps
        )
    )


def _version_policy(config: ModelConfig) -> mc.ModelVersionPolicy:
    policy = mc.ModelVersionPolicy
    if config.versions == "all":
        return policy(all=policy.All())
    if isinstance(config.versions, str):
        newest = int(config.versions.removeprefix("latest:"))
        return policy(latest=policy.Latest(num_versions=min(newest, _UINT32)))
    return policy(specific=policy.Specific(versions=config.versions))


def _optimization(options: Mapping[str, Any]) -> mc.ModelOptimizationPolicy | None:
    level = GRAPH_LEVELS.get(options.get("graph_optimization_level", "all"), 0)
    policy = mc.ModelOptimizationPolicy
    return policy(graph=policy.Graph(level=level)) if level else None


def _dynamic_batching(config: ModelConfig) -> mc.ModelDynamicBatching | None:
    """What of our batching Triton has a word for."""
    if config.batching.policy == "single":
        return None
    delays = config.batching.policy == "delay"
    prioritised = config.priority_levels > 1 or bool(config.queue.levels)
    return mc.ModelDynamicBatching(
        preferred_batch_size=config.batching.preferred_sizes or (),
        max_queue_delay_microseconds=min(config.batching.delay_us, UINT64) if delays else 0,
        priority_levels=min(config.priority_levels, UINT64) if prioritised else 0,
        default_priority_level=min(config.default_level, UINT64) if prioritised else 0,
        default_queue_policy=_default_policy(config, prioritised=prioritised),
        priority_queue_policy=dict(_level_policies(config.queue)) if prioritised else None,
    )


def _default_policy(config: ModelConfig, *, prioritised: bool) -> mc.ModelQueuePolicy:
    queue = config.queue
    return mc.ModelQueuePolicy(
        timeout_action=queue.on_timeout.upper(),
        default_timeout_microseconds=round(min(queue.timeout_us or config.slo_ms * 1000, UINT64)),
        allow_timeout_override=queue.timeout_override,
        max_queue_size=min((queue.max_level_requests if prioritised else 0) or queue.max_requests, _UINT32),
    )


def _level_policies(queue: QueueConfig) -> Iterator[tuple[int, mc.ModelQueuePolicy]]:
    for level, own in queue.levels.items():
        yield int(level), _level_policy(queue, own)


def _level_policy(queue: QueueConfig, own: LevelConfig) -> mc.ModelQueuePolicy:
    override = queue.timeout_override if own.timeout_override is None else own.timeout_override
    timeout_us = queue.timeout_us if own.timeout_us is None else own.timeout_us
    most = queue.max_level_requests if own.max_level_requests is None else own.max_level_requests
    return mc.ModelQueuePolicy(
        timeout_action=(own.on_timeout or queue.on_timeout).upper(),
        default_timeout_microseconds=min(timeout_us, UINT64),
        allow_timeout_override=override,
        max_queue_size=min(most, _UINT32),
    )


def _warmup(data: WarmupData) -> mc.ModelWarmup:
    runs = data.runs if data.runs > 1 else 0
    made = mc.ModelWarmup(name=data.name, batch_size=min(data.rows, _UINT32), count=min(runs, _UINT32))
    for name, given in data.inputs.items():
        target = made.inputs[name]
        if given.datatype:
            target.MergeFrom(mc.ModelWarmup.Input(data_type=data_type(given.datatype)))
        target.dims.extend(given.dims or ())
        if given.file:
            target.input_data_file = given.file
        else:
            setattr(target, "random_data" if given.fill == "random" else "zero_data", True)
    return made
