"""The part of TensorRT's Python API that this backend uses, by its own names.

The type checker holds the code to what is written here, and a test holds this to the real modules of TensorRT 10 and
11, signatures included: so neither can go stale. Methods are called with positional arguments alone.

Source: the API reference of TensorRT 10.16 and 11.4, docstrings of the modules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# --- values -----------------------------------------------------------------------------------------------------------


class Dims(Protocol):
    """A shape; -1 is a dimension that is not known."""

    def __iter__(self) -> Iterator[int]: ...


class IHostMemory(Protocol):
    """Bytes that TensorRT has made."""

    def __buffer__(self, flags: int, /) -> memoryview: ...


class DataType(Protocol):
    """What the elements of a tensor are: FLOAT, HALF and so on, by `name`."""

    @property
    def name(self) -> str: ...


class TensorIOMode(Protocol):
    """Whether a tensor of an engine is an input."""

    INPUT: TensorIOMode


class TensorLocation(Protocol):
    """Whose memory a tensor of an engine is read from."""

    DEVICE: TensorLocation


class TensorFormat(Protocol):
    """How the elements of a tensor lie in memory."""

    LINEAR: TensorFormat


class NetworkDefinitionCreationFlag(Protocol):
    """Of a network; only TensorRT 10 is to be told, later ones have no other kind."""

    STRONGLY_TYPED: NetworkDefinitionCreationFlag

    def __int__(self) -> int: ...


class MemoryPoolType(Protocol):
    """What a memory limit is for."""

    WORKSPACE: MemoryPoolType


class BuilderFlag(Protocol):
    """What a builder may do, or must."""

    TF32: BuilderFlag
    SPARSE_WEIGHTS: BuilderFlag
    STRIP_PLAN: BuilderFlag
    REFIT: BuilderFlag


class HardwareCompatibilityLevel(Protocol):
    """On which GPUs a plan is to run."""

    AMPERE_PLUS: HardwareCompatibilityLevel
    SAME_COMPUTE_CAPABILITY: HardwareCompatibilityLevel


class ExecutionContextAllocationStrategy(Protocol):
    """Who provides the memory for activations."""

    USER_MANAGED: ExecutionContextAllocationStrategy


# --- what the code subclasses -----------------------------------------------------------------------------------------


class Severity(Protocol):
    """Of a message: 0 internal error, 1 error, 2 warning, 3 info, 4 verbose."""

    def __int__(self) -> int: ...


class ILogger(Protocol):
    """Takes TensorRT's messages; most failures are told nowhere else."""

    def log(self, severity: Severity, msg: str, /) -> None: ...


class IProgressMonitor(Protocol):
    """Is told how far a build has got, from any thread."""

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int, /) -> None: ...
    def step_complete(self, phase_name: str, step: int, /) -> bool: ...
    def phase_finish(self, phase_name: str, /) -> None: ...


# --- building ---------------------------------------------------------------------------------------------------------


class ITensor(Protocol):
    """A tensor of a network."""

    name: str

    @property
    def shape(self) -> Dims: ...
    @property
    def is_shape_tensor(self) -> bool: ...


class INetworkDefinition(Protocol):
    """What a parser has made of a file."""

    @property
    def num_inputs(self) -> int: ...
    @property
    def num_outputs(self) -> int: ...
    def get_input(self, index: int, /) -> ITensor: ...
    def get_output(self, index: int, /) -> ITensor: ...


class IOptimizationProfile(Protocol):
    """A range of shapes that an engine is tuned for."""

    def set_shape(self, name: str, low: Sequence[int], best: Sequence[int], high: Sequence[int], /) -> None: ...


class ITimingCache(Protocol):
    """How long kernels took on a GPU."""

    def serialize(self) -> IHostMemory: ...


class IBuilderConfig(Protocol):
    """How an engine is to be built."""

    builder_optimization_level: int
    hardware_compatibility_level: HardwareCompatibilityLevel
    progress_monitor: IProgressMonitor

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int, /) -> None: ...
    def set_flag(self, flag: BuilderFlag, /) -> None: ...
    def clear_flag(self, flag: BuilderFlag, /) -> None: ...
    def add_optimization_profile(self, profile: IOptimizationProfile, /) -> int: ...
    def create_timing_cache(self, serialized_timing_cache: bytes, /) -> ITimingCache | None: ...
    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool, /) -> bool: ...
    def get_timing_cache(self) -> ITimingCache | None: ...


class Builder(Protocol):
    """Builds engines. Lets go of the interpreter lock meanwhile."""

    def create_network(self, flags: int, /) -> INetworkDefinition: ...
    def create_builder_config(self) -> IBuilderConfig: ...
    def create_optimization_profile(self) -> IOptimizationProfile: ...
    def build_serialized_network(
        self, network: INetworkDefinition, config: IBuilderConfig, /
    ) -> IHostMemory | None: ...


class OnnxParser(Protocol):
    """Reads ONNX files."""

    @property
    def num_errors(self) -> int: ...
    def parse(self, model: bytes, path: str | None, /) -> bool: ...
    def get_error(self, index: int, /) -> object: ...


class IPluginRegistry(Protocol):
    """Layers that are not TensorRT's own."""

    def load_library(self, plugin_path: str, /) -> object: ...


# --- running ----------------------------------------------------------------------------------------------------------


class IExecutionContext(Protocol):
    """What one stream runs an engine with."""

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int, /) -> bool: ...
    def set_device_memory(self, memory: int, size: int, /) -> None: ...
    def set_input_shape(self, name: str, shape: tuple[int, ...], /) -> bool: ...
    def set_tensor_address(self, name: str, memory: int, /) -> bool: ...
    def infer_shapes(self) -> list[str]: ...
    def get_tensor_shape(self, name: str, /) -> Dims: ...
    def execute_async_v3(self, stream_handle: int, /) -> bool: ...


class ICudaEngine(Protocol):
    """A plan in a device's memory."""

    @property
    def num_io_tensors(self) -> int: ...
    @property
    def num_optimization_profiles(self) -> int: ...
    @property
    def device_memory_size_v2(self) -> int: ...
    def get_tensor_name(self, index: int, /) -> str: ...
    def get_tensor_mode(self, name: str, /) -> TensorIOMode: ...
    def get_tensor_shape(self, name: str, /) -> Dims: ...
    def get_tensor_dtype(self, name: str, /) -> DataType: ...
    def get_tensor_format(self, name: str, /) -> TensorFormat: ...
    def get_tensor_location(self, name: str, /) -> TensorLocation: ...
    def get_tensor_profile_shape(self, name: str, profile_index: int, /) -> Sequence[Dims]: ...
    def is_shape_inference_io(self, name: str, /) -> bool: ...
    def create_execution_context(self, strategy: ExecutionContextAllocationStrategy, /) -> IExecutionContext | None: ...


class Runtime(Protocol):
    """Loads plans."""

    engine_host_code_allowed: bool

    def deserialize_cuda_engine(self, serialized_engine: bytes, /) -> ICudaEngine | None: ...


class Refitter(Protocol):
    """Puts weights into an engine."""

    def get_missing_weights(self) -> list[str]: ...
    def refit_cuda_engine(self) -> bool: ...


class OnnxParserRefitter(Protocol):
    """Takes the weights for it from an ONNX file."""

    @property
    def num_errors(self) -> int: ...
    def refit_from_bytes(self, model: bytes, path: str | None, /) -> bool: ...
    def get_error(self, index: int, /) -> object: ...
