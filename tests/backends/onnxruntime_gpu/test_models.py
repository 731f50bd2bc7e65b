"""A model that is asked to run on GPUs: it does, or the load fails and says why."""

import fcntl
import gc
import logging
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from headrace.backends import registry
from headrace.backends.onnxruntime.cuda import OnnxRuntimeCudaBackend
from headrace.backends.onnxruntime.gpu_options import CudaOptions, TensorRtOptions
from headrace.backends.onnxruntime.placement import RECORD, session_placement
from headrace.backends.onnxruntime.sessions import open_session
from headrace.backends.onnxruntime.tensorrt import engine_directory, find_libraries, private_directory
from headrace.errors import ModelLoadError

CUDA, TENSORRT, CPU = "CUDAExecutionProvider", "TensorrtExecutionProvider", "CPUExecutionProvider"
MIB = 1 << 20


@pytest.mark.parametrize("name", ["onnxruntime-cuda", "onnxruntime-tensorrt"])
def test_an_onnx_runtime_for_the_processor_alone_is_told_so(affine, name):
    with pytest.raises(
        ModelLoadError, match=r"was built without .*ExecutionProvider: `pip uninstall onnxruntime`, then"
    ):
        registry.get(name).load(affine(), max_batch=8, threads=1, options={})


def test_a_session_on_the_processor_instead_is_a_failed_load(load, affine, gpu):
    gpu.works.clear()
    model = load(affine())
    with pytest.raises(ModelLoadError, match=f"could not set up {CUDA} and would run the model by {CPU}"):
        model.make_instance(0)
    assert model.nodes == {}
    assert gpu.gone == 1


def test_a_session_by_cuda_instead_of_tensorrt_is_a_failed_load(load_tensorrt, affine, gpu):
    gpu.works.remove(TENSORRT)
    with pytest.raises(ModelLoadError, match=f"could not set up {TENSORRT} and would run the model by {CUDA}, {CPU}"):
        load_tensorrt(affine()).make_instance(0)


def test_too_much_on_the_processor_is_a_failed_load(load, affine, gpu):
    gpu.on_cpu = ["Mul"]
    with pytest.raises(ModelLoadError, match="the processor would run 1 of the model's 2 nodes, Mul 1, and max_cpu"):
        load(affine()).make_instance(0)


def test_onnx_runtime_is_not_to_go_over_to_the_processor_by_itself(affine, monkeypatch):
    told = {}
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda *arguments, **more: told.update(more))
    open_session(affine() / "model.onnx", 1, CudaOptions(), [(CUDA, {}), CPU], {})
    assert (told["providers"], told["enable_fallback"]) == ([(CUDA, {}), CPU], 0)


MISMATCH = "Exception: Tensor type mismatch. T !=N11onnxruntime17PrimitiveDataTypeINS_9MLFloat16EEE"


@pytest.fixture
def fails_with(monkeypatch):
    """Has sessions with all fusions fail with this text; what each was opened without."""

    def fails_with(text):
        asked = []

        def opened(*arguments, disabled_optimizers=None, **more):
            asked.append(disabled_optimizers)
            if "AttentionFusion" not in disabled_optimizers:
                raise RuntimeError(text)
            return "a session"

        monkeypatch.setattr("onnxruntime.InferenceSession", opened)
        return asked

    return fails_with


def test_attention_that_cannot_be_fused_in_fp16_runs_unfused(affine, fails_with, caplog):
    """ONNX Runtime 1.31 fails on it for CUDA, where alone it has kernels of FP16."""
    asked = fails_with(MISMATCH)
    assert open_session(affine() / "model.onnx", 1, CudaOptions(), [(CUDA, {}), CPU]) == "a session"
    assert asked == [["WeightBiasQuantization"], ["WeightBiasQuantization", "AttentionFusion"]]
    assert "cannot fuse the attention of this FP16 model" in caplog.text


def test_other_failures_are_not_tried_again(affine, fails_with):
    asked = fails_with("Tensor type mismatch. T !=f")
    with pytest.raises(ModelLoadError, match="cannot load"):
        open_session(affine() / "model.onnx", 1, CudaOptions(), [(CUDA, {}), CPU])
    assert len(asked) == 1


@pytest.mark.parametrize(("providers", "quantized"), [([CPU], 1), ([(CUDA, {}), CPU], 0)])
def test_biases_are_quantized_for_the_processor_alone(write, monkeypatch, providers, quantized):
    """ONNX Runtime would give them to the processor, for CUDA has no DequantizeLinear of INT32."""
    real = ort.InferenceSession
    monkeypatch.setattr(
        "onnxruntime.InferenceSession", lambda *given, **more: real(*given, **more | {"providers": [CPU]})
    )
    scale, zero = (onnx.numpy_helper.from_array(np.array(v), n) for v, n in ((np.float32(0.1), "s"), (np.int8(0), "z")))
    weights = onnx.numpy_helper.from_array(np.ones((2, 1, 1, 1), np.int8), "w")
    bias = onnx.numpy_helper.from_array(np.ones(2, np.float32), "b")
    path = write(
        [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
            helper.make_node("DequantizeLinear", ["w", "s", "z"], ["v"]),
            helper.make_node("Conv", ["d", "v", "b"], ["c"]),
            helper.make_node("QuantizeLinear", ["c", "s", "z"], ["r"]),
            helper.make_node("DequantizeLinear", ["r", "s", "z"], ["y"]),
        ],
        [("x", TensorProto.FLOAT, ("N", 1, 4, 4))],
        [("y", TensorProto.FLOAT, ("N", 2, 4, 4))],
        [scale, zero, weights, bias],
    )
    session = open_session(path / "model.onnx", 1, CudaOptions(), providers, {RECORD: "1"})
    assert session_placement(session).nodes[CPU]["DequantizeLinear"] == 3 + quantized


def test_the_placement_is_logged_and_published(load, affine, gpu, caplog):
    gpu.on_cpu = ["Mul"]
    model = load(affine(), max_cpu_nodes=0.5)
    with caplog.at_level(logging.INFO, "headrace.backends.onnxruntime.gpu"):
        model.make_instance(0).close()
    assert model.nodes == {CUDA: 1, CPU: 1}
    assert f"on cpu:0: of 2 nodes 1 by {CUDA}, 1 by {CPU} (Mul 1)" in caplog.text


def test_a_placement_that_is_not_told_is_a_warning(load, affine, gpu, caplog):
    gpu.tells = False
    model = load(affine())
    model.make_instance(0).close()
    assert model.nodes == {}
    assert "does not tell which nodes run where" in caplog.text


@pytest.mark.parametrize(("share", "entry"), [(0.0, "1"), (0.2, None)])
def test_onnx_runtime_itself_is_to_refuse_the_processor_where_no_node_may_be_there(load, affine, gpu, share, entry):
    load(affine(), max_cpu_nodes=share).make_instance(0).close()
    entries = gpu.calls[0].entries
    assert entries.get("session.disable_cpu_ep_fallback") == entry
    assert (CPU in gpu.calls[0].providers) == (entry is None)
    assert entries["session.record_ep_graph_assignment_info"] == "1"
    assert entries["session.use_device_allocator_for_initializers"] == "1"


def test_providers_in_order(load_tensorrt, affine, gpu):
    load_tensorrt(affine()).make_instance(0).close()
    (tensorrt, told), (cuda, _), cpu = gpu.calls[0].providers
    assert (tensorrt, cuda, cpu) == (TENSORRT, CUDA, CPU)
    assert told["trt_profile_max_shapes"] == "x:8x3"
    assert told["user_compute_stream"] == gpu.calls[0].providers[1][1]["user_compute_stream"]


def test_a_device_that_is_not_there_fails_at_once(affine, gpu):
    def refuse(index):
        raise ModelLoadError(f"device {index} cannot be used: the driver sees 1 devices, counted from 0")

    backend = OnnxRuntimeCudaBackend(**gpu.arguments | {"open_device": refuse})
    with pytest.raises(ModelLoadError, match="device 3 cannot be used"):
        backend.load(affine(), max_batch=8, threads=1, options={"devices": [3]})


def test_a_signature_is_read_without_a_session(load, affine, gpu):
    model = load(affine(), max_batch=None)
    assert (model.signature.max_batch, model.signature.inputs[0].shape) == (64, (3,))
    assert load(affine(), max_batch=None, batch_buckets=[2, 6]).signature.max_batch == 6
    assert (model.inline, gpu.calls) == (False, [])


@pytest.fixture
def heavy(write):
    """A model with 8 MiB of weights beside its file, and rows of 4 bytes."""
    weight = onnx.numpy_helper.from_array(np.zeros((1, 2 * MIB), np.float32), "w")
    return write(
        [helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node("ReduceSum", ["p", "axis"], ["y"])],
        [("x", TensorProto.FLOAT, ("N", 1))],
        [("y", TensorProto.FLOAT, ("N", 1))],
        [weight, helper.make_tensor("axis", TensorProto.INT64, [1], [1])],
        save_as_external_data=True,
        location="weights.bin",
    )


def test_a_load_that_does_not_fit_is_refused_before_it_takes_anything(load, heavy, gpu):
    (device,) = gpu.devices
    device.allocate(device.memory_info()[0] - 9 * MIB)
    with pytest.raises(ModelLoadError, match=r"expected to take 8 MiB, and 2 MiB must stay free; .* 9 MiB are free"):
        load(heavy, max_batch=1, headroom_bytes=2 * MIB).make_instance(0)
    assert gpu.calls == []
    load(heavy, max_batch=1, headroom_bytes=MIB // 2).make_instance(0).close()
    for memory in list(device.allocated):
        memory.close()


def test_what_a_session_is_expected_to_take(load, load_tensorrt, affine, gpu):
    (device,) = gpu.devices
    held = device.allocate(device.memory_info()[0] - 300)
    weights, buffers = 2 * 12, 8 * (12 + 12)
    for model, more in (
        (load(affine(), in_flight=3, headroom_bytes=300), 3 * buffers),
        (load_tensorrt(affine(), in_flight=1, headroom_bytes=300, workspace_bytes=77), buffers + 77),
    ):
        assert model._expected == weights + more
        with pytest.raises(ModelLoadError, match="does not fit"):
            model.make_instance(0)
    held.close()


def test_what_was_expected_and_not_taken_is_free_when_all_batches_are_there(load, heavy, gpu):
    (device,) = gpu.devices
    held = device.allocate(device.memory_info()[0] - 10 * MIB)
    model, other = load(heavy, max_batch=1), load(heavy, max_batch=1)
    first = model.make_instance(0)
    with pytest.raises(ModelLoadError, match="8 MiB are promised"):
        other.make_instance(0)
    second = model.make_instance(1)  # which took nothing, here
    third = other.make_instance(0)
    for instance in (first, second, third):
        instance.close()
    held.close()


def test_a_limit_is_left_for_the_model_that_has_it(load, heavy, gpu):
    gpu.takes = 8 * MIB
    limited = load(heavy, max_batch=1, memory_limit_bytes=100 * MIB).make_instance(0)
    free, _ = gpu.devices[0].memory_info()
    other = load(heavy, max_batch=1, memory_limit_bytes=free - 104 * MIB)
    with pytest.raises(ModelLoadError, match="of which 100 MiB are promised to models that are loaded"):
        other.make_instance(0)
    limited.close()
    other.make_instance(0).close()


def test_the_second_instance_is_refused_and_the_first_serves_on(load, heavy, gpu):
    (device,) = gpu.devices
    held = device.allocate(device.memory_info()[0] - 12 * MIB)
    gpu.takes = 8 * MIB
    model = load(heavy, max_batch=1)
    first, second = model.make_instance(0), model.make_instance(1)
    with pytest.raises(ModelLoadError, match="does not fit"):
        model.make_instance(2)
    for instance in (first, second):
        assert instance.run([[bytes(4)]], [(1, 1)], [0])[0].tolist() == [[0]]
        instance.close()
    gc.collect()
    held.close()


def test_tensorrts_libraries_are_loaded_from_their_package(load_tensorrt, affine, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "tensorrt_libs", raising=False)
    (tmp_path / "tensorrt_libs").mkdir()
    (tmp_path / "tensorrt_libs/__init__.py").write_text("")  # NVIDIA's loads what lies beside it
    monkeypatch.syspath_prepend(tmp_path)
    find_libraries.cache_clear()
    load_tensorrt(affine())
    assert sys.modules.pop("tensorrt_libs").__file__ == str(tmp_path / "tensorrt_libs/__init__.py")


# --- engines of TensorRT ----------------------------------------------------------------------------------------------


def test_engines_have_a_private_directory_for_each_model(affine, tmp_path):
    options = TensorRtOptions(engine_cache=str(tmp_path / "a" / "engines"))
    path = affine()
    first = engine_directory(path / "model.onnx", options, {"trt_profile_max_shapes": "x:8x3"})
    assert first.parent == tmp_path / "a" / "engines"
    assert {first.stat().st_mode & 0o777, first.parent.stat().st_mode & 0o777} == {0o700}
    assert engine_directory(path / "model.onnx", options, {"trt_profile_max_shapes": "x:8x3"}) == first
    others = [engine_directory(path / "model.onnx", options, {"trt_profile_max_shapes": "x:9x3"})]
    others.append(engine_directory(path / "model.onnx", options.model_copy(update={"precision": ("fp16",)}), {}))
    affine(TensorProto.DOUBLE)
    others.append(engine_directory(path / "model.onnx", options, {"trt_profile_max_shapes": "x:8x3"}))
    assert len({first, *others}) == 4
    assert engine_directory(path / "model.onnx", TensorRtOptions(engine_cache=False), {}) is None


def test_an_engine_is_not_taken_for_one_that_would_be_built_otherwise(affine, tmp_path, monkeypatch):
    file, table = affine() / "model.onnx", tmp_path / "ranges"
    options = TensorRtOptions(engine_cache=str(tmp_path / "engines"), int8_calibration_table=str(table))

    def directory(**changed):
        return engine_directory(file, options.model_copy(update=changed), {})

    table.write_bytes(b"1")
    first = directory()
    others = [
        directory(optimization_level=5),
        directory(workspace_bytes=1),
        directory(sparse_weights=True),
        directory(min_subgraph_nodes=5),
        directory(tensorrt={"trt_op_types_to_exclude": "Gemm"}),
        directory(graph_optimization_level="basic"),
    ]
    table.write_bytes(b"2")
    others.append(directory())
    table.write_bytes(b"1")
    monkeypatch.setattr("headrace.backends.onnxruntime.tensorrt._tensorrt_version", lambda: "101602")
    others.append(directory())
    monkeypatch.undo()
    assert len({first, *others}) == 9
    assert directory(devices=(1,), in_flight=3, headroom_bytes=0, memory_limit_bytes=1) == first
    table.unlink()
    with pytest.raises(ModelLoadError, match=r"int8_calibration_table: .*No such file"):
        directory()


def test_gpus_of_different_kinds_have_engines_of_their_own(load_tensorrt, affine, gpu):
    gpu.devices[0].name = "NVIDIA H100 80GB HBM3/x"
    load_tensorrt(affine()).make_instance(0).close()
    own = Path(gpu.calls[0].providers[0][1]["trt_engine_cache_path"])
    assert own.name == "NVIDIA-H100-80GB-HBM3-x"
    assert (own.is_dir(), own.stat().st_mode & 0o777) == (True, 0o700)


def test_engines_are_built_by_one_at_a_time(load_tensorrt, affine, gpu, tmp_path, monkeypatch):
    """Of all servers that use the directory."""
    opened, path = gpu.open_session, affine()
    load_tensorrt(path).make_instance(0).close()
    engines = Path(gpu.calls[0].providers[0][1]["trt_engine_cache_path"])
    builds, waits = threading.Event(), threading.Event()

    def slow(*arguments):
        builds.set()
        waits.wait(10)
        return opened(*arguments)

    monkeypatch.setattr(gpu, "open_session", slow)
    model = load_tensorrt(path)
    monkeypatch.undo()
    other = threading.Thread(target=lambda: model.make_instance(0).close())
    other.start()
    assert builds.wait(10)
    with open(engines / ".lock") as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    waits.set()
    other.join(10)
    assert not (engines / ".lock").exists()
    load_tensorrt(path, engine_cache=False).make_instance(0).close()


def test_engines_that_cannot_be_read_are_built_again(load_tensorrt, affine, gpu, monkeypatch, caplog):
    opened, path = gpu.open_session, affine()
    load_tensorrt(path).make_instance(0).close()
    engines = Path(gpu.calls[0].providers[0][1]["trt_engine_cache_path"])
    for name in ("a_sm90.engine", "a_sm90.profile", "TensorrtExecutionProvider_cache_sm90.timing"):
        (engines / name).write_bytes(b"cut off")
        (engines / name).chmod(0o600)

    def refuses(*arguments):
        for engine in engines.glob("*.engine"):
            raise ModelLoadError(
                f"ONNX Runtime cannot load m: TensorRT EP could not deserialize engine from cache: {engine}"
            )
        return opened(*arguments)

    monkeypatch.setattr(gpu, "open_session", refuses)
    load_tensorrt(path).make_instance(0).close()
    assert [file.suffix for file in engines.iterdir()] == [".timing"]
    assert "are not used, and built again: ONNX Runtime cannot load m" in caplog.text


def test_other_failures_leave_the_engines(load_tensorrt, affine, gpu, monkeypatch):
    def fails(*_):
        raise ModelLoadError("something else")

    monkeypatch.setattr(gpu, "open_session", fails)
    with pytest.raises(ModelLoadError, match="something else"):
        load_tensorrt(affine()).make_instance(0)


def test_the_default_is_in_the_users_cache(affine, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = engine_directory(affine() / "model.onnx", TensorRtOptions(), {})
    assert found.parent == tmp_path / "cache/headrace/ort-engines"


def test_a_directory_that_others_can_use_is_refused(tmp_path, monkeypatch):
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(ModelLoadError, match="has mode 0755, expected 0700"):
        private_directory(tmp_path / "open")
    (tmp_path / "link").symlink_to(tmp_path / "open")
    with pytest.raises(ModelLoadError, match="is a symbolic link or no directory"):
        private_directory(tmp_path / "link")
    (tmp_path / "file").touch()
    with pytest.raises(ModelLoadError, match="cannot be made"):
        private_directory(tmp_path / "file" / "inside")
    (tmp_path / "mine").mkdir(mode=0o700)
    monkeypatch.setattr("os.geteuid", lambda: 12345)
    with pytest.raises(ModelLoadError, match="expected 12345"):
        private_directory(tmp_path / "mine")


def test_a_calibration_table_beside_the_model(load_tensorrt, affine, gpu):
    path = affine()
    with pytest.raises(ModelLoadError, match=r"int8_calibration_table: there is no .*ranges\.flatbuffers"):
        load_tensorrt(path, precision=["int8"], int8_calibration_table="ranges.flatbuffers")
    (path / "ranges.flatbuffers").touch()
    load_tensorrt(path, precision=["int8"], int8_calibration_table="ranges.flatbuffers").make_instance(0).close()
    told = gpu.calls[0].providers[0][1]
    assert told["trt_int8_calibration_table_name"] == str(path / "ranges.flatbuffers")


def test_a_calibration_table_of_a_repository_that_is_named_from_where_one_is(load_tensorrt, affine, gpu, monkeypatch):
    path = affine()
    (path / "ranges").touch()
    monkeypatch.chdir(path.parent)
    load_tensorrt(Path(path.name), precision=["int8"], int8_calibration_table="ranges").make_instance(0).close()
    # ONNX Runtime looks for another in its engine cache
    assert gpu.calls[0].providers[0][1]["trt_int8_calibration_table_name"] == str(path / "ranges")
