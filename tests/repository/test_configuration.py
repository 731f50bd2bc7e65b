import pytest

from headrace.errors import ConfigError
from headrace.repository.configuration import read_configuration
from headrace.repository.discovery import Broken, scan
from headrace.repository.model_config import ModelConfig


@pytest.fixture
def model(tmp_path):
    directory = tmp_path / "m"
    (directory / "1").mkdir(parents=True)
    (directory / "1" / "model.onnx").touch()
    return directory


def test_without_a_file_the_defaults_hold(model):
    found = read_configuration(model)
    assert (found.settings, found.file, found.stated, found.warnings) == (ModelConfig(), "", None, ())


def test_model_toml(model):
    (model / "model.toml").write_text("max_batch = 3")
    found = read_configuration(model)
    assert (found.settings, found.file, found.stated) == (ModelConfig(max_batch=3), "model.toml", None)


def test_config_pbtxt(model):
    (model / "config.pbtxt").write_text('max_batch_size: 3 runtime: "x"')
    found = read_configuration(model)
    assert (found.settings, found.file) == (ModelConfig(max_batch=3, unit_dims=True), "config.pbtxt")
    assert (found.stated.max_batch_size, found.stated.runtime) == (3, "x")
    assert found.warnings == ("config.pbtxt: runtime: ignored: it names a library of Triton's",)


def test_model_toml_is_read_where_there_are_both(model):
    (model / "model.toml").write_text("max_batch = 3")
    (model / "config.pbtxt").write_text("this is not even text format")
    found = read_configuration(model)
    assert (found.settings.max_batch, found.stated) == (3, None)
    assert found.warnings == ("config.pbtxt is not read: there is a model.toml",)


@pytest.mark.parametrize("name", ["model.toml", "config.pbtxt"])
def test_a_file_that_is_a_link_to_nowhere_does_not_stand_for_the_defaults(model, name):
    (model / name).symlink_to(model / "nowhere")
    with pytest.raises(ConfigError, match=f"{name}: cannot be read: No such file"):
        read_configuration(model)


def test_the_backend_is_told_by_the_files_of_a_version(model):
    (model / "config.pbtxt").touch()
    assert read_configuration(model).settings.backend == "onnxruntime"
    (model / "1" / "model.onnx").rename(model / "1" / "model.plan")
    assert read_configuration(model).settings.backend == "tensorrt"


def test_a_change_of_a_file_that_is_named_is_a_change_of_the_model(model, tmp_path):
    (model / "model.toml").write_text(
        'outputs.y.labels = "l.txt"\n[[warmup_data]]\ninputs.x = {file = "x"}\ninputs.z = {file = "absent"}\n'
        '[[sequence.state]]\ninput = "s"\noutput = "t"\ninitial = "initial_state/s"\n'
        '[[sequence.state]]\ninput = "u"\noutput = "v"'
    )
    (model / "l.txt").write_text("cat")
    (model / "warmup").mkdir()
    (model / "warmup" / "x").write_text("1")
    (model / "initial_state").mkdir()
    (model / "initial_state" / "s").write_text("1")
    before = scan(tmp_path)
    assert scan(tmp_path) == before
    for file in ("l.txt", "warmup/x", "initial_state/s"):
        (model / file).write_text("something longer")
        after = scan(tmp_path)
        assert after != before
        before = after


def test_a_repository_of_tritons_is_found(model, tmp_path):
    (model / "config.pbtxt").write_text("version_policy { specific { versions: [ 1, 2 ] } } max_batch_size: 3")
    broken = tmp_path / "broken"
    (broken / "1").mkdir(parents=True)
    (broken / "config.pbtxt").write_text("max_batch_sze: 3")
    failed, found, absent = scan(tmp_path)
    assert (failed.name, failed.version) == ("broken", None)
    assert failed.reason.startswith(f'{broken / "config.pbtxt"}:1:1: Message type "inference.ModelConfig" has no field')
    assert (found.config.max_batch, found.configuration.stated.max_batch_size) == (3, 3)
    assert absent == Broken("m", 2, f"config.pbtxt asks for version 2, but there is no {model / '2'}")
