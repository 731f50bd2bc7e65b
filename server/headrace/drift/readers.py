"""Training data from files: NumPy's .npy and .npz, CSV, Parquet (extra `parquet`). Pickles are never loaded."""

from __future__ import annotations

import csv
import zipfile
import zlib
from dataclasses import dataclass
from importlib import import_module
from math import nan, prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.drift.errors import DriftError, MissingPackage
from headrace.drift.fit import Source
from headrace.drift.text import shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    Rows = NDArray[Any]
    Shape = tuple[int, ...]

CHUNK_ROWS = 4096
CHUNK_BYTES = 64 << 20
_EXACT = 2.0**53  # below it FP64 has all integers
_NOTHING = {"", "na", "n/a", "nan", "null", "none", "?"}
_BROKEN_ARRAY = (ValueError, EOFError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True, slots=True)
class Known:
    """The names of a row's elements, in their order, and who says so. labels: of classes: columns may have others."""

    names: tuple[str, ...] = ()
    said_by: str = ""
    labels: bool = False


def file_and_columns(text: str) -> tuple[str, tuple[str, ...]]:
    """The parts of `FILE` or `FILE:COLUMN,COLUMN`, as commands take them. A file that is there has no columns."""
    path, _, columns = text.partition(":") if not Path(text).exists() else (text, "", "")
    return path, tuple(filter(None, columns.split(",")))


def open_source(
    path: Path,
    name: str,
    shape: Shape,
    columns: Sequence[str] = (),
    *,
    text: bool = False,
    known: Known = Known(),
) -> Source:
    """Rows of the tensor `name` from a file, by its suffix.

    shape: of a row, -1 for any size. columns: of a table, those that make a row, in this order; all by default. known:
    then columns with these names are taken by name, wherever they are in the table. In an .npz, the array called as the
    tensor is, or the only one. text: whether the tensor is of texts, BYTES, and not of numbers: the data do not tell, a
    column may be of nothing but gaps. Raises DriftError, OSError.
    """
    readers = {".npy": _numpy, ".npz": _numpy, ".csv": _csv, ".parquet": _parquet, ".pq": _parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DriftError(f"{path}: expected a file ending in {', '.join(readers)}")
    if columns and reader is _numpy:
        raise DriftError(f"{path}: columns are chosen by name from tables alone")
    return reader(path, name, shape, columns, text, known)


def _array(path: Path, name: str) -> Rows:
    try:
        with path.open("rb") as file:
            archived = file.read(2) == b"PK"
            file.seek(0)
            if archived:  # of our own file: NumPy leaves its own open when an archive is broken
                with np.load(file, allow_pickle=False) as archive:
                    names = archive.files
                    if name not in names and len(names) != 1:
                        raise DriftError(f"{path}: no array {name!r}, but {', '.join(names) or 'none'}")
                    found = archive[name if name in names else names[0]]
            else:
                found = np.load(path, mmap_mode="r", allow_pickle=False)
    except _BROKEN_ARRAY as error:
        raise DriftError(f"{path}: {_line(error)}") from None
    if not isinstance(found, np.ndarray) or not found.ndim:
        raise DriftError(f"{path}: a single value, expected rows")
    return np.asarray(found) if found.dtype.kind in "US" else found


def _line(error: Exception) -> str:
    """What a library says, which may be of several lines."""
    return " ".join(str(error).split()) or type(error).__name__


def _numpy(path: Path, name: str, shape: Shape, columns: Sequence[str], text: bool, known: Known) -> Source:
    array = _array(path, name)
    if array.dtype.kind not in ("US" if text else "biuf"):
        raise DriftError(f"{path}: an array of {array.dtype}, expected {'texts' if text else 'numbers'}")
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


def _csv(path: Path, name: str, shape: Shape, columns: Sequence[str], text: bool, known: Known) -> Source:
    first = next((line for _, line in _lines(path)), [])
    header = bool(columns) or not all(_is_number(each) for each in first)
    names = first if header else [str(at) for at in range(len(first))]
    places = _places(names, _by_name(names, columns, known, str(path)) if header else columns, str(path))
    chosen = [names[place] for place in places]

    def table(lines: list[tuple[int, list[str]]]) -> Rows:
        rows = _texts(lines) if text else _numbers(lines, chosen, str(path))
        return _row(rows, shape, str(path))

    def chunks() -> Iterator[Rows]:
        numbered = _lines(path)
        if header:
            next(numbered, None)
        lines: list[tuple[int, list[str]]] = []
        for number, line in numbered:
            if len(line) != len(names):
                if line:
                    raise DriftError(f"{path}: line {number}: {len(line)} columns, expected {len(names)}")
                continue
            lines.append((number, [line[place] for place in places]))
            if len(lines) >= CHUNK_ROWS:
                yield table(lines)
                lines = []
        if lines:
            yield table(lines)

    return Source(str(path), chunks, None, tuple(chosen) if header else ())


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The lines of a CSV file, with the numbers that an editor shows. Raises DriftError, OSError."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        try:
            for line in reader:
                yield reader.line_num, line
        except UnicodeDecodeError:
            raise DriftError(f"{path}: line {_undecoded(path)}: not in UTF-8, expected text in UTF-8") from None
        except csv.Error as error:
            raise DriftError(f"{path}: line {reader.line_num}: {_line(error)}") from None


def _undecoded(path: Path) -> int:
    """The first line that is not in UTF-8: what reads ahead in blocks does not know."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 1  # it has changed meanwhile


def _by_name(names: Sequence[str], columns: Sequence[str], known: Known, where: str) -> Sequence[str]:
    """Which columns make a row, in the order that is known; those that were chosen under other names, in their own.

    Raises DriftError where a name says that a column is another than its place does.
    """
    said = columns or names
    if not known.names or list(said) == list(known.names):
        return columns
    if set(known.names) == set(said) or (not columns and set(known.names) <= set(said)):
        return known.names
    strange = [name for at, name in enumerate(said) if name in known.names and known.names[at : at + 1] != (name,)]
    if (columns and not strange) or (known.labels and not set(known.names) & set(said)):
        return columns
    raise DriftError(
        f"{where}: columns {', '.join(map(shown, said))}, but the names are {', '.join(map(shown, known.names))} "
        f"({known.said_by}): expected columns of these names, or others chosen in this order: FILE:COLUMN,COLUMN"
    )


def _places(names: Sequence[str], columns: Sequence[str], where: str) -> list[int]:
    missing = [column for column in columns if column not in names]
    if missing:
        raise DriftError(f"{where}: no column {missing[0]!r}, but {', '.join(map(shown, names))}")
    for column in columns or names:  # features are told apart by their names
        if names.count(column) > 1:
            raise DriftError(f"{where}: {names.count(column)} columns {column!r}, expected one of each name")
    return [names.index(column) for column in columns] if columns else list(range(len(names)))


def _texts(lines: list[tuple[int, list[str]]]) -> Rows:
    return np.array([[text.encode() for text in line] for _, line in lines], object)


def _numbers(lines: list[tuple[int, list[str]]], names: Sequence[str], where: str) -> Rows:
    try:
        return _exact(np.array([[_number(text) for text in line] for _, line in lines]), [line for _, line in lines])
    except ValueError:
        number, name, text = next(
            (number, name, text)
            for number, line in lines
            for name, text in zip(names, line, strict=True)
            if not _is_number(text)
        )
    raise DriftError(f"{where}: line {number}, column {name!r}: {_shown(text)}, expected a number")


def _exact(found: Rows, values: Sequence[Any]) -> Rows:
    """Numbers, as integers where FP64 does not have all of them. values: what they were made of, texts or numbers."""
    if found.dtype.kind != "f" or not (np.abs(found) >= _EXACT).any():
        return found
    try:
        whole = np.frompyfunc(int, 1, 1)(np.array(values, object))
        exact = np.asarray(whole.astype(np.uint64 if whole.min() >= 0 else np.int64))
    except (ValueError, OverflowError):  # a gap, an infinity, digits after the point, more than 64 bits
        return found
    return exact if np.array_equal(exact.astype(np.float64), found) else found


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}...")


def _number(text: str) -> float:
    return nan if text.strip().lower() in _NOTHING else float(text)


def _is_number(text: str) -> bool:
    try:
        _number(text)
    except ValueError:
        return False
    return True


def _parquet(path: Path, name: str, shape: Shape, columns: Sequence[str], text: bool, known: Known) -> Source:
    try:
        parquet, types = import_module("pyarrow.parquet"), import_module("pyarrow.types")
    except ImportError:
        raise MissingPackage(f"{path}: Parquet needs the package pyarrow: pip install 'headrace[parquet]'") from None
    try:
        with parquet.ParquetFile(path) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
    except (ValueError, NotImplementedError, OSError) as error:  # ArrowInvalid is a ValueError
        raise _damaged(path, error) from None
    names = list(schema.names)
    if len(names) > 1 or columns or not _is_list(types, schema.field(0).type):
        columns = _by_name(names, columns, known, str(path))
    chosen = [names[place] for place in _places(names, columns, str(path))]
    for each in chosen:
        _check_type(types, schema.field(each).type, text, f"{path}: column {each!r}")

    def chunks() -> Iterator[Rows]:
        try:
            with parquet.ParquetFile(path) as file:
                for batch in file.iter_batches(CHUNK_ROWS, columns=chosen):
                    parts = [_column(batch.column(batch.schema.get_field_index(each)), text) for each in chosen]
                    yield _row(parts[0] if len(parts) == 1 else np.stack(parts, axis=1), shape, str(path))
        except (ValueError, NotImplementedError, OSError) as error:
            raise _damaged(path, error) from None

    return Source(str(path), chunks, rows, tuple(chosen) if len(chosen) > 1 else ())


def _damaged(path: Path, error: Exception) -> Exception:
    """What Arrow says of a file, whose name it leaves out; an error of the system stays as it is."""
    if isinstance(error, OSError) and error.errno is not None:
        return error
    return DriftError(f"{path}: {_line(error)}")


def _is_list(types: Any, kind: Any) -> bool:  # noqa: ANN401
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _check_type(types: Any, kind: Any, text: bool, where: str) -> None:  # noqa: ANN401
    """Refuses a column of times, say, before anything is read: what is made of it would fit no request."""
    inner = kind
    while _is_list(types, inner):
        inner = inner.value_type
    if types.is_dictionary(inner):  # a categorical column
        inner = inner.value_type
    numbers = (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal, types.is_null)
    texts = (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary, types.is_fixed_size_binary)
    if not any(check(inner) for check in (numbers + texts if text else numbers)):
        raise DriftError(f"{where} is {kind}, expected {'texts' if text else 'numbers'}")


def _column(column: Any, text: bool) -> Rows:  # noqa: ANN401
    """An Arrow column: numbers with NaN for None, text as octets and None, lists as rows. Raises DriftError."""
    values = column.to_pylist()
    gap, convert = (None, _octets) if text else (nan, _plain)
    some = next((value for value in values if value is not None), None)
    if isinstance(some, list):
        sizes = {len(value) for value in values if value is not None}
        if len(sizes) != 1:
            raise DriftError(f"lists of {min(sizes)} to {max(sizes)} values in a column, expected equal lengths")
        values = [[gap] * max(sizes) if value is None else [convert(each) for each in value] for value in values]
    else:
        values = [convert(value) for value in values]
    if text:
        return np.array(values, object)
    found = np.array(values)
    return _exact(found.astype(np.float64) if found.dtype == object else found, values)  # objects are decimals


def _plain(value: Any) -> Any:  # noqa: ANN401
    return nan if value is None else value


def _octets(value: Any) -> Any:  # noqa: ANN401
    """Text as a client sends it; a number as it is written; None where there is none."""
    return value if value is None or isinstance(value, bytes) else str(value).encode()
