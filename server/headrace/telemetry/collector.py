"""Where traces go: to the endpoint of the settings, or of OpenTelemetry's own variables, which are checked here.

OpenTelemetry, "OTLP Exporter Configuration": its SDK takes much of what makes no sense, and then exports nothing.
"""

from __future__ import annotations

import json
from math import isfinite
from typing import TYPE_CHECKING, Literal

from headrace.config import is_http_url
from headrace.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headrace.config import TracingSettings

_PREFIX = "OTEL_EXPORTER_OTLP_"
_PROTOCOLS: dict[str, Literal["grpc", "http"]] = {"grpc": "grpc", "http/protobuf": "http"}
_FILES = ("CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE")


def wants_traces(settings: TracingSettings, environ: Mapping[str, str]) -> bool:
    """Whether traces go anywhere. Raises ConfigError where they would, if it were said to which endpoint."""
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or environ.get("OTEL_TRACES_EXPORTER") == "none":
        return False
    if settings.endpoint or _variable(environ, "ENDPOINT")[1]:
        return True
    if settings.protocol:
        raise ConfigError(
            f"tracing.protocol = {json.dumps(settings.protocol)}, and no endpoint is set: expected tracing.endpoint "
            f"with it, or {_PREFIX}ENDPOINT"
        )
    return False


def ignored(environ: Mapping[str, str], *, exported: bool) -> list[str]:
    """What is said of variables of OpenTelemetry's that are set, make a difference elsewhere, and make none here.

    exported: whether traces are; where they are not, only what asks for them matters.
    """
    lines = []
    exporter = environ.get("OTEL_TRACES_EXPORTER", "")
    if exporter not in ("", "otlp", "none"):
        lines.append(f"OTEL_TRACES_EXPORTER = {json.dumps(exporter)} is ignored: expected otlp or none")
    if not exported:
        return lines
    sampler = [name for name in ("OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG") if environ.get(name)]
    lines += [f"{name} is ignored: tracing.ratio says how many requests are traced by chance" for name in sampler]
    lines += [
        f"{name} is ignored: spans are queued and sent as docs/tracing.md says"
        for name in sorted(environ)
        if name.startswith("OTEL_BSP_") and environ[name]
    ]
    propagators = {each.strip() for each in environ.get("OTEL_PROPAGATORS", "").split(",")} - {""}
    if propagators and "tracecontext" not in propagators:
        lines.append(
            f"OTEL_PROPAGATORS = {json.dumps(environ['OTEL_PROPAGATORS'])} is ignored: callers' traces are read as W3C "
            "Trace Context (tracecontext)"
        )
    attributes = [each for each in environ.get("OTEL_RESOURCE_ATTRIBUTES", "").split(",") if each.strip()]
    bad = [each for each in attributes if not each.partition("=")[0].strip() or "=" not in each]
    if bad:
        lines.append(
            f"OTEL_RESOURCE_ATTRIBUTES: {json.dumps(bad[0])} is ignored: expected key=value, separated by commas"
        )
    return lines


def target(settings: TracingSettings, environ: Mapping[str, str]) -> tuple[Literal["grpc", "http"], str]:
    """(protocol, endpoint); without an endpoint, OTEL_EXPORTER_OTLP_* say it, as all that the settings leave open.

    Raises ConfigError, in a line, for the first of these variables that is in use and makes no sense.
    """
    name, said = _variable(environ, "PROTOCOL")
    if not settings.protocol and said and said not in _PROTOCOLS:
        raise _nonsense(name, said, " or ".join(_PROTOCOLS))
    protocol = settings.protocol or _PROTOCOLS[said or "grpc"]
    if not settings.endpoint:
        _check_endpoint(environ, protocol)
    _check_rest(environ)
    endpoint = settings.endpoint.rstrip("/")
    if protocol == "http" and endpoint.count("/") == 2:  # no path: OTLP's own (OTLP/HTTP, "Endpoint URLs")
        endpoint += "/v1/traces"
    return protocol, endpoint


def _variable(environ: Mapping[str, str], what: str) -> tuple[str, str]:
    """The name of the variable that counts, that of traces first, and its value; ("", "") if none is set."""
    names = (f"{_PREFIX}TRACES_{what}", f"{_PREFIX}{what}")
    return next(((name, environ[name]) for name in names if environ.get(name)), ("", ""))


def _check_endpoint(environ: Mapping[str, str], protocol: str) -> None:
    name, said = _variable(environ, "ENDPOINT")
    # what gRPC takes beside URLs: a socket of this machine, and host:port
    address = "/" not in said and ":" in said and is_http_url(f"http://{said}")
    if not is_http_url(said) and not (protocol == "grpc" and (address or said.startswith("unix:"))):
        raise _nonsense(name, said, "http://host:port, or https")


def _check_rest(environ: Mapping[str, str]) -> None:
    name, said = _variable(environ, "TIMEOUT")
    try:
        good = not said or (isfinite(float(said)) and float(said) > 0)
    except ValueError:
        good = False
    if not good:
        raise _nonsense(name, said, "seconds, a number above 0")
    for what in _FILES:
        name, said = _variable(environ, what)
        if not said:
            continue
        try:
            with open(said, "rb") as file:
                pem = b"-----BEGIN " in file.read()
        except OSError as error:
            raise _nonsense(name, said, f"a PEM file that can be read ({error.strerror})") from error
        if not pem:
            raise _nonsense(name, said, "a PEM file, and that is none")


def _nonsense(name: str, said: str, expected: str) -> ConfigError:
    return ConfigError(f"{name} = {json.dumps(said)}: expected {expected}")
