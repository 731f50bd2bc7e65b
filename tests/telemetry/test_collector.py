"""Where traces go, and that variables and settings which make no sense are told at the start."""

import pytest

from headrace.config import TracingSettings, load_settings
from headrace.errors import ConfigError
from headrace.telemetry.collector import ignored, target, wants_traces

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
TRACES_ENDPOINT = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
PROTOCOL = "OTEL_EXPORTER_OTLP_PROTOCOL"
URL = "http://c:4317"


@pytest.mark.parametrize(
    ("endpoint", "environ", "wanted"),
    [
        ("", {}, False),
        ("http://c:4317", {}, True),
        ("", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317"}, True),
        ("", {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4317"}, True),
        ("http://c:4317", {"OTEL_SDK_DISABLED": "TRUE"}, False),
        ("http://c:4317", {"OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_traces_are_wanted_where_they_have_somewhere_to_go(endpoint, environ, wanted):
    assert wants_traces(TracingSettings(endpoint=endpoint), environ) is wanted


@pytest.mark.parametrize(
    ("endpoint", "protocol", "environ", "where"),
    [
        ("http://c:4318", "http", {}, ("http", "http://c:4318/v1/traces")),
        ("http://c:4318/other/", "http", {}, ("http", "http://c:4318/other")),
        ("http://c:4318", "", {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, ("http", "http://c:4318/v1/traces")),
        ("http://c:4317", "", {}, ("grpc", "http://c:4317")),
        ("http://c:4317", "grpc", {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, ("grpc", "http://c:4317")),
        ("", "", {ENDPOINT: URL, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"}, ("http", "")),
    ],
)
def test_where_spans_go(endpoint, protocol, environ, where):
    assert target(TracingSettings(endpoint=endpoint, protocol=protocol), environ) == where


@pytest.mark.parametrize(
    "environ",
    [
        {ENDPOINT: "c:4317"},
        {ENDPOINT: "unix:/run/otel.sock"},
        {ENDPOINT: "https://[::1]:4317/"},
        {ENDPOINT: "nonsense", TRACES_ENDPOINT: URL},
        {ENDPOINT: URL, PROTOCOL: "http/json", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"},
        {ENDPOINT: URL, "OTEL_EXPORTER_OTLP_TIMEOUT": "2.5"},
    ],
)
def test_what_opentelemetry_allows_is_taken(environ):
    assert target(TracingSettings(), environ) == ("grpc", "")


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({ENDPOINT: "bogus"}, f'{ENDPOINT} = "bogus": expected http://host:port, or https'),
        ({ENDPOINT: "ftp://c:1"}, f'{ENDPOINT} = "ftp://c:1": expected http://host:port, or https'),
        ({ENDPOINT: "http://"}, f'{ENDPOINT} = "http://": expected http://host:port, or https'),
        ({ENDPOINT: "http://c:99999"}, f'{ENDPOINT} = "http://c:99999": expected http://host:port, or https'),
        ({ENDPOINT: "c:99999"}, f'{ENDPOINT} = "c:99999": expected http://host:port, or https'),
        (
            {ENDPOINT: "c:4318", PROTOCOL: "http/protobuf"},  # HTTP knows no such form
            f'{ENDPOINT} = "c:4318": expected http://host:port, or https',
        ),
        ({ENDPOINT: URL, TRACES_ENDPOINT: "x"}, f'{TRACES_ENDPOINT} = "x": expected http://host:port, or https'),
        ({ENDPOINT: URL, PROTOCOL: "http/json"}, f'{PROTOCOL} = "http/json": expected grpc or http/protobuf'),
        (
            {ENDPOINT: URL, "OTEL_EXPORTER_OTLP_TIMEOUT": "abc"},
            'OTEL_EXPORTER_OTLP_TIMEOUT = "abc": expected seconds, a number above 0',
        ),
        (
            {ENDPOINT: URL, "OTEL_EXPORTER_OTLP_TIMEOUT": "-1"},
            'OTEL_EXPORTER_OTLP_TIMEOUT = "-1": expected seconds, a number above 0',
        ),
        (
            {ENDPOINT: URL, "OTEL_EXPORTER_OTLP_CERTIFICATE": "/nope"},
            'OTEL_EXPORTER_OTLP_CERTIFICATE = "/nope": expected a PEM file that can be read '
            "(No such file or directory)",
        ),
        (
            {ENDPOINT: URL, "OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY": __file__.replace("test_collector", "test_spans")},
            "a PEM file, and that is none",
        ),
    ],
)
def test_a_variable_that_makes_no_sense_is_named_with_what_is_expected(environ, message):
    with pytest.raises(ConfigError) as caught:
        target(TracingSettings(), environ)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_the_settings_say_is_not_looked_for_in_variables():
    settings = TracingSettings(endpoint=URL, protocol="grpc")
    assert target(settings, {ENDPOINT: "bogus", PROTOCOL: "http/json"}) == ("grpc", URL)


def test_a_protocol_without_an_endpoint_is_a_mistake():
    settings = TracingSettings(protocol="http")
    with pytest.raises(ConfigError, match=r'^tracing.protocol = "http", and no endpoint is set: expected tracing.end'):
        wants_traces(settings, {})
    assert not wants_traces(settings, {"OTEL_SDK_DISABLED": "true"})


@pytest.mark.parametrize(
    "endpoint", ["nonsense", "collector:4317", "http://c:99999", "http://c:0", "http://c:x", "http://a b"]
)
def test_an_endpoint_is_a_url(endpoint):
    with pytest.raises(ConfigError) as caught:
        load_settings({}, {"HEADRACE_TRACING__ENDPOINT": endpoint})
    assert str(caught.value) == (
        f'tracing.endpoint = "{endpoint}" (from environment variable HEADRACE_TRACING__ENDPOINT): '
        "expected http://host:port, or https"
    )


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("OTEL_TRACES_SAMPLER", "always_off", "OTEL_TRACES_SAMPLER is ignored: tracing.ratio"),
        ("OTEL_TRACES_SAMPLER_ARG", "0.5", "OTEL_TRACES_SAMPLER_ARG is ignored: tracing.ratio"),
        ("OTEL_TRACES_EXPORTER", "console", 'OTEL_TRACES_EXPORTER = "console" is ignored: expected otlp or none'),
        ("OTEL_BSP_SCHEDULE_DELAY", "5", "OTEL_BSP_SCHEDULE_DELAY is ignored"),
        ("OTEL_PROPAGATORS", "b3", 'OTEL_PROPAGATORS = "b3" is ignored'),
        ("OTEL_RESOURCE_ATTRIBUTES", "a=1,foo", 'OTEL_RESOURCE_ATTRIBUTES: "foo" is ignored: expected key=value'),
        ("OTEL_RESOURCE_ATTRIBUTES", "=1", 'OTEL_RESOURCE_ATTRIBUTES: "=1" is ignored'),
    ],
)
def test_what_is_ignored_is_told(name, value, told):
    (line,) = ignored({name: value}, exported=True)
    assert line.startswith(told)
    assert ignored({name: value}, exported=False) == ([line] if name == "OTEL_TRACES_EXPORTER" else [])


def test_nothing_is_told_of_what_is_respected():
    assert not ignored({}, exported=True)
    said = {
        "OTEL_TRACES_EXPORTER": "otlp", "OTEL_PROPAGATORS": "tracecontext,baggage", "OTEL_TRACES_SAMPLER": "",
        "OTEL_RESOURCE_ATTRIBUTES": "a=1, b=x=y,", "OTEL_SERVICE_NAME": "x",
    }  # fmt: skip
    assert not ignored(said, exported=True)
    assert not ignored({"OTEL_TRACES_EXPORTER": "none"}, exported=False)
