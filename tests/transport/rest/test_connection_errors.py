"""What a connection refuses."""

import gzip
import json
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transport.rest.inferences import SECOND, TENSOR, get, infer, infer_json, refused, value
from transport.rest.world import World, request, with_json

from headrace.messages import Signature, TensorSpec
from headrace.testing.backend import FakeModel
from headrace.transport.rest import connection as connection_module


@pytest.mark.parametrize(
    "octets",
    [
        b"\x16\x03\x01\x02\x00 not http\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/3.0\r\n\r\n",
        b"POST /v2/models/m/infer HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"POST /v2/models/m/infer HTTP/1.1\r\ncontent-length: 1x\r\n\r\n",
        b"POST /v2/models/m/infer HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n12",
        b"POST / HTTP/1.1\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n",
        b"GET / HTTP/1.1\r\nhost : x\r\n\r\n",
        b"GET / HTTP/1.1\nhost: x\n\n",
        b"GET nowhere HTTP/1.1\r\n\r\n",
        b"CONNECT x:443 HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_what_is_not_http(world, octets):
    answer = refused(world, octets)
    assert answer.status == 400
    assert answer.json.keys() == {"error"}
    assert answer.fields["content-type"] == "application/json"
    assert world.counts.http_requests == {("none", 400): 1}


def test_a_client_of_grpc_is_told_that_there_is_another_port(world):
    answer = refused(world, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    assert "it is HTTP/2, and gRPC has another port (grpc_port)" in answer.json["error"]


@pytest.mark.parametrize(
    ("octets", "status", "text"),
    [
        (
            b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            501,
            "Transfer-Encoding 'gzip, chunked': expected chunked",
        ),
        (b"GET /v2\r\n\r\n", 505, "HTTP/0.9 is not spoken here"),
    ],
)
def test_http_of_another_kind(world, octets, status, text):
    answer = refused(world, octets)
    assert answer.status == status
    assert text in answer.json["error"]


def test_what_is_not_http_is_answered_in_its_turn(world, held):
    client = world.client()
    assert client.ask(infer(1) + b"nonsense\r\n\r\n") == []
    held.release()
    world.loop.run_until_idle()
    first, second = client.replies()
    assert (value(first), second.status) == (1, 400)


@pytest.mark.parametrize(
    ("octets", "status", "text"),
    [
        (request(path="/v2/models/%ff/infer"), 400, "the path is not UTF-8"),
        (infer(inference_header_content_length="x"), 400, "Unable to parse Inference-Header-Content-Length"),
        (infer(content_encoding="br"), 501, "Unsupported compression type"),
        (request(content_length=(1 << 20) + 1), 413, "the body is larger than 1048576 octets, which is the limit"),
        (request(content_length=1 << 62, path="/else"), 413, "the body is larger than 1048576 octets"),
    ],
)
def test_heads_that_are_refused_before_the_body(world, octets, status, text):
    answer = refused(world, octets)
    assert (answer.status, text in answer.json["error"]) == (status, True)


def test_errors_of_the_service_leave_the_connection_open(world):
    client = world.client()
    answers = client.ask(infer_json(1, path="/v2/models/nobody/infer") + request(b"nonsense") + infer(2))
    assert [answer.status for answer in answers] == [404, 400, 200]
    assert answers[0].fields["headrace-reason"] == "model_not_found"
    assert world.counts.http_requests == {("infer", 404): 1, ("infer", 400): 1, ("infer", 200): 1}


def test_overload_says_when_to_come_back(world):
    world.scheduler._queue_limits = world.scheduler._queue_limits.__class__(1, 1, 1 << 20)
    world.model.instances[0].hold()
    world.ask(infer(1))
    world.ask(infer(2))
    (answer,) = world.ask(infer(3))
    assert (answer.status, answer.fields["headrace-reason"], answer.fields["retry-after"]) == (503, "queue_full", "1")


@pytest.mark.parametrize("fields", [{"prefer": "wait=2"}, {"x_envoy_expected_rq_timeout_ms": 2000}])
def test_a_deadline(world, held, fields):
    first, second = world.client(), world.client()
    first.ask(infer(1))
    second.ask(infer(2, **fields))
    world.loop.run_for(2 * SECOND - 1)
    assert second.replies() == []
    world.loop.run_for(2 * SECOND)
    (answer,) = second.replies()
    assert (answer.status, answer.fields["headrace-reason"]) == (504, "deadline_exceeded")
    held.release()


def test_the_timeout_parameter(world, held):
    world.ask(infer(1))
    client = world.client()
    client.ask(with_json({"inputs": [{**TENSOR, "data": [1, 2]}], "parameters": {"timeout": 1_000_000}}))
    world.loop.run_for(2 * SECOND)
    (answer,) = client.replies()
    assert (answer.status, answer.json["error"]) == (503, "Request timeout expired")
    held.release()


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_compressed(world, coding):
    pack = {"gzip": gzip.compress, "deflate": zlib.compress}[coding]
    text = json.dumps({"inputs": [{**TENSOR, "parameters": {"binary_data_size": 8}}]}).encode()
    fields = {"content_encoding": coding, "inference_header_content_length": len(text)}
    client = world.client()
    for number in range(3):  # the last time its head is known
        body = pack(text + np.array([number, 0], np.float32).tobytes(), 1)
        assert value(client.ask(request(body, **fields))[0]) == number
    answers = client.ask(request(pack(text + bytes(8)), **fields) + infer(7))
    assert [value(answer) for answer in answers] == [0, 7]  # in order, although one of them took a detour
    (answer,) = client.ask(request(b"nonsense", **fields))
    assert (answer.status, answer.fields["headrace-reason"]) == (400, "protocol_error")
    (answer,) = client.ask(request(pack(b" " * (1 << 20) + b"x"), **fields))
    assert (answer.status, "is larger than 1048576 octets" in answer.json["error"]) == (413, True)
    assert world.counts.refused == {"protocol_error": 1, "message_too_large": 1}


def test_a_client_that_goes_away_while_its_request_is_inflated(world):
    client = world.client()
    client.send(request(gzip.compress(b"{}"), content_encoding="gzip"))
    client.connection.connection_lost(None)
    world.loop.run_until_idle()
    assert world.counts.http_requests == {}
    assert world.models.refused == {}


@pytest.mark.parametrize("rows", [1, 300, 10_000])
def test_replies_that_are_compressed(world, rows):
    world.serve(FakeModel(Signature((TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", "FP32", (-1,)),), 8)), "free")
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, rows], "data": [1.5] * rows}
    octets = with_json({"inputs": [tensor]}, path="/v2/models/free/infer", accept_encoding="br, gzip")
    client = world.client()
    for _ in range(2):
        answer, other = client.ask(octets + infer(7))
        assert value(other) == 7
        if rows == 1:
            assert "content-encoding" not in answer.fields
        else:
            assert (answer.fields["content-encoding"], answer.fields["vary"]) == ("gzip", "Accept-Encoding")
            answer.body = gzip.decompress(answer.body)
        assert answer.json["outputs"][0]["data"] == [1.5] * rows


def test_a_bug_of_ours_is_a_500(world, monkeypatch, caplog):
    monkeypatch.setattr(connection_module, "read_head", lambda *_, **__: 1 / 0)
    answer = refused(world, infer())
    assert answer.status == 500
    assert answer.json["error"].startswith("internal error, correlation id ")
    assert "ZeroDivisionError" in caplog.text


GARBAGE = st.binary(max_size=60) | st.sampled_from(
    [infer(), infer_json(), get(), infer()[:40], b"\r\n\r\n", b"0\r\n\r\n", b"POST /v2/models/m/infer HTTP/1.1\r\n",
     b"content-length: 5\r\n", b"transfer-encoding: chunked\r\n", b"connection: close\r\n", b"expect: 100-continue\r\n"]
)  # fmt: skip


@settings(max_examples=150)
@given(parts=st.lists(GARBAGE, max_size=8), piece=st.integers(1, 200))
def test_whatever_comes_it_ends_in_replies_and_nothing_is_held(parts, piece):
    with World() as world:
        world.serve(FakeModel())
        client = world.client()
        client.ask(b"".join(parts), piece)
        client.replies()
        client.connection.connection_lost(None)
        world.loop.run_until_idle()
        assert world.http.buffered == 0
        assert ("infer", 500) not in world.counts.http_requests
        assert ("none", 500) not in world.counts.http_requests
        assert json.dumps(world.ask(infer(9))[0].json["outputs"][0]["data"]) == "[9.0, 0.0]"
