"""Every case of a bad ModelInfer request, with the words that clients know from Triton."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.datatypes import DATATYPES
from headrace.engine.shared_memory import NoSharedMemory, Registered, SharedMemoryRegions
from headrace.errors import InvalidRequest, RegionNotFound, Unimplemented
from headrace.messages import (
    InferMessage,
    InputTensor,
    QueuePolicy,
    Region,
    ReplyOutput,
    RequestedOutput,
    SequenceFlags,
    Signature,
    TensorSpec,
)
from headrace.pipeline.buckets import Buckets
from headrace.pipeline.decode import ModelView, build_template
from headrace.pipeline.rules import NumberRules, Rules
from headrace.pipeline.wire import length_prefixed
from headrace.repository.bucket_config import BucketConfig
from headrace.testing.requests import FakeOwner

NOTE = (
    " NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension to be prepended to each "
    "input shape."
)
OWNER = FakeOwner()
X = TensorSpec("x", "FP32", (4,))
TWO = Signature((X, TensorSpec("n", "INT64", (-1,))), (TensorSpec("y", "FP32", (2,)), TensorSpec("z", "INT64", ())), 8)
ONE = Signature((X,), TWO.outputs, 8)
UNBATCHED = Signature((TensorSpec("x", "FP32", (-1, 4)),), TWO.outputs, 0)


def view(signature=ONE, **more):
    return ModelView("m", "1", signature, more.pop("rules", {}), OWNER, **more)


def message(*inputs, id="", parameters=None, outputs=()):  # noqa: A002
    requested = tuple(RequestedOutput(name) if isinstance(name, str) else name for name in outputs)
    return InferMessage("m", "", id, parameters or {}, inputs, requested)


def x(*shape, datatype="FP32", contents=None, region=None):
    return InputTensor("x", datatype, shape or (1, 4), contents, region)


def n(*shape, region=None):
    return InputTensor("n", "INT64", shape, None, region)


def build(description, model=None, memory=None):
    return build_template(description, model or view(), lambda *described: described, memory or NoSharedMemory())


def refusal(description, model=None):
    with pytest.raises(InvalidRequest) as caught:
        build(description, model)
    return str(caught.value)


def asking(*parts):
    return [SimpleNamespace(parts=own) for own in parts]


def bind_refusal(template, *raw, id_field=b""):
    with pytest.raises(InvalidRequest) as caught:
        template.bind(raw, id_field)
    return str(caught.value)


# --- what a template says ---


def test_a_plain_request():
    template = build(message(x(3, 4)))
    assert (template.rows, template.shapes, template.sizes) == (3, ((4,),), (48,))
    assert (template.total, template.plain, template.outputs) == (48, True, (0, 1))
    assert (template.priority, template.timeout_ns, template.timing) == (0, 0, False)
    assert template.owner is OWNER
    assert template.whole is None
    assert template.reply == ("m", "1", [ReplyOutput(spec) for spec in ONE.outputs])  # what the writer is made of
    raw = [memoryview(bytes(48))]
    assert template.bind(raw, b"") is raw


def test_inputs_come_in_any_order_and_leave_in_the_signatures():
    template = build(message(n(2, 3), x(2, 4)), view(TWO))
    assert template.positions == (1, 0)
    assert template.shapes == ((4,), (3,))
    assert template.sizes == (32, 48)
    assert template.bind([b"n" * 48, b"x" * 32], b"") == [b"x" * 32, b"n" * 48]


def test_requests_that_can_share_a_tensor_have_equal_keys():
    model = view(TWO)
    base = build(message(x(2, 4), n(2, 3)), model).key
    assert build(message(n(5, 3), x(5, 4), id="other", parameters={"timeout": 5}), model).key == base
    assert build(message(x(2, 4), n(2, 3), outputs=("y", "z")), model).key == base
    assert build(message(x(2, 4), n(2, 7)), model).key != base
    assert build(message(x(2, 4), n(2, 3), outputs=("z", "y")), model).key != base
    assert build(message(x(2, 4), n(2, 3), outputs=("y",)), model).key != base


def test_outputs_are_as_asked_for():
    assert build(message(x(), outputs=("z",))).outputs == (1,)
    assert build(message(x(), outputs=("z", "y"))).outputs == (1, 0)
    assert build(message(x())).outputs == (0, 1)


def test_a_model_without_batching_has_one_row_and_whole_shapes():
    template = build(message(x(7, 4)), view(UNBATCHED))
    assert (template.rows, template.shapes, template.sizes) == (1, ((7, 4),), (112,))


@pytest.mark.parametrize("max_batch", [0, 8])
def test_a_model_without_inputs_has_one_row(max_batch):
    template = build(message(), view(Signature((), TWO.outputs, max_batch)))
    assert template.rows == 1
    assert template.bind([], b"") == []


@pytest.mark.parametrize("datatype", sorted(set(DATATYPES) - {"BYTES"}))
def test_the_size_of_every_datatype(datatype):
    signature = Signature((TensorSpec("x", datatype, (3,)),), (), 8)
    template = build(message(x(2, 3, datatype=datatype)), view(signature))
    size = 6 * DATATYPES[datatype].itemsize
    assert template.sizes == (size,)
    assert template.plain
    assert (template.screen is not None) is (datatype == "BOOL")
    assert template.bind([bytes(size)], b"") == [bytes(size)]


def test_text_is_of_any_size_and_counts_with_all_the_rest():
    signature = Signature((X, TensorSpec("t", "BYTES", (1,))), (), 8)
    template = build(message(x(), InputTensor("t", "BYTES", (1, 1))), view(signature))
    assert template.sizes == (16, -1)
    assert template.total == 0  # not known before the bytes are there
    assert template.bind([bytes(16), b"\3\0\0\0abc"], b"")[1] == b"\3\0\0\0abc"
    assert template.screen(asking((bytes(16), b"\3\0\0\0abc"))) is None
    findings = template.screen(asking((bytes(16), b"\3\0\0\0ab")))
    assert str(findings.refused[0]) == (
        "input 't' for model 'm': BYTES tensor: element 0 of 1 has a length of 3 bytes, 2 are left"
    )


def test_empty_dimensions_are_fine_where_the_model_leaves_them_open():
    template = build(message(x(2, 4), n(2, 0)), view(TWO))
    assert template.sizes == (32, 0)
    assert template.bind([bytes(32), b""], b"") == [bytes(32), b""]


def test_typed_contents_take_the_place_of_raw_ones():
    template = build(message(x(contents=bytes(16))))
    assert not template.plain
    assert template.bind([], b"") == [bytes(16)]
    assert bind_refusal(template, bytes(16)) == (
        "contents field must not be specified when using raw_input_contents for 'x' for model 'm'"
    )


def test_what_inputs_hold_is_for_whoever_takes_the_request():
    rules = {"x": Rules(NumberRules(np.array(0, "<f4"), np.array(16, "<f4"), ranged=True))}
    template = build(message(x()), view(rules=rules))
    good, bad = np.full(4, 16, "<f4").tobytes(), np.array([0, 0, 17, 0], "<f4").tobytes()
    assert template.plain
    assert template.bind([bad], b"") == [bad]
    assert template.screen(asking((good,), (good,))) is None
    assert list(template.screen(asking((good,), (bad,))).refused) == [1]
    assert template.of_sequence(SequenceFlags(7)).screen is template.screen


# --- parameters ---


def test_timeout_is_in_microseconds():
    assert build(message(x(), parameters={"timeout": 1500})).timeout_ns == 1_500_000
    assert build(message(x(), parameters={"timeout": 0})).timeout_ns == 0


def test_the_policy_of_the_level_bounds_the_timeout():
    high, others = QueuePolicy(timeout_ns=1000, delays=True), QueuePolicy(timeout_ns=7000, override=False)
    model = view(priority_levels=2, default_level=2, policy=others, policies={0: high})
    for parameters, policy, timeout in [
        ({"priority": 1}, high, 1000),
        ({"timeout": 5, "priority": 1}, high, 1000),
        ({}, others, 7000),
        ({"timeout": 5}, others, 7000),
    ]:
        template = build(message(x(), parameters=parameters), model)
        assert (template.policy, template.timeout_ns) == (policy, timeout)


@pytest.mark.parametrize(("asked", "level"), [(None, 2), (0, 2), (1, 1), (3, 3), (4, 2), (1 << 63, 2)])
def test_a_priority_that_does_not_exist_is_the_default(asked, level):
    parameters = {} if asked is None else {"priority": asked}
    model = view(priority_levels=3, default_level=2)
    assert build(message(x(), parameters=parameters), model).priority == level - 1


def test_timing():
    assert build(message(x(), parameters={"headrace_timing": True})).timing
    assert not build(message(x(), parameters={"headrace_timing": False})).timing


def test_other_parameters_are_taken_and_ignored():
    parameters = {
        "triton_enable_empty_final_response": True,
        "whatever": 1.5,
        "more": "text",
    }
    template = build(message(x(), parameters=parameters))
    assert (template.rows, template.sequence) == (1, None)


@pytest.mark.parametrize(
    ("parameters", "sequence"),
    [
        ({"sequence_id": 7, "sequence_start": True, "sequence_end": False}, SequenceFlags(7, True, False)),
        ({"sequence_id": "seven", "sequence_end": True}, SequenceFlags("seven", False, True)),
        ({"sequence_id": 0}, SequenceFlags(0)),
        ({"sequence_start": True}, SequenceFlags(0, True)),
        ({"sequence_id": -1}, SequenceFlags((1 << 64) - 1)),
        ({"sequence_id": (1 << 64) - 1}, SequenceFlags((1 << 64) - 1)),
        ({"sequence_id": "x" * 128}, SequenceFlags("x" * 128)),
    ],
)
def test_which_sequence_a_request_is_part_of(parameters, sequence):
    assert build(message(x(), parameters=parameters)).sequence == sequence


def test_a_template_of_another_sequence():
    template = build(message(x(), parameters={"priority": 1}))
    other = template.of_sequence(SequenceFlags(5, True))
    assert (template.sequence, other.sequence) == (None, SequenceFlags(5, True))
    for name in type(template).__slots__:
        assert name == "sequence" or getattr(other, name) is getattr(template, name)


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("timeout", -1, "parameter 'timeout' is -1, expected a non-negative integer (microseconds)"),
        ("timeout", "5", "parameter 'timeout' is '5', expected a non-negative integer (microseconds)"),
        ("timeout", True, "parameter 'timeout' is True, expected a non-negative integer (microseconds)"),
        ("timeout", 1.0, "parameter 'timeout' is 1.0, expected a non-negative integer (microseconds)"),
        ("priority", -1, "parameter 'priority' is -1, expected a non-negative integer (a priority level)"),
        ("priority", False, "parameter 'priority' is False, expected a non-negative integer (a priority level)"),
        ("headrace_timing", 1, "parameter 'headrace_timing' is 1, expected a boolean"),
        ("sequence_id", True, "parameter 'sequence_id' is True, expected an integer or a string"),
        ("sequence_id", "x" * 129, "string correlation ID cannot be longer than 128 characters, got 129"),
        ("sequence_id", 1.0, "parameter 'sequence_id' is 1.0, expected an integer or a string"),
        ("sequence_start", 1, "parameter 'sequence_start' is 1, expected a boolean"),
        ("sequence_end", "yes", "parameter 'sequence_end' is 'yes', expected a boolean"),
        (
            "triton_final_response",
            True,
            "parameter keys starting with 'triton_' are reserved for Triton usage. Only "
            "['triton_enable_empty_final_response'] may be given, got 'triton_final_response'",
        ),
    ],
)
def test_bad_parameters(key, value, text):
    assert refusal(message(x(), parameters={key: value})) == text


# --- the table of errors ---


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


# --- shared memory ---


@pytest.fixture
def memory(tmp_path):
    (tmp_path / "r").write_bytes(bytes(range(64)))
    regions = SharedMemoryRegions(tmp_path)
    regions.register(Registered("r", "/r", 0, 64))
    return regions


def test_tensors_in_shared_memory_take_no_place_among_the_raw_ones(memory):
    model = view(TWO)
    first = build(message(x(1, 4, region=Region("r", 8, 16)), n(1, 3)), model, memory)
    assert list(map(bytes, first.bind([b"n" * 24], b""))) == [bytes(range(8, 24)), b"n" * 24]
    second = build(message(x(1, 4), n(1, 3, region=Region("r", 0, 24))), model, memory)
    assert list(map(bytes, second.bind([b"x" * 16], b""))) == [b"x" * 16, bytes(range(24))]
    assert not first.plain


def test_the_only_tensor_in_shared_memory(memory):
    template = build(message(x(1, 4, region=Region("r", 0, 16))), memory=memory)
    assert bytes(template.bind([], b"")[0]) == bytes(range(16))
    memory.unregister("r")
    with pytest.raises(RegionNotFound, match="Unable to find shared memory region: 'r'"):
        template.bind([], b"")


def test_too_few_and_too_many_tensors_beside_shared_memory(memory):
    template = build(message(x(1, 4, region=Region("r", 8, 16)), n(1, 3)), view(TWO), memory)
    assert bind_refusal(template) == "unable to find data for input tensor 'n' for model 'm' in request."
    assert bind_refusal(template, b"", b"") == (
        "raw_input_contents has 2 entries, expected one for each of the 1 inputs of the request to model 'm' that are "
        "not in shared memory"
    )


def test_the_wrong_number_of_bytes_in_shared_memory(memory):
    template = build(message(x(1, 4, region=Region("r", 0, 15))), memory=memory)
    assert bind_refusal(template).endswith("input byte size mismatch for input 'x' for model 'm'. Expected 16, got 15")


def test_regions_are_looked_for_when_a_look_is_first_seen(memory):
    for where in ({"region": Region("s", 0, 16)}, {}):
        outputs = () if where else (RequestedOutput("y", region=Region("s", 0, 16)),)
        with pytest.raises(RegionNotFound):
            build(message(x(1, 4, **where), outputs=outputs), memory=memory)
        with pytest.raises(Unimplemented, match="Client shared memory is disabled"):
            build(message(x(1, 4, **where), outputs=outputs))


def test_typed_contents_beside_shared_memory(memory):
    template = build(
        message(x(1, 4, region=Region("r", 0, 16)), InputTensor("n", "INT64", (1, 3), b"n" * 24)), view(TWO), memory
    )
    assert list(map(bytes, template.bind([], b""))) == [bytes(range(16)), b"n" * 24]


def test_what_a_reply_states_of_its_outputs():
    def made(*outputs):
        kept = []
        build_template(message(x(), outputs=outputs), view(), lambda *told: kept.append(told), NoSharedMemory())
        return kept[0]

    name, version, outputs = made(RequestedOutput("z"), RequestedOutput("y", classes=2))
    assert (name, version) == ("m", "1")
    assert [(output.spec.name, output.spec.datatype) for output in outputs] == [
        ("z", ONE.outputs[1].datatype),
        ("y", "BYTES"),
    ]
    assert made()[2] == [ReplyOutput(spec) for spec in ONE.outputs]


# --- buckets ---

MASKED = Signature(
    (TensorSpec("x", "FP32", (-1,)), TensorSpec("mask", "INT64", (-1,)), TensorSpec("n", "INT64", (1,))),
    (TensorSpec("y", "FP32", (-1,)),),
    8,
)


def masked(**more):
    rules = {
        "w": BucketConfig.model_validate({"sizes": [4], "inputs": {"x": 1}, "masks": {"mask": 1}, "outputs": {"y": 1}})
    }
    return view(MASKED, buckets=Buckets(rules, MASKED, {}), **more)


def mask(*shape, region=None):
    return InputTensor("mask", "INT64", shape, None, region)


def test_what_the_server_fills_may_be_left_out_or_given():
    model = masked()
    left_out = build(message(n(2, 1), x(2, 3)), model)
    assert (left_out.positions, left_out.sizes, left_out.total) == ((1, -1, 0), (24, 0, 16), 40)
    assert left_out.bind([b"n" * 16, b"x" * 24], b"") == [b"x" * 24, b"", b"n" * 16]
    given = build(message(mask(2, 3), x(2, 3), n(2, 1)), model)
    assert given.sizes == (24, 48, 16)
    assert given.bind([b"m" * 48, b"x" * 24, b"n" * 16], b"") == [b"x" * 24, b"m" * 48, b"n" * 16]
    assert left_out.key == given.key == (((4,), (4,), (1,)), (0,))
    assert left_out.fit.shapes == ((3,), None, (1,))


def test_what_is_missing_is_named_all_the_same():
    template = build(message(n(2, 1), x(2, 3)), masked())
    assert "unable to find data for input tensor 'x' for model 'm'" in bind_refusal(template, b"n" * 16)
    assert "has 3 entries, expected one for each of the 2 inputs" in bind_refusal(template, b"", b"", b"")
    text = refusal(message(x(2, 3)), masked())
    assert (
        "expected 2 inputs but got 1 inputs for model 'm'. Got input(s) ['x'], but missing required input(s) ['n']"
        in text
    )
    assert "expected 3 inputs but got 2" in refusal(message(x(2, 3), mask(2, 3)), masked())


def test_rows_agree_with_those_of_a_mask():
    assert "input 'mask' batch size does not match" in refusal(message(x(2, 3), mask(1, 3), n(2, 1)), masked())


def test_where_another_pads_requests_keep_their_shapes():
    template = build(message(x(2, 3), n(2, 1)), masked(pads=False))
    assert template.shapes == ((3,), (), (1,))
    assert template.fit is None
    assert template.reply[0] == "m"  # as the writer was made
    assert "expected at most 4, the greatest bucket" in refusal(message(x(2, 5), n(2, 1)), masked(pads=False))


def test_a_single_input_that_is_to_be_padded_is_as_plain_as_any():
    signature = Signature(MASKED.inputs[:1], MASKED.outputs, 8)
    rules = {"w": BucketConfig.model_validate({"sizes": [4], "inputs": {"x": 1}, "outputs": {"y": 1}})}
    template = build(message(x(2, 3)), view(signature, buckets=Buckets(rules, signature, {})))
    assert template.plain
    raw = [memoryview(bytes(24))]
    assert template.bind(raw, b"") is raw
