import json
import re
from collections import Counter
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import Any

from prometheus_client import CollectorRegistry

from headrace import __version__
from headrace.transport.rest import openapi
from headrace.transport.rest.app import make_app
from headrace.transport.rest.routes import GENERATE_PATHS, INFER_PATHS, ROUTES
from headrace.transport.service import ServiceTable

DOCUMENT = openapi.document(ROUTES)


def test_every_route_is_described():
    json.dumps(DOCUMENT)
    assert DOCUMENT["openapi"] == "3.1.0"
    assert DOCUMENT["info"]["version"] == __version__
    described = {(verb.upper(), path) for path, operations in DOCUMENT["paths"].items() for verb in operations}
    assert described >= {(route.verb, route.path) for route in ROUTES} | {("POST", path) for path in INFER_PATHS}
    for path, operations in DOCUMENT["paths"].items():
        for operation in operations.values():
            named = [one["name"] for one in operation["parameters"] if one["in"] == "path"]
            assert named == re.findall(r"{(\w+)}", path)
            assert operation["summary"]
            assert {"200", "default"} == operation["responses"].keys()


def test_schemas_are_those_of_the_messages_as_the_routes_shape_them():
    def reply(path, verb="get"):
        return (
            DOCUMENT["paths"][path][verb]["responses"]["200"]
            .get("content", {})
            .get("application/json", {})
            .get("schema")
        )

    assert reply("/v2")["properties"] == {
        "name": {"type": "string"},
        "version": {"type": "string"},
        "extensions": {"type": "array", "items": {"type": "string"}},
    }
    index = reply("/v2/repository/index", "post")
    assert (index["type"], set(index["items"]["properties"])) == ("array", {"name", "version", "state", "reason"})
    assert "max_batch_size" in reply("/v2/models/{model}/config")["properties"]
    assert reply("/v2/systemsharedmemory/unregister", "post") is None
    body = DOCUMENT["paths"]["/v2/systemsharedmemory/region/{region}/register"]["post"]["requestBody"]
    assert set(body["content"]["application/json"]["schema"]["properties"]) == {"key", "offset", "byte_size"}
    body = DOCUMENT["paths"]["/v2/cudasharedmemory/region/{region}/register"]["post"]["requestBody"]
    handle = body["content"]["application/json"]["schema"]["properties"]["raw_handle"]
    assert handle["properties"]["b64"]["contentEncoding"] == "base64"
    for verb in ("get", "post"):
        assert reply("/v2/logging", verb)["additionalProperties"]["type"] == ["boolean", "integer", "string"]


def test_references_lead_somewhere():
    for reference in re.findall(r'"#/([^"]+)"', json.dumps(DOCUMENT)):
        found = DOCUMENT
        for part in reference.split("/"):
            found = found[part]
        assert found["type"] == "object"


def test_the_page_needs_nothing_else_and_is_well_formed():
    outside, tags = [], []

    class Page(HTMLParser):
        def handle_starttag(self, tag, attributes):
            tags.append(tag)
            outside.extend(value for name, value in attributes if name in ("src", "href") and not value.startswith("/"))

    page = openapi.page(DOCUMENT)
    Page().feed(page)
    assert outside == []
    assert not {"script", "link", "img"} & set(tags)
    for path in DOCUMENT["paths"]:
        assert f"<code>{path}</code>" in page
    assert "binary_data" not in page or "&" in page


def test_it_has_every_route():
    """But the pages themselves, and what is there only to be refused."""
    rest: Any = SimpleNamespace(report=print, reset=print, health=None)
    table = ServiceTable(unary={}, streams={}, infer=rest, service_names=())
    app: Any = make_app(
        rest, CollectorRegistry(), table, rest, Counter(), recording=rest.report, drift=rest.report, guards=rest
    )
    routes = {route.path for route in app.router.routes}
    assert routes - set(DOCUMENT["paths"]) == {"/", "/docs", "/openapi.json", *GENERATE_PATHS}
    assert set(DOCUMENT["paths"]) <= routes
