"""What can be configured is documented: each key of model.toml, and each field of config.pbtxt."""

import re
from pathlib import Path

import pytest

from headrace.backends.onnxruntime import Options
from headrace.backends.onnxruntime.gpu_options import CudaOptions, GpuOptions, TensorRtOptions
from headrace.backends.shape_range import ShapeRange
from headrace.backends.tensorrt import options as tensorrt
from headrace.repository.bucket_config import BucketConfig, FollowingDim, SizeRule
from headrace.repository.drift_config import DriftConfig, TensorDrift
from headrace.repository.fallback_config import FallbackConfig, ToleranceConfig
from headrace.repository.model_config import (
    EnsembleConfig,
    EnsembleStep,
    InputConfig,
    LevelConfig,
    ModelConfig,
    OutputConfig,
    WarmupData,
    WarmupInput,
)
from headrace.repository.processing_config import DequantizeConfig, ImageConfig, QuantizeConfig, TopKConfig
from headrace.repository.triton.backend import _PARAMETERS
from headrace.repository.triton.fields import DECISIONS, Taken
from headrace.repository.triton.gpus import _ACCELERATORS
from headrace.settings_sources import leaves
from headrace.telemetry.observer import FALLBACK_REASONS

DOCS = Path(__file__).parents[2] / "docs"


def words(page):
    return set(re.findall(r"[\w.]+", (DOCS / page).read_text()))


@pytest.mark.parametrize(
    "model",
    [
        ModelConfig,
        InputConfig,
        OutputConfig,
        LevelConfig,
        WarmupData,
        WarmupInput,
        EnsembleConfig,
        EnsembleStep,
        BucketConfig,
        SizeRule,
        FollowingDim,
        ImageConfig,
        QuantizeConfig,
        DequantizeConfig,
        TopKConfig,
        Options,
        tensorrt.Options,
        ShapeRange,
    ],
)
def test_keys_of_model_toml(model):
    known = words("models.md") | {word.rpartition(".")[2] for word in words("models.md")}
    assert {setting.path[-1] for setting in leaves(model)} <= known


@pytest.mark.parametrize("model", [DriftConfig, TensorDrift])
def test_keys_of_drift(model):
    known = words("drift.md") | {word.rpartition(".")[2] for word in words("drift.md")}
    assert {setting.path[-1] for setting in leaves(model)} <= known


def test_keys_of_fallback():
    known = words("fallback.md")
    for model in (FallbackConfig, ToleranceConfig):
        assert set(model.model_fields) <= known | words("models.md")


def test_reasons_of_fallbacks():
    assert set(FALLBACK_REASONS) <= words("fallback.md")


@pytest.mark.parametrize("model", [GpuOptions, CudaOptions, TensorRtOptions, ShapeRange])
def test_options_on_gpus(model):
    keys = {setting.path[-1] for setting in leaves(model)} - {setting.path[-1] for setting in leaves(Options)}
    written = set(re.findall(r"\w+", (DOCS / "backends.md").read_text()))
    assert keys <= written


def test_parameters_of_accelerators():
    written = (DOCS / "triton.md").read_text()
    for known in _ACCELERATORS.values():
        assert not [key for key in known if f"`{key}`" not in written]


def test_fields_of_config_pbtxt():
    known = words("triton.md") | {part for word in words("triton.md") for part in word.split(".")}
    names = {name.rpartition(".")[2] for name, decision in DECISIONS.items()}
    inside = {"data_type", "shape", "latest", "all", "specific", "num_versions", "versions", "kind", "count", "inputs",
              "string_value", "enable", "zero_data", "random_data", "input_data_file", "op_library_filename",
              "gpu_execution_accelerator", "cpu_execution_accelerator", "batch_size", "dims", "int32_false_true",
              "fp32_false_true"}  # fmt: skip
    assert names - inside <= known
    assert not [name for name in inside if any(
        key.rpartition(".")[2] == name and not isinstance(decision, Taken)
        and not key.startswith(("ModelOptimizationPolicy.ExecutionAccelerators", "ModelSequenceBatching"))
        for key, decision in DECISIONS.items())]  # fmt: skip
    assert set(_PARAMETERS) <= known
