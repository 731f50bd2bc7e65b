"""Stateful models for end-to-end tests."""

import numpy as np
from e2e.onnx_models import info, model, scale, write
from onnx import helper

STATE = """
[[sequence.state]]
input = "before"
output = "after"
"""
TOLD = """
max_batch = 2
[sequence]
strategy = "direct"
idle_timeout_ms = 60_000
[sequence.controls]
start = {input = "start", false_true = [0, 1]}
end = {input = "end", false_true = [-1.0, 1.0]}
ready.input = "ready"
corrid.input = "id"
"""
GROWN = """
[sequence]
max_state_bytes = 64
[[sequence.state]]
input = "before"
output = "after"
initial = "initial_state/begin"
initial_dims = [2]
"""
ENSEMBLE = """
[[ensemble.steps]]
model = "doubled"
inputs = {x = "x"}
outputs = {y = "double"}
[[ensemble.steps]]
model = "sum"
inputs = {x = "double"}
outputs = {total = "total"}
"""


def accumulate(*shape):
    """x, before FP32 -> total, after = before + x."""
    nodes = [
        helper.make_node("Add", ["before", "x"], ["total"]),
        helper.make_node("Identity", ["total"], ["after"]),
    ]
    return model(
        nodes,
        [info("before", "FP32", *shape), info("x", "FP32", *shape)],
        [info("after", "FP32", *shape), info("total", "FP32", *shape)],
    )


def told():
    """x FP32 [N,1], start INT32, end FP32, ready BOOL, id UINT64 [N,1] -> said FP32 [N,3] of those flags; same_id."""
    nodes = [
        helper.make_node("Cast", ["start"], ["start_as_float"], to=1),
        helper.make_node("Cast", ["ready"], ["ready_as_float"], to=1),
        helper.make_node("Mul", ["x", "zero"], ["nothing"]),
        helper.make_node("Add", ["start_as_float", "nothing"], ["first"]),
        helper.make_node("Concat", ["first", "end", "ready_as_float"], ["said"], axis=1),
        helper.make_node("Identity", ["id"], ["same_id"]),
    ]
    inputs = [("x", "FP32"), ("start", "INT32"), ("end", "FP32"), ("ready", "BOOL"), ("id", "UINT64")]
    return model(
        nodes,
        [info(name, datatype, "N", 1) for name, datatype in inputs],
        [info("said", "FP32", "N", 3), info("same_id", "UINT64", "N", 1)],
        [("zero", np.array(0, np.float32))],
    )


def grown():
    """x FP32 [1], before FP32 [M] -> after FP32 [M+1], both in a row; last FP32 [1] and first FP32 [1] of it."""
    nodes = [
        helper.make_node("Concat", ["before", "x"], ["after"], axis=0),
        helper.make_node("Gather", ["after", "zero"], ["first"], axis=0),
        helper.make_node("ReduceSum", ["after", "zero"], ["all"], keepdims=1),
    ]
    return model(
        nodes,
        [info("x", "FP32", 1), info("before", "FP32", "M")],
        [info("after", "FP32", "K"), info("first", "FP32", 1), info("all", "FP32", 1)],
        [("zero", np.array([0], np.int64))],
    )


def write_sequences(root):
    write(root, "sum", accumulate("N", 1), "max_batch = 8\n[sequence]\nidle_timeout_ms = 60_000\n" + STATE)
    write(root, "impatient", accumulate("N", 1), "[sequence]\nidle_timeout_ms = 200\n" + STATE)
    write(root, "narrow", accumulate("N", 1), 'max_batch = 1\n[sequence]\nstrategy = "direct"\n' + STATE)
    write(root, "told", told(), TOLD)
    write(root, "grown", grown(), GROWN)
    (root / "grown" / "initial_state").mkdir()
    (root / "grown" / "initial_state" / "begin").write_bytes(np.array([10, 20], np.float32).tobytes())
    write(root, "doubled", scale(2, "N", 1))
    (root / "doubled_sum" / "1").mkdir(parents=True)
    (root / "doubled_sum" / "model.toml").write_text(ENSEMBLE)
