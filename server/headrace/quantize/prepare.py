"""A model made ready: shapes inferred, constants folded, every node named; and which of its nodes can be quantized."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper, shape_inference, version_converter

from headrace.quantize.errors import QuantizeError
from headrace.quantize.models import DTYPES, open_session
from headrace.quantize.packages import hushed
from headrace.quantize.pruning import prune
from headrace.quantize.recipes import PRODUCTS
from headrace.quantize.trim import drop, names_read

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from headrace.quantize.models import Source
    from headrace.quantize.pruning import Pruning
    from headrace.quantize.recipes import Recipe

_QUANTIZED = re.compile(
    r"(Dynamic)?QuantizeLinear|DequantizeLinear|QLinear\w+|QGemm|QAttention|QMoE|\w+Integer(ToFloat)?|MatMul\w*N?Bits|"
    r"MatMulBnb4|DynamicQuantize\w+|GatherBlockQuantized"
)
_IR_OF_CONSTANTS = 4
"""ONNX's IR version from which on constants are no inputs; before it, every one was called an input."""
LARGEST = 2_000_000_000
"""Octets of a model in one file; protocol buffers end at 2 GiB."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A node that can be quantized, or left as it is."""

    name: str
    op_type: str


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model ready to be quantized. file: the same, pruned if it is to be, for what reads files.

    external: its weights lie in a file of their own, and the result's will. left: (node, reason) of products that stay
    in float whatever is tried. sparse: whether layers are pruned.
    """

    model: onnx.ModelProto
    file: Path
    external: bool
    layers: tuple[Layer, ...]
    left: tuple[tuple[str, str], ...]
    convolutional: bool
    sparse: bool = False
    warnings: tuple[str, ...] = ()

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Of all layers."""
        return tuple(layer.name for layer in self.layers)

    def copy(self, kept: Collection[str]) -> onnx.ModelProto:
        """The model, to be changed. kept: layers that stay as they were; the others are pruned, if they are to be."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        if self.sparse:
            self.pruned(model, kept)
        return model

    def pruned(self, model: onnx.ModelProto, kept: Collection[str]) -> Pruning:
        """Prunes the layers of a copy but these, and no other products."""
        chosen = {layer.name for layer in self.layers} - set(kept)
        return prune(model, [node.name for node in model.graph.node if node.name not in chosen])


def prepare(source: Source, recipe: Recipe, directory: Path, *, sparse: bool = False) -> Prepared:
    """Reads and prepares a model. sparse: whether its layers are to be pruned. Raises QuantizeError."""
    model = _read(source)
    _refuse(model, recipe)
    external = len(source.files) > 1 or model.ByteSize() > LARGEST
    warnings = _without_defaults(model)
    model = _optimized(model, directory, external, warnings)
    if recipe.matrices:
        model = _as_matrices(model, directory, external)
    model = _of_opset(model, recipe.opset, directory, external)
    _name_nodes(model)
    _flatten_biases(model)
    read = names_read(model.graph)
    drop(model.graph.initializer, lambda tensor: tensor.name not in read)
    _complete_types(model, directory / "untyped.onnx", external)
    convolutional = any(node.op_type == "Conv" for node in model.graph.node)
    layers, left = _layers(model, recipe, convolutional)
    if not layers:
        counts = Counter(node.op_type for node in model.graph.node).most_common(6)
        kinds = ", ".join(f"{count} {kind}" for kind, count in counts) or "no nodes"
        wanted = ", ".join(sorted(recipe.layers & PRODUCTS))
        reasons = "".join(f"; {name}: {reason}" for name, reason in left[:3])
        raise QuantizeError(
            f"{source.file}: nothing to quantize by {recipe.name}: expected {wanted} of constant weights in FP32, "
            f"found {kinds}{reasons}"
        )
    made = Prepared(model, directory / "prepared.onnx", external, layers, left, convolutional, sparse, tuple(warnings))
    save(made.copy(()), made.file, external=external)
    return made


def _read(source: Source) -> onnx.ModelProto:
    _ = source.files  # refuses weights that lie elsewhere
    try:
        model = onnx.load(source.file)
    except Exception as error:  # protobuf's and onnx's have no common base
        raise QuantizeError(f"{source.file}: no ONNX file that can be read: {_line(error)}") from None
    if not model.graph.node:
        raise QuantizeError(f"{source.file}: no ONNX file, or one without a graph")
    return model


def _without_defaults(model: onnx.ModelProto) -> list[str]:
    """Makes constants of inputs that need not be given; a warning if there are some."""
    constants = {one.name for one in model.graph.initializer}
    names = [one.name for one in model.graph.input if one.name in constants]
    drop(model.graph.input, lambda one: one.name in constants)
    if not names or model.ir_version < _IR_OF_CONSTANTS:
        model.ir_version = max(model.ir_version, _IR_OF_CONSTANTS)
        return []
    return [f"inputs with a value of their own are constants in the result, and no inputs: {', '.join(names)}"]


def _refuse(model: onnx.ModelProto, recipe: Recipe) -> None:
    """Raises QuantizeError for a model that is of a lower precision already."""
    for node in model.graph.node:
        if _QUANTIZED.fullmatch(node.op_type):
            raise QuantizeError(
                f"the model is quantized already: it has {node.op_type} ({node.name or node.output[0]}); "
                "quantize the version in float that it was made of"
            )
    halves = [
        one.name for one in model.graph.initializer if one.data_type in (TensorProto.FLOAT16, TensorProto.BFLOAT16)
    ]
    if halves:
        raise QuantizeError(f"the model is in half precision already ({halves[0]}); {recipe.name} starts from FP32")


def _optimized(model: onnx.ModelProto, directory: Path, external: bool, warnings: list[str]) -> onnx.ModelProto:
    """Constants folded, batch normalization in convolutions, types known, as far as ONNX Runtime's tool gets.

    Without its inference of shapes by symbols: types alone decide what is quantized.
    """
    from onnxruntime.quantization import quant_pre_process

    file, target = directory / "source.onnx", directory / "optimized.onnx"
    save(model, file, external=external)
    try:
        with hushed(), contextlib.chdir(directory):  # where it fails it leaves files in the current directory
            quant_pre_process(
                file.name, target.name, skip_symbolic_shape=True, save_as_external_data=external,
                all_tensors_to_one_file=True,
            )  # fmt: skip
        return onnx.load(target)
    except Exception as error:  # it raises plain ones, of all kinds
        warnings.append(f"the model was quantized as it is, since it cannot be optimized first: {_line(error)}")
    return _inferred(model, directory, external)


def _as_matrices(model: onnx.ModelProto, directory: Path, external: bool) -> onnx.ModelProto:
    """Gemm as MatMul and Add, where it is that."""
    from onnxruntime.quantization.onnx_model import ONNXModel

    wrapped = ONNXModel(model)
    with hushed():
        wrapped.replace_gemm_with_matmul()
        wrapped.clean_initializers()
    return _inferred(wrapped.model, directory, external)


def _of_opset(model: onnx.ModelProto, least: int, directory: Path, external: bool) -> onnx.ModelProto:
    version = next((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), 0)
    if version >= least:
        return model
    try:
        with hushed():
            converted = version_converter.convert_version(model, least)
    except Exception as error:  # the converter's are RuntimeErrors and worse
        raise QuantizeError(
            f"the model is of opset {version}, this recipe needs {least}, and ONNX's converter fails: {_line(error)}; "
            "export it anew with a newer opset"
        ) from None
    return _inferred(converted, directory, external)


def _inferred(model: onnx.ModelProto, directory: Path, external: bool) -> onnx.ModelProto:
    """With the types and shapes of what is new in it. By files: a model in memory is bounded to 2 GiB."""
    file = directory / "uninferred.onnx"
    save(model, file, external=external)
    try:
        shape_inference.infer_shapes_path(str(file), str(file))
    except Exception as error:  # onnx's own, and RuntimeErrors
        raise QuantizeError(f"ONNX cannot infer the types in the model: {_line(error)}") from None
    return onnx.load(file)


def _complete_types(model: onnx.ModelProto, file: Path, external: bool) -> None:
    """Types that ONNX does not infer, by ONNX Runtime, which knows them of all that it runs (of ai.onnx.ml, say)."""
    graph = model.graph
    known = {one.name for one in (*graph.value_info, *graph.output) if one.type.tensor_type.elem_type}
    unknown = [name for node in graph.node for name in node.output if name and name not in known]
    if not unknown:
        return
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in unknown)
    save(copy, file, external=external)
    try:
        outputs = open_session(file, optimized=False).get_outputs()
    except QuantizeError:  # then what is unknown stays in float
        return
    drop(graph.value_info, lambda one: one.name in unknown)
    for one in outputs:
        if one.name in unknown and one.type in DTYPES:
            kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(DTYPES[one.type]))
            graph.value_info.append(onnx.helper.make_tensor_value_info(one.name, kind, None))


def _name_nodes(model: onnx.ModelProto) -> None:
    """Every node gets a name of its own: what is left in float is told by it."""
    taken = Counter(node.name for node in model.graph.node)
    for at, node in enumerate(model.graph.node):
        if node.name and taken[node.name] == 1:
            continue
        name = f"{node.op_type}_{at}"
        while name in taken:
            name += "_"
        taken[name] += 1
        node.name = name


def _flatten_biases(model: onnx.ModelProto) -> None:
    """A bias of Gemm as the vector that it stands for: the quantizer takes [N], where ONNX also takes [1,N] or [1]."""
    constants = {one.name: one for one in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type != "Gemm" or len(node.input) < 3:
            continue
        weights, bias = constants.get(node.input[1]), constants.get(node.input[2])
        if weights is None or bias is None or not bias.dims:
            continue
        transposed = any(one.name == "transB" and one.i for one in node.attribute)
        outputs, values = weights.dims[0 if transposed else 1], numpy_helper.to_array(bias)
        if list(bias.dims) != [outputs] and values.size in (1, outputs) and values.size == values.shape[-1]:
            flat = np.broadcast_to(values.reshape(-1), outputs)
            name = f"{node.name}_bias"
            while name in constants:
                name += "_"
            model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(flat), name))
            constants[name] = model.graph.initializer[-1]
            node.input[2] = name


def _layers(
    model: onnx.ModelProto, recipe: Recipe, convolutional: bool
) -> tuple[tuple[Layer, ...], tuple[tuple[str, str], ...]]:
    graph = model.graph
    types = {one.name: one.type.tensor_type.elem_type for one in (*graph.value_info, *graph.input, *graph.output)}
    constants = {one.name: one for one in graph.initializer}
    wanted = recipe.layers | (recipe.joints if convolutional else frozenset())
    layers, left = [], []
    for node in graph.node:
        if node.domain not in ("", "ai.onnx"):
            continue
        if node.op_type not in wanted:
            if node.op_type in PRODUCTS:
                left.append((node.name, recipe.why.get(node.op_type, "this recipe does not quantize it")))
            continue
        if reason := _unfit(node, recipe, types, constants):
            if node.op_type in PRODUCTS:
                left.append((node.name, reason))
            continue
        layers.append(Layer(node.name, node.op_type))
    return tuple(layers), tuple(left)


def _unfit(node: onnx.NodeProto, recipe: Recipe, types: dict[str, int], constants: dict[str, TensorProto]) -> str:
    """Why a node of the right type cannot be quantized; empty if it can."""
    kind = types.get(node.output[0], 0)
    if kind != TensorProto.FLOAT:
        known = TensorProto.DataType.Name(kind) if kind else "a type that cannot be inferred"
        return f"its output is of {known}, expected FLOAT"
    if node.op_type not in PRODUCTS:
        return ""
    weights = constants.get(node.input[1])
    if weights is None:
        needed = recipe.constant or node.op_type in ("Conv", "Gemm")
        return "its weights are no constants" if needed and recipe.name != "fp16" else ""
    bias = constants.get(node.input[2]) if node.op_type == "Gemm" and len(node.input) > 2 else None
    if recipe.name == "int8" and bias is not None and len(bias.dims) > 1:
        return f"its bias is of shape {list(bias.dims)}, expected one value for each output"
    if recipe.matrices and node.op_type != "Conv" and len(weights.dims) != 2:
        return f"its weights are of {len(weights.dims)} dimensions, expected 2"
    return ""


def save(model: onnx.ModelProto, file: Path, *, external: bool) -> list[Path]:
    """Writes a model, with its weights in a file beside it if they are to lie there; returns the files."""
    if not external and model.ByteSize() <= LARGEST:
        onnx.save(model, file)
        return [file]
    weights = file.with_name(f"{file.name}.data")
    weights.unlink(missing_ok=True)  # onnx would append to it
    copy = onnx.ModelProto()
    copy.CopyFrom(model)  # saving moves the weights out of what is saved
    onnx.save(
        copy, file, save_as_external_data=True, location=weights.name, size_threshold=1024, convert_attribute=False
    )
    return [file, weights] if weights.exists() else [file]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
