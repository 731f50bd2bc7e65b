"""What `portable` promises, held against NVIDIA's own parser and builder; and that `cpu` does not keep it by chance."""

from itertools import count
from pathlib import Path

import numpy as np
import onnx
import pytest
from backends.tensorrt import networks

from headrace.backends.tensorrt import builder, model_files, options
from headrace.errors import ModelLoadError
from headrace.quantize.build import Request, build
from headrace.testing.clock import FakeClock
from speed_models.store import TINY
from speed_models.store import build as speed_model

DIGITS = Path(__file__).parents[2] / "models" / "digits"
INTEGERS = {onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.INT4, onnx.TensorProto.UINT4}
HALF = onnx.TensorProto.FLOAT16

# TensorRT-RTX says that its timing cache does nothing
pytestmark = pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning")


def random(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def perceptron():
    nodes = [
        onnx.helper.make_node("Gemm", ["x", "w", "b"], ["h"]),
        onnx.helper.make_node("Relu", ["h"], ["r"]),
        onnx.helper.make_node("MatMul", ["r", "v"], ["y"]),
    ]
    weights = [networks.weight("w", 64, 96), networks.weight("b", 96), networks.weight("v", 96, 10)]
    kind = onnx.TensorProto.FLOAT
    return networks.model(nodes, [("x", kind, ["N", 64])], [("y", kind, ["N", 10])], weights)


MODELS = {
    "digits": lambda: (onnx.load(DIGITS / "1" / "model.onnx"), dict(np.load(DIGITS / "heldout.npz")), {}),
    "perceptron": lambda: (perceptron(), {"x": random(128, 64)}, {}),
    "convolutions": lambda: (networks.conv_net(), {"x": random(128, 3, 16, 16)}, {}),
    "resnet": lambda: (speed_model("resnet50-fp32", TINY), TINY.feeds("resnet50-fp32", 128), {}),
    "bert": lambda: (
        speed_model("bert-fp32", TINY),
        TINY.feeds("bert-fp32", 128),
        {name: {key: [TINY.tokens] for key in ("min", "opt", "max")} for name in ("input_ids", "attention_mask")},
    ),
}
RECIPES = {
    "int8": MODELS,
    "fp16": MODELS,
    "int4": ["digits", "perceptron", "bert"],
}


@pytest.fixture
def made(tmp_path):
    """A version of a model by a recipe, and how it is to be loaded; the gate is as low as it gets."""

    def made(name, recipe, target, external=False):
        model, arrays, profiles = MODELS[name]()
        source = tmp_path / name / "1"
        source.mkdir(parents=True)
        networks.save(model, source / "model.onnx", external)
        data = tmp_path / "data.npz"
        np.savez(data, **arrays)
        request = Request(source.parent, recipe, target, calibration=(str(data),), gate=1e-6, search=False, speed_s=0)
        _, directory = build(request, lambda *_: None, FakeClock(), 0)
        return directory / "model.onnx", profiles

    return made


@pytest.fixture
def accepted(rtx):
    """Builds an engine. Raises ModelLoadError with NVIDIA's reasons."""

    def accepted(file, profiles):
        chosen = options.read({"profiles": profiles} if profiles else {})
        return builder.build(rtx, model_files.read(file), 4, chosen, b"", "m 2", count().__next__)

    return accepted


@pytest.mark.parametrize(("name", "recipe"), [(name, recipe) for recipe, names in RECIPES.items() for name in names])
def test_tensorrt_builds_what_is_portable(made, accepted, name, recipe):
    file, profiles = made(name, recipe, "portable")
    kinds = {one.data_type for one in onnx.load(file).graph.initializer}
    assert kinds & ({HALF} if recipe == "fp16" else INTEGERS)
    assert accepted(file, profiles).plan.startswith(b"vtrt")


def test_weights_in_a_file_of_their_own_are_found(made, accepted):
    file, profiles = made("perceptron", "int8", "portable", external=True)
    assert [one.name for one in file.parent.glob("*.data")]
    assert accepted(file, profiles).plan.startswith(b"vtrt")


@pytest.mark.parametrize(
    ("name", "recipe", "said"),
    [
        ("perceptron", "int8", "Int32|UInt8|UINT8|uint8|zero"),
        ("convolutions", "int8", "Int32|UInt8|UINT8|uint8|zero"),
        ("perceptron", "int8-dynamic", "DynamicQuantizeLinear|DynamicQuantizeMatMul"),
        ("perceptron", "int4", "MatMulNBits"),
    ],
)
def test_tensorrt_refuses_what_is_for_the_processor(made, accepted, name, recipe, said):
    """Else the test above would prove nothing."""
    file, profiles = made(name, recipe, "cpu")
    with pytest.raises(ModelLoadError, match=said):
        accepted(file, profiles)
