"""The device side: cuda-core's calls on a fake of it, the kernels' own source behind its launches."""

import ctypes
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from kernels.shim import Guarded, needs_compiler

from headrace_kernels import cubins
from headrace_kernels.check import cases
from headrace_kernels.check.agreement import disagreement
from headrace_kernels.device import DeviceKernels
from headrace_kernels.interface import KernelsUnavailable
from headrace_kernels.operations import SelectTop, UpdateStatistics


@pytest.fixture
def core(monkeypatch):
    pytest.importorskip("cuda.core", reason="no cuda-core, whose signatures the fake has: it is for Linux")
    from kernels.fake_gpu import FakeCore

    cubins.build(architectures=("90",))
    fake = FakeCore()
    monkeypatch.setitem(sys.modules, "cuda.core", fake)
    return fake


def on_device(case):
    return {
        each.name: Guarded(case.given.get(each.name, np.zeros(each.shape, each.dtype)), each.align)
        for each in case.operation.arrays()
    }


@needs_compiler
def test_launches_on_the_stream_that_it_is_given(core):
    kernels = DeviceKernels()
    assert repr(kernels) == "<DeviceKernels: device 0, sm_90, nothing loaded>"
    case = cases.statistics(np.random.default_rng(0), UpdateStatistics(300, 5, 8), seen=9)
    memory = on_device(case)
    run = kernels.bind(case.operation, {name: guarded.address for name, guarded in memory.items()})
    assert core.launched == []
    assert repr(kernels) == "<DeviceKernels: device 0, sm_90, statistics loaded>"
    run(kernels.stream(123456))
    assert core.launched == [(123456, "feature_partials_f32"), (123456, "feature_merge")]
    found = {name: guarded.array for name, guarded in memory.items()}
    assert disagreement(case.operation, case.expected(), found) is None


@needs_compiler
def test_runs_again_on_what_the_memory_holds_by_then(core):
    kernels = DeviceKernels()
    case = cases.top(np.random.default_rng(0), SelectTop(3, 10, 2))
    memory = on_device(case)
    run = kernels.bind(case.operation, {name: guarded.address for name, guarded in memory.items()})
    for scale in (1, -1):
        memory["logits"].array[...] = case.given["logits"] * np.float32(scale)
        run(kernels.stream())
        best = (case.given["logits"] * scale).argmax(axis=1)
        np.testing.assert_array_equal(memory["indices"].array[:, 0], best)


def test_makes_the_device_current_where_it_is_used(core):
    kernels = DeviceKernels()
    kernels.use()
    assert core.current == [0, 0]


def test_refuses_memory_that_is_missing_null_or_unaligned(core):
    kernels = DeviceKernels()
    operation = SelectTop(3, 10, 2)
    whole = {"logits": 4096, "values": 8192, "indices": 12288}
    with pytest.raises(ValueError, match="SelectTop needs the address of an array 'indices'"):
        kernels.bind(operation, {"logits": 4096, "values": 8192})
    for name, address in (("logits", 4098), ("values", 0)):
        with pytest.raises(ValueError, match=f"{name} is at {address:#x}; a multiple of 4 was expected"):
            kernels.bind(operation, {**whole, name: address})


def test_says_what_is_missing(core, monkeypatch):
    with pytest.raises(KernelsUnavailable, match="no GPU that can be used as device 1: CUDA_ERROR_INVALID_DEVICE"):
        DeviceKernels(1)
    monkeypatch.setitem(sys.modules, "cuda.core", None)
    with pytest.raises(KernelsUnavailable, match=r"cuda-core is not installed .*: pip install 'headrace\[gpu\]'"):
        DeviceKernels()


def test_says_beforehand_that_there_is_no_code(core, monkeypatch):
    kernels = DeviceKernels()
    kernels.load("images")
    assert repr(kernels) == "<DeviceKernels: device 0, sm_90, images loaded>"
    core._capability = (3, 5)

    def nothing(source, architecture):
        raise KernelsUnavailable("NVRTC is missing")

    monkeypatch.setattr(cubins, "compile_cubin", nothing)
    with pytest.raises(KernelsUnavailable, match=r"holds no code of topk\.cu for sm_35, and NVRTC is missing"):
        DeviceKernels().load("topk")
    monkeypatch.setattr(core, "ObjectCode", SimpleNamespace(from_cubin=lambda code, name: 1 / 0))
    with pytest.raises(KernelsUnavailable, match=r"the driver does not take the code of topk\.cu: division by zero"):
        kernels.load("topk")


def test_the_real_package_has_what_is_used():
    core = pytest.importorskip("cuda.core", reason="no cuda-core: it is for Linux")
    for kind, names in {
        core.Device: ("device_id", "name", "compute_capability", "set_current", "create_stream"),
        core.Stream: ("from_handle", "handle"),
        core.ObjectCode: ("from_cubin", "get_kernel"),
    }.items():
        assert [name for name in names if not hasattr(kind, name)] == []


@pytest.mark.parametrize(("value", "octets"), [(np.int32(-2), 4), (np.uint64(1 << 63), 8), (np.float32(0.1), 4)])
def test_cuda_core_passes_numpy_scalars_as_what_they_are(value, octets):
    """It documents no types of arguments; a kernel's parameters lie in memory as these do."""
    handler = pytest.importorskip("cuda.core._kernel_arg_handler", reason="no cuda-core: it is for Linux")
    holder = handler.ParamHolder((value,))
    where = ctypes.c_void_p.from_address(holder.ptr).value
    assert ctypes.string_at(where, octets) == value.tobytes()
