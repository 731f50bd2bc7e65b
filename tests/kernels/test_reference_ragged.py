"""The reference for ragged rows: against loops, and there and back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_kernels.reference.ragged import gather, offsets_of, scatter

DTYPES = [np.int8, np.bool_, np.float16, np.int32, np.float64]
ragged = st.tuples(
    st.lists(st.one_of(st.integers(0, 5), st.integers(30, 90)), max_size=8),
    st.sampled_from([(), (1,), (3,), (2, 2)]),
    st.sampled_from(DTYPES),
)


def rows_of(lengths, item, dtype):
    values = np.random.default_rng(len(lengths)).integers(0, 100, (sum(lengths), *item)).astype(dtype)
    return values, offsets_of(lengths)


@given(ragged, st.integers(0, 100))
def test_gathers_what_a_loop_gathers(case, length):
    values, offsets = rows_of(*case)
    padded = gather(values, offsets, length, pad=1, mask_dtype=np.int64, lengths_dtype=np.int32)
    assert padded.values.dtype == values.dtype
    assert padded.values.shape == (len(case[0]), length, *case[1])
    for index, count in enumerate(case[0]):
        kept = min(count, length)
        start = offsets[index]
        np.testing.assert_array_equal(padded.values[index, :kept], values[start : start + kept])
        assert (padded.values[index, kept:] == np.ones((), values.dtype)).all()
        assert padded.mask[index].tolist() == [1] * kept + [0] * (length - kept)
        assert padded.lengths[index] == kept
    assert (padded.mask.dtype, padded.lengths.dtype) == (np.int64, np.int32)


@given(ragged)
def test_scattering_is_the_way_back(case):
    values, offsets = rows_of(*case)
    padded = gather(values, offsets, max(case[0], default=0))
    np.testing.assert_array_equal(scatter(padded.values, offsets), values)


@pytest.mark.parametrize("length", [2, 60])
def test_scatter_leaves_alone_what_is_beyond_the_length(length):
    offsets = offsets_of([70, 1])
    out = np.full(80, 7)
    scatter(np.zeros((2, length), out.dtype), offsets, out)
    assert (out[:length] == 0).all()
    assert (out[length:70] == 7).all()
    assert out[70] == 0
    assert (out[71:] == 7).all()


def test_rows_may_leave_gaps_in_front_and_be_filled_up():
    values = np.arange(10)
    offsets = np.array([4, 6, 9], np.int64)
    assert gather(values, offsets, 3).values.tolist() == [[4, 5, 0], [6, 7, 8]]
    assert gather(values, offsets_of([2, 3], rows=4), 3).lengths.tolist() == [2, 3, 0, 0]


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        (np.array([0, 3, 2], np.int64), "must not fall"),
        (np.array([-1, 3], np.int64), "must not fall, and stay inside 0 to 5"),
        (np.array([0, 6], np.int64), "stay inside 0 to 5"),
        (np.array([0, 5], np.int32), "not int32"),
        (np.zeros(0, np.int64), "rows"),
    ],
)
def test_refuses_offsets_that_are_none(offsets, message):
    with pytest.raises(ValueError, match=message):
        gather(np.arange(5), offsets, 4)


def test_scatter_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="2 rows have 3 offsets, not 2"):
        scatter(np.zeros((2, 2)), np.array([0, 2], np.int64))
    with pytest.raises(ValueError, match="out is int64"):
        scatter(np.zeros((2, 2)), offsets_of([2, 2]), np.zeros(4, np.int64))
    with pytest.raises(ValueError, match="stay inside 0 to 3"):
        scatter(np.zeros((2, 2)), offsets_of([2, 2]), np.zeros(3))
