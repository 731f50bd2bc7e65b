"""One connection of the HTTP port: octets to requests, in order, and replies in the same order (RFC 9112).

httptools parses. A request for inference whose head has been seen before, and that came whole in one read, is
recognised by its octets. The inside of a large body is received where it will stay.
"""

from __future__ import annotations

import asyncio
from collections import deque
from enum import Enum
from typing import TYPE_CHECKING, cast

import httptools

from headrace.errors import HeadraceError, Overloaded, RequestTooSlow
from headrace.transport.rest.answer import CONTINUE, HttpError
from headrace.transport.rest.body import IN_CHUNKS, SMALL, Body, body_length, too_large
from headrace.transport.rest.exchange import AppExchange, Exchange, InferExchange, Refusal
from headrace.transport.rest.flow import Flow
from headrace.transport.rest.head import read_head, read_target
from headrace.transport.rest.scope import make_scope, origin_form

if TYPE_CHECKING:
    from headrace.transport.rest.head import InferHead
    from headrace.transport.rest.server import HttpServer

Answer = bytes | tuple[bytes, bytes]
"""The octets of a reply, in one piece or two."""

_HTTP_2 = b"PRI * HTTP/2.0"  # how a client of it begins: RFC 9113, 3.4
_PIPELINED = 32
"""With so many requests of a connection unanswered nothing more is read from it."""

_REQUEST_COST = 1024
"""Octets that a request takes beside its own while it waits behind another: a short one is mostly this."""

_LINGER_SECONDS = 1.0
"""After a reply to what was not read to its end, the client gets this long to read it: closing at once destroys it."""


class Phase(Enum):
    """What is awaited: a request's head, which may not have begun on a new connection; its body; or anything."""

    HEAD = "head"
    BODY = "body"
    IDLE = "idle"


class Connection(asyncio.BufferedProtocol):
    """See the module. All connections read into one buffer of the server's.

    now: of the last read, monotonic ns.
    """

    def __init__(self, server: HttpServer, loop: asyncio.AbstractEventLoop) -> None:
        self.server = server
        self.now = 0
        self.transport: asyncio.Transport
        self.flow: Flow
        self.loop = loop
        self._clock = server.clock
        self._parser = httptools.HttpRequestParser(self)
        self._phase = Phase.HEAD
        self._since = 0  # when the head or body that is awaited began
        self._idle_since = 0  # 0: not known to be idle
        self._between = True  # the octets that come next begin a request
        self._opened = 0  # requests of the present read
        self._brought = False  # the present read has octets of a body
        self._head_octets = 0
        self._head: InferHead | None = None  # the last one
        self._url = b""
        self._fields: list[tuple[bytes, bytes]] = []
        self._receiving: Exchange | None = None
        self._room: memoryview | None = None  # of the body that arrives, past the parser
        self._expects = False  # the client waits for 100 Continue
        self._upgrades = False  # it offers another protocol, and the parser leaves the body to that
        self._exchanges: deque[Exchange] = deque()
        self._begun = 0  # of these, from the first on
        self._alone = False  # the last that has begun is not concurrent
        self._advancing = False
        self._surplus = False  # more connections than there may be
        self._deaf = False  # no more requests are taken
        self._unread = False  # and the client is perhaps still sending one
        self._ending: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        state = "deaf" if self._deaf else self._phase.value
        return f"<Connection {state}, {len(self._exchanges)} exchanges, {self._begun} begun>"

    # --- asyncio.BufferedProtocol -------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.BufferedProtocol."""
        self.transport = cast("asyncio.Transport", transport)  # uvloop's does not derive from asyncio's
        self.flow = Flow(self.transport, self.server.settings.stalled_timeout_s)
        self.now = self._since = self._clock()
        self._surplus = not self.server.admit(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        """See asyncio.BufferedProtocol."""
        return self.server.read_buffer if self._room is None else self._room

    def buffer_updated(self, nbytes: int) -> None:
        """See asyncio.BufferedProtocol."""
        self.now = self._clock()
        self._idle_since = 0
        if self._deaf:
            return
        if self._room is not None:
            self._filled(nbytes)
            return
        data = bytes(self.server.read_buffer[:nbytes])
        if not self._between or not self._recognise(data):
            self._parse(data)

    def eof_received(self) -> bool:
        """See asyncio.BufferedProtocol: a client that half-closes is taken to have gone, or its leaving went unseen."""
        self._cancel_all()
        return False

    def pause_writing(self) -> None:
        """See asyncio.BufferedProtocol: the client does not read. Nothing more is taken from it until it does."""
        self.flow.pause_writing()
        self.flow.stalled(self._clock())
        self._regulate()

    def resume_writing(self) -> None:
        """See asyncio.BufferedProtocol."""
        self.flow.resume_writing()
        self.flow.stalled(self._clock())
        self._regulate()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.BufferedProtocol."""
        self._deaf = True
        self._room = None
        if self._ending is not None:
            self._ending.cancel()
        self._cancel_all()
        self.flow.resume_writing()
        self._parser = None  # type: ignore[assignment] # holds on to this: a circle
        self.server.forget(self)

    # --- from octets to requests --------------------------------------------------------------------------------------

    def _recognise(self, data: bytes) -> bool:
        """Takes a request that is all of `data`, if its head is known and it may begin at once."""
        head, end = self.server.heads.find(data)
        if head is None or self._surplus or self._alone or self._begun != len(self._exchanges):
            return False
        self._phase = Phase.IDLE
        exchange = InferExchange(self, head, None, self.now, data[end:])
        self._queue(exchange)
        self._completed(exchange)
        return True

    def _parse(self, data: bytes) -> None:
        between = self._between
        self._opened, self._brought = 0, False
        try:
            self._feed(data)
        except httptools.HttpParserCallbackError as error:  # a bug of ours
            self._refuse(error.__context__ or error)
        except httptools.HttpParserError as error:
            said = "it is HTTP/2, and gRPC has another port (grpc_port)" if data.startswith(_HTTP_2) else error
            self._refuse(HttpError(400, f"this is not a valid HTTP/1.1 request: {said}"))
        if self._deaf:
            return
        if self._phase is not Phase.IDLE and not (self._opened or self._brought):  # of a head, or around chunks
            self._head_octets += len(data)
            if self._head_octets > self.server.settings.max_head_bytes:
                self._refuse(self._head_too_large())
        elif self._phase is Phase.BODY:
            self._await_body()
        elif between and self._opened == 1 and self._head is not None:
            self.server.heads.learn(data, self._head)

    def _feed(self, data: bytes) -> None:
        while True:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:  # to another protocol; the request is answered in this one
                data = data[upgrade.args[0] :]
                if self._receiving is not None:  # its body, which the parser takes for that other protocol
                    body = cast("Body", self._receiving.body)
                    chunk, data = data[: body.length - body.filled], data[body.length - body.filled :]
                    if chunk:
                        self.on_body(chunk)
                    if body.filled < body.length:
                        return
                    self._complete()

    def on_message_begin(self) -> None:
        """Of httptools: a request begins."""
        self._between = False
        self._phase = Phase.HEAD
        self._since = self.now
        self._head_octets = 0
        self._url = b""
        self._fields = []

    def on_url(self, url: bytes) -> None:
        """Of httptools: (a part of) the target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Of httptools."""
        self._fields.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Of httptools: the head is complete."""
        if self._deaf:
            return
        self._phase = Phase.BODY
        self._since = self.now
        self._opened += 1
        self._head = None
        try:
            self._receiving = self._open()
        except (HeadraceError, HttpError) as error:
            self._refuse(error)
        else:
            self._queue(self._receiving)

    def on_body(self, chunk: bytes) -> None:
        """Of httptools."""
        exchange = self._receiving
        if exchange is None or self._deaf:
            return
        self._expects = False
        self._brought = True
        self._head_octets = 0
        body = cast("Body", exchange.body)
        try:
            body.feed(chunk)
        except HeadraceError as error:
            self._refuse(error)
            return
        if body.filled != body.length:
            self._hold(exchange, len(chunk))

    def on_message_complete(self) -> None:
        """Of httptools: the request is complete, unless it offers another protocol: then its head is."""
        if not self._upgrades:
            self._complete()

    def _complete(self) -> None:
        exchange, self._receiving = self._receiving, None
        if exchange is None or self._deaf:
            return
        self._between = True
        self._phase = Phase.IDLE
        self._expects = False
        if not exchange.keep_alive:
            self._deaf = True
        self._completed(exchange)

    def _head_too_large(self) -> HttpError:
        limit = self.server.settings.max_head_bytes
        return HttpError(431, f"the request's head or trailer is larger than {limit} octets (http.max_head_bytes)")

    def _open(self) -> Exchange:
        """The exchange of the head that is complete. Raises HeadraceError, HttpError."""
        server = self.server
        if self._surplus:
            raise Overloaded(
                f"{server.settings.max_connections} connections are open, no more are taken (http.max_connections)",
                1000,
            )
        octets = len(self._url) + sum(len(name) + len(value) for name, value in self._fields) + 4 * len(self._fields)
        if octets > server.settings.max_head_bytes:
            raise self._head_too_large()
        version = self._parser.get_http_version()
        keep_alive = version == "1.1" and self._parser.should_keep_alive()
        length = body_length(version, self._fields)
        if length > server.max_message:
            raise too_large(server.max_message)
        self._upgrades = length != 0 and self._parser.should_upgrade()
        if self._upgrades and length == IN_CHUNKS:
            raise HttpError(501, "a request that offers another protocol must announce the length of its body")
        body = Body(length, server.max_message)
        method, url = self._parser.get_method(), origin_form(self._url)
        target = read_target(url) if method == b"POST" else None
        if target is not None:
            head = read_head(target, self._fields, length, keep_alive=keep_alive, traced=server.traced)
            self._head = head
            self._expects = head.expects
            return InferExchange(self, head, body, self.now)
        self._expects = (b"expect", b"100-continue") in self._fields
        scope = make_scope(self.transport, version, method, url, self._fields)
        return AppExchange(self, scope, body, keep_alive=keep_alive)

    def _await_body(self) -> None:
        """The rest of a body comes with later reads."""
        if self._expects and len(self._exchanges) == 1:
            self._expects = False
            self._since = self._clock()
            self.transport.write(CONTINUE)
        body = None if self._receiving is None else self._receiving.body
        if body is not None and (body.length > SMALL or self._upgrades):
            self._room = body.room

    def _filled(self, octets: int) -> None:
        """So many octets have been laid into the body. The parser knows nothing of them: another one goes on behind."""
        exchange = cast("Exchange", self._receiving)
        body = cast("Body", exchange.body)
        body.filled += octets
        if not self._hold(exchange, octets):
            return
        self._room = body.room
        if self._room is None:
            self._parser = httptools.HttpRequestParser(self)
            self._complete()

    # --- in order -----------------------------------------------------------------------------------------------------

    def _queue(self, exchange: Exchange) -> None:
        if self._exchanges:
            exchange.cost = _REQUEST_COST
            self.server.buffered += _REQUEST_COST
        self._exchanges.append(exchange)
        if len(self._exchanges) == _PIPELINED:
            self._regulate()

    def _completed(self, exchange: Exchange) -> None:
        """The exchange, which is the last one, is complete."""
        exchange.complete = True
        if not self._alone and self._begun == len(self._exchanges) - 1 and (exchange.concurrent or not self._begun):
            self._begin(exchange)
        elif exchange.body is not None:
            self._hold(exchange, exchange.body.filled - exchange.held)

    def _begin(self, exchange: Exchange) -> None:
        self._begun += 1
        self._alone = not exchange.concurrent
        self._release(exchange)
        exchange.begin()

    def answered(self, exchange: Exchange, answer: Answer) -> None:
        """Sends the reply of an exchange that has begun, or keeps it until those before it are sent."""
        exchanges = self._exchanges
        if not exchanges or exchanges[0] is not exchange:
            exchange.answer = answer
            return
        exchanges.popleft()
        self._begun -= 1
        self._send(exchange, answer)
        if exchanges:
            self._advance()

    def _send(self, exchange: Exchange, answer: Answer) -> None:
        if not exchange.concurrent:
            self._alone = False
        self.server.buffered -= exchange.cost
        if answer and not self.transport.is_closing():
            if isinstance(answer, bytes):
                self.transport.write(answer)
            else:
                self.transport.writelines(answer)
        if not exchange.keep_alive:
            self._end()

    def _advance(self) -> None:
        """Sends what is ready in its turn, and begins what may."""
        if self._advancing:
            return
        self._advancing = True
        while self._exchanges:
            first = self._exchanges[0]
            if first.answer is not None:
                self._exchanges.popleft()
                self._begun -= 1
                self._send(first, first.answer)
                continue
            if self._begun == len(self._exchanges) or self._alone:
                break
            following = self._exchanges[self._begun]
            if not following.complete or not (following.concurrent or not self._begun):
                break
            self._begin(following)
        self._advancing = False
        if self._expects:
            self._await_body()
        self._regulate()

    def _refuse(self, error: BaseException) -> None:
        """Answers the request that is being received, in its turn, and takes no more."""
        if self._deaf:
            return
        self._deaf = self._unread = True
        self._room = None
        receiving, self._receiving = self._receiving, None
        if receiving is not None:
            self._exchanges.remove(receiving)
            self._drop(receiving)
        refusal = Refusal(self, error)
        self._queue(refusal)
        self._completed(refusal)

    def _hold(self, exchange: Exchange, octets: int) -> bool:
        """Accounts for so many more octets of a body; False: the port keeps too much, and the request is refused."""
        server = self.server
        exchange.held += octets
        server.buffered += octets
        limit = server.settings.max_buffered_bytes
        if server.buffered <= limit:
            return True
        self._receiving = exchange
        self._refuse(
            Overloaded(f"the requests that arrive hold more than {limit} octets (http.max_buffered_bytes)", 1000)
        )
        return False

    def _release(self, exchange: Exchange) -> None:
        self.server.buffered -= exchange.held
        exchange.held = 0

    def _drop(self, exchange: Exchange) -> None:
        self._release(exchange)
        self.server.buffered -= exchange.cost
        exchange.cost = 0
        exchange.cancel()

    def _cancel_all(self) -> None:
        self._receiving = self._room = None
        self._deaf = True
        exchanges, self._exchanges = self._exchanges, deque()
        self._begun = 0
        for exchange in exchanges:
            self._drop(exchange)

    def _regulate(self) -> None:
        """Reads if there is a use for it. What is dropped anyway is read: the client would not see our reply."""
        if self.transport.is_closing():
            return
        if self._deaf or not (self.flow.write_paused or len(self._exchanges) >= _PIPELINED):
            self.flow.resume_reads()
        else:
            self.flow.pause_reads()

    # --- the end ------------------------------------------------------------------------------------------------------

    def _end(self) -> None:
        """The last reply is on its way."""
        self._cancel_all()
        if self.transport.is_closing() or self._ending is not None:
            return
        if self._unread and self.transport.can_write_eof():
            self._ending = self.loop.call_later(_LINGER_SECONDS, self.transport.abort)
            self.transport.write_eof()
            self._regulate()
        else:
            self.transport.close()

    def close_after(self, exchange: Exchange) -> None:
        """The server leaves, and the exchange is about to be answered: the last one closes the connection."""
        if self._exchanges[-1] is exchange:
            exchange.keep_alive = False

    def shutdown(self) -> None:
        """The server leaves: closes as soon as what has begun is answered."""
        for exchange in [exchange for exchange in self._exchanges if not exchange.complete]:
            self._exchanges.remove(exchange)
            self._drop(exchange)
        self._receiving = self._room = None
        self._deaf = True
        if not self._exchanges:
            self.transport.close()
        else:
            self._exchanges[-1].keep_alive = False

    def tick(self, now: int) -> None:
        """Once a second: does the client behave? now: monotonic ns."""
        settings = self.server.settings
        if self.flow.stalled(now):
            self.transport.abort()
        elif self.flow.write_paused or self._deaf:
            return
        elif self._expects or not self.flow.reading:  # it waits for us
            self._since = now
        elif self._phase is Phase.HEAD:
            if now - self._since > settings.head_timeout_s * 1e9:
                self._late("head", settings.head_timeout_s)
        elif self._phase is Phase.BODY:
            if now - self._since > settings.body_timeout_s * 1e9:
                self._late("body", settings.body_timeout_s)
        elif self._exchanges:
            return
        elif not self._idle_since:
            self._idle_since = now
        elif now - self._idle_since > settings.keep_alive_s * 1e9:
            self.transport.close()

    def _late(self, part: str, seconds: float) -> None:
        if part == "head" and not self._head_octets:
            self.transport.close()
        else:
            self._refuse(RequestTooSlow(f"the request's {part} has not arrived within {seconds:g} s"))
