"""From Triton's `sequence_batching` to `[sequence]` and `[batching]` of model.toml; `SequenceConfig` has the terms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headrace.rpc import model_config_pb2 as mc

if TYPE_CHECKING:
    from headrace.repository.triton.notes import Notes

Values = dict[str, Any]

_KINDS = {
    mc.ModelSequenceBatching.Control.CONTROL_SEQUENCE_START: "start",
    mc.ModelSequenceBatching.Control.CONTROL_SEQUENCE_END: "end",
    mc.ModelSequenceBatching.Control.CONTROL_SEQUENCE_READY: "ready",
    mc.ModelSequenceBatching.Control.CONTROL_SEQUENCE_CORRID: "corrid",
}


def read_sequences(message: mc.ModelConfig, notes: Notes) -> Values:
    """The settings that `sequence_batching` asks for; none if it is not there."""
    if not message.HasField("sequence_batching"):
        return {}
    batching = message.sequence_batching
    oldest = batching.WhichOneof("strategy_choice") == "oldest"
    sequence: Values = {"strategy": "oldest" if oldest else "direct"}
    if batching.max_sequence_idle_microseconds:
        sequence["idle_timeout_ms"] = batching.max_sequence_idle_microseconds / 1000
    if oldest:
        rows = max(message.max_batch_size, 1)
        sequence["max_candidate_sequences"] = max(batching.oldest.max_candidate_sequences or rows, 1)
    controls = _controls(batching, notes)
    if controls:
        sequence["controls"] = controls
    sequence["state"] = [_state(state, notes) for state in batching.state]
    values: Values = {"sequence": sequence}
    chosen = batching.oldest if oldest else batching.direct
    batches: Values = {}
    if chosen.max_queue_delay_microseconds:
        batches |= {"policy": "delay", "delay_us": chosen.max_queue_delay_microseconds}
    if oldest and batching.oldest.preferred_batch_size:
        batches["preferred_sizes"] = sorted(set(batching.oldest.preferred_batch_size))
    return values | ({"batching": batches} if batches else {})


def _controls(batching: mc.ModelSequenceBatching, notes: Notes) -> Values:
    controls: Values = {}
    for given in batching.control_input:
        for control in given.control:
            kind = _KINDS[control.kind]
            where = f"sequence_batching.control_input[{given.name}]"
            if kind in controls:
                notes.wrong(where, f"a second input for the control '{kind}'")
            made: Values = {"input": given.name}
            pairs = (control.int32_false_true, control.fp32_false_true, control.bool_false_true)
            for pair in (list(pair) for pair in pairs if pair):
                if kind == "corrid" or len(pair) != 2 or "false_true" in made:
                    notes.wrong(where, f"control '{kind}' takes one pair of values, false and true; corrid takes none")
                made["false_true"] = pair
            if kind != "corrid" and "false_true" not in made:
                notes.wrong(where, f"control '{kind}' must specify one of its pairs of values, false and true")
            controls[kind] = made
    return controls


def _state(state: mc.ModelSequenceBatching.State, notes: Notes) -> Values:
    values: Values = {"input": state.input_name, "output": state.output_name}
    if len(state.initial_state) > 1:
        notes.wrong(f"sequence_batching.state[{state.input_name}]", "more than one initial_state")
    for initial in state.initial_state[:1]:
        if initial.WhichOneof("state_data") == "data_file":
            values["initial"] = f"initial_state/{initial.data_file}"
        if initial.dims:
            values["initial_dims"] = list(initial.dims)
    return values
