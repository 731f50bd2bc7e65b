"""Recipe and target: which nodes are quantized how, and what is passed to onnxruntime.quantization.

cpu: ONNX Runtime's CPU provider, U8 activations and S8 weights, a quantized bias. portable: what TensorRT's parser
takes as well, S8 symmetric and a bias in float, or standard operators for 4 bits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from headrace.quantize.errors import QuantizeError

if TYPE_CHECKING:
    from collections.abc import Mapping

Name = Literal["int8", "int8-dynamic", "fp16", "int4"]
Target = Literal["cpu", "portable"]
Method = Literal["minmax", "entropy", "percentile"]
NAMES: tuple[Name, ...] = ("int8", "int8-dynamic", "fp16", "int4")
TARGETS: tuple[Target, ...] = ("cpu", "portable")
METHODS: tuple[Method, ...] = ("minmax", "entropy", "percentile")

PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Where a model's arithmetic is: those of them that stay in float are told, with the reason."""
_JOINTS = frozenset({"Add", "AveragePool", "Concat", "GlobalAveragePool"})
_FOLLOWERS = frozenset(
    {"Clip", "Flatten", "MaxPool", "Relu", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
)
_DELICATE = frozenset(
    {
        "Div", "Exp", "GroupNormalization", "InstanceNormalization", "LayerNormalization", "Log", "Pow", "ReduceL2",
        "ReduceMean", "ReduceSum", "ReduceSumSquare", "Softmax", "Sqrt",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe for a target. Types are of operators.

    layers: types of the nodes that are quantized, which the search may leave in float one by one. joints: types that
    are layers too in a model with convolutions, where integers would else become floats between two of them; in a
    transformer, whose sums carry what all layers add to, they stay in float. followers: types that go along where
    what they are given is quantized. constant: layers are of constant weights alone. matrices: Gemm is made MatMul and
    Add first. opset: the least that the result needs. why: what is said of products that are no layers, by type.
    """

    name: Name
    target: Target
    layers: frozenset[str]
    joints: frozenset[str] = frozenset()
    followers: frozenset[str] = frozenset()
    calibrated: bool = False
    constant: bool = True
    matrices: bool = False
    opset: int = 13
    why: Mapping[str, str] = field(default_factory=dict)
    warning: str = ""


_NO_KERNEL = "ONNX Runtime has no integer kernel for it"
_MATRICES_ALONE = dict.fromkeys(("Conv", "ConvTranspose"), "this recipe is for matrices alone")


def _table() -> dict[tuple[Name, Target], Recipe]:
    static = frozenset({"Conv", "Gemm", "MatMul"})
    deconvolution = {"ConvTranspose": _NO_KERNEL}
    found = [
        Recipe(
            "int8",
            target,
            static,
            _JOINTS,
            _FOLLOWERS,
            calibrated=True,
            constant=False,
            matrices=target == "portable",  # a bias in float within Gemm has no integer kernel, beside MatMul it has
            why=deconvolution,
        )
        for target in TARGETS
    ]
    found.append(Recipe("int8-dynamic", "cpu", frozenset({"MatMul"}), matrices=True, why=_MATRICES_ALONE))
    slower = "FP16 is for GPUs: on a CPU, ONNX Runtime computes in FP32 and converts, which is slower than the source"
    found += [
        Recipe("fp16", target, PRODUCTS | _DELICATE, constant=False, warning=slower if target == "cpu" else "")
        for target in TARGETS
    ]
    found.append(Recipe("int4", "cpu", frozenset({"MatMul"}), matrices=True, why=_MATRICES_ALONE))
    found.append(Recipe("int4", "portable", frozenset({"MatMul"}), matrices=True, opset=21, why=_MATRICES_ALONE))
    return {(recipe.name, recipe.target): recipe for recipe in found}


_RECIPES = _table()


def choose_recipe(name: Name, target: Target) -> Recipe:
    """The recipe of that name for that target. Raises QuantizeError where there is none."""
    if (name, target) == ("int8-dynamic", "portable"):
        raise QuantizeError(
            "int8-dynamic is for target cpu alone: TensorRT's parser knows no DynamicQuantizeLinear; "
            "for portable, calibrate: --recipe int8"
        )
    return _RECIPES[name, target]


@dataclass(frozen=True, slots=True)
class Options:
    """What a user may choose beside recipe and target.

    method: how ranges are found. percentile: of absolute values that a range holds, for that method. per_channel: a
    scale for each channel of weights. reduce_range: weights of 7 bits, for x86 processors without VNNI. block_size:
    weights that share a scale, in 4 bits. prune: whether two of four weights of a layer become 0 first.
    """

    method: Method = "minmax"
    percentile: float = 99.999
    per_channel: bool = True
    reduce_range: bool = False
    block_size: int = 32
    prune: bool = False

    def of(self, recipe: Recipe) -> dict[str, str | int | float | bool]:
        """Those that have an effect, for the report."""
        pruned: dict[str, str | int | float | bool] = {"prune": "2:4"} if self.prune else {}
        if recipe.name == "fp16":
            return {"keep_io_types": True, **pruned}
        if recipe.name == "int4":
            return {"block_size": self.block_size, "symmetric": recipe.target == "portable", **pruned}
        found: dict[str, str | int | float | bool] = {
            "per_channel": self.per_channel, "reduce_range": self.reduce_range and recipe.target == "cpu"
        }  # fmt: skip
        if recipe.calibrated:
            found["calibration_method"] = self.method
        if recipe.calibrated and self.method == "percentile":
            found["percentile"] = self.percentile
        return {**found, **pruned}
