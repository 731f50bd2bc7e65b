import hashlib
import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from sklearn.datasets import load_breast_cancer

from headrace.repository.model_config import load_model_config

CYTOLOGY = Path(__file__).parents[2] / "models" / "cytology"
METRICS = json.loads((CYTOLOGY / "metrics.json").read_text())
ONE_ROW = 1 / METRICS["held_out_rows"]


@pytest.fixture(scope="module")
def session():
    return onnxruntime.InferenceSession(CYTOLOGY / "1" / "model.onnx", providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def train(script):
    return script("cytology/train.py")


@pytest.fixture(scope="module")
def held_out(train):
    """Rows and labels of the split, made anew."""
    _, rows, _, labels = train.split()
    return rows, labels


def test_held_out_accuracy_is_what_the_metrics_say(session, held_out):
    rows, labels = held_out
    (predicted,) = session.run(["label"], {"features": rows})
    right = predicted == labels
    assert len(labels) == METRICS["held_out_rows"]
    assert np.mean(right) == pytest.approx(METRICS["held_out_accuracy"], abs=1.01 * ONE_ROW)  # rounding may tip one
    assert np.sum(right[labels == 0]) == pytest.approx(METRICS["held_out_malignant_found"] * sum(labels == 0), abs=1.01)


def test_the_model_card_gives_the_accuracy():
    card = (CYTOLOGY / "README.md").read_text()
    assert f"**Held-out accuracy.** {METRICS['held_out_accuracy']:.4f}:" in card
    assert f"({METRICS['held_out_malignant_found']:.4f})" in card


def test_the_committed_rows_are_the_held_out_ones(held_out):
    file = np.load(CYTOLOGY / "heldout.npz")
    assert (file["features"].dtype, file["labels"].dtype) == (np.float32, np.int64)
    np.testing.assert_array_equal(file["features"], held_out[0])
    np.testing.assert_array_equal(file["labels"], held_out[1])


def test_no_held_out_row_was_trained_on(train):
    train_rows, rows, train_labels, labels = train.split()
    assert not {row.tobytes() for row in train_rows} & {row.tobytes() for row in rows}
    shares = [np.bincount(part) / len(part) for part in (train_labels, labels)]
    np.testing.assert_allclose(*shares, atol=0.005)


def test_signature(session):
    assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [("features", "tensor(float)", ["batch", 30])]
    assert [(o.name, o.type, o.shape) for o in session.get_outputs()] == [
        ("probabilities", "tensor(float)", ["batch", 2]),
        ("label", "tensor(int64)", ["batch"]),
    ]


def test_the_graph_computes_what_scikit_learn_does(train, session, held_out):
    train_rows, _, train_labels, _ = train.split()
    expected = train.train(train_rows, train_labels).predict_proba(held_out[0].astype(np.float64))
    probabilities, label = session.run(None, {"features": held_out[0]})
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    np.testing.assert_array_equal(label, expected.argmax(axis=1))


def test_names_and_labels_are_those_of_the_data():
    data = load_breast_cancer()
    rules = load_model_config(CYTOLOGY / "model.toml").inputs["features"]
    assert list(rules.names) == list(data.feature_names)
    assert (CYTOLOGY / "labels.txt").read_text().split() == list(data.target_names)


def test_the_rules_allow_the_data():
    rows = load_breast_cancer().data
    rules = load_model_config(CYTOLOGY / "model.toml").inputs["features"]
    assert rules.finite
    assert (rows >= rules.min).all()
    assert (rows < rules.max).all()
    assert (np.array(rules.max) < 2.2 * rows.max(axis=0)).all()


def test_training_again_gives_the_same_files(train, tmp_path):
    def files(directory):
        metrics = train.build(directory)
        assert metrics["held_out_accuracy"] == pytest.approx(METRICS["held_out_accuracy"], abs=2 * ONE_ROW)
        return {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.rglob("*") if path.is_file()
        }

    first = files(tmp_path / "first")
    assert sorted(first) == ["heldout.npz", "metrics.json", "model.onnx"]
    assert files(tmp_path / "second") == first


def test_settings_are_judged_on_the_training_part_alone(train, monkeypatch, capsys):
    judged = []
    monkeypatch.setattr(train, "cross_validated", lambda rows, labels: judged.append((rows, labels)) or 0.5)
    monkeypatch.setattr("sys.argv", ["train.py", "--cross-validate"])
    train.main()
    assert capsys.readouterr().out == "cross_validated_accuracy: 0.5000\n"
    np.testing.assert_array_equal(judged[0][0], train.split()[0])
