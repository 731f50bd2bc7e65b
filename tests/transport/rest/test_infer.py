"""RestInfer without HTTP: bodies and heads in, header fields and bodies out."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transport.rest.world import World, parse

from headrace.datatypes import DATATYPES
from headrace.errors import (
    HeadraceError,
    InvalidRequest,
    MessageTooLarge,
    ModelNotFound,
    ModelNotReady,
    RegionNotFound,
    ShuttingDown,
    Unimplemented,
)
from headrace.messages import Signature, TensorSpec
from headrace.pipeline import bytes_tensor
from headrace.testing.backend import FakeModel
from headrace.testing.client import ClientCall
from headrace.transport.rest import infer as infer_module
from headrace.transport.rest.head import WHOLE_JSON, InferHead, Target
from headrace.transport.rest.json_text import JsonLimits

TWO = Signature(
    (TensorSpec("a", "FP32", (2,)), TensorSpec("b", "BYTES", (-1,))),
    (TensorSpec("a", "FP32", (2,)), TensorSpec("b", "BYTES", (-1,))),
    4,
)
ONE = np.array([[1, 2]], np.float32).tobytes()
X = {"name": "x", "datatype": "FP32", "shape": [1, 2]}
BINARY = {"parameters": {"binary_data_size": 8}}
ALL_BINARY = {"binary_data_output": True}


@pytest.fixture
def world():
    with World() as made:
        made.model, made.observer = made.serve(FakeModel())
        made.serve(FakeModel(TWO), "two", 3)
        yield made


def call(world, body, json_length=WHOLE_JSON, model="m", version=""):
    """Has a body answered; the call."""
    made = ClientCall(body, world.loop.clock())
    made.head = InferHead(Target(model, version), len(body), json_length, b"", b"", True, 0, False)
    world.infer(made)
    world.loop.run_until_idle()
    assert made.ended
    return made


def reply(world, header, *tensors, **options):
    """The reply to a request of this JSON, with these tensors behind it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    made = call(world, text + b"".join(tensors), len(text) if tensors else WHOLE_JSON, **options)
    if made.error is not None:
        raise made.error
    (answer,) = parse(b"HTTP/1.1 200 OK\r\n" + made.message)
    return answer


def elements(data, **more):
    return {**more, "inputs": [{**X, "data": data}]}


def binary(**more):
    return {**more, "inputs": [{**X, **BINARY}]}


def test_json_in_json_out(world):
    for _ in range(2):
        assert reply(world, elements([[1, 2]], id="7")).json == {
            "id": "7",
            "model_name": "m",
            "model_version": "1",
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}],
        }


def test_binary_in_binary_out(world):
    for number in range(3):
        data = np.array([[number, 2]], np.float32).tobytes()
        answer = reply(world, binary(id=str(number), parameters=ALL_BINARY), data)
        assert answer.json["id"] == str(number)
        assert answer.json["outputs"][0]["parameters"] == {"binary_data_size": 8}
        assert answer.binary == data


def test_mixed(world):
    texts = bytes_tensor.encode(np.array(["ä", "b"], object))
    inputs = [
        {"name": "b", "datatype": "BYTES", "shape": [1, 2], "parameters": {"binary_data_size": len(texts)}},
        {"name": "a", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]},
    ]
    outputs = [{"name": "a", "parameters": {"binary_data": True}}, {"name": "b"}]
    for _ in range(2):
        answer = reply(world, {"inputs": inputs, "outputs": outputs}, texts, model="two", version="3")
        assert [one.get("data") for one in answer.json["outputs"]] == [None, ["ä", "b"]]
        assert answer.binary == ONE


@pytest.mark.parametrize("datatype", sorted(DATATYPES))
@given(data=st.data())
def test_binary_and_json_are_the_same_request(datatype, data):
    spec = TensorSpec("x", datatype, (-1,))
    with World() as world:
        _, observer = world.serve(FakeModel(Signature((spec,), (TensorSpec("y", datatype, (-1,)),), 4)))
        rows, width = data.draw(st.integers(1, 3)), data.draw(st.integers(0, 3))
        if datatype == "BYTES":
            text = st.text(max_size=4)
            values = data.draw(st.lists(text, min_size=rows * width, max_size=rows * width))
            raw = b"".join(len(value.encode()).to_bytes(4, "little") + value.encode() for value in values)
        else:
            numbers = st.booleans() if datatype == "BOOL" else st.integers(0, 100)
            values = data.draw(st.lists(numbers, min_size=rows * width, max_size=rows * width))
            wide = np.array(values, np.float32)
            raw = (
                (wide.view(np.uint32) >> 16).astype(np.uint16).tobytes()
                if datatype == "BF16"
                else wide.astype(DATATYPES[datatype].numpy).tobytes()
            )
        tensor = {"name": "x", "datatype": datatype, "shape": [rows, width]}
        given_raw = {"inputs": [{**tensor, "parameters": {"binary_data_size": len(raw)}}]}
        given_json = {"inputs": [{**tensor, "data": values}]}
        for parameters in ({}, {"parameters": ALL_BINARY}):
            one = call(world, json.dumps(given_json | parameters).encode())
            text = json.dumps(given_raw | parameters).encode()
            other = call(world, text + raw, len(text))
            assert one.message == other.message
        assert one.message.endswith(raw)
        assert observer.requests == 4


def test_what_has_no_elements_in_its_json_is_recognised_whatever_its_id(world, monkeypatch):
    reply(world, binary(), ONE)
    reply(world, binary(id="a"), ONE)
    monkeypatch.setattr(infer_module, "parse", None)
    assert "id" not in reply(world, binary(), ONE).json
    for request_id in ("a", "b", "ä", "", "x" * 300):
        text = json.dumps(binary(), ensure_ascii=False)
        spelt = f'{{"id": "{request_id}"' + ", " * (len(text) > 2) + text[1:]
        assert reply(world, spelt.encode(), ONE).json.get("id", "") == request_id


def test_what_is_spelt_otherwise_is_parsed_and_checked_only_once(world, monkeypatch):
    reply(world, binary(), ONE)
    reply(world, elements([1, 2]))
    monkeypatch.setattr(infer_module, "build_template", None)
    indented = json.dumps(binary(id='with "quotes"'), indent=1).encode()
    assert reply(world, indented, ONE).json["id"] == 'with "quotes"'
    assert reply(world, elements([[3, 4]], id="7")).json["outputs"][0]["data"] == [3, 4]


def test_of_two_ids_the_last_one_counts_always(world):
    text = b'{"id":"%b",' + json.dumps(binary()).encode()[1:-1] + b',"id":"last"}'
    for first in (b"first", b"last", b"other"):
        assert reply(world, text.replace(b"%b", first), ONE).json["id"] == "last"


def test_an_id_that_is_not_utf_8(world):
    text = json.dumps(binary(id="a")).encode()
    reply(world, text, ONE)
    with pytest.raises(InvalidRequest, match="the request is not valid JSON: its id is not UTF-8"):
        reply(world, text.replace(b'"a"', b'"\xff"'), ONE)
    with pytest.raises(InvalidRequest, match="the request is not valid JSON"):
        reply(world, json.dumps(binary(id="b", parameters={"p": 1})).encode().replace(b'"b"', b'"\xff"'), ONE)


def test_half_of_a_surrogate_pair(world):
    text = b'{"id": "\\ud800", "inputs": [], "parameters": {"p": NaN}}'
    with pytest.raises(InvalidRequest, match="the request's id has half of a surrogate pair, expected Unicode"):
        reply(world, text)
    with pytest.raises(InvalidRequest, match="unexpected inference input"):
        reply(world, b'{"inputs": [{"name": "\\ud800", "datatype": "FP32", "shape": [1], "data": [NaN]}]}')


def test_looks_are_not_kept_without_end(world, monkeypatch):
    monkeypatch.setattr(infer_module, "_LOOKS", 10)
    for number in range(30):
        answer = reply(world, binary(id=str(number), parameters={"mine": number}), ONE)
        assert answer.json["outputs"][0]["data"] == [1, 2]
        kept = sum(map(len, world.infer._targets.values()))
        assert kept == world.infer._looks <= 10
    assert repr(world.infer) == f"<RestInfer 1 targets, {kept} looks, generation 2>"


def test_a_long_look_is_not_kept(world):
    for number in range(3):
        reply(world, binary(parameters={"mine": "x" * infer_module._LEAD, "n": number}), ONE)
    assert world.infer._looks == 0


def test_another_model_of_that_name_is_seen(world):
    assert reply(world, binary(), ONE).json["model_version"] == "1"
    world.serve(FakeModel(), "m", 2)
    assert reply(world, binary(), ONE).json["model_version"] == "2"
    assert reply(world, binary(), ONE, version="1").json["model_version"] == "1"


def test_without_json_the_body_is_the_only_input(world):
    answer = parse_raw(world, ONE * 3)
    assert answer.json["outputs"][0] == {
        "name": "y", "datatype": "FP32", "shape": [3, 2], "parameters": {"binary_data_size": 24},
    }  # fmt: skip
    assert answer.binary == ONE * 3
    assert parse_raw(world, ONE * 3).binary == ONE * 3  # its look is known


def parse_raw(world, body, **options):
    made = call(world, body, 0, **options)
    if made.error is not None:
        raise made.error
    (answer,) = parse(b"HTTP/1.1 200 OK\r\n" + made.message)
    return answer


@pytest.mark.parametrize(
    ("datatype", "dims", "max_batch", "body", "shape"),
    [
        ("FP32", (2,), 8, ONE, [1, 2]),
        ("FP32", (-1,), 8, ONE, [1, 2]),
        ("FP32", (-1,), 0, ONE, [2]),
        ("FP32", (1, -1, 2), 8, ONE, [1, 1, 1, 2]),
        ("FP32", (2,), 0, ONE, [2]),
        ("FP32", (), 0, ONE[:4], []),
        ("FP32", (-1,), 8, b"", [1, 0]),
        ("UINT8", (-1,), 0, b"abc", [3]),
        ("BYTES", (1,), 8, b"text", [1, 1]),
        ("BYTES", (-1,), 8, b"text", [1, 1]),
        ("BYTES", (-1,), 0, b"text", [1]),
    ],
)
def test_the_shape_of_a_body_without_json(world, datatype, dims, max_batch, body, shape):
    specs = (TensorSpec("x", datatype, dims),), (TensorSpec("y", datatype, dims),)
    world.serve(FakeModel(Signature(*specs, max_batch)), "raw")
    (told,) = parse_raw(world, body, model="raw").json["outputs"]
    assert told["shape"] == shape


@pytest.mark.parametrize(
    ("dims", "max_batch", "size", "says"),
    [
        (
            (-1, -1),
            0,
            8,
            "does not tell the shape of input 'x' for model 'raw': 2 of its dimensions are free in [-1, -1]",
        ),
        ((2,), 8, 12, "input byte size mismatch for input 'x' for model 'raw'. Expected 8, got 12"),
        ((2,), 8, 4, "input byte size mismatch for input 'x' for model 'raw'. Expected 8, got 4"),
        ((2,), 8, 0, "input byte size mismatch for input 'x' for model 'raw'. Expected 8, got 0"),
        ((2,), 0, 16, "input byte size mismatch for input 'x' for model 'raw'. Expected 8, got 16"),
        ((-1,), 8, 5, "input byte size mismatch for input 'x' for model 'raw'. Expected 4, got 5"),
    ],
)
def test_a_body_without_json_of_the_wrong_size(world, dims, max_batch, size, says):
    specs = (TensorSpec("x", "FP32", dims),), (TensorSpec("y", "FP32", dims),)
    world.serve(FakeModel(Signature(*specs, max_batch)), "raw")
    with pytest.raises(InvalidRequest) as caught:
        parse_raw(world, b"x" * size, model="raw")
    assert says in str(caught.value)


def test_a_body_without_json_for_a_model_of_two_inputs(world):
    with pytest.raises(InvalidRequest, match="but model 'two' has 2 inputs"):
        parse_raw(world, ONE, model="two")


@pytest.mark.parametrize(
    ("header", "tensors", "length", "says"),
    [
        (binary(), ONE + b"x", None,
         "unexpected additional input data for model 'm': 9 octets follow the JSON, expected 8 by the 'binary_data_s"),
        (binary(), ONE[1:], None, "missing input data for model 'm': 7 octets follow the JSON, expected 8"),
        (binary(), ONE, 10**6, "inference header size should be in range (0, "),
        (binary(), ONE, 5, "the request is not valid JSON"),
        ({"inputs": [{**X, "parameters": {"binary_data_size": 7}}]}, ONE[1:], None,
         "[request id: <id_unknown>] input byte size mismatch for input 'x' for model 'm'. Expected 8, got 7"),
        (elements([1, 2]), ONE, None, "unexpected additional input data for model 'm': 8 octets follow the JSON, ex"),
    ],
)  # fmt: skip
def test_octets_that_do_not_fit(world, header, tensors, length, says):
    text = json.dumps(header).encode()
    for _ in range(2):
        made = call(world, text + tensors, len(text) if length is None else length)
        assert isinstance(made.error, InvalidRequest)
        assert says in str(made.error)
        reply(world, binary(), ONE)  # whose look is known now


def test_elements_and_octets_for_one_input_whatever_was_seen_before(world):
    reply(world, binary(), ONE)
    for _ in range(2):
        with pytest.raises(InvalidRequest, match="has 'data' and 'binary_data_size', expected one of them"):
            reply(world, {"inputs": [{**X, **BINARY, "data": [1, 2]}]}, ONE)
    reply(world, elements([1, 2]))
    with pytest.raises(InvalidRequest, match="unable to find data for input tensor 'x' for model 'm' in request"):
        reply(world, {"inputs": [X]})


def test_the_id_stands_in_errors_that_have_one(world):
    reply(world, binary(), ONE)
    with pytest.raises(InvalidRequest, match=r"^\[request id: 7\] unexpected shape for input 'x'"):
        reply(world, {"id": "7", "inputs": [{**X, "shape": [1, 3], "data": [1, 2, 3]}]})


def test_models_and_versions_that_are_not_there(world):
    with pytest.raises(ModelNotFound, match="Request for unknown model: 'n' is not found"):
        reply(world, elements([1, 2]), model="n")
    with pytest.raises(ModelNotFound, match="Request for unknown model: 'm' version 9 is not found"):
        reply(world, elements([1, 2]), version="9")
    with pytest.raises(ModelNotFound):
        parse_raw(world, ONE, model="n")
    assert world.models.refused == {"model_not_found": 3}


def test_what_does_not_fit_a_known_model_is_counted_for_that(world):
    with pytest.raises(InvalidRequest):
        reply(world, {"inputs": []})
    with pytest.raises(InvalidRequest):
        parse_raw(world, b"123")
    assert world.observer.reasons == {"invalid_request": 2}
    assert world.models.refused == {}


def test_not_ready_and_leaving(world):
    reply(world, binary(), ONE)
    world.status.ready = False
    with pytest.raises(ModelNotReady, match="Server not ready"):
        reply(world, binary(), ONE)
    world.status.exiting = True
    world.loop.run_until_complete(world.model.drain(0))
    with pytest.raises(ShuttingDown, match="Server is shutting down and has stopped accepting new requests"):
        reply(world, binary(), ONE)


def test_shared_memory_that_is_switched_off(world):
    region = {"shared_memory_region": "r", "shared_memory_byte_size": 8}
    with pytest.raises(Unimplemented, match="Client shared memory is disabled"):
        reply(world, {"inputs": [{**X, "parameters": region}]})


class Memory:
    """One region of 64 octets."""

    def __init__(self):
        self.octets = bytearray(64)

    def view(self, region):
        if region.name != "r":
            raise RegionNotFound(region.name)
        return memoryview(self.octets)[region.offset : region.offset + region.size]

    def pin(self, region):
        view = self.view(region)
        return SimpleNamespace(write=lambda data: view[: len(data)].__setitem__(slice(None), data))


def test_shared_memory_and_classification():
    memory = Memory()
    with World(memory=memory) as world:
        world.serve(FakeModel())
        memory.octets[8:16] = ONE
        inputs = [{**X, "parameters": {
            "shared_memory_region": "r", "shared_memory_byte_size": 8, "shared_memory_offset": 8}}]  # fmt: skip
        wanted = {
            "shared_memory_region": "r",
            "shared_memory_byte_size": 16,
            "shared_memory_offset": 32,
            "binary_data": False,
        }
        for number in range(3):
            memory.octets[8:16] = np.array([number, 5], np.float32).tobytes()
            (told,) = reply(world, {"inputs": inputs, "outputs": [{"name": "y", "parameters": wanted}]}).json["outputs"]
            assert told.keys() == {"name", "datatype", "shape"}
            assert memory.octets[32:40] == memory.octets[8:16]
        classes = [{"name": "y", "parameters": {"classification": 1}}]
        (told,) = reply(world, {"inputs": inputs, "outputs": classes}).json["outputs"]
        assert told == {"name": "y", "datatype": "BYTES", "shape": [1, 1], "data": ["5.000000:1"]}
        with pytest.raises(RegionNotFound):
            reply(world, {"inputs": [{**X, "parameters": {"shared_memory_region": "s", "shared_memory_byte_size": 8}}]})


def test_parameters(world):
    answer = reply(world, binary(parameters={"headrace_timing": True, "priority": 1, "sequence_id": "s"}), ONE)
    assert answer.json["parameters"]["headrace_batch_rows"] == 1
    with pytest.raises(InvalidRequest, match=r"parameter 'timeout' is 1\.5, expected a non-negative integer"):
        reply(world, binary(parameters={"timeout": 1.5}), ONE)
    with pytest.raises(InvalidRequest, match="parameter keys starting with 'triton_' are reserved"):
        reply(world, binary(parameters={"triton_mine": True}), ONE)


def test_limits_of_json():
    with World(limits=JsonLimits(6, 50)) as world:
        world.serve(FakeModel())
        reply(world, elements([[1, 2]]))
        with pytest.raises(MessageTooLarge, match="elements of JSON, at most 50 are taken"):
            reply(world, elements([0] * 60))
        with pytest.raises(InvalidRequest, match="more than 6 JSON arrays and objects inside one another"):
            reply(world, elements([[[[1, 2]]]]))


BODIES = st.builds(
    lambda text, cut, tensors: (text[:cut] if cut else text) + tensors,
    st.sampled_from([json.dumps(one).encode() for one in (elements([1, 2]), binary(), binary(id="7"))]),
    st.integers(0, 200),
    st.binary(max_size=12),
)


@given(st.lists(st.tuples(BODIES | st.binary(max_size=60), st.integers(-1, 150)), max_size=5))
def test_whatever_comes_only_errors_of_ours_go(requests):
    with World() as world:
        world.serve(FakeModel())
        for body, length in requests:
            made = call(world, body, length)
            assert made.error is None or isinstance(made.error, HeadraceError)
        assert reply(world, binary(), ONE).json["outputs"][0]["data"] == [1, 2]
