"""Rows of differing lengths to a padded batch, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import DTypeLike, NDArray

ROW_BY_ROW = 32  # items a row from which copying row by row is quicker than one assignment through the mask


class Padded(NamedTuple):
    """values [rows, length, *item]; mask [rows, length], 1 where there is data; lengths [rows], what each row holds."""

    values: NDArray[Any]
    mask: NDArray[Any]
    lengths: NDArray[Any]


def offsets_of(lengths: Sequence[int] | NDArray[np.integer[Any]], rows: int = 0) -> NDArray[np.int64]:
    """INT64 [rows + 1]: where rows of these lengths begin, and the last ends. rows: if more, the others are empty."""
    counts = np.asarray(lengths, np.int64)
    offsets = np.empty(max(rows, len(counts)) + 1, np.int64)
    offsets[0] = 0
    np.cumsum(counts, out=offsets[1 : len(counts) + 1])
    offsets[len(counts) + 1 :] = offsets[len(counts)]
    return offsets


def gather(
    values: NDArray[Any],
    offsets: NDArray[np.int64],
    length: int,
    *,
    pad: Any = 0,  # noqa: ANN401
    mask_dtype: DTypeLike = np.bool_,
    lengths_dtype: DTypeLike = np.int64,
) -> Padded:
    """Rows values[offsets[i]:offsets[i + 1]] as a padded batch; what a row has beyond `length` is left out.

    values: [items, *item], any dtype of 1, 2, 4 or 8 bytes. offsets: INT64 [rows + 1], from `offsets_of`.
    Raises ValueError if offsets fall, or leave values.
    """
    check_offsets(offsets, len(values))
    rows = len(offsets) - 1
    lengths = np.minimum(np.diff(offsets), length)
    inside = np.arange(length) < lengths[:, None]
    padded = np.full((rows, length, *values.shape[1:]), pad, values.dtype)
    if rows and int(lengths.sum()) >= ROW_BY_ROW * rows:
        for row, start, count in zip(padded, offsets.tolist(), lengths.tolist(), strict=False):
            row[:count] = values[start : start + count]
    else:
        padded[inside] = values[_positions(offsets, lengths)]
    return Padded(padded, inside.astype(mask_dtype), lengths.astype(lengths_dtype))


def scatter(padded: NDArray[Any], offsets: NDArray[np.int64], out: NDArray[Any] | None = None) -> NDArray[Any]:
    """The reverse: the data of a padded batch [rows, length, *item] as ragged rows [items, *item].

    out: to be written to, with at least offsets[-1] items; what of a row lies beyond `length` is left as it is there,
    and is zeros in a new array. Raises ValueError if offsets fall, are not of these rows, or leave out.
    """
    rows, length = padded.shape[:2]
    if out is None:
        out = np.zeros((int(offsets[-1]) if len(offsets) else 0, *padded.shape[2:]), padded.dtype)
    elif out.shape[1:] != padded.shape[2:] or out.dtype != padded.dtype:
        raise ValueError(f"out is {out.dtype} {list(out.shape)}; items are {padded.dtype} {list(padded.shape[2:])}")
    check_offsets(offsets, len(out))
    if len(offsets) != rows + 1:
        raise ValueError(f"{rows} rows have {rows + 1} offsets, not {len(offsets)}")
    lengths = np.minimum(np.diff(offsets), length)
    if rows and int(lengths.sum()) >= ROW_BY_ROW * rows:
        for row, start, count in zip(padded, offsets.tolist(), lengths.tolist(), strict=False):
            out[start : start + count] = row[:count]
    else:
        out[_positions(offsets, lengths)] = padded[np.arange(length) < lengths[:, None]]
    return out


def check_offsets(offsets: NDArray[np.int64], items: int) -> None:
    """Raises ValueError unless the offsets are INT64 [rows + 1], do not fall and stay inside 0 to items."""
    if offsets.ndim != 1 or not len(offsets) or offsets.dtype != np.int64:
        raise ValueError(f"offsets are int64 [rows + 1], not {offsets.dtype} {list(offsets.shape)}")
    if offsets[0] < 0 or offsets[-1] > items or (np.diff(offsets) < 0).any():
        raise ValueError(f"offsets must not fall, and stay inside 0 to {items}: {offsets[:10].tolist()}...")


def _positions(offsets: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The index among the values of each item that is kept, in order."""
    before = np.cumsum(lengths) - lengths
    found: NDArray[np.int64] = np.arange(int(lengths.sum())) + np.repeat(offsets[:-1] - before, lengths)
    return found
