"""Which models there are, and where the built ones are kept."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from speed_models.bert import Bert
from speed_models.graph import save
from speed_models.quantize import quantized
from speed_models.resnet import ResNet, normalized, with_uint8_input

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from onnx import ModelProto

    Array = np.ndarray[Any, Any]

CALIBRATION_IMAGES = 8
NAMES = (
    "resnet50-fp32",
    "resnet50-fp16",
    "resnet50-int8",
    "resnet50-fp32-u8",
    "resnet50-fp16-u8",
    "resnet50-int8-u8",
    "bert-fp32",
    "bert-fp16",
)
"""-u8: with `image`, UINT8 [N,height,width,3], for input. bert-fp16 is for ONNX Runtime alone: see `Bert.fused`."""


@dataclass(frozen=True)
class Sizes:
    """How large the models are. tokens: of the sequences that they are measured with."""

    resnet: ResNet = field(default_factory=ResNet)
    bert: Bert = field(default_factory=Bert)
    tokens: int = 128

    def images(self, count: int, seed: int = 1) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """UINT8 [count,image,image,3]: smooth shapes and noise, since images of noise alone look the same to a net."""
        rng, side = np.random.default_rng(seed), self.resnet.image
        coarse = rng.integers(0, 256, (count, 8, 8, 3), np.uint8)
        index = np.arange(side) * 8 // side
        smooth = coarse[:, index][:, :, index].astype(np.int16)
        noisy = smooth + rng.integers(-32, 33, (count, side, side, 3), np.int16)
        images: np.ndarray[Any, np.dtype[np.uint8]] = noisy.clip(0, 255).astype(np.uint8)
        return images

    def feeds(self, name: str, rows: int, seed: int = 1) -> dict[str, Array]:
        """Inputs of the model `name`, always the same ones. BERT's odd rows are padded in their second half."""
        if name.startswith("bert"):
            rng = np.random.default_rng(seed)
            ids = rng.integers(0, self.bert.vocabulary, (rows, self.tokens), np.int64)
            mask = np.ones_like(ids)
            mask[1::2, self.tokens // 2 :] = 0
            return {"input_ids": ids, "attention_mask": mask}
        images = self.images(rows, seed)
        if name.endswith("-u8"):
            return {"image": images}
        return {"pixels": normalized(images).astype(np.float16 if name.endswith("fp16") else np.float32)}


TINY = Sizes(
    ResNet(blocks=(1, 1, 1, 1), width=8, image=32, classes=10),
    Bert(layers=2, heads=4, width=64, vocabulary=100, positions=32),
    tokens=16,
)
"""To see that everything works; their speed says nothing."""


def build(name: str, sizes: Sizes) -> ModelProto:
    """The model of that name. Raises NoQuantizer for INT8 where there is no quantizer, KeyError for another name."""
    if name not in NAMES:
        raise KeyError(name)
    kind, precision, *u8 = name.split("-")
    dtype = np.float16 if precision == "fp16" else np.float32
    if kind == "bert":
        return replace(sizes.bert, fused=precision == "fp16").build(dtype)
    model = sizes.resnet.build(dtype)
    if precision == "int8":
        model = quantized(model, _calibration(sizes))
    return with_uint8_input(model) if u8 else model


def file(name: str, directory: Path, sizes: Sizes) -> Path:
    """The model's file in `directory`, built if it is not there yet. Raises as `build` does."""
    path = directory / f"{name}.onnx"
    if not path.exists():
        base = name.removesuffix("-u8")
        # quantizing once is enough
        model = build(name, sizes) if base == name else with_uint8_input(onnx.load(file(base, directory, sizes)))
        save(model, path)
    return path


def _calibration(sizes: Sizes) -> Iterator[dict[str, Array]]:
    for image in normalized(sizes.images(CALIBRATION_IMAGES, seed=2)):
        yield {"pixels": image[None]}
