"""Builds ResNet-50 with random weights, the same each time, and writes 1/model.onnx beside this file."""

from __future__ import annotations

from pathlib import Path

from speed_models.graph import save
from speed_models.store import Sizes, build

HERE = Path(__file__).parent
SIZES = Sizes()


def main() -> None:
    save(build("resnet50-fp32", SIZES), HERE / "1" / "model.onnx")


if __name__ == "__main__":
    main()
