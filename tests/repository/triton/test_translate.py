import pytest
from repository.triton.translating import TENSORS, problems, settings, translated, warnings

# --- which model, which backend ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        'backend: "onnxruntime"',
        'platform: "onnxruntime_onnx"',
        'platform: "onnxruntime_onnx" backend: "onnxruntime" name: "m" default_model_filename: "model.onnx"',
        "",
    ],
)
def test_onnx_runtime_is_the_backend(text):
    assert settings(text) == {"max_batch": 0}


@pytest.mark.parametrize(
    ("text", "files", "options"),
    [
        ('platform: "tensorrt_plan"', (), {"file": "model.plan"}),
        ('backend: "tensorrt"', (), {"file": "model.plan"}),
        ('backend: "tensorrt"', ("model.onnx",), {}),
        ('backend: "tensorrt"', ("model.onnx", "model.plan"), {"file": "model.plan"}),
        ('backend: "tensorrt" default_model_filename: "model.onnx"', ("model.plan",), {}),
        ('backend: "tensorrt" default_model_filename: "net.engine"', (), {"file": "net.engine"}),
        ('default_model_filename: "model.plan"', (), {"file": "model.plan"}),
        ("", ("model.plan",), {"file": "model.plan"}),
        (
            'backend: "tensorrt" model_operations { op_library_filename: "a.so" } '
            "instance_group { kind: KIND_GPU gpus: [ 1, 0 ] }",
            ("model.onnx",),
            {"plugins": ["a.so"], "devices": [1, 0]},
        ),
    ],
)
def test_tensorrt_is_the_backend(text, files, options):
    found = settings(text, files=files)
    assert (found["backend"], found.get("backend_options", {})) == ("tensorrt", options)
    assert not [line for line in warnings(text, files=files) if line.startswith("instance_group")]


def test_what_is_for_other_backends_does_not_go_to_tensorrt():
    text = 'backend: "tensorrt" optimization { graph { level: 1 } } parameters { key: "a" value { string_value: "1" } }'
    assert {line.partition(":")[0] for line in warnings(text)} >= {"optimization.graph.level", "parameters[a]"}
    assert settings(text)["backend_options"] == {"file": "model.plan"}


@pytest.mark.parametrize(
    ("text", "files", "message"),
    [
        (
            'backend: "python"',
            (),
            "backend: 'python' is not supported: expected onnxruntime or tensorrt, or one of your",
        ),
        (
            'platform: "tensorrt_plan" instance_group { kind: KIND_CPU }',
            (),
            "instance_group: is on the CPU, but TensorRT runs on GPUs alone",
        ),
        ("", ("model.py", "x.txt"), "backend: 'python' is not supported"),
        ('platform: "caffe2"', (), "platform: unexpected platform type 'caffe2', expected onnxruntime_onnx"),
        (
            'platform: "tensorrt_plan" backend: "onnxruntime"',
            (),
            "platform: unexpected 'platform' and 'backend' pair, got: tensorrt_plan, onnxruntime",
        ),
        ('platform: "ensemble"', (), "platform: ensemble scheduling must be set"),
        (
            'name: "other"',
            (),
            "name: unexpected directory name 'm' for model 'other', directory name must equal model name",
        ),
    ],
)
def test_what_is_no_model_of_ours(text, files, message):
    (problem,) = problems(text, files=files)
    assert problem.startswith(message)


def test_the_file_in_the_version_decides_only_where_nothing_else_does():
    assert settings('backend: "onnxruntime"', files=("model.plan",)) == {"max_batch": 0}
    assert settings("", files=("model.onnx", "model.plan")) == {"max_batch": 0}
    named = settings('default_model_filename: "net.onnx"', files=("model.plan",))
    assert named["backend_options"] == {"file": "net.onnx"}


def test_a_backend_of_ones_own_gets_the_parameters():
    text = """
        backend: "package.module:Backend" default_model_filename: "x.bin" optimization { graph { level: 1 } }
        parameters { key: "dims" value { string_value: "3" } }
    """
    found = translated(text)
    assert (found.config.backend, found.config.backend_options) == ("package.module:Backend", {"dims": "3"})
    assert [line.partition(":")[0] for line in found.warnings] == ["default_model_filename", "optimization.graph"]


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("sequence_batching { iterative_sequence: true }", "sequence_batching.iterative_sequence"),
        ("model_transaction_policy { decoupled: true }", "model_transaction_policy.decoupled"),
        ('model_repository_agents { agents { name: "checksum" } }', "model_repository_agents"),
        ("batch_input { kind: BATCH_ELEMENT_COUNT }", "batch_input"),
        ("instance_group { passive: true }", "instance_group[0].passive"),
        ('instance_group { name: "g" profile: "0" }', "instance_group[g].profile"),
        ('input { name: "z" data_type: TYPE_FP32 dims: 1 optional: true }', "input[z].optional"),
    ],
)
def test_what_is_refused_by_name(text, field):
    (problem,) = problems(text)
    assert problem.startswith(f"{field}: not supported: ")


def test_all_problems_are_told_at_once():
    assert [
        line.partition(":")[0] for line in problems("max_batch_size: -1 instance_group { passive: true }", name="other")
    ] == [
        "instance_group[0].passive",
        "max_batch_size",
    ]


# --- inputs and outputs -----------------------------------------------------------------------------------------------


def test_tensors():
    text = """
        input { name: "b" data_type: TYPE_STRING dims: [ 1 ] reshape: { shape: [ ] } }
        input { name: "a" data_type: TYPE_FP16 dims: [ 3, -1, 2 ] format: FORMAT_NCHW }
        output { name: "z" data_type: TYPE_BF16 dims: [ 2, -1 ] reshape { shape: [ 2, 1, -1 ] } }
        output { name: "c" data_type: TYPE_BOOL dims: [ 5 ] label_filename: "labels.txt" }
    """
    config = translated(text, tensors="").config
    values = config.model_dump(exclude_defaults=True)
    assert list(values["inputs"].items()) == [
        ("b", {"datatype": "BYTES", "dims": (1,), "reshape": ()}),
        ("a", {"datatype": "FP16", "dims": (3, -1, 2), "format": "NCHW"}),
    ]
    assert list(values["outputs"].items()) == [
        ("z", {"datatype": "BF16", "dims": (2, -1), "reshape": (2, 1, -1)}),
        ("c", {"datatype": "BOOL", "dims": (5,), "labels": "labels.txt"}),
    ]
    assert config.serve_outputs == ("z", "c")
    assert config.unit_dims is False


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ("input { data_type: TYPE_FP32 dims: 1 }", "input[0]: model input must specify 'name'"),
        ('output { name: "y" dims: 1 }', "output[y]: must specify 'data_type'"),
        ('output { name: "y" data_type: TYPE_FP32 }', "output[y]: must specify 'dims'"),
        ('input { name: "x" data_type: TYPE_FP32 dims: 0 }', "inputs.x.dims: [0] has a dimension of 0"),
        ('input { name: "x" data_type: TYPE_FP32 dims: -2 }', "inputs.x.dims = [-2]: expected a list"),
        (
            'input { name: "x" data_type: TYPE_FP32 dims: [ 2, 3 ] reshape { shape: [ 5 ] } }',
            "inputs.x: dims [2, 3] and reshape [5] do not hold the same number of elements",
        ),
        (
            'input { name: "x" data_type: TYPE_FP32 dims: [ 2, -1 ] reshape { shape: [ -1, 2 ] } }',
            "inputs.x: dims [2, -1] and reshape [-1, 2] do not hold",
        ),
        (
            'input { name: "x" data_type: TYPE_FP32 dims: [ 2 ] reshape { shape: [ ] } }',
            "inputs.x: dims [2] and reshape [] do not hold",
        ),
        ('input { name: "x" data_type: TYPE_FP32 dims: 1 format: FORMAT_NHWC }', "inputs.x: format NHWC needs three"),
        (
            'output { name: "y" data_type: TYPE_FP32 dims: 1 label_filename: "../../secret" }',
            "outputs.y.labels: '../../secret' leaves the model's directory",
        ),
        (2 * 'input { name: "x" data_type: TYPE_FP32 dims: 1 }', "input[x]: is there twice"),
    ],
)
def test_bad_tensors(tensors, message):
    (problem,) = problems("", tensors=tensors)
    assert problem.startswith(message)


def test_the_rest_is_taken_from_the_file_where_inputs_or_outputs_are_not_given():
    for tensors in ("", TENSORS.splitlines()[1], TENSORS.splitlines()[2]):
        config = translated("", tensors=tensors).config
        assert (config.max_batch, config.unit_dims, config.batching.policy) == (None, True, "slot")
    assert translated("max_batch_size: 4", tensors="").config.max_batch == 4
    assert translated("").config.max_batch == 0


# --- versions, instances, the rest ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "versions"),
    [
        ("", "latest:1"),
        ("version_policy { latest { } }", "latest:1"),
        ("version_policy { latest { num_versions: 3 } }", "latest:3"),
        ("version_policy { all { } }", "all"),
        ("version_policy { }", "all"),
        ("version_policy { specific { versions: [ 3, 1 ] } }", (3, 1)),
    ],
)
def test_version_policies(text, versions):
    assert translated(text).config.versions == versions


def test_instances_are_added_up():
    text = "instance_group [ { count: 2 kind: KIND_CPU }, { kind: KIND_AUTO }, { count: 3 kind: KIND_MODEL } ]"
    found = translated(text)
    assert (found.config.instances, found.warnings) == (6, ())


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ('runtime: "libx.so"', "runtime"),
        ('cc_model_filenames { key: "8.0" value: "x" }', "cc_model_filenames"),
        ('metric_tags { key: "a" value: "b" }', "metric_tags"),
        ("model_metrics { }", "model_metrics"),
        ("optimization { priority: PRIORITY_MAX }", "optimization.priority"),
        ("optimization { cuda { graphs: true } }", "optimization.cuda"),
        ("optimization { input_pinned_memory { enable: true } }", "optimization.input_pinned_memory"),
        ("optimization { eager_batching: true }", "optimization.eager_batching"),
        (
            'optimization { execution_accelerators { cpu_execution_accelerator { name: "openvino" } } }',
            "optimization.execution_accelerators.cpu_execution_accelerator",
        ),
        ("instance_group { rate_limiter { priority: 2 } }", "instance_group[0].rate_limiter"),
        ('instance_group { host_policy: "p" }', "instance_group[0].host_policy"),
        ("dynamic_batching { preserve_ordering: true }", "dynamic_batching.preserve_ordering"),
        ('parameters { key: "gpu_mem_limit" value { string_value: "1" } }', "parameters[gpu_mem_limit]"),
        ('parameters { key: "frobnicate" value { string_value: "1" } }', "parameters[frobnicate]"),
        ("optimization { graph { level: 7 } }", "optimization.graph.level"),
    ],
)
def test_what_has_no_effect_is_a_warning(text, field):
    (warning,) = warnings(text)
    assert warning.startswith(f"{field}: ")


def test_the_response_cache_is_kept():
    assert settings("response_cache { enable: true }") == {"max_batch": 0, "response_cache": True}
    assert settings("response_cache { enable: false }") == {"max_batch": 0}


@pytest.mark.parametrize(
    ("key", "text", "values"),
    [
        ("intra_op_thread_count", "4", {"threads": 4}),
        ("intra_op_thread_count", "0", {"threads": 0}),
        ("inter_op_thread_count", "3", {"backend_options": {"inter_op_threads": 3}}),
        ("execution_mode", "1", {"backend_options": {"execution_mode": "parallel"}}),
        ("execution_mode", "0", {"backend_options": {"execution_mode": "sequential"}}),
        ("enable_mem_arena", "0", {"backend_options": {"arena": False}}),
        ("enable_mem_pattern", "False", {"backend_options": {"memory_pattern": False}}),
        ("share_session_between_instances", "true", {"backend_options": {"share_session": True}}),
        (
            "session.use_device_allocator_for_initializers",
            "1",
            {"backend_options": {"session": {"session.use_device_allocator_for_initializers": "1"}}},
        ),
        (
            "memory.enable_memory_arena_shrinkage",
            "cpu:0",
            {"backend_options": {"run": {"memory.enable_memory_arena_shrinkage": "cpu:0"}}},
        ),
    ],
)
def test_parameters_of_onnx_runtime(key, text, values):
    text = f'parameters {{ key: "{key}" value {{ string_value: "{text}" }} }}'
    assert settings(text) == {"max_batch": 0} | values
    assert warnings(text) == ()


@pytest.mark.parametrize(
    ("key", "text"),
    [("intra_op_thread_count", "many"), ("inter_op_thread_count", "-1"), ("execution_mode", "2"),
     ("enable_mem_arena", "yes")],
)  # fmt: skip
def test_bad_parameters(key, text):
    (problem,) = problems(f'parameters {{ key: "{key}" value {{ string_value: "{text}" }} }}')
    assert problem.startswith(f"parameters[{key}]: is '{text}', expected ")


@pytest.mark.parametrize(("level", "name"), [(-1, "basic"), (1, "extended"), (2, "disabled")])
def test_levels_of_optimisation(level, name):
    values = settings(f"optimization {{ graph {{ level: {level} }} }}")
    assert values["backend_options"] == {"graph_optimization_level": name}


def test_libraries_of_operators():
    assert settings('model_operations { op_library_filename: [ "a.so", "b.so" ] }')["backend_options"] == {
        "op_libraries": ["a.so", "b.so"]
    }
