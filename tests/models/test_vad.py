from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import onnxruntime
import pytest

from headrace.repository.model_config import load_model_config

VAD = Path(__file__).parents[2] / "models" / "vad"


@pytest.fixture
def fetch(script):
    return script("vad/fetch.py")


@pytest.fixture
def fetched(fetch, tmp_path):
    fetch.fetch(tmp_path)
    return tmp_path


def test_signature(fetched):
    session = onnxruntime.InferenceSession(fetched / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    assert {i.name: (i.type, len(i.shape)) for i in session.get_inputs()} == {
        "input": ("tensor(float)", 2),
        "state": ("tensor(float)", 3),
        "sr": ("tensor(int64)", 0),
    }
    assert [o.name for o in session.get_outputs()] == ["output", "stateN"]


def test_model_toml_names_the_state():
    config = load_model_config(VAD / "model.toml")
    (state,) = config.sequence.state
    assert (state.input, state.output, state.initial) == ("state", "stateN", "zero")
    assert config.max_batch == 0


def test_what_is_there_is_not_fetched_again(fetch, fetched, monkeypatch):
    monkeypatch.setattr(fetch, "HERE", fetched)
    monkeypatch.setattr(fetch, "distribution", lambda name: pytest.fail("looked for the package"))
    fetch.main()


@pytest.mark.parametrize("damage", ["model", "no version", "version"])
def test_what_is_missing_or_old_is_fetched(fetch, fetched, monkeypatch, damage):
    model, version = fetched / "1" / "model.onnx", fetched / "1" / "version.txt"
    expected = model.read_bytes()
    if damage == "model":
        model.unlink()
    elif damage == "no version":
        version.unlink()
    else:
        version.write_text("5.0")
    monkeypatch.setattr(fetch, "HERE", fetched)
    fetch.main()
    assert model.read_bytes() == expected
    assert version.read_text() == fetch.VERSION


def test_a_missing_package_is_named_with_the_command_that_installs_it(fetch, monkeypatch):
    def absent(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(fetch, "distribution", absent)
    with pytest.raises(SystemExit, match=r"not installed; run: pip install --no-deps silero-vad=="):
        fetch.installed()


def test_another_version_is_refused(fetch, monkeypatch):
    monkeypatch.setattr(fetch, "distribution", lambda name: SimpleNamespace(version="5.0"))
    with pytest.raises(SystemExit, match=r"installed as 5\.0"):
        fetch.installed()


def test_the_model_card_names_the_version(fetch):
    card = (VAD / "README.md").read_text()
    assert f"version {fetch.VERSION}" in card
    assert f"silero-vad=={fetch.VERSION}" in card
