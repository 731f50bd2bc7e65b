import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.messages import PHASES, Batch, Fit
from headrace.pipeline.timing import phases_us, timing_parameters
from headrace.rpc import inference_pb2 as pb
from headrace.testing.requests import make_request


def moments(steps, start=0):
    request = make_request()
    batch = Batch([request, request], 7, "full")
    now = start
    request.received = now
    for owner, name in (
        (request, "decoded"),
        (request, "admitted"),
        (batch, "batched"),
        (batch, "started"),
        (batch, "finished"),
    ):
        now += steps.pop(0)
        setattr(owner, name, now)
    return request, batch, now + steps.pop(0)


def test_each_phase_is_the_difference_of_neighbours():
    request, batch, encoded = moments([1000, 2000, 3000, 4000, 5000, 6000])
    assert phases_us(request, batch, encoded) == dict(zip(PHASES, (1, 2, 3, 4, 5, 6), strict=True))


@given(st.lists(st.integers(0, 10**10), min_size=6, max_size=6), st.integers(0, 10**18))
def test_the_phases_add_up_to_the_total_exactly(steps, start):
    total = sum(steps)
    exact = list(steps)
    phases = phases_us(*moments(steps, start))
    assert sum(phases.values()) == total // 1000
    assert tuple(phases) == PHASES
    # and none is off by as much as a microsecond
    assert all(abs(us * 1000 - ns) < 1000 for us, ns in zip(phases.values(), exact, strict=True))


def test_the_parameters_on_the_wire():
    encoded = timing_parameters(*moments([1500, 1500, 3000, 4000, 5000, 6999]))
    reply = pb.ModelInferResponse.FromString(encoded)
    values = {key: getattr(value, value.WhichOneof("parameter_choice")) for key, value in reply.parameters.items()}
    assert values == {
        "headrace_decode_us": 1,
        "headrace_admit_us": 2,
        "headrace_queue_us": 3,
        "headrace_batch_us": 4,
        "headrace_execute_us": 5,
        "headrace_encode_us": 6,
        "headrace_total_us": 21,
        "headrace_batch_rows": 7,
        "headrace_batch_requests": 2,
        "headrace_close_reason": "full",
    }


@pytest.mark.parametrize(("elements", "padding", "percent"), [(3, 1, 25), (4, 0, 0), (0, 4, 100), (0, 0, 0)])
def test_a_request_of_a_model_with_buckets_hears_how_much_was_padding(elements, padding, percent):
    request, batch, encoded = moments([0] * 6)
    request.template.fit = Fit((1,), (1,), ((1,),), elements, padding)
    reply = pb.ModelInferResponse.FromString(timing_parameters(request, batch, encoded))
    assert reply.parameters["headrace_padding_percent"].int64_param == percent


def test_the_trace_is_named_where_there_is_one():
    request, batch, encoded = moments([1000] * 6)
    named = pb.ModelInferResponse.FromString(timing_parameters(request, batch, encoded, "ab" * 16))
    assert named.parameters["headrace_trace_id"].string_param == "ab" * 16
    plain = pb.ModelInferResponse.FromString(timing_parameters(request, batch, encoded))
    assert "headrace_trace_id" not in plain.parameters
