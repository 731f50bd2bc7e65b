"""Rows to calibrate with and to evaluate on: what is read, what is checked of them, how a model is fed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.drift.errors import DriftError
from headrace.drift.readers import file_and_columns, open_source
from headrace.quantize.errors import QuantizeError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    Array = np.ndarray[Any, Any]
    Given = tuple[str, Path, tuple[str, ...]]

_LABEL_DIMS = 4
BATCH = 32
"""Rows of a run, where the model leaves it open."""


@dataclass(frozen=True, slots=True)
class InputSpec:
    """An input as the model file declares it. shape: with the batch's dimension, -1 for any size."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Dataset:
    """Rows of every input, [rows, ...], and of labels if there are some.

    single: whether the model has no dimension for a batch, so that each row is a run. step: rows of a run, 0 for any.
    """

    inputs: Mapping[str, Array]
    labels: Array | None
    rows: int
    single: bool = False
    step: int = 0

    def feeds(self, size: int = BATCH) -> Iterator[tuple[slice, dict[str, Array]]]:
        """What each run is fed, and which rows these are. size: rows of a run, where the model leaves it open."""
        size = 1 if self.single else self.step or size
        for start in range(0, self.rows, size):
            part = slice(start, min(start + size, self.rows))
            yield (
                part,
                {name: self.one(rows, start) if self.single else rows[part] for name, rows in self.inputs.items()},
            )

    @staticmethod
    def one(rows: Array, at: int) -> Array:
        """A row, which of scalars is one too and no number of Python's."""
        return np.asarray(rows[at], rows.dtype)

    def runs(self, size: int = BATCH) -> int:
        """How many there are."""
        return -(-self.rows // (1 if self.single else self.step or size))

    def taken(self, places: Array) -> Dataset:
        """These rows of it."""
        places = places[: len(places) // self.step * self.step] if self.step else places
        inputs = {name: rows[places] for name, rows in self.inputs.items()}
        labels = None if self.labels is None else self.labels[places]
        return replace(self, inputs=inputs, labels=labels, rows=len(places))

    def spread(self, most: int) -> Dataset:
        """At most so many rows of it, evenly spaced: data are often in some order."""
        if self.rows <= most:
            return self
        return self.taken(np.linspace(0, self.rows - 1, max(most, self.step)).astype(np.int64))

    def sha256(self) -> str:
        """Of names, dtypes, shapes and values, inputs in the order of their names, labels last."""
        digest = hashlib.sha256()
        parts = sorted(self.inputs.items())
        if self.labels is not None:
            parts.append(("", self.labels))
        for name, array in parts:
            digest.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
            digest.update(
                np.ascontiguousarray(array).data if array.dtype.kind != "O" else repr(array.tolist()).encode()
            )
        return digest.hexdigest()


def given_file(option: str, text: str) -> Given:
    """Name, file and columns of `FILE`, where the name is "", or `NAME=FILE` or `NAME=FILE:COLUMN,COLUMN`.

    Raises QuantizeError.
    """
    name, separator, rest = text.partition("=")
    if not separator or Path(text).exists():
        name, rest = "", text
    path, columns = file_and_columns(rest)
    if not path or (separator and not rest):
        raise QuantizeError(f"{option} {text}: expected FILE.npz, NAME=FILE or NAME=FILE:COLUMN,COLUMN")
    return name, Path(path), columns


def read_dataset(
    option: str, given: Sequence[str], specs: Sequence[InputSpec], labels: str, *, wanted: bool
) -> Dataset:
    """The rows in files. option: what they are given by. labels: the name of the labels among them, "" for none.

    wanted: whether the labels have to be there. Raises QuantizeError, OSError.
    """
    files: dict[str, Given] = {}
    for text in given:
        one = given_file(option, text)
        if one[0] in files:
            raise QuantizeError(
                f"{option} {text}: {f'{one[0]} is' if one[0] else 'a file for all inputs is'} given twice"
            )
        files[one[0]] = one
    names = [spec.name for spec in specs]
    unknown = [name for name in files if name and name not in (*names, labels)]
    if unknown:
        raise QuantizeError(f"{option} {unknown[0]}=...: no such input; the model has {', '.join(names)}")
    whole = files.get("")
    if whole and whole[2]:
        raise QuantizeError(f"{option} {given[0]}: columns are of one input, expected INPUT=FILE:COLUMN,COLUMN")
    if whole and whole[1].suffix.lower() != ".npz" and len(specs) > 1:
        raise QuantizeError(f"{option} {given[0]}: expected an .npz with {', '.join(names)}, or INPUT=FILE for each")
    inputs, layouts = {}, {}
    for spec in specs:
        found = files.get(spec.name) or whole
        if found is None:
            raise QuantizeError(f"{option}: no data for input {spec.name}: expected {spec.name}=FILE, or an .npz")
        inputs[spec.name], layouts[spec.name] = _read_input(found, spec)
    rows = {name: len(array) for name, array in inputs.items()}
    if len(set(rows.values())) > 1:
        raise QuantizeError(f"{option}: " + ", ".join(f"{name} has {count} rows" for name, count in rows.items()))
    count = next(iter(rows.values()))
    if not count:
        raise QuantizeError(f"{option}: no rows")
    truth = _read_labels(option, files.get(labels), whole, labels, wanted)
    if truth is not None and len(truth) != count:
        raise QuantizeError(f"{option}: {len(truth)} labels for {count} rows")
    return _laid_out(option, Dataset(inputs, truth, count), specs, layouts)


def _laid_out(option: str, data: Dataset, specs: Sequence[InputSpec], layouts: Mapping[str, bool]) -> Dataset:
    """The data as the model takes them: any number of rows at once, a fixed one, or one by one."""
    if any(layouts.values()):
        inputs = {name: rows if layouts[name] else rows[:, None] for name, rows in data.inputs.items()}
        return replace(data, inputs=inputs, single=True)
    steps = {spec.shape[0] for spec in specs if spec.shape[0] > 0}
    if len(steps) > 1:
        raise QuantizeError(f"{option}: the model takes batches of {' and of '.join(map(str, sorted(steps)))} rows")
    step = next(iter(steps), 0)
    if step > data.rows:
        raise QuantizeError(f"{option}: {data.rows} rows, but the model takes batches of {step}")
    laid = replace(data, step=step)
    return laid.taken(np.arange(data.rows)) if step else laid


def _read_input(given: Given, spec: InputSpec) -> tuple[Array, bool]:
    """Rows, and whether a row is all of what the model takes, because it has no dimension for a batch."""
    _, path, columns = given
    if path.suffix.lower() == ".npz" and given[0] == "":
        _has_array(path, spec.name)
    problem: DriftError | None = None
    for shape in (spec.shape[1:], spec.shape):
        try:
            chunks = list(open_source(path, spec.name, shape, columns, text=spec.dtype.kind == "O").chunks())
        except DriftError as error:
            problem = problem or error
            continue
        rows = np.concatenate(chunks) if chunks else np.empty((0, *shape))
        if rows.dtype == object:
            gaps = np.array([value is None for value in rows.flat], np.bool_).reshape(rows.shape)
            rows[gaps] = b""  # as a client would send them
        return _converted(rows, spec, path), len(shape) == len(spec.shape)
    raise QuantizeError(f"{problem} (input {spec.name})") from None


def _has_array(path: Path, name: str) -> None:
    """A file for all inputs has each by its name: the only array of an .npz would do for one that is given alone."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            names = archive.files
    except OSError:
        raise
    except Exception as error:  # zipfile's and NumPy's have no common base
        raise QuantizeError(f"{path}: no .npz: {' '.join(str(error).split()) or type(error).__name__}") from None
    if name not in names:
        raise QuantizeError(f"{path}: no array {name!r}, but {', '.join(names) or 'none'}")


def _converted(rows: Array, spec: InputSpec, path: Path) -> Array:
    """As the model takes them. Raises QuantizeError for values that it cannot have."""
    if spec.dtype.kind == "O":
        return rows
    if rows.dtype.kind == "f" and not np.isfinite(rows).all():
        at = int(np.flatnonzero(~np.isfinite(rows.reshape(len(rows), -1)).all(axis=1))[0])
        raise QuantizeError(
            f"{path}: row {at} of {spec.name} is not finite; nothing can be calibrated or measured by it"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        found = rows.astype(spec.dtype)
    exact = spec.dtype.kind == "f" or np.array_equal(found, rows)
    if not exact or (found.dtype.kind == "f" and not np.isfinite(found).all()):
        raise QuantizeError(f"{path}: values of {spec.name} do not fit its datatype, {spec.dtype}")
    return found


def _read_labels(option: str, own: Given | None, whole: Given | None, name: str, wanted: bool) -> Array | None:
    """Labels of any shape of numbers; None if there are none and nobody wants them."""
    if not name:
        return None
    found = own or whole
    if found is None or (own is None and found[1].suffix.lower() != ".npz"):
        if wanted:
            raise QuantizeError(f"{option}: no labels {name}: expected {name}=FILE, or an .npz with them")
        return None
    if own is None:
        try:
            _has_array(found[1], name)
        except QuantizeError:
            if wanted:
                raise
            return None
    problem: DriftError | None = None
    for dims in range(_LABEL_DIMS):
        try:
            parts = list(open_source(found[1], name, (-1,) * dims, found[2]).chunks())
        except DriftError as error:
            problem = problem or error
            continue
        labels = np.concatenate(parts) if parts else np.empty(0)
        if labels.dtype.kind == "f" and not np.isfinite(labels).all():
            raise QuantizeError(
                f"{found[1]}: label {int(np.argmin(np.isfinite(labels).reshape(len(labels), -1).all(1)))} is not finite"
            )
        return labels
    raise QuantizeError(f"{problem} (labels {name})") from None


def overlap(data: Dataset, other: Dataset) -> int:
    """How many rows of `data` are in `other` as well, input by input the same."""
    known = {*_keys(other)}
    return sum(key in known for key in _keys(data))


def _keys(data: Dataset) -> list[bytes]:
    keys = []
    for row in range(data.rows):
        digest = hashlib.blake2b(digest_size=16)
        for _, array in sorted(data.inputs.items()):
            value = array[row]
            digest.update(np.ascontiguousarray(value).tobytes() if array.dtype.kind != "O" else repr(value).encode())
        keys.append(digest.digest())
    return keys
