"""Small ONNX files of the kinds that people serve, as bytes."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = [helper.make_opsetid("", 17)]
FLOAT = TensorProto.FLOAT


def model(nodes, inputs, outputs, weights=()):
    """A model of nodes and of tensors as (name, type, shape)."""
    sides = [[helper.make_tensor_value_info(*tensor) for tensor in side] for side in (inputs, outputs)]
    graph = helper.make_graph(nodes, "g", *sides, list(weights))
    return helper.make_model(graph, opset_imports=OPSET, ir_version=9)


def weight(name, *shape, dtype=np.float32):
    values = np.random.default_rng(sum(shape)).standard_normal(shape).astype(dtype)
    return numpy_helper.from_array(values, name)


def conv_net(batch="N", size=16):
    """Pictures [N, 3, size, size] to scores [N, 4]."""
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w", "b"], ["y"]),
    ]
    weights = [weight("k", 8, 3, 3, 3), weight("w", 8, 4), weight("b", 4)]
    return model(nodes, [("x", FLOAT, [batch, 3, size, size])], [("y", FLOAT, [batch, 4])], weights)


def half_net():
    """A product in FP16."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    kind = TensorProto.FLOAT16
    return model(nodes, [("x", kind, ["N", 32])], [("y", kind, ["N", 8])], [weight("w", 32, 8, dtype=np.float16)])


def quantized_net():
    """A product in INT8, symmetric: quantised and dequantised on both sides."""
    rng = np.random.default_rng(1)
    weights = [
        numpy_helper.from_array(np.float32(0.05), "scale"),
        numpy_helper.from_array(np.int8(0), "zero"),
        numpy_helper.from_array(rng.integers(-127, 128, (32, 8), np.int8), "w"),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["dw"]),
        helper.make_node("MatMul", ["d", "dw"], ["y"]),
    ]
    return model(nodes, [("x", FLOAT, ["N", 32])], [("y", FLOAT, ["N", 8])], weights)


def any_length():
    """Rows of any length, doubled."""
    return model([helper.make_node("Add", ["x", "x"], ["y"])], [("x", FLOAT, ["N", "L"])], [("y", FLOAT, ["N", "L"])])


def two_inputs():
    """Sum and difference of rows of two numbers."""
    nodes = [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Sub", ["a", "b"], ["difference"])]
    sides = [[(name, FLOAT, ["N", 2]) for name in names] for names in (("a", "b"), ("sum", "difference"))]
    return model(nodes, *sides)


def reshaped():
    """A shape as an input."""
    return model(
        [helper.make_node("Reshape", ["x", "s"], ["y"])],
        [("x", FLOAT, ["N", 2]), ("s", TensorProto.INT64, [2])],
        [("y", FLOAT, ["A", "B"])],
    )


def texts():
    """Strings."""
    kind = TensorProto.STRING
    return model([helper.make_node("Identity", ["x"], ["y"])], [("x", kind, ["N", 2])], [("y", kind, ["N", 2])])


def unknown_operator():
    return model([helper.make_node("Nope", ["x"], ["y"])], [("x", FLOAT, ["N", 2])], [("y", FLOAT, ["N", 2])])


def save(made, path, external=False):
    """Writes a model; external: its weights beside it, in `weights.bin`."""
    kept = onnx.ModelProto()
    kept.CopyFrom(made)
    if external:
        onnx.save(kept, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    else:
        path.write_bytes(kept.SerializeToString())
    return path
