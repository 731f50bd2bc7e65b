"""Trains the `digits` model and writes 1/model.onnx, heldout.npz and metrics.json beside this file.

The data are the 1,797 handwritten digits that scikit-learn carries. The same seed, library versions and machine give
the same bytes.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import sklearn
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from threadpoolctl import threadpool_limits

if TYPE_CHECKING:
    from numpy.typing import NDArray

SEED = 0
HELD_OUT = 0.2
CENTRES = 384
GAMMA = 0.3
PIXEL_MAX = 16.0
OPSET, IR_VERSION = 17, 8  # read by every ONNX Runtime since 1.12


def split() -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Training pixels, held-out pixels, training labels, held-out labels; stratified by digit.

    Pixels are FP32 [N,64] from 0 to 16, labels INT64 [N].
    """
    pixels, labels = load_digits(return_X_y=True)
    train_pixels, held_pixels, train_labels, held_labels = train_test_split(
        pixels.astype(np.float32), labels, test_size=HELD_OUT, stratify=labels, random_state=SEED
    )
    return train_pixels, held_pixels, train_labels, held_labels


def train(pixels: NDArray[np.float32], labels: NDArray[np.int64]) -> tuple[Nystroem, LogisticRegression]:
    """Logistic regression on the similarity of an image to CENTRES of the training images (a radial basis kernel).

    Chosen, with its hyper-parameters, by cross-validation on the training part alone.
    """
    kernel = Nystroem(gamma=GAMMA, n_components=CENTRES, random_state=SEED)
    regression = LogisticRegression(C=100.0, max_iter=2000)
    with threadpool_limits(limits=1):  # sums in one order, hence the same weights each time
        regression.fit(kernel.fit_transform(pixels.astype(np.float64) / PIXEL_MAX), labels)
    return kernel, regression


def to_onnx(kernel: Nystroem, regression: LogisticRegression) -> onnx.ModelProto:
    """The trained pair as a graph that takes raw pixels.

    With x the scaled pixels and c a centre: logits = exp(-g |x - c|^2) W + b, where |x - c|^2 is spelled
    |x|^2 - 2xc + |c|^2, so that it is one matrix product, and W holds the kernel's normalisation too.
    """
    centres = kernel.components_
    constants = {
        "scale": np.array(1.0 / PIXEL_MAX),
        "gamma": np.array(GAMMA),
        "cross": 2.0 * GAMMA * centres.T,
        "centre_norms": -GAMMA * np.square(centres).sum(axis=1),
        "weight": kernel.normalization_.T @ regression.coef_.T,
        "bias": regression.intercept_,
    }
    nodes = [
        helper.make_node("Mul", ["pixels", "scale"], ["x"]),
        helper.make_node("ReduceSumSquare", ["x"], ["x_norm"], axes=[1], keepdims=1),
        helper.make_node("Mul", ["x_norm", "gamma"], ["x_exponent"]),
        helper.make_node("Gemm", ["x", "cross", "centre_norms"], ["centre_exponents"]),
        helper.make_node("Sub", ["centre_exponents", "x_exponent"], ["exponents"]),
        helper.make_node("Exp", ["exponents"], ["similarities"]),
        helper.make_node("Gemm", ["similarities", "weight", "bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        helper.make_node("ArgMax", ["logits"], ["label"], axis=1, keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 64])],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 10]),
            helper.make_tensor_value_info("label", TensorProto.INT64, ["batch"]),
        ],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()],
    )
    opset = helper.make_opsetid("", OPSET)
    model = helper.make_model(graph, producer_name="headrace", opset_imports=[opset], ir_version=IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    return model


def build(directory: Path) -> dict[str, float | str]:
    """Trains, writes the three files under `directory` and returns the metrics, measured on the ONNX file itself."""
    train_pixels, pixels, train_labels, labels = split()
    model = to_onnx(*train(train_pixels, train_labels)).SerializeToString(deterministic=True)
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # it reads that when it is imported
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (predicted,) = session.run(["label"], {"pixels": pixels})
    metrics: dict[str, float | str] = {
        "held_out_accuracy": float(np.mean(predicted == labels)),
        "held_out_images": len(labels),
        "training_images": len(train_labels),
        "seed": SEED,
        "scikit_learn": sklearn.__version__,
    }
    (directory / "1").mkdir(parents=True, exist_ok=True)
    (directory / "1" / "model.onnx").write_bytes(model)
    np.savez_compressed(directory / "heldout.npz", pixels=pixels, labels=labels)
    told = directory / "metrics.json"
    known = json.loads(told.read_text(encoding="utf-8")) if told.is_file() else {}
    told.write_text(json.dumps({**known, **metrics}, indent=2) + "\n", encoding="utf-8")  # `precisions` is not ours
    return metrics


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the digits model and write its files.")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="where to write (default: here)")
    parser.add_argument("--training-data", type=Path, metavar="FILE.npz", help="only write the training part")
    args = parser.parse_args()
    if args.training_data:
        pixels, _, labels, _ = split()
        np.savez_compressed(args.training_data, pixels=pixels, labels=labels)
        return
    for name, value in build(args.output).items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
