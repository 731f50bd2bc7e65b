"""TensorRT in the host's memory: plans hold the ONNX model itself, and run on a `FakeDevice` by ONNX's own evaluator.

As strict as the real one, and stricter where that would only misbehave: shapes are within the profile, memory is the
device's, aligned and large enough; nobody else writes into activations meanwhile; a graph is not valid any more when
its context has been given other shapes. What a run has seen is kept in `runs`.
"""

import json
from itertools import count
from types import SimpleNamespace
from weakref import WeakSet

import numpy as np
import onnx
from onnx import numpy_helper, reference

from headrace.testing.device import device_in_use

NAMES = {
    onnx.TensorProto.FLOAT: "FLOAT",
    onnx.TensorProto.FLOAT16: "HALF",
    onnx.TensorProto.BFLOAT16: "BF16",
    onnx.TensorProto.INT8: "INT8",
    onnx.TensorProto.INT32: "INT32",
    onnx.TensorProto.INT64: "INT64",
    onnx.TensorProto.UINT8: "UINT8",
    onnx.TensorProto.BOOL: "BOOL",
    onnx.TensorProto.FLOAT8E4M3FN: "FP8",
}
MAGIC = b"fake plan "
ROW_SCRATCH = 64


class ILogger:
    Severity = int


class IProgressMonitor:
    pass


def enum(**values):
    return SimpleNamespace(**values)


class FakeTensorRt:
    """The module. fail: what fails, of execute, capture, context, load, refit, missing, shape, infer -> what is logged.

    during: called in the middle of each run, with the context. builds: how many engines were built.
    """

    __version__ = "11.4.0.106"
    ILogger = ILogger
    IProgressMonitor = IProgressMonitor
    TensorIOMode = enum(INPUT="input", OUTPUT="output")
    TensorLocation = enum(DEVICE="device", HOST="host")
    TensorFormat = enum(LINEAR="linear", CHW32="chw32")
    NetworkDefinitionCreationFlag = enum(STRONGLY_TYPED=1)
    MemoryPoolType = enum(WORKSPACE="workspace")
    BuilderFlag = enum(TF32="tf32", SPARSE_WEIGHTS="sparse", STRIP_PLAN="strip", REFIT="refit")
    HardwareCompatibilityLevel = enum(AMPERE_PLUS="ampere", SAME_COMPUTE_CAPABILITY="same")
    ExecutionContextAllocationStrategy = enum(USER_MANAGED="user")

    def __init__(self):
        self.fail = {}
        self.during = None
        self.builds = 0
        self.runs = []
        self.refits = 0
        self.contexts = WeakSet()
        self.tweak = lambda about: about
        self.Builder = lambda log: Builder(self, log)
        self.OnnxParser = OnnxParser
        self.Runtime = lambda log: Runtime(self, log)
        self.Refitter = lambda engine, log: Refitter(self, engine, log)
        self.OnnxParserRefitter = OnnxParserRefitter

    def init_libnvinfer_plugins(self, logger, namespace):
        return True

    def get_plugin_registry(self):
        return SimpleNamespace(load_library=lambda path: None)

    def refuses(self, what, log):
        if what in self.fail:
            log.log(1, self.fail[what])
            return True
        return False


# --- building ---------------------------------------------------------------------------------------------------------


class Network:
    def __init__(self):
        self.model = None

    num_inputs = property(lambda self: len(self.model.graph.input))
    num_outputs = property(lambda self: len(self.model.graph.output))

    def get_input(self, index):
        return self._tensor(self.model.graph.input[index])

    def get_output(self, index):
        return self._tensor(self.model.graph.output[index])

    def _tensor(self, value):
        return SimpleNamespace(name=value.name, shape=dims(value), is_shape_tensor=False)


def dims(value):
    return [d.dim_value if d.HasField("dim_value") else -1 for d in value.type.tensor_type.shape.dim]


class OnnxParser:
    num_errors = 0
    get_error = None  # it takes everything

    def __init__(self, network, log):
        self._network = network

    def parse(self, model, path):
        self._network.model = onnx.load_model_from_string(bytes(model))
        onnx.load_external_data_for_model(self._network.model, path.rpartition("/")[0])
        return True


class Config:
    def __init__(self):
        self.flags = {"tf32"}
        self.profiles = []
        self.timings = b""

    def set_memory_pool_limit(self, pool, size):
        pass

    def set_flag(self, flag):
        self.flags.add(flag)

    def clear_flag(self, flag):
        self.flags.discard(flag)

    def add_optimization_profile(self, profile):
        self.profiles.append(profile.shapes)
        return len(self.profiles) - 1

    def create_timing_cache(self, timings):
        self.timings = timings
        return SimpleNamespace(serialize=lambda: timings + b"+")

    def set_timing_cache(self, cache, ignore_mismatch):
        self.cache = cache
        return True

    def get_timing_cache(self):
        return self.cache


class Profile:
    def __init__(self):
        self.shapes = {}

    def set_shape(self, name, low, best, high):
        self.shapes[name] = [list(low), list(best), list(high)]


class Builder:
    def __init__(self, trt, log):
        self._trt = trt

    def create_network(self, flags):
        return Network()

    def create_builder_config(self):
        return Config()

    def create_optimization_profile(self):
        return Profile()

    def build_serialized_network(self, network, config):
        self._trt.builds += 1
        model = network.model
        if "strip" in config.flags:
            for tensor in model.graph.initializer:
                values = numpy_helper.to_array(tensor)
                tensor.CopyFrom(numpy_helper.from_array(np.full_like(values, 77), tensor.name))
        return make_plan(model, config.profiles, sorted(config.flags))


def make_plan(model, profiles, flags=()):
    about = {
        "model": model.SerializeToString().hex(),
        "profiles": profiles or [{}],
        "flags": list(flags),
        "scratch": ROW_SCRATCH * max([1, *(shapes[2][0] for profile in profiles for shapes in profile.values())]),
        "formats": {},
        "locations": {},
    }
    return MAGIC + json.dumps(about).encode()


# --- running ----------------------------------------------------------------------------------------------------------


class Runtime:
    engine_host_code_allowed = True  # whoever relies on the default is found out

    def __init__(self, trt, log):
        self._trt = trt
        self._log = log

    def deserialize_cuda_engine(self, plan):
        assert not self.engine_host_code_allowed
        if self._trt.refuses("load", self._log) or not plan.startswith(MAGIC):
            return None
        return Engine(self._trt, self._log, self._trt.tweak(json.loads(plan[len(MAGIC) :])))


class Engine:
    def __init__(self, trt, log, about):
        self.trt = trt
        self.log = log
        self.about = about
        self.model = onnx.load_model_from_string(bytes.fromhex(about["model"]))
        graph = self.model.graph
        self.inputs = {value.name: value for value in graph.input}
        self.tensors = self.inputs | {value.name: value for value in graph.output}
        self.outputs = [value.name for value in graph.output]
        self.data_dependent = any(node.op_type == "NonZero" for node in graph.node)
        self.device = device_in_use()
        self.reload()

    def reload(self):
        self.evaluator = reference.ReferenceEvaluator(self.model)

    num_io_tensors = property(lambda self: len(self.tensors))
    device_memory_size_v2 = property(lambda self: self.about["scratch"])
    num_optimization_profiles = property(lambda self: len(self.about["profiles"]))

    def get_tensor_name(self, index):
        return list(self.tensors)[index]

    def get_tensor_mode(self, name):
        return "input" if name in self.inputs else "output"

    def get_tensor_shape(self, name):
        return dims(self.tensors[name])

    def get_tensor_dtype(self, name):
        return SimpleNamespace(name=NAMES[self.tensors[name].type.tensor_type.elem_type])

    def get_tensor_format(self, name):
        return self.about["formats"].get(name, "linear")

    def get_tensor_location(self, name):
        return self.about["locations"].get(name, "device")

    def is_shape_inference_io(self, name):
        return False

    def get_tensor_profile_shape(self, name, profile):
        return self.about["profiles"][profile].get(name, [])

    def create_execution_context(self, strategy):
        assert strategy == "user"
        if self.trt.refuses("context", self.log):
            return None
        context = Context(self)
        self.trt.contexts.add(context)
        return context


class Context:
    ids = count(1)

    def __init__(self, engine):
        self.engine = engine
        self.id = next(self.ids)
        self.profile = None
        self.scratch = None
        self.addresses = {}
        self.generation = 0
        self.ran = None
        self.shapes = {name: dims(value) for name, value in engine.inputs.items() if min(dims(value), default=0) >= 0}

    def set_optimization_profile_async(self, profile, stream):
        self._stream(stream)
        self.profile = profile
        return True

    def set_device_memory(self, pointer, size):
        assert size >= self.engine.about["scratch"], "too little memory for activations"
        assert pointer % 256 == 0
        self.scratch = self._view(pointer, size)

    def set_input_shape(self, name, shape):
        low, _, high = self.engine.get_tensor_profile_shape(name, self.profile) or [dims(self.engine.tensors[name])] * 3
        if self.engine.trt.refuses("shape", self.engine.log) and name == list(self.engine.inputs)[-1]:
            return False
        if len(shape) != len(low) or not all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True)):
            self.engine.log.log(1, f"{name} has {list(shape)}, expected {low} to {high}")
            return False
        self.shapes[name] = list(shape)
        self.generation += 1
        return True

    def set_tensor_address(self, name, pointer):
        assert name in self.engine.tensors
        self.addresses[name] = pointer
        return True

    def infer_shapes(self):
        every = self.engine.trt.refuses("infer", self.engine.log)
        return [name for name in self.engine.inputs if every or name not in self.shapes]

    def get_tensor_shape(self, name):
        if name in self.engine.inputs:
            return self.shapes[name]
        if self.engine.data_dependent:
            return [-1] * len(dims(self.engine.tensors[name]))
        zeros = {key: np.zeros(shape, self._dtype(key)) for key, shape in self.shapes.items()}
        return list(self._compute(zeros)[name].shape)

    def execute_async_v3(self, handle):
        trt, log = self.engine.trt, self.engine.log
        stream = self._stream(handle)
        if trt.refuses("execute", log) or (stream.capturing and trt.refuses("capture", log)):
            return False
        shapes, addresses, generation = dict(self.shapes), dict(self.addresses), self.generation
        captured = stream.capturing
        if captured and self.ran != generation:
            log.log(1, "the first run with these shapes allocates, which cannot be captured")
            return False
        self.ran = generation

        def run():
            assert not captured or generation == self.generation, "a graph of a context that has other shapes now"
            token = next(self.ids) % 251
            self.scratch[:] = token
            if trt.during is not None:
                trt.during(self)
            arrays = {
                name: self._view(addresses[name], self._nbytes(name, shapes[name]))
                .view(self._dtype(name))
                .reshape(shapes[name])
                .copy()
                for name in self.engine.inputs
            }
            trt.runs.append({"context": self.id, "captured": captured, "inputs": arrays})
            for name, array in self._compute(arrays).items():
                flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
                self._view(addresses[name], flat.nbytes)[:] = flat
            assert (self.scratch == token).all(), "somebody else has written into activations"

        stream.enqueue(run)
        return True

    def _stream(self, handle):
        assert device_in_use() is self.engine.device, "this thread does not use the engine's device"
        return self.engine.device.stream_of(handle)

    def _compute(self, arrays):
        names = self.engine.outputs
        return dict(zip(names, self.engine.evaluator.run(names, arrays), strict=True))

    def _dtype(self, name):
        return onnx.helper.tensor_dtype_to_np_dtype(self.engine.tensors[name].type.tensor_type.elem_type)

    def _nbytes(self, name, shape):
        return int(np.prod(shape, dtype=int)) * self._dtype(name).itemsize

    def _view(self, pointer, nbytes):
        """Memory of the device, which must be there."""
        for memory in self.engine.device.allocated:
            if memory.pointer <= pointer and pointer + nbytes <= memory.pointer + max(memory.nbytes, 1):
                return memory.array[pointer - memory.pointer :][:nbytes]
        raise AssertionError(f"{nbytes} bytes at {pointer:#x} are not the device's")


class Refitter:
    def __init__(self, trt, engine, log):
        self.trt = trt
        self.engine = engine
        self.log = log

    def get_missing_weights(self):
        return ["w"] if self.trt.refuses("missing", self.log) else []

    def refit_cuda_engine(self):
        if self.trt.refuses("refit", self.log):
            return False
        self.trt.refits += 1
        self.engine.reload()
        return True


class OnnxParserRefitter:
    def __init__(self, refitter, log):
        self._refitter = refitter
        self._errors = []

    num_errors = property(lambda self: len(self._errors))

    def get_error(self, index):
        return self._errors[index]

    def refit_from_bytes(self, model, path):
        given = onnx.load_model_from_string(bytes(model))
        onnx.load_external_data_for_model(given, path.rpartition("/")[0])
        engine = self._refitter.engine
        assert {"refit", "strip"} & set(engine.about["flags"]), "the engine was not built for that"
        theirs = {tensor.name: tensor for tensor in given.graph.initializer}
        for tensor in engine.model.graph.initializer:
            other = theirs.get(tensor.name)
            if other is None or other.dims != tensor.dims:
                self._errors.append(f"weights {tensor.name} do not fit")
                return False
            if len(numpy_helper.to_array(tensor).reshape(-1)) > 8 or "strip" in engine.about["flags"]:
                tensor.CopyFrom(other)
        return True
