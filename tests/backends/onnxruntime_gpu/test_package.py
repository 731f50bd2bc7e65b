"""The CUDA provider of onnxruntime-gpu itself, where there is no GPU: on libraries whose every call succeeds.

What its host side does with our options, streams and bindings is real; nothing is computed. It needs gcc and

    pip install --no-deps --target DIR onnxruntime-gpu==1.31.1

which takes 340 MB, with HEADRACE_ORT_GPU=DIR in the environment.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from speed_models import store

SITE = os.environ.get("HEADRACE_ORT_GPU", "")
HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(not SITE, reason="HEADRACE_ORT_GPU names no directory with onnxruntime-gpu")
EVERYTHING = {
    "memory_limit_bytes": 1 << 28,
    "arena_extend": "next_power_of_two",
    "conv_search": "exhaustive",
    "conv_workspace": False,
    "tf32": False,
    "prefer_nhwc": True,
    "cuda": {
        "cudnn_conv1d_pad_to_nc1d": "1",
        "fuse_conv_bias": "1",
        "sdpa_kernel": "0",
        "enable_skip_layer_norm_strict_mode": "1",
        "tunable_op_enable": "0",
        "tunable_op_tuning_enable": "0",
        "tunable_op_max_tuning_duration_ms": "9",
        "enable_cudnn": "1",
    },
}


@pytest.fixture(scope="module")
def stubs(tmp_path_factory):
    sys.path.insert(0, str(HERE / "stub"))
    try:
        from build import build
    finally:
        sys.path.pop(0)
    out = tmp_path_factory.mktemp("stubs")
    build(Path(SITE) / "onnxruntime/capi/libonnxruntime_providers_cuda.so", out)
    return out


@pytest.fixture
def drive(stubs, affine, tmp_path):
    def drive(version=None, forms=(), **options):
        path = os.pathsep.join([SITE, *sys.path])
        environment = {"LD_LIBRARY_PATH": str(stubs), "PYTHONPATH": path, "STUB_TRACE": str(tmp_path / "trace")}
        command = [sys.executable, str(HERE / "stub/drive.py"), str(version or affine())]
        command += [json.dumps(options), json.dumps(forms)]
        done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
        if done.returncode:
            return done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return drive


def waits(calls):
    return [call for call in calls if "ynchronize" in call or "Query" in call or "Wait" in call]


def test_every_option_is_taken(drive):
    told = drive(**EVERYTHING)["options"]
    own = {
        "gpu_mem_limit": str(1 << 28),
        "arena_extend_strategy": "kNextPowerOfTwo",
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        "cudnn_conv_use_max_workspace": "0",
        "use_tf32": "0",
        "prefer_nhwc": "1",
        "has_user_compute_stream": "1",
        "user_compute_stream": "1",
    }
    assert own.items() <= told.items()
    passed_on = {key: value for key, value in EVERYTHING["cuda"].items() if key in told}
    assert passed_on.items() <= told.items()
    assert len(passed_on) >= 7


def test_an_option_that_is_unknown_is_a_failed_load(drive):
    error = drive(cuda={"frobnicate": "1"})
    assert "ModelLoadError: ONNX Runtime cannot load" in error
    assert "frobnicate" in error


def test_the_processor_can_be_ruled_out(drive):
    assert drive(max_cpu_nodes=0.0)["nodes"] == {"CUDAExecutionProvider": 2}


def test_runs_take_no_memory_and_wait_for_nothing(drive):
    facts = drive(cuda_graphs=False)
    assert facts["nodes"] == {"CUDAExecutionProvider": 2}
    assert sum("LaunchKernel" in call for call in facts["run"]) >= 2
    assert waits(facts["run"]) == []
    assert [call for call in facts["run"] if "alloc" in call.lower() or "free" in call.lower()] == []
    assert "cudaStreamCreateWithFlags" not in facts["load"]  # it computes in ours


def test_runs_of_any_size_wait_for_nothing_either(drive, varying):
    facts = drive(varying)
    assert facts["nodes"] == {"CUDAExecutionProvider": 2}
    assert waits(facts["run"]) == []


def test_what_the_processor_makes_of_any_size_is_not_copied_beside_the_stream(drive, write):
    version = write(
        [helper.make_node("Hardmax", ["x"], ["y"]), helper.make_node("Mul", ["x", "x"], ["z"])],
        [("x", TensorProto.FLOAT, ("N", "L"))],
        [("y", TensorProto.FLOAT, ("N", "L")), ("z", TensorProto.FLOAT, ("N", "L"))],
    )
    facts = drive(version, max_cpu_nodes=1.0)
    assert facts["nodes"] == {"CPUExecutionProvider": 1, "CUDAExecutionProvider": 1}
    assert [call for call in facts["run"] if call == "cudaMemcpy" or ("0x1" not in call and "Memcpy" in call)] == []
    assert waits(facts["run"]) == []


def test_a_batch_that_is_a_graph_is_nothing_to_onnx_runtime(drive):
    facts = drive(cuda_graphs=True, batch_buckets=[1, 4])
    assert facts["graphs"] == 4  # each bucket of each batch in flight
    assert facts["run"] == []


def test_what_is_recorded_takes_no_memory_and_waits_for_nothing(drive):
    """The driver allows neither."""
    facts = drive(cuda_graphs=True, batch_buckets=[1, 4])
    (kernels,) = {sum("LaunchKernel" in call for call in recorded) for recorded in facts["recorded"]}
    assert kernels >= 2
    for recorded in facts["recorded"]:
        assert waits(recorded) == []
        assert [call for call in recorded if "alloc" in call.lower() or "free" in call.lower()] == []


@pytest.mark.parametrize("side", [2, "K"], ids=["fixed", "varying"])
def test_an_input_that_the_processor_reads_is_that_of_its_batch(stubs, write, side):
    """Of the operators, Det is the processor's, and computes."""
    shape = ("N", side, side)
    version = write(
        [helper.make_node("Det", ["x"], ["d"]), helper.make_node("Mul", ["x", "x"], ["y"])],
        [("x", TensorProto.FLOAT, shape)],
        [("d", TensorProto.FLOAT, ("N",)), ("y", TensorProto.FLOAT, shape)],
    )
    environment = {"LD_LIBRARY_PATH": str(stubs), "PYTHONPATH": os.pathsep.join([SITE, *sys.path])}
    command = [sys.executable, str(HERE / "stub/determinants.py"), str(version)]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [1.0, 4.0, 9.0]


@pytest.fixture
def placed(stubs, tmp_path):
    """How many nodes of a model each provider has."""

    def placed(model):
        version = tmp_path / "m" / "1"
        version.mkdir(parents=True)
        onnx.save(model, version / "model.onnx")
        environment = {"LD_LIBRARY_PATH": str(stubs), "PYTHONPATH": os.pathsep.join([SITE, *sys.path])}
        command = [sys.executable, str(HERE / "stub/placed.py"), str(version)]
        done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])

    return placed


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("octets", ["", "-u8"])
def test_no_node_of_a_resnet_is_the_processors(placed, precision, octets):
    assert set(placed(store.build(f"resnet50-{precision}{octets}", store.TINY))) == {"CUDAExecutionProvider"}


def test_of_bert_the_processor_has_what_computes_a_shape(placed):
    assert placed(store.build("bert-fp16", store.TINY))["CPUExecutionProvider"] == 1


def test_bert_is_loaded_though_its_attention_cannot_be_fused(placed):
    assert placed(store.TINY.bert.build(np.float16))["CPUExecutionProvider"] == 1


def test_what_is_recorded_of_bert_copies_nothing_of_the_hosts(drive, tmp_path):
    """It takes any number of tokens and is told of two; the processor computes a shape."""
    version = tmp_path / "bert" / "1"
    version.mkdir(parents=True)
    onnx.save(store.build("bert-fp16", store.TINY), version / "model.onnx")
    forms = [[(16,), (16,)], [(4,), (4,)]]
    facts = drive(version, forms, cuda_graphs=True, batch_buckets=[1, 4])
    assert facts["nodes"]["CPUExecutionProvider"] == 1
    assert facts["graphs"] == len(facts["recorded"]) == 2 * 2 * 2
    for recorded in facts["recorded"]:
        assert sum("LaunchKernel" in call for call in recorded) > 10
        assert waits(recorded) == []
        assert [call for call in recorded if "alloc" in call.lower() or "free" in call.lower()] == []
        assert {call for call in recorded if "Memcpy" in call} <= {"cudaMemcpyAsync 0x1 kind 3"}  # on the device
    assert facts["run"] == []
