"""ResNet-50 and BERT-base with random weights; what is in them is tested in tests/loadtest/speed_models."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from headrace.repository.discovery import Found, scan_model
from speed_models.store import TINY, Sizes

MODELS = Path(__file__).parents[2] / "models"
NAMES = {"resnet50": "resnet50-fp32", "bert-base": "bert-fp32"}


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture
def built(script, name, monkeypatch, tmp_path):
    """The directory of a model with a few channels and layers."""
    build = script(f"{name}/build.py")
    assert Sizes() == build.SIZES
    monkeypatch.setattr(build, "SIZES", TINY)
    monkeypatch.setattr(build, "HERE", tmp_path / name)
    build.main()
    (tmp_path / name / "model.toml").write_bytes((MODELS / name / "model.toml").read_bytes())
    return tmp_path / name


def test_what_is_built_runs_as_model_toml_says(name, built):
    (found,) = scan_model(built.parent, name)
    assert isinstance(found, Found)
    session = onnxruntime.InferenceSession(built / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    feeds = TINY.feeds(NAMES[name], 2)
    assert {i.name for i in session.get_inputs()} == set(feeds)
    assert set(found.config.inputs) <= set(feeds)
    for output in session.run(None, feeds):
        assert len(output) == 2
        assert np.isfinite(output).all()
    for bucket in found.config.buckets.values():
        assert {*bucket.inputs, *bucket.masks} == set(feeds)
        assert set(bucket.outputs) == {o.name for o in session.get_outputs()}


def test_without_a_version_it_is_left_out_and_no_error(name, built):
    (built / "1" / "model.onnx").unlink()
    (built / "1").rmdir()
    (entry,) = scan_model(built.parent, name)
    assert entry.expected
    assert entry.reason == "not built yet; to build it, run 'make models'"
