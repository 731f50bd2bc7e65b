import pytest

from headrace.errors import ConfigError
from headrace.messages import Signature, TensorSpec
from headrace.repository.model_config import load_model_config
from headrace.repository.toml_text import settings_text


def signature(*outputs):
    return Signature((TensorSpec("x", "FP32", (4,)),), outputs, 8)


SCORES = TensorSpec("scores", "FP32", (10,))
LABELLED = TensorSpec("named", "FP32", (3,), ("a", "b", "c"))
CLASS = TensorSpec("class", "INT64", (1,))
VALUE = TensorSpec("value", "FP32", (1,))
MAP = TensorSpec("map", "FP16", (-1, 4))
FLAGS = TensorSpec("flags", "BOOL", (4,))
TEXT = TensorSpec("text", "BYTES", (1,))


@pytest.fixture
def load(tmp_path):
    def load(text):
        (tmp_path / "model.toml").write_text(text)
        return load_model_config(tmp_path / "model.toml")

    return load


def test_defaults(load):
    assert load("").guard is None
    guard = load("[guard]\nreference = 1").guard
    assert (guard.reference, guard.share, guard.cpu_budget, guard.action) == (1, 0.01, 0.03, "fall_back")
    found = guard.settings(signature(LABELLED))
    assert (found.output, found.kind, found.limit, found.alpha, found.max_mean_error) == (
        "named", "classes", 0.99, 0.01, None
    )  # fmt: skip


def test_everything_at_once(load):
    config = load("""
        [guard]
        reference = 3
        share = 0.5
        cpu_budget = 0.1
        output = "scores"
        kind = "values"
        tolerance = 0.2
        limit = 0.9
        max_mean_error = 0.1
        alpha = 0.05
        action = "report"
    """)
    found = config.guard.settings(signature(CLASS, SCORES))
    assert (found.output, found.kind, found.tolerance, found.limit) == ("scores", "values", 0.2, 0.9)
    assert (found.max_mean_error, found.alpha) == (0.1, 0.05)
    assert load(settings_text(config)) == config


@pytest.mark.parametrize(
    ("outputs", "name", "kind"),
    [
        ((VALUE, LABELLED), "named", "classes"),
        ((CLASS, SCORES), "class", "equal"),
        ((VALUE, SCORES), "value", "values"),
        ((MAP,), "map", "values"),
        ((TEXT,), "text", "equal"),
    ],
)
def test_what_decides_by_default(load, outputs, name, kind):
    found = load("[guard]\nreference = 1").guard.settings(signature(*outputs))
    assert (found.output, found.kind) == (name, kind)


@pytest.mark.parametrize(
    ("text", "outputs", "message"),
    [
        (
            "",
            (SCORES,),
            "guard.kind is needed: output 'scores', FP32 [10] without labels, may be scores (\"classes\") or a vector "
            '("values")',
        ),
        ('output = "y"', (SCORES, CLASS), 'guard.output = "y": the model has no such output, but scores, class'),
        ('kind = "values"', (TEXT,), 'guard.kind = "values": output \'text\' is BYTES, expected "equal"'),
        (
            'output = "class"\nkind = "values"',
            (SCORES, CLASS),
            "guard.kind = \"values\": output 'class' is INT64, expected floats: of integers, such as the number of a "
            'class, a small difference says nothing; use "equal", or another guard.output',
        ),
        ('kind = "values"', (FLAGS,), "guard.kind = \"values\": output 'flags' is BOOL, expected floats"),
        (
            'kind = "classes"',
            (VALUE,),
            "guard.kind = \"classes\": output 'value' is [1], expected a last dimension of several classes",
        ),
    ],
)
def test_what_does_not_fit_the_model(load, text, outputs, message):
    with pytest.raises(ConfigError) as caught:
        load(f"[guard]\nreference = 1\n{text}").guard.settings(signature(*outputs))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[guard]", "guard.reference"),
        ("[guard]\nreference = 0", "guard.reference = 0 (in FILE): expected an integer of at least 1"),
        ("[guard]\nreference = 1\nshare = 0.0", "guard.share = 0.0 (in FILE): expected"),
        ("[guard]\nreference = 1\nlimit = 1.0", "guard.limit = 1.0 (in FILE): expected"),
        ("[guard]\nreference = 1\nshares = 0.1", "unknown key 'guard.shares' (in FILE); did you mean 'share'?"),
        ('[guard]\nreference = 1\naction = "stop"', 'guard.action = "stop" (in FILE): expected'),
        (
            '[guard]\nreference = 1\n[[sequence.state]]\ninput = "a"\noutput = "b"',
            "[guard] is not for a model with [sequence]",
        ),
        (
            '[guard]\nreference = 1\n[[ensemble.steps]]\nmodel = "a"\noutputs = {y = "y"}',
            "an ensemble has no [guard] of its own",
        ),
    ],
)
def test_problems_name_key_value_allowed_and_file(load, tmp_path, text, message):
    with pytest.raises(ConfigError) as caught:
        load(text)
    assert message.replace("FILE", str(tmp_path / "model.toml")) in str(caught.value)
