"""A server's HTTP side without sockets: models behind RestInfer, connections on transports that remember."""

import asyncio
import json
from types import SimpleNamespace

from prometheus_client import CollectorRegistry

from headrace.config import HttpSettings
from headrace.engine.shared_memory import NoSharedMemory
from headrace.telemetry.server_metrics import ServerMetrics
from headrace.testing.client import InProcessServer
from headrace.testing.loop import VirtualTimeLoop
from headrace.transport.rest.connection import Connection
from headrace.transport.rest.infer import RestInfer
from headrace.transport.rest.json_text import JsonLimits
from headrace.transport.rest.server import HttpServer


class Wire(asyncio.Transport):
    """A socket's transport that remembers what is done to it. unsent: octets that the client has not taken."""

    def __init__(self, loop):
        super().__init__()
        self.sent = bytearray()
        self.reading = True
        self.unsent = 0
        self.state = "open"
        self.protocol = None
        self._loop = loop

    def write(self, data):
        assert self.state != "aborted"
        self.sent += data

    def writelines(self, parts):
        for part in parts:
            self.write(part)

    def can_write_eof(self):
        return True

    def write_eof(self):
        self.state = "half closed"

    def pause_reading(self):
        self.reading = False

    def resume_reading(self):
        self.reading = True

    def is_closing(self):
        return self.state in ("closed", "aborted")

    def get_write_buffer_size(self):
        return self.unsent

    def take(self, octets):
        """The client takes so many of what is unsent."""
        self.unsent -= octets
        if self.state == "closed" and not self.unsent:
            self._loop.call_soon(self.protocol.connection_lost, None)

    def close(self):
        if not self.is_closing():
            self.state = "closed"
            self.take(0)

    def abort(self):
        if self.state != "aborted":
            before, self.state = self.state, "aborted"
            if before != "closed" or self.unsent:
                self._loop.call_soon(self.protocol.connection_lost, None)


class Client:
    """One connection, from the client's side."""

    def __init__(self, world):
        self.wire = Wire(world.loop)
        self.connection = Connection(world.http, world.loop)
        self.wire.protocol = self.connection
        self._world = world
        self.connection.connection_made(self.wire)

    def send(self, octets, piece=1 << 20):
        """Hands octets over as reads of at most so many, without a turn of the loop between them."""
        at = 0
        while at < len(octets) and not self.wire.is_closing():
            buffer = self.connection.get_buffer(-1)
            size = min(len(buffer), piece, len(octets) - at)
            buffer[:size] = octets[at : at + size]
            self.connection.buffer_updated(size)
            at += size

    def ask(self, octets, piece=1 << 20):
        """Sends, runs all there is to run without time passing, and returns the replies that have come."""
        self.send(octets, piece)
        self._world.loop.run_until_idle()
        return self.replies()

    def replies(self):
        """What has been sent since the last time, reply by reply."""
        data, self.wire.sent[:] = bytes(self.wire.sent), b""
        return list(parse(data))


class Reply:
    """status, fields by lower-case name, body."""

    def __init__(self, status, fields, body):
        self.status, self.fields, self.body = status, fields, body

    def __repr__(self):
        return f"<Reply {self.status} {self.fields} {self.body[:200]!r}>"

    @property
    def json(self):
        """The JSON at the beginning of the body."""
        return json.loads(self.body[: int(self.fields.get("inference-header-content-length", len(self.body)))])

    @property
    def binary(self):
        """What follows it."""
        return self.body[int(self.fields["inference-header-content-length"]) :]


def parse(data):
    """The replies in these octets; an interim one has an empty body."""
    while data:
        head, found, data = data.partition(b"\r\n\r\n")
        assert found, head
        line, *fields = head.decode().split("\r\n")
        fields = {name.lower(): value for name, value in (field.split(": ", 1) for field in fields)}
        size = int(fields.get("content-length", 0))
        yield Reply(int(line.split()[1]), fields, data[:size])
        data = data[size:]


async def hello(scope, receive, send):
    """An application that says what it was asked, once it may: `scope["state"]` is not used."""
    message = await receive()
    body = f"{scope['method']} {scope['path']} {message['body'].decode()}".encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


def answer(call):
    """An inference that is answered at once, with its body's length."""
    body = b"%d" % len(call.request)
    call.reply(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))


def make_server(app, sock, infer=None, max_message_bytes=64 << 20, tls=None, **settings):
    """An HttpServer with the defaults but for these settings."""
    return HttpServer(
        app,
        sock,
        infer,
        settings=HttpSettings(**settings),
        max_message_bytes=max_message_bytes,
        counts=ServerMetrics(CollectorRegistry()),
        tls=tls,
    )


class Listening:
    """What a server listens with, as far as it asks."""

    def close(self):
        pass

    async def wait_closed(self):
        pass


class World:
    """Everything, on a loop that is stepped by hand."""

    def __init__(self, app=hello, *, max_message_bytes=1 << 20, memory=None, limits=None, **settings):
        self.loop = VirtualTimeLoop()
        self.status = SimpleNamespace(live=True, ready=True, exiting=False, reachable=True)
        self.counts = ServerMetrics(CollectorRegistry())
        self._settings = HttpSettings(**settings)
        self._limits = limits or JsonLimits(self._settings.max_json_depth, self._settings.max_json_elements)
        self._memory = memory or NoSharedMemory()
        self.loop.run_until_complete(self._start(app, max_message_bytes))
        self.http._server = Listening()

    async def _start(self, app, max_message_bytes):
        self.models = InProcessServer(self.loop.clock, self._memory)
        self.infer = RestInfer(
            self.models.catalog,
            self.models.turn,
            lambda reason: self.models.refused.update([reason]),
            self._memory,
            self.status,
            self._limits,
        )
        self.http = HttpServer(
            app,
            None,
            self.infer,
            settings=self._settings,
            max_message_bytes=max_message_bytes,
            counts=self.counts,
            clock=self.loop.clock,
            wall=lambda: 0,
        )

    def serve(self, model, name="m", version=1, **options):
        """Publishes a model; its scheduler and observer."""

        async def publish():
            return self.models.serve(model, name, version, **options)

        return self.loop.run_until_complete(publish())

    def client(self):
        """A new connection."""
        return Client(self)

    def ask(self, octets, piece=1 << 20):
        """Of a connection of its own."""
        return self.client().ask(octets, piece)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.loop.run_until_idle()
        self.loop.close()


def request(body=b"", path="/v2/models/m/infer", method="POST", **fields):
    """The octets of a request. fields: with underscores for hyphens; None: not this one."""
    given = {"host": "x", "content-length": len(body)} | {name.replace("_", "-"): v for name, v in fields.items()}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items() if value is not None)]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def with_binary(header, *tensors, **fields):
    """An inference with these tensors behind its JSON."""
    text = json.dumps(header).encode()
    return request(text + b"".join(tensors), **{"inference_header_content_length": len(text)} | fields)


def with_json(header, **fields):
    """An inference of JSON alone."""
    return request(json.dumps(header).encode(), **fields)
