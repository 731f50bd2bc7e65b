"""2:4 magnitude pruning: of every four weights that a sum runs over, the two smallest become zero. An experiment.

The pattern is that of NVIDIA's sparse tensor cores (Mishra et al. 2021, arXiv:2104.08378), which TensorRT uses by its
option `sparse_weights`. The paper trains again afterwards, and keeps its accuracy by that; here nothing is trained, so
a model pays for it, and the gate is what decides. Zeros stay zeros in symmetric weights of 8 bits.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Collection

    from onnx import ModelProto, NodeProto

    Array = np.ndarray[Any, Any]

WHAT_IT_BRINGS = (
    "2:4 pruning alone makes no file smaller, and ONNX Runtime's CPU provider multiplies zeros like any number: only "
    "TensorRT gains from it, with sparse_weights = true, on GPUs with sparse tensor cores"
)
"""For the report's warnings."""

_GROUP, _KEPT = 4, 2
_SUM_MULTIPLE, _OUTPUT_MULTIPLE = 16, 8
"""Of a layer's sizes: in others tensor cores have to pad, which eats what sparsity saves."""
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


@dataclass(frozen=True, slots=True)
class PrunedLayer:
    """error: of the weights, relative in L2; the square root of the share of their energy that went."""

    name: str
    op_type: str
    weights: int
    zeroed: int
    error: float


@dataclass(frozen=True, slots=True)
class Pruning:
    """What was pruned, and (node, reason) for what was not."""

    layers: tuple[PrunedLayer, ...]
    skipped: tuple[tuple[str, str], ...]

    @property
    def zeroed_share(self) -> float:
        """Share of the weights of pruned layers that were no zeros and are; 0 if no layer was pruned."""
        return sum(layer.zeroed for layer in self.layers) / max(1, sum(layer.weights for layer in self.layers))


def prune(model: ModelProto, dense: Collection[str] = ()) -> Pruning:
    """Prunes the constant weights of Conv, Gemm and MatMul nodes in `model` itself; its weights must be in memory.

    dense: names of nodes to leave as they are. Weights that nodes share are pruned only where all of them may be, along
    the same axis.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    users: dict[str, list[NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        for name in dict.fromkeys(node.input):
            users[name].append(node)
    exposed = {value.name for value in model.graph.output}
    layers: list[PrunedLayer] = []
    skipped: list[tuple[str, str]] = []
    done: set[str] = set()
    for node in model.graph.node:
        if node.op_type not in _AXES or node.domain not in ("", "ai.onnx"):
            continue
        name = node.input[1]
        tensor = weights.get(name)
        reason = _obstacle(node, tensor, dense) if name not in exposed else "its weights are an output of the model"
        others = [_obstacle(other, tensor, dense) for other in users[name]]
        if not reason and (any(others) or len({_axis(other) for other in users[name]}) > 1):
            reason = f"it shares {name} with a node that cannot be pruned alike"
        if reason or tensor is None:
            skipped.append((node.name or node.output[0], reason))
        elif name not in done:
            done.add(name)
            layers.append(_pruned(node, tensor))
    return Pruning(tuple(layers), tuple(skipped))


def two_of_four(weights: Array, axis: int) -> Array:
    """A copy with the two largest magnitudes of every four neighbours along `axis`; of equal ones the first stay.

    A last group of fewer than four is padded with zeros, as in the sparse format.
    """
    moved = np.moveaxis(weights, axis, -1)
    length = moved.shape[-1]
    padded = np.pad(moved, [(0, 0)] * (moved.ndim - 1) + [(0, -length % _GROUP)])
    groups = padded.reshape(*padded.shape[:-1], -1, _GROUP)
    smallest = np.argsort(-np.abs(groups), axis=-1, kind="stable")[..., _KEPT:]
    sparse = groups.copy()
    np.put_along_axis(sparse, smallest, 0, axis=-1)
    return np.ascontiguousarray(np.moveaxis(sparse.reshape(padded.shape)[..., :length], -1, axis))


_AXES = {"Conv": 1, "Gemm": 0, "MatMul": -2}
"""What a weight's sum runs over: input channels of [M,C/group,...], rows of [K,N] and of [...,K,N]."""


def _axis(node: NodeProto) -> int:
    transposed = any(one.name == "transB" and one.i for one in node.attribute)
    return 1 if node.op_type == "Gemm" and transposed else _AXES.get(node.op_type, 0)


def _obstacle(node: NodeProto, tensor: TensorProto | None, dense: Collection[str]) -> str:
    """Why a node's weights are left as they are; empty if they can be pruned."""
    if node.op_type not in _AXES or tensor is None or node.input[1] != tensor.name or tensor.name == node.input[0]:
        return "its weights are no constant in float"
    if tensor.data_type not in _FLOATS:
        return f"its weights are of {TensorProto.DataType.Name(tensor.data_type)}, expected FLOAT or FLOAT16"
    if node.name in dense:
        return "it was to be left dense"
    if len(tensor.dims) < 2:
        return "its weights are a vector"
    axis = _axis(node)
    summed = tensor.dims[axis]
    outputs = tensor.dims[{0: 1, 1: 0, -2: -1}[axis]]
    if summed % _SUM_MULTIPLE or outputs % _OUTPUT_MULTIPLE:
        return (
            f"it sums over {summed} for {outputs} outputs; tensor cores take multiples of {_SUM_MULTIPLE} and "
            f"{_OUTPUT_MULTIPLE}"
        )
    return ""


def _pruned(node: NodeProto, tensor: TensorProto) -> PrunedLayer:
    before = numpy_helper.to_array(tensor)
    after = two_of_four(before, _axis(node))
    tensor.CopyFrom(numpy_helper.from_array(after, tensor.name))
    full = before.astype(np.float64)
    norm = float(np.linalg.norm(full))
    error = float(np.linalg.norm(full - after)) / norm if norm else 0.0
    zeroed = int(np.count_nonzero(before) - np.count_nonzero(after))
    return PrunedLayer(node.name or node.output[0], node.op_type, before.size, zeroed, error)
