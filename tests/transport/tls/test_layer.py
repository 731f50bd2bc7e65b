"""The layer without sockets: OpenSSL's own client on the one side, protocols that note what comes on the other."""

import asyncio
import contextlib
import logging
import ssl

import pytest
from prometheus_client import CollectorRegistry
from transport.http2.bench import Socket
from transport.tls.certificates import OTHERS, OURS, client_context, issue

from headrace.config import TlsSettings
from headrace.telemetry.tls import TlsMetrics
from headrace.testing.loop import VirtualTimeLoop
from headrace.transport.tls.files import load
from headrace.transport.tls.layer import PLAIN_TEXT_ANSWER, TlsPort

SECOND = 10**9


class App:
    """What a protocol sees. `script` is called with each piece of data."""

    def __init__(self):
        self.transport = None
        self.data = b""
        self.pieces = []
        self.events = []
        self.script = lambda data: None

    def connection_made(self, transport):
        self.transport = transport

    def connection_lost(self, exc):
        self.events.append("lost")

    def eof_received(self):
        self.events.append("eof")

    def pause_writing(self):
        self.events.append("pause")

    def resume_writing(self):
        self.events.append("resume")

    def _take(self, data):
        assert "lost" not in self.events
        self.data += data
        self.pieces.append(len(data))
        self.script(data)


class Plain(App, asyncio.Protocol):
    def data_received(self, data):
        assert type(data) is bytes
        self._take(data)


class Buffered(App, asyncio.BufferedProtocol):
    def __init__(self, size=256 << 10):
        super().__init__()
        self.buffer = bytearray(size)

    def get_buffer(self, sizehint):
        return self.buffer

    def buffer_updated(self, nbytes):
        self._take(bytes(self.buffer[:nbytes]))


class Client:
    """One connection: OpenSSL's client in memory, and the server's end of it."""

    def __init__(self, port, app, loop, context):
        self.app, self.loop = app, loop
        self.received = b""
        self.closed = False
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")
        self.connection = port.protect(app)
        self.socket = Socket(loop, self.connection)
        self.connection.connection_made(self.socket)

    def put(self, octets):
        """Octets as they are, in one read of the server's after another."""
        while octets:
            room = memoryview(self.connection.get_buffer(-1))
            part, octets = octets[: len(room)], octets[len(room) :]
            room[: len(part)] = part
            self.loop.call_soon(self.connection.buffer_updated, len(part))
            self.loop.run_until_idle()

    def pump(self):
        """Carries both ways what is there; reads what the client can read."""
        while True:
            self.put(self.outgoing.read())
            self.loop.run_until_idle()
            written, self.socket.written = self.socket.written, b""
            if not written:
                return self
            self.incoming.write(written)
            try:
                self.tls.do_handshake()
                while not self.closed:
                    read = self.tls.read(1 << 20)
                    self.closed = not read
                    self.received += read
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLZeroReturnError:  # a close_notify in answer to ours
                self.closed = True

    def shake(self):
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()
        return self.pump()

    def send(self, data):
        self.tls.write(data)
        return self.pump()

    def hang_up(self):
        """Ends the connection without a word."""
        if not self.connection.eof_received():
            self.socket.abort()
        self.loop.run_until_idle()


class Bench:
    def __init__(self, directory, alpn="h2", **settings):
        self.loop = VirtualTimeLoop()
        self.metrics = TlsMetrics(CollectorRegistry())
        self.files = issue(directory, "server")
        self.credentials = load(TlsSettings(**self.files.settings(**settings)))
        self.port = TlsPort("grpc", self.credentials.context("h2"), self.metrics, alpn=alpn, timeout_s=10)

    def connect(self, app=None, context=None):
        async def made():
            return Client(self.port, app or Buffered(), self.loop, context or client_context())

        return self.loop.run_until_complete(made())

    @property
    def failures(self):
        return {reason: count for (_, reason), count in self.metrics.failures.items() if count}


@pytest.fixture
def bench(tmp_path):
    with benches(tmp_path) as made:
        yield made


@contextlib.contextmanager
def benches(directory, **settings):
    made = Bench(directory, **settings)
    problems = []
    made.loop.set_exception_handler(lambda loop, context: problems.append(context))
    try:
        yield made
        made.port.close()
        made.loop.run_for(2 * SECOND)
        assert not made.port.handshakes
        assert not problems, problems
    finally:
        made.loop.close()


@pytest.fixture(params=[Plain, Buffered])
def app(request):
    return request.param()


# --- what goes through ------------------------------------------------------------------------------------------------


def test_both_ways(bench, app):
    client = bench.connect(app)
    assert app.transport is None
    client.shake()
    assert app.transport is client.connection
    client.send(b"a question")
    assert app.data == b"a question"
    app.transport.write(b"an answer")
    assert client.pump().received == b"an answer"
    assert bench.metrics.handshakes == {("grpc", "TLSv1.3"): 1}
    assert bench.failures == {}
    assert repr(app) in repr(client.connection)


def test_one_octet_at_a_time(bench, app):
    client = bench.connect(app)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.tls.do_handshake()
    for octet in client.outgoing.read():
        client.put(bytes([octet]))
    client.pump()
    client.tls.write(b"a question")
    for octet in client.outgoing.read():
        client.put(bytes([octet]))
    assert app.data == b"a question"


def test_data_behind_the_handshake(bench, app):
    """In the same read as the client's Finished."""
    client = bench.connect(app)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.tls.do_handshake()
    client.put(client.outgoing.read())
    client.incoming.write(client.socket.written)
    client.socket.written = b""
    client.tls.do_handshake()
    client.tls.write(b"early")
    client.put(client.outgoing.read())
    assert app.data == b"early"


@pytest.mark.parametrize("size", [1000, 16_384, 100_000, 256 << 10])
def test_large_messages(bench, size):
    """Into a buffer smaller than a record, of a record's size, and larger; each read is handed up at once."""
    app = Buffered(size)
    client = bench.connect(app).shake()
    message = bytes(range(256)) * 4096
    client.send(message)
    assert app.data == message
    assert max(app.pieces) <= size
    if size > 1 << 17:
        assert len(app.pieces) <= 10
    app.transport.write(memoryview(message))
    app.transport.write(b"")
    assert client.pump().received == message


def test_openssls_buffers_stay_small(bench):
    """They never shrink: a reply of any size goes through in pieces."""
    client = bench.connect().shake()
    sizes = []
    write = client.socket.write
    client.socket.write = lambda data: (sizes.append(len(data)), write(data))
    client.connection.write(bytes(1 << 20))
    assert max(sizes) < 70_000
    assert len(client.pump().received) == 1 << 20


def test_a_pause_in_the_middle_of_a_read(bench, app):
    """What has been read already waits too, and comes in order."""
    if isinstance(app, Buffered):
        app.buffer = bytearray(1000)
    client = bench.connect(app).shake()
    app.script = lambda data: app.transport.pause_reading()
    message = bytes(range(250)) * 400
    client.tls.write(message)
    client.put(client.outgoing.read())
    while len(app.data) < len(message):
        assert app.transport.is_reading() is False
        assert client.socket.reading is False
        before = len(app.data)
        app.transport.resume_reading()
        assert client.socket.reading is True
        bench.loop.run_until_idle()
        assert len(app.data) > before
    assert app.data == message


def test_the_sockets_pace_is_the_protocols(bench, app):
    client = bench.connect(app)
    client.connection.pause_writing()  # nobody to tell yet
    client.connection.resume_writing()
    client.shake()
    client.connection.pause_writing()
    client.connection.resume_writing()
    assert app.events == ["pause", "resume"]
    client.socket.unsent = 7
    assert client.connection.get_write_buffer_size() == 7


def test_what_is_known_of_the_client(tmp_path):
    """The identity in its certificate, and that there is TLS at all."""
    with benches(tmp_path, client_ca=str(issue(tmp_path, "server").ca)) as bench:
        shown = issue(tmp_path, "client", "somebody@example.org")
        client = bench.connect(context=client_context(shown))
        assert client.connection.get_extra_info("ssl_object") is None
        client.shake()
        info = client.connection.get_extra_info
        assert info("peercert")["subjectAltName"] == (("email", "somebody@example.org"),)
        assert info("cipher")[1] == "TLSv1.3"
        assert info("sslcontext") is bench.port.context
        assert info("ssl_object").version() == "TLSv1.3"
        assert info("peername", "nobody") == "nobody"


# --- how it ends ------------------------------------------------------------------------------------------------------


def test_the_sending_half_ends_first(bench, app):
    """What the client still sends is dropped, and it is told in TLS's terms and in TCP's."""
    client = bench.connect(app).shake()
    app.transport.write(b"farewell")
    app.transport.write_eof()
    assert app.transport.can_write_eof()
    assert client.socket.ended
    assert not app.transport.is_closing()
    app.transport.write(b"nothing")
    client.pump()
    assert client.received == b"farewell"
    assert client.closed
    client.tls.write(b"still here")
    client.put(client.outgoing.read())
    assert app.data == b""
    client.hang_up()
    assert app.events == ["lost"]


def test_it_is_closed_here(bench, app):
    client = bench.connect(app).shake()
    app.transport.write(b"farewell")
    app.transport.close()
    app.transport.close()
    assert app.transport.is_closing()
    assert client.pump().received == b"farewell"
    assert client.closed
    assert app.events == ["lost"]


def test_it_is_aborted_here(bench, app):
    client = bench.connect(app).shake()
    app.transport.abort()
    bench.loop.run_until_idle()
    assert app.events == ["lost"]
    assert client.socket.written == b""


def test_the_client_says_that_it_leaves(bench, app):
    client = bench.connect(app).shake()
    client.tls.write(b"last")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.tls.unwrap()
    client.pump()
    assert app.data == b"last"
    assert app.events == ["eof", "lost"]
    assert client.closed  # and it is answered


def test_the_client_leaves_without_a_word(bench, app):
    client = bench.connect(app).shake()
    client.hang_up()
    assert app.events == ["eof", "lost"]


def test_a_record_that_was_tampered_with(bench, app, caplog):
    caplog.set_level(logging.DEBUG)
    client = bench.connect(app).shake()
    client.tls.write(b"good")
    client.put(client.outgoing.read())
    client.tls.write(b"bad")
    octets = bytearray(client.outgoing.read())
    octets[-1] ^= 1
    client.put(bytes(octets) + b"and more")
    assert app.data == b"good"
    assert app.events == ["lost"]
    assert [record.levelname for record in caplog.records] == ["DEBUG"]
    assert "BAD_RECORD_MAC" in caplog.records[0].detail.upper().replace(" ", "_")


# --- handshakes that fail ---------------------------------------------------------------------------------------------


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
