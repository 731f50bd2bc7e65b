import pytest

from headrace.errors import ConfigError
from headrace.messages import Signature, TensorSpec
from headrace.repository.model_config import load_model_config
from headrace.repository.toml_text import settings_text

SIGNATURE = Signature(
    (TensorSpec("x", "FP32", (4,)), TensorSpec("image", "FP32", (3, 32, 32)), TensorSpec("ids", "INT64", (-1,))),
    (TensorSpec("scores", "FP32", (10,)),),
    8,
)


@pytest.fixture
def load(tmp_path):
    def load(text):
        (tmp_path / "model.toml").write_text(text)
        return load_model_config(tmp_path / "model.toml")

    return load


def test_nothing_is_watched_unless_asked_for(load):
    assert load("").drift is None
    assert load("[drift]").drift.watches(SIGNATURE) == []


def test_an_empty_table_is_enough(load):
    drift = load("[drift.inputs.x]\n[drift.inputs.image]\n[drift.inputs.ids]\n[drift.outputs.scores]\n").drift
    found = {watch.key: watch.kind for watch in drift.watches(SIGNATURE)}
    assert found == {
        "inputs.x": "numeric", "inputs.image": "image", "inputs.ids": "tokens", "outputs.scores": "numeric"
    }  # fmt: skip
    assert (drift.alarms.window_ms, drift.alarms.keep, drift.alarms.quiet_days) == (600_000, 16, 30)


def test_everything_at_once(load):
    drift = load("""
        [drift]
        window_s = 60
        keep_windows = 64
        quiet_days = 7
        min_shift = 0.1
        min_share = 0.02
        min_rows = 1000
        clear_after = 5
        design_effect = 4
        [drift.inputs]
        x = { kind = "numeric", features = [0, 3], bins = 10 }
        image = { kind = "image", layout = "NCHW" }
        ids = { pad = 0, salted = true }
        [drift.outputs.scores]
        kind = "classes"
        logits = true
    """).drift
    alarms = drift.alarms
    assert (alarms.window_ms, alarms.keep, alarms.quiet_days, alarms.min_shift) == (60_000, 64, 7, 0.1)
    assert (alarms.min_share, alarms.min_rows, alarms.clear_after, alarms.design_effect) == (0.02, 1000, 5, 4)
    x, image, ids, scores = drift.watches(SIGNATURE)
    assert (x.columns, x.bins) == ((0, 3), 10)
    assert (image.layout, image.channels) == ("NCHW", 3)
    assert (ids.pad, ids.salted) == (0, True)
    assert (scores.kind, scores.logits, scores.output) == ("classes", True, True)


def test_it_is_written_as_it_is_read(load):
    config = load(
        '[drift]\nwindow_s = 60\n[drift.inputs.x]\nfeatures = [1]\n[drift.outputs.scores]\nkind = "classes"\n'
    )
    assert load(settings_text(config)) == config


def test_the_format_of_an_input_is_the_layout_of_its_image(load):
    signature = Signature((TensorSpec("image", "FP32", (3, 4, 3)),), (), 8)
    (watch,) = load("[drift.inputs.image]").drift.watches(signature, {"image": "NCHW"})
    assert (watch.kind, watch.layout) == ("image", "NCHW")
    (watch,) = load('[drift.inputs.image]\nlayout = "NHWC"').drift.watches(signature, {"image": "NCHW"})
    assert (watch.kind, watch.layout) == ("image", "NHWC")
    (watch,) = load('[drift.inputs.image]\nkind = "numeric"').drift.watches(signature, {"image": "NCHW"})
    assert watch.kind == "numeric"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[drift]\nwindow_s = 1", "drift.window_s = 1 (in FILE): expected an integer from 10 to 604800"),
        ("[drift]\nwindows = 1", "unknown key 'drift.windows' (in FILE); did you mean 'window_s'?"),
        ('[drift.inputs.x]\nkind = "number"', 'drift.inputs.x.kind = "number" (in FILE): expected'),
        ("[drift.inputs.x]\nbins = 2", "drift.inputs.x.bins = 2 (in FILE): expected an integer from 4 to 64"),
        ("[drift.inputs.x]\nfeatures = []", "drift.inputs.x.features = [] (in FILE): expected"),
        ("[drift.inputs.x]\nfeatures = [-1]", "drift.inputs.x.features = [-1] (in FILE): expected"),
        (
            '[drift.inputs.x]\n[[ensemble.steps]]\nmodel = "a"\noutputs = {y = "y"}',
            "an ensemble has no [drift] of its own",
        ),
    ],
)
def test_problems_name_key_value_allowed_and_file(load, tmp_path, text, message):
    with pytest.raises(ConfigError) as caught:
        load(text)
    assert str(caught.value).splitlines()[0].startswith(message.replace("FILE", str(tmp_path / "model.toml")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("inputs.x]\nlogits = true", "inputs.x: logits is for kind classes, and x is watched as numeric"),
        ("inputs.x]\npad = 0", "inputs.x: pad is for kind tokens, and x is watched as numeric"),
        ("inputs.ids]\nprojections = 4", "inputs.ids: projections is for kind embedding, and ids is watched as tokens"),
        ('inputs.x]\nlayout = "NHWC"', "inputs.x: layout is for kind image, and x is watched as numeric"),
        (
            "outputs.label]\nlogits = true",
            "outputs.label: logits is for scores of classes, and label holds the class it",
        ),
    ],
)
def test_a_key_that_the_kind_has_no_use_for_is_refused(load, text, message):
    signature = Signature(SIGNATURE.inputs, (TensorSpec("label", "INT64", (1,)),), 8)
    with pytest.raises(ConfigError) as caught:
        load(f"[drift.{text}").drift.watches(signature)
    assert str(caught.value).startswith(f"drift.{message}")
    load("[drift.inputs.x]\nlogits = false").drift.watches(signature)


def test_problems_with_the_model_are_all_told(load):
    drift = load(
        '[drift.inputs.y]\n[drift.inputs.ids]\nkind = "numeric"\n[drift.outputs.scores]\nfeatures = [10]'
    ).drift
    with pytest.raises(ConfigError) as caught:
        drift.watches(SIGNATURE)
    assert str(caught.value).splitlines() == [
        "drift.inputs.y: the model has no such input, but ids, image, x",
        "drift.inputs.ids: ids is [-1], expected fixed dimensions for kind numeric; kind summary takes any",
        "drift.outputs.scores: scores has no element 10, expected 0 to 9 of [10]",
    ]
