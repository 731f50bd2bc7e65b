"""Every case of a bad ModelInfer request, with the words that clients know from Triton."""

import numpy as np
import pytest
from pipeline.decoding import ONE, OWNER, TWO, UNBATCHED, X, asking, bind_refusal, build, message, n, refusal, view, x

from headrace.datatypes import DATATYPES
from headrace.engine.shared_memory import NoSharedMemory
from headrace.messages import (
    InputTensor,
    QueuePolicy,
    ReplyOutput,
    RequestedOutput,
    SequenceFlags,
    Signature,
    TensorSpec,
)
from headrace.pipeline.buckets import Buckets
from headrace.pipeline.decode import build_template
from headrace.pipeline.rules import NumberRules, Rules
from headrace.repository.bucket_config import BucketConfig

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
