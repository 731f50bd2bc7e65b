"""BERT-base with random weights, as PyTorch's exporter writes it (Devlin et al. 2018, arXiv:1810.04805).

The order of the nodes is that in which ONNX Runtime's AttentionFusion, GeluFusion and SkipLayerNormFusion look for
them. Token types are left out: all are 0, which is one constant in the embeddings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import helper

from speed_models.graph import Graph, tensor

if TYPE_CHECKING:
    from onnx import ModelProto

_OPSET = 12
"""The last whose Unsqueeze, Cast and Add ONNX Runtime's AttentionFusion knows (1.32)."""
_FAR = -10_000.0
"""Added to the attention of padding: no weight after the softmax, and within FP16's range."""


@dataclass(frozen=True)
class Bert:
    """layers, heads: of the encoder. width: of a token, a multiple of heads. positions: the longest sequence."""

    layers: int = 12
    heads: int = 12
    width: int = 768
    vocabulary: int = 30_522
    positions: int = 512

    def build(self, dtype: type[np.floating[Any]] = np.float32) -> ModelProto:
        """`input_ids`, `attention_mask` INT64 [N,S] -> `last_hidden_state` [N,S,width], `pooler_output` [N,width].

        Both outputs are FP32; inside it is `dtype`.
        """
        graph = Graph(dtype, seed=12, opset=_OPSET)
        at = self._embeddings(graph)
        mask = _mask(graph)
        for _ in range(self.layers):
            at = self._attention(graph, at, mask)
            at = self._dense(graph, at)
        first = graph.op("Gather", at, graph.constant(0, np.int64), axis=1)
        pooled = graph.op("Tanh", graph.op("Gemm", first, *self._linear(graph, self.width, self.width)))
        floats = helper.np_dtype_to_tensor_dtype(np.dtype(np.float32))
        graph.op("Cast", at, output="last_hidden_state", to=floats)
        graph.op("Cast", pooled, output="pooler_output", to=floats)
        return graph.model(
            "bert",
            [tensor("input_ids", np.int64, "N", "S"), tensor("attention_mask", np.int64, "N", "S")],
            [
                tensor("last_hidden_state", np.float32, "N", "S", self.width),
                tensor("pooler_output", np.float32, "N", self.width),
            ],
        )

    def _embeddings(self, graph: Graph) -> str:
        words = graph.op("Gather", graph.random(self.vocabulary, self.width, deviation=1), "input_ids", axis=0)
        length = graph.op("Gather", graph.op("Shape", "input_ids"), graph.constant([1], np.int64), axis=0)
        positions = graph.random(1, self.positions, self.width, deviation=0.5)
        zero, one = graph.constant([0], np.int64), graph.constant([1], np.int64)
        whole = graph.op("Add", words, graph.op("Slice", positions, zero, length, one))
        # The slice's length is that of the input, which fusions need to know and inference does not.
        return self._norm(graph, graph.known(whole, "N", "S", self.width))

    def _attention(self, graph: Graph, at: str, mask: str) -> str:
        heads = graph.constant([0, 0, self.heads, self.width // self.heads], np.int64)

        def projected(order: list[int]) -> str:
            weights, bias = self._linear(graph, self.width, self.width)
            whole = graph.op("Add", graph.op("MatMul", at, weights), bias)
            return graph.op("Transpose", graph.op("Reshape", whole, heads), perm=order)

        query, key, value = projected([0, 2, 1, 3]), projected([0, 2, 3, 1]), projected([0, 2, 1, 3])
        scores = graph.op("Div", graph.op("MatMul", query, key), graph.constant((self.width / self.heads) ** 0.5))
        weights = graph.op("Softmax", graph.op("Add", scores, mask), axis=3)
        mixed = graph.op("Transpose", graph.op("MatMul", weights, value), perm=[0, 2, 1, 3])
        joined = graph.op("Reshape", mixed, graph.constant([0, 0, self.width], np.int64))
        matrix, bias = self._linear(graph, self.width, self.width)
        out = graph.op("Add", graph.op("MatMul", joined, matrix), bias)
        return self._norm(graph, graph.op("Add", out, at))

    def _dense(self, graph: Graph, at: str) -> str:
        """Two matrices with GELU between them, by the error function."""
        weights, bias = self._linear(graph, self.width, 4 * self.width)
        inside = graph.op("Add", graph.op("MatMul", at, weights), bias)
        error = graph.op("Erf", graph.op("Div", inside, graph.constant(2**0.5)))
        gelu = graph.op("Mul", inside, graph.op("Add", error, graph.constant(1)))
        gelu = graph.op("Mul", gelu, graph.constant(0.5))
        weights, bias = self._linear(graph, 4 * self.width, self.width)
        out = graph.op("Add", graph.op("MatMul", gelu, weights), bias)
        return self._norm(graph, graph.op("Add", out, at))

    def _linear(self, graph: Graph, rows: int, columns: int) -> tuple[str, str]:
        """Weights (Xavier) and bias."""
        weights = graph.random(rows, columns, deviation=(2 / (rows + columns)) ** 0.5)
        return weights, graph.random(columns, deviation=0.02)

    def _norm(self, graph: Graph, at: str) -> str:
        """Layer normalization in its parts: the operator came with opset 17."""
        centred = graph.op("Sub", at, graph.op("ReduceMean", at, axes=[-1]))
        variance = graph.op("ReduceMean", graph.op("Pow", centred, graph.constant(2)), axes=[-1])
        # BERT's own epsilon, 1e-12, is 0 in FP16.
        deviation = graph.op("Sqrt", graph.op("Add", variance, graph.constant(1e-5)))
        scaled = graph.op("Mul", graph.op("Div", centred, deviation), graph.constant(np.ones(self.width)))
        return graph.op("Add", scaled, graph.constant(np.zeros(self.width)))


def _mask(graph: Graph) -> str:
    """[N,S] of 1 and 0 -> [N,1,1,S] of 0 and `_FAR`."""
    wide = graph.op("Unsqueeze", "attention_mask", axes=[1])
    wide = graph.op("Unsqueeze", wide, axes=[2])
    wide = graph.op("Cast", wide, to=helper.np_dtype_to_tensor_dtype(graph.dtype))
    return graph.op("Mul", graph.op("Sub", graph.constant(1), wide), graph.constant(_FAR))
