from types import SimpleNamespace

import pytest

from headrace.backends.device import DeviceLost, DeviceOutOfMemory
from headrace.backends.onnxruntime.failures import device_error
from headrace.backends.onnxruntime.placement import check_placement, check_providers, read_placement, session_placement
from headrace.errors import ModelLoadError

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


def subgraph(provider, *kinds):
    return SimpleNamespace(ep_name=provider, get_nodes=lambda: [SimpleNamespace(op_type=kind) for kind in kinds])


def placed(cuda=(), cpu=()):
    return read_placement([subgraph(CUDA, *cuda), *(subgraph(CPU, kind) for kind in cpu)])


def test_nodes_are_counted_by_provider():
    found = placed(["Conv", "Relu", "Conv"], ["Shape", "Gather", "Shape"])
    assert found.counts == {CUDA: 3, CPU: 3}
    assert str(found) == f"of 6 nodes 3 by {CUDA}, 3 by {CPU} (Shape 2, Gather 1)"


def test_as_much_on_the_processor_as_is_allowed():
    found = placed(["Conv"] * 8, ["Shape", "NonZero"])
    check_placement(found, CUDA, 0.2)
    with pytest.raises(ModelLoadError) as refused:
        check_placement(found, CUDA, 0.1999)
    assert str(refused.value) == (
        "the processor would run 2 of the model's 10 nodes, NonZero 1, Shape 1, and max_cpu_nodes = 0.1999 allows 1"
    )
    check_placement(placed(["Conv"]), CUDA, 0)


def test_a_model_without_a_node_where_it_was_asked_for():
    with pytest.raises(ModelLoadError, match="TensorrtExecutionProvider runs no node of the model: of 1 nodes 1 by"):
        check_placement(placed(["Conv"]), "TensorrtExecutionProvider", 1)
    with pytest.raises(ModelLoadError, match="runs no node"):
        check_placement(placed([], ["Conv"]), CUDA, 1)
    check_placement(read_placement([]), CUDA, 0)  # nothing is left of it but constants


def test_a_provider_that_could_not_be_set_up():
    check_providers([CUDA, CPU], [CUDA])
    with pytest.raises(ModelLoadError, match=f"could not set up {CUDA} and would run the model by {CPU}; its log says"):
        check_providers([CPU], [CUDA])


def test_a_version_that_does_not_tell():
    assert session_placement(SimpleNamespace()) is None


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("CUDA failure 2: out of memory ; GPU=0 ; hostname=h ; expr=cudaMalloc((void**)&p, size)", DeviceOutOfMemory),
        ("CUDA failure 700: an illegal memory access was encountered\nmore", DeviceLost),
        ("CUDA error 719: unspecified launch failure", DeviceLost),
        ("CUDA failure 226: an exception was contained", DeviceLost),
        ("while running Exp node. Status Message: CUDA error cudaErrorTensorMemoryLeak:tensor memory", DeviceLost),
        ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0", DeviceOutOfMemory),
        ("CUBLAS failure 3: the resource allocation failed ; GPU=0 ; hostname=h", DeviceOutOfMemory),
        ("CUBLAS failure 13: the function failed to launch on the GPU ; GPU=0 ; hostname=h", None),
        ("CUBLAS failure 38: no such thing ; GPU=0", None),
        ("CUDNN failure 4004: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED ; GPU=0", DeviceOutOfMemory),
        ("CUDA failure 900: operation not permitted when stream is capturing", None),
        ("CUDA failure 1: invalid argument", None),
        (
            "Error in execution: Non-zero status code returned while running Exp node. Name:'' Status Message: "
            "/onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:360 void* onnxruntime::BFCArena::"
            "AllocateRawInternal(size_t, bool, onnxruntime::Stream*) Failed to allocate memory for requested buffer of "
            "size 48000000",
            DeviceOutOfMemory,
        ),
        ("AllocateRawInternal(...) Available memory of 8 is smaller than requested bytes of 9", None),
        ("while running Exp node. Status Message: CUDA error cudaErrorIllegalAddress:an illegal memory", DeviceLost),
        ("while running Exp node. Status Message: CUDA error cudaErrorInvalidValue:invalid argument", None),
        ("while running Exp node. Status Message: CUDA error cudaErrorMemoryAllocation:out of", DeviceOutOfMemory),
        ("Got invalid dimensions for input: x", None),
    ],
)
def test_what_errors_mean_for_the_device(text, kind):
    found = device_error(text)
    assert (None if found is None else type(found)) == kind
    if found is not None:
        assert "more" not in str(found)
