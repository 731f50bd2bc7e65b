"""What becomes of each field that a `config.pbtxt` may set: taken, ignored with a warning, or refused with an error.

Keys are the messages and fields of protos/headrace/rpc/model_config.proto. A field that is ignored or refused is so
whole; a test sees to it that all others have an entry. What of a taken field is refused or ignored by its value, its
translation says (`translate.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from google.protobuf.descriptor import FieldDescriptor
    from google.protobuf.message import Message


@dataclass(frozen=True, slots=True)
class Taken:
    """It has its effect, by way of the settings of model.toml, or is for clients to read in ModelConfig."""


@dataclass(frozen=True, slots=True)
class Ignored:
    """It has none, which changes no answer; why."""

    why: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The model cannot be served with it; why, and what to do."""

    why: str


Decision = Taken | Ignored | Refused

TAKEN = Taken()
PINNED = "tensors reach a GPU and come back through page-locked memory in any case"
TENSORRT_ONLY = "only TensorRT plans have it, and it is not used of those; leave it out"

DECISIONS: dict[str, Decision] = {
    "ModelConfig.name": TAKEN,
    "ModelConfig.platform": TAKEN,
    "ModelConfig.backend": TAKEN,
    "ModelConfig.runtime": Ignored("it names a library of Triton's"),
    "ModelConfig.version_policy": TAKEN,
    "ModelConfig.max_batch_size": TAKEN,
    "ModelConfig.input": TAKEN,
    "ModelConfig.output": TAKEN,
    "ModelConfig.batch_input": Refused("inputs that are made from the batch; have the model compute them"),
    "ModelConfig.batch_output": Refused("outputs that depend on the batch; have the model compute them"),
    "ModelConfig.optimization": TAKEN,
    "ModelConfig.dynamic_batching": TAKEN,
    "ModelConfig.sequence_batching": TAKEN,
    "ModelConfig.ensemble_scheduling": TAKEN,
    "ModelConfig.instance_group": TAKEN,
    "ModelConfig.default_model_filename": TAKEN,
    "ModelConfig.cc_model_filenames": Ignored("it picks a file by the GPU; all run default_model_filename"),
    "ModelConfig.metric_tags": Ignored("metrics have the labels model and version"),
    "ModelConfig.parameters": TAKEN,
    "ModelConfig.model_warmup": TAKEN,
    "ModelConfig.model_operations": TAKEN,
    "ModelConfig.model_transaction_policy": TAKEN,
    "ModelConfig.model_repository_agents": Refused(
        "agents that check or change the model before it is loaded; do so before it is put into the repository"
    ),
    "ModelConfig.response_cache": TAKEN,
    "ModelConfig.model_metrics": Ignored("the histograms have the same buckets for all models"),
    # inputs and outputs
    "ModelInput.name": TAKEN,
    "ModelInput.data_type": TAKEN,
    "ModelInput.format": TAKEN,
    "ModelInput.dims": TAKEN,
    "ModelInput.reshape": TAKEN,
    "ModelInput.is_shape_tensor": Refused(f"a shape tensor: {TENSORRT_ONLY}"),
    "ModelInput.allow_ragged_batch": Refused(
        "a ragged batch; without it, requests whose dimensions differ run in batches of their own, or padded in common "
        "ones by `buckets` of a model.toml"
    ),
    "ModelInput.optional": Refused(
        "optional inputs; leave the whole input out where the model file has a value for it, which then holds"
    ),
    "ModelInput.is_non_linear_format_io": Refused(f"a non-linear format: {TENSORRT_ONLY}"),
    "ModelOutput.name": TAKEN,
    "ModelOutput.data_type": TAKEN,
    "ModelOutput.dims": TAKEN,
    "ModelOutput.reshape": TAKEN,
    "ModelOutput.label_filename": TAKEN,
    "ModelOutput.is_shape_tensor": Refused(f"a shape tensor: {TENSORRT_ONLY}"),
    "ModelOutput.is_non_linear_format_io": Refused(f"a non-linear format: {TENSORRT_ONLY}"),
    "ModelTensorReshape.shape": TAKEN,
    # versions and instances
    "ModelVersionPolicy.latest": TAKEN,
    "ModelVersionPolicy.all": TAKEN,
    "ModelVersionPolicy.specific": TAKEN,
    "ModelVersionPolicy.Latest.num_versions": TAKEN,
    "ModelVersionPolicy.Specific.versions": TAKEN,
    "ModelInstanceGroup.name": TAKEN,
    "ModelInstanceGroup.kind": TAKEN,
    "ModelInstanceGroup.count": TAKEN,
    "ModelInstanceGroup.gpus": TAKEN,
    "ModelInstanceGroup.profile": Refused(f"optimization profiles: {TENSORRT_ONLY}"),
    "ModelInstanceGroup.rate_limiter": Ignored("instances do not wait for one another, as in Triton by default"),
    "ModelInstanceGroup.passive": Refused("instances that take no requests; leave the group out"),
    "ModelInstanceGroup.secondary_devices": Ignored("the accelerator tensorrt has trt_dla_enable and trt_dla_core"),
    "ModelInstanceGroup.host_policy": Ignored("instances are not bound to cores"),
    # scheduling
    "ModelDynamicBatching.preferred_batch_size": TAKEN,
    "ModelDynamicBatching.max_queue_delay_microseconds": TAKEN,
    "ModelDynamicBatching.preserve_ordering": Ignored(
        "replies are not held back for one another; with one instance, requests without deadlines are answered in order"
    ),
    "ModelDynamicBatching.priority_levels": TAKEN,
    "ModelDynamicBatching.default_priority_level": TAKEN,
    "ModelDynamicBatching.default_queue_policy": TAKEN,
    "ModelDynamicBatching.priority_queue_policy": TAKEN,
    "ModelQueuePolicy.timeout_action": TAKEN,
    "ModelQueuePolicy.default_timeout_microseconds": TAKEN,
    "ModelQueuePolicy.allow_timeout_override": TAKEN,
    "ModelQueuePolicy.max_queue_size": TAKEN,
    "ModelSequenceBatching.max_sequence_idle_microseconds": TAKEN,
    "ModelSequenceBatching.control_input": TAKEN,
    "ModelSequenceBatching.direct": TAKEN,
    "ModelSequenceBatching.oldest": TAKEN,
    "ModelSequenceBatching.state": TAKEN,
    "ModelSequenceBatching.iterative_sequence": Refused("a request that is run again and again; loop inside the model"),
    "ModelSequenceBatching.ControlInput.name": TAKEN,
    "ModelSequenceBatching.ControlInput.control": TAKEN,
    "ModelSequenceBatching.Control.kind": TAKEN,
    "ModelSequenceBatching.Control.int32_false_true": TAKEN,
    "ModelSequenceBatching.Control.fp32_false_true": TAKEN,
    "ModelSequenceBatching.Control.bool_false_true": TAKEN,
    "ModelSequenceBatching.Control.data_type": Ignored("the id of a sequence has the datatype of the model's input"),
    "ModelSequenceBatching.StrategyDirect.max_queue_delay_microseconds": TAKEN,
    "ModelSequenceBatching.StrategyDirect.minimum_slot_utilization": Ignored(
        "a delay lasts to its end, or until the batch is full"
    ),
    "ModelSequenceBatching.StrategyOldest.max_candidate_sequences": TAKEN,
    "ModelSequenceBatching.StrategyOldest.preferred_batch_size": TAKEN,
    "ModelSequenceBatching.StrategyOldest.max_queue_delay_microseconds": TAKEN,
    "ModelSequenceBatching.StrategyOldest.preserve_ordering": Ignored(
        "the replies of a sequence are in order, and wait for no other's"
    ),
    "ModelSequenceBatching.State.input_name": TAKEN,
    "ModelSequenceBatching.State.output_name": TAKEN,
    "ModelSequenceBatching.State.data_type": Ignored("it is that of the model's tensor"),
    "ModelSequenceBatching.State.dims": Ignored("they are those of the model's tensor"),
    "ModelSequenceBatching.State.initial_state": TAKEN,
    "ModelSequenceBatching.State.use_same_buffer_for_input_output": Ignored("it is a hint"),
    "ModelSequenceBatching.State.use_growable_memory": Ignored("it is a hint, for GPUs"),
    "ModelSequenceBatching.InitialState.name": TAKEN,
    "ModelSequenceBatching.InitialState.data_type": Ignored("it is that of the model's tensor"),
    "ModelSequenceBatching.InitialState.dims": TAKEN,
    "ModelSequenceBatching.InitialState.zero_data": TAKEN,
    "ModelSequenceBatching.InitialState.data_file": TAKEN,
    "ModelEnsembling.step": TAKEN,
    "ModelEnsembling.max_inflight_responses": Ignored("each step gives one response"),
    "ModelEnsembling.Step.model_name": TAKEN,
    "ModelEnsembling.Step.model_version": TAKEN,
    "ModelEnsembling.Step.input_map": TAKEN,
    "ModelEnsembling.Step.output_map": TAKEN,
    "ModelEnsembling.Step.model_namespace": Refused("models have one name in the whole repository; leave it out"),
    # optimisation
    "ModelOptimizationPolicy.graph": TAKEN,
    "ModelOptimizationPolicy.Graph.level": TAKEN,
    "ModelOptimizationPolicy.priority": Ignored("it is between TensorRT models"),
    "ModelOptimizationPolicy.cuda": Ignored("it is for TensorRT plans; the accelerator cuda has enable_cuda_graph"),
    "ModelOptimizationPolicy.execution_accelerators": TAKEN,
    "ModelOptimizationPolicy.ExecutionAccelerators.gpu_execution_accelerator": TAKEN,
    "ModelOptimizationPolicy.ExecutionAccelerators.Accelerator.name": TAKEN,
    "ModelOptimizationPolicy.ExecutionAccelerators.Accelerator.parameters": TAKEN,
    "ModelOptimizationPolicy.ExecutionAccelerators.cpu_execution_accelerator": Ignored(
        "models run on ONNX Runtime's own CPU provider"
    ),
    "ModelOptimizationPolicy.input_pinned_memory": Ignored(PINNED),
    "ModelOptimizationPolicy.output_pinned_memory": Ignored(PINNED),
    "ModelOptimizationPolicy.gather_kernel_buffer_threshold": Ignored("inputs are gathered by the CPU"),
    "ModelOptimizationPolicy.eager_batching": Ignored("a batch is formed when an instance is idle"),
    # the rest
    "ModelParameter.string_value": TAKEN,
    "ModelWarmup.name": TAKEN,
    "ModelWarmup.batch_size": TAKEN,
    "ModelWarmup.inputs": TAKEN,
    "ModelWarmup.count": TAKEN,
    "ModelWarmup.Input.data_type": TAKEN,
    "ModelWarmup.Input.dims": TAKEN,
    "ModelWarmup.Input.zero_data": TAKEN,
    "ModelWarmup.Input.random_data": TAKEN,
    "ModelWarmup.Input.input_data_file": TAKEN,
    "ModelOperations.op_library_filename": TAKEN,
    "ModelTransactionPolicy.decoupled": Refused("a decoupled model; ONNX models give one reply to each request"),
    "ModelResponseCache.enable": TAKEN,
}


def decision_of(field: FieldDescriptor) -> Decision:
    """What becomes of a field. Raises KeyError for one that nobody has decided upon."""
    return DECISIONS[field.full_name.removeprefix("inference.")]


def not_taken(message: Message, path: str = "") -> Iterator[tuple[str, Ignored | Refused]]:
    """What is set in `message` and ignored or refused, with its path, such as `input[x].is_shape_tensor`."""
    for field, value in message.ListFields():
        where = f"{path}.{field.name}" if path else field.name
        decision = decision_of(field)
        if not isinstance(decision, Taken):
            yield where, decision
        elif field.message_type is not None and not _is_map_of_values(field):
            for label, element in _elements(field, value):
                yield from not_taken(element, where + label)


def _is_map_of_values(field: FieldDescriptor) -> bool:
    """Whether its elements are no messages, so that there is nothing to decide upon in them."""
    entry = field.message_type
    return entry is not None and entry.GetOptions().map_entry and entry.fields_by_name["value"].message_type is None


def _elements(field: FieldDescriptor, value: Any) -> Iterable[tuple[str, Message]]:  # noqa: ANN401
    """The messages of a field, each with what tells it from the others."""
    assert field.message_type is not None
    if field.message_type.GetOptions().map_entry:
        return [(f"[{key}]", element) for key, element in value.items()]
    if field.is_repeated:
        return [(f"[{getattr(element, 'name', '') or at}]", element) for at, element in enumerate(value)]
    return [("", value)]
