import json

import pytest

from headrace.backends.tensorrt import options
from headrace.errors import InvalidRequest
from headrace.repository.discovery import Found, scan_model
from headrace.repository.overrides import stage

CONFIG = json.dumps({"backend": "onnxruntime", "max_batch_size": 5})


@pytest.fixture
def root(tmp_path):
    (tmp_path / "root" / "m" / "1").mkdir(parents=True)
    (tmp_path / "root" / "m" / "1" / "model.onnx").write_bytes(b"on disk")
    (tmp_path / "root" / "m" / "labels.txt").write_text("a\n")
    (tmp_path / "root" / "m" / "model.toml").write_text("max_batch = 9\n")
    return tmp_path / "root"


@pytest.fixture
def into(tmp_path):
    (tmp_path / "staged").mkdir()
    return tmp_path / "staged"


def found(into, name="m"):
    (entry,) = scan_model(into, name)
    assert isinstance(entry, Found), entry
    return entry


def test_a_configuration_replaces_that_of_the_model(root, into):
    stage(root, "m", CONFIG, {}, into)
    entry = found(into)
    assert (entry.version, entry.config.max_batch) == (1, 5)
    assert (entry.path / "model.onnx").read_bytes() == b"on disk"
    assert (into / "m" / "labels.txt").read_text() == "a\n"


def test_files_replace_those_of_the_model(root, into):
    stage(root, "m", CONFIG, {"3/model.onnx": b"brought", "3/data/weights": b"w"}, into)
    entry = found(into)
    assert (entry.version, entry.config.max_batch) == (3, 5)
    assert (entry.path / "model.onnx").read_bytes() == b"brought"
    assert (entry.path / "data" / "weights").read_bytes() == b"w"
    assert not (into / "m" / "labels.txt").exists()


def test_a_model_that_the_repository_does_not_hold(root, into):
    stage(root, "new", CONFIG, {"1/model.onnx": b"brought"}, into)
    assert found(into, "new").version == 1


@pytest.mark.parametrize("path", ["", "model.onnx", "x/model.onnx", "../1/m", "1/../../m", "/1/m", "1", "1/a\0b"])
def test_files_stay_below_a_version(root, into, path):
    with pytest.raises(InvalidRequest, match="expected 'file:<version>/<file>'"):
        stage(root, "m", CONFIG, {path: b""}, into)


@pytest.mark.parametrize("suffix", sorted(options.PLAN_SUFFIXES))
def test_no_client_brings_a_plan(root, into, suffix):
    with pytest.raises(InvalidRequest, match="a plan is code, which a client may not bring"):
        stage(root, "m", CONFIG, {f"1/model{suffix}": b""}, into)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ("", "parameter 'config' is needed"),
        ("{", "not a ModelConfig in JSON"),
        ("[]", "not a ModelConfig in JSON: expected an object"),
        ("null", "not a ModelConfig in JSON: expected an object"),
        ("5", "not a ModelConfig in JSON: expected an object"),
        ("[" * 100_000, "not a ModelConfig in JSON"),
        ('{"max_batch": 1}', "max_batch"),
        ('{"model_operations": {"op_library_filename": ["x.so"]}}', "loads libraries"),
    ],
)
def test_what_is_no_configuration(root, into, config, text):
    with pytest.raises(InvalidRequest, match=text):
        stage(root, "m", config, {"1/model.onnx": b""}, into)


@pytest.mark.parametrize(
    ("paths", "text"),
    [
        (["1/a", "1/a/b"], "parameter 'file:1/a/b': a file and a directory of one name"),
        (["1/a/b", "1/a"], "parameter 'file:1/a': a file and a directory of one name"),
        (["1/" + "a" * 300], "parameter 'file:1/a*': the name is too long"),
        (["1/" + "a/" * 5000 + "b"], "parameter 'file:1/[a/]*': the name is too long"),
    ],
)
def test_files_that_cannot_be_laid_out(root, into, paths, text):
    with pytest.raises(InvalidRequest, match=text):
        stage(root, "m", CONFIG, dict.fromkeys(paths, b""), into)
