"""The client's side of the wire, by hand: frames that may be nonsense, and transcripts of what comes back."""

import hpack
from hyperframe.frame import DataFrame, Frame, HeadersFrame, PingFrame, SettingsFrame

from headrace.transport.http2.frames import ErrorCode

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY_FLAG = 0x1, 0x1, 0x4, 0x8, 0x20
HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT, INITIAL_WINDOW, MAX_FRAME, MAX_HEADER_LIST = range(1, 7)

GRPC = (("content-type", "application/grpc"), ("te", "trailers"))


def frame(kind, flags=0, stream_id=0, payload=b""):
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream_id.to_bytes(4, "big") + payload


def word(value):
    return value.to_bytes(4, "big")


def settings(*pairs):
    return frame(SETTINGS, 0, 0, b"".join(key.to_bytes(2, "big") + word(value) for key, value in pairs))


def hello(*pairs):
    """What a client begins with: the preface, its SETTINGS, and the ACK of ours."""
    return PREFACE + settings(*pairs) + frame(SETTINGS, ACK)


def string(text):
    octets = text.encode() if isinstance(text, str) else text
    return hpack.hpack.encode_integer(len(octets), 7) + octets


def literal(name, value, pattern=0x00):
    """A field with a literal name: without indexing by default, 0x10 never indexed, 0x40 with incremental indexing."""
    return bytes((pattern,)) + string(name) + string(value)


def block(*fields):
    return b"".join(literal(*field) for field in fields)


def request_fields(*more, method="GET", path="/"):
    return ((":method", method), (":scheme", "http"), (":path", path), (":authority", "test"), *more)


def headers(stream_id, fields, *, end=True, flags=END_HEADERS):
    """HEADERS of a whole block; `fields` are octets, or pairs."""
    encoded = fields if isinstance(fields, bytes) else block(*fields)
    return frame(HEADERS, flags | (END_STREAM if end else 0), stream_id, encoded)


def get(stream_id=1, *more):
    """A request that is complete and deserves a plain 405 with a body."""
    return headers(stream_id, request_fields(*more))


def post(stream_id=1, *more):
    """The head of a request whose body follows; it deserves a plain 415."""
    return headers(stream_id, request_fields(*more, method="POST"), end=False)


def grpc_head(path, stream_id=1, *more, end=False):
    return headers(stream_id, request_fields(*GRPC, *more, method="POST", path=path), end=end)


def data(stream_id, payload=b"", *, end=False, padding=None):
    flags = END_STREAM if end else 0
    if padding is not None:
        flags |= PADDED
        payload = bytes((padding,)) + payload + bytes(padding)
    return frame(DATA, flags, stream_id, payload)


def message(payload, flag=0):
    return bytes((flag,)) + word(len(payload)) + payload


def grpc_call(path, payload=b"", stream_id=1, *more):
    """A unary call as nearly all clients send it: two frames."""
    return grpc_head(path, stream_id, *more) + data(stream_id, message(payload), end=True)


def priority(stream_id, depends_on=0, weight=15, *, exclusive=False):
    return frame(PRIORITY, 0, stream_id, priority_fields(depends_on, weight, exclusive=exclusive))


def priority_fields(depends_on=0, weight=15, *, exclusive=False):
    return word(depends_on | exclusive << 31) + bytes((weight,))


def rst(stream_id, code=ErrorCode.CANCEL):
    return frame(RST_STREAM, 0, stream_id, word(code))


def ping(payload=b"12345678", flags=0):
    return frame(PING, flags, 0, payload)


def window_update(stream_id, increment):
    return frame(WINDOW_UPDATE, 0, stream_id, word(increment))


def goaway(last=0, code=ErrorCode.NO_ERROR, debug=b""):
    return frame(GOAWAY, 0, 0, word(last) + word(code) + debug)


def split(octets):
    """The octets of each frame of `octets`, which must be whole."""
    at = 0
    while at < len(octets):
        start, at = at, at + 9 + int.from_bytes(octets[at : at + 3], "big")
        assert at <= len(octets), "an incomplete frame"
        yield octets[start:at]


def frames_in(octets):
    """The frames of `octets`, which must be whole, parsed by hyperframe."""
    for piece in split(octets):
        parsed, _ = Frame.parse_frame_header(memoryview(piece[:9]))
        parsed.parse_body(memoryview(piece[9:]))
        yield parsed


class Reader:
    """Reads what a server sends: the client's HPACK state and the octets of a frame that is not yet whole."""

    def __init__(self):
        self._decoder = hpack.Decoder()
        self._tail = b""
        self.fields = {}
        self.bodies = {}
        self.debug = b""  # of the last GOAWAY

    def feed(self, octets):
        """One line for each frame that `octets` complete."""
        self._tail += bytes(octets)
        lines = []
        while len(self._tail) >= 9 and len(self._tail) >= (size := 9 + int.from_bytes(self._tail[:3], "big")):
            (parsed,) = frames_in(self._tail[:size])
            self._tail = self._tail[size:]
            lines.append(self._describe(parsed))
        return lines

    def _describe(self, parsed):
        flags = "".join(f" {flag}" for flag in sorted(parsed.flags) if flag in ("ACK", "END_STREAM"))
        at = parsed.stream_id
        if isinstance(parsed, HeadersFrame):
            assert "END_HEADERS" in parsed.flags
            fields = dict(self._decoder.decode(parsed.data))
            self.fields.setdefault(at, []).append(fields)
            return f"HEADERS {at} {fields.get(':status', 'trailers')}{flags}"
        if isinstance(parsed, DataFrame):
            self.bodies[at] = self.bodies.get(at, b"") + parsed.data
            return f"DATA {at} {len(parsed.data)}{flags}"
        if isinstance(parsed, SettingsFrame):
            return f"SETTINGS{flags}"
        if isinstance(parsed, PingFrame):
            return f"PING {parsed.opaque_data.decode('latin-1')}{flags}"
        kind = type(parsed).__name__
        if kind == "WindowUpdateFrame":
            return f"WINDOW_UPDATE {at} {parsed.window_increment}"
        if kind == "RstStreamFrame":
            return f"RST_STREAM {at} {ErrorCode(parsed.error_code).name}"
        assert kind == "GoAwayFrame", kind
        self.debug = parsed.additional_data
        return f"GOAWAY {parsed.last_stream_id} {ErrorCode(parsed.error_code).name}"

    def messages(self, stream_id):
        """The gRPC messages of a reply's body, which must be whole and uncompressed."""
        body = self.bodies.get(stream_id, b"")
        found = []
        while body:
            size = int.from_bytes(body[1:5], "big")
            assert body[0] == 0
            assert len(body) >= 5 + size, "an incomplete message"
            found.append(body[5 : 5 + size])
            body = body[5 + size :]
        return found

    def status(self, stream_id):
        """grpc-status and the decoded grpc-message of a reply."""
        last = self.fields[stream_id][-1]
        return int(last["grpc-status"]), unquote(last.get("grpc-message", ""))


def unquote(text):
    octets = bytearray()
    at = 0
    while at < len(text):
        if text[at] == "%":
            octets.append(int(text[at + 1 : at + 3], 16))
            at += 3
        else:
            octets += text[at].encode()
            at += 1
    return octets.decode()


OPENING = ["SETTINGS", "WINDOW_UPDATE 0 16711681"]
"""What a server with default limits begins with."""
WELCOME = [*OPENING, "SETTINGS ACK"]
"""The same, and its answer to `hello`."""
