import json
import math
from decimal import Decimal

import numpy as np
import pytest
from drift.conftest import SALT, WINDOW_MS, monitor_of, reference_of, source, watch

from headrace.drift import fit
from headrace.drift.errors import DriftError
from headrace.drift.fit import Source, fit_reference
from headrace.drift.readers import open_source
from headrace.drift.reference import parse_reference, read_reference
from headrace.drift.values import checked

KEY = "inputs.x"


def test_every_row_is_counted_and_about_equally_in_every_bin(random):
    plan, summary = reference_of(random.normal(size=(6001, 2))).tensors[KEY]
    assert summary.rows == 6001
    assert summary.histogram.sum(axis=1).tolist() == [6001, 6001]
    assert summary.histogram.min() > 200
    assert plan.rows == pytest.approx(3000, abs=200)


def test_long_data_are_planned_by_a_part_of_them(random, monkeypatch):
    monkeypatch.setattr(fit, "PLAN_SAMPLE", 100)
    monkeypatch.setattr(fit, "TABLE_ROWS", 37)
    plan, summary = reference_of(random.normal(size=(2000, 1))).tensors[KEY]
    assert 30 < plan.rows <= 100
    assert summary.rows == 2000


def test_items_are_not_counted_where_the_plan_was_drawn(random):
    tokens = np.arange(4000).reshape(1000, 4)
    plan, summary = reference_of(tokens, datatype="INT64", kind="tokens", shape=(-1,)).tensors[KEY]
    assert len(plan.items.known) == 4 * plan.rows
    assert (summary.rows, summary.item_rows) == (1000, 1000 - plan.rows)
    assert summary.items[-1] == 4 * summary.item_rows, "what the other half holds is new, as it would be tomorrow"


def test_many_items_are_planned_by_fewer_rows(random, monkeypatch):
    monkeypatch.setattr(fit, "PLAN_ITEMS", 400)
    tokens = random.integers(0, 50, size=(1000, 4))
    plan, summary = reference_of(tokens, datatype="INT64", kind="tokens", shape=(-1,)).tensors[KEY]
    assert plan.rows <= 100
    assert summary.item_rows == 1000 - plan.rows


def test_the_order_of_the_data_does_not_matter(random):
    """Every other row is of another kind, or all of one come first: the plan and what is counted by it have both."""
    kinds = np.arange(4000) % 2
    for tokens in (kinds, np.sort(kinds)):
        plan, summary = reference_of(tokens[:, None], datatype="INT64", kind="tokens", shape=(-1,)).tensors[KEY]
        assert sorted(plan.items.cells.tolist()) == [0, 1]
        assert summary.items[:2] / summary.items.sum() == pytest.approx([0.5, 0.5], abs=0.03)
        assert plan.rows == pytest.approx(2000, abs=200)


def test_progress_is_told(random):
    told = []
    rows = random.normal(size=(10_000, 3))
    fit_reference([(watch(), source(rows))], SALT, "data", 0, lambda *told_: told.append(told_))
    assert told == [(f"{KEY}: {what}", done, 10_000) for what in ("plan", "count") for done in (4096, 8192, 10_000)]


def test_names_of_columns_name_the_features(random):
    named = source(random.normal(size=(300, 3)), names=("a", "b", "c"))
    plan, _ = fit_reference([(watch(), named)], SALT, "data", 0).tensors[KEY]
    assert plan.watch.features == ("a", "b", "c")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros((99, 3)), "99 rows, expected at least 100"),
        (np.zeros((0, 3)), "0 rows, expected at least 100"),
        (np.zeros((200, 4)), r"x: rows of \[4\], expected \[3\]"),
    ],
)
def test_data_that_make_no_reference(rows, message):
    with pytest.raises(DriftError, match=f"data, for {KEY}: {message}"):
        fit_reference([(watch(), source(rows))], SALT, "data", 0)


def test_a_reference_is_read_as_written(random, tmp_path):
    made = reference_of(random.normal(size=(500, 2)))
    made.write(tmp_path / "drift.json")
    again = read_reference(tmp_path / "drift.json")
    assert again.text() == made.text()
    assert again.rows == 500
    assert again.tensors[KEY][0].fingerprint == made.tensors[KEY][0].fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:-5], "not JSON"),
        (lambda text: "[]", 'not a drift reference: expected "format"'),
        (lambda text: text.replace('"version": 1', '"version": 2'), "a drift reference of version 2, expected 1"),
        (lambda text: text.replace('"source": "data"', '"source": "dato"'), "damaged or edited"),
        (lambda text: text.replace('"rows":500', '"rows":5000'), "damaged or edited"),
    ],
)
def test_a_reference_that_was_changed_is_refused(random, tmp_path, change, message):
    text = reference_of(random.normal(size=(500, 2))).text()
    assert change(text) != text
    path = tmp_path / "drift.json"
    path.write_text(change(text))
    with pytest.raises(DriftError, match=f"{path}: {message}"):
        read_reference(path)


def test_a_reference_of_other_numbers_is_refused_though_its_checksum_fits(random):
    value = json.loads(reference_of(random.normal(size=(500, 2))).text())
    value.pop("checksum")
    value["tensors"][KEY]["summary"]["histogram"].pop()
    from headrace.drift.reference import _checksum

    with pytest.raises(DriftError, match="no summary by its plan"):
        parse_reference(json.dumps(value | {"checksum": _checksum(value)}))


def rows_of(opened: Source):
    """Of both readings, which must be equal."""
    once, again = (np.concatenate(list(opened.chunks())) for _ in range(2))
    assert repr(once) == repr(again)
    return once


def test_arrays(tmp_path, random):
    rows = random.normal(size=(10_000, 2, 3)).astype(np.float32)
    np.save(tmp_path / "a.npy", rows)
    np.savez(tmp_path / "b.npz", x=rows, y=rows[:5])
    np.save(tmp_path / "flat.npy", rows.reshape(-1, 6))
    for name in ("a.npy", "b.npz", "flat.npy"):
        opened = open_source(tmp_path / name, "x", (2, 3))
        assert opened.rows == 10_000
        np.testing.assert_array_equal(rows_of(opened), rows)
    assert open_source(tmp_path / "a.npy", "x", (-1, 3)).rows == 10_000


def test_text_in_an_array(tmp_path):
    np.save(tmp_path / "a.npy", np.array([["ab"], ["c"]]))
    assert rows_of(open_source(tmp_path / "a.npy", "x", (1,), text=True)).tolist() == [["ab"], ["c"]]


def test_csv_with_and_without_a_header(tmp_path):
    (tmp_path / "a.csv").write_text("\ufeffage,income\n1,2.5\n,nan\n\n3,-1e3\n", encoding="utf-8")
    opened = open_source(tmp_path / "a.csv", "x", (2,))
    assert (opened.names, opened.rows) == (("age", "income"), None)
    np.testing.assert_array_equal(rows_of(opened), [[1, 2.5], [np.nan, np.nan], [3, -1000]])
    chosen = open_source(tmp_path / "a.csv", "x", (1,), ("income",))
    np.testing.assert_array_equal(rows_of(chosen), [[2.5], [np.nan], [-1000]])
    (tmp_path / "b.csv").write_text("1,2\n3,4\n")
    assert rows_of(open_source(tmp_path / "b.csv", "x", (2,))).tolist() == [[1, 2], [3, 4]]
    (tmp_path / "c.csv").write_text('name\n"Ann, a"\nBob\n')
    assert rows_of(open_source(tmp_path / "c.csv", "x", (1,), text=True)).tolist() == [[b"Ann, a"], [b"Bob"]]


def test_a_long_csv_comes_in_pieces(tmp_path):
    (tmp_path / "a.csv").write_text("x\n" + "\n".join(map(str, range(10_000))))
    opened = open_source(tmp_path / "a.csv", "x", (1,))
    assert [len(chunk) for chunk in opened.chunks()] == [4096, 4096, 1808]
    assert rows_of(opened)[:, 0].tolist() == list(range(10_000))


def test_parquet(tmp_path, random):
    import pyarrow as pa
    from pyarrow import parquet

    numbers = random.normal(size=(5000, 2))
    lists = pa.FixedSizeListArray.from_arrays(pa.array(numbers.reshape(-1)), 2)
    table = pa.table({"a": numbers[:, 0], "b": [None, *numbers[1:, 1]], "t": ["x", None] * 2500, "v": lists})
    parquet.write_table(table, tmp_path / "a.parquet")
    opened = open_source(tmp_path / "a.parquet", "x", (2,), ("b", "a"))
    assert (opened.rows, opened.names) == (5000, ("b", "a"))
    found = rows_of(opened)
    assert np.isnan(found[0, 0])
    np.testing.assert_array_equal(found[1:], numbers[1:, ::-1])
    np.testing.assert_array_equal(rows_of(open_source(tmp_path / "a.parquet", "x", (2,), ("v",))), numbers)
    text = open_source(tmp_path / "a.parquet", "x", (1,), ("t",), text=True)
    assert rows_of(text)[:2].tolist() == [[b"x"], [None]]


@pytest.mark.parametrize(
    ("written", "datatype", "read"),
    [
        (["9007199254740993", "1"], "INT64", [2**53 + 1, 1]),
        (["-9223372036854775808", "9223372036854775807"], "INT64", [-(2**63), 2**63 - 1]),
        (["18446744073709551615", "1"], "UINT64", [2**64 - 1, 1]),
        (["9007199254740993", "0.5"], "FP64", [2.0**53, 0.5]),
        (["1e300", "inf"], "FP64", [1e300, math.inf]),
        (["-1", "100000000000000000000"], "FP64", [-1.0, 1e20]),
        (["9007199254740993", ""], "FP64", [2.0**53, math.nan]),
    ],
)
def test_integers_that_no_fp64_holds_are_read_to_their_last_digit(tmp_path, written, datatype, read):
    (tmp_path / "a.csv").write_text("id\n" + "".join(f"{text or '?'}\n" for text in written))
    found = rows_of(checked(open_source(tmp_path / "a.csv", "x", (1,)), datatype))
    assert repr(found.ravel().tolist()) == repr(read)


def test_integers_of_parquet_that_no_fp64_holds(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    wide, exact = [2**64 - 1, 1], [Decimal(2**53 + 1), Decimal(7)]
    lists = pa.array([wide] * 2, pa.list_(pa.uint64()))
    columns = {"wide": pa.array(wide, pa.uint64()), "exact": exact, "lists": lists}
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    for name, shape, values in (("wide", (1,), wide), ("exact", (1,), [2**53 + 1, 7]), ("lists", (2,), wide * 2)):
        assert rows_of(open_source(tmp_path / "a.parquet", "x", shape, (name,))).ravel().tolist() == values


@pytest.mark.parametrize(
    ("name", "content", "columns", "message"),
    [
        ("a.txt", b"", (), r"expected a file ending in \.npy, \.npz, \.csv, \.parquet, \.pq"),
        ("a.npy", b"no array", (), "a.npy: "),
        ("a.npy", None, (), r"a\.npy: rows of \[3\], expected \[2\]"),
        ("a.npy", None, ("a",), "columns are chosen by name from tables alone"),
        ("a.csv", b"a,b\n1,2\n", ("c",), "no column 'c', but a, b"),
        ("a.csv", b"a,b\n1,2\n3\n", (), r"a\.csv: line 3: 1 columns, expected 2"),
        ("a.csv", b"a,b,c\n1,2,3\n", (), r"rows of \[3\], expected \[2\]"),
        ("a.csv", b"a,b\n1,2\n3,many\n", (), r"a\.csv: line 3, column 'b': 'many', expected a number"),
        ("a.csv", b"a,b\n1,2\n3,\xff\n", (), r"a\.csv: line 3: not in UTF-8"),
        ("a.csv", b"\xff\xfea\x00", (), r"a\.csv: line 1: not in UTF-8"),
        ("a.csv", b"a,b\n" + b"1,2\n" * 40_000 + b"3,\xff\n", (), r"a\.csv: line 40002: not in UTF-8"),
        ("a.csv", b"a,a\n1,2\n", (), r"a\.csv: 2 columns 'a', expected one of each name"),
        ("a.parquet", b"no parquet", (), r"a\.parquet: "),
        ("a.npz", b"PK\x03\x04 but no archive", (), r"a\.npz: .*zip file"),
        ("a.parquet", b"PAR1" + bytes(100) + b"PAR1", (), r"a\.parquet: "),
        ("a.npz", b"", (), r"a\.npz: No data left in file"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, columns, message):
    path = tmp_path / name
    if content is None:
        np.save(path, np.zeros((4, 3)))
    else:
        path.write_bytes(content)
    with pytest.raises(DriftError, match=message):
        rows_of(open_source(path, "x", (2,), columns))


def test_no_pickle_is_loaded(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(DriftError, match="Python objects"):
        open_source(tmp_path / "a.npy", "x", ())


def test_an_archive_without_the_array(tmp_path):
    np.savez(tmp_path / "a.npz", y=np.zeros(3), z=np.zeros(3))
    with pytest.raises(DriftError, match="no array 'x', but y, z"):
        open_source(tmp_path / "a.npz", "x", ())


def test_parquet_needs_a_package(tmp_path, monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr("headrace.drift.readers.import_module", missing)
    with pytest.raises(DriftError, match=r"pip install 'headrace\[parquet\]'"):
        open_source(tmp_path / "a.parquet", "x", (2,))


def test_a_number_that_is_none_is_named_wherever_it_stands(tmp_path):
    lines = ["x,y", *["1,2"] * 90_000, "1,two" + "o" * 100]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    opened = open_source(tmp_path / "a.csv", "x", (2,))
    with pytest.raises(DriftError) as raised:
        fit_reference([(watch((2,)), opened)], SALT, "", 0)
    shown = "two" + "o" * 37 + "..."
    assert str(raised.value) == (
        f"{tmp_path / 'a.csv'}, for inputs.x: line 90002, column 'y': '{shown}', expected a number"
    )


def test_texts_where_numbers_are_wanted_and_the_other_way_round(tmp_path):
    np.save(tmp_path / "text.npy", np.array([["1"], ["2"]]))
    np.save(tmp_path / "times.npy", np.zeros((2, 1), "M8[s]"))
    np.save(tmp_path / "numbers.npy", np.zeros((2, 1)))
    for name, text, message in (
        ("text", False, "an array of <U1, expected numbers"),
        ("times", False, r"an array of datetime64\[s\], expected numbers"),
        ("numbers", True, "an array of float64, expected texts"),
    ):
        with pytest.raises(DriftError, match=f"{name}.npy: {message}"):
            open_source(tmp_path / f"{name}.npy", "x", (1,), text=text)


def test_an_archive_that_was_cut_or_damaged(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=np.arange(10_000.0))
    whole = path.read_bytes()
    for data in (whole[:-30], whole[:5000], whole[:4000] + b"\0" * 50 + whole[4050:]):
        path.write_bytes(data)
        with pytest.raises(DriftError, match=f"{path}: "):
            open_source(path, "x", ())


def test_columns_of_parquet_that_are_no_numbers(tmp_path):
    import datetime
    from decimal import Decimal

    import pyarrow as pa
    from pyarrow import parquet

    columns = {
        "when": [datetime.datetime(2026, 1, 1)] * 3,
        "name": ["a", None, "b"],
        "names": [["a"]] * 3,
        "some": pa.array(["a", "b", "a"]).dictionary_encode(),
        "price": [Decimal("1.5"), None, Decimal("2.5")],
        "none": pa.nulls(3),
    }
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table(columns), path)
    for column, kind in (("when", r"timestamp\[us\]"), ("name", "string"), ("names", "list<"), ("some", "dictionary<")):
        with pytest.raises(DriftError, match=f"{path}: column '{column}' is {kind}.*, expected numbers"):
            open_source(path, "x", (1,), (column,))
    with pytest.raises(DriftError, match=r"column 'when' is timestamp\[us\], expected texts"):
        open_source(path, "x", (1,), ("when",), text=True)
    np.testing.assert_array_equal(rows_of(open_source(path, "x", (1,), ("price",))), [[1.5], [np.nan], [2.5]])
    assert rows_of(open_source(path, "x", (1,), ("none",), text=True)).tolist() == [[None]] * 3
    assert rows_of(open_source(path, "x", (1,), ("names",), text=True)).tolist() == [[b"a"]] * 3
    parquet.write_table(pa.table({"x": np.arange(1000.0)}), path)
    path.write_bytes(path.read_bytes()[:4] + b"\xff" * 400 + path.read_bytes()[404:])
    with pytest.raises(DriftError, match=f"{path}: "):
        rows_of(open_source(path, "x", (1,)))


@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_values_whose_squares_are_beyond_all_numbers(spread, random):
    rows = 1e300 * (1 + spread * random.normal(size=(500, 1)))
    moments = reference_of(rows, datatype="FP64").tensors[KEY][1].moments
    assert np.isfinite(moments.deviation).all()
    assert (moments.deviation > 0) == bool(spread)
    assert moments.mean[0] == pytest.approx(rows.mean(), rel=0.02)


def test_values_whose_distances_are_beyond_all_numbers(random):
    signs, sizes = random.choice([-1.0, 1.0], (500, 1)), random.uniform(1.0, 1.79, (500, 1))
    reference = reference_of(signs * sizes * 1e308, datatype="FP64")
    again = parse_reference(reference.text())
    monitor = monitor_of(again)
    monitor.count(0, {KEY: np.abs(signs * sizes) * 1e308}, 500)
    assert [event.state for event in monitor.tick(WINDOW_MS)] == ["alarm"]
