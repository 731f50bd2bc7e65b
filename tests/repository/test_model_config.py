import pytest

from headrace.errors import ConfigError
from headrace.repository.model_config import InputCheck, ModelConfig, load_model_config


@pytest.fixture
def load(tmp_path):
    def load(text):
        file = tmp_path / "model.toml"
        file.write_text(text)
        return load_model_config(file)

    return load


def test_an_empty_file_means_the_defaults(load):
    config = load("")
    assert config == ModelConfig()
    assert (config.max_batch, config.backend, config.versions) == (None, "onnxruntime", "latest:1")
    assert config.batching.policy == "slot"
    assert config.slo_ms == 0


def test_everything_at_once(load):
    config = load("""
        max_batch = 8
        slo_ms = 50
        versions = [1, 3]
        warmup = [1, 8]
        split_oversize = false
        priority_levels = 3
        default_priority = 2
        backend_options = { arena = false }
        [batching]
        policy = "delay"
        delay_us = 500
        [queue]
        max_rows = 16
        [inputs."image/raw"]
        finite = true
        min = 0
        max = 16.0
    """)
    assert (config.max_batch, config.slo_ms, config.versions, config.warmup) == (8, 50.0, (1, 3), (1, 8))
    assert config.inputs == {"image/raw": InputCheck(finite=True, min=0.0, max=16.0)}
    assert (config.batching.policy, config.batching.delay_us, config.queue.max_rows) == ("delay", 500, 16)
    assert (config.backend_options, config.default_level) == ({"arena": False}, 2)


def test_requests_without_priority_are_the_least_urgent_by_default(load):
    assert load("priority_levels = 3").default_level == 3
    assert load("").default_level == 1


@pytest.mark.parametrize("versions", ['"all"', '"latest:1"', '"latest:12"', "[2]"])
def test_version_policies(load, versions):
    load(f"versions = {versions}")


@pytest.mark.parametrize(
    "versions", ['"latest"', '"latest:0"', '"latest:-1"', '"2"', "[]", "[0]", "[true]", "2", '["1"]']
)
def test_bad_version_policies(load, versions):
    with pytest.raises(ConfigError, match=r'expected "all" or "latest:N" or a list \(each an integer of at least 1\)'):
        load(f"versions = {versions}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_batch = -1", "max_batch = -1 (in {file}): expected an integer from 0 to 1048576"),
        ("instances = true", "instances = true (in {file}): expected an integer from 1 to 1024"),
        ("slo_ms = inf", "slo_ms = Infinity (in {file}): expected a number of at least 0"),
        ("warmup = 3", "warmup = 3 (in {file}): expected true or false or a list (each an integer of at least 1)"),
        ("batching.quantile = 1.0", "batching.quantile = 1.0 (in {file}): expected a number above 0 and below 1"),
        ("max_bach = 1", "unknown key 'max_bach' (in {file}); did you mean 'max_batch'?"),
        ("inputs.x.mim = 1", "unknown key 'inputs.x.mim' (in {file}); did you mean 'min'?"),
        ("inputs.x = {{min = 2, max = 1}}", "inputs.x: min = 2 is above max = 1 (in {file})"),
        ("default_priority = 2", "default_priority = 2 is above priority_levels = 1 (in {file})"),
    ],
)
def test_problems_name_key_value_allowed_and_file(load, tmp_path, text, message):
    with pytest.raises(ConfigError) as error:
        load(text.format())
    assert str(error.value) == message.format(file=tmp_path / "model.toml")
