from dataclasses import dataclass, field

from google.protobuf import text_format

from headrace.messages import Signature, TensorSpec
from headrace.repository.model_config import ModelConfig
from headrace.rpc import model_config_pb2 as mc
from headrace.testing.condition import FakeCondition
from headrace.transport.model_config import describe_model

SIGNATURE = Signature((TensorSpec("x", "FP32", (4,)),), (TensorSpec("y", "BYTES", (1,), ("cat", "dog")),), 8)


@dataclass
class Served:
    name: str = "m"
    platform: str = "onnxruntime_onnx"
    signature: Signature = SIGNATURE
    config: ModelConfig = field(default_factory=ModelConfig)
    stated: mc.ModelConfig | None = None
    plan: None = None
    condition: FakeCondition = field(default_factory=FakeCondition)


def stated(text, **more):
    return describe_model(Served(stated=text_format.Parse(text, mc.ModelConfig()), **more))


def test_what_the_file_does_not_say_is_filled_in():
    config = stated('backend: "onnxruntime"')
    assert (config.name, config.platform, config.backend, config.max_batch_size) == (
        "m",
        "onnxruntime_onnx",
        "onnxruntime",
        8,
    )
    assert [(tensor.name, tensor.data_type, list(tensor.dims)) for tensor in config.input] == [("x", mc.TYPE_FP32, [4])]
    assert [(tensor.name, tensor.data_type) for tensor in config.output] == [("y", mc.TYPE_STRING)]
    assert config.version_policy.latest.num_versions == 1
    assert config.default_model_filename == "model.onnx"
    assert [(group.name, group.count, group.kind) for group in config.instance_group] == [
        ("m", 1, mc.ModelInstanceGroup.KIND_CPU)
    ]
    assert list(config.dynamic_batching.preferred_batch_size) == [8]


def test_what_the_file_says_is_repeated_with_or_without_effect():
    text = """
        max_batch_size: 8 version_policy { all { } } default_model_filename: "net.onnx"
        input { name: "x" data_type: TYPE_FP32 dims: [ 2, 2 ] reshape { shape: [ 4 ] } }
        output { name: "y" data_type: TYPE_STRING dims: [ 1 ] label_filename: "labels.txt" }
        dynamic_batching { preferred_batch_size: [ 2, 4 ] priority_levels: 2 default_priority_level: 1 }
        optimization { cuda { graphs: true } }
        parameters { key: "p" value { string_value: "v" } }
    """
    said = text_format.Parse(text, mc.ModelConfig())
    config = stated(text)
    for name in (
        "max_batch_size", "version_policy", "default_model_filename", "input", "output", "dynamic_batching",
        "optimization", "parameters",
    ):  # fmt: skip
        assert getattr(config, name) == getattr(said, name)


def test_groups_get_names_counts_and_the_kind_that_they_have():
    config = stated("instance_group [ { kind: KIND_GPU count: 2 }, { } ]")
    assert [(group.name, group.count, group.kind) for group in config.instance_group] == [
        ("m_0", 2, mc.ModelInstanceGroup.KIND_GPU),
        ("m_1", 1, mc.ModelInstanceGroup.KIND_CPU),
    ]


def test_groups_on_gpus_name_them():
    config = stated("instance_group [ { kind: KIND_GPU gpus: [ 1, 2 ] }, { kind: KIND_GPU }, { gpus: [ 3 ] } ]")
    assert [(group.kind, list(group.gpus)) for group in config.instance_group] == [
        (mc.ModelInstanceGroup.KIND_GPU, [1, 2]),
        (mc.ModelInstanceGroup.KIND_GPU, [0]),
        (mc.ModelInstanceGroup.KIND_GPU, [3]),
    ]


def test_settings_of_model_toml_for_gpus():
    def group(**more):
        config, condition = ModelConfig(backend="onnxruntime-cuda", **more), FakeCondition(backend="onnxruntime-cuda")
        (found,) = describe_model(Served(config=config, condition=condition)).instance_group
        return found.kind, list(found.gpus), found.count

    assert group() == (mc.ModelInstanceGroup.KIND_GPU, [0], 1)
    assert group(instances=2, backend_options={"devices": [1, 3]}) == (mc.ModelInstanceGroup.KIND_GPU, [1, 3], 2)


def test_what_runs_alone_has_no_dynamic_batching():
    config = ModelConfig(batching={"policy": "single"})
    assert stated("max_batch_size: 8", config=config).WhichOneof("scheduling_choice") is None
    assert describe_model(Served(config=config)).WhichOneof("scheduling_choice") is None


def test_the_answer_is_the_askers_own():
    served = Served(stated=mc.ModelConfig(name="m"))
    describe_model(served).input.add(name="q")
    assert not served.stated.input
    assert len(describe_model(served).input) == 1


def test_settings_of_model_toml_in_tritons_terms():
    config = ModelConfig(
        priority_levels=2,
        backend_options={"file": "net.onnx", "graph_optimization_level": "disabled"},
        inputs={"x": {"dims": (4,), "reshape": (2, 2)}},
        outputs={"y": {"labels": "l.txt"}},
        batching={"preferred_sizes": (4,)},
        queue={
            "timeout_us": 7,
            "on_timeout": "delay",
            "timeout_override": False,
            "max_level_requests": 3,
            "levels": {"1": {"timeout_us": 9, "on_timeout": "reject"}},
        },
        warmup_data=({"name": "w", "rows": 2, "inputs": {"x": {"datatype": "FP32", "dims": (4,), "file": "f"}}}, {}),
        response_cache=True,
    )
    made = describe_model(Served(config=config))
    assert (made.default_model_filename, made.optimization.graph.level) == ("net.onnx", 2)
    assert list(made.input[0].reshape.shape) == [2, 2]
    assert not made.output[0].HasField("reshape")
    assert made.output[0].label_filename == "l.txt"
    assert made.response_cache.enable
    dynamic = made.dynamic_batching
    assert list(dynamic.preferred_batch_size) == [4]
    everybody = dynamic.default_queue_policy
    assert (everybody.timeout_action, everybody.default_timeout_microseconds) == (mc.ModelQueuePolicy.DELAY, 7)
    assert (everybody.allow_timeout_override, everybody.max_queue_size) == (False, 3)
    urgent = dynamic.priority_queue_policy[1]
    assert (urgent.timeout_action, urgent.default_timeout_microseconds) == (mc.ModelQueuePolicy.REJECT, 9)
    assert (urgent.allow_timeout_override, urgent.max_queue_size) == (False, 3)
    first, second = made.model_warmup
    assert (first.name, first.batch_size, first.count, second.batch_size) == ("w", 2, 0, 1)
    assert (first.inputs["x"].input_data_file, list(first.inputs["x"].dims)) == ("f", [4])


def test_settings_too_large_for_their_field_are_the_largest_that_it_holds():
    """As people write who want no limit."""
    huge = 10**20
    config = ModelConfig(
        versions=f"latest:{huge}",
        slo_ms=1e18,
        priority_levels=huge,
        batching={"policy": "delay", "delay_us": huge},
        queue={"max_requests": huge, "max_level_requests": huge, "levels": {"1": {"timeout_us": huge}}},
        warmup_data=[{"rows": huge, "runs": huge}],
    )
    told = describe_model(Served(config=config))
    most, widest = (1 << 32) - 1, (1 << 64) - 1
    dynamic = told.dynamic_batching
    assert told.version_policy.latest.num_versions == most
    assert (dynamic.max_queue_delay_microseconds, dynamic.priority_levels) == (widest, widest)
    policy = dynamic.default_queue_policy
    assert (policy.max_queue_size, policy.default_timeout_microseconds) == (most, widest)
    assert dynamic.priority_queue_policy[1].max_queue_size == most
    assert dynamic.priority_queue_policy[1].default_timeout_microseconds == widest
    assert (told.model_warmup[0].batch_size, told.model_warmup[0].count) == (most, most)


def test_of_a_chain_the_backend_that_runs_it_is_told():
    options = {"fast": {"file": "fast.onnx"}, "safe": {"file": "safe.onnx", "graph_optimization_level": "basic"}}
    config = ModelConfig(backend=("fast", "safe"), backend_options=options)
    made = describe_model(Served(config=config, condition=FakeCondition(backend="safe")))
    assert (made.backend, made.default_model_filename, made.optimization.graph.level) == ("safe", "safe.onnx", -1)
    made = describe_model(Served(config=config, condition=FakeCondition(backend="fast")))
    assert (made.backend, made.default_model_filename, made.optimization.graph.level) == ("fast", "fast.onnx", 0)
