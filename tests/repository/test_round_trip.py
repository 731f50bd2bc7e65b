"""Whatever a config.pbtxt says that has an effect, the model.toml made of it says too."""

import tempfile
from pathlib import Path

from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st

from headrace.repository.configuration import read_configuration
from headrace.repository.model_config import load_model_config
from headrace.repository.toml_text import settings_text
from headrace.rpc import model_config_pb2 as mc

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6)
types = st.sampled_from([number for number in mc.DataType.values() if number])
sizes = st.lists(st.one_of(st.just(-1), st.integers(1, 9)), min_size=1, max_size=4)


def unflat(dims):
    """Other dimensions with the same elements."""
    return [1, *dims] if len(dims) % 2 else [*dims, 1, 1]


@st.composite
def inputs(draw):
    dims = draw(sizes)
    made = mc.ModelInput(name=draw(names), data_type=draw(types), dims=dims)
    if len(dims) == 3:
        made.format = draw(st.sampled_from([0, 1, 2]))
    if draw(st.booleans()):
        made.reshape.shape.extend(unflat(dims))
    return made


@st.composite
def outputs(draw):
    scalar = draw(st.booleans())
    made = mc.ModelOutput(name=draw(names), data_type=draw(types), dims=[1, 1] if scalar else draw(sizes))
    made.label_filename = draw(st.sampled_from(["", "labels.txt", "text/Käse \n"]))
    if scalar:
        made.reshape.SetInParent()
    return made


policies = st.builds(
    mc.ModelQueuePolicy,
    timeout_action=st.sampled_from([0, 1]),
    default_timeout_microseconds=st.integers(0, 1 << 40),
    allow_timeout_override=st.booleans(),
    max_queue_size=st.integers(0, 1 << 20),
)
optional_policies = st.one_of(st.none(), policies)


@st.composite
def batching(draw, max_batch):
    made = mc.ModelDynamicBatching(max_queue_delay_microseconds=draw(st.integers(0, 5000)))
    if max_batch:
        made.preferred_batch_size.extend(draw(st.lists(st.integers(1, max_batch), max_size=3)))
    if (policy := draw(optional_policies)) is not None:
        made.default_queue_policy.CopyFrom(policy)
    if levels := draw(st.integers(0, 4)):
        made.priority_levels = levels
        made.default_priority_level = draw(st.integers(1, levels))
        for level in draw(st.sets(st.integers(1, levels))):
            made.priority_queue_policy[level].CopyFrom(draw(policies))
    return made


@st.composite
def warmups(draw):
    made = mc.ModelWarmup(name=draw(names), batch_size=draw(st.integers(0, 4)), count=draw(st.integers(0, 3)))
    for name in draw(st.sets(names, max_size=2)):
        given_input = made.inputs[name]
        given_input.data_type = draw(types)
        given_input.dims.extend(draw(st.lists(st.integers(1, 9), max_size=3)))
        source = draw(st.sampled_from(["zero_data", "random_data", "input_data_file"]))
        setattr(given_input, source, "data.bin" if source == "input_data_file" else True)
    return made


PARAMETERS = {
    "intra_op_thread_count": "3",
    "inter_op_thread_count": "0",
    "execution_mode": "1",
    "enable_mem_arena": "0",
    "enable_mem_pattern": "0",
    "share_session_between_instances": "1",
    "session.use_device_allocator_for_initializers": "1",
    "memory.enable_memory_arena_shrinkage": "cpu:0",
    "gpu_mem_limit": "1",
    "line\nbreak": "2",
}


@st.composite
def configurations(draw):
    max_batch = draw(st.integers(0, 16))
    made = mc.ModelConfig(
        platform=draw(st.sampled_from(["", "onnxruntime_onnx"])),
        max_batch_size=max_batch,
        input=draw(st.lists(inputs(), max_size=3, unique_by=lambda tensor: tensor.name)),
        output=draw(st.lists(outputs(), max_size=3, unique_by=lambda tensor: tensor.name)),
        model_warmup=draw(st.lists(warmups(), max_size=2)),
        default_model_filename=draw(st.sampled_from(["", "model.onnx", "net.onnx"])),
        instance_group=draw(
            st.one_of(
                st.lists(
                    st.builds(mc.ModelInstanceGroup, count=st.integers(0, 3), kind=st.sampled_from([0, 2, 3])),
                    max_size=2,
                ),
                st.builds(
                    lambda count, gpus: [mc.ModelInstanceGroup(count=count, gpus=gpus, kind=1)],
                    st.integers(0, 3),
                    st.lists(st.integers(0, 3), unique=True),
                ),
            )
        ),
    )
    made.version_policy.CopyFrom(
        draw(
            st.sampled_from(
                [
                    mc.ModelVersionPolicy(),
                    mc.ModelVersionPolicy(latest=mc.ModelVersionPolicy.Latest(num_versions=2)),
                    mc.ModelVersionPolicy(specific=mc.ModelVersionPolicy.Specific(versions=[2, 1])),
                ]
            )
        )
    )
    if draw(st.booleans()):
        made.dynamic_batching.CopyFrom(draw(batching(max_batch)))
    made.optimization.graph.level = draw(st.integers(-1, 3))
    made.response_cache.enable = draw(st.booleans())
    for key in draw(st.sets(st.sampled_from(sorted(PARAMETERS)))):
        made.parameters[key].string_value = PARAMETERS[key]
    made.model_operations.op_library_filename.extend(draw(st.lists(names, max_size=2)))
    return made


@st.composite
def ensembles(draw):
    made = mc.ModelConfig(
        platform="ensemble",
        max_batch_size=draw(st.integers(0, 16)),
        input=[mc.ModelInput(name=name, data_type=draw(types), dims=draw(sizes)) for name in draw(st.sets(names))],
        output=[mc.ModelOutput(name=name, data_type=draw(types), dims=draw(sizes)) for name in draw(st.sets(names))],
    )
    maps = st.dictionaries(names, names, max_size=3)
    for _ in range(draw(st.integers(1, 3))):
        made.ensemble_scheduling.step.add(
            model_name=draw(names),
            model_version=draw(st.sampled_from([-1, 3])),
            input_map=draw(maps),
            output_map={draw(names): draw(names)} | draw(maps),
        )
    return made


@given(st.one_of(configurations(), ensembles()))
def test_model_toml_says_what_config_pbtxt_says(message):
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "config.pbtxt").write_text(text_format.MessageToString(message), encoding="utf-8")
        found = read_configuration(Path(directory))
        assert found.stated == message
        target = Path(directory) / "model.toml"
        target.write_text(settings_text(found.settings), encoding="utf-8")
        read = load_model_config(target)
    assert read == found.settings
    assert list(read.inputs) == [tensor.name for tensor in message.input]
    assert list(read.outputs) == [tensor.name for tensor in message.output]
