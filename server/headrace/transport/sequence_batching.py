"""`[sequence]` of model.toml in Triton's terms, for ModelConfig; `SequenceConfig` documents the other direction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headrace.rpc import model_config_pb2 as mc

if TYPE_CHECKING:
    from headrace.engine.sequence_plan import SequencePlan
    from headrace.messages import TensorSpec
    from headrace.repository.model_config import BatchingConfig, ModelConfig
    from headrace.repository.sequence_config import SequenceConfig, SequenceControl, SequenceState

_Sequences = mc.ModelSequenceBatching

UINT64 = (1 << 64) - 1
"""What such a field holds at most: our settings have no bounds, and may be larger."""


def data_type(datatype: str) -> str:
    """Triton's name of a datatype."""
    return "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"


def sequence_batching(model: ModelConfig, plan: SequencePlan) -> mc.ModelSequenceBatching:
    """How the sequences of a stateful model are served."""
    config = model.sequence
    assert config is not None
    controls = config.controls
    flags = (
        (_Sequences.Control.CONTROL_SEQUENCE_START, controls.start),
        (_Sequences.Control.CONTROL_SEQUENCE_END, controls.end),
        (_Sequences.Control.CONTROL_SEQUENCE_READY, controls.ready),
    )
    specs = {spec.name: spec for spec in plan.extra}
    inputs = [
        _Sequences.ControlInput(name=control.input, control=[_flag(kind, control, specs[control.input])])
        for kind, control in flags
        if control is not None
    ]
    if plan.id_input is not None:
        kind = _Sequences.Control.CONTROL_SEQUENCE_CORRID
        control = _Sequences.Control(kind=kind, data_type=data_type(plan.id_input.datatype))
        inputs.append(_Sequences.ControlInput(name=plan.id_input.name, control=[control]))
    return _Sequences(
        max_sequence_idle_microseconds=round(min(config.idle_timeout_ms * 1000, UINT64)),
        control_input=inputs,
        direct=_direct(model.batching) if config.strategy == "direct" else None,
        oldest=_oldest(model.batching, config) if config.strategy == "oldest" else None,
        state=[_state(state, plan, at) for at, state in enumerate(config.state)],
    )


def _direct(batching: BatchingConfig) -> mc.ModelSequenceBatching.StrategyDirect:
    if batching.policy != "delay":
        return _Sequences.StrategyDirect()
    return _Sequences.StrategyDirect(
        max_queue_delay_microseconds=min(batching.delay_us, UINT64), minimum_slot_utilization=1
    )


def _oldest(batching: BatchingConfig, config: SequenceConfig) -> mc.ModelSequenceBatching.StrategyOldest:
    return _Sequences.StrategyOldest(
        max_candidate_sequences=config.max_candidate_sequences,
        preferred_batch_size=batching.preferred_sizes or (),
        max_queue_delay_microseconds=min(batching.delay_us, UINT64) if batching.policy == "delay" else 0,
    )


def _flag(kind: int, control: SequenceControl, spec: TensorSpec) -> mc.ModelSequenceBatching.Control:
    """Triton has words for INT32, FP32 and BOOL; those of other datatypes are given as the nearest of them."""
    values: dict[str, Any]
    if spec.datatype == "BOOL":
        values = {"bool_false_true": map(bool, control.false_true)}
    elif spec.datatype.startswith("FP"):
        values = {"fp32_false_true": control.false_true}
    else:
        values = {"int32_false_true": map(int, control.false_true)}
    return _Sequences.Control(kind=kind, **values)  # type: ignore[arg-type]


def _state(state: SequenceState, plan: SequencePlan, at: int) -> mc.ModelSequenceBatching.State:
    before, _ = plan.states[at]
    shape = plan.initial.shapes[at]
    initial = _Sequences.InitialState(
        name=state.input, data_type=data_type(before.datatype), dims=shape[len(shape) - len(before.shape) :]
    )
    if state.initial == "zero":
        initial.zero_data = True
    else:
        initial.data_file = state.initial
    return _Sequences.State(
        input_name=state.input,
        output_name=state.output,
        data_type=data_type(before.datatype),
        dims=before.shape,
        initial_state=[initial],
    )
