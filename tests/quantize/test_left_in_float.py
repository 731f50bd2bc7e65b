"""What a report says of a graph, held against the graph: what is said to be in float is in float."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from quantize.conftest import CLASSES, WIDTH, model_of, normal, tensor, weight

from headrace.quantize.build import Request, build
from headrace.quantize.models import open_session
from headrace.quantize.recipes import NAMES, TARGETS
from headrace.testing.clock import FakeClock

BOTH = [(name, target) for name in NAMES for target in TARGETS if (name, target) != ("int8-dynamic", "portable")]
PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
NAMED = {"conv", "conv_computed", "deconvolution", "stacked", "plain", "gemm_computed", "large"}


def products():
    """image [n, 3, 6, 6], x [n, 32], w [32, 6] -> y [n, 6]: products of all kinds, some of weights that are computed.

    Tensors differ in size, so that FP16 is too small for one of them.
    """
    nodes = [
        helper.make_node("Conv", ["image", "k"], ["c"], name="conv"),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Abs", ["k2"], ["k2_computed"]),
        helper.make_node("ReduceMax", ["w"], ["largest"], keepdims=0),
        helper.make_node("Min", ["k2_computed", "largest"], ["k2_clipped"]),
        helper.make_node("Conv", ["r", "k2_clipped"], ["c2"], name="conv_computed"),
        helper.make_node("ConvTranspose", ["c2", "k3"], ["t"], name="deconvolution"),
        helper.make_node("MatMul", ["t", "a"], ["m"], name="stacked"),
        helper.make_node("GlobalAveragePool", ["m"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "b"], ["z"], name="plain"),
        helper.make_node("Gemm", ["x", "w"], ["g"], name="gemm_computed"),
        helper.make_node("Mul", ["x", "thousand"], ["far"]),
        helper.make_node("MatMul", ["far", "d"], ["h"], name="large"),
        helper.make_node("Mul", ["h", "thousandth"], ["near"]),
        helper.make_node("Sum", ["z", "g", "near"], ["y"]),
    ]
    weights = [
        weight("k", 4, 3, 3, 3), weight("k2", 4, 4, 1, 1), weight("k3", 4, 4, 3, 3), weight("a", 4, 6, 6),
        weight("b", 4, CLASSES), weight("d", WIDTH, CLASSES),
        numpy_helper.from_array(np.float32(3e4), "thousand"), numpy_helper.from_array(np.float32(1e-5), "thousandth"),
    ]  # fmt: skip
    inputs = [tensor("image", "n", 3, 6, 6), tensor("x", "n", WIDTH), tensor("w", WIDTH, CLASSES)]
    return model_of(nodes, inputs, [tensor("y", "n", CLASSES)], weights)


def convolutions():
    """image [n, 3, 8, 8] -> y [n, 6]: two convolutions of which 8 bits leave nothing, a matrix behind them."""
    scale = np.ones((16, 1, 1, 1), np.float32)
    scale[0] = 3e4
    first = numpy_helper.to_array(weight("first", 16, 3, 3, 3)) * scale
    second = numpy_helper.to_array(weight("second", 16, 16, 3, 3)) / scale.reshape(1, 16, 1, 1)
    nodes = [
        helper.make_node("Conv", ["image", "first"], ["a"], name="one", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "second"], ["c"], name="two", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("GlobalAveragePool", ["d"], ["e"]),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("Gemm", ["f", "w"], ["y"]),
    ]
    weights = [numpy_helper.from_array(first, "first"), numpy_helper.from_array(second, "second"), weight("w", 16, 6)]
    return model_of(nodes, [tensor("image", "n", 3, 8, 8)], [tensor("y", "n", 6)], weights)


def in_float(model):
    """Names of products none of whose inputs is of fewer bits."""
    constants = {one.name: one.data_type for one in model.graph.initializer}
    made = {output: node for node in model.graph.node for output in node.output}

    def lower(name):
        cast = made[name] if name in made and made[name].op_type == "Cast" else None
        to_half = cast is not None and cast.attribute[0].i == TensorProto.FLOAT16
        return constants.get(name, TensorProto.FLOAT) != TensorProto.FLOAT or to_half

    def weights(node):
        origin = made.get(node.input[1])
        return origin is not None and origin.op_type == "DequantizeLinear"

    return {
        node.name
        for node in model.graph.node
        if node.op_type in PRODUCTS and not weights(node) and not any(map(lower, node.input))
    }


@pytest.fixture
def made(repository, rows):
    def made(model, data, name, target, **options):
        request = Request(repository(model), name, target, (rows(**data),), speed_s=0, **options)
        report, directory = build(request, lambda *_: None, FakeClock(), 0)
        return report, directory and directory / "model.onnx"

    return made


@pytest.mark.parametrize(("name", "target"), BOTH)
def test_what_is_said_to_be_in_float_is_in_float(made, name, target):
    """And nothing else is."""
    data = {"image": normal(120, 1, 3, 6, 6), "x": normal(120, 1, WIDTH), "w": normal(120, WIDTH, CLASSES)}
    report, file = made(products(), data, name, target, gate=1e-6)
    said = {node for node, _ in report.excluded}
    model = onnx.load(file)
    layers = {layer.name for layer in report.layers if not layer.kept_float}
    assert in_float(model) == {node for node in said if node.partition("/")[0].removesuffix("_MatMul") in NAMED}
    assert layers.isdisjoint(in_float(model))
    assert said


@pytest.mark.parametrize("target", TARGETS)
def test_convolutions_are_layers_for_either_target(made, target):
    report, file = made(convolutions(), {"image": normal(200, 3, 8, 8)}, "int8", target)
    errors = {layer.name: layer for layer in report.layers if layer.op_type == "Conv"}
    assert {name: layer.kept_float for name, layer in errors.items()} == {"one": True, "two": True}
    assert in_float(onnx.load(file)) == {"one", "two"}


def branched(within):
    """x [n, 32] -> y [n, 6] and h [n, 32], which a Relu reads. within: so does a graph within, instead."""
    name = "inner" if within else "h"
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], name="one"),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "b"], ["y"], name="two"),
    ]
    if within:
        branches = {
            branch: helper.make_graph([helper.make_node(kind, ["h"], [branch])], branch, [], [tensor(branch, "n", 32)])
            for branch, kind in (("then_branch", "Identity"), ("else_branch", "Neg"))
        }
        nodes.append(helper.make_node("If", ["yes"], [name], **branches))
    weights = [weight("a", WIDTH, 32), weight("b", 32, CLASSES)]
    inputs = [tensor("x", "n", WIDTH)]
    if within:
        inputs.append(tensor("yes", kind=TensorProto.BOOL))
    return model_of(nodes, inputs, [tensor("y", "n", CLASSES), tensor(name, "n", 32)], weights)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("within", [False, True])
def test_what_a_relu_cuts_off_is_there_for_others(made, within, target):
    x = normal(200, WIDTH)
    data = {"x": x[:, None], "yes": np.ones(200, bool)} if within else {"x": x}
    _, file = made(branched(within), data, "int8", target, output="y")
    feed = {"x": x, **({"yes": np.array(True)} if within else {})}
    before, after = (open_session(one).run(None, feed)[1] for one in (file.parents[1] / "1" / "model.onnx", file))
    assert np.linalg.norm(after - before) < 0.05 * np.linalg.norm(before)
