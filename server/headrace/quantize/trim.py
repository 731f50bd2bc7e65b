"""Pairs of Q and DQ that only cost, taken out of a graph again. Pure.

ONNX Runtime's tool puts a pair behind every input and output of a quantized node, and gives what comes out of it to
everyone who reads the tensor.
"""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, MutableSequence

    import onnx

T = TypeVar("T")

_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_FLOAT_OUTPUT = ("Gemm", "MatMul")
"""Operators whose integer kernels can give floats; that of Conv cannot."""


def trim(model: onnx.ModelProto, layers: Mapping[str, str], *, products: bool) -> None:
    """Lets nodes in float read floats where there are some. layers: names of quantized nodes to what they gave before.

    A tensor that is made in float is read by nodes in float as it was made. products: so is a product that they alone
    read; not where an activation was taken out, since the range of the pair behind does its work.
    """
    graph = model.graph
    makers = {output: node for node in graph.node for output in node.output}
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    outputs = {one.name for one in graph.output}

    def in_integers(node: onnx.NodeProto) -> bool:
        before = (makers.get(name) for name in node.input)
        behind = (reader for name in node.output for reader in readers[name])
        return node.name in layers or (
            any(one is not None and one.op_type == _DEQUANTIZE for one in before)
            and any(one.op_type == _QUANTIZE for one in behind)
        )

    gone: set[str] = set()
    for node in graph.node:
        pair = makers.get(node.input[0]) if node.op_type == _DEQUANTIZE else None
        if pair is None or pair.op_type != _QUANTIZE:
            continue
        tensor, name = pair.input[0], node.output[0]
        maker = makers.get(tensor)
        floats = [reader for reader in readers[name] if not in_integers(reader)]
        if maker is None or not in_integers(maker):
            _reread(floats, name, tensor)
        elif products and maker.op_type in _FLOAT_OUTPUT and layers.get(maker.name) in (tensor, name):
            if len(floats) < len(readers[name]) or len(readers[pair.output[0]]) > 1 or len(readers[tensor]) > 1:
                continue
            if name in outputs:
                maker.output[list(maker.output).index(tensor)] = name
                gone |= {pair.name, node.name}
            else:
                _reread(floats, name, tensor)
    drop(graph.node, lambda node: node.name in gone)
    drop_unread(graph, (_DEQUANTIZE, _QUANTIZE))
    read = names_read(graph)
    drop(graph.initializer, lambda tensor: tensor.name not in read)


def drop(container: MutableSequence[T], unwanted: Callable[[T], bool]) -> None:
    """Takes these out of a repeated field. Its own `remove` compares messages whole, which is slow for weights."""
    for at in reversed(range(len(container))):
        if unwanted(container[at]):
            del container[at]


def _reread(nodes: Iterable[onnx.NodeProto], name: str, instead: str) -> None:
    for node in nodes:
        node.input[:] = [instead if one == name else one for one in node.input]


def drop_unread(graph: onnx.GraphProto, kinds: Collection[str]) -> None:
    """Takes out nodes of these types whose one output nobody reads, and those that only they have read."""
    size = -1
    while size != len(graph.node):
        size, read = len(graph.node), names_read(graph)
        drop(graph.node, partial(_is_unread, kinds, read))


def _is_unread(kinds: Collection[str], read: set[str], node: onnx.NodeProto) -> bool:
    return node.op_type in kinds and node.output[0] not in read


def names_read(graph: onnx.GraphProto) -> set[str]:
    """Names that a graph gives, or that its nodes read, those in graphs within it among them."""
    found = {one.name for one in graph.output} | {name for node in graph.node for name in node.input}
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                found |= names_read(inner)
    return found
