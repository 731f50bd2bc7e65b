"""From a prepared model to a quantized one, by each recipe. Some of its layers may be left in float."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from headrace.quantize.calibration import largest
from headrace.quantize.errors import QuantizeError
from headrace.quantize.packages import hushed
from headrace.quantize.trim import drop, drop_unread, trim

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from headrace.quantize.prepare import Prepared
    from headrace.quantize.recipes import Options, Recipe

    Write = Callable[[Collection[str]], onnx.ModelProto]
    """The model with all layers but these, by their names, quantized."""

_METADATA = ("onnx.infer", "onnx.quant.pre_process")
FP16_MAX = 65504.0
_IN_INT8 = 4
"""MatMulNBits' accuracy_level that rounds activations to 8 bits: twice as quick, and as exact as the weights allow."""
_ROOM = 0.5
"""Share of FP16's range that values on known data may take: others may be larger."""


def types_of(recipe: Recipe, *, convolutional: bool) -> list[str]:
    """The types of operators that a recipe has to do with in such a model."""
    return sorted(recipe.layers | recipe.followers | (recipe.joints if convolutional else frozenset()))


def writer(prepared: Prepared, recipe: Recipe, options: Options, ranges: Any, directory: Path) -> Write:  # noqa: ANN401
    """What makes a recipe's models. ranges: of `calibrate`, None where the recipe needs none.

    What is no layer for a reason stays in float as what is kept does: ONNX Runtime's tools would quantize some of it.
    """
    left = tuple(name for name, _ in prepared.left)
    makers: dict[str, Write] = {
        "int8": lambda kept: _static(prepared, recipe, options, ranges, kept),
        "int8-dynamic": lambda kept: _dynamic(prepared, options, kept, directory),
        "fp16": lambda kept: _half(prepared, kept),
        "int4": lambda kept: _four_bits(prepared, recipe, options, kept),
    }
    make = makers[recipe.name]

    def write(kept: Collection[str]) -> onnx.ModelProto:
        try:
            with hushed():
                model = make((*kept, *left))
        except Exception as error:  # what onnxruntime.quantization raises has no common base
            raise QuantizeError(f"{recipe.name}: {' '.join(str(error).split()) or type(error).__name__}") from error
        return _cleaned(model)

    return write


def _static(
    prepared: Prepared,
    recipe: Recipe,
    options: Options,
    ranges: Any,  # noqa: ANN401
    kept: Collection[str],
) -> onnx.ModelProto:
    from onnxruntime.quantization import QDQQuantizer, QuantType

    model = prepared.copy(kept)
    onnx.helper.set_model_props(model, {**_properties(model), "onnx.infer": "onnxruntime.quant"})  # shapes are known
    portable = recipe.target == "portable"
    extra = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False} if portable else {}
    quantizer = QDQQuantizer(
        model,
        per_channel=options.per_channel,
        reduce_range=options.reduce_range and not portable,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8 if portable else QuantType.QUInt8,
        tensors_range=ranges,
        nodes_to_quantize=[],
        nodes_to_exclude=[*kept, *_clipping_outputs(model.graph)],
        op_types_to_quantize=types_of(recipe, convolutional=prepared.convolutional),
        extra_options=extra,
    )
    made: onnx.ModelProto = quantizer.quantize_model()
    names = {layer.name for layer in prepared.layers} - set(kept)
    trim(
        made, {one.name: one.output[0] for one in prepared.model.graph.node if one.name in names}, products=not portable
    )
    return made


def _clipping_outputs(graph: onnx.GraphProto) -> list[str]:
    """Activations whose input the model gives too: quantized, they would have it take the range of what they make."""
    outputs = {one.name for one in graph.output}
    return [node.name for node in graph.node if node.op_type in ("Clip", "Relu") and node.input[0] in outputs]


def _dynamic(prepared: Prepared, options: Options, kept: Collection[str], directory: Path) -> onnx.ModelProto:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    file = directory / "dynamic.onnx"
    (directory / "dynamic.onnx.data").unlink(missing_ok=True)
    quantize_dynamic(
        prepared.copy(kept),
        file,
        op_types_to_quantize=["MatMul"],
        per_channel=options.per_channel,
        reduce_range=options.reduce_range,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=list(kept),
        use_external_data_format=prepared.external,
    )
    return onnx.load(file)


def _half(prepared: Prepared, kept: Collection[str]) -> onnx.ModelProto:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model: onnx.ModelProto = convert_float_to_float16(
        prepared.copy(kept), keep_io_types=True, disable_shape_infer=True, node_block_list=list(kept)
    )
    _join_casts(model, kept)
    return model


def _join_casts(model: onnx.ModelProto, kept: Collection[str]) -> None:
    """Gives a node that stays in FP32 what was FP32 before, without a detour through FP16, which ends at 65504."""
    graph = model.graph
    makers = {output: node for node in graph.node for output in node.output}
    inputs = {one.name for one in graph.input if one.type.tensor_type.elem_type == TensorProto.FLOAT}

    def single(name: str) -> bool:
        return name in inputs or (name in makers and makers[name].name in kept)

    direct = {}
    for node in graph.node:
        if not _casts(node, TensorProto.FLOAT):
            continue
        before = makers.get(node.input[0])
        if before is not None and _casts(before, TensorProto.FLOAT16) and single(before.input[0]):
            direct[node.output[0]] = before.input[0]
    outputs = {one.name for one in graph.output}
    for node in graph.node:
        node.input[:] = [direct.get(name, name) for name in node.input]
    for output in outputs & direct.keys():  # of a node in FP32: its value is the model's output, with no cast between
        node = makers[output]
        node.op_type, node.input[0] = "Identity", direct[output]
        del node.attribute[:]
    drop_unread(graph, ("Cast",))


def _casts(node: onnx.NodeProto, kind: int) -> bool:
    return node.op_type == "Cast" and any(one.name == "to" and one.i == kind for one in node.attribute)


def _four_bits(prepared: Prepared, recipe: Recipe, options: Options, kept: Collection[str]) -> onnx.ModelProto:
    from onnxruntime.quantization import QuantFormat
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    portable = recipe.target == "portable"
    config = DefaultWeightOnlyQuantConfig(
        block_size=options.block_size,
        is_symmetric=portable,
        accuracy_level=_IN_INT8,
        quant_format=QuantFormat.QDQ if portable else QuantFormat.QOperator,
        op_types_to_quantize=("MatMul",),
    )
    layers = {layer.name for layer in prepared.layers}
    others = [node.name for node in prepared.model.graph.node if node.name not in layers]
    quantizer = MatMulNBitsQuantizer(prepared.copy(kept), nodes_to_exclude=[*others, *kept], algo_config=config)
    quantizer.process()
    model: onnx.ModelProto = quantizer.model.model
    copies = Counter(tensor.name for tensor in model.graph.initializer)

    def repeated(tensor: TensorProto) -> bool:
        copies[tensor.name] -= 1
        return copies[tensor.name] > 0

    drop(model.graph.initializer, repeated)  # weights that two layers share come twice
    return model


def overflowing(prepared: Prepared, ranges: Any) -> dict[str, str]:  # noqa: ANN401
    """The nodes that FP16 is too small for, and why: by their values on known data, or by their weights."""
    size = largest(ranges)
    for tensor in prepared.model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            values = abs(numpy_helper.to_array(tensor))
            size[tensor.name] = float(values.max(initial=0, where=np.isfinite(values)))  # infinity is one in FP16 too
    found = {}
    for node in prepared.model.graph.node:
        name = max((*node.input, *node.output), key=lambda one: size.get(one, 0.0), default="")
        if size.get(name, 0.0) > _ROOM * FP16_MAX:
            found[node.name] = f"{name} has values up to {size[name]:.4g}, and FP16 ends at {FP16_MAX:g}"
    return found


def _properties(model: onnx.ModelProto) -> dict[str, str]:
    return {one.key: one.value for one in model.metadata_props}


def _cleaned(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without what ONNX Runtime's tools leave for one another, nor domains of operators that there are none of."""
    kept = {key: value for key, value in _properties(model).items() if key not in _METADATA}
    del model.metadata_props[:]
    if kept:
        onnx.helper.set_model_props(model, kept)
    used = {"", *_domains(model.graph), *(function.domain for function in model.functions)}
    for one in list(model.opset_import):
        if one.domain not in used and one.domain != "ai.onnx":  # another name of ""
            model.opset_import.remove(one)
    return model


def _domains(graph: onnx.GraphProto) -> set[str]:
    found = {node.domain for node in graph.node}
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                found |= _domains(inner)
    return found
