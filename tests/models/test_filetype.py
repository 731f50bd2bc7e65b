import json
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import onnxruntime
import pytest

from headrace.repository.model_config import load_model_config

FILETYPE = Path(__file__).parents[2] / "models" / "filetype"


@pytest.fixture
def fetch(script):
    return script("filetype/fetch.py")


@pytest.fixture
def fetched(fetch, tmp_path):
    pytest.importorskip("magika")
    fetch.fetch(tmp_path)
    return tmp_path


def test_labels_name_the_columns_of_the_output(fetched):
    session = onnxruntime.InferenceSession(fetched / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    labels = json.loads((fetched / "labels.json").read_text())
    ((tokens, scores),) = zip(session.get_inputs(), session.get_outputs(), strict=True)
    assert (tokens.name, tokens.type, tokens.shape[1:]) == ("bytes", "tensor(int32)", [2048])
    assert (scores.name, scores.type, scores.shape[1:]) == ("target_label", "tensor(float)", [214])
    assert len(labels["labels"]) == 214
    assert labels["beginning"] + labels["end"] == 2048
    assert set(labels["thresholds"]) | set(labels["renamed"]) <= set(labels["labels"])


def test_the_model_card_explains_every_key_of_labels_json(fetched):
    card = (FILETYPE / "README.md").read_text()
    assert [key for key in json.loads((fetched / "labels.json").read_text()) if f"`{key}`" not in card] == []


def test_what_is_there_is_not_fetched_again(fetch, fetched, monkeypatch):
    monkeypatch.setattr(fetch, "HERE", fetched)
    monkeypatch.setattr(fetch, "distribution", lambda name: pytest.fail("looked for the package"))
    fetch.main()


@pytest.mark.parametrize("damage", ["model", "labels", "version"])
def test_what_is_missing_or_old_is_fetched(fetch, fetched, monkeypatch, damage):
    labels = fetched / "labels.json"
    expected = labels.read_text()
    if damage == "model":
        (fetched / "1" / "model.onnx").unlink()
    elif damage == "labels":
        labels.unlink()
    else:
        labels.write_text('{"version": "0.1"}')
    monkeypatch.setattr(fetch, "HERE", fetched)
    fetch.main()
    assert labels.read_text() == expected
    assert (fetched / "1" / "model.onnx").is_file()


def test_a_missing_package_is_named_with_the_command_that_installs_it(fetch, monkeypatch):
    def absent(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(fetch, "distribution", absent)
    with pytest.raises(SystemExit, match=r"not installed; run: pip install --no-deps magika==1\.0\.3"):
        fetch.installed()


def test_another_version_is_refused(fetch, monkeypatch):
    monkeypatch.setattr(fetch, "distribution", lambda name: SimpleNamespace(version="2.0"))
    with pytest.raises(SystemExit, match=r"installed as 2\.0"):
        fetch.installed()


def test_model_toml_allows_every_token():
    rules = load_model_config(FILETYPE / "model.toml").inputs["bytes"]
    assert (rules.min, rules.max) == (0, 256)
