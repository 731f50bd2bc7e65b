"""The routes of the protocol but inference: a verb and a path, the RPC that answers, and what differs from it in JSON.

Source: Open Inference Protocol, "HTTP/REST", and Triton's extensions of it. What a route does is the RPC's alone.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from google.protobuf.message_factory import GetMessageClass

from headrace.errors import InvalidRequest
from headrace.transport.rest.json_messages import set_member, to_json
from headrace.transport.service import INFERENCE

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from headrace.transport.service import ServiceTable

Fill = Callable[[Any, Mapping[str, Any]], None]
"""Fills a request message from the members of a body. Raises InvalidRequest."""

Shape = Callable[[dict[str, Any]], Any]
"""From the JSON of a reply message to the body; None: there is none."""

MODEL = "/v2/models/{model}"
VERSION = "/versions/{version}"
REGION = "/region/{region}"


def _members(message: Message, members: Mapping[str, Any]) -> None:
    """Members with the names of fields; what else there is has no meaning."""
    for name in message.DESCRIPTOR.fields_by_name:
        if members.get(name) is not None:
            set_member(message, name, members[name])


def _nothing(message: Message, members: Mapping[str, Any]) -> None:
    """There is no body to such a request."""


def _shared_memory(message: Message, members: Mapping[str, Any]) -> None:
    for name in ("key", "byte_size"):
        if members.get(name) is None:
            raise InvalidRequest(f"Shared memory register request has no '{name}' field")
    _members(message, members)


def _cuda_memory(message: Any, members: Mapping[str, Any]) -> None:  # noqa: ANN401
    handle = members.get("raw_handle")
    text = handle.get("b64") if isinstance(handle, dict) else None
    if text is None:
        raise InvalidRequest("Shared memory register request has no 'raw_handle' field with a member 'b64'")
    message.raw_handle = _base64(text, "raw_handle")
    _members(message, {name: value for name, value in members.items() if name != "raw_handle"})


def _repository_parameters(message: Any, members: Mapping[str, Any]) -> None:  # noqa: ANN401
    for key, value in _object(members, "parameters").items():
        parameter = message.parameters[key]
        if key.startswith("file:"):
            parameter.bytes_param = _base64(value, key)
        else:
            set_member(parameter, _choice(value, key), value)


def _trace_settings(message: Any, members: Mapping[str, Any]) -> None:  # noqa: ANN401
    """A setting is a string or an array of them; null takes it back, which in the message is no value."""
    for key, value in members.items():
        values = [] if value is None else value if isinstance(value, list) else [value]
        if not all(isinstance(one, str | int) for one in values):
            raise InvalidRequest(f"Unable to parse '{key}': got {str(value)[:80]!r}, expected strings")
        message.settings[key].value.extend(map(str, values))


def _log_settings(message: Any, members: Mapping[str, Any]) -> None:  # noqa: ANN401
    kinds = {bool: "bool_param", int: "uint32_param", str: "string_param"}
    for key, value in members.items():
        if value is None:
            continue
        if type(value) not in kinds:
            raise InvalidRequest(f"Unable to parse '{key}': got {str(value)[:80]!r}, expected a string or a number")
        set_member(message.settings[key], kinds[type(value)], value)


def _choice(value: object, key: str) -> str:
    kinds = {bool: "bool_param", int: "int64_param", str: "string_param"}
    if type(value) not in kinds:
        raise InvalidRequest(
            f"Unable to parse parameter '{key}': got {str(value)[:80]!r}, expected a string or a number"
        )
    return kinds[type(value)]


def _object(members: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = members.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidRequest(f"Unable to parse '{name}': got {str(value)[:80]!r}, expected an object")
    return value


def _base64(text: object, name: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)  # type: ignore[arg-type]
    except (binascii.Error, ValueError, TypeError):
        raise InvalidRequest(f"Unable to parse '{name}': expected a string in base64 (RFC 4648)") from None


def _index(reply: dict[str, Any]) -> list[dict[str, Any]]:
    """A model that is in no version yet has none, and most have no reason to give."""
    return [
        {name: value for name, value in model.items() if value or name in ("name", "state")}
        for model in reply["models"]
    ]


def _trace(reply: dict[str, Any]) -> dict[str, Any]:
    """Of the settings, `trace_level` alone is an array."""
    return {
        key: setting["value"] if key == "trace_level" else "".join(setting["value"][:1])
        for key, setting in reply["settings"].items()
    }


def _regions(reply: dict[str, Any]) -> list[Any]:
    return list(reply["regions"].values())


def _whole(reply: dict[str, Any]) -> dict[str, Any]:
    return reply


def _no_body(_: dict[str, Any]) -> None:
    """Triton's are empty, too."""


@dataclass(frozen=True)
class Route:
    """One verb on one path. rpc: of the inference service. summary: for people.

    path: as Starlette has it; its variables go to the fields of the request that `variables` names. fill: from the
    body. shape: from the reply's JSON to the body.
    """

    verb: str
    path: str
    rpc: str
    summary: str
    variables: Mapping[str, str] = field(default_factory=lambda: {"model": "name", "version": "version"})
    fill: Fill = _nothing
    shape: Shape = _whole

    @property
    def method(self) -> str:
        """The full name of the RPC, as the service table has it."""
        return f"/{INFERENCE.full_name}/{self.rpc}"

    @property
    def has_body(self) -> bool:
        """Whether a body means anything."""
        return self.fill is not _nothing

    def request(self, variables: Mapping[str, str], body: object) -> bytes:
        """The request message. body: JSON. Raises InvalidRequest."""
        message: Message = GetMessageClass(INFERENCE.methods_by_name[self.rpc].input_type)()
        if self.has_body:
            if not isinstance(body, dict):
                raise InvalidRequest(f"the request's JSON is {str(body)[:80]!r}, expected an object")
            self.fill(message, body)
        for variable, value in variables.items():
            set_member(message, self.variables[variable], value)
        return message.SerializeToString()

    def reply(self, message: bytes) -> Any:  # noqa: ANN401
        """The JSON of a serialised reply; None: there is none."""
        kind = GetMessageClass(INFERENCE.methods_by_name[self.rpc].output_type)
        return self.shape(to_json(kind.FromString(message)))

    async def call(self, table: ServiceTable, variables: Mapping[str, str], body: object) -> Any:  # noqa: ANN401
        """Has the RPC answer. Raises HeadraceError."""
        request = self.request(variables, body)
        task = table.tasks.get(self.method)
        return self.reply(table.unary[self.method](request) if task is None else await task(request))


def _both(path: str, tail: str, **more: Any) -> list[Route]:  # noqa: ANN401
    """With and without a version."""
    return [Route("GET", path + VERSION * versioned + tail, **more) for versioned in (False, True)]


def _memory(kind: str, rpc: str, fill: Fill) -> list[Route]:
    path, name, what = f"/v2/{kind}sharedmemory", {"region": "name"}, f"{kind} shared memory"
    status, register, unregister = f"{rpc}Status", f"{rpc}Register", f"{rpc}Unregister"
    one = path + REGION
    return [
        Route("GET", f"{path}/status", status, f"all {what} regions", name, shape=_regions),
        Route("GET", f"{one}/status", status, f"one {what} region", name, shape=_regions),
        Route("POST", f"{one}/register", register, f"registers a {what} region", name, fill=fill, shape=_no_body),
        Route("POST", f"{path}/unregister", unregister, f"forgets all {what} regions", name, shape=_no_body),
        Route("POST", f"{one}/unregister", unregister, f"forgets a {what} region", name, shape=_no_body),
    ]


def _settings(path: str, rpc: str, what: str, fill: Fill, shape: Shape) -> list[Route]:
    variables = {"model": "model_name"}
    return [
        Route("GET", path, rpc, what, variables=variables, shape=shape),
        Route("POST", path, rpc, f"changes {what}", variables=variables, fill=fill, shape=shape),
    ]


def _control(rpc: str, verb: str) -> Route:
    return Route(
        "POST",
        f"/v2/repository/models/{{model}}/{verb}",
        rpc,
        f"{verb}s a model",
        variables={"model": "model_name"},
        fill=_repository_parameters,
        shape=_no_body,
    )


ROUTES: tuple[Route, ...] = (
    Route("GET", "/v2", "ServerMetadata", "name, version and extensions of the server"),
    Route("GET", "/v2/models/stats", "ModelStatistics", "statistics of all models"),
    *_both(MODEL, "", rpc="ModelMetadata", summary="inputs and outputs of a model"),
    *_both(MODEL, "/ready", rpc="ModelReady", summary="whether a model is ready"),
    *_both(
        MODEL, "/config", rpc="ModelConfig", summary="the configuration of a model", shape=lambda reply: reply["config"]
    ),
    *_both(MODEL, "/stats", rpc="ModelStatistics", summary="statistics of a model"),
    Route(
        "POST", "/v2/repository/index", "RepositoryIndex", "all models and their states", fill=_members, shape=_index
    ),
    _control("RepositoryModelLoad", "load"),
    _control("RepositoryModelUnload", "unload"),
    *_memory("system", "SystemSharedMemory", _shared_memory),
    *_memory("cuda", "CudaSharedMemory", _cuda_memory),
    *_settings("/v2/trace/setting", "TraceSetting", "the settings of tracing", _trace_settings, _trace),
    *_settings(
        f"{MODEL}/trace/setting", "TraceSetting", "the settings of tracing for a model", _trace_settings, _trace
    ),
    *_settings(
        "/v2/logging",
        "LogSettings",
        "the settings of the log",
        _log_settings,
        lambda reply: {key: next(iter(setting.values()), None) for key, setting in reply["settings"].items()},
    ),
)
"""The first that matches is taken: `/v2/models/stats` is not a model of that name."""

INFER_PATHS = (f"{MODEL}/infer", f"{MODEL}{VERSION}/infer")
RECORDING_PATHS = (f"{MODEL}/recording", f"{MODEL}{VERSION}/recording")
"""How the last requests of a model came and went, for `headrace record`: ours, and no part of the protocol."""
DRIFT_PATHS = (f"{MODEL}/drift", f"{MODEL}{VERSION}/drift")
"""What is known of the drift of what flows into and out of a model: ours as well."""
GUARD_PATHS = (f"{MODEL}/guard", f"{MODEL}{VERSION}/guard")
"""How a version compares with the one that is trusted: ours as well. With `/reset`, has the guard begin anew."""
GENERATE_PATHS = tuple(
    f"{MODEL}{version}/{name}" for version in ("", VERSION) for name in ("generate", "generate_stream")
)
