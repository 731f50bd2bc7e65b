"""GPUs in a config.pbtxt: which ones, by which backend, with which options; what cannot be had is a named error."""

import pytest
from google.protobuf import text_format

from headrace.backends.onnxruntime.gpu_options import CudaOptions, TensorRtOptions
from headrace.backends.onnxruntime.sessions import read_options
from headrace.errors import ConfigError
from headrace.repository.triton import gpus
from headrace.repository.triton.translate import translate
from headrace.rpc import model_config_pb2 as mc

TENSORS = """
    input { name: "x" data_type: TYPE_FP32 dims: [ 4 ] }
    output { name: "y" data_type: TYPE_INT64 dims: [ 1 ] }
"""
ON_GPU = "instance_group { kind: KIND_GPU gpus: [ 0 ] }"
FIELD = "optimization.execution_accelerators.gpu_execution_accelerator"


def translated(text):
    return translate(text_format.Parse(text + TENSORS, mc.ModelConfig()), "m", "c")


def warned(text):
    return [line.partition(": ")[0] for line in translated(text).warnings]


def problems(text):
    with pytest.raises(ConfigError) as raised:
        translated(text)
    return [line.removeprefix("c: ") for line in str(raised.value).splitlines()]


def accelerated(name, **parameters):
    inside = " ".join(f'parameters {{ key: "{key}" value: "{value}" }}' for key, value in parameters.items())
    return f'optimization {{ execution_accelerators {{ gpu_execution_accelerator {{ name: "{name}" {inside} }} }} }}'


def options(text):
    """Of the backend, as it reads them; not at their defaults."""
    config = translated(text).config
    model = TensorRtOptions if config.backend == "onnxruntime-tensorrt" else CudaOptions
    return read_options(model, config.backend_options).model_dump(exclude_defaults=True)


# --- instances --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "instances", "devices"),
    [
        ("instance_group { count: 2 kind: KIND_GPU gpus: [ 1, 3 ] }", 2, [1, 3]),
        ("instance_group { gpus: [ 2 ] }", 1, [2]),
        ("instance_group [ { count: 2 kind: KIND_GPU gpus: [ 0 ] }, { count: 2 gpus: [ 1 ] } ]", 2, [0, 1]),
        ("instance_group [ { kind: KIND_GPU gpus: [ 0 ] }, { count: 2 kind: KIND_GPU gpus: [ 0 ] } ]", 3, [0]),
    ],
)
def test_instances_are_on_the_gpus_that_groups_name(text, instances, devices):
    found = translated(text)
    assert (found.config.instances, found.config.backend) == (instances, "onnxruntime-cuda")
    assert found.config.backend_options == {"devices": devices}
    assert found.warnings == ()


def test_a_group_that_names_no_gpu_is_on_the_first_with_a_warning():
    found = translated('instance_group { name: "g" count: 2 kind: KIND_GPU }')
    assert (found.config.instances, found.config.backend_options) == (2, {"devices": [0]})
    assert warned('instance_group { name: "g" count: 2 kind: KIND_GPU }') == ["instance_group[g].gpus"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "instance_group [ { kind: KIND_GPU gpus: [ 0 ] }, { kind: KIND_CPU } ]",
            "instance_group: has groups on GPUs and groups that are not: all of a model must be of one kind",
        ),
        (
            "instance_group [ { count: 2 kind: KIND_GPU gpus: [ 0 ] }, { kind: KIND_GPU gpus: [ 1 ] } ]",
            "instance_group: asks for 2 on GPU 0, 1 on GPU 1; each GPU must have as many",
        ),
        ("instance_group { kind: KIND_CPU gpus: [ 0 ] }", "instance_group[0].gpus: a group of KIND_CPU has no GPUs"),
        ("instance_group { kind: KIND_GPU gpus: [ -1 ] }", "instance_group[0].gpus: -1 is no GPU"),
    ],
)
def test_groups_that_cannot_be_had(text, problem):
    assert any(line.startswith(problem) for line in problems(text))


def test_a_backend_of_ones_own_is_told_nothing_of_gpus():
    found = translated('backend: "a.b:C" instance_group { count: 2 kind: KIND_GPU gpus: [ 0 ] }')
    assert (found.config.backend, found.config.instances, found.config.backend_options) == ("a.b:C", 2, {})
    assert [line.partition(": ")[0] for line in found.warnings] == ["instance_group"]


# --- accelerators -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "backend"), [("tensorrt", "onnxruntime-tensorrt"), ("cuda", "onnxruntime-cuda")])
def test_an_accelerator_names_the_backend(name, backend):
    assert translated(ON_GPU + accelerated(name)).config.backend == backend
    assert translated(accelerated(name)).config.backend == backend
    assert warned(accelerated(name)) == [FIELD]  # which GPU nobody has said


def test_an_accelerator_is_without_effect_where_all_is_on_the_processor():
    text = "instance_group { kind: KIND_CPU }" + accelerated("tensorrt")
    assert translated(text).config.backend == "onnxruntime"
    assert warned(text) == [FIELD]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (accelerated("gpu_io"), f"{FIELD}[gpu_io]: expected tensorrt and cuda"),
        (accelerated("tensorrt", frobnicate=1), f"{FIELD}[tensorrt].parameters[frobnicate]: unknown; known are int8_"),
        (accelerated("cuda", precision_mode="FP16"), f"{FIELD}[cuda].parameters[precision_mode]: unknown"),
        (
            accelerated("tensorrt", precision_mode="FP8"),
            f"{FIELD}[tensorrt].parameters[precision_mode]: is 'FP8', expected one of FP32, FP16, BF16, INT8",
        ),
        (accelerated("cuda", use_tf32="yes"), f"{FIELD}[cuda].parameters[use_tf32]: is 'yes', expected 0, 1, true or"),
        (accelerated("cuda", gpu_mem_limit="-1"), f"{FIELD}[cuda].parameters[gpu_mem_limit]: is '-1', expected a numb"),
        (
            accelerated("tensorrt", trt_cuda_graph_enable=1),
            f"{FIELD}[tensorrt].parameters[trt_cuda_graph_enable]: not supported: a graph of one batch size would",
        ),
        (
            accelerated("tensorrt", trt_ep_context_file_path="x"),
            f"{FIELD}[tensorrt].parameters[trt_ep_context_file_path]: not supported: an engine that was built els",
        ),
        (
            accelerated("tensorrt", trt_profile_min_shapes="x"),
            f"{FIELD}[tensorrt].parameters[trt_profile_min_shapes]: is 'x', expected shapes such as",
        ),
        (
            accelerated("tensorrt", trt_profile_min_shapes="x:1x4"),
            f"{FIELD}[tensorrt].parameters[trt_profile_*]: min, opt and max shapes of 'x' must all be given",
        ),
    ],
)
def test_what_accelerators_cannot_be_told(text, problem):
    (found,) = problems(ON_GPU + text)
    assert found.startswith(problem)


def test_graphs_are_not_for_both():
    text = accelerated("tensorrt").replace(
        "gpu_execution_accelerator", 'gpu_execution_accelerator { name: "cuda" parameters { key: "enable_cuda_graph" '
        'value: "1" } } gpu_execution_accelerator', 1
    )  # fmt: skip
    (problem,) = problems(ON_GPU + text)
    assert problem == f"{FIELD}[cuda].parameters[enable_cuda_graph]: not supported together with tensorrt"


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"cudnn_conv_algo_search": "EXHAUSTIVE"}, {"conv_search": "exhaustive"}),
        ({"cudnn_conv_algo_search": "2"}, {"conv_search": "default"}),
        ({"cudnn_conv_use_max_workspace": "0"}, {"conv_workspace": False}),
        ({"gpu_mem_limit": "1024"}, {"memory_limit_bytes": 1024}),
        ({"gpu_mem_limit": str(2**64 - 1)}, {}),
        ({"arena_extend_strategy": "kNextPowerOfTwo"}, {"arena_extend": "next_power_of_two"}),
        ({"arena_extend_strategy": "1"}, {}),
        ({"use_tf32": "false", "prefer_nhwc": "TRUE"}, {"tf32": False, "prefer_nhwc": True}),
        ({"enable_cuda_graph": "1"}, {"cuda_graphs": True}),
        ({"sdpa_kernel": "3", "fuse_conv_bias": "true"}, {"cuda": {"fuse_conv_bias": "1", "sdpa_kernel": "3"}}),
    ],
)
def test_parameters_of_cuda(parameters, expected):
    text = ON_GPU + accelerated("cuda", **parameters)
    assert options(text) == expected
    assert warned(text) == []


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"precision_mode": "FP16"}, {"precision": ("fp16",)}),
        ({"precision_mode": "FP32"}, {}),
        ({"max_workspace_size_bytes": "4294967296"}, {"workspace_bytes": 1 << 32}),
        ({"int8_calibration_table_name": "t"}, {"int8_calibration_table": "t"}),
        ({"trt_engine_cache_enable": "0", "trt_engine_cache_path": "/c"}, {"engine_cache": False}),
        ({"trt_engine_cache_enable": "1", "trt_engine_cache_path": "/c"}, {"engine_cache": "/c"}),
        ({"trt_builder_optimization_level": "5", "trt_sparsity_enable": "1", "trt_min_subgraph_size": "4"},
         {"optimization_level": 5, "sparse_weights": True, "min_subgraph_nodes": 4}),
        ({"trt_cuda_graph_enable": "0"}, {}),
        ({"int8_use_native_calibration_table": "1", "trt_auxiliary_streams": "-1"},
         {"tensorrt": {"trt_int8_use_native_calibration_table": "True", "trt_auxiliary_streams": "-1"}}),
    ],
)  # fmt: skip
def test_parameters_of_tensorrt(parameters, expected):
    text = ON_GPU + accelerated("tensorrt", **parameters)
    assert options(text) == expected
    assert warned(text) == []


def test_shapes_of_tensorrt():
    shapes = {f"trt_profile_{word}_shapes": f"x:{rows}x4,y:{rows}x2x{rows}" for word, rows in
              (("min", 1), ("opt", 4), ("max", 8))}  # fmt: skip
    text = ON_GPU + accelerated("tensorrt", **shapes)
    rows = {"x": {"min": (4,), "opt": (4,), "max": (4,)}, "y": {"min": (2, 1), "opt": (2, 4), "max": (2, 8)}}
    assert options("max_batch_size: 8 dynamic_batching { }" + text) == {"profiles": rows, "opt_rows": 4}
    assert options(text)["profiles"]["x"]["max"] == (8, 4)  # without a batch dimension, as they are
    other = text.replace("y:4x2x4", "y:2x2x4")
    assert problems("max_batch_size: 8 " + other) == [
        f"{FIELD}[tensorrt].parameters[trt_profile_*]: the opt shapes have batches of [2, 4] rows, expected the same "
        "for all inputs"
    ]


@pytest.mark.parametrize("parameters", [{"do_copy_in_default_stream": "0"}, {"use_ep_level_unified_stream": "1"}])
def test_parameters_without_effect(parameters):
    text = ON_GPU + accelerated("cuda", **parameters)
    assert options(text) == {}
    assert warned(text) == [f"{FIELD}[cuda].parameters[{next(iter(parameters))}]"]


def test_parameters_of_the_model_that_triton_had_first():
    text = 'parameters { key: "gpu_mem_limit" value { string_value: "77" } }'
    assert options(ON_GPU + text) == {"memory_limit_bytes": 77}
    assert warned(text) == ["parameters[gpu_mem_limit]"]  # on the processor
    assert gpus._CUDA.keys() > gpus.FOR_GPUS


def test_a_shared_session_is_for_the_processor():
    text = 'parameters { key: "share_session_between_instances" value { string_value: "true" } }'
    assert options(ON_GPU + text) == {}
    assert warned(ON_GPU + text) == ["parameters[share_session_between_instances]"]


@pytest.mark.parametrize("name", ["cuda", "tensorrt"])
def test_what_is_passed_on_to_a_provider_is_not_what_the_backend_sets_itself(name):
    for known in gpus._ACCELERATORS[name].values():
        if isinstance(known, gpus._Taken):
            for value in ("1", "x:1x2", "FP16"):
                made = {}
                try:
                    known.apply(made, value)
                except (KeyError, ValueError):
                    continue
                passed_on = {table: made[table] for table in ("cuda", "tensorrt") if table in made}
                assert read_options(TensorRtOptions, passed_on).model_dump(exclude_defaults=True) == passed_on
                break
