from importlib import import_module

import numpy as np
import pytest

from headrace.quantize.data import InputSpec, given_file, overlap, read_dataset
from headrace.quantize.errors import QuantizeError

FLOAT = np.dtype(np.float32)
X = InputSpec("x", FLOAT, (-1, 3))
IDS = InputSpec("ids", np.dtype(np.int64), (-1, -1))


def read(given, *specs, labels="", wanted=False):
    return read_dataset("--data", [given] if isinstance(given, str) else given, specs or (X,), labels, wanted=wanted)


def feeds(data, size=4):
    return [{name: array.shape for name, array in feed.items()} for _, feed in data.feeds(size)]


def test_an_npz_holds_each_input_by_its_name(rows):
    data = read(rows(x=np.ones((5, 3)), ids=np.ones((5, 7), np.int32), more=np.ones(2)), X, IDS)
    assert data.rows == 5
    assert [data.inputs[name].dtype for name in ("x", "ids")] == [np.float32, np.int64]
    assert feeds(data) == [{"x": (4, 3), "ids": (4, 7)}, {"x": (1, 3), "ids": (1, 7)}]
    assert data.runs(4) == 2


def test_inputs_from_files_of_their_own(tmp_path, rows):
    np.save(tmp_path / "x.npy", np.ones((5, 3)))
    (tmp_path / "ids.csv").write_text("a,b,c\n" + "1,2,3\n" * 5)
    data = read(
        [f"x={tmp_path}/x.npy", f"ids={tmp_path}/ids.csv:c,a"], X, InputSpec("ids", np.dtype(np.int64), (-1, 2))
    )
    assert data.inputs["ids"].tolist() == [[3, 1]] * 5


def test_a_gap_in_a_column_of_texts_is_an_empty_text(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import_module("pyarrow.parquet").write_table(pa.table({"t": ["a", None]}), tmp_path / "t.parquet")
    data = read(f"t={tmp_path}/t.parquet", InputSpec("t", np.dtype(object), (-1, 1)))
    assert data.inputs["t"].tolist() == [[b"a"], [b""]]


def test_a_table_brings_labels_of_its_own(tmp_path):
    (tmp_path / "t.csv").write_text("a,b,c,y\n" + "1,2,3,1\n" * 4)
    data = read([f"x={tmp_path}/t.csv:a,b,c", f"y={tmp_path}/t.csv:y"], labels="y", wanted=True)
    assert data.labels.tolist() == [1, 1, 1, 1]


def test_labels_may_be_left_out_where_nobody_wants_them(rows):
    assert read(rows(x=np.ones((5, 3))), labels="y").labels is None
    assert read(rows(x=np.ones((5, 3)), y=np.arange(5)), labels="y").labels.tolist() == [0, 1, 2, 3, 4]


def test_a_model_of_a_fixed_batch_is_fed_whole_batches(rows):
    data = read(rows(x=np.ones((11, 3))), InputSpec("x", FLOAT, (4, 3)))
    assert (data.rows, feeds(data, 32)) == (8, [{"x": (4, 3)}] * 2)


def test_a_model_without_a_batch_is_fed_row_by_row(rows):
    data = read(rows(x=np.ones((3, 4)), rate=np.arange(3)), InputSpec("x", FLOAT, (4,)), InputSpec("rate", FLOAT, ()))
    assert data.single
    assert feeds(data, 32) == [{"x": (4,), "rate": ()}] * 3


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"z": np.ones((5, 3))}, "no array 'x', but z"),
        ({"x": np.ones((5, 4))}, r"rows of \[4\], expected \[3\] \(input x\)"),
        ({"x": np.full((5, 3), np.nan)}, "row 0 of x is not finite"),
        ({"x": np.full((5, 3), 1e300)}, "do not fit its datatype, float32"),
        ({"x": np.ones((0, 3))}, "no rows"),
        ({"x": np.array([["a"] * 3])}, "expected numbers"),
        ({"x": np.array(1.0)}, "a single value"),
        ({"x": np.ones((5, 3)), "y": np.arange(4)}, "4 labels for 5 rows"),
        ({"x": np.ones((5, 3)), "y": np.array([1, 2, np.inf, 4, 5])}, "label 2 is not finite"),
        ({"x": np.ones((5, 3)), "other": np.arange(5)}, "no array 'y'"),
    ],
)
def test_what_cannot_be_used_is_said_in_a_line(rows, arrays, said):
    with pytest.raises(QuantizeError, match=said) as caught:
        read(rows(**arrays), labels="y", wanted="y" in arrays or "other" in arrays)
    assert "\n" not in str(caught.value)


def test_numbers_that_an_integer_input_cannot_have(rows):
    with pytest.raises(QuantizeError, match="do not fit its datatype, int64"):
        read(rows(ids=np.full((5, 2), 1.5)), IDS)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["{x}", "{x}"], "given twice"),
        (["x={x}", "x={x}"], "x is given twice"),
        (["q={x}"], "no such input; the model has x, ids"),
        (["x={x}"], "no data for input ids"),
        (["{x}:a"], "columns are of one input"),
        (["{other}"], "expected an .npz with x, ids"),
        (["x="], "expected FILE.npz, NAME=FILE"),
        (["x={x}", "ids={few}"], "x has 5 rows, ids has 4 rows"),
    ],
)
def test_what_is_given_wrongly_is_said_in_a_line(tmp_path, rows, given, said):
    np.save(tmp_path / "other.npy", np.ones((5, 3)))
    files = {
        "x": rows("x", x=np.ones((5, 3))),
        "few": rows("few", ids=np.ones((4, 2))),
        "other": tmp_path / "other.npy",
    }
    with pytest.raises(QuantizeError, match=said):
        read([one.format(**files) for one in given], X, IDS)


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(QuantizeError, match=r"x\.npz: no \.npz"):
        read(str(tmp_path / "x.npz"))
    with pytest.raises(FileNotFoundError):
        read(str(tmp_path / "none.npz"))


def test_batches_of_two_sizes_cannot_be_fed(rows):
    specs = InputSpec("x", FLOAT, (4, 3)), InputSpec("z", FLOAT, (2, 3))
    with pytest.raises(QuantizeError, match="batches of 2 and of 4"):
        read(rows(x=np.ones((8, 3)), z=np.ones((8, 3))), *specs)
    with pytest.raises(QuantizeError, match="3 rows, but the model takes batches of 4"):
        read(rows(x=np.ones((3, 3))), specs[0])


def test_a_file_whose_name_has_a_sign_in_it(tmp_path):
    path = tmp_path / "a=b:c.npz"
    path.touch()
    assert given_file("--data", str(path)) == ("", path, ())
    assert given_file("--data", f"x={path}") == ("x", path, ())


def test_rows_are_spread_over_data_in_some_order(rows):
    data = read(rows(x=np.arange(300).reshape(100, 3)))
    assert data.spread(4).inputs["x"][:, 0].tolist() == [0, 99, 198, 297]
    assert data.spread(1000) is data


def test_the_digest_is_of_everything(rows):
    base = read(rows(x=np.ones((5, 3)), y=np.arange(5)), labels="y")
    others = [
        read(rows(x=np.ones((5, 3))), labels="y"),
        read(rows(x=np.ones((5, 3)), y=np.arange(5) + 1), labels="y"),
        read(rows(x=np.zeros((5, 3)), y=np.arange(5)), labels="y"),
    ]
    assert len({one.sha256() for one in (base, *others)}) == 4
    assert base.sha256() == read(rows(x=np.ones((5, 3)), y=np.arange(5)), labels="y").sha256()


def test_rows_that_two_data_have_in_common(rows):
    one = read(rows("one", x=np.arange(30).reshape(10, 3)))
    other = read(rows("other", x=np.arange(15, 45).reshape(10, 3)))
    assert overlap(one, other) == 5
    assert overlap(one, read(rows("none", x=-np.ones((4, 3))))) == 0
