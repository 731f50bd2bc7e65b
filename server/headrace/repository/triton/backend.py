"""What a `config.pbtxt` says of the backend: which one, and its options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headrace.repository.triton.gpus import FOR_GPUS, read_accelerators, read_parameter

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from headrace.repository.triton.gpus import Placed
    from headrace.repository.triton.notes import Notes
    from headrace.rpc import model_config_pb2 as mc

PLATFORMS = {
    "onnxruntime_onnx": "onnxruntime",
    "tensorrt_plan": "tensorrt",
    "pytorch_libtorch": "pytorch",
    "tensorflow_savedmodel": "tensorflow",
    "tensorflow_graphdef": "tensorflow",
}
FILES = {
    "model.onnx": "onnxruntime",
    "model.plan": "tensorrt",
    "model.pt": "pytorch",
    "model.savedmodel": "tensorflow",
    "model.graphdef": "tensorflow",
    "model.xml": "openvino",
    "model.py": "python",
}
"""What tells the backend where nothing else does: the file's name."""
KNOWN = ("onnxruntime", "tensorrt")
PLAN = "model.plan"
GRAPH_LEVELS = {-1: "basic", 1: "extended", 2: "disabled"}
"""Triton's numbers for ONNX Runtime's levels; 0 and all others mean every optimisation."""
Values = dict[str, Any]


def read_backend(message: mc.ModelConfig, files: Collection[str], placed: Placed, notes: Notes) -> Values:
    """Settings of model.toml: the backend, its options and threads. files: in a version of the model."""
    if message.HasField("ensemble_scheduling"):
        return _no_backend(message, notes)
    backend = _backend(message, files, notes)
    if ":" in backend:  # a user's own
        return _own_backend(backend, message, placed, notes)
    if backend == "tensorrt":
        return _tensorrt(message, files, placed, notes)
    options: Values = {}
    values: Values = {"backend_options": options}
    on_gpu = bool(placed.devices)
    for key, parameter in sorted(message.parameters.items()):
        _parameter(key, parameter.string_value, values, notes, on_gpu=on_gpu)
    backend = read_accelerators(message, placed, options, notes)
    if backend != "onnxruntime":
        values["backend"] = backend
    level = message.optimization.graph.level
    if level in GRAPH_LEVELS:
        options["graph_optimization_level"] = GRAPH_LEVELS[level]
    elif level:
        notes.ignored("optimization.graph.level", f"{level} means all optimisations, as in Triton")
    if message.default_model_filename not in ("", "model.onnx"):
        options["file"] = message.default_model_filename
    if message.model_operations.op_library_filename:
        options["op_libraries"] = list(message.model_operations.op_library_filename)
    return {key: value for key, value in values.items() if value != {}}


def _tensorrt(message: mc.ModelConfig, files: Collection[str], placed: Placed, notes: Notes) -> Values:
    """A plan where there is one, as in Triton; else the ONNX file, of which the server builds its own."""
    options: Values = {}
    plan = PLAN if PLAN in files or "model.onnx" not in files else ""
    file = message.default_model_filename or plan
    if file not in ("", "model.onnx"):
        options["file"] = file
    if message.model_operations.op_library_filename:
        options["plugins"] = list(message.model_operations.op_library_filename)
    if placed.on_cpu:
        notes.wrong("instance_group", "is on the CPU, but TensorRT runs on GPUs alone")
    if placed.devices:
        options["devices"] = list(placed.devices)
    if message.optimization.graph.level:
        notes.ignored("optimization.graph.level", "ignored: it is for other backends")
    for key in sorted(message.parameters):
        notes.ignored(f"parameters[{key}]", "ignored: options of tensorrt stand in model.toml alone")
    return {"backend": "tensorrt"} | ({"backend_options": options} if options else {})


def _own_backend(backend: str, message: mc.ModelConfig, placed: Placed, notes: Notes) -> Values:
    for_triton = {
        "default_model_filename": message.default_model_filename,
        "optimization.graph": message.optimization.graph.level,
        "model_operations": message.model_operations.op_library_filename,
    }
    for where, given in for_triton.items():
        if given:
            notes.ignored(where, f"ignored: {backend} gets the parameters alone, as its options")
    if placed.devices:
        notes.ignored("instance_group", f"on GPUs {list(placed.devices)}: where it runs is for {backend} to decide")
    options = {key: parameter.string_value for key, parameter in sorted(message.parameters.items())}
    return {"backend": backend} | ({"backend_options": options} if options else {})


def _no_backend(message: mc.ModelConfig, notes: Notes) -> Values:
    """An ensemble has none, nor what goes with one."""
    if message.platform != "ensemble" or message.backend:
        notes.wrong("platform", "an ensemble must have platform 'ensemble' and no backend")
    for field in ("instance_group", "model_warmup"):
        if getattr(message, field):
            notes.wrong(field, "an ensemble cannot have it")
    if message.HasField("optimization"):
        notes.wrong("optimization", "an ensemble cannot have it")
    for_backends = {
        "parameters": message.parameters,
        "default_model_filename": message.default_model_filename,
        "model_operations": message.model_operations.op_library_filename,
    }
    for field, given in for_backends.items():
        if given:
            notes.ignored(field, "ignored: an ensemble has no backend")
    return {}


def _backend(message: mc.ModelConfig, files: Collection[str], notes: Notes) -> str:
    platform, backend = message.platform, message.backend
    if platform == "ensemble":
        notes.wrong("platform", "ensemble scheduling must be set for a model whose platform is ensemble")
        return "onnxruntime"
    if not backend and platform:
        backend = PLATFORMS.get(platform, "")
        if not backend:
            notes.wrong("platform", f"unexpected platform type '{platform}', expected onnxruntime_onnx")
            return "onnxruntime"
    elif backend and platform and ":" not in backend and PLATFORMS.get(platform) != backend:
        notes.wrong("platform", f"unexpected 'platform' and 'backend' pair, got: {platform}, {backend}")
    by_file = FILES.get(message.default_model_filename)
    found = next((FILES[name] for name in FILES if name in files), None)
    backend = backend or by_file or (found if not message.default_model_filename else None) or "onnxruntime"
    if backend not in KNOWN and ":" not in backend:
        expected = f"expected {' or '.join(KNOWN)}, or one of your own as package.module:attribute"
        notes.wrong("backend", f"'{backend}' is not supported: {expected}")
    return backend


# --- parameters of Triton's ONNX Runtime backend ----------------------------------------------------------------------


def _parameter(key: str, text: str, values: Values, notes: Notes, *, on_gpu: bool) -> None:
    known = _PARAMETERS.get(key)
    where = f"parameters[{key}]"
    if known is not None:
        expected, apply = known
        try:
            apply(values, text.strip())
        except (ValueError, KeyError):
            notes.wrong(where, f"is '{text}', expected {expected}")
    elif key in FOR_GPUS and on_gpu:
        read_parameter(key, text, values["backend_options"], notes)
    elif key in FOR_GPUS:
        notes.ignored(where, "ignored: the model runs on the CPU")
    else:
        notes.ignored(where, f"ignored: unknown; known are {', '.join(sorted(_PARAMETERS))}")


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError(text)
    return number


def _boolean(text: str) -> bool:
    return {"1": True, "true": True, "0": False, "false": False}[text.lower()]


def _threads(values: Values, text: str) -> None:
    values["threads"] = _count(text)


def _option(name: str, read: Callable[[str], object]) -> Callable[[Values, str], None]:
    def apply(values: Values, text: str) -> None:
        values["backend_options"][name] = read(text)

    return apply


def _entry(table: str, key: str) -> Callable[[Values, str], None]:
    """An entry that ONNX Runtime reads itself: of a session, or of a run."""

    def apply(values: Values, text: str) -> None:
        values["backend_options"].setdefault(table, {})[key] = text

    return apply


_DEVICE_ALLOCATOR = "session.use_device_allocator_for_initializers"
_SHRINKAGE = "memory.enable_memory_arena_shrinkage"
_PARAMETERS: dict[str, tuple[str, Callable[[Values, str], None]]] = {
    "intra_op_thread_count": ("a number of threads, 0 for one of each core", _threads),
    "inter_op_thread_count": ("a number of threads, 0 for one of each core", _option("inter_op_threads", _count)),
    "execution_mode": (
        "0 (sequential) or 1 (parallel)",
        _option("execution_mode", lambda text: {"0": "sequential", "1": "parallel"}[text]),
    ),
    "enable_mem_arena": ("0 or 1", _option("arena", _boolean)),
    "enable_mem_pattern": ("0 or 1", _option("memory_pattern", _boolean)),
    "share_session_between_instances": ("true or false", _option("share_session", _boolean)),
    _DEVICE_ALLOCATOR: ("0 or 1", _entry("session", _DEVICE_ALLOCATOR)),
    _SHRINKAGE: ("an allocator such as cpu:0", _entry("run", _SHRINKAGE)),
}
