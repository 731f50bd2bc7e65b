"""What a `config.pbtxt` says of GPUs: where instances are, and the accelerators of Triton's ONNX Runtime backend.

Source: model_config.proto and "Model Configuration" of Triton; README of its onnxruntime_backend. Its parameters are
those of ONNX Runtime's execution providers, under names of its own or of theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headrace.rpc import model_config_pb2 as mc

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from headrace.repository.triton.notes import Notes

Values = dict[str, Any]

_GPU, _AUTO = mc.ModelInstanceGroup.KIND_GPU, mc.ModelInstanceGroup.KIND_AUTO
_CPU, _MODEL = mc.ModelInstanceGroup.KIND_CPU, mc.ModelInstanceGroup.KIND_MODEL


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a model's instances are to be. instances: on each of the GPUs, or in all; 0: it is not said.

    devices: the GPUs; empty: the processor. on_cpu: whether that is said, and not merely left open.
    """

    instances: int
    devices: tuple[int, ...]
    on_cpu: bool


def read_groups(message: mc.ModelConfig, notes: Notes) -> Placed:
    """Where the instance groups want the instances."""
    counts: dict[int, int] = {}
    elsewhere = total = 0
    for at, group in enumerate(message.instance_group):
        where = f"instance_group[{group.name or at}]"
        count = max(group.count, 1)
        total += count
        gpus = list(group.gpus)
        if group.kind == _CPU and gpus:
            notes.wrong(f"{where}.gpus", "a group of KIND_CPU has no GPUs")
        elif group.kind == _MODEL and gpus:
            notes.ignored(f"{where}.gpus", "ignored: KIND_MODEL is on the CPU")
        if group.kind == _GPU and not gpus:
            notes.ignored(f"{where}.gpus", "not given: on GPU 0; Triton takes all that there are")
            gpus = [0]
        if group.kind == _GPU or (group.kind == _AUTO and gpus):
            for gpu in gpus:
                if gpu < 0:
                    notes.wrong(f"{where}.gpus", f"{gpu} is no GPU, they are counted from 0")
                counts[gpu] = counts.get(gpu, 0) + count
        else:
            elsewhere += count
    on_cpu = any(group.kind in (_CPU, _MODEL) for group in message.instance_group)
    if not counts:
        return Placed(total, (), on_cpu)
    if elsewhere:
        notes.wrong("instance_group", "has groups on GPUs and groups that are not: all of a model must be of one kind")
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{count} on GPU {gpu}" for gpu, count in counts.items())
        notes.wrong("instance_group", f"asks for {listed}; each GPU must have as many")
    return Placed(max(counts.values()), tuple(counts), on_cpu=False)


def read_accelerators(message: mc.ModelConfig, placed: Placed, options: Values, notes: Notes) -> str:
    """The backend that runs an ONNX file; `options`, of the backend, get what the message says for it."""
    field = "optimization.execution_accelerators.gpu_execution_accelerator"
    accelerators = message.optimization.execution_accelerators.gpu_execution_accelerator
    on_gpu = bool(placed.devices)
    if accelerators and not on_gpu:
        if placed.on_cpu:
            notes.ignored(field, "ignored: all instances are on the CPU")
            return "onnxruntime"
        notes.ignored(field, "no instance_group says which GPU: on GPU 0")
        on_gpu = True
    if not on_gpu:
        return "onnxruntime"
    options["devices"] = list(placed.devices or (0,))
    if "share_session" in options:
        del options["share_session"]
        notes.ignored(
            "parameters[share_session_between_instances]", "ignored: an instance on a GPU has its own session"
        )
    names = [accelerator.name for accelerator in accelerators]
    backend = "onnxruntime-tensorrt" if "tensorrt" in names else "onnxruntime-cuda"
    for accelerator in accelerators:
        where = f"{field}[{accelerator.name}]"
        if accelerator.name not in _ACCELERATORS or names.count(accelerator.name) > 1:
            notes.wrong(where, "expected tensorrt and cuda, each once at most")
            continue
        known = _ACCELERATORS[accelerator.name]
        for key, text in sorted(accelerator.parameters.items()):
            _apply(f"{where}.parameters[{key}]", known, key, text, options, notes)
    _profiles(field, options, notes, batched=message.max_batch_size > 0)
    if backend == "onnxruntime-tensorrt" and options.pop("cuda_graphs", False):
        notes.wrong(f"{field}[cuda].parameters[enable_cuda_graph]", "not supported together with tensorrt")
    return backend


def read_parameter(key: str, text: str, options: Values, notes: Notes) -> None:
    """A parameter of the model that Triton has had for GPUs before there was an accelerator for it."""
    _apply(f"parameters[{key}]", _CUDA, key, text, options, notes)


# --- parameters -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Taken:
    """expected: of the value, for people. apply: takes the options and the text, raises ValueError or KeyError."""

    expected: str
    apply: Callable[[Values, str], None]


@dataclass(frozen=True, slots=True)
class _Left:
    """It has no effect; refused: it cannot be had, and the model is not served with it on. why: that is so."""

    why: str
    refused: bool = False


_Known = dict[str, "_Taken | _Left"]


def _apply(where: str, known: Mapping[str, _Taken | _Left], key: str, text: str, options: Values, notes: Notes) -> None:
    text = text.strip()
    decision = known.get(key)
    if decision is None:
        notes.wrong(where, f"unknown; known are {', '.join(sorted(known))}")
    elif isinstance(decision, _Taken):
        try:
            decision.apply(options, text)
        except (ValueError, KeyError):
            notes.wrong(where, f"is '{text}', expected {decision.expected}")
    elif decision.refused and text.lower() not in ("", "0", "false"):
        notes.wrong(where, f"not supported: {decision.why}")
    elif not decision.refused:
        notes.ignored(where, f"ignored: {decision.why}")


def _boolean(text: str) -> bool:
    return {"1": True, "true": True, "0": False, "false": False}[text.lower()]


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError(text)
    return number


def _limit(text: str) -> int:
    """Bytes; what stands for any number of them, 2^64 - 1, is 0 here."""
    number = _count(text)
    return 0 if number >= 1 << 63 else number


def _option(name: str, read: Callable[[str], object], expected: str) -> _Taken:
    def apply(options: Values, text: str) -> None:
        options[name] = read(text)

    return _Taken(expected, apply)


def _choice(name: str, allowed: Mapping[str, object]) -> _Taken:
    return _option(name, lambda text: allowed[text.upper()], f"one of {', '.join(allowed)}")


def _provider(table: str, key: str, read: Callable[[str], object], expected: str) -> _Taken:
    """An option that the provider itself reads."""

    def apply(options: Values, text: str) -> None:
        value = read(text)
        as_number = isinstance(value, bool) and table == "cuda"  # TensorRT's wants True and False
        options.setdefault(table, {})[key] = str(int(value) if as_number else value)  # type: ignore[call-overload]

    return _Taken(expected, apply)


def _flag(name: str) -> _Taken:
    return _option(name, _boolean, "0, 1, true or false")


def _cache_enabled(options: Values, text: str) -> None:
    if not _boolean(text):
        options["engine_cache"] = False


def _cache_path(options: Values, text: str) -> None:
    if options.get("engine_cache") is not False:
        options["engine_cache"] = text


def _shapes(word: str) -> _Taken:
    """Shapes such as `x:1x3x224x224,y:1x8`, batch dimension included; see `_profiles`."""

    def apply(options: Values, text: str) -> None:
        shapes = options.setdefault("profiles", {})
        for part in text.split(","):
            name, _, dims = part.rpartition(":")
            if not name:
                raise ValueError(part)
            shapes.setdefault(name.strip(), {})[word] = [_count(dim) for dim in dims.split("x")]

    return _Taken("shapes such as x:1x3x224x224,y:1x8", apply)


def _profiles(field: str, options: Values, notes: Notes, *, batched: bool) -> None:
    """Makes of whole shapes, as Triton has them, those of a row, and the number of rows to tune for."""
    where = f"{field}[tensorrt].parameters[trt_profile_*]"
    rows = set()
    for name, shapes in options.get("profiles", {}).items():
        if set(shapes) != {"min", "opt", "max"} or len({len(dims) for dims in shapes.values()}) != 1:
            notes.wrong(where, f"min, opt and max shapes of '{name}' must all be given, with as many dimensions")
        elif batched:
            rows.add(shapes["opt"][0])
            options["profiles"][name] = {word: dims[1:] for word, dims in shapes.items()}
    if len(rows) > 1:
        notes.wrong(where, f"the opt shapes have batches of {sorted(rows)} rows, expected the same for all inputs")
    elif rows:
        options["opt_rows"] = rows.pop()
        notes.ignored(where, "batches of 1 to max_batch_size rows are built for, whatever min and max say of them")


_EXTEND = {
    "0": "next_power_of_two", "1": "same_as_requested",
    "KNEXTPOWEROFTWO": "next_power_of_two", "KSAMEASREQUESTED": "same_as_requested",
}  # fmt: skip
_SEARCH = {
    "0": "exhaustive", "1": "heuristic", "2": "default",
    "EXHAUSTIVE": "exhaustive", "HEURISTIC": "heuristic", "DEFAULT": "default",
}  # fmt: skip
_STREAMS = _Left("an instance computes in one stream of its own, and copies in others")
_CUDA: _Known = {
    "cudnn_conv_algo_search": _choice("conv_search", _SEARCH),
    "cudnn_conv_use_max_workspace": _flag("conv_workspace"),
    "gpu_mem_limit": _option("memory_limit_bytes", _limit, "a number of bytes"),
    "arena_extend_strategy": _choice("arena_extend", _EXTEND),
    "use_tf32": _flag("tf32"),
    "prefer_nhwc": _flag("prefer_nhwc"),
    "enable_cuda_graph": _flag("cuda_graphs"),
    "do_copy_in_default_stream": _STREAMS,
    "use_ep_level_unified_stream": _STREAMS,
    **{
        key: _provider("cuda", key, _boolean, "0, 1, true or false")
        for key in (
            "cudnn_conv1d_pad_to_nc1d", "fuse_conv_bias", "enable_skip_layer_norm_strict_mode", "tunable_op_enable",
            "tunable_op_tuning_enable",
        )
    },
    **{
        key: _provider("cuda", key, _count, "a number of at least 0")
        for key in ("sdpa_kernel", "tunable_op_max_tuning_duration_ms")
    },
}  # fmt: skip
_PRECISIONS = {"FP32": [], "FP16": ["fp16"], "BF16": ["bf16"], "INT8": ["int8"]}
_TIMINGS = _Left("timings are kept where engines are")
_NO_ENGINES = _Left("an engine that was built elsewhere can run any code", refused=True)
_TENSORRT: _Known = {
    "precision_mode": _choice("precision", _PRECISIONS),
    "max_workspace_size_bytes": _option("workspace_bytes", _count, "a number of bytes"),
    "int8_calibration_table_name": _option("int8_calibration_table", str, "a file"),
    "trt_min_subgraph_size": _option("min_subgraph_nodes", _count, "a number of at least 1"),
    "trt_builder_optimization_level": _option("optimization_level", _count, "0 to 5"),
    "trt_sparsity_enable": _flag("sparse_weights"),
    "trt_engine_cache_enable": _Taken("0, 1, true or false", _cache_enabled),
    "trt_engine_cache_path": _Taken("a directory", _cache_path),
    "trt_timing_cache_enable": _TIMINGS,
    "trt_timing_cache_path": _TIMINGS,
    "trt_profile_min_shapes": _shapes("min"),
    "trt_profile_opt_shapes": _shapes("opt"),
    "trt_profile_max_shapes": _shapes("max"),
    "trt_cuda_graph_enable": _Left("a graph of one batch size would be launched for all", refused=True),
    "trt_dump_ep_context_model": _NO_ENGINES,
    "trt_ep_context_file_path": _NO_ENGINES,
    "trt_ep_context_embed_mode": _NO_ENGINES,
    "int8_use_native_calibration_table": _provider(
        "tensorrt", "trt_int8_use_native_calibration_table", _boolean, "0, 1, true or false"
    ),
    **{
        key: _provider("tensorrt", key, _boolean, "0, 1, true or false")
        for key in (
            "trt_dla_enable", "trt_dump_subgraphs", "trt_force_sequential_engine_build",
            "trt_context_memory_sharing_enable", "trt_layer_norm_fp32_fallback", "trt_force_timing_cache",
            "trt_detailed_build_log", "trt_build_heuristics_enable",
        )
    },
    **{key: _provider("tensorrt", key, int, "a number") for key in (
        "trt_max_partition_iterations", "trt_dla_core", "trt_auxiliary_streams",
    )},
    **{key: _provider("tensorrt", key, str, "a text") for key in (
        "trt_engine_cache_prefix", "trt_tactic_sources", "trt_extra_plugin_lib_paths",
    )},
}  # fmt: skip
_ACCELERATORS: dict[str, _Known] = {"cuda": _CUDA, "tensorrt": _TENSORRT}
FOR_GPUS = frozenset({"cudnn_conv_algo_search", "gpu_mem_limit", "arena_extend_strategy", "do_copy_in_default_stream"})
"""Of those of the accelerator cuda, what is a parameter of the model too."""
