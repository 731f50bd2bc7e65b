"""HTTP/1.1 on a connection: framing and order. Without sockets, on a loop that is stepped by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transport.rest.inferences import Slow, get, infer, infer_json, refused, value
from transport.rest.world import World, request, with_binary

from headrace.messages import Signature, TensorSpec
from headrace.testing.backend import FakeModel
from headrace.transport.rest import connection as connection_module
from headrace.transport.rest.body import SMALL

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
