"""What goes through the layer, and how a connection ends."""

import contextlib
import logging
import ssl
import weakref

import pytest
from transport.tls.bench import SECOND, Buffered, benches
from transport.tls.certificates import client_context, issue

# --- what goes through ------------------------------------------------------------------------------------------------


def test_both_ways(bench, app):
    client = bench.connect(app)
    assert app.transport is None
    client.shake()
    assert app.transport is client.connection
    client.send(b"a question")
    assert app.data == b"a question"
    bench.loop.run_for(60 * SECOND)  # the handshake's time is over
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
    assert len(app.data) == (1000 if isinstance(app, Buffered) else len(message))
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


@pytest.mark.parametrize("how", ["write_eof", "close", "abort"])
def test_it_ends_in_the_middle_of_a_read(bench, how):
    """What is left of the read is dropped."""
    app = Buffered(1000)
    client = bench.connect(app).shake()
    app.script = lambda data: getattr(app.transport, how)()
    client.tls.write(bytes(5000))
    client.put(client.outgoing.read())
    assert app.pieces == [1000]


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


@pytest.mark.parametrize("shaken", [False, True])
def test_openssls_memory_goes_with_the_connection(bench, app, shaken):
    """At once, whoever still holds the transport; what is done to that later does nothing."""
    client = bench.connect(app)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.tls.do_handshake()
    client.put(client.outgoing.read())
    if shaken:
        client.pump()
    left = weakref.ref(client.connection.get_extra_info("ssl_object"))
    assert left() is not None
    client.hang_up()
    assert left() is None
    client.connection.write(b"late")
    client.connection.write_eof()
    client.connection.resume_reading()
    client.connection.close()
    assert client.connection.get_extra_info("peercert") is None


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
