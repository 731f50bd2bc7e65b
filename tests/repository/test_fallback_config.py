import itertools

import pytest

from headrace.errors import ConfigError
from headrace.repository.fallback_config import DEFAULT_TOLERANCES, FallbackConfig, ToleranceConfig
from headrace.repository.model_config import ModelConfig, load_model_config


@pytest.fixture
def load(tmp_path):
    def load(text):
        file = tmp_path / "model.toml"
        file.write_text(text)
        return load_model_config(file)

    return load


def test_a_name_is_a_chain_of_one(load):
    config = load('backend = "onnxruntime"\nbackend_options = { arena = false }')
    assert config.chain == ("onnxruntime",)
    assert config.options_of("onnxruntime") == {"arena": False}
    assert not config.probes
    assert config.fallback == FallbackConfig()


def test_a_list_has_options_by_name(load):
    config = load("""
        backend = ["mine.gpu:Backend", "onnxruntime-cpu"]
        [backend_options."mine.gpu:Backend"]
        file = "half.onnx"
        [backend_options.onnxruntime-cpu]
        arena = false
        [fallback]
        at_run_time = false
        rebuild_first_s = 0.5
        rebuild_max_s = 8
        tolerance.FP32 = { relative = 0.001 }
        tolerance.quantized = { absolute = 1.0 }
    """)
    assert config.chain == ("mine.gpu:Backend", "onnxruntime-cpu")
    assert config.options_of("mine.gpu:Backend") == {"file": "half.onnx"}
    assert config.options_of("onnxruntime-cpu") == {"arena": False}
    assert config.probes
    fallback = config.fallback
    assert (fallback.at_run_time, fallback.rebuild_first_s, fallback.rebuild_max_s) == (False, 0.5, 8.0)
    assert fallback.tolerance_of("FP32", quantized=False) == ToleranceConfig(relative=0.001)
    assert fallback.tolerance_of("FP32", quantized=True) == ToleranceConfig(absolute=1.0)
    assert fallback.tolerance_of("FP16", quantized=False) == DEFAULT_TOLERANCES["FP16"]


def test_a_backend_without_options_has_none(load):
    config = load('backend = ["a.b:c", "onnxruntime-cpu"]\n[backend_options.onnxruntime-cpu]\narena = false')
    assert config.options_of("a.b:c") == {}


def test_integers_are_equal_unless_something_else_is_said():
    exact = ToleranceConfig()
    config = FallbackConfig()
    assert [config.tolerance_of(name, quantized=True) for name in ("INT64", "BOOL", "BYTES")] == [exact] * 3
    assert FallbackConfig(tolerance={"INT64": ToleranceConfig(absolute=1)}).tolerance_of(
        "INT64", quantized=True
    ) == ToleranceConfig(absolute=1)


def test_less_exact_types_are_allowed_more():
    order = ["FP64", "FP32", "FP16", "BF16"]
    for finer, coarser in itertools.pairwise(order):
        assert DEFAULT_TOLERANCES[finer].relative < DEFAULT_TOLERANCES[coarser].relative


@pytest.mark.parametrize(
    ("own", "chain", "probes"), [(None, 1, False), (None, 2, True), (True, 1, True), (False, 2, False)]
)
def test_whether_there_is_a_probe(own, chain, probes):
    backend = "onnxruntime" if chain == 1 else ("a.b:c", "onnxruntime-cpu")
    assert ModelConfig(backend=backend, fallback=FallbackConfig(probe=own)).probes is probes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("backend = []", "backend"),
        ('backend = ["a", "b", "a"]', "backend names 'a' twice"),
        (
            'backend = ["a"]\nbackend_options = { arena = false }',
            "backend_options.arena is for none of backend = ['a']",
        ),
        ('backend = ["arena"]\nbackend_options = { arena = false }', "backend_options.arena = False is no table"),
        ("[fallback]\nrebuild_first_s = 5\nrebuild_max_s = 4", "rebuild_first_s = 5 is above rebuild_max_s = 4"),
        ("[fallback]\nrebuild_first_s = 0", "rebuild_first_s"),
        ("[fallback]\ntolerance.FP23 = { absolute = 1.0 }", "'FP23' has no tolerance; did you mean 'FP32'"),
        ("[fallback]\ntolerance.BYTES = { absolute = 1.0 }", "'BYTES' has no tolerance"),
        ("[fallback]\ntolerance.FP32 = { relative = -1.0 }", "relative"),
        ("[fallback]\nprobes = true", "probes"),
    ],
)
def test_what_is_wrong_is_said(load, text, message):
    with pytest.raises(ConfigError) as raised:
        load(text)
    assert message in str(raised.value)
