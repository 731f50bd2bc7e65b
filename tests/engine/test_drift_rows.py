import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.datatypes import DATATYPES
from headrace.engine.drift_rows import LazyRows
from headrace.messages import TensorSpec
from headrace.pipeline import bytes_tensor

cuts = st.lists(st.integers(1, 4), min_size=1, max_size=6)


@given(cuts, st.data())
def test_rows_are_those_of_the_joined_tensor(counts, data):
    rows = sum(counts)
    whole = np.arange(rows * 6, dtype=np.float32).reshape(rows, 2, 3)
    parts = [part.tobytes() for part in np.split(whole, np.cumsum(counts)[:-1])]
    lazy = LazyRows(TensorSpec("x", "FP32", (2, 3)), parts, counts, (2, 3))
    assert lazy.nbytes == whole.nbytes
    most = data.draw(st.integers(0, rows))
    np.testing.assert_array_equal(lazy[:most], whole[:most])
    chosen = np.array(sorted(data.draw(st.sets(st.integers(0, rows - 1), min_size=1))))
    np.testing.assert_array_equal(lazy[chosen], whole[chosen])


def test_texts():
    values = np.array([[b"a", b""], [b"cc", b"\xff"]], object)
    lazy = LazyRows(TensorSpec("x", "BYTES", (2,)), [bytes_tensor.encode(values)], [2], (2,))
    assert lazy[:2].tolist() == values.tolist()
    assert lazy[np.array([1])].tolist() == [[b"cc", b"\xff"]]


@pytest.mark.parametrize("datatype", [name for name, one in DATATYPES.items() if one.itemsize])
def test_every_datatype(datatype):
    dtype = DATATYPES[datatype].numpy
    values = np.array([[0, 1], [1, 0]]).astype(dtype)
    lazy = LazyRows(TensorSpec("x", datatype, (2,)), [values[:1].tobytes(), values[1:].tobytes()], [1, 1], (2,))
    assert lazy[:2].dtype == dtype
    np.testing.assert_array_equal(lazy[:2], values)


def test_padding_is_left_out():
    padded = np.arange(24, dtype=np.int32).reshape(2, 3, 4)
    lazy = LazyRows(TensorSpec("y", "INT32", (-1, -1)), [padded.tobytes()], [2], (3, 4), (2, 1))
    np.testing.assert_array_equal(lazy[:2], padded[:, :2, :1])
    np.testing.assert_array_equal(lazy[np.array([1])], padded[1:, :2, :1])
