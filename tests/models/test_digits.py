import hashlib
import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from headrace.repository.model_config import load_model_config

DIGITS = Path(__file__).parents[2] / "models" / "digits"
METRICS = json.loads((DIGITS / "metrics.json").read_text())
ONE_IMAGE = 1 / METRICS["held_out_images"]


@pytest.fixture(scope="module")
def session():
    return onnxruntime.InferenceSession(DIGITS / "1" / "model.onnx", providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def train(script):
    return script("digits/train.py")


@pytest.fixture(scope="module")
def held_out(train):
    """Pixels and labels of the split, made anew."""
    _, pixels, _, labels = train.split()
    return pixels, labels


def test_held_out_accuracy_is_what_the_metrics_say(session, held_out):
    pixels, labels = held_out
    (predicted,) = session.run(["label"], {"pixels": pixels})
    assert len(labels) == METRICS["held_out_images"]
    assert np.mean(predicted == labels) >= METRICS["held_out_accuracy"] - ONE_IMAGE  # rounding may tip one image


def test_the_model_card_gives_the_accuracy():
    assert f"**Held-out accuracy.** {METRICS['held_out_accuracy']:.4f}:" in (DIGITS / "README.md").read_text()


def test_the_committed_images_are_the_held_out_ones(held_out):
    file = np.load(DIGITS / "heldout.npz")
    assert (file["pixels"].dtype, file["labels"].dtype) == (np.float32, np.int64)
    np.testing.assert_array_equal(file["pixels"], held_out[0])
    np.testing.assert_array_equal(file["labels"], held_out[1])


def test_no_held_out_image_was_trained_on(train):
    train_pixels, pixels, train_labels, labels = train.split()
    assert not {row.tobytes() for row in train_pixels} & {row.tobytes() for row in pixels}
    shares = [np.bincount(part) / len(part) for part in (train_labels, labels)]
    np.testing.assert_allclose(*shares, atol=0.005)


def test_signature(session):
    assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [("pixels", "tensor(float)", ["batch", 64])]
    assert [(o.name, o.type, o.shape) for o in session.get_outputs()] == [
        ("probabilities", "tensor(float)", ["batch", 10]),
        ("label", "tensor(int64)", ["batch"]),
    ]


def test_outputs_are_probabilities_and_their_best(session, held_out):
    probabilities, label = session.run(None, {"pixels": held_out[0]})
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, atol=1e-5)
    assert probabilities.min() >= 0
    np.testing.assert_array_equal(label, probabilities.argmax(axis=1))


def test_a_row_does_not_depend_on_its_batch(session, held_out):
    pixels = held_out[0][:20]
    together = session.run(["probabilities"], {"pixels": pixels})[0]
    alone = np.concatenate([session.run(["probabilities"], {"pixels": row[None]})[0] for row in pixels])
    np.testing.assert_allclose(alone, together, atol=1e-5)


def test_model_toml_names_the_input_and_allows_the_data(session, held_out):
    config = load_model_config(DIGITS / "model.toml")
    assert set(config.inputs) == {i.name for i in session.get_inputs()}
    rules = config.inputs["pixels"]
    assert rules.finite
    assert (rules.min, rules.max) == (held_out[0].min(), held_out[0].max())


def test_training_again_gives_the_same_files(train, tmp_path):
    def files(directory):
        metrics = train.build(directory)
        assert metrics["held_out_accuracy"] == pytest.approx(METRICS["held_out_accuracy"], abs=2 * ONE_IMAGE)
        return {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.rglob("*") if path.is_file()
        }

    first = files(tmp_path / "first")
    assert sorted(first) == ["heldout.npz", "metrics.json", "model.onnx"]
    assert files(tmp_path / "second") == first
