"""`[backend_options]` of a model that ONNX Runtime runs on GPUs, and the provider options that they make. Pure.

Source of the providers' option names: the CUDA and TensorRT provider pages of ONNX Runtime's documentation, and the
libraries of onnxruntime-gpu 1.31.1, which hold every one of them. What is not said here is left at their defaults.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator, model_validator

from headrace.backends.gpu_fields import BatchBuckets, BusyWait, Devices  # noqa: TC001 - pydantic reads the annotations
from headrace.backends.onnxruntime.sessions import SessionSettings
from headrace.backends.shape_range import ShapeRange  # noqa: TC001 - pydantic reads the annotation
from headrace.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from headrace.messages import Signature

CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"


class GpuOptions(SessionSettings):
    """What holds for both providers."""

    devices: Devices = Field((0,), description="GPUs that each instance is on, by their numbers")
    in_flight: int = Field(2, ge=1, le=64, description="batches that an instance has on each of its GPUs at a time")
    batch_buckets: BatchBuckets = Field(
        (), description="numbers of rows to run with, ascending; by default powers of two and max_batch"
    )
    memory_limit_bytes: int = Field(
        0, ge=0, description="memory that a session may take on a GPU to compute, weights apart; 0: any"
    )
    headroom_bytes: int = Field(
        256 << 20, ge=0, description="memory of a GPU that must stay free beyond what a load is expected to take"
    )
    arena_extend: Literal["same_as_requested", "next_power_of_two"] = Field(
        "same_as_requested", description="by how much the memory to compute grows when it does not suffice"
    )
    max_cpu_nodes: float = Field(
        0.2, ge=0, le=1, description="share of the graph's nodes that the processor may run; more: the load fails"
    )
    busy_wait: BusyWait = False
    conv_search: Literal["heuristic", "exhaustive", "default"] = Field(
        "heuristic", description="how the kernel of a convolution is chosen; exhaustive: tried out for each new shape"
    )
    conv_workspace: bool = Field(True, description="let convolutions take as much memory as they can use")
    tf32: bool = Field(True, description="let products of FP32 be computed in TF32; false: exact, and slower")
    prefer_nhwc: bool = Field(False, description="lay images out as NHWC where there are kernels for it")
    cuda: dict[str, str] = Field({}, description="other options of the CUDA provider, by their keys")

    @field_validator("run")
    @classmethod
    def _not_of_runs(cls, given: dict[str, str]) -> dict[str, str]:
        return _unreserved(given, dict.fromkeys(("disable_synchronize_execution_providers", "gpu_graph_id"), ""))

    @field_validator("cuda")
    @classmethod
    def _not_ours(cls, given: dict[str, str]) -> dict[str, str]:
        return _unreserved(given, _RESERVED_CUDA)


class CudaOptions(GpuOptions):
    """`backend = "onnxruntime-cuda"`."""

    cuda_graphs: bool | Literal["auto"] = Field(
        "auto",
        description="record the work of each batch bucket when the model is loaded and launch it as a whole; "
        "auto: where that can be done",
        json_schema_extra={"allowed": 'true, false or "auto"'},
    )

    @model_validator(mode="after")
    def _graphs_keep_their_memory(self) -> CudaOptions:
        shrinks = self.run.get("memory.enable_memory_arena_shrinkage", "")
        if self.cuda_graphs is True and "gpu" in shrinks:
            raise ValueError(f"cuda_graphs = true, but shrinking {shrinks!r} would free the memory that graphs use")
        return self


class TensorRtOptions(GpuOptions):
    """`backend = "onnxruntime-tensorrt"`."""

    precision: Annotated[tuple[Literal["fp16", "bf16", "int8"], ...], Field(strict=False)] = Field(
        (), description="precisions that layers may have besides that of the file"
    )
    int8_calibration_table: str = Field("", description="ranges of a model without Q/DQ nodes, a file beside the model")
    profiles: dict[str, ShapeRange] = Field(
        {}, description="for each input with other dynamic dimensions: min, opt and max, batch dimension left out"
    )
    opt_rows: int = Field(0, ge=0, description="rows of a batch that engines are tuned for; 0: the largest bucket")
    optimization_level: int = Field(3, ge=0, le=5, description="how long the builder searches; 5: longest")
    workspace_bytes: int = Field(1 << 30, ge=0, description="memory that a layer may use to compute, in bytes")
    min_subgraph_nodes: int = Field(1, ge=1, description="nodes that a part of the graph has at least to be TensorRT's")
    sparse_weights: bool = Field(False, description="use that weights are 2:4 sparse, where they are")
    engine_cache: str | Literal[False] = Field(
        "",
        description="directory of built engines and timings; by default headrace/ort-engines in the user's cache; "
        "false: none",
        json_schema_extra={"allowed": "a directory, or false"},
    )
    tensorrt: dict[str, str] = Field({}, description="other options of the TensorRT provider, by their keys")

    @field_validator("tensorrt")
    @classmethod
    def _not_ours_either(cls, given: dict[str, str]) -> dict[str, str]:
        return _unreserved(given, _RESERVED_TENSORRT)


_RESERVED_CUDA = {
    "device_id": "devices",
    "gpu_mem_limit": "memory_limit_bytes",
    "arena_extend_strategy": "arena_extend",
    "cudnn_conv_algo_search": "conv_search",
    "cudnn_conv_use_max_workspace": "conv_workspace",
    "use_tf32": "tf32",
    "prefer_nhwc": "prefer_nhwc",
    "enable_cuda_graph": "cuda_graphs",
    **dict.fromkeys(
        ("user_compute_stream", "has_user_compute_stream", "use_ep_level_unified_stream", "do_copy_in_default_stream"),
        "",
    ),
    **dict.fromkeys(("gpu_external_alloc", "gpu_external_free", "gpu_external_empty_cache"), ""),
}
_RESERVED_TENSORRT = {
    "device_id": "devices",
    "trt_fp16_enable": "precision",
    "trt_bf16_enable": "precision",
    "trt_int8_enable": "precision",
    "trt_int8_calibration_table_name": "int8_calibration_table",
    "trt_profile_min_shapes": "profiles",
    "trt_profile_opt_shapes": "profiles",
    "trt_profile_max_shapes": "profiles",
    "trt_builder_optimization_level": "optimization_level",
    "trt_max_workspace_size": "workspace_bytes",
    "trt_min_subgraph_size": "min_subgraph_nodes",
    "trt_sparsity_enable": "sparse_weights",
    **dict.fromkeys(
        ("trt_engine_cache_enable", "trt_engine_cache_path", "trt_timing_cache_enable", "trt_timing_cache_path"),
        "engine_cache",
    ),
    **dict.fromkeys(
        # a graph of one shape would be launched for all; an engine from elsewhere can run any code
        ("trt_cuda_graph_enable", "trt_ep_context_file_path", "user_compute_stream", "has_user_compute_stream"),
        "",
    ),
}
"""Option of the provider -> the key that sets it here; empty: the backend sets it, or does not allow it."""


def _unreserved(given: dict[str, str], reserved: dict[str, str]) -> dict[str, str]:
    for name in given:
        if name in reserved:
            key = reserved[name]
            raise ValueError(f"{name!r} is set by {key}" if key else f"{name!r} is the backend's own to set")
    return given


# --- what the providers are told --------------------------------------------------------------------------------------

_EXTEND = {"same_as_requested": "kSameAsRequested", "next_power_of_two": "kNextPowerOfTwo"}


def graphs_asked_for(options: GpuOptions) -> bool | Literal["auto"]:
    """Whether CUDA graphs are to be recorded."""
    if not isinstance(options, CudaOptions):
        return False
    if options.cuda_graphs == "auto" and "gpu" in options.run.get("memory.enable_memory_arena_shrinkage", ""):
        return False
    return options.cuda_graphs


def cuda_provider(options: GpuOptions, device: int, stream: int) -> dict[str, str]:
    """Options of the CUDA provider. stream: handle of the one that it computes in."""
    made = {
        "device_id": str(device),
        "user_compute_stream": str(stream),
        "arena_extend_strategy": _EXTEND[options.arena_extend],
        "cudnn_conv_algo_search": options.conv_search.upper(),
        "cudnn_conv_use_max_workspace": _flag(options.conv_workspace),
        "use_tf32": _flag(options.tf32),
        "prefer_nhwc": _flag(options.prefer_nhwc),
    }
    if options.memory_limit_bytes:
        made["gpu_mem_limit"] = str(options.memory_limit_bytes)
    return made | options.cuda


def tensorrt_provider(
    options: TensorRtOptions, device: int, stream: int, profile: dict[str, str], cache: Path | None
) -> dict[str, str]:
    """Options of the TensorRT provider, which wants True and False where CUDA's wants 1 and 0.

    profile: see `shape_profile`. cache: where engines are kept, None: nowhere.
    """
    made = {
        "device_id": str(device),
        "user_compute_stream": str(stream),
        "trt_max_workspace_size": str(options.workspace_bytes),
        "trt_min_subgraph_size": str(options.min_subgraph_nodes),
        "trt_builder_optimization_level": str(options.optimization_level),
        "trt_sparsity_enable": str(options.sparse_weights),
    }
    made |= {f"trt_{precision}_enable": "True" for precision in options.precision}
    if options.int8_calibration_table:
        made["trt_int8_calibration_table_name"] = options.int8_calibration_table
    made |= profile
    if cache is not None:
        made |= {
            "trt_engine_cache_enable": "True",
            "trt_engine_cache_path": str(cache),
            "trt_timing_cache_enable": "True",
            "trt_timing_cache_path": str(cache),
        }
    return made | options.tensorrt


def _flag(value: bool) -> str:
    return "1" if value else "0"


# --- batch buckets and profiles ---------------------------------------------------------------------------------------


def batch_buckets(max_batch: int, given: Sequence[int] = ()) -> tuple[int, ...]:
    """Rows of each bucket, ascending: those that are given, else the powers of two below max_batch, and max_batch.

    (1,) for a model that does not batch. Raises ModelLoadError where the last one is not max_batch.
    """
    if not max_batch:
        if given:
            raise ModelLoadError(f"batch_buckets = {list(given)}, but the model does not batch")
        return (1,)
    if not given:
        return (*(1 << power for power in range(max_batch.bit_length()) if 1 << power < max_batch), max_batch)
    if given[-1] != max_batch:
        raise ModelLoadError(
            f"batch_buckets = {list(given)} and max_batch = {max_batch}: expected the last bucket to be max_batch"
        )
    return tuple(given)


def shape_profile(signature: Signature, buckets: Sequence[int], options: TensorRtOptions) -> dict[str, str]:
    """The shapes that engines are built for, as the TensorRT provider wants them; none where all are fixed.

    One profile over all buckets: the provider takes several, but runs the first one alone (ONNX Runtime 1.31; its pull
    request 31624). Raises ModelLoadError for dynamic dimensions that are not given, or not as the file has them.
    """
    batched = bool(signature.max_batch)
    names = [spec.name for spec in signature.inputs]
    unknown = sorted(set(options.profiles) - set(names))
    if unknown:
        raise ModelLoadError(f"backend_options.profiles.{unknown[0]}: there is no such input; the file has {names}")
    if options.opt_rows > buckets[-1]:
        raise ModelLoadError(f"opt_rows = {options.opt_rows} is above the largest batch, {buckets[-1]} rows")
    rows = {"min": 1, "opt": options.opt_rows or buckets[-1], "max": buckets[-1]}
    texts: dict[str, list[str]] = {word: [] for word in rows}
    for spec in signature.inputs:
        if spec.fixed and not batched:
            continue
        given = options.profiles.get(spec.name)
        for word, lead in rows.items():
            dims = spec.shape if given is None else getattr(given, word)
            if len(dims) != len(spec.shape) or any(d not in (-1, g) for d, g in zip(spec.shape, dims, strict=True)):
                raise ModelLoadError(
                    f"backend_options.profiles.{spec.name}.{word} = {list(dims)}: the file has {list(spec.shape)}, -1 "
                    "being any size"
                )
            if -1 in dims:
                raise ModelLoadError(
                    f"input {spec.name!r} has dynamic dimensions {list(dims)}{' in a row' if batched else ''}: "
                    f"expected [backend_options.profiles.{spec.name}] with min, opt and max of {len(dims)} numbers each"
                )
            texts[word].append(f"{spec.name}:{'x'.join(map(str, ((lead, *dims) if batched else dims)))}")
    return {f"trt_profile_{word}_shapes": ",".join(parts) for word, parts in texts.items() if parts}
