"""Trains the `cytology` model and writes 1/model.onnx, heldout.npz and metrics.json beside this file.

The data are the 569 rows of the Wisconsin diagnostic breast cancer set that scikit-learn carries. The same seed,
library versions and machine give the same bytes.
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
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import RepeatedStratifiedKFold, cross_val_score, train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

if TYPE_CHECKING:
    from numpy.typing import NDArray

SEED = 0
HELD_OUT = 0.3
HIDDEN = (128, 64)
ALPHA = 3.0  # of the penalty on weights: few rows, many features that say the same
OPSET, IR_VERSION = 17, 8  # read by every ONNX Runtime since 1.12


def split() -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Training rows, held-out rows, training labels, held-out labels; stratified by label.

    Rows are FP32 [N,30] as measured, labels INT64 [N]: 0 malignant, 1 benign.
    """
    rows, labels = load_breast_cancer(return_X_y=True)
    train_rows, held_rows, train_labels, held_labels = train_test_split(
        rows.astype(np.float32), labels.astype(np.int64), test_size=HELD_OUT, stratify=labels, random_state=SEED
    )
    return train_rows, held_rows, train_labels, held_labels


def pipeline() -> Pipeline:
    """Scaling and a perceptron. Its kind and settings were chosen by `cross_validated` on the training part alone."""
    perceptron = MLPClassifier(HIDDEN, activation="relu", alpha=ALPHA, max_iter=1000, random_state=SEED)
    return make_pipeline(StandardScaler(), perceptron)


def train(rows: NDArray[np.float32], labels: NDArray[np.int64]) -> Pipeline:
    """The pipeline, trained."""
    with threadpool_limits(limits=1):  # sums in one order, hence the same weights each time
        return pipeline().fit(rows.astype(np.float64), labels)


def cross_validated(rows: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """The mean accuracy in 5-fold cross-validation, four times over."""
    folds = RepeatedStratifiedKFold(n_splits=5, n_repeats=4, random_state=1)
    with threadpool_limits(limits=1):
        return float(cross_val_score(pipeline(), rows.astype(np.float64), labels, cv=folds).mean())


def to_onnx(trained: Pipeline) -> onnx.ModelProto:
    """The trained pipeline as a graph that takes rows as they were measured.

    Scaling stays apart from the first product: features differ in size by 10,000, and a quantized product has one scale
    for all of its input. scikit-learn gives the log-odds z of the second class; -z/2 and z/2 have the same softmax.
    """
    scaler, perceptron = trained.steps[0][1], trained.steps[1][1]
    (*inner, last), (*inner_bias, last_bias) = perceptron.coefs_, perceptron.intercepts_
    halves = np.array([[-0.5, 0.5]])
    layers = [*zip(inner, inner_bias, strict=True), (last @ halves, last_bias * halves[0])]
    constants = {"mean": scaler.mean_, "inverse_deviation": 1.0 / scaler.scale_}
    nodes = [
        helper.make_node("Sub", ["features", "mean"], ["centred"]),
        helper.make_node("Mul", ["centred", "inverse_deviation"], ["scaled"]),
    ]
    at = "scaled"
    for number, (weight, bias) in enumerate(layers, 1):
        constants |= {f"weight_{number}": weight, f"bias_{number}": bias}
        output = "logits" if number == len(layers) else f"sums_{number}"
        nodes.append(helper.make_node("Gemm", [at, f"weight_{number}", f"bias_{number}"], [output]))
        if number < len(layers):
            at = f"hidden_{number}"
            nodes.append(helper.make_node("Relu", [output], [at]))
    nodes.append(helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1))
    nodes.append(helper.make_node("ArgMax", ["logits"], ["label"], axis=1, keepdims=0))
    graph = helper.make_graph(
        nodes,
        "cytology",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", len(scaler.mean_)])],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 2]),
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
    train_rows, rows, train_labels, labels = split()
    model = to_onnx(train(train_rows, train_labels)).SerializeToString(deterministic=True)
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # it reads that when it is imported
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (predicted,) = session.run(["label"], {"features": rows})
    metrics: dict[str, float | str] = {
        "held_out_accuracy": float(np.mean(predicted == labels)),
        "held_out_malignant_found": float(np.mean(predicted[labels == 0] == 0)),
        "held_out_benign_found": float(np.mean(predicted[labels == 1] == 1)),
        "held_out_rows": len(labels),
        "training_rows": len(train_labels),
        "seed": SEED,
        "scikit_learn": sklearn.__version__,
    }
    (directory / "1").mkdir(parents=True, exist_ok=True)
    (directory / "1" / "model.onnx").write_bytes(model)
    np.savez_compressed(directory / "heldout.npz", features=rows, labels=labels)
    told = directory / "metrics.json"
    known = json.loads(told.read_text(encoding="utf-8")) if told.is_file() else {}
    told.write_text(json.dumps({**known, **metrics}, indent=2) + "\n", encoding="utf-8")  # `precisions` is not ours
    return metrics


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the cytology model and write its files.")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="where to write (default: here)")
    parser.add_argument("--cross-validate", action="store_true", help="only say how well the settings do in training")
    parser.add_argument("--training-data", type=Path, metavar="FILE.npz", help="only write the training part")
    args = parser.parse_args()
    if args.training_data:
        rows, _, labels, _ = split()
        np.savez_compressed(args.training_data, features=rows, labels=labels)
        return
    if args.cross_validate:
        rows, _, labels, _ = split()
        print(f"cross_validated_accuracy: {cross_validated(rows, labels):.4f}")
        return
    for name, value in build(args.output).items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
