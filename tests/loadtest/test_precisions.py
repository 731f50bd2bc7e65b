"""How the models of models/ get their lower precisions, and how the cards tell of them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from headrace.quantize.report import read_report
from precisions import __main__ as command
from precisions import build, card, lines, texts
from precisions.subject import FP32, Data, Precision, Subject, in_parts
from precisions.tables import DIGITS

MODELS = Path(__file__).parents[2] / "models"


# --- the data ---------------------------------------------------------------------------------------------------------


def test_docstrings_are_split_into_summary_and_paragraph(tmp_path, monkeypatch):
    (tmp_path / "somewhere" / "tests").mkdir(parents=True)
    (tmp_path / "somewhere" / "tests" / "a.py").write_text('def f():\n    """Not this.\n\n    A test."""\n')
    (tmp_path / "somewhere" / "b.py").write_text(
        'raise SystemExit  # it is not run\n'
        'def f():\n    """One\n    line.\n\n    .. note:: no prose\n\n    What\n    follows.\n\n'
        '    Parameters\n    ----------\n    x\n    """\n'
        'def g():\n    """One line.\n\n    The same summary again."""\n'
        'def h():\n    """No more than this."""\n'
        'def _i():\n    """Private.\n\n    Not said."""\n'
    )  # fmt: skip
    (tmp_path / "somewhere" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert list(texts.documented("somewhere")) == [("One line.", "What follows.")]
    with pytest.raises(ModuleNotFoundError):
        next(texts.documented("nowhere_at_all"))


def test_lines_are_drawn_the_same_each_time_and_none_twice():
    (first, written), (again, _) = lines.drawn("sklearn", 5, seed=2), lines.drawn("sklearn", 5, seed=2)
    assert (first.shape, first.dtype) == ((5, 3, 48, 512), np.float32)
    assert len(set(written)) == 5
    np.testing.assert_array_equal(first, again)
    assert np.abs(first).max() <= 1
    assert first.std(axis=(1, 2, 3)).min() > 0.05
    assert lines.draw("m" * 60, np.random.default_rng(0)) is None


def test_distance_is_that_of_levenshtein():
    for one, other, expected in (("kitten", "sitting", 3), ("", "abc", 3), ("abc", "", 3), ("same", "same", 0)):
        assert lines.distance(one, other) == lines.distance(other, one) == expected


def test_rows_are_run_in_parts():
    sizes = []

    def run(feeds):
        sizes.append(len(feeds["x"]))
        return [feeds["x"] * 2]

    (doubled,) = in_parts(run, 4)({"x": np.arange(10)})
    np.testing.assert_array_equal(doubled, np.arange(10) * 2)
    assert sizes == [4, 4, 2]


# --- building ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def digits(tmp_path):
    """A copy of the model without its lower precisions."""
    directory = tmp_path / "digits"
    shutil.copytree(MODELS / "digits", directory, ignore=shutil.ignore_patterns("2", "3", "__pycache__"))
    metrics = json.loads((directory / "metrics.json").read_text())
    del metrics["precisions"]
    (directory / "metrics.json").write_text(json.dumps(metrics))
    return directory


def test_digits_is_made_and_loses_less_than_a_hundredth(digits, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("sys.argv", ["precisions", "digits", "--repository", str(tmp_path), "--timing", "0"])
    assert command.main() == 0, capfd.readouterr().err
    metrics = json.loads((digits / "metrics.json").read_text())
    told = metrics["precisions"]
    assert {name: one["version"] for name, one in told.items()} == {"fp32": 1, "fp16": 2, "int8": 3}
    assert told["fp32"]["accuracy"] == pytest.approx(metrics["held_out_accuracy"], abs=1e-6)
    assert min(one["accuracy"] for one in told.values()) >= 0.99 * told["fp32"]["accuracy"]
    assert told["int8"]["bytes"] < 0.4 * told["fp32"]["bytes"]
    assert told["fp16"]["bytes"] < 0.6 * told["fp32"]["bytes"]
    report = read_report((digits / "3" / "quantization.json").read_bytes())
    assert (report.recipe, report.measure.labelled, report.measure.rows) == ("int8", True, 360)
    assert report.lineage.calibration_rows == 512
    assert card.table(told) in (digits / "README.md").read_text()


def test_a_version_below_the_gate_is_not_there_any_more(digits, capfd):
    (digits / "3").mkdir()
    (digits / "3" / "model.onnx").write_bytes((digits / "1" / "model.onnx").read_bytes())
    before = (digits / "metrics.json").read_text()

    def wrong(directory):
        data = DIGITS.data(directory)
        return Data(data.calibration, {**data.evaluation, "labels": data.evaluation["labels"] * 0}, "labels", None)

    arguments = ("--recipe", "int8", "--per-tensor", "--min-relative-accuracy", "1", "--no-search")
    spoiled = Precision("int8", 3, (*arguments, "--calibration-method", "percentile", "--percentile", "51"))
    with pytest.raises(build.NotMade, match="digits: no version 3 in int8"):
        build.build(Subject("digits", (spoiled,), wrong), digits, 0)
    assert not (digits / "3").exists()
    assert (digits / "metrics.json").read_text() == before
    assert "below the gate" in capfd.readouterr().err


def test_a_model_that_is_not_built_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["precisions", "minilm", "--repository", str(tmp_path)])
    assert command.main() == 1
    assert "minilm: not built yet; `make models` builds it" in capsys.readouterr().err


# --- the cards --------------------------------------------------------------------------------------------------------

TOLD = {
    "fp32": {"version": 1, "bytes": 115_876, "accuracy": 0.98},
    "int8": {"version": 2, "bytes": 2_300_000, "accuracy": 0.97, "speed": {"1": 0.9, "2": 1.1, "64": 1.5}},
}


def test_the_table_of_a_card():
    assert card.table(TOLD).splitlines() == [
        "|  | version | size | held-out accuracy | rows/s, batch of 1 | rows/s, batch of 64 |",
        "| --- | --- | --- | --- | --- | --- |",
        "| FP32 | 1 | 116 kB | 0.9800 | 1 | 1 |",
        "| INT8 | 2 | 2.3 MB | 0.9700 | 0.90 | 1.50 |",
    ]


def test_the_table_takes_the_place_of_the_last_one():
    empty = f"before\n{card.BEGIN}\n{card.END}\nafter\n"
    once = card.with_table(empty, TOLD)
    assert once.startswith(f"before\n{card.BEGIN}\n|  |")
    assert once.endswith(f"|\n{card.END}\nafter\n")
    assert card.with_table(once, TOLD) == once
    with pytest.raises(ValueError, match="no place for the table"):
        card.with_table("nothing\n", TOLD)


@pytest.mark.parametrize("model", command.SUBJECTS)
def test_the_card_has_the_figures_of_the_metrics(model):
    told = json.loads((MODELS / model / "metrics.json").read_text())["precisions"]
    assert card.table(told) in (MODELS / model / "README.md").read_text()


# --- the versions that are there --------------------------------------------------------------------------------------


@pytest.mark.timeout(900)
@pytest.mark.parametrize("model", command.SUBJECTS)
def test_the_metrics_are_what_is_measured_again(model):
    """Of the committed versions, and of the others where `make models` has run."""
    subject, directory = command.SUBJECTS[model], MODELS / model
    wanted = [FP32, *subject.precisions]
    if not all((directory / str(one.version) / "model.onnx").is_file() for one in wanted):
        pytest.skip("not built: make models")
    told = json.loads((directory / "metrics.json").read_text())["precisions"]
    found = build.measure(subject, directory, subject.data(directory))
    assert list(found) == list(told) == [one.name for one in wanted]
    for name, measured in found.items():
        assert measured["version"] == told[name]["version"]
        for measure in measured.keys() - {"version", "bytes", "speed"}:
            assert measured[measure] == pytest.approx(told[name][measure], abs=0.012), (name, measure)


@pytest.mark.parametrize("model", ["digits", "cytology"])
def test_int8_is_within_a_hundredth_of_fp32(model):
    subject, directory = command.SUBJECTS[model], MODELS / model
    found = build.measure(subject, directory, subject.data(directory))
    assert found["int8"]["accuracy"] >= 0.99 * found["fp32"]["accuracy"]
