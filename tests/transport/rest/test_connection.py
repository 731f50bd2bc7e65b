"""HTTP/1.1 on a connection: framing, order, limits. Without sockets, on a loop that is stepped by hand."""

import asyncio
import gc
import gzip
import json
import weakref
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transport.rest.world import World, request, with_binary, with_json

from headrace.messages import Signature, TensorSpec
from headrace.testing.backend import FakeModel
from headrace.transport.rest import connection as connection_module
from headrace.transport.rest.body import SMALL

SECOND = 10**9
TENSOR = {"name": "x", "datatype": "FP32", "shape": [1, 2]}


def infer(value=1.0, request_id="", **fields):
    """A request for inference in binary form."""
    header = {"id": request_id} if request_id else {}
    header["inputs"] = [{**TENSOR, "parameters": {"binary_data_size": 8}}]
    return with_binary(header, np.array([value, 0], np.float32).tobytes(), **fields)


def infer_json(value=1.0, **fields):
    return with_json({"inputs": [{**TENSOR, "data": [value, 0]}]}, **fields)


def value(reply):
    """What was sent to the model."""
    assert reply.status == 200, reply
    return reply.json["outputs"][0]["data"][0]


def get(path="/else", **fields):
    return request(path=path, method="GET", content_length=None, **fields)


@pytest.fixture
def world():
    with World() as made:
        made.model = FakeModel()
        made.scheduler, made.observer = made.serve(made.model)
        yield made


@pytest.fixture
def held(world):
    """The instance of the model, which lets no run end until it is released."""
    world.model.instances[0].hold()
    return world.model.instances[0]


class Slow:
    """An application that answers when it may, with the path."""

    def __init__(self):
        self.started = []
        self.ended = []
        self._may = {}

    async def __call__(self, scope, receive, send):
        path = scope["path"]
        self.started.append(path)
        await self._may.setdefault(path, asyncio.Event()).wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(path))]})
        await send({"type": "http.response.body", "body": path.encode()})
        self.ended.append(path)

    def let_go(self, path):
        self._may.setdefault(path, asyncio.Event()).set()


# --- one request ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [infer, infer_json])
@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
def test_however_it_arrives(world, make, piece):
    client = world.client()
    for number in range(3):
        (answer,) = client.ask(make(number), piece)
        assert value(answer) == number
        assert answer.fields["date"] == "Thu, 01 Jan 1970 00:00:00 GMT"
        assert "connection" not in answer.fields
    assert client.wire.state == "open"
    assert world.http.buffered == 0
    assert world.counts.http_requests == {("infer", 200): 3}


def test_a_head_that_was_seen_is_recognised(world, monkeypatch):
    client = world.client()
    client.ask(infer(1))
    monkeypatch.setattr(connection_module, "read_head", None)
    assert value(client.ask(infer(2))[0]) == 2
    assert value(world.ask(infer(3))[0]) == 3  # on another connection, too
    assert client.ask(infer(4, also="this"))[0].status == 500  # any other head is read


@pytest.mark.parametrize(
    "octets",
    [
        infer(connection="close"),
        infer(expect="100-continue"),
        infer() + infer(),
        infer() + b"P",
        infer(content_length=None, transfer_encoding="chunked").replace(b"{", b"%x\r\n{", 1),
        get(),
        infer(long="x" * 2048),
    ],
)
def test_heads_that_are_not_kept(world, octets):
    world.ask(octets)
    assert len(world.http.heads) == 0


def test_heads_are_not_kept_without_end(world, monkeypatch):
    monkeypatch.setattr("headrace.transport.rest.known_heads._MOST", 4)
    for number in range(10):
        assert value(world.ask(infer(number, x_request_id=number))[0]) == number
        assert 0 < len(world.http.heads) <= 4


def test_the_application_gets_everything_else(world):
    (answer,) = world.ask(request(b"body", "/v2/repository/index?a=b", accept="*/*"))
    assert answer.body == b"POST /v2/repository/index body"
    assert world.ask(get("/a%20b"))[0].body == b"GET /a b "
    assert world.ask(request(b"b", "/v2/models/m/infer", "PUT"))[0].body == b"PUT /v2/models/m/infer b"


@pytest.mark.parametrize("target", ["http://x/v2/models/m/infer", "http://x:8000/v2/models/m/infer?q"])
def test_a_target_in_absolute_form(world, target):
    assert value(world.ask(infer_json(5, path=target))[0]) == 5


def test_what_the_application_is_told():
    seen = []

    async def app(scope, receive, send):
        seen.append((scope, await receive()))
        await send({"type": "http.response.start", "status": 204})
        await send({"type": "http.response.body"})

    with World(app) as world:
        (answer,) = world.ask(request(b"abc", "/p%C3%A4th?q=1", "PATCH", x_y="z"))
        assert (answer.status, "date" in answer.fields) == (204, True)
        ((scope, message),) = seen
        assert message == {"type": "http.request", "body": b"abc", "more_body": False}
        told = ("type", "method", "path", "raw_path", "query_string", "http_version", "scheme")
        assert [scope[name] for name in told] == ["http", "PATCH", "/päth", b"/p%C3%A4th", b"q=1", "1.1", "http"]
        assert (b"x-y", b"z") in scope["headers"]


@pytest.mark.parametrize("sizes", [[3], [1, 1, 1], [200, 5000], []])
@pytest.mark.parametrize("piece", [1, 1 << 20])
def test_a_body_in_chunks(world, sizes, piece):
    body = b"x" * sum(sizes)
    chunks = b"".join(b"%x\r\n%b\r\n" % (size, b"x" * size) for size in sizes) + b"0\r\ntrailer: x\r\n\r\n"
    head = request(path="/p", content_length=None, transfer_encoding="chunked")
    client = world.client()
    for _ in range(2):
        (answer,) = client.ask(head + chunks, piece)
        assert answer.body == b"POST /p " + body
    assert world.http.buffered == 0


def test_an_inference_in_chunks(world):
    head, _, body = infer(6).partition(b"\r\n\r\n")
    length = next(line for line in head.split(b"\r\n") if line.startswith(b"content-length"))
    head = head.replace(length, b"transfer-encoding: chunked")
    chunks = b"".join(b"1\r\n%c\r\n" % octet for octet in body) + b"0\r\n\r\n"
    assert value(world.ask(head + b"\r\n\r\n" + chunks)[0]) == 6


@pytest.mark.parametrize("piece", [1000, 100_000, 1 << 20])
def test_a_large_body_is_received_past_the_parser(world, piece):
    rows = SMALL // 4
    data = np.arange(2 * rows, dtype=np.float32)
    world.serve(FakeModel(Signature((TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", "FP32", (-1,)),), 8)), "free")
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2 * rows], "parameters": {"binary_data_size": data.nbytes}}
    octets = with_binary(
        {"inputs": [tensor], "parameters": {"binary_data_output": True}}, data.tobytes(), path="/v2/models/free/infer"
    )
    client = world.client()
    for _ in range(2):
        (answer,) = client.ask(octets, piece)
        assert answer.binary == data.tobytes()
        assert world.http.buffered == 0
    assert value(client.ask(infer(5))[0]) == 5  # what comes behind it is parsed


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("path", ["/v2/models/m/infer", "/else"])
def test_a_connection_that_closes(world, version, path):
    octets = infer_json(3, path=path, **({} if version == "1.0" else {"connection": "close"}))
    client = world.client()
    (answer,) = client.ask(octets.replace(b"HTTP/1.1", f"HTTP/{version}".encode()) + infer(4))
    assert (answer.status, answer.fields["connection"]) == (200, "close")
    assert client.wire.state == "closed"


def test_100_continue(world):
    octets = infer(5, expect="100-continue")
    head, body = octets[: octets.index(b"\r\n\r\n") + 4], octets[octets.index(b"\r\n\r\n") + 4 :]
    client = world.client()
    for _ in range(2):
        (interim,) = client.ask(head)
        assert (interim.status, interim.fields) == (100, {})
        assert value(client.ask(body)[0]) == 5
    assert value(client.ask(octets)[0]) == 5  # it did not wait


def test_100_continue_is_not_said_before_its_turn(world, held):
    octets = infer(5, expect="100-continue")
    head, body = octets[: octets.index(b"\r\n\r\n") + 4], octets[octets.index(b"\r\n\r\n") + 4 :]
    client = world.client()
    assert client.ask(infer(4) + head) == []
    held.release()
    world.loop.run_until_idle()
    first, interim = client.replies()
    assert (value(first), interim.status) == (4, 100)
    assert value(client.ask(body)[0]) == 5


OFFER = {"connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c", "http2_settings": "AAMAAABk"}
"""As Java's HttpClient makes it of its own accord, with a body too (RFC 7540, 3.2)."""


@pytest.mark.parametrize("piece", [1, 50, 1 << 20])
def test_an_offer_of_another_protocol_is_passed_over(world, piece):
    client = world.client()
    octets = get(**OFFER) + infer(2) + infer_json(3, **OFFER) + infer(4, **OFFER) + infer(5)
    first, *others = client.ask(octets, piece)
    assert (first.status, [value(answer) for answer in others]) == (200, [2, 3, 4, 5])
    assert world.http.buffered == 0


def test_an_offer_with_a_body_in_chunks(world):
    octets = request(content_length=None, transfer_encoding="chunked", **OFFER) + b"3\r\nabc\r\n0\r\n\r\n"
    assert refused(world, octets).status == 501


# --- order ------------------------------------------------------------------------------------------------------------


def test_pipelined_inferences_share_a_batch_and_are_answered_in_order(world):
    client = world.client()
    octets = b"".join((infer if number % 2 else infer_json)(number) for number in range(6))
    assert [value(answer) for answer in client.ask(octets)] == list(range(6))
    assert len(world.model.runs) < 6
    assert world.http.buffered == 0


def test_the_replies_to_pipelined_requests_wait_for_those_before_them(world, held):
    client = world.client()
    client.ask(infer(0))
    assert client.ask(infer(1) + infer_json(2, path="/v2/models/nobody/infer")) == []
    held.release()
    world.loop.run_until_idle()
    assert [answer.status for answer in client.replies()] == [200, 200, 404]


def test_the_application_runs_alone_and_in_its_turn():
    app = Slow()
    with World(app) as world:
        model = FakeModel()
        world.serve(model)
        client = world.client()
        assert client.ask(infer(1) + get("/a") + get("/b") + infer(2) + infer(3) + get("/c"))[0].status == 200
        assert (app.started, len(model.runs)) == (["/a"], 1)
        app.let_go("/b")  # too early
        world.loop.run_until_idle()
        assert (app.started, client.replies()) == (["/a"], [])
        app.let_go("/a")
        world.loop.run_until_idle()
        first, second, third, fourth = client.replies()
        assert (first.body, second.body, value(third), value(fourth)) == (b"/a", b"/b", 2, 3)
        assert app.started == ["/a", "/b", "/c"]
        assert [run.requests for run in model.runs] == [1, 2]
        app.let_go("/c")
        world.loop.run_until_idle()
        assert client.replies()[0].body == b"/c"
        assert world.http.buffered == 0


def test_an_inference_that_is_known_waits_for_the_application():
    app = Slow()
    with World(app) as world:
        world.serve(FakeModel())
        client = world.client()
        client.ask(infer(1))
        client.send(get("/a"))
        assert client.ask(infer(2)) == []
        assert world.http.buffered > connection_module._REQUEST_COST
        app.let_go("/a")
        world.loop.run_until_idle()
        assert [answer.status for answer in client.replies()] == [200, 200]
        assert world.http.buffered == 0


def test_much_pipelined_is_read_no_further(world, held):
    client = world.client()
    client.ask(infer(0) * (connection_module._PIPELINED - 1))
    assert client.wire.reading
    client.ask(infer(0))
    assert not client.wire.reading
    held.release()
    world.loop.run_until_idle()
    assert len(client.replies()) == connection_module._PIPELINED
    assert client.wire.reading


REQUESTS = {
    "binary": infer,
    "json": infer_json,
    "unknown": lambda n: infer_json(n, path=f"/v2/models/nobody{n}/infer"),
    "app": lambda n: get(f"/{n}"),
}


@settings(max_examples=60)
@given(
    kinds=st.lists(st.sampled_from(sorted(REQUESTS)), max_size=12),
    piece=st.integers(1, 400),
    turns=st.lists(st.booleans(), max_size=40),
)
def test_whatever_is_pipelined_in_whatever_pieces_each_is_answered_once_and_in_order(kinds, piece, turns):
    with World() as world:
        world.serve(FakeModel())
        client = world.client()
        octets = b"".join(REQUESTS[kind](number) for number, kind in enumerate(kinds))
        got = []
        for at in range(0, len(octets), piece):
            client.send(octets[at : at + piece])
            if turns and turns.pop():
                world.loop.run_until_idle()
                got += client.replies()
        world.loop.run_until_idle()
        got += client.replies()
        assert len(got) == len(kinds)
        for number, (kind, answer) in enumerate(zip(kinds, got, strict=True)):
            if kind == "unknown":
                assert f"'nobody{number}'" in answer.json["error"]
            elif kind == "app":
                assert answer.body == f"GET /{number} ".encode()
            else:
                assert value(answer) == number
        assert world.http.buffered == 0
        assert repr(client.connection).endswith("0 exchanges, 0 begun>")


# --- who goes away ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["lost", "half closed"])
def test_a_client_that_goes_away_cancels_what_waits(world, held, how):
    first, second = world.client(), world.client()
    first.ask(infer(1))
    second.ask(infer(2) + infer(3))
    assert world.scheduler.depth() == (2, 2)
    if how == "lost":
        second.connection.connection_lost(None)
    else:
        assert not second.connection.eof_received()
    assert world.scheduler.depth() == (0, 0)
    held.release()
    world.loop.run_until_idle()
    assert [value(answer) for answer in first.replies()] == [1]
    assert second.replies() == []
    assert world.observer.reasons == {"cancelled": 2}
    assert world.http.buffered == 0


def test_a_client_that_goes_away_before_its_request_is_taken(world):
    client = world.client()
    client.send(infer(1))
    client.connection.connection_lost(None)
    world.loop.run_until_idle()
    assert world.model.runs == []


def test_the_application_goes_on_without_its_client():
    app = Slow()
    with World(app) as world:
        client = world.client()
        client.ask(get("/a"))
        client.connection.connection_lost(None)
        app.let_go("/a")
        world.loop.run_until_idle()
        assert app.ended == ["/a"]
        assert client.replies() == []


def test_an_application_that_asks_hears_of_it():
    heard = []

    async def app(scope, receive, send):
        heard.append((await receive())["type"])
        heard.append((await receive())["type"])

    with World(app) as world:
        client = world.client()
        client.ask(get())
        assert heard == ["http.request"]
        client.connection.connection_lost(None)
        world.loop.run_until_idle()
        assert heard == ["http.request", "http.disconnect"]


def test_an_application_that_fails_is_a_500(caplog):
    async def app(scope, receive, send):
        raise ZeroDivisionError

    with World(app) as world:
        client = world.client()
        assert [answer.status for answer in client.ask(get() + get())] == [500]
        assert client.wire.is_closing()
        assert "ZeroDivisionError" in caplog.text


# --- errors -----------------------------------------------------------------------------------------------------------


def refused(world, octets, piece=1 << 20):
    """The one reply to these octets, after which the connection is over."""
    client = world.client()
    (answer,) = client.ask(octets, piece)
    assert answer.fields["connection"] == "close"
    assert client.wire.state in ("closed", "half closed")
    assert client.ask(infer()) == []  # whatever comes behind it
    world.loop.run_for(2 * SECOND)
    assert client.wire.is_closing()
    assert world.http.buffered == 0
    return answer


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


# --- limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", [1000, 1 << 20])
@pytest.mark.parametrize("start", [b"GET /", b"GET / HTTP/1.1\r\nx: "])
def test_a_head_without_end(start, piece):
    with World(max_head_bytes=4096) as world:
        answer = refused(world, start + b"a" * 5000, piece)
        assert (answer.status, "larger than 4096 octets" in answer.json["error"]) == (431, True)


LONG_HEADS = {
    "target": b"GET /%s HTTP/1.1\r\n\r\n" % (b"a" * 5000),
    "a field": b"GET / HTTP/1.1\r\nx: %s\r\n\r\n" % (b"a" * 5000),
    "many fields": b"GET / HTTP/1.1\r\n%s\r\n" % (b"a: b\r\n" * 1000),
}


@pytest.mark.parametrize("piece", [1000, 1 << 20])
@pytest.mark.parametrize("head", LONG_HEADS)
def test_a_whole_head_above_the_limit(head, piece):
    with World(max_head_bytes=4096) as world:
        answer = refused(world, LONG_HEADS[head], piece)
        assert (answer.status, "larger than 4096 octets" in answer.json["error"]) == (431, True)


def test_a_head_below_the_limit_behind_a_long_body():
    with World(max_head_bytes=4096) as world:
        client = world.client()
        first = client.ask(request(b"x" * 5000, "/a") + b"GET /b HTT")
        assert [answer.status for answer in first] == [200]
        assert client.ask(b"P/1.1\r\nhost: x\r\n\r\n")[0].body == b"GET /b "


@pytest.mark.parametrize("piece", [100, 1 << 20])
def test_a_body_in_chunks_without_end(piece):
    with World(max_message_bytes=2000) as world:
        head = request(content_length=None, transfer_encoding="chunked")
        assert refused(world, head + b"100\r\n" + (b"x" * 256 + b"\r\n100\r\n") * 10, piece).status == 413


def test_what_all_connections_hold_together(world):
    world = World(max_message_bytes=5000, max_buffered_bytes=10_000)
    with world:
        world.serve(FakeModel())
        clients = [world.client() for _ in range(4)]
        octets = request(b"x" * 4000, "/else")
        for client in clients[:2]:
            assert client.ask(octets[:-1], 1000) == []
        assert 7900 < world.http.buffered < 10_000
        (answer,) = clients[2].ask(octets[:-1], 1000)
        assert (answer.status, answer.fields["retry-after"]) == (503, "1")
        assert "hold more than 10000 octets" in answer.json["error"]
        assert value(clients[3].ask(infer(1))[0]) == 1  # what comes whole takes nothing of it
        for client in clients[:2]:
            assert client.ask(octets[-1:])[0].status == 200
        assert world.http.buffered == 0


def test_what_is_received_past_the_parser_counts_as_well():
    with World(max_message_bytes=200_000, max_buffered_bytes=200_000) as world:
        first, second = world.client(), world.client()
        first.ask(request(b"x" * 150_000, "/else")[:-1], 10_000)
        (answer,) = second.ask(request(b"x" * 150_000, "/else"), 10_000)
        assert answer.status == 503
        assert first.ask(b"x")[0].status == 200
        assert world.http.buffered == 0


def test_short_requests_behind_one_that_is_slow_count_as_well():
    app = Slow()
    with World(app, max_message_bytes=10_000, max_buffered_bytes=10_000) as world:
        client = world.client()
        client.ask(get("/a") + get("/b") * 20)
        app.let_go("/a")
        app.let_go("/b")
        world.loop.run_until_idle()
        answers = client.replies()
        assert [answer.status for answer in answers[:5] + answers[-1:]] == [200] * 5 + [503]
        assert len(answers) < 12
        assert world.http.buffered == 0


def test_connections_above_the_limit_are_told():
    with World(max_connections=2) as world:
        clients = [world.client() for _ in range(3)]
        assert [client.ask(get())[0].status for client in clients] == [200, 200, 503]
        assert clients[2].wire.state == "half closed"
        clients[0].connection.connection_lost(None)
        clients[2].connection.connection_lost(None)
        assert world.ask(get())[0].status == 200
        assert (world.counts.http_connections_open, world.counts.http_connections_total) == (2, 4)


def test_connections_far_above_the_limit_are_not(monkeypatch):
    monkeypatch.setattr("headrace.transport.rest.server._SURPLUS", 1)
    with World(max_connections=1) as world:
        assert [world.client().wire.state for _ in range(3)] == ["open", "open", "aborted"]


def tick(world, seconds):
    """Time passes, and all connections are looked at once."""
    world.loop.run_for(int(seconds * SECOND))
    for connection in list(world.http._connections):
        connection.tick(world.loop.clock())
    world.loop.run_until_idle()


@pytest.mark.parametrize(
    ("octets", "status"), [(b"", None), (b"GET /slow", 408), (b"GET / HTTP/1.1\r\nhost: x\r\n", 408)]
)
def test_a_head_that_does_not_come(octets, status):
    with World(head_timeout_s=10) as world:
        client = world.client()
        client.ask(octets)
        tick(world, 9.9)
        assert (client.wire.state, client.replies()) == ("open", [])
        tick(world, 0.2)
        assert client.wire.state == ("closed" if status is None else "half closed")
        assert [answer.status for answer in client.replies()] == ([] if status is None else [status])


def test_a_second_head_is_awaited_no_longer_than_the_first():
    with World(head_timeout_s=10) as world:
        client = world.client()
        client.ask(get())
        tick(world, 5)
        assert client.ask(b"GET /slow") == []
        tick(world, 9.9)
        assert client.replies() == []
        tick(world, 0.2)
        assert client.replies()[0].status == 408


@pytest.mark.parametrize("size", [100, 2 * SMALL])
def test_a_body_that_does_not_come(size):
    with World(body_timeout_s=60) as world:
        client = world.client()
        client.ask(request(b"x" * size, "/else")[:-1])
        for _ in range(5):
            tick(world, 11)
            client.send(b"")
        assert client.replies() == []
        tick(world, 6)
        (answer,) = client.replies()
        assert (answer.status, answer.json["error"]) == (408, "the request's body has not arrived within 60 s")
        assert world.http.buffered == 0


def test_a_client_that_waits_for_us_is_given_the_time(world, held):
    client = world.client()
    octets = infer(5, expect="100-continue")
    head, body = octets[: octets.index(b"\r\n\r\n") + 4], octets[octets.index(b"\r\n\r\n") + 4 :]
    client.ask(infer(4) + head)
    tick(world, 1000)
    assert client.wire.state == "open"
    held.release()
    world.loop.run_until_idle()
    assert [answer.status for answer in client.replies()] == [200, 100]
    assert value(client.ask(body)[0]) == 5
    held.hold()
    client.ask(infer(0) * connection_module._PIPELINED + infer(6)[:20])
    assert not client.wire.reading
    tick(world, 1000)
    held.release()
    world.loop.run_until_idle()
    assert value(client.ask(infer(6)[20:])[-1]) == 6


def test_an_idle_connection_is_closed_and_one_that_waits_is_not(world, held):
    idle, waiting = world.client(), world.client()
    waiting.ask(infer(1))
    held_up = world.client()
    held.release()
    idle.ask(infer(2))
    world.loop.run_until_idle()
    waiting.replies()
    held.hold()
    waiting.ask(infer(3))
    tick(world, 1)
    tick(world, 59)
    assert (idle.wire.state, waiting.wire.state, held_up.wire.state) == ("open", "open", "closed")
    tick(world, 2)
    assert (idle.wire.state, waiting.wire.state) == ("closed", "open")
    held.release()


def test_a_client_that_does_not_read(world):
    client = world.client()
    client.ask(infer(1))
    client.connection.pause_writing()
    assert not client.wire.reading
    tick(world, 59)
    assert client.wire.state == "open"
    client.connection.resume_writing()
    assert client.wire.reading
    tick(world, 30)
    client.connection.pause_writing()
    tick(world, 59)
    assert client.wire.state == "open"
    tick(world, 2)
    assert client.wire.state == "aborted"


def test_an_application_waits_for_a_client_that_does_not_read():
    sent = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        for more in (True, False):
            await send({"type": "http.response.body", "body": b"x", "more_body": more})
            sent.append(more)

    with World(app) as world:
        client = world.client()
        client.connection.pause_writing()
        client.send(get())
        world.loop.run_until_idle()
        assert sent == []
        client.connection.resume_writing()
        world.loop.run_until_idle()
        assert (sent, client.replies()[0].body) == ([True, False], b"xx")


# --- the end ----------------------------------------------------------------------------------------------------------


def test_shutdown_answers_what_has_begun(world, held):
    idle, partial, busy = world.client(), world.client(), world.client()
    idle.ask(get())
    partial.ask(infer(1)[:-1])
    busy.ask(infer(2) + infer(3) + infer(4)[:-1])
    world.http.leaving = True
    for client in (idle, partial, busy):
        client.connection.shutdown()
    assert [client.wire.state for client in (idle, partial, busy)] == ["closed", "closed", "open"]
    held.release()
    world.loop.run_until_idle()
    first, second = busy.replies()
    assert (value(first), second.fields["connection"]) == (2, "close")
    assert busy.wire.state == "closed"
    assert world.http.buffered == 0


def test_drain_closes_connections_behind_their_next_reply(world):
    client, idle = world.client(), world.client()
    idle.ask(get())
    assert "connection" not in client.ask(infer(1))[0].fields
    world.http.drain()
    first, second = client.ask(infer(2) + infer(3))
    assert (value(second), [one.fields.get("connection") for one in (first, second)]) == (3, [None, "close"])
    assert (client.wire.state, idle.wire.state) == ("closed", "open")
    (answer,) = world.ask(get())  # on a new connection, as probes come
    assert (answer.status, answer.fields["connection"]) == (200, "close")


def test_no_new_connections_once_the_server_has_closed(world):
    world.http._server = None
    assert world.client().wire.state == "aborted"


def test_a_surplus_connection_is_told_even_if_its_request_is_known():
    with World(max_connections=1) as world:
        world.serve(FakeModel())
        world.client().ask(infer(1))
        assert world.ask(infer(2))[0].status == 503


def test_a_connection_that_is_lost_is_gone_without_a_collection(world):
    gc.disable()
    try:
        client = world.client()
        client.ask(infer(1) + get() + infer(2))
        connection = weakref.ref(client.connection)
        client.connection.connection_lost(None)
        world.loop.run_until_idle()
        client.wire.protocol = None  # as real transports do
        del client
        assert connection() is None
    finally:
        gc.enable()


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
