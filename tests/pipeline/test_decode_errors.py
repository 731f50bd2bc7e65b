"""The table of errors."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pipeline.decoding import NOTE, TWO, UNBATCHED, bind_refusal, build, message, n, refusal, view, x

from headrace.errors import InvalidRequest
from headrace.messages import InputTensor, Signature, TensorSpec
from headrace.pipeline.wire import length_prefixed


@pytest.mark.parametrize(("request_id", "shown"), [("", "<id_unknown>"), ("seven", "seven")])
class TestErrorsThatNameTheRequest:
    def test_missing_input(self, request_id, shown):
        assert refusal(message(x(), id=request_id), view(TWO)) == (
            f"[request id: {shown}] expected 2 inputs but got 1 inputs for model 'm'. Got input(s) ['x'], but missing "
            "required input(s) ['n']. Please provide all required input(s)."
        )

    def test_duplicate_input(self, request_id, shown):
        text = f"[request id: {shown}] input 'x' already exists in request"
        assert refusal(message(x(), x(), id=request_id)) == text

    def test_wrong_datatype(self, request_id, shown):
        assert refusal(message(x(datatype="INT64"), id=request_id)) == (
            f"[request id: {shown}] inference input 'x' data-type is 'INT64', but model 'm' expects 'FP32'"
        )

    def test_unknown_datatype(self, request_id, shown):
        assert refusal(message(x(datatype="FLOAT"), id=request_id)) == (
            f"[request id: {shown}] inference input 'x' data-type is 'FLOAT', but model 'm' expects 'FP32' "
            "('FLOAT' is not a datatype of the protocol)"
        )

    @pytest.mark.parametrize(
        "shape", [(1, 5), (4,), (1, 4, 1), (0, 4), (-1, 4), (1, -4), (1, 0), (1 << 62, 4), (1 << 40, 4)]
    )
    def test_wrong_shape(self, request_id, shown, shape):
        got = "[" + ",".join(map(str, shape)) + "]"
        assert refusal(message(x(*shape), id=request_id)) == (
            f"[request id: {shown}] unexpected shape for input 'x' for model 'm'. Expected [-1,4], got {got}.{NOTE}"
        )

    def test_wrong_shape_without_batching(self, request_id, shown):
        assert refusal(message(x(4), id=request_id), view(UNBATCHED)) == (
            f"[request id: {shown}] unexpected shape for input 'x' for model 'm'. Expected [-1,4], got [4]."
        )

    def test_too_many_elements_but_for_a_dimension_without_any(self, request_id, shown):
        either = view(Signature((TensorSpec("x", "FP32", (-1, -1)),), UNBATCHED.outputs, 8))
        assert build(message(x(1, 0, 5), id=request_id), either).total == 0
        for shape in ((1, 0, 1 << 62), (1, 1 << 62, 0)):
            assert f"got [{','.join(map(str, shape))}]" in refusal(message(x(*shape), id=request_id), either)

    def test_no_dimensions_at_all(self, request_id, shown):
        assert refusal(message(InputTensor("x", "FP32", ()), id=request_id)) == (
            f"[request id: {shown}] unexpected shape for input 'x' for model 'm'. Expected [-1,4], got [].{NOTE}"
        )

    def test_wrong_byte_size(self, request_id, shown):
        id_field = length_prefixed(3, request_id.encode()) if request_id else b""
        text = f"[request id: {shown}] input byte size mismatch for input 'x' for model 'm'. Expected 16, got "
        for raw in (b"", bytes(12), bytes(15), bytes(17)):
            assert bind_refusal(build(message(x())), raw, id_field=id_field) == f"{text}{len(raw)}"

    def test_batch_above_the_maximum(self, request_id, shown):
        assert build(message(x(9, 4), id=request_id)).rows == 9
        assert refusal(message(x(9, 4), id=request_id), view(split_oversize=False)) == (
            f"[request id: {shown}] inference request batch-size must be <= 8 for 'm'"
        )
        assert build(message(x(8, 4), id=request_id), view(split_oversize=False)).rows == 8

    def test_batch_differs_between_inputs(self, request_id, shown):
        assert refusal(message(x(2, 4), n(3, 1), id=request_id), view(TWO)) == (
            f"[request id: {shown}] input 'n' batch size does not match other inputs for 'm': 3 and 2"
        )


def test_unknown_input():
    assert refusal(message(x(), n(1, 1))) == "unexpected inference input 'n' for model 'm'. Expected ['x']"


def test_unknown_output():
    assert refusal(message(x(), outputs=("y", "w"))) == (
        "unexpected inference output 'w' for model 'm'. Expected some of ['y', 'z']"
    )


def test_an_output_twice():
    assert refusal(message(x(), outputs=("y", "y"))) == "an output is requested twice of model 'm': ['y', 'y']"


def test_no_data_for_an_input():
    template = build(message(n(1, 2), x()), view(TWO))
    text = "unable to find data for input tensor '{}' for model 'm' in request."
    assert bind_refusal(template) == text.format("n")
    assert bind_refusal(template, bytes(16)) == text.format("x")
    assert refusal(message(x(contents=bytes(16)), n(1, 2)), view(TWO)) == text.format("n")


def test_more_data_than_inputs():
    assert bind_refusal(build(message(x())), bytes(16), b"") == (
        "raw_input_contents has 2 entries, expected one for each of the 1 inputs of the request to model 'm'"
    )


def test_a_request_without_inputs():
    assert refusal(message()) == (
        "[request id: <id_unknown>] expected 1 inputs but got 0 inputs for model 'm'. Got input(s) [], but missing "
        "required input(s) ['x']. Please provide all required input(s)."
    )


@given(st.lists(st.integers(-(1 << 63), (1 << 63) - 1), max_size=64), st.integers(0, 2))
def test_no_shape_does_any_harm(shape, variable):
    signature = Signature((TensorSpec("x", "FP64", (-1,) * variable),), (), 8)
    try:
        template = build(message(x(*shape) if shape else InputTensor("x", "FP64", ())), view(signature))
    except InvalidRequest:
        return
    assert template.rows >= 1
    assert 0 <= template.total <= 8 << 40
