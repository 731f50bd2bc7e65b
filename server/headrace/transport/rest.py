"""The HTTP port: health and metrics, over uvicorn in the event loop that serves everything else."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Protocol

import uvicorn
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from headrace.transport.status import client_message, http_status

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from prometheus_client import CollectorRegistry
    from prometheus_client.registry import Collector
    from starlette.requests import Request
    from starlette.types import ASGIApp

    from headrace.transport.tls.layer import TlsPort

MAX_CONNECTIONS = 256
"""With this many open, requests are answered 503."""

MAX_HEAD_BYTES = 64 * 1024
"""Of the request line and the headers together; a little more passes if it arrives at once."""

HEAD_SECONDS = 10.0
"""In which a new connection, or a request once begun, must bring its head."""

KEEP_ALIVE_SECONDS = 20

DRAIN_SECONDS = 2
"""How long `HttpServer.close` waits for requests that are being answered."""

SAMPLES_A_TURN = 32
"""How many samples are encoded before the event loop gets its turn: 0.3 to 0.7 ms."""

INDEX = """<!doctype html><html lang="en"><title>Headrace</title><h1>Headrace</h1><ul>
<li><a href="/v2/health/live">/v2/health/live</a>: the process answers
<li><a href="/v2/health/ready">/v2/health/ready</a>: it takes requests
<li><a href="/metrics">/metrics</a>: Prometheus metrics
</ul></html>
"""


class Health(Protocol):
    """What the health paths answer with. exiting: the server drains; it is then alive and not ready."""

    @property
    def live(self) -> bool: ...  # noqa: D102
    @property
    def ready(self) -> bool: ...  # noqa: D102
    @property
    def exiting(self) -> bool: ...  # noqa: D102


def make_app(health: Callable[[], Health], registry: CollectorRegistry) -> Starlette:
    """The application.

    health is asked at each probe: 200 for yes, 400 for no, and for ready 503 while the server leaves (OIP; the JSON
    bodies are for KServe's client, which parses them). Every error is JSON, `{"error": message}`.
    """
    scrape = asyncio.Lock()

    async def index(_: Request) -> Response:
        return HTMLResponse(INDEX)

    async def live(_: Request) -> Response:
        answer = health().live
        return JSONResponse({"live": answer}, 200 if answer else 400)

    async def ready(_: Request) -> Response:
        now = health()
        answer = now.ready and not now.exiting
        return JSONResponse({"ready": answer}, 200 if answer else 503 if now.exiting else 400)

    async def metrics(request: Request) -> Response:
        # One at a time: the loop then gives a turn in two to scrapes at most, however many clients ask.
        async with scrape:
            body, content_type = await exposition(registry, request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type})

    app = Starlette(
        routes=[
            Route("/", index),
            Route("/v2/health/live", live),
            Route("/v2/health/ready", ready),
            Route("/metrics", metrics),
        ],
        exception_handlers={HTTPException: _refused},
        # Inside of Starlette's own handler of errors, which would answer and then raise them to be logged once more.
        middleware=[Middleware(ExceptionMiddleware, handlers={Exception: _failed})],
    )
    app.router.redirect_slashes = False
    return app


async def exposition(registry: Collector, accept: str) -> tuple[bytes, str]:
    """All metrics of a registry, encoded as the Accept header asks, and the content type.

    Runs on the event loop, since that is where the counts change, and gives it a turn after each `SAMPLES_A_TURN`
    samples. A thread would be no relief: encoding is Python and holds the interpreter's lock, for which the loop would
    wait a whole switch interval (5 ms by default) after each of its system calls.
    """
    try:
        encode, content_type = choose_encoder(accept)
    except (TypeError, ValueError):  # a version that is not a number
        encode, content_type = choose_encoder("")
    parts: list[bytes] = []
    for family in registry.collect():
        for number, piece in enumerate(_pieces(family)):
            text = encode(_Collected(piece)).removesuffix(b"# EOF\n")
            while number and text.startswith(b"# "):  # HELP and TYPE stand once, before the first piece
                text = text.partition(b"\n")[2]
            parts.append(text)
            await asyncio.sleep(0)
    if content_type.startswith("application/openmetrics-text"):
        parts.append(b"# EOF\n")
    return b"".join(parts), content_type


class HttpServer:
    """Serves an ASGI application on a socket that is bound already, in the running event loop.

    Signals, logging and the loop belong to the caller; there is no access log. tls: if the port speaks TLS.
    """

    def __init__(self, app: ASGIApp, sock: socket.socket, tls: TlsPort | None = None) -> None:
        self._sock = sock
        self._tls = tls
        self._server = _Server(
            uvicorn.Config(
                app,
                loop="none",
                http=_Connection if tls is None else _protected(tls),  # type: ignore[arg-type]
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                limit_concurrency=MAX_CONNECTIONS,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=DRAIN_SECONDS,
            )
        )
        self._running: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        state = "serving" if self._running else "closed"
        return f"<HttpServer {state}, {len(self._server.server_state.connections)} connections>"

    async def start(self) -> int:
        """Returns the port once connections are accepted."""
        self._running = asyncio.create_task(self._server.serve(sockets=[self._sock]))
        listening = asyncio.create_task(self._server.listening.wait())
        try:
            await asyncio.wait((self._running, listening), return_when=asyncio.FIRST_COMPLETED)
        finally:
            listening.cancel()
        if self._running.done():
            self._running.result()  # raises why it did not start
        port: int = self._sock.getsockname()[1]
        return port

    async def close(self) -> None:
        """Stops listening, finishes what is being answered within `DRAIN_SECONDS`, and cuts off the rest."""
        if self._running is None:
            return
        running, self._running = self._running, None
        self._server.should_exit = True
        if self._tls is not None:
            self._tls.close()
        await running
        for connection in list(self._server.server_state.connections):
            connection.transport.abort()


class _Server(uvicorn.Server):
    """uvicorn's, without its signal handlers and with an event for its start."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()


class _Connection(HttpToolsProtocol):
    """uvicorn's, with the bounds on a request's head that neither it nor its parser has."""

    _head_timer: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._head_timer is not None and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self.send_400_response("Request head too large.")

    def on_message_begin(self) -> None:
        if self._head_timer is None:
            self._await_head()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._end_head()
        super().on_headers_complete()

    def _await_head(self) -> None:
        self._head_bytes = 0
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _end_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def _protected(tls: TlsPort) -> Callable[..., asyncio.BaseProtocol]:
    """Makes protocols as uvicorn does, each under TLS."""
    return lambda **of_uvicorn: tls.protect(_Connection(**of_uvicorn))


class _Collected:
    """A collector of one family that is there already."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> list[Metric]:
        return [self._family]


def _pieces(family: Metric) -> Iterator[Metric]:
    """The family in pieces of `SAMPLES_A_TURN` samples; in one piece if it has samples that the text format moves."""
    moved = (f"{family.name}_created", f"{family.name}_gsum", f"{family.name}_gcount")
    if len(family.samples) <= SAMPLES_A_TURN or any(sample.name in moved for sample in family.samples):
        yield family
        return
    for start in range(0, len(family.samples), SAMPLES_A_TURN):
        piece = Metric(family.name, family.documentation, family.type, family.unit)
        piece.samples = family.samples[start : start + SAMPLES_A_TURN]
        yield piece


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)


async def _failed(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": client_message(error)}, http_status(error))
