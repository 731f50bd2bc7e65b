import numpy as np
import onnx
import pytest
from backends.tensorrt import networks
from onnx import TensorProto, helper, numpy_helper

from headrace.backends.tensorrt import model_files
from headrace.backends.tensorrt.structure import structure

FLOAT = TensorProto.FLOAT


def of(made, tmp_path, external=False):
    return structure(model_files.read(networks.save(made, tmp_path / "model.onnx", external)))


def changed(made, name, by=1):
    """The model with another value in one of its constants."""
    other = onnx.ModelProto()
    other.CopyFrom(made)
    (tensor,) = [tensor for tensor in other.graph.initializer if tensor.name == name]
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.asarray(by).astype("f"), name))
    return other


def graph(*nodes, **constants):
    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    return networks.model(list(nodes), [("x", FLOAT, ["N", 16])], [("y", FLOAT, None)], weights)


WEIGHT = np.ones((16, 16), np.float32)
BIAS = np.ones(16, np.float32)
INNER = helper.make_graph(
    [helper.make_node("Add", ["x", "b"], ["i"])], "g", [], [helper.make_tensor_value_info("i", FLOAT, None)]
)


@pytest.mark.parametrize("name", ["k", "w"])
@pytest.mark.parametrize("external", [False, True], ids=["inside", "beside"])
def test_other_weights_are_the_same_structure(tmp_path, name, external):
    gemm = helper.make_node("Gemm", ["x", "w", "k"], ["y"])
    made = graph(gemm, w=WEIGHT, k=BIAS)
    assert of(made, tmp_path, external) == of(changed(made, name), tmp_path, external)


def test_weights_may_move_to_another_file(tmp_path):
    made = graph(helper.make_node("MatMul", ["x", "w"], ["y"]), w=WEIGHT)
    assert of(made, tmp_path) == of(made, tmp_path, external=True)


@pytest.mark.parametrize(
    ("made", "name"),
    [
        (networks.conv_net(), "b"),  # as few elements as a shape may have
        (graph(helper.make_node("Clip", ["x", "w"], ["y"]), w=WEIGHT), "w"),
        (graph(helper.make_node("MatMul", ["x", "w"], ["y"], domain="mine"), w=WEIGHT), "w"),
        (graph(helper.make_node("Gemm", ["w", "x"], ["y"]), w=WEIGHT), "w"),
        (
            graph(helper.make_node("Add", ["x", "b"], ["s"]), helper.make_node("Reshape", ["s", "b"], ["y"]), b=BIAS),
            "b",
        ),
        (graph(helper.make_node("If", ["c"], ["y"], then_branch=INNER, else_branch=INNER), b=BIAS), "b"),
        (
            graph(
                helper.make_node("Add", ["x", "b"], ["s"]),
                helper.make_node("If", ["c"], ["y"], then_branch=INNER, else_branch=INNER),
                b=BIAS,
            ),
            "b",
        ),
        (networks.model([helper.make_node("Add", ["x", "y"], ["z"])], [("x", FLOAT, [16])], [("y", FLOAT, [16])],
                        [numpy_helper.from_array(BIAS, "y")]), "y"),
        (graph(helper.make_node("Unknown", ["x", "w"], ["y"]), w=WEIGHT), "w"),
    ],
    ids=["few", "operator", "domain", "input", "shape too", "only inside", "inside too", "output", "unknown"],
)  # fmt: skip
def test_other_constants_are_another_structure(tmp_path, made, name):
    assert of(made, tmp_path) == of(made, tmp_path)
    assert of(made, tmp_path) != of(changed(made, name), tmp_path)


def test_integers_are_structure(tmp_path):
    node = helper.make_node("Add", ["x", "b"], ["y"])
    one, other = (graph(node, b=np.full(16, value, np.int64)) for value in (1, 2))
    assert of(one, tmp_path) != of(other, tmp_path)


def test_what_is_computed_is_structure(tmp_path):
    makes = [graph(helper.make_node(op, ["x", "b"], ["y"]), b=BIAS) for op in ("Add", "Mul", "Sub")]
    makes.append(graph(helper.make_node("Add", ["b", "x"], ["y"]), b=BIAS))
    makes.append(graph(helper.make_node("Add", ["x", "b"], ["y"]), b=np.ones((1, 16), np.float32)))
    makes.append(graph(helper.make_node("Add", ["x", "c"], ["y"]), c=BIAS))
    makes.append(graph(helper.make_node("Add", ["x", "b"], ["y"]), b=BIAS.astype(np.float16)))
    assert len({of(made, tmp_path) for made in makes}) == len(makes)


def test_a_constant_in_another_file_that_is_no_weight_makes_all_files_count(tmp_path):
    node = helper.make_node("Clip", ["x", "c"], ["z"])
    made = graph(node, helper.make_node("MatMul", ["z", "w"], ["y"]), w=WEIGHT, c=WEIGHT)
    files = model_files.read(networks.save(made, tmp_path / "model.onnx", external=True))
    assert files.external_tensors == 2
    assert structure(files) == files.digest
    made = graph(helper.make_node("MatMul", ["x", "w"], ["y"]), w=WEIGHT)
    files = model_files.read(networks.save(made, tmp_path / "model.onnx", external=True))
    assert structure(files) != files.digest
