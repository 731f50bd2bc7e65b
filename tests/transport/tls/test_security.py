import asyncio
import contextlib
import logging
import os
import signal
import ssl
from datetime import UTC, datetime

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from transport.tls.certificates import issue

from headrace.config import Settings
from headrace.errors import ConfigError
from headrace.testing.loop import VirtualTimeLoop
from headrace.transport.tls import security as module
from headrace.transport.tls.security import Security

SECOND = 10**9
BEFORE, AFTER = datetime(2026, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)
NOW = int(datetime(2026, 6, 1, tzinfo=UTC).timestamp() * 1000)


@pytest.fixture(autouse=True)
def log(caplog):
    caplog.set_level(logging.INFO)
    return caplog


@pytest.fixture
def files(tmp_path):
    return issue(tmp_path, "server", not_before=BEFORE, not_after=AFTER)


@pytest.fixture
def loop():
    made = VirtualTimeLoop()
    problems = []
    made.set_exception_handler(lambda loop, context: problems.append(context))
    yield made
    made.close()
    assert not problems, problems


def secure(files=None, wall=NOW, transport="native", **tls):
    registry = CollectorRegistry()
    settings = Settings(transport=transport, tls=(files.settings(**tls) if files else tls))
    return Security(settings, registry, lambda: wall), registry


def said(log, level):
    return [record.getMessage() for record in log.records if record.levelno == level]


def renew(files, **options):
    issue(files.chain.parent, files.chain.stem, **options)


# --- what is made of the settings -------------------------------------------------------------------------------------


def test_without_a_certificate_there_is_nothing(loop):
    security, registry = secure()
    assert (security.grpc, security.http, security.credentials) == (None, None, None)
    assert b"tls" not in generate_latest(registry)
    assert repr(security) == "<Security plain text>"

    async def life():
        security.start()
        await security.close()

    loop.run_until_complete(life())


@pytest.mark.parametrize(
    ("ports", "transport", "made"),
    [
        ("both", "native", ("grpc", "http")),
        ("grpc", "native", ("grpc",)),
        ("http", "native", ("http",)),
        ("both", "reference", ("http",)),  # grpcio has its own, from the same credentials
    ],
)
def test_which_ports_speak_it(files, ports, transport, made):
    security, _ = secure(files, ports=ports, transport=transport)
    assert tuple(port.name for port in (security.grpc, security.http) if port) == made
    assert security.credentials.chain == files.chain.read_bytes()


def test_the_grpc_port_insists_on_http_2(files):
    security, _ = secure(files, handshake_timeout_s=3)
    assert (security.grpc.alpn, security.http.alpn) == ("h2", None)
    assert (security.grpc.timeout_s, security.http.timeout_s) == (3, 3)


def test_files_that_are_no_good_are_an_error_of_configuration(files):
    files.key.write_text("")
    with pytest.raises(ConfigError, match=r"^tls.key = "):
        secure(files)


@pytest.mark.parametrize(
    ("wall", "level", "text"),
    [
        (NOW, logging.INFO, "the certificate is in use"),
        (BEFORE.timestamp() * 1000 - 1, logging.WARNING, "the certificate is not valid yet: clients will refuse it"),
        (AFTER.timestamp() * 1000 + 1, logging.WARNING, "the certificate has expired: clients will refuse it"),
    ],
)
def test_dates(files, log, wall, level, text):
    security, registry = secure(files, wall)
    assert said(log, level) == [text]
    assert log.records[0].not_after == "2027-01-01T00:00:00Z"
    assert log.records[0].sha256 == security.credentials.sha256
    expiry = registry.get_sample_value("headrace_tls_certificate_expiry_timestamp_seconds")
    assert expiry == AFTER.timestamp()


# --- what the log says ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_plain_text_that_others_can_reach_is_a_warning(log, host):
    Security(Settings(host=host), CollectorRegistry()).announce()
    warnings = said(log, logging.WARNING)
    assert [text.partition(":")[0] for text in warnings] == ["gRPC", "HTTP"]
    assert all(f"plain text on {host}:" in text and "tls.certificate" in text for text in warnings)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_plain_text_on_loopback_is_said(log, host):
    Security(Settings(host=host), CollectorRegistry()).announce()
    assert said(log, logging.WARNING) == []
    assert said(log, logging.INFO) == [
        f"{port}: plain text, which does not leave this machine" for port in ("gRPC", "HTTP")
    ]


def test_tls_on_one_port(files, log):
    tls = files.settings(ports="grpc", client_ca=str(files.ca), minimum_version="1.3")
    security = Security(Settings(host="0.0.0.0", tls=tls), CollectorRegistry())
    log.clear()
    security.announce()
    assert said(log, logging.INFO) == ["gRPC: TLS 1.3 or later, client certificates required"]
    assert [text[:4] for text in said(log, logging.WARNING)] == ["HTTP"]


# --- reload -----------------------------------------------------------------------------------------------------------


def test_a_new_certificate_is_taken(files, log):
    security, registry = secure(files)
    contexts = security.grpc.context, security.http.context
    asyncio.run(security.look())
    assert (security.grpc.context, security.http.context) == contexts
    first = security.credentials
    renew(files, not_after=datetime(2028, 1, 1, tzinfo=UTC))
    log.clear()
    asyncio.run(security.look())
    assert security.credentials.sha256 != first.sha256
    assert security.grpc.context not in contexts
    assert security.http.context not in contexts
    assert security.grpc.context is not security.http.context  # each offers its own protocol
    assert said(log, logging.INFO) == ["the certificate is in use"]
    assert registry.get_sample_value("headrace_tls_reloads_total", {"result": "done"}) == 1
    expiry = registry.get_sample_value("headrace_tls_certificate_expiry_timestamp_seconds")
    assert expiry == datetime(2028, 1, 1, tzinfo=UTC).timestamp()


def test_one_that_is_no_good_is_not(files, log):
    """It is said once, not at each look; the old pair stays until a good one is there."""
    security, registry = secure(files)
    first, context = security.credentials, security.grpc.context
    key = files.key.read_bytes()
    renew(files)
    fresh = files.key.read_bytes()
    files.key.write_bytes(key)
    log.clear()
    for _ in range(3):
        asyncio.run(security.look())
    assert security.credentials is first
    assert security.grpc.context is context
    (error,) = said(log, logging.ERROR)
    assert f'those in use stay: tls.key = "{files.key}": is not the key of the certificate in {files.chain}' in error
    assert registry.get_sample_value("headrace_tls_reloads_total", {"result": "failed"}) == 1
    asyncio.run(security.look(asked=True))
    assert registry.get_sample_value("headrace_tls_reloads_total", {"result": "failed"}) == 2
    files.key.write_bytes(fresh)
    asyncio.run(security.look())
    assert security.credentials.sha256 != first.sha256


def test_files_that_are_gone_for_a_while(files, log):
    security, _ = secure(files)
    files.chain.rename(files.chain.with_suffix(".old"))
    asyncio.run(security.look())
    assert "cannot be read" in said(log, logging.ERROR)[0]
    files.chain.with_suffix(".old").rename(files.chain)
    log.clear()
    asyncio.run(security.look())
    assert said(log, logging.ERROR) == []
    assert said(log, logging.INFO) == ["the certificate is in use"]


def started(loop, files, **tls):
    async def start():
        security, _ = secure(files, **tls)
        security.start()
        return security

    return loop.run_until_complete(start())


def test_the_files_are_watched(loop, files, monkeypatch):
    security = started(loop, files, reload_s=10)
    first = security.credentials
    renew(files)
    loop.run_for(10 * SECOND - 1)
    assert security.credentials is first
    loop.run_for(1)
    second = security.credentials
    assert second is not first
    renew(files)
    loop.run_for(10 * SECOND)
    assert security.credentials is not second
    loop.run_until_complete(security.close())
    renew(files)
    loop.run_for(100 * SECOND)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


def test_a_look_that_fails_is_not_the_last(loop, files, log, monkeypatch):
    security = started(loop, files, reload_s=10)
    first = security.credentials
    monkeypatch.setattr(module.files, "stamp", lambda settings: 1 / 0)
    loop.run_for(10 * SECOND)
    assert said(log, logging.ERROR) == ["TLS files could not be looked at"]
    monkeypatch.undo()
    renew(files)
    loop.run_for(10 * SECOND)
    assert security.credentials is not first
    loop.run_until_complete(security.close())


def test_sighup_asks_for_a_reload(files):
    """At once, even where nothing has changed; the only way with reload_s = 0."""

    async def main():
        security, _ = secure(files, reload_s=0)
        security.start()
        taken = asyncio.Event()
        take = security._take
        security._take = lambda *reading: (take(*reading), taken.set())
        for _ in range(2):
            taken.clear()
            os.kill(os.getpid(), signal.SIGHUP)
            await asyncio.wait_for(taken.wait(), 20)
        await security.close()
        await security.close()

    asyncio.run(main())


def test_a_reload_that_others_hear_of(loop, files):
    """Workers are told once the files are known to be good."""

    async def main():
        security, _ = secure(files, reload_s=0)
        told = []
        security.reloaded = lambda: told.append(security.metrics.reloads["done"])
        security.start()
        key = files.key.read_bytes()
        for octets in (b"-----BEGIN PRIVATE KEY-----\n", key):
            files.key.write_bytes(octets)
            security.reload()
            await asyncio.sleep(1)
        assert (told, dict(security.metrics.reloads)) == ([1], {"done": 1, "failed": 1})
        await security.close()

    loop.run_until_complete(main())


def test_one_that_follows_reads_again_when_it_is_told(loop, files):
    """A worker has no signals of its own, and does not look by itself: it would say the same as the engine again."""

    async def main():
        security, _ = secure(files, reload_s=0.01)
        security.start(follows=True)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
        issue(files.chain.parent, "server")
        await asyncio.sleep(60)
        assert not security.metrics.reloads["done"]
        security.reload()
        await asyncio.sleep(1)
        assert security.metrics.reloads["done"] == 1
        await security.close()

    loop.run_until_complete(main())


def test_contexts_have_what_their_port_offers(files):
    """Seen from outside: a client that could choose either gets the port's own."""
    security, _ = secure(files)
    for port, protocol in ((security.grpc, "h2"), (security.http, "http/1.1")):
        assert chosen(port.context, files, ["http/1.1", "h2"]) == protocol
        assert chosen(port.context, files, ["spdy/1"]) is None


def chosen(server_context, files, offered):
    client_context = ssl.create_default_context(cafile=files.ca)
    client_context.verify_flags |= 0x200000  # X509_V_FLAG_NO_CHECK_TIME
    client_context.set_alpn_protocols(offered)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server, server_hostname="localhost")
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    for side in (client, server, client, server):
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    return server.selected_alpn_protocol()
