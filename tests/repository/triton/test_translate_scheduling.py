"""When requests run, and what runs before and after them: queues, ensembles, warm-up, sequences."""

import pytest
from repository.triton.translating import problems, settings, translated, warnings

from headrace.repository.model_config import ModelConfig
from headrace.repository.sequence_config import SequenceState

# --- scheduling -------------------------------------------------------------------------------------------------------


def test_requests_run_alone_where_triton_would_run_them_so():
    found = translated("max_batch_size: 8")
    assert found.config.batching.policy == "single"
    (warning,) = found.warnings
    assert warning.startswith("dynamic_batching: not given, so that each request runs alone, as in Triton")
    for text in ("max_batch_size: 8 dynamic_batching { }", "max_batch_size: 1"):
        found = translated(text)
        assert (found.config.batching.policy, found.warnings) == ("slot", ())


def test_delay_and_preferred_sizes():
    text = "max_batch_size: 8 dynamic_batching { preferred_batch_size: [ 8, 2, 8 ] max_queue_delay_microseconds: 100 }"
    assert settings(text)["batching"] == {"policy": "delay", "delay_us": 100, "preferred_sizes": (2, 8)}
    (problem,) = problems("max_batch_size: 4 dynamic_batching { preferred_batch_size: [ 8 ] }")
    assert problem == "batching.preferred_sizes has 8, which is above max_batch = 4"


def policy(text):
    return settings(f"dynamic_batching {{ {text} }}").get("queue", {})


def test_the_policy_of_all():
    text = "default_queue_policy { default_timeout_microseconds: 500 timeout_action: DELAY max_queue_size: 7 }"
    assert policy(text) == {
        "timeout_override": False,
        "timeout_us": 500,
        "on_timeout": "delay",
        "max_requests": 7,
    }
    assert policy("default_queue_policy { allow_timeout_override: true }") == {}
    assert policy("") == {}


def test_the_policies_of_levels_take_nothing_from_that_of_all():
    text = """
        priority_levels: 3 default_priority_level: 2
        default_queue_policy { max_queue_size: 7 allow_timeout_override: true }
        priority_queue_policy { key: 3 value { default_timeout_microseconds: 9 } }
        priority_queue_policy { key: 1 value { timeout_action: DELAY max_queue_size: 2 allow_timeout_override: true } }
    """
    config = translated(f"dynamic_batching {{ {text} }}").config
    assert (config.priority_levels, config.default_level) == (3, 2)
    assert (config.queue.max_requests, config.queue.max_level_requests) == (4096, 7)
    assert {level: own.model_dump() for level, own in config.queue.levels.items()} == {
        "1": {"timeout_us": 0, "on_timeout": "delay", "timeout_override": True, "max_level_requests": 2},
        "3": {"timeout_us": 9, "on_timeout": "reject", "timeout_override": False, "max_level_requests": 0},
    }


def test_levels_that_are_not_there():
    (problem,) = problems("dynamic_batching { priority_levels: 2 }")
    assert problem == ("dynamic_batching.default_priority_level: default priority level must be in range [1, 2]")
    assert problems("dynamic_batching { priority_levels: 2 default_priority_level: 3 }") == [
        "default_priority = 3 is above priority_levels = 2"
    ]
    text = "priority_levels: 2 default_priority_level: 1 priority_queue_policy { key: 3 value { max_queue_size: 1 } }"
    assert problems(f"dynamic_batching {{ {text} }}") == ["queue.levels.3 is above priority_levels = 2"]
    (warning,) = warnings("dynamic_batching { default_priority_level: 1 }")
    assert warning.startswith("dynamic_batching.priority_levels: not given")


# --- ensembles --------------------------------------------------------------------------------------------------------

STEPS = """
    ensemble_scheduling {
      step [ { model_name: "a" model_version: -1 input_map { key: "x" value: "x" } output_map { key: "o" value: "t" } },
             { model_name: "b" model_version: 3 input_map { key: "i" value: "t" } output_map { key: "o" value: "y" } } ]
    }
"""


def test_ensembles():
    found = translated('platform: "ensemble" max_batch_size: 4' + STEPS)
    values = found.config.model_dump(exclude_defaults=True)
    assert values["ensemble"] == {
        "steps": (
            {"model": "a", "inputs": {"x": "x"}, "outputs": {"o": "t"}},
            {"model": "b", "version": 3, "inputs": {"i": "t"}, "outputs": {"o": "y"}},
        ),
        "outputs": ("y",),
    }
    assert values["max_batch"] == 4
    assert set(values) == {"max_batch", "ensemble", "inputs", "outputs"}
    assert found.warnings == ()
    assert translated('platform: "ensemble"' + STEPS, tensors="").config.max_batch == 0


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ('platform: "ensemble" ensemble_scheduling { }', "ensemble_scheduling: must specify 'step'"),
        (STEPS, "platform: an ensemble must have platform 'ensemble'"),
        ('platform: "ensemble" backend: "onnxruntime"' + STEPS, "platform: an ensemble must have platform 'ensemble'"),
        ('platform: "ensemble" instance_group { }' + STEPS, "instance_group: an ensemble cannot have it"),
        ('platform: "ensemble" optimization { }' + STEPS, "optimization: an ensemble cannot have it"),
        ('platform: "ensemble" model_warmup { batch_size: 1 }' + STEPS, "model_warmup: an ensemble cannot have it"),
        (
            'platform: "ensemble" ensemble_scheduling { step { model_name: "a" model_namespace: "n" '
            'output_map { key: "o" value: "y" } } }',
            "ensemble_scheduling.step[0].model_namespace: not supported",
        ),
    ],
)
def test_bad_ensembles(text, field):
    (problem,) = problems(text)
    assert problem.startswith(field)


def test_what_an_ensemble_does_not_do():
    text = 'platform: "ensemble" response_cache { enable: true } default_model_filename: "x"'
    assert [line.partition(":")[0] for line in warnings(text + STEPS)] == ["default_model_filename", "response_cache"]


# --- warm-up ----------------------------------------------------------------------------------------------------------


def test_warm_up_requests():
    text = """
        model_warmup {
          name: "images" batch_size: 4 count: 3
          inputs { key: "x" value { data_type: TYPE_FP32 dims: [ 4 ] input_data_file: "x.bin" } }
          inputs { key: "s" value { data_type: TYPE_STRING dims: [ 1 ] random_data: false } }
        }
        model_warmup { batch_size: 1 inputs { key: "x" value { zero_data: true } } }
    """
    assert settings(text)["warmup_data"] == (
        {
            "name": "images",
            "rows": 4,
            "runs": 3,
            "inputs": {
                "s": {"datatype": "BYTES", "dims": (1,), "fill": "random"},
                "x": {"datatype": "FP32", "dims": (4,), "file": "x.bin"},
            },
        },
        {"inputs": {"x": {}}},
    )


def test_bad_warm_up_requests():
    (warning,) = warnings('model_warmup { name: "w" }')
    assert warning == "model_warmup[w]: ignored, as in Triton: batch_size is 0"
    (problem,) = problems('model_warmup { name: "w" batch_size: 1 inputs { key: "x" value { dims: 1 } } }')
    assert problem == "model_warmup[w].inputs[x]: must specify 'zero_data', 'random_data' or 'input_data_file'"
    (problem,) = problems('model_warmup { batch_size: 1 inputs { key: "x" value { input_data_file: "/etc/x" } } }')
    assert problem.startswith("warmup_data.0.inputs.x.file: '/etc/x' leaves the model's directory")


def test_the_least_is_nothing():
    assert translated("", tensors="").config == ModelConfig(unit_dims=True)


# --- sequences --------------------------------------------------------------------------------------------------------

CONTROLS = """
    control_input [
        { name: "START" control { kind: CONTROL_SEQUENCE_START fp32_false_true: [ 0, 1 ] } },
        { name: "END" control { kind: CONTROL_SEQUENCE_END int32_false_true: [ 5, 6 ] } },
        { name: "READY" control { kind: CONTROL_SEQUENCE_READY bool_false_true: [ false, true ] } },
        { name: "ID" control { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 } } ]
"""


def test_sequences():
    found = translated(
        "max_batch_size: 4 sequence_batching { max_sequence_idle_microseconds: 5000000 oldest { "
        "max_candidate_sequences: 9 preferred_batch_size: [ 4, 2 ] max_queue_delay_microseconds: 70 "
        "preserve_ordering: true } state { input_name: 's' output_name: 't' data_type: TYPE_FP32 dims: [ 2 ] "
        "initial_state { data_type: TYPE_FP32 dims: [ 2 ] data_file: 'begin' name: 'i' } }" + CONTROLS + "}"
    )
    sequence = found.config.sequence
    assert (sequence.strategy, sequence.idle_timeout_ms, sequence.max_candidate_sequences) == ("oldest", 5000.0, 9)
    assert sequence.state == (SequenceState(input="s", output="t", initial="initial_state/begin", initial_dims=(2,)),)
    controls = sequence.controls
    assert (controls.start.input, controls.start.false_true) == ("START", (0.0, 1.0))
    assert (controls.end.false_true, controls.ready.false_true) == ((5, 6), (False, True))
    assert controls.corrid.input == "ID"
    batching = found.config.batching
    assert (batching.policy, batching.delay_us, batching.preferred_sizes) == ("delay", 70, (2, 4))
    assert [line.partition(":")[0] for line in found.warnings] == [
        "sequence_batching.control_input[ID].control[0].data_type",
        "sequence_batching.oldest.preserve_ordering",
        "sequence_batching.state[0].data_type",
        "sequence_batching.state[0].dims",
        "sequence_batching.state[0].initial_state[i].data_type",
    ]


def test_sequences_with_nothing_said():
    config = translated("max_batch_size: 4 sequence_batching { }").config
    assert (config.sequence.strategy, config.sequence.idle_timeout_ms, config.batching.policy) == (
        "direct",
        1000.0,
        "slot",
    )
    assert translated("max_batch_size: 4 sequence_batching { oldest { } }").config.sequence.max_candidate_sequences == 4


@pytest.mark.parametrize(
    ("control", "text"),
    [
        ("kind: CONTROL_SEQUENCE_START", "must specify one of its pairs"),
        ("kind: CONTROL_SEQUENCE_START int32_false_true: 1", "takes one pair of values"),
        ("int32_false_true: [ 0, 1 ] fp32_false_true: [ 0, 1 ]", "takes one pair of values"),
        ("kind: CONTROL_SEQUENCE_CORRID int32_false_true: [ 0, 1 ]", "corrid takes none"),
    ],
)
def test_bad_controls(control, text):
    problem = problems("sequence_batching { control_input { name: 'c' control { " + control + " } } }")[0]
    assert problem.startswith("sequence_batching.control_input[c]: ")
    assert text in problem
