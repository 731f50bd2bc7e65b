"""The ASGI application of the HTTP port: everything but inference."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route as Path

from headrace.transport.rest import openapi
from headrace.transport.rest.answer import error_body, refusal_of
from headrace.transport.rest.exposition import exposition
from headrace.transport.rest.json_text import JsonLimits, parse
from headrace.transport.rest.page import page
from headrace.transport.rest.routes import (
    DRIFT_PATHS,
    GENERATE_PATHS,
    GUARD_PATHS,
    INFER_PATHS,
    RECORDING_PATHS,
    ROUTES,
    Route,
)

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Awaitable, Callable, Mapping

    from prometheus_client import CollectorRegistry
    from pydantic import BaseModel
    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from headrace.transport.service import ServiceTable

    Endpoint = Callable[[Request], Awaitable[Response]]

LABEL = "headrace.route"
"""Key of the scope under which a call's route stands, for the metrics."""

_VERBS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


class Health(Protocol):
    """What the health paths answer with. exiting: the server drains; it is then alive and not ready.

    reachable: gRPC's connections are taken; they may not be while the workers for them start again.
    """

    @property
    def live(self) -> bool: ...  # noqa: D102
    @property
    def ready(self) -> bool: ...  # noqa: D102
    @property
    def exiting(self) -> bool: ...  # noqa: D102
    @property
    def reachable(self) -> bool: ...  # noqa: D102


class Guards(Protocol):
    """What is known of guarded versions. name, version: of a model; an empty version: the newest that is guarded."""

    def report(self, name: str, version: str, /) -> BaseModel: ...  # noqa: D102
    def reset(self, name: str, version: str, /) -> BaseModel: ...  # noqa: D102


def make_app(
    health: Health,
    registry: CollectorRegistry,
    table: ServiceTable,
    limits: JsonLimits,
    counts: Counter[Any],
    before_scrape: Callable[[], Awaitable[None]] | None = None,
    recording: Callable[[str, str], Callable[[], bytes]] | None = None,
    drift: Callable[[str, str], Awaitable[BaseModel]] | None = None,
    summary: Callable[[], Awaitable[Mapping[str, Any]]] | None = None,
    guards: Guards | None = None,
) -> ASGIApp:
    """The application.

    health is asked at each probe: 200 for yes, 400 for no, and for ready 503 while the server leaves or nothing takes
    gRPC's connections (OIP; the JSON bodies are for KServe's client, which parses them). counts: of replies, by route
    and status. before_scrape: reads what metrics show and nobody counts. recording: makes what writes out a model's
    last requests, of its name and version. drift: the report of one. summary: what the page at `/` shows; nothing of
    models without it. guards: of versions that are compared with another. Every error is JSON, `{"error": message}`.
    """
    endpoints = _own_endpoints(health, registry, before_scrape, summary)
    if recording is not None:
        for path in RECORDING_PATHS:
            endpoints[path] = {"GET": _recording(recording)}
    if drift is not None:
        for path in DRIFT_PATHS:
            endpoints[path] = {"GET": _drift(drift)}
    if guards is not None:
        for path in GUARD_PATHS:
            endpoints[path] = {"GET": _guard(guards.report)}
            endpoints[f"{path}/reset"] = {"POST": _guard(guards.reset)}
    for route in ROUTES:
        endpoints.setdefault(route.path, {})[route.verb] = _rpc(route, table, limits)
    paths = [Path(path, _by_verb(path, verbs), methods=_VERBS) for path, verbs in endpoints.items()]
    # inference never comes this far (connection.py): only what is not POST does
    paths += [Path(path, _by_verb(path, {}, allow="POST"), methods=_VERBS) for path in INFER_PATHS]
    paths += [Path(path, _no_generation, methods=_VERBS) for path in GENERATE_PATHS]
    app = Starlette(
        routes=paths,
        exception_handlers={HTTPException: _refused},
        # Inside of Starlette's own handler of errors, which would answer and then raise them to be logged once more.
        middleware=[
            Middleware(_Counted, counts=counts),
            Middleware(ExceptionMiddleware, handlers={Exception: _failed}),
        ],
    )
    app.router.redirect_slashes = False
    return app


def _own_endpoints(
    health: Health,
    registry: CollectorRegistry,
    before_scrape: Callable[[], Awaitable[None]] | None,
    summary: Callable[[], Awaitable[Mapping[str, Any]]] | None,
) -> dict[str, dict[str, Endpoint]]:
    """Those that are no RPC."""
    scrape = asyncio.Lock()
    document = openapi.document(ROUTES)
    described = openapi.page(document)
    text, fields = page()

    async def index(_: Request) -> Response:
        return HTMLResponse(text, headers=fields)

    async def status(_: Request) -> Response:
        told = {"models": [], "drift": [], "guards": []} if summary is None else await summary()
        return Response(orjson.dumps(told), headers={"cache-control": "no-store"}, media_type="application/json")

    async def live(_: Request) -> Response:
        answer = health.live
        return JSONResponse({"live": answer}, 200 if answer else 400)

    async def ready(_: Request) -> Response:
        passing = health.exiting or (health.ready and not health.reachable)
        answer = health.ready and not passing
        return JSONResponse({"ready": answer}, 200 if answer else 503 if passing else 400)

    async def metrics(request: Request) -> Response:
        # One at a time: the loop then gives a turn in two to scrapes at most, however many clients ask.
        async with scrape:
            if before_scrape is not None:
                await before_scrape()
            body, content_type = await exposition(registry, request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type})

    async def openapi_json(_: Request) -> Response:
        return JSONResponse(document)

    async def docs(_: Request) -> Response:
        return HTMLResponse(described)

    return {
        "/": {"GET": index},
        "/status.json": {"GET": status},
        "/v2/health/live": {"GET": live},
        "/v2/health/ready": {"GET": ready},
        "/metrics": {"GET": metrics},
        "/openapi.json": {"GET": openapi_json},
        "/docs": {"GET": docs},
    }


def _recording(recording: Callable[[str, str], Callable[[], bytes]]) -> Endpoint:
    """Written out on a thread: there may be thousands of requests."""

    async def endpoint(request: Request) -> Response:
        named = request.path_params
        write = recording(named["model"], named.get("version", ""))
        body = await asyncio.to_thread(write)
        return Response(body, media_type="application/octet-stream")

    return endpoint


def _drift(drift: Callable[[str, str], Awaitable[BaseModel]]) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        named = request.path_params
        found = await drift(named["model"], named.get("version", ""))
        return Response(found.model_dump_json(), media_type="application/json")

    return endpoint


def _guard(ask: Callable[[str, str], BaseModel]) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        named = request.path_params
        found = ask(named["model"], named.get("version", ""))
        return Response(found.model_dump_json(), media_type="application/json")

    return endpoint


def _rpc(route: Route, table: ServiceTable, limits: JsonLimits) -> Endpoint:
    """The endpoint of a route of the table."""

    async def endpoint(request: Request) -> Response:
        text = await request.body() if route.has_body else b""
        body = parse(text, limits) if text.strip() else {}
        answer = await route.call(table, request.path_params, body)
        return Response() if answer is None else JSONResponse(answer)

    return endpoint


def _by_verb(path: str, endpoints: Mapping[str, Endpoint], allow: str = "") -> Endpoint:
    """One endpoint of a path for all verbs; HEAD is GET without its body (RFC 9110, 9.3.2)."""
    allowed = allow or ", ".join([*endpoints, *(["HEAD"] if "GET" in endpoints else [])])

    async def endpoint(request: Request) -> Response:
        request.scope[LABEL] = path
        chosen = endpoints.get("GET" if request.method == "HEAD" else request.method)
        if chosen is None:
            raise HTTPException(405, headers={"allow": allowed})
        return await chosen(request)

    return endpoint


async def _no_generation(request: Request) -> Response:
    request.scope[LABEL] = "generate"
    raise HTTPException(404, "this server has no generate and generate_stream; use infer, or gRPC's ModelStreamInfer")


class _Counted:
    """Counts replies by route and status. Routes come from the table and not from clients; what has none is `none`."""

    def __init__(self, app: ASGIApp, counts: Counter[Any]) -> None:
        self._app = app
        self._counts = counts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._counts[scope.get(LABEL, "none"), message["status"]] += 1
            await send(message)

        await self._app(scope, receive, counting)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.status_code, error.detail, error.headers or {})


async def _failed(_: Request, error: Exception) -> Response:
    status, message, fields = refusal_of(error)
    return _error(status, message, dict(fields))


def _error(status: int, message: str, fields: Mapping[str, str]) -> Response:
    return Response(error_body(message), status, dict(fields), "application/json")
