"""The HTTP port over real loopback sockets, on uvloop as it is served."""

import asyncio
import contextlib
import dataclasses
import json
import signal
import socket

import pytest
import uvloop
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import GaugeHistogramMetricFamily, GaugeMetricFamily
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from starlette.responses import PlainTextResponse

from headrace.telemetry.metrics import Metrics
from headrace.transport import rest
from headrace.transport.rest import HttpServer, exposition, make_app

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
LIMIT_SECONDS = 15


@dataclasses.dataclass(frozen=True)
class Health:
    live: bool
    ready: bool
    exiting: bool = False


READY = Health(live=True, ready=True)


class Large:
    """A collector of one family that takes several turns to encode."""

    def __init__(self, samples=5 * rest.SAMPLES_A_TURN + 1, error=None):
        self.samples = samples
        self.error = error

    def collect(self):
        if self.error:
            raise self.error
        family = GaugeMetricFamily("large", "Many\nsamples", labels=["n"])
        for n in range(self.samples):
            family.add_metric([str(n)], n)
        return [family]


def bind():
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    return sock


def serve(scenario, app=None, health=READY, registry=None):
    """Runs `scenario(port, server)` against a served application and returns what it returns."""

    async def main():
        server = HttpServer(app or make_app(lambda: health, registry or CollectorRegistry()), bind())
        port = await server.start()
        try:
            async with asyncio.timeout(LIMIT_SECONDS):
                return await scenario(port, server)
        finally:
            await server.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main())


async def send(port, data):
    """All that the server says to these bytes until it closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        return await reader.read()
    finally:
        writer.close()


async def request(port, path, method="GET", **headers):
    """(status, headers, body) of one request on a connection of its own."""
    lines = [f"{method} {path} HTTP/1.1", "host: x", "connection: close", *(f"{k}: {v}" for k, v in headers.items())]
    head, _, body = (await send(port, ("\r\n".join(lines) + "\r\n\r\n").encode())).partition(b"\r\n\r\n")
    status, *fields = head.decode().split("\r\n")
    return int(status.split()[1]), dict(field.lower().split(": ", 1) for field in fields), body


async def connect_forever(port):
    while True:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()


def get(path, **options):
    return serve(lambda port, _: request(port, path), **options)


@pytest.mark.parametrize(
    ("path", "health", "status", "answer"),
    [
        ("live", Health(live=True, ready=False), 200, {"live": True}),
        ("live", Health(live=False, ready=False), 400, {"live": False}),
        ("live", Health(live=True, ready=False, exiting=True), 200, {"live": True}),
        ("ready", Health(live=True, ready=True), 200, {"ready": True}),
        ("ready", Health(live=True, ready=False), 400, {"ready": False}),
        ("ready", Health(live=True, ready=False, exiting=True), 503, {"ready": False}),
        ("ready", Health(live=True, ready=True, exiting=True), 503, {"ready": False}),
    ],
)
def test_health(path, health, status, answer):
    got, headers, body = get(f"/v2/health/{path}", health=health)
    assert (got, json.loads(body), headers["content-type"]) == (status, answer, "application/json")


def test_the_index_links_what_is_there():
    async def scenario(port, _):
        _, headers, body = await request(port, "/")
        assert headers["content-type"].startswith("text/html")
        paths = [link.split('"')[0] for link in body.decode().split('href="')[1:]]
        return paths, [(await request(port, path))[0] for path in paths]

    assert serve(scenario) == (["/v2/health/live", "/v2/health/ready", "/metrics"], [200, 200, 200])


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("GET", "/v2/health", 404, "Not Found"),
        ("GET", "/metrics/", 404, "Not Found"),
        ("POST", "/v2/health/live", 405, "Method Not Allowed"),
    ],
)
def test_errors_are_json(method, path, status, message):
    got, headers, body = serve(lambda port, _: request(port, path, method))
    assert (got, json.loads(body)) == (status, {"error": message})
    assert ("allow" in headers) == (status == 405)


def test_an_unforeseen_error_is_an_id_to_the_client_and_one_log_entry(caplog):
    registry = CollectorRegistry()
    registry.register(Large(error=RuntimeError("secret")))
    status, _, body = get("/metrics", registry=registry)
    message = json.loads(body)["error"]
    (entry,) = caplog.records
    assert (status, message.rpartition(" ")[0]) == (500, "internal error, correlation id")
    assert message.rpartition(" ")[2] in entry.getMessage()
    assert "secret" in str(entry.exc_info[1])
    assert b"secret" not in body


def test_metrics_as_text_and_as_openmetrics():
    registry = CollectorRegistry()
    Metrics(registry).model("m", "1", lambda: (0, 0))
    registry.register(Large())

    async def scenario(port, _):
        return await request(port, "/metrics"), await request(port, "/metrics", accept=OPENMETRICS)

    (status, headers, body), (_, om_headers, om_body) = serve(scenario, registry=registry)
    assert (status, headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert body == generate_latest(registry)
    assert om_headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert om_body == generate_openmetrics(registry)
    assert "large" in {family.name for family in parse_openmetrics(om_body.decode())}


@pytest.mark.parametrize("accept", ["", "*/*", "application/openmetrics-text; version=abc", "text/plain; version=x.y"])
def test_an_accept_header_that_says_nothing_gets_the_text_format(accept):
    body, content_type = asyncio.run(exposition(CollectorRegistry(), accept))
    assert (body, content_type) == (b"", "text/plain; version=0.0.4; charset=utf-8")


@pytest.mark.parametrize("samples", [0, 1, rest.SAMPLES_A_TURN, rest.SAMPLES_A_TURN + 1, 3 * rest.SAMPLES_A_TURN])
@pytest.mark.parametrize(("accept", "whole"), [("", generate_latest), (OPENMETRICS, generate_openmetrics)])
def test_a_family_in_pieces_reads_as_one(samples, accept, whole):
    registry = CollectorRegistry()
    registry.register(Large(samples))
    assert asyncio.run(exposition(registry, accept))[0] == whole(registry)


def test_families_whose_samples_the_text_format_moves_stay_whole():
    registry = CollectorRegistry()
    counter = Counter("calls", "Calls", ["n"], registry=registry)  # its `_created` samples get a family of their own
    for n in range(rest.SAMPLES_A_TURN):
        counter.labels(str(n)).inc()

    class Gauges:
        def collect(self):
            family = GaugeHistogramMetricFamily("g", "G", labels=["n"])
            for n in range(rest.SAMPLES_A_TURN):
                family.add_metric([str(n)], [("+Inf", 1)], 1)
            return [family]

    registry.register(Gauges())
    assert asyncio.run(exposition(registry, ""))[0] == generate_latest(registry)


def test_a_scrape_gives_the_loop_its_turn_between_pieces():
    registry = CollectorRegistry()
    registry.register(Large())

    async def main():
        scrape, turns = asyncio.create_task(exposition(registry, "")), 0
        while not scrape.done():
            turns += 1
            await asyncio.sleep(0)
        return turns

    assert asyncio.run(main()) >= 6


def test_scrapes_take_turns():
    """However many clients ask, one scrape is made at a time."""
    active, most = 0, 0

    class Watched(Large):
        def collect(self):
            nonlocal active, most
            active += 1
            most = max(most, active)
            yield from super().collect()
            active -= 1

    registry = CollectorRegistry()
    registry.register(Watched())

    async def scenario(port, _):
        return await asyncio.gather(*(request(port, "/metrics") for _ in range(5)))

    assert [status for status, _, _ in serve(scenario, registry=registry)] == [200] * 5
    assert most == 1


def test_no_signal_handler_and_a_date_but_no_server_header():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    async def scenario(port, server):
        assert (signal.getsignal(signal.SIGTERM), repr(server)) == (before[1], "<HttpServer serving, 0 connections>")
        return await request(port, "/")

    _, headers, _ = serve(scenario)
    assert "date" in headers
    assert "server" not in headers
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_close_frees_the_port_finishes_what_runs_and_may_be_repeated():
    inside, leave = asyncio.Event(), asyncio.Event()

    async def app(scope, receive, send):
        inside.set()
        await leave.wait()
        await PlainTextResponse("late")(scope, receive, send)

    async def scenario(port, server):
        running = asyncio.create_task(request(port, "/"))
        await inside.wait()
        closing = asyncio.create_task(server.close())
        with pytest.raises((ConnectionRefusedError, ConnectionResetError)):
            await connect_forever(port)
        leave.set()  # not before it has stopped listening
        await closing
        await server.close()
        with pytest.raises(ConnectionRefusedError):
            await connect_forever(port)
        assert repr(server) == "<HttpServer closed, 0 connections>"
        return await running

    status, _, body = serve(scenario, app=app)
    assert (status, body) == (200, b"late")


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nx: ", b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"])
def test_close_cuts_off_what_does_not_end(monkeypatch, sent):
    monkeypatch.setattr(rest, "DRAIN_SECONDS", 0.01)

    async def app(scope, receive, send):
        if scope["path"] == "/":
            await asyncio.Event().wait()
        await PlainTextResponse("quick")(scope, receive, send)

    async def scenario(port, server):
        cut_off = asyncio.create_task(send(port, sent))
        await request(port, "/quick")  # by now the other bytes are read as well
        await server.close()
        with contextlib.suppress(ConnectionResetError):
            assert b"200 OK" not in await cut_off
        return repr(server)

    assert serve(scenario, app=app) == "<HttpServer closed, 0 connections>"


def test_close_cuts_off_a_client_that_does_not_read(monkeypatch):
    monkeypatch.setattr(rest, "DRAIN_SECONDS", 0.01)
    size, answered = 32 << 20, asyncio.Event()  # more than the sockets' buffers hold

    async def app(scope, receive, send):
        await PlainTextResponse(b"x" * size)(scope, receive, send)
        answered.set()

    async def scenario(port, server):
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            await answered.wait()
            await server.close()
            await asyncio.sleep(0)  # the loop's turn in which an aborted transport closes
            client.settimeout(LIMIT_SECONDS)
            received = 0
            with contextlib.suppress(ConnectionResetError):
                while data := await asyncio.to_thread(client.recv, 1 << 20):
                    received += len(data)
        return received

    assert serve(scenario, app=app) < size


@pytest.mark.parametrize("head", [b"", b"GET / HTTP/1.1\r\nhost: x\r\n", b"GET /slow"])
def test_a_head_that_does_not_come_ends_the_connection(monkeypatch, head):
    monkeypatch.setattr(rest, "HEAD_SECONDS", 0.02)

    async def scenario(port, _):
        try:
            return await send(port, head)
        except ConnectionResetError:
            return b""

    assert serve(scenario) == b""


def test_a_second_head_is_awaited_no_longer_than_the_first(monkeypatch):
    monkeypatch.setattr(rest, "HEAD_SECONDS", 0.2)

    async def scenario(port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n")
        await reader.readuntil(b'{"live":true}')
        writer.write(b"GET /v2/he")
        try:
            rest_of_it = await reader.read()
        except ConnectionResetError:
            rest_of_it = b""
        writer.close()
        return rest_of_it

    assert serve(scenario) == b""


def test_an_answer_may_take_longer_than_a_head(monkeypatch):
    monkeypatch.setattr(rest, "HEAD_SECONDS", 0.2)
    inside, leave = asyncio.Event(), asyncio.Event()

    async def app(scope, receive, send):
        inside.set()
        await leave.wait()
        await PlainTextResponse("late")(scope, receive, send)

    async def scenario(port, _):
        running = asyncio.create_task(request(port, "/"))
        await inside.wait()
        with contextlib.suppress(ConnectionResetError):
            await send(port, b"")  # a younger connection is cut off by now
        leave.set()
        return await running

    assert serve(scenario, app=app)[2] == b"late"


def test_connections_above_the_limit_are_refused(monkeypatch):
    monkeypatch.setattr(rest, "MAX_CONNECTIONS", 2)

    async def scenario(port, _):
        alone = await request(port, "/")
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        in_company = await request(port, "/")
        writer.close()
        return alone[0], in_company[0]

    assert serve(scenario) == (200, 503)


@pytest.mark.parametrize("start", [b"GET /", b"GET / HTTP/1.1\r\nx: "])
def test_a_head_above_the_limit_is_refused_before_it_is_whole(start):
    async def scenario(port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(start + b"a" * (rest.MAX_HEAD_BYTES + 1))
        answer = await reader.readline()
        writer.close()
        return answer, (await request(port, "/"))[0]

    assert serve(scenario) == (b"HTTP/1.1 400 Bad Request\r\n", 200)


def test_a_head_of_many_reads_below_the_limit_passes():
    async def scenario(port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nconnection: close\r\n")
        for n in range(8):
            writer.write(b"h%d: " % n + b"a" * 4096 + b"\r\n")
            await writer.drain()
        writer.write(b"\r\n")
        answer = await reader.readline()
        writer.close()
        return answer

    assert serve(scenario) == b"HTTP/1.1 200 OK\r\n"


def test_bytes_that_are_not_http_harm_nobody():
    async def scenario(port, _):
        assert (await send(port, b"\x16\x03\x01\x02\x00 not http\r\n\r\n")).startswith(b"HTTP/1.1 400 ")
        return (await request(port, "/"))[0]

    assert serve(scenario) == 200


def test_a_socket_that_cannot_listen_says_so():
    async def main():
        sock = bind()
        sock.close()
        await HttpServer(make_app(lambda: READY, CollectorRegistry()), sock).start()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner, pytest.raises(OSError, match="file descriptor"):
        runner.run(main())
