from pathlib import Path

import pytest
from pydantic import ValidationError

from headrace.config import ENV_PREFIX, Settings, load_settings
from headrace.errors import ConfigError
from headrace.settings_sources import leaves


def test_defaults():
    settings = load_settings({}, {})
    assert settings == Settings()
    assert (settings.host, settings.grpc_port, settings.http_port) == ("127.0.0.1", 8001, 8000)
    assert settings.model_repository == Path("models")
    assert settings.http2.max_concurrent_streams == 256


def test_flags_beat_environment_beats_file(tmp_path):
    file = tmp_path / "headrace.toml"
    file.write_text('grpc_port = 1\nhttp_port = 2\nhost = "::1"\n[http2]\nkeepalive_s = 60\n')
    environ = {"HEADRACE_GRPC_PORT": "3", "HEADRACE_HTTP_PORT": "4", "HEADRACE_HTTP2__MAX_CONCURRENT_STREAMS": "5"}
    settings = load_settings({"config": file, "grpc_port": "6"}, environ)
    assert (settings.grpc_port, settings.http_port, settings.host) == (6, 4, "::1")
    assert (settings.http2.keepalive_s, settings.http2.max_concurrent_streams) == (60.0, 5)


def test_the_environment_may_name_the_file_and_a_flag_overrides_it(tmp_path):
    one, two = tmp_path / "one.toml", tmp_path / "two.toml"
    one.write_text("grpc_port = 1")
    two.write_text("grpc_port = 2")
    environ = {"HEADRACE_CONFIG": str(one), "PATH": "/bin"}
    assert load_settings({}, environ).grpc_port == 1
    assert load_settings({"config": two}, environ).grpc_port == 2


def test_every_setting_can_be_given_as_text():
    """Each default, spelled out, is a valid flag and a valid variable: nothing is reachable by file alone."""
    spelled = {".".join(s.path): str(s.field.default) for s in leaves(Settings)}
    assert load_settings(spelled, {}) == Settings()
    variables = {s.variable(ENV_PREFIX): str(s.field.default) for s in leaves(Settings)}
    assert load_settings({}, variables) == Settings()


def test_flags_are_distinct_and_described():
    settings = leaves(Settings)
    assert len({s.flag for s in settings}) == len(settings)
    assert all(s.field.description for s in settings)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"grpc_port": "65536"}, 'grpc_port = "65536" (from flag --grpc-port): expected an integer from 0 to 65535'),
        ({"host": ""}, 'host = "" (from flag --host): expected text that is not empty'),
        (
            {"drain_seconds": "inf"},
            'drain_seconds = "inf" (from flag --drain-seconds): expected a number from 0 to 1000000',
        ),
        (
            {"drain_seconds": "nan"},
            'drain_seconds = "nan" (from flag --drain-seconds): expected a number from 0 to 1000000',
        ),
        (
            {"transport": "grpcio"},
            'transport = "grpcio" (from flag --transport): expected one of "native", "reference"',
        ),
        ({"transport": "reference", "grpc_workers": "2"}, 'transport = "reference": expected grpc_workers = 0, not 2'),
    ],
)
def test_bad_values(flags, message):
    with pytest.raises(ConfigError) as error:
        load_settings(flags, {})
    assert str(error.value) == message


@pytest.mark.parametrize("line", ['grpc_port = "8001"', "grpc_port = true", "host = 1", 'drain_seconds = "1"'])
def test_a_file_is_taken_by_its_types(tmp_path, line):
    file = tmp_path / "headrace.toml"
    file.write_text(line)
    with pytest.raises(ConfigError, match=r"headrace.toml\): expected (an integer|a number|text)"):
        load_settings({"config": file}, {})


def test_a_message_must_fit_into_what_a_connection_may_buffer():
    with pytest.raises(ConfigError, match=r"http2.max_buffered_bytes = 67108864 is below max_message_bytes = 67108865"):
        load_settings({"max_message_bytes": str((64 << 20) + 1)}, {})
    assert load_settings({"max_message_bytes": "100", "http2.max_buffered_bytes": "100"}, {}).max_message_bytes == 100


TLS = {"tls.certificate": "server.pem"}


@pytest.mark.parametrize("name", ["key", "key_password_file", "client_ca"])
def test_tls_begins_with_a_certificate(name):
    with pytest.raises(ConfigError, match=rf'^tls.{name} = "x.pem": expected tls.certificate with it \(from flag'):
        load_settings({f"tls.{name}": "x.pem"}, {})
    assert getattr(load_settings({**TLS, f"tls.{name}": "x.pem"}, {}).tls, name) == "x.pem"


@pytest.mark.parametrize(
    ("ports", "secured"), [("both", (True, True)), ("grpc", (True, False)), ("http", (False, True))]
)
def test_which_ports_speak_tls(ports, secured):
    settings = load_settings({**TLS, "tls.ports": ports}, {})
    assert (settings.secures("grpc"), settings.secures("http")) == secured
    settings = load_settings({"tls.ports": ports}, {})
    assert (settings.secures("grpc"), settings.secures("http")) == (False, False)


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.0.2.1", False),
        ("localhost.example.org", False),
    ],
)
def test_plain_text_beyond_this_machine_can_be_forbidden(host, local):
    assert load_settings({"host": host}, {}).local is local
    required = {"host": host, "tls.require": "true"}
    load_settings({**required, **TLS}, {})
    for flags in (required, {**required, **TLS, "tls.ports": "grpc"}):
        if local:
            load_settings(flags, {})
            continue
        with pytest.raises(ConfigError, match=rf'^tls.require = true and host = "{host}": expected tls.certificate'):
            load_settings(flags, {})


@pytest.mark.parametrize(
    "flags",
    [
        {"tls.minimum_version": "1.3"},
        {"tls.client_ca": "ca.pem", "tls.client_certificates": "optional"},
        {"tls.key_password_file": "password"},
    ],
)
def test_what_grpcio_cannot_do(flags):
    load_settings({**TLS, **flags}, {})
    load_settings({**TLS, **flags, "transport": "reference", "tls.ports": "http"}, {})
    name = next(reversed(flags))
    with pytest.raises(ConfigError, match=rf'^transport = "reference": grpcio cannot do what {name} asks for'):
        load_settings({**TLS, **flags, "transport": "reference"}, {})
    assert load_settings({**TLS, "transport": "reference"}, {}).secures("grpc")


def test_settings_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Settings().grpc_port = 1
    with pytest.raises(ValidationError, match="frozen"):
        Settings().http2.keepalive_s = 1.0
