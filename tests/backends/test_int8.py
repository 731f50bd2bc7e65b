import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from headrace.backends.onnxruntime.cpu import OnnxRuntimeBackend


@pytest.mark.parametrize("activations", [np.uint8, np.int8])
def test_products_of_octets_do_not_saturate(tmp_path, activations):
    """On no processor: sums of products of the largest octets are what they are in float."""

    def scale(name, value, zero):
        return [
            numpy_helper.from_array(np.float32(value), f"{name}_scale"),
            numpy_helper.from_array(zero, f"{name}_zero"),
        ]

    rng = np.random.default_rng(0)
    weight = rng.choice(np.array([-127, 127], np.int8), (64, 8))
    zero = activations(0)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["x_q"]),
        helper.make_node("DequantizeLinear", ["x_q", "x_scale", "x_zero"], ["x_d"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["w_d"]),
        helper.make_node("MatMul", ["x_d", "w_d"], ["y"]),
    ]
    weights = [numpy_helper.from_array(weight, "w"), *scale("x", 1.0, zero), *scale("w", 1.0, np.int8(0))]
    float32 = TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", float32, ("N", 64))],
        [helper.make_tensor_value_info("y", float32, ("N", 8))],
        weights,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(made, tmp_path / "model.onnx")
    model = OnnxRuntimeBackend().load(tmp_path, max_batch=None, threads=1, options={})
    rows = np.full((4, 64), np.iinfo(activations).max, np.float32)
    (got,) = model.make_instance(0).run([[rows.data.cast("B")]], [(4, 64)], [0])
    assert got.tolist() == (rows @ weight.astype(np.float32)).tolist()
