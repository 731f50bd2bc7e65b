import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from quantize.conftest import CLASSES, HIDDEN, WIDTH, model_of, perceptron, tensor, weight

from headrace.quantize.errors import QuantizeError
from headrace.quantize.models import find_source
from headrace.quantize.prepare import prepare, save
from headrace.quantize.recipes import choose_recipe


@pytest.fixture
def prepared(repository, tmp_path):
    def prepared(model, recipe="int8", target="cpu", **saving):
        directory = tmp_path / "work"
        directory.mkdir()
        return prepare(find_source(repository(model, **saving)), choose_recipe(recipe, target), directory)

    return prepared


def test_every_node_has_a_name_of_its_own_and_a_shape(prepared):
    found = prepared(perceptron())
    names = [node.name for node in found.model.graph.node]
    assert len(set(names)) == len(names)
    assert all(names)
    known = {one.name for one in (*found.model.graph.value_info, *found.model.graph.output)}
    assert known >= {name for node in found.model.graph.node for name in node.output}
    assert [layer.op_type for layer in found.layers] == ["Gemm", "MatMul", "Gemm"]


def test_4_bits_take_matrices_alone(prepared):
    found = prepared(perceptron(), "int4")
    assert [layer.op_type for layer in found.layers] == ["MatMul"] * 3
    assert "Gemm" not in {node.op_type for node in found.model.graph.node}


@pytest.mark.parametrize(("target", "opset"), [("cpu", 17), ("portable", 21)])
def test_the_opset_is_raised_where_the_recipe_needs_it(prepared, target, opset):
    found = prepared(perceptron(opset=17), "int4", target)
    assert [one.version for one in found.model.opset_import if not one.domain] == [opset]
    assert len(found.layers) == 3


def test_an_old_opset_is_raised(prepared):
    assert [one.version for one in prepared(perceptron(opset=11)).model.opset_import if not one.domain] == [13]


@pytest.mark.parametrize("recipe", ["int8", "fp16"])
def test_constants_that_an_old_version_of_onnx_called_inputs_are_none(prepared, recipe):
    model = perceptron(opset=8)
    model.ir_version = 3
    model.graph.input.extend(tensor(one.name, *one.dims) for one in model.graph.initializer)
    found = prepared(model, recipe)
    assert [one.name for one in found.model.graph.input] == ["x"]
    assert found.model.ir_version >= 4
    assert not found.warnings
    onnx.checker.check_model(found.model, full_check=True)


def test_what_cannot_be_quantized_is_said(prepared):
    """Weights that are computed; a product of doubles; a product of two activations is fine for 8 bits."""
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["g"], name="computed"),
        helper.make_node("MatMul", ["x", "a"], ["h"], name="layer"),
        helper.make_node("Concat", ["g", "h"], ["y"], axis=1),
    ]
    inputs = [tensor("x", "n", WIDTH), tensor("w", WIDTH, HIDDEN)]
    model = model_of(nodes, inputs, [tensor("y", "n", 2 * HIDDEN)], [weight("a", WIDTH, HIDDEN)])
    found = prepared(model)
    assert [layer.name for layer in found.layers] == ["layer"]
    assert dict(found.left) == {"computed": "its weights are no constants"}


def test_sums_are_layers_between_convolutions_and_nowhere_else(prepared, tmp_path):
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], pads=[1, 1, 1, 1], name="conv"),
        helper.make_node("Add", ["c", "x"], ["y"], name="sum"),
    ]
    image = [tensor("x", "n", 3, 8, 8)]
    found = prepared(model_of(nodes, image, [tensor("y", "n", 3, 8, 8)], [weight("k", 3, 3, 3, 3)]))
    assert [layer.name for layer in found.layers] == ["conv", "sum"]


@pytest.mark.parametrize(
    ("recipe", "said"), [("int8", "expected Conv, Gemm, MatMul .*, found 1 Softmax"), ("int4", "expected MatMul")]
)
def test_a_model_without_layers(prepared, recipe, said):
    node = helper.make_node("Softmax", ["x"], ["y"])
    with pytest.raises(QuantizeError, match=said):
        prepared(model_of([node], [tensor("x", "n", WIDTH)], [tensor("y", "n", WIDTH)]), recipe)


def quantized():
    constants = [numpy_helper.from_array(np.float32(0.1), "s"), numpy_helper.from_array(np.uint8(0), "z")]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    return model_of(nodes, [tensor("x", "n", WIDTH)], [tensor("y", "n", WIDTH)], constants)


def halves():
    weights = numpy_helper.from_array(np.ones((WIDTH, CLASSES), np.float16), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    kind = TensorProto.FLOAT16
    return model_of([node], [tensor("x", "n", WIDTH, kind=kind)], [tensor("y", "n", CLASSES, kind=kind)], [weights])


@pytest.mark.parametrize(
    ("model", "said"), [(quantized, "quantized already: it has QuantizeLinear"), (halves, "half precision already")]
)
@pytest.mark.parametrize("recipe", ["int8", "fp16"])
def test_no_model_is_quantized_twice(prepared, model, recipe, said):
    with pytest.raises(QuantizeError, match=said):
        prepared(model(), recipe)


def test_no_onnx_file(repository, tmp_path):
    directory = repository(perceptron())
    (directory / "1" / "model.onnx").write_bytes(b"\xff" * 100)
    with pytest.raises(QuantizeError, match=r"model\.onnx"):
        prepare(find_source(directory), choose_recipe("int8", "cpu"), tmp_path)


def test_weights_that_lie_elsewhere_are_refused(repository, tmp_path):
    directory = repository(perceptron(), save_as_external_data=True, location="w.bin", size_threshold=0)
    model = onnx.load(directory / "1" / "model.onnx", load_external_data=False)
    for one in model.graph.initializer:
        one.external_data[0].value = "../w.bin"
    onnx.save(model, directory / "1" / "model.onnx")
    with pytest.raises(QuantizeError, match="no file beside it"):
        prepare(find_source(directory), choose_recipe("int8", "cpu"), tmp_path)


def test_weights_in_a_file_of_their_own_stay_there(prepared, tmp_path):
    found = prepared(perceptron(), save_as_external_data=True, location="w.bin", size_threshold=0)
    assert found.external
    files = save(found.copy(()), tmp_path / "model.onnx", external=True)
    assert [path.name for path in files] == ["model.onnx", "model.onnx.data"]
    again = save(found.copy(()), tmp_path / "model.onnx", external=True)
    assert again[1].stat().st_size < 2 * perceptron().ByteSize()  # not appended to


@pytest.mark.parametrize("bias", [(1, CLASSES), (1,), (1, 1), (CLASSES,)])
def test_biases_that_stand_for_a_vector_become_one(prepared, bias):
    node = helper.make_node("Gemm", ["x", "a", "b"], ["y"])
    weights = [weight("a", WIDTH, CLASSES), weight("b", *bias)]
    found = prepared(model_of([node], [tensor("x", "n", WIDTH)], [tensor("y", "n", CLASSES)], weights))
    (gemm,) = found.model.graph.node
    constants = {one.name: numpy_helper.to_array(one) for one in found.model.graph.initializer}
    assert constants.keys() == set(gemm.input[1:])
    expected = np.broadcast_to(numpy_helper.to_array(weights[1]).reshape(-1), CLASSES)
    assert np.array_equal(constants[gemm.input[2]], expected)
    assert len(found.layers) == 1


def test_a_bias_that_differs_from_row_to_row_keeps_its_layer_in_float(prepared):
    nodes = [helper.make_node("Gemm", ["x", "a", "b"], ["h"]), helper.make_node("MatMul", ["h", "c"], ["y"])]
    weights = [weight("a", WIDTH, HIDDEN), weight("b", 4, HIDDEN), weight("c", HIDDEN, CLASSES)]
    found = prepared(model_of(nodes, [tensor("x", 4, WIDTH)], [tensor("y", 4, CLASSES)], weights))
    assert [layer.op_type for layer in found.layers] == ["MatMul"]
    assert "its bias is of shape [4, 48]" in found.left[0][1]


def test_types_that_onnx_does_not_infer_are_those_of_onnx_runtime(prepared):
    """As behind a Scaler, with which pipelines of scikit-learn begin; the Cast that tells its type is removed."""
    nodes = [
        helper.make_node("Scaler", ["x"], ["scaled"], domain="ai.onnx.ml", offset=[0.5], scale=[2.0]),
        helper.make_node("Cast", ["scaled"], ["h"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["h", "a"], ["m"], name="one"),
        helper.make_node("Relu", ["m"], ["r"]),
        helper.make_node("MatMul", ["r", "b"], ["y"], name="two"),
    ]
    weights = [weight("a", WIDTH, HIDDEN), weight("b", HIDDEN, CLASSES)]
    graph = helper.make_graph(nodes, "g", [tensor("x", "n", WIDTH)], [tensor("y", "n", CLASSES)], weights)
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 1)]
    found = prepared(helper.make_model(graph, opset_imports=domains, ir_version=8))
    assert [node.op_type for node in found.model.graph.node] == ["Scaler", "MatMul", "Relu", "MatMul"]
    assert [layer.name for layer in found.layers] == ["one", "two"]
