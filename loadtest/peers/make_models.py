"""Writes the small ONNX models that servers are compared on, and a model repository of them for each server.

    tab   FP32 [N,32]          32-64-64-2 perceptron: next to no compute, so the server itself is measured
    mid   FP32 [N,256]         256-1024-1024-1024-10 perceptron: batching pays
    img   FP32 [N,3,224,224]   global average pool and a 3x10 product: 602 kB a request, so copies are measured
    wide  FP32 [N,1024]        1024-4096-4096-4096-10 perceptron: a row takes milliseconds alone, a fraction in a batch

Weights are random with a fixed seed. DIR/repo is Triton's: its Python backend over ONNX Runtime with one thread,
concatenating what its dynamic batcher hands over (its own ONNX backend is in no wheel). DIR/headrace holds the same
files as NAME/1/model.onnx and no configuration: every setting is Headrace's default. `wide` is for `make overload` and
lies apart: DIR/overload/headrace, DIR/overload/triton, and DIR/overload/triton-timed, where what has waited for as long
as its request's parameter `timeout` says is rejected.

Usage: make_models.py DIR
"""

from __future__ import annotations

import os
import sys
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Shape(NamedTuple):
    """A model's input row, its number of outputs, and the rows that Triton may put in a batch."""

    row: list[int]
    classes: int
    max_batch: int


SHAPES = {
    "tab": Shape([32], 2, 64),
    "mid": Shape([256], 10, 64),
    "img": Shape([3, 224, 224], 10, 16),
    "wide": Shape([1024], 10, 64),
}
APART = "wide"

CONFIG = """name: "{name}"
backend: "python"
max_batch_size: {shape.max_batch}
input [ {{ name: "INPUT" data_type: TYPE_FP32 dims: {shape.row} }} ]
output [ {{ name: "OUTPUT" data_type: TYPE_FP32 dims: [ {shape.classes} ] }} ]
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
dynamic_batching {{ max_queue_delay_microseconds: 500{policy} }}
"""
TIMED = """
  default_queue_policy { timeout_action: REJECT default_timeout_microseconds: 1000000 allow_timeout_override: true }
"""
"""What of a batching is to give up after a time."""

BACKEND = """import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb


class TritonPythonModel:
    def initialize(self, args):
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession({path!r}, options, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        rows = [pb.get_input_tensor_by_name(r, "INPUT").as_numpy() for r in requests]
        y = self.session.run(None, {{"INPUT": np.concatenate(rows)}})[0]
        ends = np.cumsum([len(r) for r in rows])
        return [pb.InferenceResponse([pb.Tensor("OUTPUT", y[e - len(r):e])]) for r, e in zip(rows, ends)]
"""


def perceptron(name: str, widths: list[int]) -> onnx.ModelProto:
    """Fully connected layers of the given widths with ReLU between them."""
    rng, nodes, weights, value = np.random.default_rng(0), [], [], "INPUT"
    for i, (fan_in, fan_out) in enumerate(pairwise(widths)):
        w = (rng.standard_normal((fan_in, fan_out)) / np.sqrt(fan_in)).astype(np.float32)
        weights.append(numpy_helper.from_array(w, f"w{i}"))
        weights.append(numpy_helper.from_array(np.zeros(fan_out, np.float32), f"b{i}"))
        last = i == len(widths) - 2
        nodes.append(helper.make_node("Gemm", [value, f"w{i}", f"b{i}"], ["OUTPUT" if last else f"g{i}"]))
        if not last:
            nodes.append(helper.make_node("Relu", [f"g{i}"], [f"r{i}"]))
            value = f"r{i}"
    return model(name, nodes, weights)


def pool(name: str) -> onnx.ModelProto:
    """The mean of each channel, then a 3x10 product."""
    w = np.random.default_rng(0).standard_normal((3, 10)).astype(np.float32)
    nodes = [
        helper.make_node("GlobalAveragePool", ["INPUT"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "W"], ["OUTPUT"]),
    ]
    return model(name, nodes, [numpy_helper.from_array(w, "W")])


def model(name: str, nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto]) -> onnx.ModelProto:
    """A checked model INPUT [N, row] -> OUTPUT [N, classes] of opset 17."""
    shape = SHAPES[name]
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("INPUT", TensorProto.FLOAT, ["N", *shape.row])],
        [helper.make_tensor_value_info("OUTPUT", TensorProto.FLOAT, ["N", shape.classes])],
        weights,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    made.ir_version = 9  # the newest that the oldest runtime in the comparison reads
    onnx.checker.check_model(made)
    return made


def write(path: Path, content: bytes) -> None:
    """Writes a file unless it already says so; whole or not at all, for a server may be reading it."""
    if path.exists() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_bytes(content)
    os.replace(part, path)


def write_model(name: str, content: bytes, peers: Path, headrace: Path, triton: dict[Path, str]) -> None:
    """One model for both servers. triton: its repositories, and what their batching says beside the delay."""
    path = peers / "models" / f"{name}.onnx"
    write(path, content)
    write(headrace / name / "1" / "model.onnx", content)
    for repository, policy in triton.items():
        write(repository / name / "config.pbtxt", CONFIG.format(name=name, shape=SHAPES[name], policy=policy).encode())
        write(repository / name / "1" / "model.py", BACKEND.format(path=str(path)).encode())


def main(peers: Path) -> None:
    """Writes models/, repo/, headrace/ and overload/ under `peers`."""
    made = {
        "tab": perceptron("tab", [32, 64, 64, 2]),
        "mid": perceptron("mid", [256, 1024, 1024, 1024, 10]),
        "img": pool("img"),
        "wide": perceptron("wide", [1024, 4096, 4096, 4096, 10]),
    }
    apart = peers / "overload"
    for name in SHAPES:
        content = made[name].SerializeToString()
        if name == APART:
            write_model(name, content, peers, apart / "headrace", {apart / "triton": "", apart / "triton-timed": TIMED})
        else:
            write_model(name, content, peers, peers / "headrace", {peers / "repo": ""})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
