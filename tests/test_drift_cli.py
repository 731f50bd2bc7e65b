import csv
import json
import subprocess
import sys

import numpy as np
import pytest
from drift.conftest import SALT, WINDOW_MS, watch
from e2e.onnx_models import identity, scale, write
from e2e.server_process import plain_environment

from headrace.cli import main
from headrace.drift.alarms import AlarmSettings
from headrace.drift.errors import DriftError
from headrace.drift.monitor import Monitor
from headrace.drift.reference import read_reference
from headrace.drift.report import DriftReport
from headrace.repository.schema_config import read_schema

WATCHED = "[drift]\nwindow_s = 60\nquiet_days = 1\n[drift.inputs.x]\n"


@pytest.fixture
def version(tmp_path):
    """A version of a model with an input x [N, 3]."""
    write(tmp_path, "m", scale(2, "N", 3))
    (tmp_path / "m" / "model.toml").write_text(WATCHED)
    return tmp_path / "m" / "1"


@pytest.fixture
def data(tmp_path, random):
    """Training data, data of today that are no different, and others that are."""
    rows = random.normal(size=(4000, 3)).astype(np.float32)
    np.save(tmp_path / "train.npy", rows[:3000])
    np.save(tmp_path / "today.npy", rows[3000:])
    np.save(tmp_path / "shifted.npy", rows[3000:] + np.array([0, 0, 0.7]))
    return tmp_path


@pytest.fixture
def random():
    return np.random.default_rng(3)


def drift(*arguments):
    return main(["drift", *map(str, arguments)])


def recorded(path, random, shift=0.0, windows=(0, 1)):
    """What a server without a reference has recorded in some windows."""
    monitor = Monitor("m", "1", [watch()], AlarmSettings(WINDOW_MS, 16), SALT)
    for at in windows:
        monitor.count(at * WINDOW_MS, {"inputs.x": random.normal(size=(1000, 3)) + np.array([0, 0, shift])}, 3000)
    path.write_bytes(monitor.pack())
    return monitor


def test_fit_of_training_data(version, data, capsys):
    assert drift("fit", version, "--input", f"x={data / 'train.npy'}") == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[0] == "inputs.x: numeric, 3,000 rows"
    assert lines[1].startswith("  0: ")
    assert lines[1].endswith(", 20 bins")
    assert lines[-1] == f"{version / 'drift.json'}: written"
    assert said.err == ""
    reference = read_reference(version / "drift.json")
    assert (reference.source, reference.rows) == ("train.npy", 3000)


def test_infinite_training_data_are_told_and_in_no_mean(version, data, capsys):
    rows = np.load(data / "train.npy")
    rows[7, 1] = np.inf
    np.save(data / "train.npy", rows)
    assert drift("fit", version, "--input", f"x={data / 'train.npy'}") == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("  1: "))
    assert line.endswith("20 bins, 1 infinite, which mean and deviation leave out")
    moments = read_reference(version / "drift.json").tensors["inputs.x"][1].moments
    assert moments.deviation == pytest.approx([1, 1, 1], abs=0.05)
    assert drift("report", version, "--input", f"x={data / 'train.npy'}", "--json") == 0
    found = DriftReport.model_validate_json(capsys.readouterr().out)
    (one,) = [one for one in found.features if one.feature == "1"]
    assert one.window.infinite == one.reference.infinite == pytest.approx(1 / 3000)
    assert one.window.deviation == pytest.approx(1, abs=0.05)


def test_fit_writes_a_schema_that_the_data_keep(version, data, capsys):
    assert drift("fit", version, "--input", f"x={data / 'train.npy'}", "--schema") == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{version / 'schema.toml'}: written"
    schema = read_schema(version)
    rules = schema.inputs["x"]
    train = np.load(data / "train.npy")
    width = train.max(axis=0) - train.min(axis=0)
    np.testing.assert_allclose(rules.max, train.max(axis=0) + 0.1 * width, rtol=1e-5)
    assert (schema.source, rules.finite, rules.policy) == (
        "train.npy",
        True,
        {"finite": "count", "range": "count"},
    )
    (version / "drift.json").unlink()
    assert drift("fit", version, "--input", f"x={data / 'train.npy'}", "--schema") == 1
    assert "schema.toml: is there already; --force replaces it" in capsys.readouterr().err
    assert not (version / "drift.json").exists()
    assert drift("fit", version, "--windows", data / "w", "--schema", "--force") == 2
    assert "--schema needs data of an input" in capsys.readouterr().err


def test_a_schema_says_which_of_its_rules_model_toml_has(version, data, capsys):
    (version.parent / "model.toml").write_text(WATCHED + "[inputs.x]\nmax = 1e6\nmax_missing = 0.5\n")
    assert drift("fit", version, "--input", f"x={data / 'train.npy'}", "--schema") == 0
    assert capsys.readouterr().err == "headrace: schema.toml: range of x without effect: model.toml has its own\n"


def test_a_gap_in_a_column_of_texts_is_no_text_that_the_schema_allows(tmp_path, capsys):
    import pyarrow as pa
    from pyarrow import parquet

    write(tmp_path, "texts", identity("BYTES", "N", 1))
    version = tmp_path / "texts" / "1"
    parquet.write_table(pa.table({"x": pa.nulls(300)}), tmp_path / "none.parquet")
    assert drift("fit", version, "--input", f"x={tmp_path / 'none.parquet'}", "--schema") == 0
    assert read_schema(version).inputs == {}
    parquet.write_table(pa.table({"x": ["red", None, "blue"] * 100}), tmp_path / "some.parquet")
    assert drift("fit", version, "--force", "--input", f"x={tmp_path / 'some.parquet'}", "--schema") == 0
    assert read_schema(version).inputs["x"].values == ("blue", "red")
    rows = [f"{number:0>5}" if number % 2 else None for number in range(300)]
    parquet.write_table(pa.table({"x": rows}), tmp_path / "many.parquet")
    assert drift("fit", version, "--force", "--input", f"x={tmp_path / 'many.parquet'}", "--schema") == 0
    assert read_schema(version).inputs["x"].min_length == 5
    np.save(tmp_path / "numbers.npy", np.zeros((300, 1)))
    capsys.readouterr()
    assert drift("fit", version, "--force", "--input", f"x={tmp_path / 'numbers.npy'}", "--schema") == 1
    assert "numbers.npy: an array of float64, expected texts" in capsys.readouterr().err


def test_nothing_is_written_where_the_schema_cannot_be_made(version, data, capsys, monkeypatch):
    def broken(inputs, source):
        raise DriftError("no schema")

    monkeypatch.setattr("headrace.repository.schema_builder.infer_schema", broken)
    assert drift("fit", version, "--input", f"x={data / 'train.npy'}", "--schema") == 1
    assert capsys.readouterr() == ("", "headrace: no schema\n")
    assert not (version / "drift.json").exists()


def test_a_reference_that_is_there_stays_unless_forced(version, data, capsys):
    arguments = ("fit", version, "--input", f"x={data / 'train.npy'}")
    assert drift(*arguments) == 0
    before = (version / "drift.json").read_bytes()
    assert drift(*arguments) == 1
    assert capsys.readouterr().err == f"headrace: {version / 'drift.json'}: is there already; --force replaces it\n"
    assert (version / "drift.json").read_bytes() == before
    assert drift(*arguments, "--force") == 0
    assert (version / "drift.json").read_bytes() != before, "another salt"


def test_fit_of_a_table_names_the_features(version, tmp_path, random, capsys):
    with (tmp_path / "train.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "age", "income", "debt"])
        writer.writerows([at, *row] for at, row in enumerate(random.normal(size=(300, 3)).tolist()))
    assert drift("fit", version, "--input", f"x={tmp_path / 'train.csv'}:age,income,debt") == 0
    assert read_reference(version / "drift.json").tensors["inputs.x"][0].watch.features == ("age", "income", "debt")
    capsys.readouterr()
    assert drift("report", version, "--input", f"x={tmp_path / 'train.csv'}:age,income,debt", "--json") == 0
    found = DriftReport.model_validate_json(capsys.readouterr().out)
    assert {one.feature for one in found.features} == {"age", "income", "debt"}


def write_table(path, names, rows):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows(rows.tolist())


def test_a_table_in_another_order_is_the_same_data(version, tmp_path, random, capsys):
    rows = random.normal(size=(3000, 3)) * [1, 100, 1] + [40, 5000, 3]
    write_table(tmp_path / "train.csv", ("age", "income", "rooms"), rows[:2000])
    write_table(tmp_path / "today.csv", ("rooms", "age", "income"), rows[2000:, [2, 0, 1]])
    assert drift("fit", version, "--input", f"x={tmp_path / 'train.csv'}") == 0
    assert drift("report", version, "--input", f"x={tmp_path / 'today.csv'}", "--check") == 0
    write_table(tmp_path / "today.csv", ("age", "income", "flats"), rows[2000:])
    capsys.readouterr()
    assert drift("report", version, "--input", f"x={tmp_path / 'today.csv'}", "--check") == 2
    assert "columns age, income, flats, but the names are age, income, rooms (the refer" in capsys.readouterr().err


def test_a_table_is_read_by_the_names_in_the_configuration(version, tmp_path, random, capsys):
    (version.parent / "model.toml").write_text(WATCHED + '[inputs.x]\nnames = ["age", "income", "rooms"]\n')
    rows = random.normal((40, 5000, 3), size=(2000, 3))
    write_table(tmp_path / "train.csv", ("rooms", "age", "income"), rows[:, [2, 0, 1]])
    assert drift("fit", version, "--input", f"x={tmp_path / 'train.csv'}", "--schema") == 0
    plan, summary = read_reference(version / "drift.json").tensors["inputs.x"]
    assert plan.watch.features == ("age", "income", "rooms")
    assert summary.moments.mean == pytest.approx([40, 5000, 3], abs=0.2)
    assert read_schema(version).inputs["x"].max[1] > 4990
    write_table(tmp_path / "train.csv", ("a", "b", "c"), rows)
    capsys.readouterr()
    assert drift("fit", version, "--force", "--input", f"x={tmp_path / 'train.csv'}") == 1
    assert "but the names are age, income, rooms (names in model.toml)" in capsys.readouterr().err
    assert drift("fit", version, "--force", "--input", f"x={tmp_path / 'train.csv'}:a,b,c") == 0


def test_a_tensor_that_is_not_watched_yet_is_said_to_be(version, data, capsys):
    (version.parent / "model.toml").write_text("")
    assert drift("fit", version, "--input", f"x={data / 'train.npy'}") == 0
    assert capsys.readouterr().err == "headrace: x is watched once there is [drift.inputs.x] in model.toml\n"


def test_fit_of_recorded_windows(version, tmp_path, random, capsys):
    recorded(tmp_path / "a.drift", random)
    assert drift("fit", version, "--windows", tmp_path / "a.drift") == 0
    assert read_reference(version / "drift.json").rows == 2000
    recorded(tmp_path / "b.drift", random, shift=0.7)
    assert drift("report", version, "--windows", tmp_path / "b.drift") == 2, "another plan: not by this reference"
    assert "was counted by another plan" in capsys.readouterr().err


@pytest.mark.parametrize("shifts", [(1, 1), (1, 0, 0, 0, 0, 0)])  # it is on, and it was
def test_windows_with_an_alarm_are_no_reference_unless_forced(version, data, tmp_path, random, capsys, shifts):
    drift("fit", version, "--input", f"x={data / 'train.npy'}")
    reference = read_reference(version / "drift.json")
    monitor = Monitor("m", "1", [watch()], AlarmSettings(WINDOW_MS, 8), SALT, reference)
    for at, shift in enumerate(shifts):
        if at == 2:
            again = Monitor("m", "1", [watch()], AlarmSettings(WINDOW_MS, 8), SALT, reference)
            again.restore(monitor.pack())
            monitor = again
        monitor.count(at * WINDOW_MS, {"inputs.x": random.normal((0, 0, 2 * shift), size=(1000, 3))}, 1000)
        monitor.tick((at + 1) * WINDOW_MS)
    (tmp_path / "a.drift").write_bytes(monitor.pack())
    fit = ("fit", version, "--windows", tmp_path / "a.drift", "--out", tmp_path / "new.json")
    capsys.readouterr()
    assert drift(*fit) == 1
    said = "headrace: an alarm was on in these windows, of inputs.x: 2: "
    assert capsys.readouterr().err == f"{said}as a reference they would make the drift normal; --force takes them\n"
    assert not (tmp_path / "new.json").exists()
    assert drift(*fit, "--force") == 0
    assert capsys.readouterr().err == f"{said}the reference takes that drift for normal\n"


def test_windows_whose_alarm_is_over_and_forgotten_are_a_reference(version, data, tmp_path, random):
    drift("fit", version, "--input", f"x={data / 'train.npy'}")
    reference = read_reference(version / "drift.json")
    monitor = Monitor("m", "1", [watch()], AlarmSettings(WINDOW_MS, 4), SALT, reference)
    for at in range(14):
        rows = random.normal((0, 0, 2 * (at == 0)), size=(1000, 3))
        monitor.count(at * WINDOW_MS, {"inputs.x": rows}, 1000)
        monitor.tick((at + 1) * WINDOW_MS)
    assert monitor.alarms.over == monitor.alarms.on == {}
    (tmp_path / "a.drift").write_bytes(monitor.pack())
    assert drift("fit", version, "--windows", tmp_path / "a.drift", "--out", tmp_path / "new.json") == 0


@pytest.mark.parametrize(("name", "state", "status"), [("today", "quiet", 0), ("shifted", "alarm", 1)])
def test_report_of_data(version, data, capsys, name, state, status):
    drift("fit", version, "--input", f"x={data / 'train.npy'}")
    capsys.readouterr()
    arguments = ("report", version, "--input", f"x={data / name}.npy")
    assert drift(*arguments) == 0
    first, heads, worst, *_ = capsys.readouterr().out.splitlines()
    assert first == f"m version 1: {state}; 1,000 rows of data"
    assert heads.split() == ["PSI", "KS", "JS", "W1", "feature"]
    assert worst.startswith("alarm") == (state == "alarm")
    assert ("inputs.x: 2 (distribution" in worst) == (state == "alarm")
    assert drift(*arguments, "--check") == status


@pytest.mark.parametrize("rows", [0, 199])
def test_too_few_rows_are_not_quiet(version, data, capsys, rows):
    drift("fit", version, "--input", f"x={data / 'train.npy'}")
    capsys.readouterr()
    np.save(data / "few.npy", np.load(data / "shifted.npy")[:rows])
    arguments = ("report", version, "--input", f"x={data / 'few.npy'}")
    assert drift(*arguments) == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"m version 1: not judged; {rows} rows of data")
    assert said.err == f"headrace: not judged: {rows} rows to judge, expected at least 200 (drift.min_rows)\n"
    assert drift(*arguments, "--check") == 3
    capsys.readouterr()
    assert drift(*arguments, "--check", "--json") == 3
    found = json.loads(capsys.readouterr().out)
    assert (found["state"], found["unjudged"][:14]) == ("not judged", f"{rows} rows to judge"[:14])


def test_few_rows_in_each_of_many_windows_are_judged_together(version, data, tmp_path, random, capsys):
    drift("fit", version, "--input", f"x={data / 'train.npy'}")
    reference = read_reference(version / "drift.json")
    monitor = Monitor("m", "1", [watch()], AlarmSettings(WINDOW_MS, 16, 1), SALT, reference)
    for at in range(4):
        monitor.count(at * WINDOW_MS, {"inputs.x": random.normal(size=(60, 3))}, 60)
    monitor.tick(4 * WINDOW_MS)  # the server has judged them: that nothing is left to judge is no reason
    (tmp_path / "a.drift").write_bytes(monitor.pack())
    capsys.readouterr()
    assert drift("report", version, "--windows", tmp_path / "a.drift", "--check") == 0
    assert capsys.readouterr().out.startswith("m version 1: quiet; 240 of 240 rows")


def test_windows_of_another_model_are_refused(version, data, tmp_path, random, capsys):
    recorded(tmp_path / "a.drift", random)
    (version.parent).rename(tmp_path / "other")
    for command, status in (("report", 2), ("fit", 1)):
        assert drift(command, tmp_path / "other" / "1", "--windows", tmp_path / "a.drift") == status
        assert capsys.readouterr().err == (
            f"headrace: {tmp_path / 'a.drift'}: windows of model m, but {tmp_path / 'other' / '1'} is of model other\n"
        )


def test_a_report_of_another_versions_windows_is_refused_and_a_reference_of_them_is_made(
    version, tmp_path, random, capsys
):
    recorded(tmp_path / "a.drift", random)
    second = version.rename(version.parent / "2")
    assert drift("report", second, "--windows", tmp_path / "a.drift") == 2
    assert capsys.readouterr().err == (
        f"headrace: {tmp_path / 'a.drift'}: windows of version 1, but {second} is of version 2\n"
    )
    assert drift("fit", second, "--windows", tmp_path / "a.drift") == 0


def test_windows_of_other_features_make_no_reference(version, tmp_path, random, capsys):
    recorded(tmp_path / "a.drift", random)
    (version.parent / "model.toml").write_text(WATCHED + "features = [0, 1]\n")
    assert drift("fit", version, "--windows", tmp_path / "a.drift") == 1
    assert "was made for inputs.x of kind numeric, 3 features, other than is configured" in capsys.readouterr().err
    assert not (version / "drift.json").exists()


def test_what_cannot_be_read_is_no_alarm(version, data, capsys):
    drift("fit", version, "--input", f"x={data / 'train.npy'}")
    (data / "broken.npy").write_bytes(b"nonsense")
    assert drift("report", version, "--input", f"x={data / 'broken.npy'}", "--check") == 2
    assert drift("report", version, "--input", f"x={data / 'none.npy'}", "--check") == 2


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.inf, "no finite number in feature 1: expected some to draw its bins from"),
        (1e300, "row 1, element [1]: 1e+300, expected a number that FP32 can hold"),
    ],
)
def test_data_that_are_nothing_to_hold_a_tensor_against(version, data, capsys, value, message):
    rows = np.load(data / "train.npy").astype(np.float64)
    rows[:, 1] = value
    np.save(data / "odd.npy", rows)
    assert drift("fit", version, "--input", f"x={data / 'odd.npy'}", "--schema") == 1
    assert message in capsys.readouterr().err
    assert not (version / "drift.json").exists()


def test_a_schema_says_what_the_data_do_not_bound(version, data, capsys):
    rows = np.load(data / "train.npy")
    rows[:, 1] = np.nan
    np.save(data / "odd.npy", rows)
    assert drift("fit", version, "--input", f"x={data / 'odd.npy'}", "--schema") == 0
    said = capsys.readouterr()
    assert "  1: no values, 100.00% missing" in said.out.splitlines()
    assert said.err == "headrace: schema.toml: no range for x, feature 1: its data have no finite ends\n"


def test_large_scores_and_odd_names_leave_the_table_a_table(version, data, tmp_path, random, capsys):
    with (tmp_path / "train.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["a\nb", "income", "debt"])
        writer.writerows(random.normal(size=(300, 3)).tolist())
    assert drift("fit", version, "--input", f"x={tmp_path / 'train.csv'}") == 0
    assert "\n  a\\nb: " in capsys.readouterr().out
    rows = np.load(data / "today.npy").astype(np.float64) * 1e9
    np.save(data / "far.npy", rows)
    assert drift("report", version, "--input", f"x={data / 'far.npy'}") == 0
    _, heads, *lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    for line in lines:
        state, *scores, _ = line.split(maxsplit=5)
        assert (state, len(scores), len({len(heads), line.index("inputs.x") + len("feature")})) == ("alarm", 4, 1)
        assert float(scores[3]) > 1e4


def test_what_went_wrong_is_said_first(version, data, capsys):
    (version.parent / "model.toml").write_text("")
    assert drift("fit", version, "--input", f"x={data / 'none.npy'}") == 1
    assert "watched once" not in capsys.readouterr().err


def test_report_writes_a_page_tables_and_json(version, data, tmp_path, capsys):
    drift("fit", version, "--input", f"x={data / 'train.npy'}")
    capsys.readouterr()
    out = tmp_path / "out"
    shifted = f"x={data / 'shifted.npy'}"
    assert drift("report", version, "--input", shifted, "--json", "--csv", out, "--html", tmp_path / "r.html") == 0
    assert json.loads(capsys.readouterr().out)["state"] == "alarm"
    assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")
    assert {path.name for path in out.iterdir()} == {"reference.csv", "window.csv"}
    assert len((out / "window.csv").read_text().splitlines()) == 1001


def test_report_of_what_replicas_recorded(version, data, tmp_path, random, capsys):
    drift("fit", version, "--input", f"x={data / 'train.npy'}")
    reference = read_reference(version / "drift.json")
    files = []
    for name, shift in (("a", 0.0), ("b", 0.7)):
        monitor = Monitor("m", "1", [watch()], AlarmSettings(WINDOW_MS, 16, 1), SALT, reference)
        monitor.count(0, {"inputs.x": random.normal(size=(500, 3)) + np.array([0, 0, shift])}, 700)
        files.append(tmp_path / f"{name}.drift")
        files[-1].write_bytes(monitor.pack())
    capsys.readouterr()
    assert drift("report", version, "--windows", *files, "--check") == 1
    assert capsys.readouterr().out.startswith("m version 1: alarm; 1,000 of 1,400 rows")
    assert drift("report", version, "--windows", files[0], "--check") == 0


def test_report_without_a_reference(version, tmp_path, random, capsys):
    recorded(tmp_path / "a.drift", random)
    assert drift("report", version, "--windows", tmp_path / "a.drift", "--last", 1) == 0
    assert capsys.readouterr().out.startswith("m version 1: not judged; 1,000 of 3,000 rows, 1 window of 60 s\n")
    capsys.readouterr()
    assert drift("report", version, "--windows", tmp_path / "a.drift", "--check") == 3
    assert capsys.readouterr().err == "headrace: not judged: there is no reference\n"


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("fit", "VERSION"), 2, "nothing to make a reference of: give --input, --output or --windows"),
        (("fit", "VERSION", "--input", "x"), 2, "--input x: expected NAME=FILE or NAME=FILE:COLUMN,COLUMN"),
        (
            ("fit", "VERSION", "--input", "x=DATA/train.npy", "--input", "x=DATA/today.npy"),
            2,
            "today.npy: x is given twice, expected one file for each tensor",
        ),
        (("fit", "VERSION", "--input", "x=DATA/a.csv:b,a,b"), 2, "a.csv:b,a,b: column b is given twice"),
        (("report", "VERSION", "--input", "x=DATA/a.csv:b,a,b"), 2, "a.csv:b,a,b: column b is given twice"),
        (("fit", "VERSION", "--input", "y=DATA/train.npy"), 2, "drift.inputs.y: the model has no such input, but x"),
        (("fit", "VERSION", "--input", "x=DATA/none.npy"), 1, "No such file or directory"),
        (("fit", "DATA/9", "--input", "x=DATA/train.npy"), 2, "no directory of a version, such as models/NAME/1"),
        (("fit", "VERSION", "--windows", "DATA/train.npy"), 1, "train.npy: no record of drift windows"),
        (("report", "VERSION"), 2, "give either --windows, or data by --input and --output"),
        (("report", "VERSION", "--input", "x=DATA/today.npy"), 2, "no reference to hold data against"),
        (("report", "VERSION", "--windows", "DATA/today.npy", "--last", "0"), 2, "--last 0: expected at least 1"),
        (("report", "VERSION", "--input", "x=DATA/today.npy", "--last", "1"), 2, "--last 1: data are of no windows"),
        (("report", "VERSION", "--windows", "DATA/today.npy"), 2, "today.npy: no record of drift windows"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(version, data, capsys, arguments, status, message):
    words = [word.replace("VERSION", str(version)).replace("DATA", str(data)) for word in arguments]
    assert drift(*words) == status
    said = capsys.readouterr()
    assert said.err.startswith("headrace: ")
    assert message in said.err
    assert said.err.count("\n") == 1


def test_the_server_and_its_commands_start_without_optional_packages():
    code = (
        "import sys, headrace.cli, headrace.serve, headrace.drift.worker, headrace.drift.monitor, headrace.drift.report"
    )
    check = "found = {'datasketches', 'pyarrow', 'scipy', 'pandas'} & set(sys.modules); assert not found, found"
    subprocess.run([sys.executable, "-c", f"{code}\n{check}"], check=True, timeout=60, env=plain_environment())


def test_the_first_backend_that_opens_the_model_here_tells_what_it_takes(version, data, capsys):
    (version.parent / "model.toml").write_text('backend = ["absent.module:Backend", "onnxruntime"]\n' + WATCHED)
    assert drift("fit", version, "--input", f"x={data / 'train.npy'}") == 0
    (version / "model.onnx").write_bytes(b"nonsense")
    capsys.readouterr()
    assert drift("fit", version, "--force", "--input", f"x={data / 'train.npy'}") == 1
    said = capsys.readouterr().err
    assert f"{version}: absent.module:Backend: " in said
    assert "; onnxruntime: " in said
