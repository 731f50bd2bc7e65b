"""Sessions of ONNX Runtime: what can be configured of them, and how they are opened for serving."""

from __future__ import annotations

import logging
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import onnxruntime as ort
from pydantic import BaseModel, ConfigDict, Field, field_validator

from headrace import settings_sources as sources
from headrace.backends.onnxruntime.placement import CPU, NOT_FOR_GPUS
from headrace.clock import monotonic_ns
from headrace.errors import ConfigError, ModelLoadError
from headrace.processor import exact_products
from headrace.sparing import Sparing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    Provider = str | tuple[str, dict[str, str]]

log = logging.getLogger(__name__)

MODEL_FILE = "model.onnx"

_OPTIMIZATION = {
    "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_EXECUTION = {
    "sequential": ort.ExecutionMode.ORT_SEQUENTIAL,
    "parallel": ort.ExecutionMode.ORT_PARALLEL,
}


class SessionSettings(BaseModel):
    """What `[backend_options]` of model.toml may say of a session, whatever it runs on."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    graph_optimization_level: Literal["disabled", "basic", "extended", "all"] = Field(
        "all", description="how far ONNX Runtime rewrites the graph when it loads it"
    )
    arena: bool = Field(
        True, description="keep freed memory for the next run; false: give it back, at the cost of speed"
    )
    memory_pattern: bool = Field(True, description="plan the memory of a run from that of the last of equal shapes")
    execution_mode: Literal["sequential", "parallel"] = Field(
        "sequential", description="parallel: run branches of the graph at the same time"
    )
    inter_op_threads: int = Field(1, ge=0, description="threads for branches; 0: one for each core")
    file: str = Field(MODEL_FILE, description="the model file's name within the version")
    op_libraries: tuple[str, ...] = Field((), strict=False, description="libraries of custom operators to load")
    session: dict[str, str] = Field({}, description="ONNX Runtime's own session options, by their keys")
    run: dict[str, str] = Field({}, description="ONNX Runtime's own options of each run, by their keys")

    @field_validator("file")
    @classmethod
    def _inside(cls, file: str) -> str:
        path = PurePosixPath(file)
        if path.is_absolute() or ".." in path.parts or not path.name:
            raise ValueError(f"{file!r} is no file within the version directory")
        return file


S = TypeVar("S", bound=SessionSettings)


def read_options(model: type[S], options: Mapping[str, Any]) -> S:
    """The options of model.toml, checked. Raises ModelLoadError with a line for each problem."""
    try:
        return sources.build(model, [sources.Source(dict(options), {(): "in backend_options of model.toml"})])
    except ConfigError as error:
        raise ModelLoadError(str(error)) from error


def find_file(path: Path, options: SessionSettings) -> Path:
    """The model file of a version directory. Raises ModelLoadError if there is none."""
    file = path / options.file
    if file.is_dir():  # a model of several files
        file /= MODEL_FILE
    if not file.is_file():
        raise ModelLoadError(f"there is no {file}")
    return file


def session_options(
    file: Path, threads: int, options: SessionSettings, entries: Mapping[str, str] | None = None
) -> ort.SessionOptions:
    """Options of a session for serving. entries: of the backend, which those of model.toml override."""
    configured = ort.SessionOptions()
    configured.intra_op_num_threads = threads
    configured.inter_op_num_threads = options.inter_op_threads
    configured.execution_mode = _EXECUTION[options.execution_mode]
    configured.graph_optimization_level = _OPTIMIZATION[options.graph_optimization_level]
    configured.enable_cpu_mem_arena = options.arena
    configured.enable_mem_pattern = options.memory_pattern
    configured.log_severity_level = ort_severity()
    configured.logid = f"{file.parent.parent.name}/{file.parent.name}"
    # Idle threads that spin take a full core between requests; 500 us of it keep most of the latency it buys.
    serving = {"session.intra_op.allow_spinning": "0"} if threads == 1 else {"session.intra_op.spin_duration_us": "500"}
    for key, value in (serving | exact_products() | dict(entries or {}) | options.session).items():
        configured.add_session_config_entry(key, value)
    for library in options.op_libraries:
        configured.register_custom_ops_library(library)
    return configured


def open_session(
    file: Path,
    threads: int,
    options: SessionSettings,
    providers: Sequence[Provider],
    entries: Mapping[str, str] | None = None,
) -> ort.InferenceSession:
    """A session of these providers: each node goes to the first that takes it. entries: see `session_options`.

    Raises ModelLoadError. Left to itself, ONNX Runtime's Python class makes a session on the processor of one that
    failed, when it is opened and during a run.
    """
    log_through_python()
    left_out = NOT_FOR_GPUS if providers[0] != CPU else ()

    def opened(*more: str) -> ort.InferenceSession:
        return ort.InferenceSession(
            file, configured, providers=providers, enable_fallback=0, disabled_optimizers=[*left_out, *more]
        )

    try:
        configured = session_options(file, threads, options, entries)
        try:
            return opened()
        except Exception as error:
            if not _fails_to_fuse_attention(str(error)):
                raise
        log.warning(
            "%s: ONNX Runtime %s cannot fuse the attention of this FP16 model, which therefore runs operator by "
            "operator, and slower: fuse it before it is converted to FP16",
            file,
            ort.__version__,
        )
        return opened("AttentionFusion")
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        raise ModelLoadError(f"ONNX Runtime cannot load {file}: {error}") from error


def _fails_to_fuse_attention(text: str) -> bool:
    """Whether that is what an error says: in FP16 the fusion reads the mask's constant as FP32 (1.31, for CUDA)."""
    return "Tensor type mismatch" in text and "MLFloat16" in text


def run_options(options: SessionSettings, **entries: str) -> ort.RunOptions | None:
    """Options of each run; None where there are none. entries: of the backend, which those of model.toml override."""
    if not (entries or options.run):
        return None
    made = ort.RunOptions()
    for key, value in (entries | options.run).items():
        made.add_run_config_entry(key, value)
    return made


# --- ONNX Runtime's log -----------------------------------------------------------------------------------------------

_LEVELS = (logging.DEBUG, logging.DEBUG, logging.WARNING, logging.ERROR, logging.CRITICAL)  # by ORT's severity, 0 to 4


def ort_severity() -> int:
    """ONNX Runtime's least severity (2 warning, 3 error, 4 fatal) for our logger's level; its 'info' is our debug."""
    if log.isEnabledFor(logging.DEBUG):
        return 1
    return next((severity for severity in (2, 3) if log.isEnabledFor(_LEVELS[severity])), 4)


def log_through_python() -> None:
    """Sends ONNX Runtime's messages to our logger, where its version can do so (1.32 and later); else to stderr."""
    register = getattr(ort, "set_default_logger_callback", None)
    if register is not None:
        register(_on_ort_message, ort_severity())


_errors = Sparing(monotonic_ns)


def _on_ort_message(severity: int, category: str, logid: str, location: str, message: str) -> None:
    level = _LEVELS[severity]
    left_out = 0
    if level == logging.ERROR:  # a run that fails tells of itself, too, and callers can cause any number of them
        found = _errors.left_out((logid or category, location))
        if found is None:
            return
        left_out = found
    more = f"; {left_out} more like it were not logged" if left_out else ""
    log.log(level, "%s: %s%s", logid or category, message, more)
