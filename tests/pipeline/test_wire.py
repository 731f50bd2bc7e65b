import pytest
from google.protobuf import unknown_fields
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from headrace.pipeline.wire import Malformed, field_text, length_prefixed, read_varint, skip_field, varint
from headrace.rpc import inference_pb2 as pb

uint64 = st.integers(0, (1 << 64) - 1)


@given(uint64)
def test_varints_are_those_of_protobuf(value):
    assert b"\x28" + varint(value) == pb.InferParameter(uint64_param=value).SerializeToString()
    assert read_varint(varint(value), 0) == (value, len(varint(value)))
    assert read_varint(memoryview(b"??" + varint(value) + b"!"), 2) == (value, 2 + len(varint(value)))


@given(st.integers(-(1 << 63), -1))
def test_negative_varints_are_those_of_protobuf(value):
    assert b"\x10" + varint(value) == pb.InferParameter(int64_param=value).SerializeToString()


@given(st.binary(max_size=300))
def test_length_prefixed_fields_are_those_of_protobuf(payload):
    assert length_prefixed(7, payload) == pb.ModelInferRequest(raw_input_contents=[payload]).SerializeToString()
    assert length_prefixed(200, payload)[:2] == b"\xc2\x0c"


@pytest.mark.parametrize("data", [b"", b"\x80", b"\xff" * 9])
def test_a_varint_that_ends_too_soon(data):
    with pytest.raises(Malformed, match="ends inside a varint"):
        read_varint(data, 0)


def test_a_varint_that_never_ends():
    with pytest.raises(Malformed, match="more than ten octets"):
        read_varint(b"\xff" * 11, 0)


@pytest.mark.parametrize(
    ("wire_type", "data", "end"),
    [(0, b"\x96\x01rest", 2), (1, b"12345678rest", 8), (2, b"\x03abcrest", 4), (5, b"1234rest", 4)],
)
def test_skipping(wire_type, data, end):
    assert skip_field(data, 0, wire_type) == end
    with pytest.raises(Malformed, match="ends inside"):
        skip_field(data[: end - 1], 0, wire_type)


@pytest.mark.parametrize("wire_type", [3, 4, 6, 7])
def test_wire_types_that_no_message_of_ours_has(wire_type):
    with pytest.raises(Malformed, match=f"wire type {wire_type} is not used"):
        skip_field(b"12345678", 0, wire_type)


fields = st.one_of(
    st.tuples(st.integers(100, 1000), st.just(0), uint64.map(varint)),
    st.tuples(st.integers(100, 1000), st.just(1), st.binary(min_size=8, max_size=8)),
    st.tuples(st.integers(100, 1000), st.just(2), st.binary(max_size=200).map(lambda b: varint(len(b)) + b)),
    st.tuples(st.integers(100, 1000), st.just(5), st.binary(min_size=4, max_size=4)),
)


@given(st.lists(fields, max_size=8))
def test_walking_over_fields_finds_those_that_protobuf_finds(parts):
    data = b"".join(varint(number << 3 | wire_type) + value for number, wire_type, value in parts)
    message = pb.ServerLiveRequest.FromString(data)  # knows none of them
    found = []
    at = 0
    while at < len(data):
        tag, at = read_varint(data, at)
        at = skip_field(data, at, tag & 7)
        found.append((tag >> 3, tag & 7))
    seen = [(field.field_number, field.wire_type) for field in unknown_fields.UnknownFieldSet(message)]
    assert found == seen


@given(st.binary(max_size=60))
def test_what_protobuf_takes_can_be_walked_over(data):
    try:
        pb.ServerLiveRequest.FromString(data)
    except DecodeError:
        return
    at = 0
    try:
        while at < len(data):
            tag, at = read_varint(data, at)
            at = skip_field(data, at, tag & 7)
    except Malformed as error:
        assert "is not used by this message" in str(error)  # noqa: PT017 - a group, which protobuf can skip


@given(st.text(max_size=200))
def test_the_text_of_a_field(text):
    assert field_text(length_prefixed(3, text.encode())) == text


def test_the_text_of_no_field_and_of_a_broken_one():
    assert field_text(b"") == ""
    assert field_text(length_prefixed(3, b"a\xff")) == "a\N{REPLACEMENT CHARACTER}"
