"""What RFC 9113 asks of a server that takes more than one exchange, a clock, or a call that goes on; see cases.py.

DIALOGUES: by name, each a function of `start`, which runs a transport with the given settings.
"""

from transport.http2 import wire
from transport.http2.bench import CHAT, ECHO, FIRST, INFER
from transport.http2.wire import data, get, goaway, grpc_call, grpc_head, headers, message, ping, post, rst

DIALOGUES = {}
FULL = 16_384
LEAVING = "PING headrace"
LEFT = ping(b"headrace", wire.ACK)


def dialogue(name):
    def add(function):
        DIALOGUES[name] = function
        return function

    return add


@dialogue("rfc9113 3.4 the preface never comes")
def no_preface(start):
    native = start(handshake_timeout_s=5)
    with native.connect(b"") as silent, native.connect(wire.PREFACE[:20]) as half:
        half.until("WINDOW_UPDATE 0 16711681")
        native.pass_time(5)
        assert len(native.on_loop(lambda: native.transport.peers)) == 2
        native.pass_time(1)
        assert silent.end() == half.end() == wire.OPENING
    assert native.limits() == {"handshake_timeout": 2}


@dialogue("rfc9113 6.5.3 our SETTINGS are never acknowledged")
def settings_not_acknowledged(start):
    """Calls meanwhile do not make up for it: until then, the client may have twice as many streams."""
    native = start(handshake_timeout_s=5)
    with native.connect(wire.PREFACE + wire.settings()) as client:
        for _ in range(5):
            assert client.call(ECHO, b"m") == (0, b"m")
            native.pass_time(1)
        native.pass_time(1)
        assert client.end()[-1] == "GOAWAY 9 SETTINGS_TIMEOUT"
    assert native.limits() == {"handshake_timeout": 1}


@dialogue("rfc9113 4.1 one octet a segment")
def octet_by_octet(start):
    with start().connect(b"") as client:
        for octet in wire.hello() + grpc_call(ECHO, b"m") + get(3):
            client.send(bytes((octet,)))
        assert client.reply(1) == (0, b"m")
        assert "HEADERS 3 405" in client.ping()


@dialogue("rfc9113 4.3.1 the client lowers HEADER_TABLE_SIZE: our next block begins with an update")
def lowered_table(start):
    with start().connect(wire.hello((wire.HEADER_TABLE_SIZE, 0))) as client:
        client.reader._decoder.max_allowed_table_size = 0  # hpack refuses a block without the update
        assert client.call(ECHO, b"m") == (0, b"m")
        client.send(wire.settings((wire.HEADER_TABLE_SIZE, 4096)) + wire.settings((wire.HEADER_TABLE_SIZE, 0)))
        assert client.call(ECHO, b"m") == (0, b"m")


@dialogue("rfc9113 5.1 DATA on a stream that we ended is dropped, and counts on the connection")
def late_data(start):
    """The call was answered at once; what was on its way is credited to the connection, or it would stall others."""
    with start(connection_window_bytes=65_535).connect() as client:
        client.send(grpc_head("/nothing/Here"))
        assert client.ping()[-2:] == ["HEADERS 1 200 END_STREAM", "RST_STREAM 1 NO_ERROR"]
        left = 65_535
        for n in range(12):
            client.send(data(1, bytes(FULL)))
            assert client.call(ECHO, b"m", at=3 + 2 * n) == (0, b"m")
            left -= FULL + 6
            left += sum(int(line.split()[2]) for line in client.lines if line.startswith("WINDOW_UPDATE 0"))
            client.lines.clear()
            assert left >= FULL


@dialogue("rfc9113 5.1.1 stream ids run out: GOAWAY while some are left")
def ids_run_out(start):
    native = start()
    with native.connect() as client:
        client.send(grpc_call(ECHO, b"m", 3 * 2**29 + 1))
        assert client.reply(3 * 2**29 + 1) == (0, b"m")
        native.pass_time(1)
        client.until(LEAVING)
        assert client.lines[-2] == f"GOAWAY {2**31 - 1} NO_ERROR"
        client.send(grpc_call(ECHO, b"m", 3 * 2**29 + 3) + LEFT)
        assert client.end()[-1] == f"GOAWAY {3 * 2**29 + 3} NO_ERROR"
        assert client.reply(3 * 2**29 + 3) == (0, b"m")


@dialogue("rfc9113 6.7 PING while replies wait for a window")
def ping_before_replies(start):
    with start().connect(wire.hello((wire.INITIAL_WINDOW, 0))) as client:
        client.send(grpc_call(ECHO, b"m") + grpc_call(ECHO, b"m", 3))
        assert client.ping()[-2:] == ["HEADERS 1 200", "HEADERS 3 200"]
        client.send(wire.window_update(3, 100))
        assert client.ping() == ["DATA 3 6", "HEADERS 3 trailers END_STREAM"]
        client.send(rst(1))


@dialogue("rfc9113 6.8 streams that come after our last GOAWAY are dropped, their blocks decoded")
def after_goaway(start):
    native = start()
    with native.connect() as client:
        client.send(grpc_call(INFER))
        client.ping()
        native.drain()
        client.until(LEAVING)
        assert client.lines == [f"GOAWAY {2**31 - 1} NO_ERROR", LEAVING]
        client.send(grpc_call(ECHO, b"on its way", 3) + LEFT)
        assert client.reply(3) == (0, b"on its way")
        client.until("GOAWAY 3 NO_ERROR")
        client.lines.clear()
        late = wire.block(*wire.request_fields(*wire.GRPC, method="POST", path=ECHO))
        client.send(headers(5, late + wire.literal("n", "v", 0x40), end=False) + data(5, message(b"m"), end=True))
        client.send(headers(7, late + b"\xbe", end=False) + rst(7))
        assert client.ping() == []
        native.on_loop(lambda: native.infer.calls[0].sink.reply(b"reply"))
        assert client.end()[-1] == "HEADERS 1 trailers END_STREAM"
        assert set(client.reader.fields) == {1, 3}


@dialogue("rfc9113 6.8 the client's GOAWAY: its streams end, then the connection")
def clients_goaway(start):
    native = start()
    with native.connect() as client:
        client.send(grpc_call(INFER) + goaway())
        client.ping()
        native.pass_time(3)
        client.ping()
        native.on_loop(lambda: native.infer.calls[0].sink.reply(b"reply"))
        assert client.reply(1) == (0, b"reply")
        native.pass_time(1)
        client.end()


@dialogue("rfc9113 6.9.1 more DATA than the stream's window")
def stream_window_exceeded(start):
    """A stream whose messages nobody takes is not credited; the connection goes on."""
    with start(initial_window_bytes=65_535).connect() as client:
        client.send(grpc_head(FIRST) + data(1, message(bytes(1))))
        client.send(*[data(1, message(bytes(16_000))) for _ in range(4)])
        assert not any(line.startswith(("RST_STREAM", "WINDOW_UPDATE 1")) for line in client.ping())
        client.send(data(1, bytes(6_000)))
        assert client.ping() == ["RST_STREAM 1 FLOW_CONTROL_ERROR"]
        assert client.call(ECHO, b"m", at=3) == (0, b"m")


@dialogue("rfc9113 6.9.1 more DATA than the connection's window")
def connection_window_exceeded(start):
    """In one read, so that there was no chance to be credited: the loop is held while the octets gather."""
    native = start(connection_window_bytes=65_535, initial_window_bytes=1 << 20, max_message=1 << 20)
    with native.connect() as client:
        octets = message(bytes(900_000))
        client.send(grpc_head(ECHO) + data(1, octets[:FULL]))
        client.ping()
        let_go = native.hold()
        client.send(*[data(1, bytes(FULL)) for _ in range(10)])
        let_go()
        assert client.end()[-1] == "GOAWAY 1 FLOW_CONTROL_ERROR"


@dialogue("rfc9113 6.9.2 a new INITIAL_WINDOW_SIZE moves the windows of all streams")
def new_initial_window(start):
    with start().connect(wire.hello((wire.INITIAL_WINDOW, 3))) as client:
        client.send(grpc_call(ECHO, b"one") + grpc_call(ECHO, b"three", 3))
        assert client.ping()[-4:] == ["HEADERS 1 200", "DATA 1 3", "HEADERS 3 200", "DATA 3 3"]
        client.send(wire.settings((wire.INITIAL_WINDOW, 1)) + wire.window_update(1, 4))
        assert client.ping() == ["SETTINGS ACK", "DATA 1 2"]
        client.send(wire.settings((wire.INITIAL_WINDOW, 10)))
        assert sorted(client.ping()) == sorted(
            [
                "SETTINGS ACK",
                "DATA 1 3",
                "HEADERS 1 trailers END_STREAM",
                "DATA 3 7",
                "HEADERS 3 trailers END_STREAM",
            ]
        )


@dialogue("rfc9113 8.1 an early reply asks the client to stop")
def early_reply(start):
    """RST_STREAM(NO_ERROR) right behind the trailers; an upload that is not gRPC is answered before it stalls."""
    with start().connect() as client:
        client.send(grpc_head(CHAT) + data(1, message(b"x", 7)))
        assert client.ping()[-2:] == ["HEADERS 1 200 END_STREAM", "RST_STREAM 1 NO_ERROR"]
        client.send(post(3) + b"".join(data(3, bytes(FULL)) for _ in range(40)))
        lines = client.ping()
        assert lines[0] == "HEADERS 3 415"
        assert lines[-1] == "RST_STREAM 3 NO_ERROR"
