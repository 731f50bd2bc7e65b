import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper, numpy_helper

from headrace.quantize.pruning import prune, two_of_four


def model_of(nodes, weights, opset=17, outputs=("y",)):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def weights_of(model, name="w"):
    (found,) = [numpy_helper.to_array(one) for one in model.graph.initializer if one.name == name]
    return found


def normal(*shape, dtype=np.float32):
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def groups_of(array, axis):
    moved = np.moveaxis(array, axis, -1)
    return moved.reshape(-1, 4)


@given(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=4, max_side=9), elements=st.floats(-9, 9, width=32)),
    st.data(),
)
def test_the_two_largest_of_four_stay(weights, data):
    axis = data.draw(st.integers(-weights.ndim, weights.ndim - 1))
    sparse = two_of_four(weights, axis)
    assert sparse.shape == weights.shape
    assert np.all((sparse == weights) | (sparse == 0))
    for row, kept in zip(
        np.moveaxis(weights, axis, -1).reshape(-1, weights.shape[axis]),
        np.moveaxis(sparse, axis, -1).reshape(-1, weights.shape[axis]),
        strict=True,
    ):
        for start in range(0, len(row), 4):
            best = sorted(abs(row[start : start + 4]), reverse=True)[:2]
            assert sorted(filter(None, abs(kept[start : start + 4])), reverse=True) == [b for b in best if b]


def test_of_equal_weights_the_first_stay():
    assert two_of_four(np.array([[1, -1, 1, 1, 0, 2, 2, 3]]), 1).tolist() == [[1, -1, 0, 0, 0, 2, 0, 3]]


@pytest.mark.parametrize(
    ("node", "shape", "axis"),
    [
        (helper.make_node("MatMul", ["x", "w"], ["y"], name="n"), (32, 8), 0),
        (helper.make_node("MatMul", ["x", "w"], ["y"], name="n"), (3, 32, 8), 1),
        (helper.make_node("Gemm", ["x", "w"], ["y"], name="n"), (32, 8), 0),
        (helper.make_node("Gemm", ["x", "w"], ["y"], name="n", transB=1), (8, 32), 1),
        (helper.make_node("Conv", ["x", "w"], ["y"], name="n"), (8, 32, 3, 3), 1),
        (helper.make_node("Conv", ["x", "w"], ["y"], name="n", group=2), (8, 16, 3), 1),
    ],
    ids=["MatMul", "batched", "Gemm", "transposed", "Conv", "grouped"],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_weights_are_pruned_along_what_is_summed(node, shape, axis, dtype):
    before = normal(*shape, dtype=dtype)
    model = model_of([node], {"w": before})
    (layer,) = prune(model).layers
    after = weights_of(model)
    assert after.dtype == dtype
    assert np.array_equal(after, two_of_four(before, axis))
    assert (np.count_nonzero(groups_of(after, axis), axis=1) == 2).all()
    assert (layer.name, layer.op_type, layer.weights, layer.zeroed) == (
        "n",
        node.op_type,
        before.size,
        before.size // 2,
    )
    full = before.astype(np.float64)
    assert layer.error == pytest.approx(np.sqrt(np.sum((full - after) ** 2) / np.sum(full**2)))


def test_a_pruned_model_still_runs():
    model = model_of([helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)], {"w": normal(8, 32), "b": normal(8)})
    assert prune(model).zeroed_share == 0.5
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = normal(2, 32)
    assert np.allclose(session.run(None, {"x": x})[0], x @ weights_of(model).T + normal(8), atol=1e-5)
    assert np.array_equal(weights_of(model, "b"), normal(8))


MATMUL = helper.make_node("MatMul", ["x", "w"], ["y"], name="n")


@pytest.mark.parametrize(
    ("nodes", "weight", "said"),
    [
        ([MATMUL], normal(8, 8), "sums over 8 for 8 outputs"),
        ([MATMUL], normal(16, 10), "sums over 16 for 10 outputs"),
        ([MATMUL], normal(16), "a vector"),
        ([MATMUL], normal(16, 8, dtype=np.float64), "DOUBLE"),
        ([helper.make_node("MatMul", ["x", "x"], ["y"], name="n")], normal(16, 8), "no constant"),
        ([MATMUL, helper.make_node("Identity", ["w"], ["z"])], normal(16, 8), "shares w"),
        ([MATMUL, helper.make_node("MatMul", ["w", "x"], ["z"], name="m")], normal(16, 8), "shares w"),
        (
            [MATMUL, helper.make_node("Gemm", ["x", "w"], ["z"], name="m", transB=1)], normal(16, 16), "shares w",
        ),
        ([helper.make_node("MatMul", ["w", "w"], ["y"], name="n")], normal(16, 16), "no constant"),
    ],
    ids=["sum", "outputs", "vector", "double", "no constant", "another type", "left side", "other axis", "both sides"],
)  # fmt: skip
def test_what_cannot_be_pruned_is_left_and_told(nodes, weight, said):
    model = model_of(nodes, {"w": weight})
    before = model.SerializeToString()
    found = prune(model)
    assert (found.layers, found.zeroed_share) == ((), 0)
    assert found.skipped[0][0] == "n"
    assert said in found.skipped[0][1]
    assert model.SerializeToString() == before


def test_weights_that_are_an_output_stay():
    model = model_of([MATMUL], {"w": normal(16, 8)}, outputs=("y", "w"))
    assert prune(model).skipped == (("n", "its weights are an output of the model"),)


def test_shared_weights_are_pruned_once():
    model = model_of([MATMUL, helper.make_node("MatMul", ["x", "w"], ["z"], name="m")], {"w": normal(16, 8)})
    found = prune(model)
    assert [layer.name for layer in found.layers] == ["n"]
    assert found.skipped == ()
    model = model_of([MATMUL, helper.make_node("MatMul", ["x", "w"], ["z"], name="m")], {"w": normal(16, 8)})
    assert [name for name, _ in prune(model, dense={"m"}).skipped] == ["n", "m"]


def test_layers_stay_dense_on_demand():
    model = model_of([MATMUL], {"w": normal(16, 8)})
    assert prune(model, dense=["n"]).skipped == (("n", "it was to be left dense"),)
    assert np.array_equal(weights_of(model), normal(16, 8))


def test_zeros_that_were_there_count_for_nothing():
    (layer,) = prune(model_of([MATMUL], {"w": np.zeros((16, 8), np.float32)})).layers
    assert (layer.zeroed, layer.error) == (0, 0)
