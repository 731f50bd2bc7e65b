import numpy as np
import onnx
from onnx import helper, numpy_helper
from quantize.conftest import tensor

from headrace.quantize.trim import trim

SCALE = [numpy_helper.from_array(np.float32(0.1), "s"), numpy_helper.from_array(np.uint8(0), "z")]


def pair(name, out):
    return [
        helper.make_node("QuantizeLinear", [name, "s", "z"], [f"{name}_q"], name=f"{name}_Q"),
        helper.make_node("DequantizeLinear", [f"{name}_q", "s", "z"], [out], name=f"{name}_DQ"),
    ]


def graph_of(nodes, outputs, layers, products=True):
    """The inputs of each node that is left, by its name."""
    graph = helper.make_graph(
        nodes, "g", [tensor("x", 4, 4)], [tensor(one, 4, 4) for one in outputs],
        [numpy_helper.from_array(np.eye(4, dtype=np.float32), "w"), *SCALE],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    trim(model, layers, products=products)
    onnx.checker.check_model(model, full_check=True)
    return {node.name: (list(node.input), list(node.output)) for node in model.graph.node}


def node(kind, name, inputs, output):
    return helper.make_node(kind, inputs, [output], name=name)


def test_a_node_in_float_reads_what_was_made_in_float():
    nodes = [
        *pair("x", "xd"), node("MatMul", "layer", ["xd", "w"], "y"), node("Exp", "exp", ["xd"], "e"),
        node("Add", "add", ["e", "y"], "sum"),
    ]  # fmt: skip
    found = graph_of(nodes, ["sum"], {"layer": "y"})
    assert found["exp"][0] == ["x"]
    assert found["layer"][0] == ["xd", "w"]


def test_a_product_that_is_read_in_float_alone_is_not_rounded():
    nodes = [
        *pair("x", "xd"),
        node("MatMul", "layer", ["xd", "w"], "h"),
        *pair("h", "hd"),
        node("Exp", "e", ["hd"], "y"),
    ]
    found = graph_of(nodes, ["y"], {"layer": "h"})
    assert found["e"][0] == ["h"]
    assert "h_Q" not in found
    assert "h_DQ" not in found
    assert graph_of(nodes, ["y"], {"layer": "h"}, products=False)["e"][0] == ["hd"]


def test_a_product_that_is_an_output_keeps_its_name():
    nodes = [*pair("x", "xd"), node("MatMul", "layer", ["xd", "w"], "h"), *pair("h", "y")]
    assert graph_of(nodes, ["y"], {"layer": "y"}) == {
        "x_Q": (["x", "s", "z"], ["x_q"]),
        "x_DQ": (["x_q", "s", "z"], ["xd"]),
        "layer": (["xd", "w"], ["y"]),
    }


def test_a_range_that_does_an_activations_work_stays():
    """The tool has taken out a Relu: the layer's output has the Relu's name, and U8 from 0 on cuts what is below."""
    nodes = [
        *pair("x", "xd"),
        node("MatMul", "layer", ["xd", "w"], "r"),
        *pair("r", "rd"),
        node("Exp", "e", ["rd"], "y"),
    ]
    assert graph_of(nodes, ["y"], {"layer": "h"})["e"][0] == ["rd"]


def test_between_two_layers_and_behind_a_convolution_nothing_changes():
    nodes = [
        *pair("x", "xd"), node("MatMul", "first", ["xd", "w"], "h"), *pair("h", "hd"),
        node("MatMul", "second", ["hd", "w"], "y"),
    ]  # fmt: skip
    found = graph_of(nodes, ["y"], {"first": "h", "second": "y"})
    assert found["second"][0] == ["hd", "w"]
    assert "h_Q" in found


def test_what_goes_along_in_integers_reads_integers():
    nodes = [
        *pair("x", "xd"), node("MatMul", "first", ["xd", "w"], "h"), *pair("h", "hd"),
        node("Transpose", "turn", ["hd"], "t"), *pair("t", "td"), node("MatMul", "second", ["td", "w"], "y"),
    ]  # fmt: skip
    found = graph_of(nodes, ["y"], {"first": "h", "second": "y"})
    assert found["turn"][0] == ["hd"]
