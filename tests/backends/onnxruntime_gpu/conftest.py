"""ONNX Runtime's sessions as if they ran on devices: on the processor, but when the device's stream gets there."""

import ctypes
import math
import weakref
from collections import Counter
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from headrace.backends.footprint import ledger_of
from headrace.backends.onnxruntime.cuda import OnnxRuntimeCudaBackend
from headrace.backends.onnxruntime.tensorrt import OnnxRuntimeTensorRtBackend
from headrace.testing.device import FakeDevice

CPU = "CPUExecutionProvider"


class GpuOrt:
    """What a backend takes in place of ONNX Runtime and devices.

    calls: what each session was opened with. takes: bytes of the device that a session has. works: providers that can
    be set up. on_cpu: operators that the processor runs; of_shapes: for nothing but shapes, so that no data goes to and
    fro. on_host: tensors that are in the host's memory. fail: what the next run raises; loses: and its device is lost,
    which the text does not say. unrecordable: what a run raises that is recorded. waits: a run whose outputs are put
    anywhere waits for its inputs, as it does where dimensions depend on values. stale: a launched graph does nothing;
    forgets: one that another was recorded after. runs: of bindings, by kind. gone: sessions that nobody holds any more.
    """

    def __init__(self, devices=1, memory=1 << 30):
        self.devices = [FakeDevice(index, memory) for index in range(devices)]
        for device in self.devices:
            device.uuid = f"GPU-{id(self)}-{device.index}"
        self.calls = []
        self.takes = 0
        self.works = {"CUDAExecutionProvider", "TensorrtExecutionProvider"}
        self.tells = True
        self.on_cpu = ()
        self.of_shapes = False
        self.on_host = ()
        self.fail = None
        self.loses = False
        self.stale = False
        self.forgets = False
        self.unrecordable = None
        self.waits = False
        self.runs = Counter()
        self.gone = 0
        self.sessions = []

    def available(self):
        return ["TensorrtExecutionProvider", "CUDAExecutionProvider", CPU]

    def open_device(self, index):
        return self.devices[index]

    def open_session(self, file, threads, options, providers, entries):
        self.calls.append(SimpleNamespace(file=file, threads=threads, providers=providers, entries=dict(entries)))
        session = Session(self, file, providers, entries)
        self.sessions.append(weakref.ref(session))
        return session

    def opened(self):
        return [session for reference in self.sessions if (session := reference()) is not None]

    def let_go(self, memory):
        self.gone += 1
        memory.close()

    def fail_if_asked(self):
        if self.fail is not None:
            failure, self.fail = self.fail, None
            self.devices[0].lost = self.loses
            try:
                raise failure
            finally:
                del failure  # no cycle by way of the traceback

    @property
    def arguments(self):
        return {"open_device": self.open_device, "open_session": self.open_session, "available": self.available}


class Session:
    def __init__(self, gpu, file, providers, entries):
        self.gpu = gpu
        self.told = dict(provider for provider in providers if isinstance(provider, tuple))
        self.main = providers[0][0]
        own = self.told[self.main]
        self.device = gpu.devices[int(own["device_id"])]
        self.stream = self.device.stream_of(int(own["user_compute_stream"]))
        self.recorded = 0
        options = ort.SessionOptions()
        for key, value in entries.items():
            if key != "session.disable_cpu_ep_fallback":
                options.add_session_config_entry(key, value)
        self.real = ort.InferenceSession(file, options, providers=[CPU])
        weakref.finalize(self, gpu.let_go, self.device.allocate(gpu.takes))

    def get_providers(self):
        return [*(name for name in self.told if name in self.gpu.works), CPU]

    def __getattr__(self, name):
        if name == "get_provider_graph_assignment_info" and self.gpu.tells:
            return lambda: [self.assigned(subgraph) for subgraph in self.real.get_provider_graph_assignment_info()]
        raise AttributeError(name)

    def assigned(self, subgraph):
        nodes = subgraph.get_nodes()
        there = nodes[0].op_type in self.gpu.on_cpu
        return SimpleNamespace(ep_name=CPU if there else self.main, get_nodes=lambda: nodes)

    def get_inputs(self):
        return self.real.get_inputs()

    def get_outputs(self):
        return self.real.get_outputs()

    def get_input_memory_infos(self):
        return [SimpleNamespace(name="Cpu" if one.name in self.gpu.on_host else "Cuda") for one in self.get_inputs()]

    def get_output_memory_infos(self):
        return [SimpleNamespace(name="Cpu" if one.name in self.gpu.on_host else "Cuda") for one in self.get_outputs()]

    def io_binding(self):
        return Binding(self.real.io_binding(), self.device, self.gpu.on_host)

    def run_with_iobinding(self, binding, options):
        self.gpu.fail_if_asked()
        assert options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
        if binding.free:
            self._run_freely(binding)
            return
        if not self.stream.capturing:
            self.stream.enqueue(lambda: self._run(binding, "regular"))
            return
        if self.gpu.unrecordable is not None:
            raise self.gpu.unrecordable
        self.recorded += 1
        number = self.recorded
        copies = bool(self.gpu.on_cpu) and not self.gpu.of_shapes
        self.stream.enqueue(lambda: self._launched(binding, number), with_host=copies)

    def _run_freely(self, binding):
        """Outputs have a place and a shape when a run has been put into the stream, but no values."""
        if self.gpu.waits:
            self.stream.synchronize()
        names = list(binding.free)
        binding.values = [
            ort.OrtValue.ortvalue_from_numpy(array) if name in self.gpu.on_host else Value(self.device, array)
            for name, array in zip(names, self.real.run(names, binding.feeds()), strict=True)
        ]

        def run():
            self.gpu.runs["free"] += 1
            for value, array in zip(binding.values, self.real.run(names, binding.feeds()), strict=True):
                if isinstance(value, Value):
                    value.memory.array[:] = np.ascontiguousarray(array).view(np.uint8).ravel()

        self.stream.enqueue(run)

    def _launched(self, binding, number):
        if self.gpu.stale or (self.gpu.forgets and number != self.recorded):
            self.gpu.runs["stale"] += 1
        else:
            self._run(binding, "launched")

    def _run(self, binding, kind):
        self.gpu.runs[kind] += 1
        self.real.run_with_iobinding(binding.real)

    def run(self, names, feeds, options=None):
        self.gpu.fail_if_asked()
        self.gpu.runs["by name"] += 1
        return self.real.run(names, feeds, options)


class Value:
    """An output where ONNX Runtime has put it."""

    def __init__(self, device, like):
        self.memory = device.allocate(like.nbytes)
        self._shape = list(like.shape)

    def shape(self):
        return self._shape

    def data_ptr(self):
        return self.memory.pointer


class Binding:
    """The device's memory is the host's, where ONNX Runtime knows no other index than 0.

    on_host: inputs that are copied when they are bound, and not again, if that is to memory of the device.
    """

    def __init__(self, real, device, on_host):
        self.real = real
        self.device = device
        self.on_host = on_host
        self.copies = []
        self.bound = {}
        self.dtypes = {}
        self.free = []
        self.values = []

    def bind_input(self, name, kind, index, element, shape, pointer):
        there = [memory for memory in self.device.allocated if memory.pointer == pointer]
        assert (kind, index) == ((self.device.kind, self.device.index) if there else ("cpu", 0))
        if there and name in self.on_host:
            self.copies.append(there[0].array.copy())
            pointer = self.copies[-1].ctypes.data
        self.bound[name] = (tuple(shape), pointer)
        self.dtypes[name] = np.dtype(element) if isinstance(element, type) else None
        self.real.bind_input(name, kind, 0, element, shape, pointer)

    def feeds(self):
        made = {}
        for name, dtype in self.dtypes.items():
            shape, pointer = self.bound[name]
            there = (ctypes.c_uint8 * (dtype.itemsize * math.prod(shape))).from_address(pointer)
            made[name] = np.frombuffer(there, dtype).reshape(shape)
        return made

    def get_outputs(self):
        return self.values

    def clear_binding_outputs(self):
        for value in self.values:
            if isinstance(value, Value):
                value.memory.close()
        self.free, self.values = [], []

    def bind_output(self, name, kind, index, element=None, shape=None, pointer=None):
        if pointer is None and name in self.on_host:
            assert (kind, index) == ("cpu", 0), "ONNX Runtime would copy it, and not in the stream"
        else:
            assert (kind, index) == (self.device.kind, self.device.index)
        if pointer is None:
            self.free.append(name)
            return
        self.bound[name] = (tuple(shape), pointer)
        self.real.bind_output(name, kind, 0, element, shape, pointer)


@pytest.fixture
def gpu():
    return GpuOrt()


@pytest.fixture
def write(tmp_path):
    """Writes a model of the given nodes, inputs and outputs (name, type, shape) and weights; the version's path."""

    def write(nodes, inputs, outputs, weights=(), **save):
        def info(tensors):
            return [helper.make_tensor_value_info(*tensor) for tensor in tensors]

        graph = helper.make_graph(nodes, "g", info(inputs), info(outputs), weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        path = tmp_path / "m" / "1"
        path.mkdir(parents=True, exist_ok=True)
        onnx.save(model, path / "model.onnx", **save)
        return path

    return write


@pytest.fixture
def affine(write):
    """y = 2 x + 1, three numbers a row."""

    def affine(datatype=TensorProto.FLOAT, shape=("N", 3)):
        dtype = helper.tensor_dtype_to_np_dtype(datatype)
        return write(
            [helper.make_node("Mul", ["x", "two"], ["d"]), helper.make_node("Add", ["d", "one"], ["y"])],
            [("x", datatype, shape)],
            [("y", datatype, shape)],
            [
                onnx.numpy_helper.from_array(np.array([2] * 3, dtype), "two"),
                onnx.numpy_helper.from_array(np.array([1] * 3, dtype), "one"),
            ],
        )

    return affine


@pytest.fixture
def varying(write):
    """y = -x and z, its rows' sums, of rows of any length."""
    return write(
        [
            helper.make_node("Neg", ["x"], ["y"]),
            helper.make_node("ReduceSum", ["x", "axis"], ["z"], keepdims=0),
        ],
        [("x", TensorProto.FLOAT, ("N", "L"))],
        [("y", TensorProto.FLOAT, ("N", "L")), ("z", TensorProto.FLOAT, ("N",))],
        [helper.make_tensor("axis", TensorProto.INT64, [1], [1])],
    )


@pytest.fixture
def load(gpu):
    """Loads a version by the CUDA backend on the devices of `gpu`; graphs: as it is without an option for them."""

    def load(path, *, max_batch=8, backend=OnnxRuntimeCudaBackend, graphs=False, **options):
        plain = {} if graphs or backend is not OnnxRuntimeCudaBackend else {"cuda_graphs": False}
        options = {"headroom_bytes": 0} | plain | options
        return backend(**gpu.arguments).load(path, max_batch=max_batch, threads=1, options=options)

    return load


@pytest.fixture
def load_tensorrt(load, tmp_path):
    def load_tensorrt(path, **options):
        options = {"engine_cache": str(tmp_path / "cache"), "workspace_bytes": 0} | options
        return load(path, backend=OnnxRuntimeTensorRtBackend, **options)

    return load_tensorrt


@pytest.fixture(autouse=True)
def no_shares_left(gpu):
    yield
    assert not any(ledger_of(device)._shares for device in gpu.devices), "a share was not given back"
    assert not any(device.allocated for device in gpu.devices), "memory was not given back"
    assert not any(stream.open for device in gpu.devices for stream in device.streams), "a stream was not closed"
