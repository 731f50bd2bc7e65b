# ruff: noqa: N802, N815  -- the driver's own names
"""The calls that `backends.cuda` makes, on a driver of the tests' own, and against the names of the real bindings."""

import ast
import ctypes
import inspect
import re
from types import SimpleNamespace

import numpy as np
import pytest

from headrace.backends.device import DeviceError, DeviceLost, DeviceOutOfMemory, open_device
from headrace.backends.staging import Lane
from headrace.errors import ModelLoadError

driver = pytest.importorskip("cuda.bindings.driver", reason="pip install cuda-bindings")
cuda = pytest.importorskip("headrace.backends.cuda")
OK = driver.CUresult.CUDA_SUCCESS


class FakeDriver:
    """The driver's functions in the host's memory: copies are done at once. fail: name of a call -> its status."""

    def __init__(self):
        self.calls = []
        self.fail = {}
        self.memory = {}
        self.nodes = []

    def __getattr__(self, name):
        real = getattr(driver, name)
        if not name.startswith("cu"):
            return real
        arity = len(re.match(r"\w+\((.*?)\)", real.__doc__)[1].split(",")) if "()" not in real.__doc__[:60] else 0

        def call(*arguments):
            assert len(arguments) == arity, f"{name} takes {arity} arguments"
            self.calls.append(name)
            if name in self.fail:
                return self.fail[name], None
            made = getattr(self, f"_{name}", lambda *_: (len(self.calls),))(*arguments)
            return made if made and isinstance(made[0], driver.CUresult) else (OK, *made)

        return call

    def _cuDeviceGetCount(self):
        return (2,)

    def _cuDeviceGetName(self, length, device):
        return (b"Fake GPU" + bytes(length - 8),)

    def _cuDeviceGetUuid(self, device):
        return (SimpleNamespace(bytes=bytes(range(16))),)

    def _cuDeviceGetAttribute(self, attribute, device):
        return (9 if "MAJOR" in attribute.name else 0,)

    def _cuGetErrorString(self, status):
        return (b"as the test wants",)

    def _cuDriverGetVersion(self):
        return (13000,)

    def _cuMemGetInfo(self):
        return 10, 20

    def _alloc(self, nbytes, flags=0):
        memory = np.zeros(nbytes, np.uint8)
        self.memory[memory.ctypes.data] = memory
        return (memory.ctypes.data,)

    _cuMemAlloc = _cuMemHostAlloc = _alloc

    def _free(self, pointer):
        del self.memory[pointer]
        return ()

    _cuMemFree = _cuMemFreeHost = _free

    def _copy(self, target, source, nbytes, stream):
        ctypes.memmove(target, source, nbytes)
        return ()

    _cuMemcpyHtoDAsync = _cuMemcpyDtoHAsync = _copy

    def _cuEventElapsedTime(self, start, end):
        return (1.5,)

    def _cuGraphGetNodes(self, graph, room=0):
        return self.nodes[:room], room or len(self.nodes)

    def _cuGraphNodeGetType(self, node):
        return (node.kind,)

    def _cuGraphMemcpyNodeGetParams(self, node):
        return (node,)

    def _cuPointerGetAttribute(self, attribute, pointer):
        known = {0x1000: PLACES.CU_MEMORYTYPE_DEVICE, 0x2000: PLACES.CU_MEMORYTYPE_HOST}
        return (int(known[pointer]),) if pointer in known else (driver.CUresult.CUDA_ERROR_INVALID_VALUE, None)


@pytest.fixture
def fake(monkeypatch):
    fake = FakeDriver()
    monkeypatch.setattr(cuda, "driver", fake)
    cuda.open_device.cache_clear()
    yield fake
    cuda.open_device.cache_clear()


def test_every_name_exists_in_the_bindings():
    tree = ast.parse(inspect.getsource(cuda))
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "driver"
    }
    assert len(used) > 25
    assert [name for name in used if not hasattr(driver, name)] == []


def test_a_device_says_what_it_is(fake):
    device = open_device(1)
    assert (device.name, device.architecture, device.driver) == ("Fake GPU", (9, 0), 13000)
    assert device.uuid == "GPU-00010203-0405-0607-0809-0a0b0c0d0e0f"
    assert device.memory_info() == (10, 20)
    assert repr(device) == "<CudaDevice 1 Fake GPU sm_90>"
    assert open_device(1) is device


def test_a_batch_goes_there_and_back(fake):
    lane = Lane(open_device(0), [8], [8])
    lane.lay(0, [b"abcd", b"efgh"], 8)
    lane.upload(0, 8)
    ctypes.memmove(lane.outputs[0].pointer, lane.inputs[0].pointer, 8)
    lane.download(0, 8)
    lane.stream.synchronize()
    assert bytes(lane._from[0].array) == b"abcdefgh"
    lane.close()
    assert not fake.memory
    lane.close()  # once is enough


def test_a_stream_is_waited_for_as_was_asked(fake):
    for busy, wait in ((False, "cuStreamSynchronize"), (True, "cuEventSynchronize")):
        lane = Lane(open_device(0), [8], [8], busy_wait=busy)
        fake.calls.clear()
        lane.stream.synchronize()
        assert fake.calls[-1] == wait
        fake.calls.clear()
        lane.close()
        assert ("cuEventDestroy" in fake.calls) is busy


@pytest.mark.parametrize("busy", [False, True])
def test_a_stream_that_cannot_be_made_leaves_nothing(fake, busy):
    device = open_device(0)
    fake.fail["cuStreamCreate"] = driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY
    with pytest.raises(DeviceOutOfMemory):
        device.stream(busy_wait=busy)
    assert fake.calls.count("cuEventCreate") == fake.calls.count("cuEventDestroy") == busy


def test_events_that_are_waited_for_on_a_core_do_not_block(fake, monkeypatch):
    made = []
    monkeypatch.setattr(fake, "_cuEventCreate", lambda flags: (made.append(flags) or 1,), raising=False)
    stream = open_device(0).stream(busy_wait=True)
    stream.record().close()
    untimed, blocking = driver.CUevent_flags.CU_EVENT_DISABLE_TIMING, driver.CUevent_flags.CU_EVENT_BLOCKING_SYNC
    assert made == [untimed, untimed | blocking]


def test_events_and_graphs(fake):
    stream = open_device(0).stream()
    start, end = stream.record(timed=True), stream.record(timed=True)
    stream.wait(start)
    end.synchronize()
    assert end.milliseconds_since(start) == 1.5
    fake.calls.clear()
    graph = stream.capture(lambda: stream.wait(start))
    graph.launch(stream)
    graph.close()
    start.close()
    assert fake.calls == [
        "cuStreamBeginCapture", "cuStreamWaitEvent", "cuStreamEndCapture", "cuGraphInstantiate", "cuGraphDestroy",
        "cuGraphLaunch", "cuGraphExecDestroy", "cuEventDestroy",
    ]  # fmt: skip


KINDS = driver.CUgraphNodeType
PLACES = driver.CUmemorytype


def copy_node(source, target, pointer=0):
    kinds = {
        "host": PLACES.CU_MEMORYTYPE_HOST,
        "there": PLACES.CU_MEMORYTYPE_DEVICE,
        "any": PLACES.CU_MEMORYTYPE_UNIFIED,
    }
    return SimpleNamespace(
        kind=KINDS.CU_GRAPH_NODE_TYPE_MEMCPY,
        srcMemoryType=kinds[source],
        srcDevice=pointer,
        dstMemoryType=kinds[target],
        dstDevice=pointer,
    )


def node(kind):
    return SimpleNamespace(kind=getattr(KINDS, f"CU_GRAPH_NODE_TYPE_{kind}"))


@pytest.mark.parametrize(
    "nodes",
    [
        [],
        [node("KERNEL"), node("MEMSET"), node("EMPTY"), copy_node("there", "there")],
        [node("MEM_ALLOC"), node("KERNEL"), node("MEM_FREE")],  # as cuBLAS has workspaces
        [copy_node("any", "there", pointer=0x1000)],
    ],
    ids=["none", "several", "memory", "unified"],
)
def test_a_graph_that_is_closed(fake, nodes):
    fake.nodes = nodes
    open_device(0).stream().capture(lambda: None, closed=True).close()


@pytest.mark.parametrize(
    ("last", "why"),
    [
        (copy_node("host", "there"), "it copies from or to the host's memory"),
        (copy_node("there", "host"), "it copies from or to the host's memory"),
        (copy_node("any", "there", pointer=0x2000), "it copies from or to the host's memory"),  # page-locked
        (
            copy_node("there", "any", pointer=0x3000),
            "it copies from or to the host's memory",
        ),  # the driver knows nothing
        (node("HOST"), "it has a node of kind CU_GRAPH_NODE_TYPE_HOST"),
        (node("CONDITIONAL"), "it has a node of kind CU_GRAPH_NODE_TYPE_CONDITIONAL"),
    ],
    ids=["from-the-host", "to-the-host", "page-locked", "unknown", "call", "condition"],
)
def test_a_graph_that_is_not(fake, last, why):
    fake.nodes = [node("KERNEL"), last]
    stream = open_device(0).stream()
    with pytest.raises(DeviceError, match=why):
        stream.capture(lambda: None, closed=True)
    assert fake.calls[-1] == "cuGraphDestroy"
    assert "cuGraphInstantiate" not in fake.calls
    stream.capture(lambda: None).close()


def test_a_capture_that_fails_ends(fake):
    stream = open_device(0).stream()
    with pytest.raises(KeyError):
        stream.capture(lambda: {}[0])
    assert fake.calls[-1] == "cuStreamEndCapture"
    fake.fail["cuStreamEndCapture"] = driver.CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
    with pytest.raises(DeviceError, match="CUDA_ERROR_STREAM_CAPTURE_INVALIDATED: "):
        stream.capture(lambda: None)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("OUT_OF_MEMORY", DeviceOutOfMemory),
        ("ILLEGAL_ADDRESS", DeviceLost),
        ("LAUNCH_FAILED", DeviceLost),
        ("CONTAINED", DeviceLost),
        ("NVLINK_UNCORRECTABLE", DeviceLost),
        ("TENSOR_MEMORY_LEAK", DeviceLost),
        ("INVALID_VALUE", DeviceError),
    ],
)
def test_what_the_driver_says_is_told_apart(fake, status, kind):
    stream = open_device(0).stream()
    fake.fail["cuStreamSynchronize"] = getattr(driver.CUresult, f"CUDA_ERROR_{status}")
    with pytest.raises(kind, match=f"CUDA_ERROR_{status}: as the test wants") as raised:
        stream.synchronize()
    assert type(raised.value) is kind


class TestWithoutWhatItNeeds:
    def test_no_driver(self):
        with pytest.raises(ModelLoadError, match="there is no CUDA driver that works"):
            open_device(0)

    def test_no_such_device(self, fake):
        with pytest.raises(ModelLoadError, match="device 2 cannot be used: the driver sees 2 devices"):
            open_device(2)

    def test_a_device_that_refuses(self, fake):
        fake.fail["cuDevicePrimaryCtxRetain"] = driver.CUresult.CUDA_ERROR_DEVICE_UNAVAILABLE
        with pytest.raises(ModelLoadError, match="device 0 cannot be used: CUDA_ERROR_DEVICE_UNAVAILABLE"):
            open_device(0)

    def test_no_package(self):
        with pytest.raises(ModelLoadError, match=r"device 0 cannot be used: .*pip install headrace\[gpu\]"):
            open_device(0, "headrace.no_such_module:open_device")
