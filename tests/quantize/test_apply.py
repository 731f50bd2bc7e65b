from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from quantize.conftest import CLASSES, HIDDEN, WIDTH, model_of, normal, perceptron, tensor, weight

from headrace.quantize.apply import overflowing, types_of, writer
from headrace.quantize.calibration import calibrate
from headrace.quantize.data import Dataset
from headrace.quantize.errors import QuantizeError
from headrace.quantize.models import find_source, open_session
from headrace.quantize.prepare import prepare
from headrace.quantize.recipes import METHODS, NAMES, TARGETS, Options, choose_recipe

X = normal(64, WIDTH)
BOTH = [(name, target) for name in NAMES for target in TARGETS if (name, target) != ("int8-dynamic", "portable")]


def quiet(*_):
    pass


@pytest.fixture
def made(repository, tmp_path):
    """Prepares a model for a recipe; returns what makes models of it, its layers and where the model lies."""

    def made(model, name, target="cpu", options=None, rows=X, **saving):
        recipe, options = choose_recipe(name, target), options or Options()
        source = find_source(repository(model, **saving))
        directory = tmp_path / "work"
        directory.mkdir()
        prepared = prepare(source, recipe, directory, sparse=options.prune)
        data = Dataset({"x": rows}, None, len(rows))
        ranges = None
        if recipe.calibrated:
            types = types_of(recipe, convolutional=prepared.convolutional)
            ranges = calibrate(prepared, data, options, types, directory, quiet)
        return writer(prepared, recipe, options, ranges, directory), prepared

    return made


def run(model, tmp_path, rows=X):
    file = tmp_path / "run.onnx"
    onnx.save(model, file)
    return open_session(file, 1).run(None, {"x": rows})[0]


def error(model, quantized, tmp_path, rows=X):
    expected = run(model, tmp_path, rows)
    return float(np.linalg.norm(run(quantized, tmp_path, rows) - expected) / np.linalg.norm(expected))


def kinds(model):
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize(("name", "target"), BOTH)
def test_each_recipe_makes_a_model_that_is_smaller_and_close(made, tmp_path, name, target):
    write, _ = made(perceptron(), name, target)
    result = write([])
    assert 1e-6 < error(perceptron(), result, tmp_path) < (0.2 if name == "int4" else 0.03)
    assert result.ByteSize() < perceptron().ByteSize() * (0.6 if name == "fp16" else 0.45)
    assert [(one.name, one.type.tensor_type.elem_type) for one in result.graph.input] == [("x", onnx.TensorProto.FLOAT)]
    assert [one.name for one in result.graph.output] == ["y"]
    used = {node.domain for node in result.graph.node} | {""}
    assert {one.domain for one in result.opset_import} == used
    if target == "portable":
        assert used == {""}
    assert not result.metadata_props


@pytest.mark.parametrize(("name", "target"), BOTH)
def test_a_layer_that_is_kept_stays_as_it_was(made, tmp_path, name, target):
    write, prepared = made(perceptron(), name, target)
    names = prepared.layer_names
    assert len(names) == 3
    weights = {node.name: node.input[1] for node in prepared.model.graph.node if node.name in names}
    whole = error(perceptron(), write([]), tmp_path)
    for alone in names:
        result = write([one for one in names if one != alone])
        floats = {one.name for one in result.graph.initializer if one.data_type == onnx.TensorProto.FLOAT}
        assert floats & set(weights.values()) == {name for node, name in weights.items() if node != alone}
        assert 0 < error(perceptron(), result, tmp_path) < whole * 1.5


def test_what_is_made_is_the_same_each_time(made):
    write, _ = made(perceptron(), "int8")
    assert write([]).SerializeToString(deterministic=True) == write([]).SerializeToString(deterministic=True)


@pytest.mark.parametrize("method", METHODS)
def test_ranges_by_each_method(made, tmp_path, method, capsys):
    write, _ = made(perceptron(), "int8", options=Options(method=method))
    assert error(perceptron(), write([]), tmp_path) < 0.1
    assert capsys.readouterr() == ("", "")


def test_the_rarest_values_are_left_out_by_percentile(made, tmp_path):
    rows = X.copy()
    rows[0, 0] = 1000.0
    inliers = rows[1:]
    errors = {}
    for method, percentile in (("minmax", 100.0), ("percentile", 97.0)):
        write, _ = made(perceptron(), "int8", options=Options(method=method, percentile=percentile), rows=rows)
        errors[method] = error(perceptron(), write([]), tmp_path, inliers)
        for name in ("repository", "work"):
            (tmp_path / name).rename(tmp_path / f"{name}-{method}")
    assert errors["percentile"] < errors["minmax"] / 5


@pytest.mark.parametrize(("target", "activations", "bias"), [("cpu", "UINT8", True), ("portable", "INT8", False)])
def test_types_are_signed_and_symmetric_where_it_is_to_be_portable(made, target, activations, bias):
    write, _ = made(perceptron(), "int8", target)
    graph = write([]).graph
    constants = {one.name: one for one in graph.initializer}
    points = [constants[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"]
    assert {onnx.TensorProto.DataType.Name(one.data_type) for one in points} == {activations}
    assert (onnx.TensorProto.INT32 in {one.data_type for one in graph.initializer}) == bias
    if target == "portable":
        assert not any(numpy_helper.to_array(one).any() for one in points)


def test_scales_by_channel_or_by_tensor(made):
    write, _ = made(perceptron(), "int8")
    scales = [one for one in write([]).graph.initializer if one.name == "a_scale"]
    assert [list(one.dims) for one in scales] == [[HIDDEN]]


def test_scales_by_tensor(made):
    write, _ = made(perceptron(), "int8", options=Options(per_channel=False))
    assert [list(one.dims) for one in write([]).graph.initializer if one.name == "a_scale"] == [[]]


@pytest.mark.parametrize(("reduce_range", "largest"), [(False, 127), (True, 64)])
def test_weights_of_seven_bits(made, reduce_range, largest):
    write, _ = made(perceptron(), "int8", options=Options(reduce_range=reduce_range))
    (weights,) = [one for one in write([]).graph.initializer if one.name == "a_quantized"]
    assert np.abs(numpy_helper.to_array(weights)).max() == largest


def test_weights_that_two_layers_share(made, tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Tanh", ["h"], ["t"]),
        helper.make_node("MatMul", ["t", "w"], ["y"]),
    ]
    model = model_of(nodes, [tensor("x", "n", WIDTH)], [tensor("y", "n", WIDTH)], [weight("w", WIDTH, WIDTH)])
    write, prepared = made(model, "int4")
    assert kinds(write([]))["MatMulNBits"] == 2
    half = write([prepared.layer_names[1]])
    assert kinds(half) == {"MatMulNBits": 1, "MatMul": 1, "Tanh": 1}
    assert error(model, half, tmp_path) < 0.2


def large(scale):
    """Between two products, values are `scale` times as large."""
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], name="first"),
        helper.make_node("Mul", ["h", "scale"], ["l"], name="up"),
        helper.make_node("Div", ["l", "scale"], ["s"], name="down"),
        helper.make_node("MatMul", ["s", "c"], ["y"], name="last"),
    ]
    weights = [
        weight("a", WIDTH, HIDDEN),
        weight("c", HIDDEN, CLASSES),
        numpy_helper.from_array(np.float32(scale), "scale"),
    ]
    return model_of(nodes, [tensor("x", "n", WIDTH)], [tensor("y", "n", CLASSES)], weights)


def overflowing_in(prepared, rows, tmp_path):
    data = Dataset({"x": rows}, None, len(rows))
    return overflowing(prepared, calibrate(prepared, data, Options(), [], tmp_path / "work", quiet))


def test_what_is_too_large_for_half_precision_is_found(made, tmp_path):
    write, prepared = made(large(1e6), "fp16")
    found = overflowing_in(prepared, X, tmp_path)
    assert set(found) == {"up", "down"}
    assert "FP16 ends at 65504" in found["up"]
    assert error(large(1e6), write(list(found)), tmp_path) < 0.01


def test_what_fits_half_precision_is_left_to_it(made, tmp_path):
    _, prepared = made(large(10.0), "fp16")
    assert overflowing_in(prepared, X, tmp_path) == {}


def test_inputs_and_outputs_too_large_for_half_precision_do_not_pass_through_it(made, tmp_path):
    nodes = [
        helper.make_node("Div", ["x", "scale"], ["s"], name="down"),
        helper.make_node("MatMul", ["s", "a"], ["h"], name="product"),
        helper.make_node("Mul", ["h", "scale"], ["y"], name="up"),
    ]
    weights = [weight("a", WIDTH, HIDDEN), numpy_helper.from_array(np.float32(1e6), "scale")]
    model = model_of(nodes, [tensor("x", "n", WIDTH)], [tensor("y", "n", HIDDEN)], weights)
    rows = X * 1e6
    write, prepared = made(model, "fp16", rows=rows)
    found = overflowing_in(prepared, rows, tmp_path)
    assert set(found) == {"down", "up"}
    result = write(list(found))
    makers = {name: node for node in result.graph.node for name in node.output}
    assert next(node for node in result.graph.node if node.name == "down").input[0] == "x"
    assert makers["y"].op_type == "Identity"
    assert makers[makers["y"].input[0]].name == "up"
    assert error(model, result, tmp_path, rows) < 0.01


def test_pruned_layers_are_sparse_and_kept_ones_are_not(made):
    nodes = [helper.make_node("MatMul", ["x", "a"], ["h"]), helper.make_node("MatMul", ["h", "b"], ["y"])]
    weights = [weight("a", WIDTH, 48), weight("b", 48, 16)]
    model = model_of(nodes, [tensor("x", "n", WIDTH)], [tensor("y", "n", 16)], weights)
    write, prepared = made(model, "fp16", options=Options(prune=True))
    first, second = prepared.layer_names
    for kept, sparse in (([], [True, True]), ([second], [True, False])):
        zeros = [
            np.mean(numpy_helper.to_array(one) == 0) == 0.5
            for one in sorted(write(kept).graph.initializer, key=lambda one: one.name)
        ]
        assert zeros == sparse
    assert first in prepared.layer_names


def test_what_the_tool_says_no_to_is_said_in_a_line(made, monkeypatch):
    from onnxruntime.quantization import QDQQuantizer

    def fail(self):
        raise ValueError("no\nluck")

    write, _ = made(perceptron(), "int8")
    monkeypatch.setattr(QDQQuantizer, "quantize_model", fail)
    with pytest.raises(QuantizeError, match="int8: no luck"):
        write([])


def test_dynamic_ranges_are_not_portable():
    with pytest.raises(QuantizeError, match="cpu alone"):
        choose_recipe("int8-dynamic", "portable")
