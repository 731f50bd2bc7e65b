from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.backends.onnxruntime.gpu_options import (
    CudaOptions,
    TensorRtOptions,
    batch_buckets,
    cuda_provider,
    graphs_asked_for,
    shape_profile,
    tensorrt_provider,
)
from headrace.backends.onnxruntime.sessions import read_options
from headrace.errors import ModelLoadError
from headrace.messages import Signature, TensorSpec

IMAGES = Signature((TensorSpec("x", "FP32", (3, 224, 224)),), (TensorSpec("y", "FP32", (10,)),), 32)
TEXTS = Signature(
    (TensorSpec("ids", "INT64", (-1,)), TensorSpec("mask", "INT64", (-1,))), (TensorSpec("y", "FP32", (2,)),), 8
)


def test_what_the_cuda_provider_is_told_by_default():
    assert cuda_provider(CudaOptions(), 1, 4711) == {
        "device_id": "1",
        "user_compute_stream": "4711",
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
        "cudnn_conv_use_max_workspace": "1",
        "use_tf32": "1",
        "prefer_nhwc": "0",
    }


def test_what_it_is_told_on_request():
    options = read_options(
        CudaOptions,
        {
            "memory_limit_bytes": 1 << 30,
            "arena_extend": "next_power_of_two",
            "conv_search": "exhaustive",
            "conv_workspace": False,
            "tf32": False,
            "prefer_nhwc": True,
            "cuda": {"sdpa_kernel": "0"},
        },
    )
    assert cuda_provider(options, 0, 1) == {
        "device_id": "0",
        "user_compute_stream": "1",
        "arena_extend_strategy": "kNextPowerOfTwo",
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        "cudnn_conv_use_max_workspace": "0",
        "use_tf32": "0",
        "prefer_nhwc": "1",
        "gpu_mem_limit": "1073741824",
        "sdpa_kernel": "0",
    }


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        (CudaOptions(), "auto"),
        (CudaOptions(cuda_graphs=True), True),
        (CudaOptions(cuda_graphs=False), False),
        (CudaOptions(run={"memory.enable_memory_arena_shrinkage": "cpu:0"}), "auto"),
        (CudaOptions(run={"memory.enable_memory_arena_shrinkage": "gpu:0"}), False),
        (TensorRtOptions(), False),
    ],
)
def test_when_graphs_are_recorded(options, asked):
    assert graphs_asked_for(options) == asked


def test_what_the_tensorrt_provider_is_told(tmp_path):
    options = read_options(
        TensorRtOptions,
        {"precision": ["fp16", "int8"], "int8_calibration_table": "t", "tensorrt": {"trt_auxiliary_streams": "0"}},
    )
    profile = {"trt_profile_min_shapes": "x:1x3"}
    assert tensorrt_provider(options, 2, 7, profile, tmp_path) == {
        "device_id": "2",
        "user_compute_stream": "7",
        "trt_max_workspace_size": "1073741824",
        "trt_min_subgraph_size": "1",
        "trt_builder_optimization_level": "3",
        "trt_sparsity_enable": "False",
        "trt_fp16_enable": "True",
        "trt_int8_enable": "True",
        "trt_int8_calibration_table_name": "t",
        "trt_profile_min_shapes": "x:1x3",
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(tmp_path),
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(tmp_path),
        "trt_auxiliary_streams": "0",
    }
    assert not [name for name in tensorrt_provider(TensorRtOptions(), 0, 1, {}, None) if "cache" in name]


@pytest.mark.parametrize(
    ("model", "options", "problem"),
    [
        (CudaOptions, {"divices": [0]}, "divices"),
        (CudaOptions, {"devices": [0, 0]}, "names a device twice"),
        (CudaOptions, {"devices": []}, "devices"),
        (CudaOptions, {"batch_buckets": [4, 2]}, "is not ascending"),
        (CudaOptions, {"batch_buckets": [2, 2, 4]}, "is not ascending"),
        (CudaOptions, {"max_cpu_nodes": 1.5}, "max_cpu_nodes"),
        (CudaOptions, {"cuda": {"gpu_mem_limit": "1"}}, "'gpu_mem_limit' is set by memory_limit_bytes"),
        (CudaOptions, {"cuda": {"user_compute_stream": "1"}}, "'user_compute_stream' is the backend's own to set"),
        (CudaOptions, {"precision": ["fp16"]}, "precision"),
        (CudaOptions, {"run": {"gpu_graph_id": "1"}}, "'gpu_graph_id' is the backend's own to set"),
        (CudaOptions, {"cuda_graphs": "yes"}, 'expected true, false or "auto"'),
        (
            CudaOptions,
            {"cuda_graphs": True, "run": {"memory.enable_memory_arena_shrinkage": "cpu:0;gpu:0"}},
            "would free the memory that graphs use",
        ),
        (TensorRtOptions, {"cuda_graphs": True}, "cuda_graphs"),
        (TensorRtOptions, {"precision": ["fp8"]}, "precision"),
        (TensorRtOptions, {"tensorrt": {"trt_engine_cache_path": "/"}}, "is set by engine_cache"),
        (TensorRtOptions, {"tensorrt": {"trt_cuda_graph_enable": "1"}}, "is the backend's own to set"),
        (TensorRtOptions, {"engine_cache": True}, "engine_cache"),
        (TensorRtOptions, {"profiles": {"x": {"min": [1], "opt": [2], "max": [1]}}}, "must not decrease"),
        (TensorRtOptions, {"profiles": {"x": {"min": [1], "opt": [2], "max": [1, 1]}}}, "equally many"),
    ],
)
def test_options_that_are_wrong(model, options, problem):
    with pytest.raises(ModelLoadError, match=r"in backend_options of model\.toml") as refused:
        read_options(model, options)
    assert problem in str(refused.value)


@given(st.integers(1, 5000))
def test_buckets_are_powers_of_two_and_the_largest_batch(max_batch):
    buckets = batch_buckets(max_batch)
    assert buckets[-1] == max_batch
    assert list(buckets) == sorted(set(buckets))
    assert all(size & (size - 1) == 0 for size in buckets[:-1])
    assert all(b <= 2 * a for a, b in pairwise(buckets))


def test_buckets_that_are_given():
    assert batch_buckets(24, [8, 24]) == (8, 24)
    assert batch_buckets(0) == (1,)
    with pytest.raises(ModelLoadError, match=r"batch_buckets = \[8, 16\] and max_batch = 24"):
        batch_buckets(24, [8, 16])
    with pytest.raises(ModelLoadError, match="the model does not batch"):
        batch_buckets(0, [1])


def test_profiles_span_all_batches():
    assert shape_profile(IMAGES, (1, 8, 32), TensorRtOptions()) == {
        "trt_profile_min_shapes": "x:1x3x224x224",
        "trt_profile_opt_shapes": "x:32x3x224x224",
        "trt_profile_max_shapes": "x:32x3x224x224",
    }
    assert shape_profile(IMAGES, (32,), TensorRtOptions(opt_rows=8))["trt_profile_opt_shapes"] == "x:8x3x224x224"
    with pytest.raises(ModelLoadError, match="opt_rows = 33 is above"):
        shape_profile(IMAGES, (32,), TensorRtOptions(opt_rows=33))


def test_profiles_of_other_dimensions():
    lengths = {"min": [1], "opt": [64], "max": [128]}
    options = read_options(TensorRtOptions, {"profiles": {"ids": lengths, "mask": lengths}})
    assert shape_profile(TEXTS, (1, 8), options) == {
        "trt_profile_min_shapes": "ids:1x1,mask:1x1",
        "trt_profile_opt_shapes": "ids:8x64,mask:8x64",
        "trt_profile_max_shapes": "ids:8x128,mask:8x128",
    }


def test_no_profile_where_everything_is_fixed():
    fixed = Signature(IMAGES.inputs, IMAGES.outputs, 0)
    assert shape_profile(fixed, (1,), TensorRtOptions()) == {}


@pytest.mark.parametrize(
    ("profiles", "problem"),
    [
        ({}, r"input 'ids' has dynamic dimensions \[-1\] in a row: expected \[backend_options.profiles.ids\]"),
        ({"x": {"min": [1], "opt": [1], "max": [1]}}, "profiles.x: there is no such input; the file has"),
        ({"ids": {"min": [1, 1], "opt": [1, 1], "max": [1, 1]}}, r"profiles.ids.min = \[1, 1\]: the file has \[-1\]"),
    ],
)
def test_profiles_that_are_wrong(profiles, problem):
    with pytest.raises(ModelLoadError, match=problem):
        shape_profile(TEXTS, (1, 8), read_options(TensorRtOptions, {"profiles": profiles}))
