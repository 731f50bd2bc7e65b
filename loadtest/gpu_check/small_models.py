"""Models of one or a few operators, for questions about a runtime rather than about speed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from speed_models.graph import Graph, tensor

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]


def perceptron(width: int = 1024, layers: int = 6) -> bytes:
    """Gemm and ReLU by turns: x FP32 [N,width] -> y FP32 [N,width]."""
    graph, at = Graph(np.float32, seed=1), "x"
    for layer in range(layers):
        weights, bias = graph.random(width, width, deviation=(2 / width) ** 0.5), graph.random(width, deviation=0.1)
        at = graph.op("Gemm", at, weights, bias)
        at = graph.op("Relu", at, output="y" if layer == layers - 1 else None)
    model = graph.model("perceptron", [tensor("x", np.float32, "N", width)], [tensor("y", np.float32, "N", width)])
    serialized: bytes = model.SerializeToString()
    return serialized


def convolution() -> bytes:
    """One Conv: x FP32 [N,3,64,64] -> y FP32 [N,32,64,64]."""
    graph = Graph(np.float32, seed=2)
    graph.op("Conv", "x", graph.random(32, 3, 3, 3, deviation=0.2), output="y", pads=[1, 1, 1, 1], kernel_shape=[3, 3])
    model = graph.model(
        "convolution", [tensor("x", np.float32, "N", 3, 64, 64)], [tensor("y", np.float32, "N", 32, 64, 64)]
    )
    serialized: bytes = model.SerializeToString()
    return serialized


def floats(*shape: int, seed: int = 0) -> Array:
    """Normally distributed FP32."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)
