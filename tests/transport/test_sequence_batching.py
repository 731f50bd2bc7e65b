from pathlib import Path

import pytest

from headrace.engine.sequence_plan import plan_sequences
from headrace.messages import Signature, TensorSpec
from headrace.repository.model_config import BatchingConfig, ModelConfig
from headrace.repository.sequence_config import (
    SequenceConfig,
    SequenceControl,
    SequenceControls,
    SequenceIdControl,
    SequenceState,
)
from headrace.rpc import model_config_pb2 as mc
from headrace.transport.sequence_batching import sequence_batching

Control = mc.ModelSequenceBatching.Control
MODEL = Signature(
    (
        TensorSpec("x", "FP32", (3,)),
        TensorSpec("hidden", "FP32", (2, -1)),
        TensorSpec("start", "INT32", (1,)),
        TensorSpec("end", "BOOL", (1,)),
        TensorSpec("ready", "FP16", (1,)),
        TensorSpec("id", "BYTES", (1,)),
    ),
    (TensorSpec("y", "FP32", (1,)), TensorSpec("next", "FP32", (2, -1))),
    8,
)
CONTROLS = SequenceControls(
    start=SequenceControl(input="start", false_true=(-1, 1)),
    end=SequenceControl(input="end"),
    ready=SequenceControl(input="ready", false_true=(0, 0.5)),
    corrid=SequenceIdControl(input="id"),
)


def described(directory=Path(), batching=None, **config):
    model = ModelConfig(sequence=SequenceConfig(**config), batching=batching or BatchingConfig())
    return sequence_batching(model, plan_sequences(model.sequence, MODEL, 1, directory))


def test_controls():
    found = {control.name: control.control for control in described(controls=CONTROLS).control_input}
    assert found == {
        "start": [Control(kind=Control.CONTROL_SEQUENCE_START, int32_false_true=[-1, 1])],
        "end": [Control(kind=Control.CONTROL_SEQUENCE_END, bool_false_true=[False, True])],
        "ready": [Control(kind=Control.CONTROL_SEQUENCE_READY, fp32_false_true=[0, 0.5])],
        "id": [Control(kind=Control.CONTROL_SEQUENCE_CORRID, data_type=mc.TYPE_STRING)],
    }


def test_states(tmp_path):
    (tmp_path / "begin").write_bytes(bytes(24))
    state = SequenceState(input="hidden", output="next", initial="begin", initial_dims=[2, 3])
    (found,) = described(tmp_path, state=[state]).state
    assert (found.input_name, found.output_name, found.data_type, list(found.dims)) == (
        "hidden", "next", mc.TYPE_FP32, [2, -1],
    )  # fmt: skip
    (initial,) = found.initial_state
    assert (initial.name, initial.data_type, list(initial.dims)) == ("hidden", mc.TYPE_FP32, [2, 3])
    assert (initial.WhichOneof("state_data"), initial.data_file) == ("data_file", "begin")
    (found,) = described(state=[SequenceState(input="hidden", output="next")]).state
    assert (list(found.initial_state[0].dims), found.initial_state[0].zero_data) == ([2, 1], True)


@pytest.mark.parametrize("policy", ["slot", "delay"])
def test_strategies(policy):
    batching = BatchingConfig(policy=policy, delay_us=500, preferred_sizes=[2, 4])
    delay = 500 if policy == "delay" else 0
    oldest = described(batching=batching, max_candidate_sequences=5, idle_timeout_ms=2.5)
    assert oldest.max_sequence_idle_microseconds == 2500
    assert described(idle_timeout_ms=1e18).max_sequence_idle_microseconds == 2**64 - 1  # as good as never
    assert oldest.WhichOneof("strategy_choice") == "oldest"
    assert oldest.oldest == mc.ModelSequenceBatching.StrategyOldest(
        max_candidate_sequences=5, preferred_batch_size=[2, 4], max_queue_delay_microseconds=delay
    )
    direct = described(batching=batching, strategy="direct")
    assert direct.WhichOneof("strategy_choice") == "direct"
    assert direct.direct.max_queue_delay_microseconds == delay
    assert direct.direct.minimum_slot_utilization == bool(delay)
