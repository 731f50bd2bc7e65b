"""TLS between a socket and a protocol, around OpenSSL's state machine in memory.

asyncio's own cannot end the sending half of a connection, which is how ours tell a client why they leave; says nothing
of handshakes that fail; and keeps the certificate that it began with.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.telemetry.tls import TlsMetrics

logger = logging.getLogger(__name__)

_READ_BUFFER = 256 << 10
_WRITE_STEP = 64 << 10
"""OpenSSL's buffers keep the size that they once had: what is written goes through them in pieces of this size."""
_HANDSHAKE_RECORD = 0x16
_LINGER_SECONDS = 1.0
"""After a failure, the client gets this long to close: closing first may destroy the alert that tells it why."""
_LOG_SECONDS = 60.0
_FEW = 32
"""Handshakes that are let begin however many connections are open: who has too many of those is told so in HTTP/2."""
_TOLD = "this port speaks TLS"
PLAIN_TEXT_ANSWER = (
    "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-type: text/plain\r\n"
    f"content-length: {len(_TOLD) + 1}\r\n\r\n{_TOLD}\n"
).encode()
"""For a client that does not begin with TLS. Not a GOAWAY: behind SETTINGS, grpcio's connects again without a pause."""

FAILURES = {
    "UNSUPPORTED_PROTOCOL": "version",
    "WRONG_VERSION_NUMBER": "version",
    "VERSION_TOO_LOW": "version",
    "NO_SHARED_CIPHER": "cipher",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "no_client_certificate",
    "CERTIFICATE_VERIFY_FAILED": "client_certificate",
}
"""Why a handshake failed, by OpenSSL's name for it."""
REASONS = (*dict.fromkeys(FAILURES.values()), "alert", "alpn", "closed", "crowded", "plain_text", "protocol", "timeout")
"""All that a failure is counted under."""


class TlsPort:
    """What the TLS connections of one port have in common.

    name: of the port, in the log and in metrics. context: what new connections are made with. alpn: the only protocol
    spoken; a client that does not choose it is refused. Without, nothing is asked. timeout_s: for the handshake. most:
    connections, those in their handshake included.
    """

    def __init__(
        self,
        name: str,
        context: ssl.SSLContext,
        counts: TlsMetrics,
        *,
        alpn: str | None = None,
        timeout_s: float,
        most: int = 512,
    ) -> None:
        self.name = name
        self.context = context
        self.counts = counts
        self.alpn = alpn
        self.timeout_s = timeout_s
        self.most = most
        self.open = 0
        self.buffer = memoryview(bytearray(_READ_BUFFER))
        self.handshakes: dict[TlsConnection, None] = {}  # the oldest first
        self._logged: dict[str, float] = {}
        counts.failures.update({(name, reason): 0 for reason in REASONS})  # an increase is seen from a zero alone

    def __repr__(self) -> str:
        return f"<TlsPort {self.name}, {self.open} connections, {len(self.handshakes)} handshakes>"

    def protect(self, app: asyncio.BaseProtocol) -> TlsConnection:
        """The protocol to put on a new socket so that `app` speaks over TLS; `app` begins when the handshake is done.

        app: an asyncio.Protocol or asyncio.BufferedProtocol.
        """
        return TlsConnection(self, app, asyncio.get_running_loop())

    def close(self) -> None:
        """Ends the connections whose handshake is under way; those of the others are their protocols' to end."""
        for connection in list(self.handshakes):
            connection.abort()
        self.handshakes.clear()

    def begins(self, connection: TlsConnection) -> None:
        """A handshake is due. Where there are too many, the oldest makes room: it is one that does not go on."""
        self.handshakes[connection] = None
        if len(self.handshakes) > max(_FEW, self.most - self.open):
            next(iter(self.handshakes)).give_up("crowded", f"{len(self.handshakes)} handshakes at a time")

    def failed(self, reason: str, peer: object, detail: str, now: float) -> None:
        """A handshake has failed: counts it. The log hears of each reason once a minute; `now` is in seconds."""
        self.counts.failures[self.name, reason] += 1
        fields = {"port": self.name, "reason": reason, "peer": peer, "detail": detail}
        if now - self._logged.get(reason, -_LOG_SECONDS) < _LOG_SECONDS:
            logger.debug("a TLS handshake failed", extra=fields)
            return
        self._logged[reason] = now
        logger.info("a TLS handshake failed; more of its kind within a minute are only counted", extra=fields)


class TlsConnection(asyncio.Transport, asyncio.BufferedProtocol):
    """A protocol to the socket below, and a transport to the protocol above."""

    def __init__(self, port: TlsPort, app: asyncio.BaseProtocol, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._port = port
        self._app = app
        self._loop = loop
        self._socket: asyncio.Transport
        self._tls: ssl.SSLObject | None = None  # made when the first octets have come: an idle socket costs little
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._open = False  # the handshake is done and `app` is connected
        self._over = False  # nothing more is sent, and what comes is dropped
        self._reading = True
        self._timer: asyncio.TimerHandle | None = None
        self._buffered = app if isinstance(app, asyncio.BufferedProtocol) else None

    def __repr__(self) -> str:
        state = "over" if self._over else repr(self._app) if self._open else "handshake"
        return f"<TlsConnection {self._port.name} {state}>"

    # --- a protocol to the socket -------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.BufferedProtocol."""
        self._socket = cast("asyncio.Transport", transport)
        detail = f"not done within {self._port.timeout_s:g} s"
        self._timer = self._loop.call_later(self._port.timeout_s, self.give_up, "timeout", detail)
        self._port.begins(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        """See asyncio.BufferedProtocol. What is read is copied to OpenSSL at once, so all connections share it."""
        return self._port.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """See asyncio.BufferedProtocol."""
        if self._over:
            return
        self._incoming.write(self._port.buffer[:nbytes])
        if self._open:
            self._decrypt()
        else:
            self._handshake()

    def eof_received(self) -> bool:
        """See asyncio.BufferedProtocol. An end without close_notify is one: the protocols above know what is whole."""
        if self._open and not self._over:
            cast("asyncio.Protocol", self._app).eof_received()
        return False

    def pause_writing(self) -> None:
        """See asyncio.BufferedProtocol. The handshake fills no buffer: it waits for the client at each step."""
        if self._open:
            self._app.pause_writing()

    def resume_writing(self) -> None:
        """See asyncio.BufferedProtocol."""
        if self._open:
            self._app.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.BufferedProtocol."""
        if self._timer is not None:
            self._timer.cancel()
        if self._open:
            self._port.open -= 1
            self._app.connection_lost(exc)
        elif self._tls is not None and not self._over:  # who says nothing at all asks whether the port is open
            self._failed("closed", "the client closed the connection")
        self._port.handshakes.pop(self, None)
        self._over = True
        # `app` and its transport hold each other, and garbage is rarely collected: OpenSSL's memory is not left to that
        self._tls = None
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()

    # --- the handshake ------------------------------------------------------------------------------------------------

    def _handshake(self) -> None:
        if self._tls is None:
            if self._port.buffer[0] != _HANDSHAKE_RECORD:
                self._socket.write(PLAIN_TEXT_ANSWER)
                self._fail("plain_text", "the client does not speak TLS")
                return
            self._tls = self._port.context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return
        except ssl.SSLError as error:
            reason = error.reason or ""
            self._flush()  # the alert
            self._fail("alert" if "_ALERT_" in reason else FAILURES.get(reason, "protocol"), reason)
            return
        self._flush()
        if self._port.alpn is not None and self._tls.selected_alpn_protocol() != self._port.alpn:
            self._notify()
            self._fail("alpn", f"the client does not offer {self._port.alpn}")
            return
        self._begin()

    def _begin(self) -> None:
        assert self._timer is not None
        assert self._tls is not None
        self._timer.cancel()
        self._timer = None
        self._port.handshakes.pop(self, None)
        self._port.open += 1
        self._port.counts.handshakes[self._port.name, self._tls.version() or ""] += 1
        self._open = True
        self._app.connection_made(self)
        if self._incoming.pending:
            self._decrypt()

    def give_up(self, reason: str, detail: str) -> None:
        """Ends a handshake that is not done."""
        if not self._over:
            self._failed(reason, detail)
        self._port.handshakes.pop(self, None)
        self.abort()

    def _fail(self, reason: str, detail: str) -> None:
        """The handshake has failed and the client has been told; it gets time to read that."""
        assert self._timer is not None
        self._timer.cancel()
        self._failed(reason, detail)
        self._linger()

    def _failed(self, reason: str, detail: str) -> None:
        self._port.failed(reason, self._socket.get_extra_info("peername"), detail, self._loop.time())

    def _linger(self) -> None:
        self._over = True
        self._timer = self._loop.call_later(_LINGER_SECONDS, self._socket.abort)
        self._socket.write_eof()

    # --- reading ------------------------------------------------------------------------------------------------------

    def _decrypt(self) -> None:
        """Hands up what has come, as many records at a time as the buffer above takes, until it is to wait."""
        tls = self._tls
        assert tls is not None
        read = cast("Callable[[int, memoryview], int]", tls.read)
        incoming, app = self._incoming, self._buffered
        left = True
        while left and self._reading and not self._over:
            buffer = self._port.buffer if app is None else cast("memoryview", app.get_buffer(-1))
            size = len(buffer)
            end: Exception | None = None
            closed = False
            count = 0
            try:
                count = read(size, buffer)
                closed = count == 0
                while incoming.pending and count < size and not closed:
                    got = read(size - count, memoryview(buffer)[count:])
                    closed = got == 0
                    count += got
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError as error:
                end = error
            left = incoming.pending > 0 or (count == size and tls.pending() > 0)
            if count and app is not None:
                app.buffer_updated(count)
            elif count:
                cast("asyncio.Protocol", self._app).data_received(bytes(self._port.buffer[:count]))
            if closed or end is not None:
                self._ended(end)
                return
        if self._outgoing.pending:
            self._flush()

    def _ended(self, error: Exception | None) -> None:
        """The client has said that it sends no more, or has broken the protocol."""
        if self._over or self._socket.is_closing():
            return
        if error is None:
            cast("asyncio.Protocol", self._app).eof_received()
            self.close()
        else:
            logger.debug("a TLS connection is broken", extra={"port": self._port.name, "detail": str(error)})
            self._flush()
            self._over = True
            self._socket.close()

    def _go_on(self) -> None:
        if not self._socket.is_closing():
            self._decrypt()

    # --- a transport to the protocol above ----------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """See asyncio.Transport."""
        if self._over or not data:
            return
        tls = self._tls
        assert tls is not None
        if len(data) <= _WRITE_STEP:
            tls.write(data)
            self._socket.write(self._outgoing.read())
            return
        view = memoryview(data).cast("B")
        for at in range(0, len(view), _WRITE_STEP):
            tls.write(view[at : at + _WRITE_STEP])
            self._socket.write(self._outgoing.read())

    def write_eof(self) -> None:
        """See asyncio.Transport: close_notify, and the end of the socket's sending half. What comes is dropped."""
        if not self._over:
            self._notify()
            self._over = True
            self._socket.write_eof()

    def can_write_eof(self) -> bool:
        """See asyncio.Transport."""
        return True

    def close(self) -> None:
        """See asyncio.Transport. The client's close_notify is not waited for (RFC 8446, 6.1)."""
        if not self._over and not self._socket.is_closing():
            self._notify()
            self._over = True
        self._socket.close()

    def abort(self) -> None:
        """See asyncio.Transport."""
        self._over = True
        self._socket.abort()

    def is_closing(self) -> bool:
        """See asyncio.Transport."""
        return self._socket.is_closing()

    def is_reading(self) -> bool:
        """See asyncio.Transport."""
        return self._reading

    def pause_reading(self) -> None:
        """See asyncio.Transport."""
        if self._reading:
            self._reading = False
            self._socket.pause_reading()

    def resume_reading(self) -> None:
        """See asyncio.Transport."""
        if not self._reading:
            self._reading = True
            self._socket.resume_reading()
            if self._incoming.pending or (self._tls is not None and self._tls.pending()):
                self._loop.call_soon(self._go_on)  # what was left when the protocol above asked for a pause

    def get_write_buffer_size(self) -> int:
        """See asyncio.Transport."""
        return self._socket.get_write_buffer_size()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """See asyncio.Transport."""
        self._socket.set_write_buffer_limits(high, low)

    def get_extra_info(self, name: str, default: Any = None) -> Any:  # noqa: ANN401 - as in asyncio
        """See asyncio.BaseTransport: of the socket, and ssl_object, sslcontext, peercert and cipher."""
        tls = self._tls
        if tls is None:
            return self._socket.get_extra_info(name, default)
        values: dict[str, Callable[[], Any]] = {
            "ssl_object": lambda: tls,
            "sslcontext": lambda: tls.context,
            "peercert": tls.getpeercert,
            "cipher": tls.cipher,
        }
        return values[name]() if name in values else self._socket.get_extra_info(name, default)

    def _notify(self) -> None:
        """Puts close_notify on the wire."""
        assert self._tls is not None
        with contextlib.suppress(ssl.SSLError):  # that of the client has not come
            self._tls.unwrap()
        self._flush()

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._socket.write(self._outgoing.read())
