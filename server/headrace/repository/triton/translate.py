"""From Triton's ModelConfig message to the settings of `model.toml`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headrace import settings_sources as sources
from headrace.errors import ConfigError
from headrace.repository.model_config import ModelConfig
from headrace.repository.triton.backend import read_backend
from headrace.repository.triton.fields import Refused, not_taken
from headrace.repository.triton.gpus import read_groups
from headrace.repository.triton.notes import Notes
from headrace.repository.triton.sequences import read_sequences
from headrace.rpc import model_config_pb2 as mc

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

Values = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Translation:
    """The settings, and what of the message has no effect: a line each."""

    config: ModelConfig
    warnings: tuple[str, ...]


def translate(message: mc.ModelConfig, name: str, origin: str, files: Collection[str] = ()) -> Translation:
    """The settings that `message` asks for.

    name: of the model. origin: for errors, where the message stands. files: in a version of the model, to tell the
    backend by where the message does not say. Raises ConfigError with a line for each problem.
    """
    notes = Notes()
    for where, decision in not_taken(message):
        if isinstance(decision, Refused):
            notes.wrong(where, f"not supported: {decision.why}")
        else:
            notes.ignored(where, f"ignored: {decision.why}")
    if message.name not in ("", name):
        notes.wrong(
            "name",
            f"unexpected directory name '{name}' for model '{message.name}', directory name must equal model name",
        )
    placed = read_groups(message, notes)
    values = _plain(message, notes)
    if placed.instances:
        values["instances"] = placed.instances
    values |= read_backend(message, files, placed, notes)
    values |= _tensors(message, notes)
    values |= _scheduling(message, notes)
    values |= read_sequences(message, notes)
    if message.HasField("ensemble_scheduling"):
        _make_ensemble(message, values, notes)
    warmup = [sample for entry in message.model_warmup for sample in _warmup(entry, notes)]
    if warmup:
        values["warmup_data"] = warmup
    config = None
    try:
        config = sources.build(ModelConfig, [sources.Source(values)])
    except ConfigError as error:
        notes.problems += str(error).splitlines()
    if config is None or notes.problems:
        raise ConfigError("\n".join(f"{origin}: {problem}" for problem in notes.problems))
    return Translation(config, tuple(notes.warnings))


def completes_itself(message: mc.ModelConfig) -> bool:
    """Whether the rest is to be taken from the model file: Triton looks there if inputs or outputs are not given."""
    return not (message.input and message.output)


def _plain(message: mc.ModelConfig, notes: Notes) -> Values:
    values: Values = {}
    if message.max_batch_size < 0:
        notes.wrong("max_batch_size", f"{message.max_batch_size}, expected 0 or more")
    elif message.max_batch_size or not completes_itself(message):
        values["max_batch"] = message.max_batch_size
    policy = message.version_policy
    chosen = policy.WhichOneof("policy_choice")
    if chosen == "latest":
        values["versions"] = f"latest:{policy.latest.num_versions or 1}"
    elif chosen == "specific":
        values["versions"] = list(policy.specific.versions)
    elif message.HasField("version_policy"):
        values["versions"] = "all"
    if message.response_cache.enable:
        values["response_cache"] = True
    return values


# --- inputs and outputs -----------------------------------------------------------------------------------------------


def _tensors(message: mc.ModelConfig, notes: Notes) -> Values:
    values: Values = {}
    if message.input:
        values["inputs"] = inputs = {}
        for kind, tensor in _named("input", message.input, notes):
            inputs[tensor.name] = _tensor(kind, tensor, notes)
            if tensor.format:
                inputs[tensor.name]["format"] = mc.ModelInput.Format.Name(tensor.format).removeprefix("FORMAT_")
    if message.output:
        values["outputs"] = outputs = {}
        for kind, tensor in _named("output", message.output, notes):
            outputs[tensor.name] = _tensor(kind, tensor, notes)
            if tensor.label_filename:
                outputs[tensor.name]["labels"] = tensor.label_filename
        values["serve_outputs"] = list(outputs)
    if completes_itself(message):
        values["unit_dims"] = True
    return values


def _named(kind: str, tensors: Iterable[Any], notes: Notes) -> Iterable[tuple[str, Any]]:
    seen = set()
    for at, tensor in enumerate(tensors):
        where = f"{kind}[{tensor.name or at}]"
        if not tensor.name:
            notes.wrong(where, f"model {kind} must specify 'name'")
        elif tensor.name in seen:
            notes.wrong(where, "is there twice")
        else:
            seen.add(tensor.name)
            yield where, tensor


def _tensor(where: str, tensor: Any, notes: Notes) -> Values:  # noqa: ANN401
    values: Values = {}
    if tensor.data_type:
        values["datatype"] = datatype_of(tensor.data_type)
    else:
        notes.wrong(where, "must specify 'data_type'")
    if tensor.dims:
        values["dims"] = list(tensor.dims)
    else:
        notes.wrong(where, "must specify 'dims'; [ 1 ] with reshape { shape: [ ] } is a tensor of batch size alone")
    if tensor.HasField("reshape"):
        values["reshape"] = list(tensor.reshape.shape)
    return values


def datatype_of(number: int) -> str:
    """The protocol's name of a DataType."""
    name = mc.DataType.Name(number).removeprefix("TYPE_")
    return "BYTES" if name == "STRING" else name


# --- scheduling -------------------------------------------------------------------------------------------------------


def _scheduling(message: mc.ModelConfig, notes: Notes) -> Values:
    if not message.HasField("dynamic_batching"):
        if completes_itself(message) or message.max_batch_size <= 1 or message.WhichOneof("scheduling_choice"):
            return {}
        notes.ignored(
            "dynamic_batching",
            "not given, so that each request runs alone, as in Triton; `dynamic_batching { }` has them share batches",
        )
        return {"batching": {"policy": "single"}}
    dynamic = message.dynamic_batching
    values: Values = {"batching": {}, "queue": {}}
    if dynamic.max_queue_delay_microseconds:
        values["batching"] |= {"policy": "delay", "delay_us": dynamic.max_queue_delay_microseconds}
    if dynamic.preferred_batch_size:
        values["batching"]["preferred_sizes"] = sorted(set(dynamic.preferred_batch_size))
    if dynamic.HasField("default_queue_policy"):
        values["queue"] = _queue_policy(dynamic.default_queue_policy)
        if dynamic.priority_levels <= 1 and "max_level_requests" in values["queue"]:
            values["queue"]["max_requests"] = values["queue"].pop("max_level_requests")
    if dynamic.priority_levels:
        values |= {"priority_levels": dynamic.priority_levels, "default_priority": dynamic.default_priority_level}
        if not dynamic.default_priority_level:
            notes.wrong(
                "dynamic_batching.default_priority_level",
                f"default priority level must be in range [1, {dynamic.priority_levels}]",
            )
        levels = sorted(dynamic.priority_queue_policy.items())
        values["queue"]["levels"] = {str(level): _queue_policy(policy, whole=True) for level, policy in levels}
    elif dynamic.default_priority_level or dynamic.priority_queue_policy:
        notes.ignored("dynamic_batching.priority_levels", "not given, so that what is said of levels is ignored")
    return {key: value for key, value in values.items() if value != {}}


def _queue_policy(policy: mc.ModelQueuePolicy, *, whole: bool = False) -> Values:
    """whole: with what is at its default too, for a level that takes nothing from the policy of all."""
    values: Values = {"timeout_override": policy.allow_timeout_override}
    if policy.default_timeout_microseconds or whole:
        values["timeout_us"] = policy.default_timeout_microseconds
    if policy.timeout_action == mc.ModelQueuePolicy.DELAY or whole:
        values["on_timeout"] = mc.ModelQueuePolicy.TimeoutAction.Name(policy.timeout_action).lower()
    if policy.max_queue_size or whole:
        values["max_level_requests"] = policy.max_queue_size
    return values


def _make_ensemble(message: mc.ModelConfig, values: Values, notes: Notes) -> None:
    """Changes the settings of a model into those of an ensemble."""
    values["max_batch"] = message.max_batch_size
    values.pop("unit_dims", None)
    steps = [
        {
            "model": step.model_name,
            "version": max(step.model_version, 0),  # -1: the newest
            "inputs": dict(sorted(step.input_map.items())),
            "outputs": dict(sorted(step.output_map.items())),
        }
        for step in message.ensemble_scheduling.step
    ]
    if not steps:
        notes.wrong("ensemble_scheduling", "must specify 'step'")
    values["ensemble"] = {"steps": steps, "outputs": values.pop("serve_outputs", [])}
    if values.pop("response_cache", False):
        notes.ignored("response_cache", "ignored: replies of an ensemble are not kept, those of its models may be")


# --- warm-up ----------------------------------------------------------------------------------------------------------


def _warmup(entry: mc.ModelWarmup, notes: Notes) -> Iterable[Values]:
    if not entry.batch_size:
        notes.ignored(f"model_warmup[{entry.name}]", "ignored, as in Triton: batch_size is 0")
        return
    values: Values = {"rows": entry.batch_size, "inputs": {}}
    if entry.name:
        values["name"] = entry.name
    if entry.count > 1:
        values["runs"] = entry.count
    for name, given in sorted(entry.inputs.items()):
        where = f"model_warmup[{entry.name}].inputs[{name}]"
        made: Values = {}
        if given.data_type:
            made["datatype"] = datatype_of(given.data_type)
        if given.dims:
            made["dims"] = list(given.dims)
        source = given.WhichOneof("input_data_type")
        if source is None:
            notes.wrong(where, "must specify 'zero_data', 'random_data' or 'input_data_file'")
        elif source == "random_data":
            made["fill"] = "random"
        elif source == "input_data_file":
            made["file"] = given.input_data_file
        values["inputs"][name] = made
    yield values
