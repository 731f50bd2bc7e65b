"""BERT as PyTorch's exporter writes it (Devlin et al. 2018, arXiv:1810.04805), with random weights or given ones.

The order of the nodes is that in which ONNX Runtime's AttentionFusion, GeluFusion and SkipLayerNormFusion look for
them. In FP16 AttentionFusion fails (ONNX Runtime 1.31): it reads the mask's constant as FP32. So attention can also be
written as the operator that it would have become, which is what ONNX Runtime's own tool for transformers does. Token
types are left out: all are 0, which is one constant in the embeddings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from onnx import TensorProto, helper

from speed_models.graph import MICROSOFT, Graph, tensor

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

OPSET = 12
"""The last whose Unsqueeze, Cast and Add ONNX Runtime's AttentionFusion knows (1.32)."""
_FAR = -10_000.0
"""Added to the attention of padding: no weight after the softmax, and within FP16's range."""


class Weights(Protocol):
    """Where weights come from: adds them to the graph, returns their names. `name`: in Hugging Face's BertModel."""

    def words(self, vocabulary: int, width: int) -> str:
        """[vocabulary,width], the embedding of each token."""
        ...

    def positions(self, positions: int, width: int) -> str:
        """[1,positions,width], the embedding of each place, with that of token type 0 added."""
        ...

    def linear(self, name: str, rows: int, columns: int) -> tuple[str, str]:
        """Weights [rows,columns], which are multiplied from the right, and bias [columns]."""
        ...

    def norm(self, name: str, width: int) -> tuple[str, str]:
        """Scale and shift of a layer normalization, each [width]."""
        ...


@dataclass(frozen=True)
class Random:
    """Random weights with the deviations of a network that works; `linear`'s by Xavier."""

    graph: Graph

    def words(self, vocabulary: int, width: int) -> str:
        return self.graph.random(vocabulary, width, deviation=1)

    def positions(self, positions: int, width: int) -> str:
        return self.graph.random(1, positions, width, deviation=0.5)

    def linear(self, name: str, rows: int, columns: int) -> tuple[str, str]:
        weights = self.graph.random(rows, columns, deviation=(2 / (rows + columns)) ** 0.5)
        return weights, self.graph.random(columns, deviation=0.02)

    def norm(self, name: str, width: int) -> tuple[str, str]:
        return self.graph.constant(np.ones(width)), self.graph.constant(np.zeros(width))


@dataclass(frozen=True)
class Bert:
    """layers, heads: of the encoder. width: of a token, a multiple of heads. positions: the longest sequence.

    epsilon: of layer normalization. BERT's own, 1e-12, is 0 in FP16. fused: attention is ONNX Runtime's operator, which
    nothing else reads.
    """

    layers: int = 12
    heads: int = 12
    width: int = 768
    vocabulary: int = 30_522
    positions: int = 512
    epsilon: float = 1e-5
    fused: bool = False

    def build(self, dtype: type[np.floating[Any]] = np.float32) -> ModelProto:
        """`input_ids`, `attention_mask` INT64 [N,S] -> `last_hidden_state` [N,S,width], `pooler_output` [N,width].

        Both outputs are FP32; inside it is `dtype`, with random weights.
        """
        graph = Graph(dtype, seed=12, opset=OPSET)
        weights = Random(graph)
        at = self.encode(graph, weights)
        first = graph.op("Gather", at, graph.constant(0, np.int64), axis=1)
        matrix, bias = weights.linear("pooler.dense", self.width, self.width)
        pooled = graph.op("Tanh", graph.op("Gemm", first, matrix, bias))
        floats = helper.np_dtype_to_tensor_dtype(np.dtype(np.float32))
        graph.op("Cast", at, output="last_hidden_state", to=floats)
        graph.op("Cast", pooled, output="pooler_output", to=floats)
        return graph.model(
            "bert",
            self.inputs(),
            [
                tensor("last_hidden_state", np.float32, "N", "S", self.width),
                tensor("pooler_output", np.float32, "N", self.width),
            ],
        )

    @staticmethod
    def inputs() -> list[ValueInfoProto]:
        """What `encode` reads."""
        return [tensor("input_ids", np.int64, "N", "S"), tensor("attention_mask", np.int64, "N", "S")]

    def encode(self, graph: Graph, weights: Weights) -> str:
        """Adds the encoder, which reads `input_ids` and `attention_mask`, to a graph of opset `OPSET`.

        Returns the name of the last hidden state, [N,S,width] of the graph's type.
        """
        at = self._embeddings(graph, weights)
        mask = _whole_numbers(graph) if self.fused else _mask(graph)
        for number in range(self.layers):
            at = self._attention(graph, weights, f"encoder.layer.{number}.attention", at, mask)
            at = self._dense(graph, weights, f"encoder.layer.{number}", at)
        return at

    def _embeddings(self, graph: Graph, weights: Weights) -> str:
        words = graph.op("Gather", weights.words(self.vocabulary, self.width), "input_ids", axis=0)
        length = graph.op("Gather", graph.op("Shape", "input_ids"), graph.constant([1], np.int64), axis=0)
        positions = weights.positions(self.positions, self.width)
        zero, one = graph.constant([0], np.int64), graph.constant([1], np.int64)
        whole = graph.op("Add", words, graph.op("Slice", positions, zero, length, one))
        # The slice's length is that of the input, which fusions need to know and inference does not.
        return self._norm(graph, weights, "embeddings.LayerNorm", graph.known(whole, "N", "S", self.width))

    def _attention(self, graph: Graph, weights: Weights, name: str, at: str, mask: str) -> str:
        parts = [weights.linear(f"{name}.self.{part}", self.width, self.width) for part in ("query", "key", "value")]
        mixed = (self._mixed_at_once if self.fused else self._mixed)(graph, at, mask, parts)
        matrix, bias = weights.linear(f"{name}.output.dense", self.width, self.width)
        out = graph.op("Add", graph.op("MatMul", mixed, matrix), bias)
        return self._norm(graph, weights, f"{name}.output.LayerNorm", graph.op("Add", out, at))

    def _mixed(self, graph: Graph, at: str, mask: str, parts: list[tuple[str, str]]) -> str:
        """Values by their shares of attention, [N,S,width]. parts: weights and bias of queries, keys and values."""
        heads = graph.constant([0, 0, self.heads, self.width // self.heads], np.int64)

        def projected(part: tuple[str, str], order: list[int]) -> str:
            matrix, bias = part
            whole = graph.op("Add", graph.op("MatMul", at, matrix), bias)
            return graph.op("Transpose", graph.op("Reshape", whole, heads), perm=order)

        query, key = projected(parts[0], [0, 2, 1, 3]), projected(parts[1], [0, 2, 3, 1])
        value = projected(parts[2], [0, 2, 1, 3])
        scores = graph.op("Div", graph.op("MatMul", query, key), graph.constant((self.width / self.heads) ** 0.5))
        shares = graph.op("Softmax", graph.op("Add", scores, mask), axis=3)
        mixed = graph.op("Transpose", graph.op("MatMul", shares, value), perm=[0, 2, 1, 3])
        return graph.op("Reshape", mixed, graph.constant([0, 0, self.width], np.int64))

    def _mixed_at_once(self, graph: Graph, at: str, mask: str, parts: list[tuple[str, str]]) -> str:
        """The same by one operator. Its weights are joined when the model is loaded: constants are folded."""
        matrices, biases = zip(*parts, strict=True)
        matrix, bias = graph.op("Concat", *matrices, axis=1), graph.op("Concat", *biases, axis=0)
        return graph.op("Attention", at, matrix, bias, mask, num_heads=self.heads, domain=MICROSOFT)

    def _dense(self, graph: Graph, weights: Weights, name: str, at: str) -> str:
        """Two matrices with GELU between them, by the error function."""
        matrix, bias = weights.linear(f"{name}.intermediate.dense", self.width, 4 * self.width)
        inside = graph.op("Add", graph.op("MatMul", at, matrix), bias)
        error = graph.op("Erf", graph.op("Div", inside, graph.constant(2**0.5)))
        gelu = graph.op("Mul", inside, graph.op("Add", error, graph.constant(1)))
        gelu = graph.op("Mul", gelu, graph.constant(0.5))
        matrix, bias = weights.linear(f"{name}.output.dense", 4 * self.width, self.width)
        out = graph.op("Add", graph.op("MatMul", gelu, matrix), bias)
        return self._norm(graph, weights, f"{name}.output.LayerNorm", graph.op("Add", out, at))

    def _norm(self, graph: Graph, weights: Weights, name: str, at: str) -> str:
        """Layer normalization in its parts: the operator came with opset 17."""
        centred = graph.op("Sub", at, graph.op("ReduceMean", at, axes=[-1]))
        variance = graph.op("ReduceMean", graph.op("Pow", centred, graph.constant(2)), axes=[-1])
        deviation = graph.op("Sqrt", graph.op("Add", variance, graph.constant(self.epsilon)))
        scale, shift = weights.norm(name, self.width)
        scaled = graph.op("Mul", graph.op("Div", centred, deviation), scale)
        return graph.op("Add", scaled, shift)


def _whole_numbers(graph: Graph) -> str:
    """[N,S] of 1 and 0, INT32."""
    return graph.op("Cast", "attention_mask", to=TensorProto.INT32)


def _mask(graph: Graph) -> str:
    """[N,S] of 1 and 0 -> [N,1,1,S] of 0 and `_FAR`."""
    wide = graph.op("Unsqueeze", "attention_mask", axes=[1])
    wide = graph.op("Unsqueeze", wide, axes=[2])
    wide = graph.op("Cast", wide, to=helper.np_dtype_to_tensor_dtype(graph.dtype))
    return graph.op("Mul", graph.op("Sub", graph.constant(1), wide), graph.constant(_FAR))
