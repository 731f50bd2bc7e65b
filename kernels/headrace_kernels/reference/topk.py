"""The k greatest of each row of a batch of logits, and their probabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

AT_ONCE = 1 << 16  # elements that are ranked together, 8 bytes each, so that they stay in the processor's cache


class TopK(NamedTuple):
    """values FP32 [rows, k], in descending order; indices INT32 [rows, k], of the classes that they are of."""

    values: NDArray[np.float32]
    indices: NDArray[np.int32]


def top_k(logits: NDArray[Any], k: int, *, softmax: bool = True) -> TopK:
    """The k greatest logits of each row, as softmax probabilities or, without softmax, as they are.

    logits: float32 or float16 [rows, classes]. Equal logits, 0 and -0 among them, come in the order of their indices.
    A NaN ranks below all else, -inf included, but is seen: with softmax all probabilities of a row that holds a NaN are
    NaN, as are those of a row that holds +inf or nothing but -inf. Raises ValueError unless 1 <= k <= classes.
    """
    if logits.ndim != 2 or logits.dtype not in (np.float32, np.float16):
        raise ValueError(f"logits are float32 or float16 [rows, classes], not {logits.dtype} {list(logits.shape)}")
    rows, classes = logits.shape
    if not 1 <= k <= classes:
        raise ValueError(f"k is 1 to {classes}, the number of classes, not {k}")
    result = TopK(np.empty((rows, k), np.float32), np.empty((rows, k), np.int32))
    for part in _parts(rows, classes):
        real = logits[part].astype(np.float32)
        indices = _ranked(real, k)
        values = np.take_along_axis(real, indices, axis=1)
        if softmax:
            with np.errstate(invalid="ignore"):  # inf - inf
                greatest = values[:, :1]
                real -= greatest
                np.exp(real, out=real)
                values = np.exp(values - greatest) / real.sum(axis=1, keepdims=True)
        result.values[part] = values
        result.indices[part] = indices
    return result


def _parts(rows: int, classes: int) -> Iterator[slice]:
    step = max(1, AT_ONCE // classes)
    for start in range(0, rows, step):
        yield slice(start, start + step)


def _ranked(real: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """The indices of the k greatest of each row in order.

    Each element becomes one integer: the FP32 bits, made to sort like the numbers, above the inverted index. All are
    different, so that any selection is stable; the kernel compares the same integers.
    """
    bits = (real + np.float32(0)).view(np.int32)  # -0 + 0 is 0
    rank = bits.view(np.uint32) ^ ((bits >> 31).view(np.uint32) | np.uint32(1 << 31))
    rank[np.isnan(real)] = 0
    keys = np.left_shift(rank, np.uint64(32), dtype=np.uint64)
    keys |= np.uint64(0xFFFFFFFF) - np.arange(real.shape[1], dtype=np.uint64)
    if k == 1:
        keys = keys.max(axis=1, keepdims=True)
    else:
        if k < keys.shape[1]:
            keys = np.partition(keys, keys.shape[1] - k, axis=1)[:, -k:]
        keys = np.sort(keys, axis=1)[:, ::-1]
    return (np.uint64(0xFFFFFFFF) - (keys & np.uint64(0xFFFFFFFF))).astype(np.int64)
