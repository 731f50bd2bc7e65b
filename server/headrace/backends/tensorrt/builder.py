"""From an ONNX file to a plan, by NVIDIA's parser and builder.

Always strongly typed: precisions are those of the file (FP16 and BF16 tensors, Q and DQ nodes for INT8 and FP8), which
is the only way that TensorRT 11 has left and one that all of its versions know. Parsing and building let go of the
interpreter lock; the thread that calls blocks. The current device of the calling thread is the one that is built for.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.backends.tensorrt.messages import make_progress
from headrace.backends.tensorrt.profiles import Tensor, plan_profiles, resolve_max_batch
from headrace.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from headrace.backends.tensorrt import bindings as b
    from headrace.backends.tensorrt.api import Api
    from headrace.backends.tensorrt.model_files import ModelFiles
    from headrace.backends.tensorrt.options import Options

log = logging.getLogger(__name__)

MOST_REASONS = 8
"""Of NVIDIA's messages, in an error of ours; the log has all."""


@dataclass(frozen=True, slots=True)
class Built:
    """What a build has made. timings: the timing cache after it, empty if there is none."""

    plan: bytes
    timings: bytes


def build(
    api: Api,
    files: ModelFiles,
    max_batch: int | None,
    options: Options,
    timings: bytes,
    label: str,
    clock: Callable[[], int],
) -> Built:
    """Builds an engine. Takes seconds to many minutes.

    max_batch: as configured. timings: a timing cache of this TensorRT and this GPU, or nothing. label: what the log
    calls the model. clock: in ns. Raises ModelLoadError with NVIDIA's words for why there is no engine.
    """
    trt, began = api.trt, clock()
    with api.messages.collect() as said:
        builder = trt.Builder(api.messages)
        network = _parse(api, builder, files, said)
        config = builder.create_builder_config()
        _configure(config, api, options)
        config.progress_monitor = progress = make_progress(trt, label, clock)
        cache = config.create_timing_cache(timings) or config.create_timing_cache(b"")
        if cache is not None:
            config.set_timing_cache(cache, False)  # not those of another device
        buckets = _add_profiles(builder, config, network, max_batch, options, said)
        log.info("%s: TensorRT %s builds an engine, %s; this may take minutes", label, api.version, buckets)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise ModelLoadError(f"TensorRT {api.version} cannot build {files.path}: {reasons(said)}")
        grown = config.get_timing_cache()
        built = Built(bytes(plan), b"" if grown is None else bytes(grown.serialize()))
    del progress, cache  # TensorRT has used them until here
    files.check_unchanged()
    log.info("%s: TensorRT built %d bytes in %.1f s", label, len(built.plan), (clock() - began) / 1e9)
    return built


def reasons(said: Iterable[str]) -> str:
    """Messages as one text, each once."""
    different = list(dict.fromkeys(text for text in said if text))
    more = len(different) - MOST_REASONS
    shown = "; ".join(different[:MOST_REASONS])
    return (shown + (f"; and {more} more" if more > 0 else "")) or "it does not say why"


def load_plugins(api: Api, libraries: Iterable[str]) -> None:
    """Makes layers known that are not TensorRT's own. Raises ModelLoadError for a library that it does not take."""
    with api.messages.collect() as said:
        if not api.trt.init_libnvinfer_plugins(api.messages, ""):
            log.warning("TensorRT's own plugins are not there: %s", reasons(said))
        registry = api.trt.get_plugin_registry()
        for library in libraries:
            if library not in _loaded and registry.load_library(library) is None:
                raise ModelLoadError(f"TensorRT does not take the plugins of {library}: {reasons(said)}")
            _loaded.add(library)


_loaded: set[str] = set()
"""Libraries whose plugins the process has; a second time they would be refused."""


def _parse(api: Api, builder: b.Builder, files: ModelFiles, said: list[str]) -> b.INetworkDefinition:
    flags = 1 << int(api.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED) if api.major == 10 else 0
    network = builder.create_network(flags)
    parser = api.trt.OnnxParser(network, api.messages)
    if not parser.parse(files.model, str(files.path)):  # the path is where external weights are looked for
        told = [str(parser.get_error(index)) for index in range(parser.num_errors)]
        raise ModelLoadError(f"TensorRT {api.version} cannot read {files.path}: {reasons(told or said)}")
    return network


def _configure(config: b.IBuilderConfig, api: Api, options: Options) -> None:
    trt = api.trt
    if options.workspace_bytes:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    config.builder_optimization_level = options.optimization_level
    if not options.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if options.sparse_weights:
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    if options.strip_weights:
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
    if options.refit:
        config.set_flag(trt.BuilderFlag.REFIT)
    level = trt.HardwareCompatibilityLevel
    if options.hardware_compatibility == "ampere_plus":
        config.hardware_compatibility_level = level.AMPERE_PLUS
    elif options.hardware_compatibility == "same_compute_capability":
        config.hardware_compatibility_level = level.SAME_COMPUTE_CAPABILITY


def _add_profiles(
    builder: b.Builder,
    config: b.IBuilderConfig,
    network: b.INetworkDefinition,
    max_batch: int | None,
    options: Options,
    said: list[str],
) -> str:
    """Adds a profile for each bucket. Returns a phrase for the log."""
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    for tensor in inputs:
        if tensor.is_shape_tensor:
            raise ModelLoadError(
                f"input {tensor.name!r} holds a shape, on which those of other tensors depend; this backend cannot "
                "serve that: make it a constant of the file"
            )
    taken, given = ([Tensor(tensor.name, tuple(tensor.shape)) for tensor in side] for side in (inputs, outputs))
    rows = resolve_max_batch(taken, given, max_batch, options.batch_buckets)
    profiles = plan_profiles(taken, rows, options)
    for profile in profiles:
        made = builder.create_optimization_profile()
        for name, shapes in profile.items():
            made.set_shape(name, shapes.low, shapes.opt, shapes.high)
        if config.add_optimization_profile(made) < 0:
            raise ModelLoadError(f"TensorRT does not take the shapes {profile}: {reasons(said)}")
    if not rows:
        return "without a batch dimension"
    return f"for batches of {', '.join(str(next(iter(profile.values())).high[0]) for profile in profiles)} rows"
