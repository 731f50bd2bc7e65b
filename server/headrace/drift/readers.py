"""Training data from files: NumPy's .npy and .npz, CSV, Parquet (extra `parquet`). Pickles are never loaded."""

from __future__ import annotations

import csv
from importlib import import_module
from math import nan, prod
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.drift.errors import DriftError, MissingPackage
from headrace.drift.fit import Source

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Rows = NDArray[Any]
    Shape = tuple[int, ...]

CHUNK_ROWS = 4096
CHUNK_BYTES = 64 << 20
_NOTHING = {"", "na", "n/a", "nan", "null", "none", "?"}


def open_source(path: Path, name: str, shape: Shape, columns: Sequence[str] = ()) -> Source:
    """Rows of the tensor `name` from a file, by its suffix.

    shape: of a row, -1 for any size. columns: of a table, those that make a row, in this order; all by default. In an
    .npz, the array called as the tensor is, or the only one. Raises DriftError, OSError.
    """
    readers = {".npy": _numpy, ".npz": _numpy, ".csv": _csv, ".parquet": _parquet, ".pq": _parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DriftError(f"{path}: expected a file ending in {', '.join(readers)}")
    if columns and reader is _numpy:
        raise DriftError(f"{path}: columns are chosen by name from tables alone")
    return reader(path, name, shape, columns)


def _array(path: Path, name: str) -> Rows:
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise DriftError(f"{path}: {error}") from None
    if isinstance(found, np.lib.npyio.NpzFile):
        with found:
            names = found.files
            if name not in names and len(names) != 1:
                raise DriftError(f"{path}: no array {name!r}, but {', '.join(names) or 'none'}")
            found = found[name if name in names else names[0]]
    if not found.ndim:
        raise DriftError(f"{path}: a single value, expected rows")
    return np.asarray(found) if found.dtype.kind in "US" else found


def _numpy(path: Path, name: str, shape: Shape, columns: Sequence[str]) -> Source:
    array = _array(path, name)
    _row(array[:1], shape, str(path))
    step = max(1, min(CHUNK_ROWS, CHUNK_BYTES // max(1, array[:1].nbytes)))

    def chunks() -> Iterator[Rows]:
        for start in range(0, len(array), step):
            yield _row(np.asarray(array[start : start + step]), shape, str(path))

    return Source(str(path), chunks, len(array))


def _row(rows: Rows, shape: Shape, where: str) -> Rows:
    """Rows as the tensor has them: a table of numbers may be flat. Raises DriftError."""
    found = rows.shape[1:]
    if len(found) == len(shape) and all(want in (-1, dim) for dim, want in zip(found, shape, strict=True)):
        return rows
    if min(shape, default=0) >= 0 and prod(found) == prod(shape):
        return rows.reshape(len(rows), *shape)
    raise DriftError(f"{where}: rows of {list(found)}, expected {list(shape)}")


def _csv(path: Path, name: str, shape: Shape, columns: Sequence[str]) -> Source:
    with path.open(newline="", encoding="utf-8-sig") as file:
        first = next(csv.reader(file), [])
    header = bool(columns) or not all(_is_number(text) for text in first)
    names = first if header else [str(at) for at in range(len(first))]
    places = _places(names, columns, str(path))

    def chunks() -> Iterator[Rows]:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            if header:
                next(reader, None)
            lines: list[list[str]] = []
            for line in reader:
                if len(line) != len(names):
                    if line:
                        raise DriftError(f"{path}:{reader.line_num}: {len(line)} columns, expected {len(names)}")
                    continue
                lines.append([line[place] for place in places])
                if len(lines) >= CHUNK_ROWS:
                    yield _table(lines, shape, str(path))
                    lines = []
            if lines:
                yield _table(lines, shape, str(path))

    return Source(str(path), chunks, None, tuple(names[place] for place in places) if header else ())


def _places(names: Sequence[str], columns: Sequence[str], where: str) -> list[int]:
    missing = [column for column in columns if column not in names]
    if missing:
        raise DriftError(f"{where}: no column {missing[0]!r}, but {', '.join(names)}")
    return [names.index(column) for column in columns] if columns else list(range(len(names)))


def _table(lines: list[list[str]], shape: Shape, where: str) -> Rows:
    """Numbers where all are, else text."""
    try:
        rows: Rows = np.array([[_number(text) for text in line] for line in lines])
    except ValueError:
        rows = np.array([[text.encode() for text in line] for line in lines], object)
    return _row(rows, shape, where)


def _number(text: str) -> float:
    return nan if text.strip().lower() in _NOTHING else float(text)


def _is_number(text: str) -> bool:
    try:
        _number(text)
    except ValueError:
        return False
    return True


def _parquet(path: Path, name: str, shape: Shape, columns: Sequence[str]) -> Source:
    try:
        parquet = import_module("pyarrow.parquet")
    except ImportError:
        raise MissingPackage(f"{path}: Parquet needs the package pyarrow: pip install 'headrace[parquet]'") from None
    try:
        with parquet.ParquetFile(path) as file:
            names, rows = list(file.schema_arrow.names), file.metadata.num_rows
    except ValueError as error:  # ArrowInvalid is one
        raise DriftError(f"{path}: {error}") from None
    chosen = [names[place] for place in _places(names, columns, str(path))]

    def chunks() -> Iterator[Rows]:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(CHUNK_ROWS, columns=chosen):
                parts = [_column(batch.column(batch.schema.get_field_index(each)).to_pylist()) for each in chosen]
                yield _row(parts[0] if len(parts) == 1 else np.stack(parts, axis=1), shape, str(path))

    return Source(str(path), chunks, rows, tuple(chosen) if len(chosen) > 1 else ())


def _column(values: list[Any]) -> Rows:
    """A column: numbers with NaN for None, text as octets, lists as rows."""
    some = next((value for value in values if value is not None), None)
    if isinstance(some, str | bytes):
        return np.array([_octets(value) for value in values], object)
    if isinstance(some, list):
        sizes = {len(value) for value in values if value is not None}
        if len(sizes) != 1:
            raise DriftError(f"lists of {min(sizes)} to {max(sizes)} values in a column, expected equal lengths")
        return np.array([[nan] * max(sizes) if value is None else value for value in values])
    return np.array([nan if value is None else value for value in values])


def _octets(value: str | bytes | None) -> bytes:
    return value if isinstance(value, bytes) else (value or "").encode()
