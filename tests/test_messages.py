from headrace.messages import Batch, InferRequest, State, TensorSpec
from headrace.testing.requests import FakeOwner, make_request
from headrace.testing.sink import RecordingSink


def test_a_request_begins_by_waiting():
    request = InferRequest(make_request(3).template, [b"x"], 1, RecordingSink(), b"\x1a\x01i", 7, 90)
    assert (request.state, request.finished) == (State.WAITING, False)
    assert (request.received, request.rpc_deadline, request.expires) == (7, 90, 0)
    assert repr(request) == "<InferRequest 3 rows, waiting>"


def test_only_a_done_request_is_finished():
    request = make_request()
    for state in State:
        request.state = state
        assert request.finished is (state is State.DONE)


def test_cancelling_is_up_to_the_owner():
    owner = FakeOwner()
    request = make_request(owner=owner)
    request.cancel()
    assert owner.cancelled == [request]


def test_a_spec_is_fixed_when_every_dimension_is_known():
    assert TensorSpec("x", "FP32", ()).fixed
    assert TensorSpec("x", "FP32", (0, 3)).fixed
    assert not TensorSpec("x", "FP32", (3, -1)).fixed


def test_a_batch_says_what_it_is():
    assert repr(Batch([make_request(2), make_request()], 3, "full")) == "<Batch 2 requests, 3 rows, closed: full>"
