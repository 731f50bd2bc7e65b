import asyncio

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.clock import monotonic_ns
from headrace.engine.shared_memory import NoSharedMemory
from headrace.engine.worker import Worker
from headrace.errors import HeadraceError, InvalidRequest, ModelNotFound, ModelNotReady
from headrace.messages import SequenceFlags, Signature, TensorSpec
from headrace.pipeline import bytes_tensor
from headrace.pipeline.decode import build_template
from headrace.pipeline.encode import ReplyEncoder
from headrace.pipeline.wire import field_text, length_prefixed, varint
from headrace.rpc import inference_pb2 as pb
from headrace.testing.backend import FakeModel
from headrace.testing.client import ClientCall, InProcessServer, infer_request
from headrace.testing.loop import VirtualTimeLoop
from headrace.transport import infer as infer_module
from headrace.transport import intake
from headrace.transport.infer_message import infer_message

TWO = Signature(
    (TensorSpec("a", "FP32", (2,)), TensorSpec("b", "BYTES", (-1,))),
    (TensorSpec("a", "FP32", (2,)), TensorSpec("b", "BYTES", (-1,))),
    4,
)


class World:
    """An InferService over two models, on a loop that is stepped by hand."""

    def __init__(self):
        self.loop = VirtualTimeLoop()
        self.loop.run_until_complete(self._start())
        self.service = self.server.service

    async def _start(self):
        self.server = InProcessServer(self.loop.clock)
        self.one, self.observer = self.server.serve(FakeModel())
        self.two, _ = self.server.serve(FakeModel(TWO), "two", 3)
        self.empty, _ = self.server.serve(FakeModel(Signature((), TWO.outputs, 0), lambda inputs: []), "empty")

    def infer(self, message, deadline=0):
        """Sends, and runs all there is to run."""
        if isinstance(message, pb.ModelInferRequest):
            message = message.SerializeToString()
        call = ClientCall(message, self.loop.clock(), deadline)
        self.service(call)
        self.loop.run_for(10**9)
        assert call.ended
        return call

    def reply(self, message):
        sink = self.infer(message)
        assert sink.error is None, sink.error
        return pb.ModelInferResponse.FromString(sink.message)

    def recognised(self, message):
        """What the quick look finds, or None."""
        try:
            return self.service._recognise(message)
        except (LookupError, ValueError):
            return None

    def opened(self, message):
        """What the service makes of a message, known or not: template, tensors and id field. None: it is refused."""
        try:
            return self.service._open(message, None)
        except HeadraceError:
            return None

    def learn(self, message):
        """Has a message parsed, so that its look is known. None if it is refused."""
        try:
            return self.service._parse(message)
        except HeadraceError:
            return None


@pytest.fixture
def world():
    world = World()
    yield world
    world.loop.close()


SHARED = None


def shared_world():
    """For hypothesis, which does not like fixtures: its examples may as well meet one another's traces."""
    global SHARED
    if SHARED is None:
        SHARED = World()
    return SHARED


@pytest.fixture(scope="module", autouse=True)
def _close_shared_world():
    yield
    if SHARED is not None:
        SHARED.loop.close()


def one(rows=1, **more):
    return infer_request("m", {"x": np.arange(2 * rows, dtype=np.float32).reshape(rows, 2)}, **more)


def two(**more):
    texts = np.array([[b"q", "ä".encode(), b""]], dtype=object)
    return infer_request("two", {"a": np.zeros((1, 2), np.float32), "b": texts}, **more)


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


# --- the quick look against the parser ---


def reference(world, data):
    """Template, raw tensors and id by protobuf alone; None if it is refused."""
    try:
        parsed = pb.ModelInferRequest.FromString(bytes(data))
    except DecodeError:
        return None
    try:
        scheduler = world.server.catalog.resolve(parsed.model_name, parsed.model_version)
        template = build_template(infer_message(parsed), scheduler.view, ReplyEncoder, NoSharedMemory())
    except HeadraceError:
        return None
    return template, list(parsed.raw_input_contents), parsed.id


def same(found, expected):
    template, raw, id_field = found
    other, other_raw, other_id = expected
    names = [name for name in type(template).__slots__ if name not in ("screen", "memory", "reply")]
    assert {name: getattr(template, name) for name in names} == {name: getattr(other, name) for name in names}
    assert (template.screen is None) == (other.screen is None)
    assert template.reply._head == other.reply._head
    assert template.reply._outputs == other.reply._outputs
    assert [bytes(entry) for entry in raw] == other_raw
    assert field_text(id_field) == other_id


def agree(world, data):
    """The quick look, if it recognises a message at all, says what the parser says; so does the full way."""
    for kind in (bytes, memoryview):
        expected = reference(world, data)
        found = world.recognised(kind(data))
        if found is not None:
            assert expected is not None
            same(found, expected)
        learned = world.learn(kind(data))
        assert (learned is None) == (expected is None)
        if expected is not None:
            same(learned, expected)
            again = world.recognised(kind(data))
            if again is not None:
                same(again, expected)
        for _ in range(2):
            opened = world.opened(kind(data))
            if opened is not None:
                assert expected is not None
                template, parts, id_field = opened
                same((template, expected[1], id_field), expected)
                assert list(parts) == list(template.bind(expected[1], id_field))
            elif expected is not None:
                with pytest.raises(HeadraceError):
                    expected[0].bind(expected[1], b"")


shapes = st.lists(st.integers(-1, 5), max_size=3)
parameter = st.one_of(
    st.booleans().map(lambda v: pb.InferParameter(bool_param=v)),
    st.integers(0, 9).map(lambda v: pb.InferParameter(int64_param=v)),
    st.text(max_size=4).map(lambda v: pb.InferParameter(string_param=v)),
)


@st.composite
def fields(draw):
    """The fields of a request, one by one: mostly a good one, in any order and multiplicity."""
    name = draw(st.sampled_from(["m", "two", "empty", "absent", ""]))
    parts = [length_prefixed(1, name.encode())]
    parts += [length_prefixed(2, v.encode()) for v in draw(st.lists(st.sampled_from(["", "1", "3", "01"]), max_size=2))]
    parts += [length_prefixed(3, i.encode()) for i in draw(st.lists(st.text(max_size=140), max_size=2))]
    for key in draw(st.lists(st.sampled_from(["timeout", "priority", "headrace_timing", "other"]), max_size=2)):
        message = pb.ModelInferRequest()
        message.parameters[key].CopyFrom(draw(parameter))
        parts.append(message.SerializeToString())
    tensors = {"m": [("x", "FP32", (1, 2))], "two": [("b", "BYTES", (2, 1)), ("a", "FP32", (2, 2))]}.get(name, [])
    for tensor, datatype, shape in draw(st.permutations(tensors)):
        message = pb.ModelInferRequest()
        if draw(st.integers(0, 9)) == 0:
            shape = draw(shapes)
        message.inputs.add(name=tensor, datatype=datatype, shape=shape)
        parts.append(message.SerializeToString())
    for output in draw(st.lists(st.sampled_from(["y", "a", "b"]), max_size=2)):
        message = pb.ModelInferRequest()
        message.outputs.add(name=output)
        parts.append(message.SerializeToString())
    for raw in draw(st.lists(st.binary(max_size=200), max_size=3)):
        parts.append(length_prefixed(7, raw))
    if draw(st.integers(0, 4)) == 0:
        parts.append(varint(draw(st.integers(8, 300)) << 3) + b"\x05")  # a field from the future
    if draw(st.integers(0, 2)) == 0:
        parts = draw(st.permutations(parts))
    return parts


@settings(max_examples=500)
@given(fields())
def test_the_quick_look_agrees_with_the_parser(parts):
    agree(shared_world(), b"".join(parts))


def test_a_message_that_ends_inside_its_id_is_refused(world):
    whole = b"\n\x05empty" + b"\x1a\x04abcd"
    agree(world, whole)
    world.infer(whole)  # its look, which is empty, is known from now on
    for end in range(len(whole) - 5, len(whole)):
        agree(world, whole[:end])


@settings(max_examples=500)
@given(fields(), st.data())
def test_mutated_messages_only_ever_give_errors_of_ours(parts, data):
    world = shared_world()
    message = bytearray(b"".join(parts))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, max(len(message) - 1, 0)))
        action = data.draw(st.sampled_from(["flip", "cut", "insert"]))
        if action == "flip" and message:
            message[at] ^= 1 << data.draw(st.integers(0, 7))
        elif action == "cut":
            del message[at : at + data.draw(st.integers(1, 20))]
        else:
            message[at:at] = data.draw(st.binary(max_size=5))
    agree(world, bytes(message))
    sink = world.infer(bytes(message))
    assert sink.error is None or isinstance(sink.error, HeadraceError), repr(sink.error)


@settings(max_examples=500)
@given(st.binary(max_size=300))
def test_random_bytes_only_ever_give_errors_of_ours(data):
    sink = shared_world().infer(data)
    assert isinstance(sink.error, HeadraceError)


def test_the_service_runs_in_a_plain_event_loop_too():
    async def main():
        server = InProcessServer(monotonic_ns)
        scheduler, _ = server.serve(FakeModel(), worker=Worker)
        outputs = await server.client.infer("m", {"x": np.ones((1, 2), np.float32)})
        scheduler.close()
        return outputs

    assert asyncio.run(main())["y"].tolist() == [[1, 1]]


class TestSequences:
    """The parameters that tell sequences apart are no part of what is known of a look."""

    def message(self, sequence, *, start=False, end=False, request_id="", **parameters):
        flags = {"sequence_id": sequence, "sequence_start": start, "sequence_end": end}
        return infer_request(
            "m", {"x": np.zeros((1, 2), np.float32)}, request_id=request_id, parameters={**flags, **parameters}
        ).SerializeToString()

    def test_requests_of_all_sequences_look_alike(self, world, monkeypatch):
        built = []
        monkeypatch.setattr(
            infer_module, "build_template", lambda *arguments: built.append(1) or build_template(*arguments)
        )
        for sequence in (1, 2, "three", 1 << 62):
            for start, end in ((True, False), (False, False), (False, True)):
                template, _, id_field = world.opened(self.message(sequence, start=start, end=end, request_id="i"))
                assert template.sequence == SequenceFlags(sequence, start, end)
                assert field_text(id_field) == "i"
        assert len(built) == 1
        template, *_ = world.opened(self.message(1, headrace_timing=True))
        assert (template.timing, template.sequence) == (True, SequenceFlags(1))
        assert len(built) == 2

    def test_the_second_of_a_sequence_is_recognised(self, world):
        message = self.message(5)
        assert world.recognised(message) is None
        template, *_ = world.opened(message)
        assert world.recognised(message)[0] is template
        assert world.opened(message)[0] is template

    def test_a_request_without_sequence_has_none(self, world):
        world.opened(self.message(5))
        plain, *_ = world.opened(infer_request("m", {"x": np.zeros((1, 2), np.float32)}).SerializeToString())
        assert plain.sequence is None

    def test_sequences_push_out_no_other_looks(self, world, monkeypatch):
        monkeypatch.setattr(infer_module, "_SEQUENCE_LOOKS", 10)
        other = infer_request("two", {"a": np.zeros((1, 2), np.float32), "b": np.array([["x"]], dtype=object)})
        known, *_ = world.opened(other.SerializeToString())
        for sequence in range(1, 36):
            template, *_ = world.opened(self.message(sequence))
            assert template.sequence.id == sequence
            assert sum(len(looks.templates) for looks in world.service._heads.values()) <= 2 + 10
        assert world.opened(other.SerializeToString())[0] is known
        assert world.recognised(self.message(35)) is not None
        assert world.service._looks == 2

    def test_when_models_change_they_are_forgotten(self, world):
        message = self.message(5)
        before, *_ = world.opened(message)
        world.service._forget()
        after, *_ = world.opened(message)
        assert after is not before

    def test_bad_parameters_are_refused_known_look_or_not(self, world):
        good = self.message(5)
        for _ in range(2):
            bad = pb.ModelInferRequest.FromString(good)
            bad.parameters["sequence_id"].double_param = 1.5
            with pytest.raises(InvalidRequest, match=r"parameter 'sequence_id' is 1\.5"):
                world.service._open(bad.SerializeToString(), None)
            assert world.opened(good) is not None

    def test_an_id_as_long_as_may_be(self, world):
        sequence = "x" * 128
        for start in (True, False, False):
            template, *_ = world.opened(self.message(sequence, start=start))
            assert template.sequence == SequenceFlags(sequence, start)
        assert world.recognised(self.message(sequence)) is not None

    def test_typed_contents(self, world):
        request = infer_request("m", {}, parameters={"sequence_id": 5})
        tensor = request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
        tensor.contents.fp32_contents.extend([1, 2])
        for _ in range(2):
            template, parts, _ = world.opened(request.SerializeToString())
            assert template.sequence == SequenceFlags(5)
            assert np.frombuffer(parts[0], np.float32).tolist() == [1, 2]
