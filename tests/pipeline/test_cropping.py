import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.messages import TensorSpec
from headrace.pipeline import bytes_tensor
from headrace.pipeline.cropping import Crop, Cut, Follows
from headrace.testing.requests import FakeWriter

Y = TensorSpec("y", "INT32", (-1, 2))
T = TensorSpec("t", "BYTES", (-1,))
Z = TensorSpec("z", "FP32", ())


def test_each_output_is_cut_where_it_follows_a_length():
    crop = Crop(FakeWriter(), [Y, Z, T], [[Cut(1, 3, 2)], [], [Cut(1, 4, 1)]])
    y = np.arange(12, dtype=np.int32).reshape(2, 3, 2)
    t = np.array([["a", "bb", "", ""], ["c", "", "", "ddd"]], object)
    raw, shapes, parameters = crop.encode(
        b"id", [y.tobytes(), b"8 bytes.", bytes_tensor.encode(t)], ((2, 3, 2), (2,), (2, 4)), b"more"
    )
    assert shapes == ((2, 2, 2), (2,), (2, 1))
    assert raw == [y[:, :2].tobytes(), b"8 bytes.", bytes_tensor.encode(np.array(["a", "c"], object))]
    assert parameters == b"more"
    assert crop.opening(((2, 3, 2), (2,), (2, 4))) is None
    assert "Cut(dim=1, full=3, own=2)" in repr(crop)


def test_the_same_before_another_writer():
    inner = FakeWriter()
    crop = Crop(FakeWriter(), [Y], [[Cut(1, 3, 2)]]).around(inner)
    assert crop.inner is inner
    assert crop.encode(b"", [bytes(24)], ((1, 3, 2),))[:2] == ([bytes(16)], ((1, 2, 2),))


@pytest.mark.parametrize("got", [0, 2, 4])
def test_an_output_that_is_not_as_large_as_its_bucket_is_not_cut(got):
    with pytest.raises(ValueError, match=rf"output 'y' has {got} in dimension 1, buckets\.\*\.outputs makes it 3"):
        Crop(FakeWriter(), [Y], [[Cut(1, 3, 2)]]).encode(b"", [bytes(8 * got)], ((1, got, 2),))


@given(st.integers(0, 4), st.integers(0, 3), st.integers(1, 3))
def test_two_dimensions_at_once(height, width, rows):
    spec = TensorSpec("y", "UINT8", (-1, 2, -1))
    values = np.arange(rows * 24, dtype=np.uint8).reshape(rows, 4, 2, 3)
    crop = Crop(FakeWriter(), [spec], [[Cut(1, 4, height), Cut(3, 3, width)]])
    (raw,), (shape,), _ = crop.encode(b"", [values.tobytes()], (values.shape,))
    assert shape == (rows, height, 2, width)
    np.testing.assert_array_equal(np.frombuffer(raw, np.uint8).reshape(shape), values[:, :height, :, :width])


def test_without_a_batch_dimension():
    (raw,), (shape,), _ = Crop(FakeWriter(), [T], [[Cut(0, 3, 2)]]).encode(
        b"", [bytes_tensor.encode(np.array(["a", "b", "c"], object))], ((3,),)
    )
    assert (bytes_tensor.decode(raw, 2), shape) == ([b"a", b"b"], (2,))


@pytest.mark.parametrize(
    ("follows", "sizes"),
    [
        (Follows(0, 1), [0, 1, 2, 9]),
        (Follows(0, 1, divide=8), [0, 0, 0, 1]),
        (Follows(0, 1, divide=8, add=7), [0, 1, 1, 2]),
        (Follows(0, 1, multiply=2, add=-3), [0, 0, 1, 15]),
        (Follows(0, 1, multiply=3, divide=2), [0, 1, 3, 13]),
    ],
)
def test_sizes_that_follow_a_length(follows, sizes):
    assert [follows.size((99, length)) for length in (0, 1, 2, 9)] == sizes
