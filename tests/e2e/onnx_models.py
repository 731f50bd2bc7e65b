"""A model repository for end-to-end tests: small ONNX models, each with one property that a test needs."""

from pathlib import Path

import numpy as np
from e2e.gated import write_gated
from onnx import TensorProto, checker, helper, numpy_helper

SHIPPED = Path(__file__).parents[2] / "models"
DATATYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BF16": TensorProto.BFLOAT16,
    "BYTES": TensorProto.STRING,
}
WIDTH = 1 << 18
"""Values in a row of the output of `wide`: 1 MB."""


def info(name, datatype, *shape):
    """A graph's input or output; "N" is the batch dimension, another string a dimension of any size."""
    return helper.make_tensor_value_info(name, DATATYPES[datatype], shape)


def model(nodes, inputs, outputs, constants=()):
    """The bytes of a checked ONNX file; constants: arrays by name."""
    weights = [numpy_helper.from_array(value, name) for name, value in constants]
    graph = helper.make_graph(nodes, "e2e", inputs, outputs, weights)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    made.ir_version = 9  # the newest that all supported runtimes read
    checker.check_model(made)
    return made.SerializeToString()


def identity(datatype, *shape):
    """x -> y, the same values."""
    return model(
        [helper.make_node("Identity", ["x"], ["y"])], [info("x", datatype, *shape)], [info("y", datatype, *shape)]
    )


def scale(factor, *shape):
    """x -> y = factor x, FP32."""
    nodes = [helper.make_node("Mul", ["x", "factor"], ["y"])]
    constants = [("factor", np.array(factor, np.float32))]
    return model(nodes, [info("x", "FP32", *shape)], [info("y", "FP32", *shape)], constants)


def pair():
    """a FP32 [N,2], b INT32 [N,3] -> sum FP32 [N,1] of a, twice INT32 [N,3] of b."""
    nodes = [
        helper.make_node("ReduceSum", ["a", "axis"], ["sum"], keepdims=1),
        helper.make_node("Add", ["b", "b"], ["twice"]),
    ]
    inputs = [info("a", "FP32", "N", 2), info("b", "INT32", "N", 3)]
    outputs = [info("sum", "FP32", "N", 1), info("twice", "INT32", "N", 3)]
    return model(nodes, inputs, outputs, [("axis", np.array([1], np.int64))])


def pick():
    """index INT64 [N,1] -> value FP32 [N,1] = 10 index; an index outside 0 to 9 makes the runtime fail."""
    nodes = [helper.make_node("Gather", ["table", "index"], ["value"], axis=0)]
    table = np.arange(10, dtype=np.float32) * 10
    return model(nodes, [info("index", "INT64", "N", 1)], [info("value", "FP32", "N", 1)], [("table", table)])


def wide():
    """x FP32 [N,1] -> y FP32 [N,WIDTH], each value over and over: a small request with a large reply."""
    nodes = [helper.make_node("Expand", ["x", "shape"], ["y"])]
    constants = [("shape", np.array([1, WIDTH], np.int64))]
    return model(nodes, [info("x", "FP32", "N", 1)], [info("y", "FP32", "N", WIDTH)], constants)


def slow():
    """x FP32 [N,1] -> y = x, after some work: products of 192x192 matrices, which take 15 ms and more."""
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["before", "matrix"], ["after"]),
            helper.make_node("Identity", ["go"], ["go_on"]),
        ],
        "unit",
        [info("trip", "INT64"), info("go", "BOOL"), info("before", "FP32", 192, 192)],
        [info("go_on", "BOOL"), info("after", "FP32", 192, 192)],
    )
    nodes = [
        helper.make_node("Loop", ["units", "", "start"], ["end"], body=body),
        helper.make_node("ReduceSum", ["end"], ["zero"], keepdims=0),
        helper.make_node("Add", ["x", "zero"], ["y"]),
    ]
    constants = [
        ("units", np.array(150, np.int64)),
        ("matrix", np.eye(192, dtype=np.float32)),
        ("start", np.zeros((192, 192), np.float32)),
    ]
    return model(nodes, [info("x", "FP32", "N", 1)], [info("y", "FP32", "N", 1)], constants)


def write(root, name, content, toml="", version=1):
    """Puts a version of a model into the repository `root`."""
    directory = root / name / str(version)
    directory.mkdir(parents=True)
    (directory / "model.onnx").write_bytes(content)
    if toml:
        (root / name / "model.toml").write_text(toml)


ENSEMBLE = """
[[ensemble.steps]]
model = "pair"
inputs = {a = "numbers", b = "others"}
outputs = {sum = "sum", twice = "twice"}

[[ensemble.steps]]
model = "free"
inputs = {x = "sum"}
outputs = {y = "triple"}

[[ensemble.steps]]
model = "echo_fp32"
inputs = {x = "aside"}
outputs = {y = "aside_again"}
"""


def write_ensemble(root):
    """numbers FP32 [N,2], others INT32 [N,3], aside FP32 [N,4] -> twice, triple = 3 times the sum, aside_again."""
    (root / "ensemble" / "1").mkdir(parents=True)
    (root / "ensemble" / "model.toml").write_text(ENSEMBLE)


def write_repository(root):
    """One model of each kind."""
    for shipped in ("digits", "filetype"):
        if (SHIPPED / shipped / "1" / "model.onnx").exists():
            (root / shipped).symlink_to(SHIPPED / shipped)
    for datatype in DATATYPES:
        write(root, f"echo_{datatype.lower()}", identity(datatype, "N", 4))
    write(root, "fixed", scale(2, 2, 3))
    write(root, "fixed_text", identity("BYTES", 2))
    write(root, "free", scale(3, "N", "D"))
    write(root, "grid", scale(-1, "H", "W"), "max_batch = 0")
    write(root, "pair", pair())
    write(root, "wide", wide(), "max_batch = 2")
    write(root, "whole", scale(2, "N", 4), "max_batch = 8\nsplit_oversize = false")
    write(root, "versions", scale(1, "N", 1), 'versions = "all"')
    write(root, "versions", scale(2, "N", 1), version=2)
    write(root, "checked", scale(2, "N", 2), "[inputs.x]\nfinite = true\nmin = -1.0\nmax = 1.0")
    write(root, "levels", scale(2, "N", 1), "priority_levels = 3")
    write_ensemble(root)
    write(root, "broken", b"this is no ONNX file")
    (root / "misconfigured").mkdir()
    (root / "misconfigured" / "model.toml").write_text("max_bach = 8")


def write_slow_repository(root):
    """Models that are busy for as long as a test says; one for each test that fills a queue in a way of its own."""
    write(root, "quick", scale(2, "N", 1))
    write(root, "slow", slow(), "max_batch = 1")
    write_gated(root, "batched", '[batching]\npolicy = "delay"\ndelay_us = 1000', max_batch=4)
    write_gated(root, "cancel")
    write_gated(root, "deadline")
    write_gated(root, "late")
    write_gated(root, "timeout")
    write_gated(root, "objective", "slo_ms = 200.0")
    write_gated(root, "queue", "[queue]\nmax_requests = 1")
    write_gated(root, "urgent", "priority_levels = 2")
    write(root, "pick", pick(), 'max_batch = 8\n[batching]\npolicy = "delay"\ndelay_us = 5_000_000')
