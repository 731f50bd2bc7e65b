from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import InvalidRequest
from headrace.pipeline import bytes_tensor

AB = b"\x02\0\0\0ab\0\0\0\0"  # "ab", ""


def test_layout():
    assert bytes_tensor.decode(AB, 2) == [b"ab", b""]
    assert bytes_tensor.offsets(AB, 2) == [0, 6, 10]
    assert bytes_tensor.encode(np.array([b"ab", b""], dtype=object)) == AB


def test_no_elements():
    assert bytes_tensor.decode(b"", 0) == []
    assert bytes_tensor.encode(np.empty((0,), object)) == b""
    assert bytes_tensor.encode_rows(np.empty((0, 3), object)) == []
    assert bytes_tensor.encode_rows(np.empty((2, 0), object)) == [b"", b""]


@pytest.mark.parametrize(
    ("data", "count", "message"),
    [
        (AB, 3, "BYTES tensor has 2 elements, expected 3"),
        (b"", 10**12, "BYTES tensor has 0 elements, expected 1000000000000"),
        (AB, 1, "BYTES tensor has 4 bytes after its last element, expected 1 elements"),
        (AB[:8], 2, "BYTES tensor: element 1 of 2 needs 4 bytes for its length, 2 are left"),
        (AB[:5], 1, "BYTES tensor: element 0 of 1 has a length of 2 bytes, 1 are left"),
        (b"\xff\xff\xff\xffx", 1, "BYTES tensor: element 0 of 1 has a length of 4294967295 bytes, 1 are left"),
    ],
)
def test_data_that_is_not_count_elements(data, count, message):
    with pytest.raises(InvalidRequest) as error:
        bytes_tensor.decode(data, count)
    assert str(error.value) == message


def test_text_is_written_as_utf8():
    assert bytes_tensor.encode(np.array(["€"])) == b"\x03\0\0\0\xe2\x82\xac"


elements = st.lists(st.binary(max_size=20), min_size=6, max_size=6)


@given(elements, st.sampled_from([bytes, bytearray, memoryview]))
def test_round_trip(values, kind):
    array = np.empty(6, object)
    array[:] = values
    wire = bytes_tensor.encode(array)
    assert bytes_tensor.decode(kind(wire), 6) == values
    rows = bytes_tensor.encode_rows(array.reshape(3, 2))
    bounds = bytes_tensor.offsets(wire, 6)[::2]
    assert rows == [wire[start:end] for start, end in pairwise(bounds)]


@given(st.binary(max_size=40), st.integers(0, 5))
def test_any_bytes_are_decoded_or_refused(data, count):
    try:
        values = bytes_tensor.decode(data, count)
    except InvalidRequest:
        return
    array = np.empty(count, object)
    array[:] = values
    assert bytes_tensor.encode(array) == data
