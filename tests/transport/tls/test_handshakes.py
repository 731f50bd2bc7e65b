"""Handshakes that fail: what the client is told, what is counted, and what becomes of the others."""

import contextlib
import logging
import ssl

import pytest
from transport.tls.bench import SECOND, Buffered, Plain, benches
from transport.tls.certificates import OTHERS, OURS, client_context, issue

from headrace.config import TlsSettings
from headrace.transport.tls.files import load
from headrace.transport.tls.layer import PLAIN_TEXT_ANSWER


def refused(bench, client):
    """The client was told, and the server does not wait for long; the protocol never heard of it."""
    assert client.socket.ended
    assert not client.socket.lost
    client.put(b"what comes now is dropped")
    bench.loop.run_for(SECOND)
    assert client.socket.lost
    assert client.app.transport is None
    assert client.app.events == []
    return bench.failures


def test_plain_text(bench):
    client = bench.connect()
    client.put(b"GET / HTTP/1.1\r\n\r\n")
    assert client.socket.written == PLAIN_TEXT_ANSWER
    assert b"\r\n\r\nthis port speaks TLS\n" in PLAIN_TEXT_ANSWER
    assert refused(bench, client) == {"plain_text": 1}


def test_a_handshake_that_is_nonsense(bench):
    client = bench.connect()
    client.put(b"\x16\x03\x01\x00\x05hello")
    assert client.socket.written[:1] == b"\x15"  # an alert
    assert refused(bench, client) == {"protocol": 1}


def test_no_alpn(bench):
    for alpn in ((), ("http/1.1",)):
        client = bench.connect(context=client_context(alpn=alpn)).shake()
        assert client.closed
        refused(bench, client)
    assert bench.failures == {"alpn": 2}


def test_a_port_that_asks_for_no_protocol(tmp_path):
    with benches(tmp_path, alpn=None) as bench:
        bench.connect(app := Plain(), client_context(alpn=())).shake()
        assert app.transport is not None


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
def test_old_versions(bench):
    context = client_context()
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    client = bench.connect(context=context)
    with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
        client.shake()
    assert refused(bench, client) == {"version": 1}


def test_tls_12(bench, app):
    context = client_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    client = bench.connect(app, context).shake()
    client.send(b"a question")
    assert app.data == b"a question"
    assert bench.metrics.handshakes == {("grpc", "TLSv1.2"): 1}


def test_tls_12_where_13_is_asked_for(tmp_path):
    with benches(tmp_path, minimum_version="1.3") as bench:
        context = client_context()
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        client = bench.connect(context=context)
        with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
            client.shake()
        assert refused(bench, client) == {"version": 1}


def test_ciphers_that_http_2_forbids(bench):
    context = client_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE+AES+SHA256:AES+SHA256")  # CBC, and RSA without an ephemeral key
    client = bench.connect(context=context)
    with pytest.raises(ssl.SSLError, match="HANDSHAKE_FAILURE"):
        client.shake()
    assert refused(bench, client) == {"cipher": 1}


def test_a_client_that_does_not_trust_us(bench):
    client = bench.connect(context=client_context(trusts=OTHERS))
    with pytest.raises(ssl.SSLCertVerificationError):
        client.shake()
    client.put(client.outgoing.read())
    assert refused(bench, client) == {"alert": 1}


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("mode", ["required", "optional"])
@pytest.mark.parametrize("shown", ["none", "ours", "another's"])
def test_client_certificates(tmp_path, version, mode, shown):
    ca = issue(tmp_path, "server").ca
    with benches(tmp_path, client_ca=str(ca), client_certificates=mode) as bench:
        by = {"none": None, "ours": OURS, "another's": OTHERS}[shown]
        certificate = by and issue(tmp_path, "client", "me@example.org", by=by)
        context = client_context(certificate)
        context.maximum_version = version
        client = bench.connect(app := Plain(), context)
        expected = {"none": "no_client_certificate" if mode == "required" else None, "ours": None}
        reason = expected.get(shown, "client_certificate")
        with contextlib.suppress(ssl.SSLError) if reason else contextlib.nullcontext():
            client.shake()
        if reason:
            assert refused(bench, client) == {reason: 1}
        else:
            assert app.transport is not None
            assert bool(app.transport.get_extra_info("peercert")) is (shown == "ours")


@pytest.mark.parametrize("sent", [0, 1, 100])
def test_a_client_that_falls_silent(bench, sent):
    client = bench.connect()
    with contextlib.suppress(ssl.SSLWantReadError):
        client.tls.do_handshake()
    client.put(client.outgoing.read()[:sent])
    bench.loop.run_for(10 * SECOND - 1)
    assert not client.socket.lost
    bench.loop.run_for(1)
    assert client.socket.lost
    assert bench.failures == {"timeout": 1}


@pytest.mark.parametrize("sent", [0, 100, None])
def test_a_client_that_goes_away(bench, sent):
    """Without a word it has only asked whether the port is open, as load balancers do: no failure."""
    client = bench.connect()
    with contextlib.suppress(ssl.SSLWantReadError):
        client.tls.do_handshake()
    client.put(client.outgoing.read()[:sent])
    client.hang_up()
    assert bench.failures == ({} if sent == 0 else {"closed": 1})
    assert not bench.port.handshakes


def test_too_many_handshakes(bench):
    """The oldest makes room, so that those who do nothing keep nobody out; open connections leave fewer places."""
    bench.port.most = 50
    idle = [bench.connect() for _ in range(50)]
    for _ in range(60):
        bench.connect().shake()
    bench.loop.run_until_idle()
    assert [client.socket.lost for client in idle] == [True] * 19 + [False] * 31  # and one more may always begin
    assert bench.failures == {"crowded": 19}
    assert bench.port.open == 60
    idle[-1].shake()
    assert idle[-1].app.transport is not None
    assert "61 connections, 30 handshakes" in repr(bench.port)


def test_one_connections_failure_leaves_the_others_alone(bench):
    apps = [Buffered() for _ in range(3)]
    clients = [bench.connect(app) for app in apps]
    clients[0].put(b"nonsense")
    for client, app in zip(clients[1:], apps[1:], strict=True):
        client.shake().send(b"m")
        assert app.data == b"m"


def test_the_port_closes(bench):
    """Handshakes end; connections that are open are their protocols' to end."""
    under_way, silent, done = (bench.connect() for _ in range(3))
    with contextlib.suppress(ssl.SSLWantReadError):
        under_way.tls.do_handshake()
    under_way.put(under_way.outgoing.read())
    done.shake()
    assert "2 handshakes" in repr(bench.port)
    assert "handshake" in repr(under_way.connection)
    bench.port.close()
    bench.loop.run_until_idle()
    assert [client.socket.lost for client in (under_way, silent, done)] == [True, True, False]
    assert bench.failures == {}
    done.socket.abort()


def test_a_new_certificate_is_for_new_connections(bench, tmp_path):
    old = bench.connect(before := Buffered()).shake()
    first = old.tls.getpeercert(binary_form=True)
    fresh = issue(tmp_path, "next")
    bench.port.context = load(TlsSettings(**fresh.settings())).context("h2")
    new = bench.connect().shake()
    assert new.tls.getpeercert(binary_form=True) != first
    old.send(b"still here")
    assert before.data == b"still here"


def test_the_log_hears_of_each_cause_once_a_minute(bench, caplog):
    caplog.set_level(logging.DEBUG)

    def fail(octets):
        client = bench.connect()
        client.put(octets)
        return [(record.levelname, record.reason) for record in caplog.records]

    assert fail(b"x") == [("INFO", "plain_text")]
    for _ in range(3):
        said = fail(b"x")
    assert said == [("INFO", "plain_text")] + 3 * [("DEBUG", "plain_text")]
    assert fail(b"\x16\x03\x01\x00\x05hello")[-1] == ("INFO", "protocol")
    bench.loop.run_for(60 * SECOND)
    assert fail(b"x")[-1] == ("INFO", "plain_text")
    assert bench.failures == {"plain_text": 5, "protocol": 1}
