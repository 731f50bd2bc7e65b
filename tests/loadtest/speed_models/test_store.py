"""The models that speed is measured with, at a size that a processor runs at once."""

import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from speed_models import quantize, store
from speed_models.resnet import normalized
from speed_models.store import TINY

LOADTEST = Path(__file__).parents[3] / "loadtest"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def run(directory):
    """The first output of a model on the processor, for the rows that everything is measured with."""

    def first(name, rows=6):
        session = onnxruntime.InferenceSession(store.file(name, directory, TINY), providers=["CPUExecutionProvider"])
        return session.run(None, TINY.feeds(name, rows))[0]

    return first


def error(got, want):
    """As a share of what the rows differ in: 1.4 where each is another's."""
    return np.linalg.norm(got - want) / np.linalg.norm(want - want.mean(axis=0))


@pytest.mark.parametrize(
    ("name", "reference", "bound"),
    [
        ("resnet50-fp16", "resnet50-fp32", 2e-3),
        ("resnet50-int8", "resnet50-fp32", 0.2),
        ("resnet50-fp32-u8", "resnet50-fp32", 1e-5),
        ("resnet50-fp16-u8", "resnet50-fp32", 2e-3),
        ("resnet50-int8-u8", "resnet50-int8", 1e-2),
        ("bert-fp16", "bert-fp32", 2e-3),
    ],
)
def test_precisions_agree(run, name, reference, bound):
    got, want = run(name), run(reference)
    assert got.dtype == want.dtype == np.float32
    assert got.shape == want.shape
    assert error(got, want) < bound


@pytest.mark.parametrize("name", ["resnet50-fp32", "bert-fp32"])
def test_activations_stay_sane_and_rows_differ(run, name):
    rows = run(name)
    assert 0.05 < rows.std() < 20
    assert np.linalg.norm(rows[0] - rows[1]) / np.linalg.norm(rows[0]) > 0.2


def test_the_real_sizes_are_those_of_the_papers():
    resnet, bert = (store.build(name, store.Sizes()) for name in ("resnet50-fp16", "bert-fp16"))
    counts = [sum(np.prod(w.dims, dtype=np.int64) for w in model.graph.initializer) for model in (resnet, bert)]
    # 25,557,032 parameters of which 53,120 are batch normalizations' and became 26,560 biases
    assert counts[0] == 25_557_032 - 53_120 + 26_560
    # 109,482,240 without the two token types, and some constants
    assert counts[1] == pytest.approx(109_482_240 - 2 * 768, abs=200)


def test_onnx_runtime_fuses_the_encoder(directory, tmp_path):
    """In FP32, that is: its CPU provider has no FP16 operators, and so no fusions of them."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(store.file("bert-fp32", directory, TINY), options, providers=["CPUExecutionProvider"])
    kinds = Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)
    layers = TINY.bert.layers
    assert (kinds["Attention"], kinds["BiasGelu"], kinds["SkipLayerNormalization"]) == (layers, layers, 2 * layers)


def test_both_precisions_are_one_graph():
    single, half = TINY.bert.build(np.float32), TINY.bert.build(np.float16)
    assert [(n.op_type, n.input, n.output) for n in single.graph.node] == [
        (n.op_type, n.input, n.output) for n in half.graph.node
    ]


def test_attention_as_one_operator_computes_the_same():
    feeds = TINY.feeds("bert-fp32", 4)
    plain, fused = (
        onnxruntime.InferenceSession(bert.build().SerializeToString(), providers=["CPUExecutionProvider"])
        for bert in (TINY.bert, replace(TINY.bert, fused=True))
    )
    for want, got in zip(plain.run(None, feeds), fused.run(None, feeds), strict=True):
        assert np.abs(got - want).max() < 1e-5


def test_attention_in_fp16_is_one_operator(directory):
    """ONNX Runtime fails to fuse it where FP16 has kernels."""
    nodes = onnx.load(store.file("bert-fp16", directory, TINY)).graph.node
    assert Counter(node.domain for node in nodes)["com.microsoft"] == TINY.bert.layers
    assert "Softmax" not in {node.op_type for node in nodes}


def test_padding_changes_nothing(directory):
    session = onnxruntime.InferenceSession(store.file("bert-fp32", directory, TINY), providers=["CPUExecutionProvider"])
    whole = TINY.feeds("bert-fp32", 2)
    half = {name: array[1:, : TINY.tokens // 2] for name, array in whole.items()}
    (padded,), (alone,) = session.run(["pooler_output"], whole), session.run(["pooler_output"], half)
    assert np.allclose(padded[1], alone[0], atol=1e-5)
    assert not np.allclose(padded[0], alone[0], atol=1e-2)


def test_int8_is_the_form_that_tensorrt_parses(directory):
    graph = onnx.load(store.file("resnet50-int8", directory, TINY)).graph
    weights = {weight.name: onnx.numpy_helper.to_array(weight) for weight in graph.initializer}
    produced = {output: node for node in graph.node for output in node.output}
    pairs = [node for node in graph.node if node.op_type in {"QuantizeLinear", "DequantizeLinear"}]
    assert not any(weights[node.input[2]].any() for node in pairs)  # symmetric
    assert {weights[node.input[2]].dtype for node in pairs} == {np.dtype(np.int8)}
    for convolution in (node for node in graph.node if node.op_type == "Conv"):
        data, kernel = (produced[name] for name in convolution.input[:2])
        assert data.op_type == kernel.op_type == "DequantizeLinear"
        assert len(weights[kernel.input[1]]) == len(weights[kernel.input[0]])  # a scale for each channel
        assert weights[convolution.input[2]].dtype == np.float32


def test_models_are_the_same_each_time():
    for name in ("resnet50-int8-u8", "bert-fp16"):
        assert store.build(name, TINY).SerializeToString() == store.build(name, TINY).SerializeToString()


def test_what_is_there_is_not_built_again(tmp_path, monkeypatch):
    path = store.file("resnet50-fp32", tmp_path, TINY)
    monkeypatch.setattr(store, "build", None)
    assert store.file("resnet50-fp32", tmp_path, TINY) == path
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_build_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(model, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(onnx, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.file("resnet50-fp32", tmp_path, TINY)
    assert not list(tmp_path.iterdir())


def test_normalization_is_by_channel():
    (pixels,) = normalized(np.full((1, 2, 2, 3), [124, 116, 104], np.uint8))
    assert pixels.shape == (3, 2, 2)
    assert np.allclose(pixels[:, 0, 0], [0.00557, -0.0049, 0.00819], atol=1e-5)


def test_without_a_quantizer_it_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime.quantization", None)
    with pytest.raises(quantize.NoQuantizer, match=r"onnxruntime\.quantization cannot be imported"):
        store.build("resnet50-int8", TINY)


def test_needs_numpy_and_onnx_alone(tmp_path):
    """In an interpreter that refuses to import ONNX Runtime the floating-point models are built, INT8 left out."""
    code = "import runpy, sys; sys.modules['onnxruntime'] = None; runpy.run_module('speed_models', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code, "--tiny", "--out", str(tmp_path)],
        env={"PYTHONPATH": str(LOADTEST)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "resnet50-int8 left out: onnxruntime.quantization cannot be imported" in done.stderr
    assert {path.stem for path in tmp_path.iterdir()} == {name for name in store.NAMES if "int8" not in name}


def test_unknown_names_are_refused():
    with pytest.raises(KeyError):
        store.build("resnet51-fp32", TINY)
