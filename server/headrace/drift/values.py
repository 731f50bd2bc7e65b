"""Whether data are what a tensor can hold: a file may have gaps, or numbers, that no request could bring."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.datatypes import DATATYPES
from headrace.drift.errors import DriftError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from headrace.drift.fit import Source

    Rows = NDArray[Any]
    Mask = NDArray[np.bool_]

_BEYOND_BF16 = float(np.uint32(0x7F7F8000).view(np.float32))
"""From here on BF16 rounds to infinity."""


def checked(source: Source, datatype: str) -> Source:
    """The same rows, as a request would bring them.

    Reading them raises DriftError, which names the place, for a value that the datatype has not. Floating point rounds
    what it takes, and has NaN and the infinities; an integer must be exact.
    """
    if datatype == "BYTES":
        return source

    def chunks() -> Iterator[Rows]:
        done = 0
        for rows in source.chunks():
            wrong = _wrong(rows, datatype)
            if wrong is not None and wrong.any():
                place = np.argwhere(wrong)[0].tolist()
                names = source.names if wrong.shape[1:] == (len(source.names),) else ()
                at = f"column {names[place[1]]!r}" if names else f"element {place[1:]}"
                value = rows[tuple(place)].item()
                raise DriftError(
                    f"{source.name}: row {done + place[0] + 1:,}, {at}: {value}, expected {_expected(datatype)}"
                )
            done += len(rows)
            yield _held(rows, datatype)

    return replace(source, chunks=chunks)


def _wrong(rows: Rows, datatype: str) -> Mask | None:
    """Which elements the datatype has not; None: there can be none."""
    dtype = DATATYPES[datatype].numpy
    if rows.dtype == dtype or rows.dtype.kind == "b":
        return None  # BF16 as bit patterns among them
    if datatype == "BOOL":
        return np.asarray((rows != 0) & (rows != 1))
    if datatype == "BF16":
        return np.asarray(np.isfinite(rows) & (np.abs(rows) >= _BEYOND_BF16))
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return np.asarray(np.isfinite(rows) & ~np.isfinite(rows.astype(dtype)))
    least, most = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    if rows.dtype.kind == "f":
        whole = (rows >= float(least)) & (rows < float(most + 1)) & (np.rint(rows) == rows)
        return np.asarray(~whole)
    return np.asarray((rows < least) | (rows > most))


def _held(rows: Rows, datatype: str) -> Rows:
    """As the datatype holds them, BF16 as FP32: what is not rounded yet has another distribution than what is."""
    dtype = DATATYPES[datatype].numpy
    if datatype == "BF16" and rows.dtype != dtype:
        single = rows.astype(np.float32)
        bits = single.view(np.uint32)
        rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32)  # to the nearest, or even
        return np.where(np.isnan(single), single, rounded)
    return rows.astype(dtype, copy=False) if dtype.kind == "f" else rows


def _expected(datatype: str) -> str:
    dtype = DATATYPES[datatype].numpy
    if datatype == "BOOL":
        return "0 or 1 for BOOL"
    if dtype.kind == "f" or datatype == "BF16":
        return f"a number that {datatype} can hold"
    limits = np.iinfo(dtype)
    return f"an integer from {limits.min} to {limits.max} for {datatype}"
