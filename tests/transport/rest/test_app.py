"""The application by itself, called as ASGI says."""

import asyncio
import base64
import hashlib
import json
import re
from collections import Counter
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from transport.rest.test_exposition import OPENMETRICS, Large

from headrace.errors import InvalidRequest, ModelNotFound, QueueFull
from headrace.rpc import inference_pb2 as pb
from headrace.telemetry.metrics import Metrics
from headrace.transport.rest.app import make_app
from headrace.transport.rest.json_text import JsonLimits
from headrace.transport.rest.routes import ROUTES
from headrace.transport.service import ServiceTable

READY = SimpleNamespace(live=True, ready=True, exiting=False, reachable=True)


class Rpcs(dict):
    """Answers each RPC with what the test has put here by its name: a message, or an error; keeps the requests."""

    def __init__(self, **answers):
        super().__init__(answers)
        self.requests = []

    def get(self, method, default=None):
        return (lambda request: self._answer(method, request)) if method.rpartition("/")[2] in self else default

    def __getitem__(self, method):
        return self.get(method)

    def _answer(self, method, request):
        self.requests.append(request)
        answer = super().__getitem__(method.rpartition("/")[2])
        if isinstance(answer, Exception):
            raise answer
        return answer.SerializeToString()


class Answer:
    def __init__(self, messages):
        start, *bodies = messages
        self.status = start["status"]
        self.headers = {name.decode(): value.decode() for name, value in start["headers"]}
        self.body = b"".join(message["body"] for message in bodies)

    @property
    def json(self):
        return json.loads(self.body)


def application(health=READY, registry=None, counts=None, before_scrape=None, summary=None, **answers):
    rpcs = Rpcs(**answers)
    table = ServiceTable(unary=rpcs, streams={}, infer=None, service_names=())
    limits = JsonLimits(depth=5, elements=50)
    counts = Counter() if counts is None else counts
    return make_app(
        health, registry or CollectorRegistry(), table, limits, counts, before_scrape, summary=summary
    ), rpcs


async def call(app, path, method="GET", body=b"", **headers):
    sent = []

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()], "root_path": "",
    }  # fmt: skip
    await app(scope, receive, send)
    return Answer(sent)


def ask(path, method="GET", body=b"", headers=None, **options):
    """The answer of an application of its own."""
    app, _ = application(**options)
    return asyncio.run(call(app, path, method, body, **(headers or {})))


@pytest.mark.parametrize(
    ("path", "health", "status", "answer"),
    [
        ("live", {"ready": False}, 200, {"live": True}),
        ("live", {"ready": False, "live": False}, 400, {"live": False}),
        ("live", {"ready": False, "exiting": True}, 200, {"live": True}),
        ("live", {"reachable": False}, 200, {"live": True}),
        ("ready", {}, 200, {"ready": True}),
        ("ready", {"ready": False}, 400, {"ready": False}),
        ("ready", {"ready": False, "exiting": True}, 503, {"ready": False}),
        ("ready", {"exiting": True}, 503, {"ready": False}),
        ("ready", {"reachable": False}, 503, {"ready": False}),
        ("ready", {"ready": False, "reachable": False}, 400, {"ready": False}),
    ],
)
def test_health(path, health, status, answer):
    got = ask(f"/v2/health/{path}", health=SimpleNamespace(**vars(READY) | health))
    assert (got.status, got.json, got.headers["content-type"]) == (status, answer, "application/json")


def test_the_page_links_what_is_there():
    body = ask("/").body.decode()
    links = [link.split('"')[0] for link in body.split('href="')[1:]]
    paths = {link for link in links if link != "data:,"}
    assert paths == {"/docs", "/metrics", "/v2/models/stats", "/status.json"}
    answers = {"ServerMetadata": pb.ServerMetadataResponse(), "ModelStatistics": pb.ModelStatisticsResponse()}
    assert {ask(path, **answers).status for path in paths} == {200}


def test_an_rpc():
    app, rpcs = application(ModelMetadata=pb.ModelMetadataResponse(name="m", versions=["3"]))
    answer = asyncio.run(call(app, "/v2/models/m/versions/3"))
    assert answer.json == {"name": "m", "versions": ["3"], "platform": "", "inputs": [], "outputs": []}
    assert pb.ModelMetadataRequest.FromString(rpcs.requests[0]) == pb.ModelMetadataRequest(name="m", version="3")


@pytest.mark.parametrize(("body", "ready"), [(b"", False), (b" \n", False), (b'{"ready": true}', True)])
def test_an_rpc_with_a_body(body, ready):
    app, rpcs = application(RepositoryIndex=pb.RepositoryIndexResponse())
    assert asyncio.run(call(app, "/v2/repository/index", "POST", body)).json == []
    assert pb.RepositoryIndexRequest.FromString(rpcs.requests[0]).ready == ready


def test_a_body_that_means_nothing_is_not_looked_at():
    app, _ = application(SystemSharedMemoryUnregister=pb.SystemSharedMemoryUnregisterResponse())
    answer = asyncio.run(call(app, "/v2/systemsharedmemory/unregister", "POST", b"nonsense"))
    assert (answer.status, answer.body) == (200, b"")


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        (b"nonsense", 400, "the request is not valid JSON"),
        (b"[]", 400, "expected an object"),
        (b"[[[[[[]]]]]]", 400, "more than 5 JSON arrays and objects inside one another"),
        (b"[" + b"1," * 60 + b"1]", 413, "at most 50 are taken"),
        (b'{"ready": 1}', 400, "Unable to parse 'ready'"),
    ],
)
def test_bodies_that_are_wrong(body, status, text):
    answer = ask("/v2/repository/index", "POST", body, RepositoryIndex=pb.RepositoryIndexResponse())
    assert (answer.status, text in answer.json["error"]) == (status, True)


@pytest.mark.parametrize(
    ("error", "status", "fields"),
    [
        (InvalidRequest("so"), 400, {"headrace-reason": "invalid_request"}),
        (ModelNotFound("so"), 404, {"headrace-reason": "model_not_found"}),
        (QueueFull("so", 3000), 503, {"headrace-reason": "queue_full", "retry-after": "3"}),
    ],
)
def test_errors_of_rpcs(error, status, fields):
    answer = ask("/v2", ServerMetadata=error)
    assert (answer.status, answer.json) == (status, {"error": "so"})
    assert answer.headers["content-type"] == "application/json"
    assert {name: answer.headers.get(name) for name in fields} == fields


@pytest.mark.parametrize(
    ("method", "path", "status", "message", "allow"),
    [
        ("GET", "/v2/health", 404, "Not Found", None),
        ("GET", "/metrics/", 404, "Not Found", None),
        ("GET", "/v2/models/a/b", 404, "Not Found", None),
        ("POST", "/v2/health/live", 405, "Method Not Allowed", "GET, HEAD"),
        ("GET", "/v2/repository/index", 405, "Method Not Allowed", "POST"),
        ("DELETE", "/v2/models/m", 405, "Method Not Allowed", "GET, HEAD"),
        ("PUT", "/v2/logging", 405, "Method Not Allowed", "GET, POST, HEAD"),
        ("GET", "/v2/models/m/infer", 405, "Method Not Allowed", "POST"),
        ("PUT", "/v2/models/m/versions/1/infer", 405, "Method Not Allowed", "POST"),
        ("POST", "/v2/models/m/generate", 404, "this server has no generate", None),
        ("POST", "/v2/models/m/versions/1/generate_stream", 404, "this server has no generate", None),
    ],
)
def test_verbs_and_paths_that_are_not_there(method, path, status, message, allow):
    answer = ask(path, method)
    assert (answer.status, answer.json["error"].startswith(message)) == (status, True)
    assert answer.headers.get("allow") == allow


def test_every_route_of_the_table_answers():
    answers = {route.rpc: getattr(pb, f"{route.rpc}Response")() for route in ROUTES}
    answers["ModelConfig"].config.SetInParent()
    body = json.dumps({"key": "k", "byte_size": 1, "raw_handle": {"b64": ""}}).encode()
    app, rpcs = application(**answers)
    for route in ROUTES:
        path = route.path.format(model="m", version="1", region="r")
        sent = body if route.path.endswith("register") else b""
        assert asyncio.run(call(app, path, route.verb, sent)).status == 200, route
    assert len(rpcs.requests) == len(ROUTES)


def test_the_description():
    assert ask("/openapi.json").json["openapi"] == "3.1.0"
    assert ask("/docs").headers["content-type"].startswith("text/html")


def test_replies_are_counted_by_route_and_not_by_what_clients_write():
    counts = Counter()
    app, _ = application(counts=counts, ModelReady=ModelNotFound("no"))

    async def calls():
        for path in (
            "/v2/models/a/ready",
            "/v2/models/b/ready",
            "/x",
            "/y",
            "/v2/health/live",
            "/v2/models/m/generate",
        ):
            await call(app, path)
        await call(app, "/v2/health/live", "POST")

    asyncio.run(calls())
    assert counts == {
        ("/v2/models/{model}/ready", 404): 2,
        ("none", 404): 2,
        ("/v2/health/live", 200): 1,
        ("/v2/health/live", 405): 1,
        ("generate", 404): 1,
    }


def test_an_unforeseen_error_is_an_id_to_the_client_and_one_log_entry(caplog):
    registry = CollectorRegistry()
    registry.register(Large(error=RuntimeError("secret")))
    answer = ask("/metrics", registry=registry)
    message = answer.json["error"]
    (entry,) = caplog.records
    assert (answer.status, message.rpartition(" ")[0]) == (500, "internal error, correlation id")
    assert message.rpartition(" ")[2] in entry.getMessage()
    assert "secret" in str(entry.exc_info[1])
    assert b"secret" not in answer.body


def test_metrics_as_text_and_as_openmetrics():
    registry = CollectorRegistry()
    Metrics(registry).model("m", "1", lambda: (0, 0))
    registry.register(Large())
    plain = ask("/metrics", registry=registry)
    assert (plain.status, plain.headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert plain.body == generate_latest(registry)
    openmetrics = ask("/metrics", headers={"accept": OPENMETRICS}, registry=registry)
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert openmetrics.body == generate_openmetrics(registry)
    assert "large" in {family.name for family in parse_openmetrics(openmetrics.body.decode())}


def test_what_a_scrape_has_to_read_is_read_before_and_not_otherwise():
    registry, reads = CollectorRegistry(), []

    async def read():
        await asyncio.sleep(0)
        reads.append(None)
        registry.register(Large())

    assert ask("/v2/health/live", registry=registry, before_scrape=read).status == 200
    assert not reads
    assert b"large" in ask("/metrics", registry=registry, before_scrape=read).body
    assert len(reads) == 1


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
    app, _ = application(registry=registry)

    async def scrapes():
        return await asyncio.gather(*(call(app, "/metrics") for _ in range(5)))

    assert [answer.status for answer in asyncio.run(scrapes())] == [200] * 5
    assert most == 1


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_may_load_and_run_nothing_but_itself():
    answer = ask("/")
    assert answer.headers["content-type"].startswith("text/html")
    policy = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
    text = answer.body.decode()
    assert (policy["default-src"], policy["connect-src"], policy["frame-ancestors"]) == ("'none'", "'self'", "'none'")
    for name in ("style", "script"):
        (inside,) = re.findall(rf"<{name}>(.*?)</{name}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert policy[f"{name}-src"] == f"'sha256-{digest}'"
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert re.findall(r"(?:src|href|url\()=?[\"']?(?:https?:)?//", text) == []  # a namespace is no address
    assert not re.search(r"<\w[^>]* (?:style|on\w+)=", text)  # which the policy would refuse


def test_the_status_is_what_the_server_sums_up():
    told = {"models": [{"name": "m"}], "drift": []}

    async def summary():
        return told

    answer = ask("/status.json", summary=summary)
    assert (answer.status, answer.json, answer.headers["content-type"]) == (200, told, "application/json")
    assert answer.headers["cache-control"] == "no-store"
    assert ask("/status.json").json == {"models": [], "drift": [], "guards": []}
