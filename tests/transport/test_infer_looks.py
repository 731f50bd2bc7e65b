"""The quick look against the parser."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from transport.inferring import World, one

from headrace.engine.shared_memory import NoSharedMemory
from headrace.errors import HeadraceError, InvalidRequest
from headrace.pipeline.decode import build_template
from headrace.pipeline.encode import ReplyEncoder
from headrace.pipeline.wire import field_text, length_prefixed, varint
from headrace.rpc import inference_pb2 as pb
from headrace.transport import infer as infer_module
from headrace.transport.infer_message import infer_message


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


@pytest.mark.parametrize("behind", [b"", b"\x32\x00"], ids=["as libraries write", "in another order"])
@pytest.mark.parametrize("field", [b"\x22\x00", b"\x2a\x00", b"\x3a\x00", b"\x98\x06\x01"])
@pytest.mark.parametrize("known", [False, True])
def test_more_fields_than_any_request_has_are_not_made_into_objects(world, monkeypatch, field, behind, known):
    """Of two octets each, 8 MiB held the server up for 5 s and took most of a GB."""
    message = one().SerializeToString()
    if known:
        world.opened(message)
    message += field * (infer_module._MOST_FIELDS + 1) + behind
    monkeypatch.setattr(infer_module, "_parsed", None)
    for octets in (message, memoryview(message)):
        error = world.infer(octets).error
        assert isinstance(error, InvalidRequest)
        assert str(error) == "the request has more inputs, outputs, parameters or tensors than 65536"
