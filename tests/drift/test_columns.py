"""Columns of a table are known by their names, where somebody has named the elements of a row."""

import pyarrow as pa
import pytest
from drift.test_fit import rows_of
from pyarrow import parquet

from headrace.drift.errors import DriftError
from headrace.drift.readers import Known, open_source

NAMES = Known(("age", "income", "debt"), "the reference")


def table(path, names, rows):
    """Of a row with the values 1, 2, 3 by the names that are known."""
    path.with_suffix(".csv").write_text("\n".join([",".join(names), *(",".join(map(str, row)) for row in rows)]))
    columns = {name: [float(row[at]) for row in rows] for at, name in enumerate(names)}
    parquet.write_table(pa.table(columns), path.with_suffix(".parquet"))
    return [path.with_suffix(suffix) for suffix in (".csv", ".parquet")]


@pytest.mark.parametrize(
    ("names", "row", "columns"),
    [
        (("age", "income", "debt"), (1, 2, 3), ()),
        (("debt", "age", "income"), (3, 1, 2), ()),
        (("debt", "id", "age", "income"), (3, 9, 1, 2), ()),
        (("debt", "age", "income"), (3, 1, 2), ("debt", "age", "income")),
        (("c", "a", "b"), (3, 1, 2), ("a", "b", "c")),
        (("c", "age", "b"), (3, 1, 2), ("age", "b", "c")),
    ],
)
def test_columns_are_taken_by_the_names_that_are_known(tmp_path, names, row, columns):
    for path in table(tmp_path / "t", names, [row, row]):
        found = open_source(path, "x", (3,), columns, known=NAMES)
        assert rows_of(found).tolist() == [[1, 2, 3]] * 2
        assert found.names == (columns if "c" in names else NAMES.names)


@pytest.mark.parametrize(
    ("names", "columns"),
    [
        (("debt", "age", "salary"), ()),
        (("a", "b", "c"), ()),
        (("debt", "age", "salary"), ("debt", "age", "salary")),
        (("age", "income"), ()),
    ],
)
def test_columns_of_other_names_are_refused_unless_chosen_in_order(tmp_path, names, columns):
    for path in table(tmp_path / "t", names, [[1] * len(names)]):
        with pytest.raises(DriftError) as caught:
            open_source(path, "x", (3,), columns, known=NAMES)
        assert str(caught.value) == (
            f"{path}: columns {', '.join(names)}, but the names are age, income, debt (the reference): expected "
            "columns of these names, or others chosen in this order: FILE:COLUMN,COLUMN"
        )


def test_what_has_no_names_is_taken_by_its_place(tmp_path):
    (tmp_path / "t.csv").write_text("1,2,3\n4,5,6\n")
    assert rows_of(open_source(tmp_path / "t.csv", "x", (3,), known=NAMES))[0].tolist() == [1, 2, 3]
    parquet.write_table(pa.table({"x": [[1.0, 2.0, 3.0]]}), tmp_path / "t.parquet")
    assert rows_of(open_source(tmp_path / "t.parquet", "x", (3,), known=NAMES))[0].tolist() == [1, 2, 3]


def test_labels_of_classes_need_not_be_the_names_of_columns(tmp_path):
    labels = Known(("cat", "dog"), "its labels", labels=True)
    for names, row in ((("dog", "cat"), [2, 1]), (("p0", "p1"), [1, 2])):
        for path in table(tmp_path / "t", names, [row]):
            assert rows_of(open_source(path, "y", (2,), known=labels)).tolist() == [[1, 2]]
