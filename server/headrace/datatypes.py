"""The tensor datatypes of the Open Inference Protocol and how they lie in memory.

Source: Open Inference Protocol, "Tensor Data Types"; BYTES and BF16 from Triton's binary tensor data extension.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class DataType:
    """One datatype: its protocol name, bytes per element (0: variable) and the NumPy dtype that holds it.

    BF16 has no NumPy dtype of its own and is held as uint16 bit patterns; BYTES is held as an object array of `bytes`.
    All are little-endian on the wire.
    """

    name: str
    itemsize: int
    numpy: np.dtype


def _fixed(name: str, numpy: str) -> DataType:
    dtype = np.dtype(numpy)
    return DataType(name, dtype.itemsize, dtype)


DATATYPES: dict[str, DataType] = {
    d.name: d
    for d in (
        _fixed("BOOL", "?"),
        _fixed("UINT8", "u1"),
        _fixed("UINT16", "<u2"),
        _fixed("UINT32", "<u4"),
        _fixed("UINT64", "<u8"),
        _fixed("INT8", "i1"),
        _fixed("INT16", "<i2"),
        _fixed("INT32", "<i4"),
        _fixed("INT64", "<i8"),
        _fixed("FP16", "<f2"),
        _fixed("FP32", "<f4"),
        _fixed("FP64", "<f8"),
        _fixed("BF16", "<u2"),
        DataType("BYTES", 0, np.dtype(object)),
    )
}
