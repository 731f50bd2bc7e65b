"""Small models with random weights, and rows for them."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

WIDTH, HIDDEN, CLASSES = 32, 48, 6


def tensor(name, *shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, list(shape))


def weight(name, *shape, scale=1.0):
    values = np.random.default_rng(sum(map(ord, name))).standard_normal(shape) * scale / np.sqrt(shape[0])
    return numpy_helper.from_array(values.astype(np.float32), name)


def model_of(nodes, inputs, outputs, weights=(), opset=17):
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(weights))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def perceptron(rows="n", softmax=False, opset=17):
    """x [rows, WIDTH] -> Gemm, Relu, MatMul, Gemm -> y [rows, CLASSES]. Its nodes have no names."""
    nodes = [
        helper.make_node("Gemm", ["x", "a", "a_bias"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "b"], ["m"]),
        helper.make_node("Gemm", ["m", "c", "c_bias"], ["s" if softmax else "y"]),
    ]
    if softmax:
        nodes.append(helper.make_node("Softmax", ["s"], ["y"], axis=1))
    weights = [
        weight("a", WIDTH, HIDDEN), weight("a_bias", HIDDEN), weight("b", HIDDEN, HIDDEN), weight("c", HIDDEN, CLASSES),
        weight("c_bias", CLASSES),
    ]  # fmt: skip
    return model_of(nodes, [tensor("x", rows, WIDTH)], [tensor("y", rows, CLASSES)], weights, opset)


def normal(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture
def repository(tmp_path):
    """Puts a model into a repository; returns its directory."""

    def put(model, name="m", version=1, **saving):
        directory = tmp_path / "repository" / name / str(version)
        directory.mkdir(parents=True)
        onnx.save(model, directory / "model.onnx", **saving)
        return directory.parent

    return put


@pytest.fixture
def rows(tmp_path):
    """Writes arrays into an .npz; returns its path as a text."""

    def write(name="rows", **arrays):
        path = tmp_path / f"{name}.npz"
        np.savez(path, **arrays)
        return str(path)

    return write
