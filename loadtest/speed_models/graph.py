"""A small builder over onnx.helper: nodes and weights one after another, each with a name of its own."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, checker, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from onnx import ModelProto, ValueInfoProto

    Array = np.ndarray[Any, Any]

OPSET = 13
"""The first with scales for each channel, which INT8 models need. TensorRT 10 and 11 parse it."""
IR_VERSION = 7
"""What ONNX 1.8, which has opset 13, writes; every runtime that takes the opset takes it."""

MICROSOFT = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""

ELEMENTS = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.float16): TensorProto.FLOAT16,
    np.dtype(np.int64): TensorProto.INT64,
    np.dtype(np.uint8): TensorProto.UINT8,
}


class Graph:
    """A graph under construction. dtype: of weights and activations, float32 or float16. seed: of the weights."""

    def __init__(self, dtype: type[np.floating[Any]], seed: int, opset: int = OPSET) -> None:
        self.dtype = np.dtype(dtype)
        self._opset = opset
        self._random = np.random.default_rng(seed)
        self._nodes: list[Any] = []
        self._weights: list[Any] = []
        self._known: list[ValueInfoProto] = []

    def __repr__(self) -> str:
        return f"<Graph {self.dtype} {len(self._nodes)} nodes, {len(self._weights)} weights>"

    def op(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:  # noqa: ANN401 - as ONNX's
        """Adds a node with one output; returns the output's name."""
        output = output or f"{kind.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [output], name=output, **attributes))
        return output

    def constant(self, values: object, dtype: Any = None) -> str:  # noqa: ANN401 - as NumPy's
        """Adds an initializer of the graph's own type, or of `dtype`; returns its name."""
        return self._add(np.asarray(values, dtype or self.dtype))

    def random(self, *shape: int, deviation: float, balanced: tuple[int, ...] = ()) -> str:
        """Adds normally distributed weights; returns their name. The same in both types, up to rounding.

        balanced: axes over which they add up to nothing.
        """
        weights = self._random.standard_normal(shape, np.float32) * np.float32(deviation)
        if balanced:
            weights -= weights.mean(axis=balanced, keepdims=True)
        return self._add(weights.astype(self.dtype))

    def _add(self, array: Array) -> str:
        name = f"w{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(array, name))
        return name

    def known(self, name: str, *shape: int | str) -> str:
        """Says what shape a value has, where inference cannot tell; returns its name."""
        self._known.append(tensor(name, self.dtype, *shape))
        return name

    def model(self, name: str, inputs: Sequence[ValueInfoProto], outputs: Sequence[ValueInfoProto]) -> ModelProto:
        """The checked model."""
        graph = helper.make_graph(self._nodes, name, list(inputs), list(outputs), self._weights, value_info=self._known)
        opsets = [helper.make_opsetid("", self._opset)]
        if any(node.domain == MICROSOFT for node in self._nodes):
            opsets.append(helper.make_opsetid(MICROSOFT, 1))
        return finished(helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION))


def tensor(name: str, dtype: Any, *shape: int | str) -> ValueInfoProto:  # noqa: ANN401 - as NumPy's
    """The declaration of an input or an output; a dimension with a name may be of any size."""
    return helper.make_tensor_value_info(name, ELEMENTS[np.dtype(dtype)], list(shape))


def finished(model: ModelProto) -> ModelProto:
    """The model, once ONNX has found nothing wrong with it. Raises onnx.checker.ValidationError."""
    checker.check_model(model)
    return model


def save(model: ModelProto, path: Path) -> None:
    """Writes the model, and makes the directory if need be. A file that has this name is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        onnx.save(model, unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
