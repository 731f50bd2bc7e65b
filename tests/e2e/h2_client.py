"""A gRPC client made by hand of frames, for what grpcio's own hides: GOAWAY, the server's status, broken bytes."""

import socket
import struct

from hpack import Decoder, Encoder
from hyperframe.frame import (
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
INFER = "/inference.GRPCInferenceService/ModelInfer"
SILENCE_SECONDS = 20


class Reply:
    """What has come on a stream. fields: of its header blocks, the last one wins; ended: by END_STREAM or a reset."""

    def __init__(self):
        self.fields = {}
        self.body = b""
        self.ended = False
        self.reset = None

    @property
    def status(self):
        """grpc-status; None while there is none."""
        return int(self.fields["grpc-status"]) if "grpc-status" in self.fields else None

    @property
    def message(self):
        """The reply message without its prefix."""
        assert len(self.body) == 5 + struct.unpack(">xI", self.body[:5])[0]
        return self.body[5:]


class H2Client:
    """A connection, with the windows of its peer so wide that no test meets their ends. A context manager."""

    def __init__(self, port):
        self.replies = {}
        self.goaways = []
        self.closed = False
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=SILENCE_SECONDS)
        self._encoder, self._decoder = Encoder(), Decoder()
        self._received = b""
        self._next = 1
        widest = SettingsFrame(settings={SettingsFrame.INITIAL_WINDOW_SIZE: 2**31 - 1})
        self._acknowledged = False
        self._pongs = 0
        self.send(PREFACE, widest, WindowUpdateFrame(0, window_increment=2**30))
        self.await_(lambda: self._acknowledged)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._socket.close()

    def __repr__(self):
        return f"<H2Client {len(self.replies)} calls, {len(self.goaways)} GOAWAY{', closed' if self.closed else ''}>"

    def call(self, message, path=INFER, **fields):
        """Makes a unary call, and returns its stream's id; fields: further header fields, `_` for `-`."""
        stream = self.open(path, **fields)
        self.send(DataFrame(stream, b"\0" + struct.pack(">I", len(message)) + message, flags=["END_STREAM"]))
        return stream

    def open(self, path=INFER, **fields):
        """Sends the header fields of a call."""
        stream, self._next = self._next, self._next + 2
        self.replies[stream] = Reply()
        head = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "127.0.0.1")]
        head += [("content-type", "application/grpc"), ("te", "trailers")]
        head += [(name.replace("_", "-"), value) for name, value in fields.items()]
        self.send(HeadersFrame(stream, self._encoder.encode(head), flags=["END_HEADERS"]))
        return stream

    def send(self, *pieces):
        """Writes frames and bytes as they are, at once."""
        self._socket.sendall(b"".join(p.serialize() if isinstance(p, Frame) else p for p in pieces))

    def ping(self):
        """Returns when the server has answered a PING, and so has read what was sent before."""
        self._pongs = 0
        self.send(PingFrame(0, b"headrace"))
        self.await_(lambda: self._pongs)

    def reset_connection(self):
        """Ends the connection as a killed process does: with RST, not FIN."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    def reply(self, stream):
        """The whole reply on a stream."""
        self.await_(lambda: self.replies[stream].ended or self.closed)
        return self.replies[stream]

    def await_(self, condition):
        """Reads until `condition()` is true."""
        while not condition():
            assert not self.closed, f"the server has closed the connection: {self}"
            self._read()

    def _read(self):
        try:
            got = self._socket.recv(1 << 16)
        except ConnectionResetError:
            got = b""
        self.closed = not got
        self._received += got
        while len(self._received) >= 9:
            frame, length = Frame.parse_frame_header(memoryview(self._received[:9]))
            if len(self._received) < 9 + length:
                break
            frame.parse_body(memoryview(self._received[9 : 9 + length]))
            self._received = self._received[9 + length :]
            self._take(frame)

    def _take(self, frame):
        reply = self.replies.get(frame.stream_id)
        if isinstance(frame, GoAwayFrame):
            self.goaways.append(frame)
        elif isinstance(frame, PingFrame):
            self._pongs += "ACK" in frame.flags
            if "ACK" not in frame.flags:
                self.send(PingFrame(0, frame.opaque_data, flags=["ACK"]))
        elif isinstance(frame, SettingsFrame):
            self._acknowledged |= "ACK" in frame.flags
            if "ACK" not in frame.flags:
                self.send(SettingsFrame(flags=["ACK"]))
        elif isinstance(frame, HeadersFrame):
            reply.fields |= {str(k): str(v) for k, v in self._decoder.decode(frame.data)}
        elif isinstance(frame, DataFrame):
            reply.body += frame.data
        elif isinstance(frame, RstStreamFrame):
            reply.ended, reply.reset = True, frame.error_code
        if reply is not None and "END_STREAM" in frame.flags:
            reply.ended = True
