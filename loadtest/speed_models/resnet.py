"""ResNet-50 with random weights, batch normalization folded into the convolutions (He et al. 2015, arXiv:1512.03385).

The stride is in the 3x3 convolution of a block, as in every framework's "v1.5". The weights of a filter add up to
nothing: else what all images have in common, that activations behind a ReLU are positive, would drown what they differ
in, and with it what a lower precision changes. Their deviation is He's, and more by as much as that takes away; the
last convolution of a block is scaled down, so that sixteen additions do not let it grow out of FP16's range.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import helper

from speed_models.graph import Graph, finished, tensor

if TYPE_CHECKING:
    from onnx import ModelProto

MEAN = (123.675, 116.28, 103.53)
DEVIATION = (58.395, 57.12, 57.375)
"""Of ImageNet's pixels, 0 to 255, by channel in RGB order: what such networks are trained to subtract and divide by."""

_GAIN = 1 / (1 - 1 / np.pi)
"""E[x^2] / Var[x] of the positive part of a normal variable: what is lost when its mean no longer counts."""
_RESIDUAL = 0.1


@dataclass(frozen=True)
class ResNet:
    """blocks: of each of the four stages. width: channels of the first stage's 3x3 convolutions. image: its side."""

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    image: int = 224
    classes: int = 1000

    def build(self, dtype: type[np.floating[Any]] = np.float32) -> ModelProto:
        """`pixels` [N,3,image,image], normalized, of this type -> `scores` FP32 [N,classes], no softmax."""
        graph = Graph(dtype, seed=50)
        at = _convolution(graph, "pixels", 3, self.width, size=7, stride=2)
        at = graph.op("MaxPool", at, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
        channels = self.width
        for stage, blocks in enumerate(self.blocks):
            for block in range(blocks):
                width = self.width << stage
                at = _block(graph, at, channels, width, stride=2 if stage and not block else 1)
                channels = 4 * width
        at = graph.op("Flatten", graph.op("GlobalAveragePool", at))
        weights = graph.random(channels, self.classes, deviation=2 * channels**-0.5, balanced=(0,))
        at = graph.op("Gemm", at, weights, graph.random(self.classes, deviation=0.1))
        graph.op("Cast", at, output="scores", to=helper.np_dtype_to_tensor_dtype(np.dtype(np.float32)))
        pixels = tensor("pixels", dtype, "N", 3, self.image, self.image)
        return graph.model("resnet", [pixels], [tensor("scores", np.float32, "N", self.classes)])


def with_uint8_input(model: ModelProto) -> ModelProto:
    """The same model with `image` UINT8 [N,height,width,3], RGB, where it took `pixels`: a quarter of the octets.

    It normalizes inside the graph. Changes `model` and returns it.
    """
    graph = model.graph
    (pixels,) = graph.input
    element = pixels.type.tensor_type.elem_type
    dtype = helper.tensor_dtype_to_np_dtype(element)
    _, channels, height, width = (d.dim_value for d in pixels.type.tensor_type.shape.dim)
    before = Graph(dtype.type, seed=0)
    at = before.op("Cast", "image", output="image_float", to=element)
    at = before.op("Sub", at, before.constant(MEAN), output="image_centred")
    at = before.op("Mul", at, before.constant(1 / np.array(DEVIATION)), output="image_scaled")
    before.op("Transpose", at, output="pixels", perm=[0, 3, 1, 2])
    added = before.model(
        "normalize",
        [tensor("image", np.uint8, "N", height, width, channels)],
        [tensor("pixels", dtype, "N", channels, height, width)],
    ).graph
    names = {weight.name: f"image_{weight.name}" for weight in added.initializer}
    for weight in added.initializer:
        weight.name = names[weight.name]
    for node in added.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    nodes = [*added.node, *graph.node]
    del graph.node[:], graph.input[:]
    graph.node.extend(nodes)
    graph.input.extend(added.input)
    graph.initializer.extend(added.initializer)
    return finished(model)


def normalized(images: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """What a model without `image` takes: UINT8 [N,height,width,3] -> FP32 [N,3,height,width]."""
    scaled = (images.astype(np.float32) - np.array(MEAN, np.float32)) * (1 / np.array(DEVIATION)).astype(np.float32)
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def _block(graph: Graph, at: str, channels: int, width: int, stride: int) -> str:
    """A bottleneck: 1x1, 3x3 and 1x1 convolutions, and what came in added to them."""
    inside = _convolution(graph, at, channels, width)
    inside = _convolution(graph, inside, width, width, size=3, stride=stride)
    inside = _convolution(graph, inside, width, 4 * width, relu=False, scale=_RESIDUAL)
    if stride > 1 or channels != 4 * width:
        at = _convolution(graph, at, channels, 4 * width, stride=stride, relu=False, scale=0.5**0.5)
    return graph.op("Relu", graph.op("Add", inside, at))


def _convolution(
    graph: Graph,
    at: str,
    channels: int,
    filters: int,
    size: int = 1,
    stride: int = 1,
    relu: bool = True,
    scale: float = 1,
) -> str:
    deviation = scale * (2 * _GAIN / (channels * size * size)) ** 0.5
    weights = graph.random(filters, channels, size, size, deviation=deviation, balanced=(1, 2, 3))
    at = graph.op(
        "Conv",
        at,
        weights,
        graph.random(filters, deviation=0.05 * scale),
        kernel_shape=[size, size],
        strides=[stride, stride],
        pads=[size // 2] * 4,
    )
    return graph.op("Relu", at) if relu else at
