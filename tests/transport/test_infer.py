import asyncio

import numpy as np
import pytest
from transport.inferring import World, one, two

from headrace.clock import monotonic_ns
from headrace.engine.worker import Worker
from headrace.errors import InvalidRequest, ModelNotFound, ModelNotReady
from headrace.pipeline import bytes_tensor
from headrace.pipeline.wire import field_text
from headrace.rpc import inference_pb2 as pb
from headrace.testing.backend import FakeModel
from headrace.testing.client import ClientCall, InProcessServer
from headrace.transport import infer as infer_module
from headrace.transport import intake


@pytest.fixture
def world():
    world = World()
    yield world
    world.loop.close()


def test_a_request_of_a_new_look_and_one_of_a_known_look(world):
    for request_id in ("first", "second", "", "third"):
        reply = world.reply(one(2, request_id=request_id))
        assert (reply.model_name, reply.model_version, reply.id) == ("m", "1", request_id)
        assert list(reply.outputs[0].shape) == [2, 2]
        assert np.frombuffer(reply.raw_output_contents[0], np.float32).tolist() == [0, 1, 2, 3]
    assert repr(world.service) == "<InferService 1 heads, 1 looks, generation 3>"


def test_what_a_look_is():
    """Head and look are learned once; ids and tensors differ."""
    world = World()
    world.learn(one(request_id="7").SerializeToString())
    known = one(request_id="other")
    known.raw_input_contents[0] = b"8 bytes!"
    template, raw, id_field = world.recognised(known.SerializeToString())
    assert (template.rows, raw, field_text(id_field)) == (1, [b"8 bytes!"], "other")
    assert world.recognised(one(2).SerializeToString()) is None
    assert world.recognised(one(version="1").SerializeToString()) is None
    assert world.recognised(one(outputs=["y"]).SerializeToString()) is None
    assert world.recognised(one(parameters={"timeout": 5}).SerializeToString()) is None
    world.loop.close()


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_messages_in_any_buffer(world, kind):
    data = two(request_id="seven").SerializeToString()
    for _ in range(3):
        reply = world.reply(kind(data))
        assert reply.id == "seven"
        assert bytes_tensor.decode(reply.raw_output_contents[1], 3) == [b"q", "ä".encode(), b""]
    assert world.recognised(kind(data)) is not None


@pytest.mark.parametrize("request_id", ["x" * 126, "x" * 127, "x" * 128, "x" * 5000, "ä" * 64, "ä" * 63])
def test_ids_of_any_length(world, request_id):
    for _ in range(3):
        assert world.reply(one(request_id=request_id)).id == request_id


def test_an_id_that_is_not_text_is_refused_known_look_or_not(world):
    data = one(request_id="ab").SerializeToString()
    bad = data.replace(b"ab", b"a\xff")
    first = world.infer(bad).error
    world.reply(data)
    assert type(first) is type(world.infer(bad).error) is InvalidRequest


def test_known_looks_that_begin_alike(world):
    """With and without outputs: the one is a prefix of the other."""
    messages = [one(), one(outputs=["y"]), one(), one(2), one(outputs=["y"]), one()]
    for message in messages * 2:
        assert len(world.reply(message).outputs) == 1


def test_a_known_look_in_a_message_cut_short(world):
    data = one().SerializeToString()
    world.reply(data)
    world.reply(data)
    assert world.service._opening
    for size in range(len(data)):
        error = world.infer(data[:size]).error
        assert isinstance(error, (InvalidRequest, ModelNotFound)), (size, error)
        world.reply(data)
    assert isinstance(world.infer(data + b"x").error, InvalidRequest)


def test_a_look_cut_by_the_end_of_the_lead_does_not_pass_for_a_shorter_one(world):
    """Of a buffer only the first bytes are searched: a long id may push half of a known look out of sight."""
    id_length = 100

    def look(padding, *outputs):
        return one(parameters={"padding": "p" * padding}, outputs=outputs)

    def head_and_look(message):
        return len(message.SerializeToString()) - len(one().raw_input_contents[0]) - 2

    padding = infer_module._LEAD - id_length - head_and_look(look(0)) - 3
    short, long = look(padding), look(padding, "y")
    assert head_and_look(short) + id_length == infer_module._LEAD
    for message in (short, long):
        world.learn(memoryview(message.SerializeToString()))
    long.id = "i" * (id_length - 2)
    assert world.recognised(memoryview(long.SerializeToString())) is None
    short.id = "i" * 127
    assert world.recognised(memoryview(short.SerializeToString())) is None


def test_models_without_inputs(world):
    message = pb.ModelInferRequest(model_name="empty", id="seven")
    for _ in range(3):
        sink = world.infer(message)
        assert "could not run this request" in str(sink.error)  # it has outputs, and this one computes none
    assert world.recognised(message.SerializeToString()) is not None


def test_a_change_of_what_serves_forgets_everything(world):
    world.reply(one())
    assert world.service._looks == 1
    world.server.catalog.unloading("m", 1)
    error = world.infer(one()).error
    assert isinstance(error, (ModelNotFound, ModelNotReady))
    assert world.service._looks == 0


def test_a_new_version_serves_as_soon_as_it_is_ready(world):
    assert world.reply(one()).model_version == "1"

    async def publish():
        world.server.serve(FakeModel(), "m", 2)

    world.loop.run_until_complete(publish())
    assert world.reply(one()).model_version == "2"
    assert world.reply(one(version="1")).model_version == "1"


def test_what_is_kept_of_looks_is_bounded(world):
    for timeout in range(1, 3 * infer_module._LOOKS // 2):
        world.learn(one(parameters={"timeout": timeout * 1000}).SerializeToString())
        kept = sum(len(looks.templates) for looks in world.service._heads.values())
        assert kept == world.service._looks <= infer_module._LOOKS
    assert world.service._looks == infer_module._LOOKS // 2 - 1
    assert world.reply(one()).id == ""


def test_looks_of_many_heads_share_the_bound(world):
    for zeros in range(19):
        for sign in ("", "+"):
            for timeout in range(1, 60):
                message = one(version=sign + "0" * zeros + "1", parameters={"timeout": timeout})
                world.learn(message.SerializeToString())
    assert world.service._looks <= infer_module._LOOKS
    assert sum(len(looks.templates) for looks in world.service._heads.values()) == world.service._looks


def test_long_looks_and_typed_contents_are_not_kept(world):
    world.reply(one(parameters={"padding": "x" * 5000}))
    typed = pb.ModelInferRequest(model_name="m")
    typed.inputs.add(name="x", datatype="FP32", shape=(1, 2)).contents.fp32_contents.extend([1, 2])
    for _ in range(2):
        assert np.frombuffer(world.reply(typed).raw_output_contents[0], np.float32).tolist() == [1, 2]
    assert world.service._looks == 0


def test_errors_before_a_model_is_known_are_counted_by_reason(world):
    world.infer(b"\xff\xff")
    world.infer(pb.ModelInferRequest(model_name="unknown"))
    world.infer(one(version="9"))
    world.infer(one(version="x"))
    assert world.server.refused == {"invalid_request": 2, "model_not_found": 2}
    assert world.observer.reasons == {}


def test_errors_of_a_request_for_a_known_model_are_counted_for_that(world):
    wrong = one(outputs=["w"]).SerializeToString()
    name, rest = wrong[:3], wrong[3:]
    world.infer(wrong)
    world.infer(pb.ModelInferRequest(model_name="m"))  # no inputs
    world.infer(wrong[:-1])  # cut off inside a field
    world.infer(rest + name)  # in an order in which nobody writes it
    world.infer(b"\x0a\x02no" + wrong)  # the last one counts
    world.infer(pb.ModelInferRequest(model_name="m", model_version="1"))
    assert world.observer.reasons == {"invalid_request": 6}
    assert world.server.refused == {}


def test_what_arrives_in_one_turn_is_taken_together(world):
    """Requests of one look go to their scheduler at once, in the order in which they came."""
    submitted = []
    submit = world.one.submit
    world.one.submit = lambda requests: submitted.append([r.parts[0][:4] for r in requests]) or submit(requests)

    def call(value, rows=1):
        message = one(rows)
        message.raw_input_contents[0] = np.full((rows, 2), value, np.float32).tobytes()
        calls.append(ClientCall(message.SerializeToString()))
        world.service(calls[-1])

    for _known in (False, True):
        calls, submitted[:] = [], []
        for value, rows in ((1, 1), (2, 1), (3, 2), (4, 1)):
            call(value, rows)
        world.service(ClientCall(b"nonsense"))
        call(5)
        assert not submitted
        world.loop.run_for(10**9)
        assert all(call.response for call in calls)
        values = [[np.frombuffer(part, np.float32)[0] for part in run] for run in submitted]
        assert values == [[1, 2], [3], [4, 5]]


def test_who_goes_away_before_it_is_taken_is_not_run(world):
    calls = [ClientCall(one().SerializeToString()) for _ in range(3)]
    for call in calls:
        world.service(call)
    calls[1].cancel()
    world.loop.run_for(10**9)
    assert [call.error or (call.message and True) for call in calls] == [True, None, True]
    assert world.observer.requests == 2
    assert world.observer.reasons == {}


def test_a_large_message_does_not_wait(world):
    rows = intake._LARGE // 8
    small, large = ClientCall(one().SerializeToString()), ClientCall(one(rows).SerializeToString())
    world.service(small)
    assert small.under_way is None
    world.service(large)
    assert small.under_way is not None
    assert large.under_way is not None
    world.loop.run_for(10**9)
    assert small.response
    assert large.ended


def test_a_bug_of_ours_in_submitting_is_an_error_of_those_calls(world, monkeypatch):
    world.reply(one())
    monkeypatch.setattr(world.one, "submit", lambda requests: 1 / 0)
    calls = [ClientCall(message.SerializeToString()) for message in (one(), one(), two())]
    for call in calls:
        world.service(call)
    world.loop.run_for(10**9)
    assert [type(call.error) for call in calls] == [ZeroDivisionError, ZeroDivisionError, type(None)]
    assert world.observer.reasons == {"internal": 2}
    assert world.server.refused == {}


def test_a_bug_of_ours_is_an_error_of_one_call(world, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(infer_module, "build_template", broken)
    sink = world.infer(one())
    assert isinstance(sink.error, ZeroDivisionError)
    assert world.observer.reasons == {"internal": 1}


def test_the_calls_own_moments(world):
    now = world.loop.clock()
    call = ClientCall(one(parameters={"timeout": 5_000_000}).SerializeToString(), now - 7, now + 100)
    world.service(call)
    world.service.take()
    request = call.under_way
    assert (request.received, request.decoded, request.rpc_deadline) == (now - 7, now, now + 100)
    assert request.expires == now + 100


def test_a_split_request_can_be_cancelled_by_its_handle(world):
    call = ClientCall(one(30).SerializeToString())
    world.service(call)
    world.service.take()
    handle = call.under_way
    handle.cancel()
    world.loop.run_for(10**9)
    assert not call.ended
    assert handle.finished
    assert world.one.depth() == (0, 0)
    assert world.observer.reasons == {"cancelled": 1}


def test_the_service_runs_in_a_plain_event_loop_too():
    async def main():
        server = InProcessServer(monotonic_ns)
        scheduler, _ = server.serve(FakeModel(), worker=Worker)
        outputs = await server.client.infer("m", {"x": np.ones((1, 2), np.float32)})
        scheduler.close()
        return outputs

    assert asyncio.run(main())["y"].tolist() == [[1, 1]]
