import pytest

from headrace.errors import ConfigError
from headrace.repository.model_config import load_model_config

WHOLE = """
[sequence]
strategy = "direct"
idle_timeout_ms = 500
max_candidate_sequences = 7
max_state_bytes = 1000
controls.start = {input = "START", false_true = [0, 1]}
controls.end = {input = "END", false_true = [false, true]}
controls.ready.input = "READY"
controls.corrid.input = "CORRID"
[[sequence.state]]
input = "before"
output = "after"
initial = "initial_state/zeros"
initial_dims = [2, 0]
[[sequence.state]]
input = "h"
output = "h_next"
"""


@pytest.fixture
def load(tmp_path):
    def load(text):
        (tmp_path / "model.toml").write_text(text)
        return load_model_config(tmp_path / "model.toml")

    return load


def test_without_the_table_there_are_no_sequences(load):
    assert load("").sequence is None


def test_all_keys(load):
    config = load(WHOLE).sequence
    assert (config.strategy, config.idle_timeout_ms, config.max_candidate_sequences, config.max_state_bytes) == (
        "direct", 500, 7, 1000,
    )  # fmt: skip
    controls = config.controls
    assert (controls.start.input, controls.start.false_true) == ("START", (0, 1))
    assert (controls.end.input, controls.end.false_true) == ("END", (False, True))
    assert (controls.ready.input, controls.ready.false_true) == ("READY", (False, True))
    assert controls.corrid.input == "CORRID"
    first, second = config.state
    assert (first.input, first.output, first.initial, first.initial_dims) == (
        "before", "after", "initial_state/zeros", (2, 0),
    )  # fmt: skip
    assert (second.initial, second.initial_dims) == ("zero", None)


def test_an_empty_table_is_one(load):
    config = load("[sequence]").sequence
    assert (config.strategy, config.idle_timeout_ms, config.max_candidate_sequences) == ("oldest", 1000, 1024)
    assert (config.state, config.controls.start, config.controls.corrid) == ((), None, None)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('[sequence]\nstrategy = "newest"', 'sequence.strategy = "newest" (in {}): expected one of "oldest", "direct"'),
        ("[sequence]\nstrategi = 1", "unknown key 'sequence.strategi' (in {}); did you mean 'strategy'?"),
        ("[sequence]\nidle_timeout_ms = 0", "sequence.idle_timeout_ms = 0 (in {}): expected a number above 0"),
        (
            "[sequence]\ncontrols.start = {input = 'x', false_true = [1]}",
            "sequence.controls.start.false_true = [1] (in {}): expected a list of two values",
        ),
        ("[sequence]\ncontrols.begin.input = 'x'", "unknown key 'sequence.controls.begin' (in {}); known:"),
        ("sequence = 3", "sequence = 3 (in {}): expected a table"),
        ("response_cache = true\n[sequence]", "with [sequence] a reply depends on more than the inputs"),
        ("[sequence]\n[inputs.x]\npad = 0.0", "buckets and pad are not for a model with [sequence]"),
        (
            "[sequence]\n[[ensemble.steps]]\nmodel = 'a'\noutputs = {y = 'y'}",
            "an ensemble has no [sequence] of its own",
        ),
    ],
)
def test_bad_values(load, tmp_path, text, error):
    with pytest.raises(ConfigError) as caught:
        load(text)
    assert error.format(tmp_path / "model.toml") in str(caught.value)
