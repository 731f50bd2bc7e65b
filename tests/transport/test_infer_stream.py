import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import InvalidRequest, QueueFull
from headrace.rpc import inference_pb2 as pb
from headrace.testing.requests import make_request
from headrace.transport import infer_stream
from headrace.transport.infer_stream import InferStream


class Infer:
    """Keeps the requests, for the test to answer."""

    def __init__(self):
        self.requests = []

    def __call__(self, request):
        request.request = None
        request.under_way = make_request()
        self.requests.append(request)


class World:
    def __init__(self, *, breaks=False):
        self.infer = Infer()
        self.woken = 0
        self.stream = InferStream(self.infer, self.wake, 77, breaks=breaks)

    def wake(self):
        self.woken += 1

    def take(self, *messages):
        for message in messages:
            self.stream.take(message, 5)

    def answer(self, index, text):
        self.infer.requests[index].reply(pb.ModelInferResponse(id=text).SerializeToString())

    def sent(self):
        ready, self.stream.ready = self.stream.ready, []
        return list(map(pb.ModelStreamInferResponse.FromString, ready))

    def ids(self):
        return [response.infer_response.id for response in self.sent()]


@pytest.fixture
def world():
    return World()


def test_a_request_is_handed_on_with_what_it_brought(world):
    world.stream.take(b"message", 5)
    (request,) = world.infer.requests
    assert (request.received, request.deadline) == (5, 77)
    assert repr(request) == "<StreamedRequest under way>"
    assert repr(world.stream) == "<InferStream 1 under way, 0 wait, 0 ready>"
    world.answer(0, "a")
    assert world.ids() == ["a"]
    assert (request.under_way, world.woken, world.stream.idle) == (None, 1, True)


@given(st.permutations(range(6)))
def test_replies_leave_in_the_order_of_the_requests(order):
    world = World()
    world.take(*[b""] * 6)
    seen = []
    done = set()
    for index in order:
        world.answer(index, str(index))
        done.add(index)
        seen += world.ids()
        assert seen == [str(n) for n in range(6) if set(range(n + 1)) <= done]
    assert world.stream.idle


def test_a_failure_stays_inside_the_stream(world):
    message = pb.ModelInferRequest(model_name="m", id="seven").SerializeToString()
    world.take(message, message)
    world.infer.requests[0].fail(InvalidRequest("wrong ä"))
    world.answer(1, "after")
    first, second = world.sent()
    assert (first.error_message, first.infer_response.id) == ("wrong ä", "seven")
    assert first.infer_response.parameters["headrace_reason"].string_param == "invalid_request"
    assert (second.error_message, second.infer_response.id) == ("", "after")


@pytest.mark.parametrize("fields", [0, 100, infer_stream._SEARCHED])
def test_the_id_of_a_failure_is_looked_for_among_so_many_fields(world, fields):
    """They are not made into objects for it."""
    message = pb.ModelInferRequest(inputs=[{}] * fields).SerializeToString()
    world.take(memoryview(message + pb.ModelInferRequest(id="seven").SerializeToString()))
    world.infer.requests[0].fail(InvalidRequest("wrong"))
    (response,) = world.sent()
    assert response.infer_response.id == ("seven" if fields < infer_stream._SEARCHED else "")


def test_an_error_of_ours_does_not_leak(world):
    world.take(b"\xff")  # whose id cannot be read
    world.infer.requests[0].fail(ZeroDivisionError("secret"))
    (response,) = world.sent()
    assert response.error_message.startswith("internal error, correlation id ")
    assert response.infer_response.id == ""


def test_the_final_flag_is_set_where_it_is_asked_for(world):
    request = pb.ModelInferRequest(model_name="m")
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    message = request.SerializeToString()
    world.take(message, message, message)
    world.infer.requests[0].under_way.template.final = True
    world.answer(0, "a")
    world.answer(1, "b")
    world.infer.requests[2].fail(InvalidRequest("no"))
    told = [response.infer_response.parameters.get("triton_final_response") for response in world.sent()]
    assert [flag and flag.bool_param for flag in told] == [True, None, True]


def test_the_first_error_ends_a_stream_that_asks_for_it():
    world = World(breaks=True)
    world.take(b"", b"", b"", b"")
    last = world.infer.requests[3]
    world.answer(2, "never sent")
    error = QueueFull("full")
    world.infer.requests[1].fail(error)
    assert (world.stream.error, world.ids()) == (None, [])
    world.answer(0, "a")
    assert (world.stream.error, world.ids()) == (error, ["a"])
    assert last.under_way is None  # cancelled
    assert len(world.stream.cancel()) == 1  # and not over yet
    assert world.stream.cancel() == []


def test_so_many_are_at_work_and_the_others_wait(world, monkeypatch):
    monkeypatch.setattr(infer_stream, "MAX_IN_FLIGHT", 2)
    world.take(b"1", b"22", b"333", b"4444")
    assert len(world.infer.requests) == 2
    assert world.stream.waiting_octets == 7 + 2 * infer_stream.MESSAGE_COST
    world.answer(1, "second")
    world.stream.pump()
    assert len(world.infer.requests) == 2  # the place of the first is not free
    world.answer(0, "first")
    world.take(b"55555")  # behind those that wait
    world.stream.pump()
    assert [bytes(request._message) for request in world.infer.requests[2:]] == [b"333", b"4444"]
    assert world.stream.waiting_octets == 5 + infer_stream.MESSAGE_COST
    world.stream.forget_waiting()
    assert world.stream.waiting_octets == 0


def test_nothing_more_is_begun_for_a_client_that_does_not_read(world):
    world.take(b"1")
    world.stream.held = True
    world.take(b"2")
    world.answer(0, "a")
    world.stream.pump()
    assert len(world.infer.requests) == 1
    world.stream.held = False
    world.stream.pump()
    assert len(world.infer.requests) == 2


def test_cancelling(world):
    world.take(b"1", b"2")
    requests = [request.under_way for request in world.infer.requests]
    cancelled = []
    for request in requests:
        request.template.owner.cancel = cancelled.append
    assert world.stream.cancel() == requests  # neither has ended
    assert cancelled == requests
    assert world.stream.idle
    world.infer.requests[1].reply(b"late")  # by whoever did not hear of it
    assert world.stream.ready == []
