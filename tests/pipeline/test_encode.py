from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.datatypes import DATATYPES
from headrace.messages import ReplyOutput, TensorSpec
from headrace.pipeline.encode import ReplyEncoder, encode_parameters
from headrace.pipeline.wire import length_prefixed
from headrace.rpc import inference_pb2 as pb

names = st.text(min_size=1, max_size=20)
tensors = st.tuples(
    names,
    st.sampled_from(["FP32", "BYTES", "BF16"]),
    st.lists(st.integers(0, 10**6), max_size=4).map(tuple),
    st.one_of(
        st.binary(max_size=40), st.sampled_from([b"x" * 127, b"x" * 128, b"x" * 1023, b"x" * 1024, b"x" * 20000])
    ),
)


@given(
    names,
    st.text(max_size=5),
    st.text(max_size=200),
    st.lists(tensors, min_size=1, max_size=4),
    st.dictionaries(names, st.one_of(st.integers(-(1 << 63), (1 << 63) - 1), st.text(max_size=20)), max_size=3),
)
def test_a_reply_is_what_protobuf_would_have_written(name, version, request_id, outputs, parameters):
    specs = [ReplyOutput(TensorSpec(name, datatype, ())) for name, datatype, _, _ in outputs]
    shapes = tuple(shape for _, _, shape, _ in outputs)
    raw = [data for *_, data in outputs]
    expected = pb.ModelInferResponse(model_name=name, model_version=version, id=request_id, raw_output_contents=raw)
    for output, shape in zip(specs, shapes, strict=True):
        expected.outputs.add(name=output.spec.name, datatype=output.spec.datatype, shape=shape)
    for key, value in parameters.items():
        if isinstance(value, str):
            expected.parameters[key].string_param = value
        else:
            expected.parameters[key].int64_param = value
    id_field = length_prefixed(3, request_id.encode()) if request_id else b""
    encoder = ReplyEncoder(name, version, specs)
    for _ in range(2):  # the second time from what it has kept
        encoded = encoder.encode(id_field, raw, shapes, encode_parameters(parameters))
        assert pb.ModelInferResponse.FromString(encoded) == expected


def test_without_a_map_the_bytes_are_those_of_protobuf():
    encoder = ReplyEncoder("m", "1", [ReplyOutput(TensorSpec("y", "FP32", (2,)))])
    message = pb.ModelInferResponse(model_name="m", model_version="1", id="seven", raw_output_contents=[b"12345678"])
    message.outputs.add(name="y", datatype="FP32", shape=(1, 2))
    assert encoder.encode(b"\x1a\x05seven", [memoryview(b"12345678")], ((1, 2),)) == message.SerializeToString()


@given(names, st.sampled_from(sorted(DATATYPES)), st.lists(st.integers(0, 9), max_size=3).map(tuple), st.integers(1, 9))
def test_the_opening_is_what_stands_before_the_bytes_of_the_only_output(name, datatype, dims, rows):
    encoder = ReplyEncoder(name, "1", [ReplyOutput(TensorSpec("y", datatype, dims))])
    shapes = ((rows, *dims),)
    for _ in range(2):
        opening = encoder.opening(shapes)
        size = rows * prod(dims) * DATATYPES[datatype].itemsize
        if datatype == "BYTES" or size >= 32 << 10:
            assert opening is None
        else:
            raw = bytes(size)
            assert opening + raw == encoder.encode(b"", [raw], shapes)


def test_large_outputs_have_no_opening():
    encoder = ReplyEncoder("m", "1", [ReplyOutput(TensorSpec("y", "FP32", (8192,)))])
    assert encoder.opening(((1, 8191),)) is not None
    assert encoder.opening(((1, 8192),)) is None


def test_several_outputs_have_no_opening():
    specs = [ReplyOutput(TensorSpec("y", "FP32", (2,))), ReplyOutput(TensorSpec("z", "FP32", (2,)))]
    assert ReplyEncoder("m", "1", specs).opening(((1, 2), (1, 2))) is None
    assert ReplyEncoder("m", "1", []).opening(()) is None


def test_an_empty_tensor_has_its_entry():
    encoder = ReplyEncoder(
        "m", "1", [ReplyOutput(TensorSpec("y", "FP32", (0,))), ReplyOutput(TensorSpec("z", "BYTES", ()))]
    )
    reply = pb.ModelInferResponse.FromString(encoder.encode(b"", [b"", b""], ((1, 0), ())))
    assert list(reply.raw_output_contents) == [b"", b""]
    assert [list(tensor.shape) for tensor in reply.outputs] == [[1, 0], []]


def test_what_is_kept_of_shapes_is_bounded():
    encoder = ReplyEncoder("m", "1", [ReplyOutput(TensorSpec("y", "FP32", (-1,)))])
    for size in range(1000):
        reply = pb.ModelInferResponse.FromString(encoder.encode(b"", [b""], ((1, size),)))
        assert list(reply.outputs[0].shape) == [1, size]
    assert len(encoder._meta) <= 256


@pytest.mark.parametrize("shapes", [(), ((1, 2), (1, 2))])
def test_shapes_must_be_those_of_the_outputs(shapes):
    with pytest.raises(ValueError, match="zip"):
        ReplyEncoder("m", "1", [ReplyOutput(TensorSpec("y", "FP32", (2,)))]).encode(b"", [b""], shapes)
