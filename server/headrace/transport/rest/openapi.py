"""The description of the HTTP port for programs (OpenAPI 3.1) and for people, from the table of routes."""

from __future__ import annotations

import re
from html import escape
from typing import TYPE_CHECKING, Any

from google.protobuf.descriptor import FieldDescriptor as Field

from headrace import __version__
from headrace.datatypes import DATATYPES
from headrace.transport.rest.json_messages import is_map
from headrace.transport.rest.routes import DRIFT_PATHS, GUARD_PATHS, INFER_PATHS, RECORDING_PATHS
from headrace.transport.service import INFERENCE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from google.protobuf.descriptor import Descriptor

    from headrace.transport.rest.routes import Route

Schema = dict[str, Any]

_VARIABLE = re.compile(r"{(\w+)}")
_SCALARS: dict[int, Schema] = {
    Field.TYPE_BOOL: {"type": "boolean"},
    Field.TYPE_STRING: {"type": "string"},
    Field.TYPE_BYTES: {"type": "string", "contentEncoding": "base64"},
    Field.TYPE_DOUBLE: {"type": "number"},
    Field.TYPE_FLOAT: {"type": "number"},
}
_PARAMETERS: Schema = {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}


def document(routes: Sequence[Route]) -> dict[str, Any]:
    """The OpenAPI document."""
    paths: dict[str, dict[str, Any]] = {
        "/v2/health/live": {"get": _operation("/v2/health/live", "whether the server is up", {"type": "object"})},
        "/v2/health/ready": {"get": _operation("/v2/health/ready", "whether it takes requests", {"type": "object"})},
        "/status.json": {"get": _operation("/status.json", "what the page at / shows", {"type": "object"})},
        "/metrics": {"get": _operation("/metrics", "Prometheus metrics", None)},
    }
    anything: Schema = {"type": "object"}
    for path in RECORDING_PATHS:
        paths[path] = {"get": _operation(path, "how the last requests came and went, for headrace replay", None)}
    for path in DRIFT_PATHS:
        paths[path] = {"get": _operation(path, "whether what flows in and out looks as it should", anything)}
    for path in GUARD_PATHS:
        reset = f"{path}/reset"
        paths[path] = {"get": _operation(path, "how a version compares with the one that is trusted", anything)}
        paths[reset] = {"post": _operation(reset, "has the guard begin anew", anything)}
    for route in routes:
        paths.setdefault(route.path, {})[route.verb.lower()] = _of_route(route)
    for path in INFER_PATHS:
        paths[path] = {"post": _inference(path)}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Headrace",
            "version": __version__,
            "description": "The Open Inference Protocol (KServe v2) over HTTP, with Triton's extensions.",
        },
        "paths": paths,
        "components": {"schemas": _INFERENCE_SCHEMAS},
    }


def page(document: dict[str, Any]) -> str:
    """The document as one HTML page that needs nothing else."""
    rows = []
    for path, operations in sorted(document["paths"].items()):
        for verb, operation in operations.items():
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
            reply = operation["responses"]["200"].get("content", {}).get("application/json", {}).get("schema")
            told = "".join(
                f"<details><summary>{name}</summary><pre>{escape(_outline(schema, document))}</pre></details>"
                for name, schema in (("request", body), ("reply", reply))
                if schema
            )
            rows.append(
                f"<tr><td>{verb.upper()}<td><code>{escape(path)}</code><td>{escape(operation['summary'])}{told}"
            )
    info = document["info"]
    return _PAGE.format(
        title=escape(info["title"]),
        version=escape(info["version"]),
        description=escape(info["description"]),
        rows="\n".join(rows),
    )


_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>body{{font:15px/1.5 system-ui,sans-serif;margin:2em;max-width:70em}}table{{border-collapse:collapse}}
td{{border-top:1px solid #ccc;padding:.3em 1em .3em 0;vertical-align:top}}pre{{margin:.3em 0}}
@media(prefers-color-scheme:dark){{body{{background:#111;color:#ddd}}}}</style>
<h1>{title} {version}</h1><p>{description} For programs: <a href="/openapi.json">/openapi.json</a>.
<p>A request that fails is answered with its status and <code>{{"error": "..."}}</code>.
<table>
{rows}
</table></html>
"""


def _of_route(route: Route) -> dict[str, Any]:
    rpc = INFERENCE.methods_by_name[route.rpc]
    request = _object(rpc.input_type, leave_out={*route.variables.values(), "repository_name"})
    request = _BODIES.get(route.rpc, request)
    example = route.shape(_example(rpc.output_type))
    reply = None if example is None else _REPLIES.get(route.rpc, _like(example))
    return _operation(route.path, route.summary, reply, request if route.has_body else None)


def _operation(path: str, summary: str, reply: Schema | None, request: Schema | None = None) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": summary,
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in _VARIABLE.findall(path)
        ],
        "responses": {"200": _content("success", reply), "default": _content("an error", _ERROR)},
    }
    if request is not None:
        operation["requestBody"] = {"content": {"application/json": {"schema": request}}}
    return operation


def _inference(path: str) -> dict[str, Any]:
    operation = _operation(
        path,
        "inference",
        {"$ref": "#/components/schemas/InferReply"},
        {"$ref": "#/components/schemas/InferRequest"},
    )
    operation["parameters"].append(
        {
            "name": "Inference-Header-Content-Length",
            "in": "header",
            "description": "octets of JSON at the beginning of the body, where tensors follow it in binary form",
            "schema": {"type": "integer", "minimum": 0},
        }
    )
    binary = {"application/octet-stream": {"schema": {"description": "JSON, then tensors in binary form"}}}
    operation["requestBody"]["content"] |= binary
    operation["responses"]["200"]["content"] |= binary
    return operation


def _content(description: str, schema: Schema | None) -> dict[str, Any]:
    content = {} if schema is None else {"content": {"application/json": {"schema": schema}}}
    return {"description": description} | content


def _object(descriptor: Descriptor, leave_out: set[str]) -> Schema:
    fields = [field for field in descriptor.fields if field.name not in leave_out]
    return {"type": "object", "properties": {field.name: _schema(field) for field in fields}}


def _schema(field: Field) -> Schema:
    if is_map(field):
        return {"type": "object", "additionalProperties": True}
    if field.message_type is not None:
        one = _object(field.message_type, set())
    else:
        one = _SCALARS.get(field.type, {"type": "string" if field.enum_type is not None else "integer"})
    return {"type": "array", "items": one} if field.is_repeated else one


def _example(descriptor: Descriptor, within: tuple[str, ...] = ()) -> dict[str, Any]:
    """A reply with one of everything, so that a route's `shape` shows what becomes of it."""
    inside = (*within, descriptor.full_name)
    example: dict[str, Any] = {}
    for field in descriptor.fields:
        if is_map(field):
            entry: Any = field.message_type
            entry = entry.fields_by_name["value"]
            example[field.name] = {"*": _sample(entry, inside)}
        else:
            one = _sample(field, inside)
            example[field.name] = [one] if field.is_repeated else one
    return example


def _sample(field: Field, within: tuple[str, ...]) -> Any:  # noqa: ANN401
    if field.message_type is not None:
        return {} if field.message_type.full_name in within else _example(field.message_type, within)
    kind = _SCALARS.get(field.type, {"type": "string" if field.enum_type is not None else "integer"})["type"]
    return {"string": "text", "boolean": True, "number": 0.5, "integer": 1}[kind]


def _like(example: Any) -> Schema:  # noqa: ANN401
    """The schema of values like this one."""
    if isinstance(example, dict):
        if "*" in example:
            return {"type": "object", "additionalProperties": _like(example["*"])}
        return {"type": "object", "properties": {name: _like(value) for name, value in example.items()}}
    if isinstance(example, list):
        return {"type": "array", "items": _like(example[0]) if example else {}}
    names: dict[type, str] = {bool: "boolean", int: "integer", float: "number", str: "string"}
    return {"type": names.get(type(example), "null")}


def _outline(schema: Schema, document: dict[str, Any], indent: str = "") -> str:
    """A schema in a few lines."""
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    if "properties" in schema:
        inner = indent + "  "
        lines = [f"{inner}{name}: {_outline(one, document, inner)}" for name, one in schema["properties"].items()]
        return "{\n" + "\n".join(lines) + f"\n{indent}}}"
    if schema.get("type") == "array":
        return f"[{_outline(schema.get('items', {}), document, indent)}]"
    return str(schema.get("description", schema.get("type", "anything")))


_LOG_SETTINGS: Schema = {
    "type": "object",
    "additionalProperties": {"type": ["boolean", "integer", "string"]},
    "description": "settings such as log_info, by name",
}
_BODIES: dict[str, Schema] = {
    "CudaSharedMemoryRegister": {
        "type": "object",
        "properties": {
            "raw_handle": {
                "type": "object",
                "properties": {"b64": {"type": "string", "contentEncoding": "base64"}},
            },
            "device_id": {"type": "integer"},
            "byte_size": {"type": "integer"},
        },
    },
    "TraceSetting": {
        "type": "object",
        "additionalProperties": {"type": ["string", "array", "null"], "items": {"type": "string"}},
        "description": "settings such as trace_level, by name; null takes a model's own back",
    },
    "LogSettings": _LOG_SETTINGS,
}
"""Of the RPCs whose bodies are not the members of the message."""
_REPLIES: dict[str, Schema] = {"LogSettings": _LOG_SETTINGS}

_ERROR: Schema = {"type": "object", "properties": {"error": {"type": "string"}}}
_DATA: Schema = {"type": "array", "description": "elements in row-major order, flat or nested as the shape"}
_TENSOR: Schema = {
    "name": {"type": "string"},
    "datatype": {"type": "string", "enum": sorted(DATATYPES), "description": "datatype such as FP32"},
    "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
    "parameters": _PARAMETERS,
    "data": _DATA,
}
_INFERENCE_SCHEMAS: dict[str, Schema] = {
    "InferRequest": {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string"},
            "parameters": _PARAMETERS,
            "inputs": {
                "type": "array",
                "items": {"type": "object", "required": ["name", "datatype", "shape"], "properties": _TENSOR},
            },
            "outputs": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["name"],
                    "properties": {"name": {"type": "string"}, "parameters": _PARAMETERS},
                },
            },
        },
    },
    "InferReply": {
        "type": "object",
        "properties": {
            "id": {"type": "string"},
            "model_name": {"type": "string"},
            "model_version": {"type": "string"},
            "parameters": _PARAMETERS,
            "outputs": {"type": "array", "items": {"type": "object", "properties": _TENSOR}},
        },
    },
}
