"""A request on a connection and its reply: an inference, a call of the application, or a refusal."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from headrace.errors import reason_of
from headrace.transport.rest.answer import refusal_of
from headrace.transport.rest.compression import compress, inflate

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.messages import Buffer, Cancellable
    from headrace.transport.rest.body import Body
    from headrace.transport.rest.connection import Answer, Connection
    from headrace.transport.rest.head import InferHead

_OK = ("infer", 200)
_LARGE = 32 << 10
"""Octets of a reply that are not copied once more to stand behind its first line, and not compressed in passing."""


class Exchange:
    """The common part. What a connection does with it: `begin` once its body is there and its turn has come, `cancel`.

    body: while it arrives. keep_alive: whether the connection stays open after the reply. answer: a reply that waits
    for those before it. held: octets of its body that count as the server's `buffered`. cost: what it counts itself.
    """

    __slots__ = ("answer", "body", "complete", "connection", "cost", "held", "keep_alive")

    concurrent: ClassVar = True
    """Whether it may begin while those before it are not yet answered."""

    def __init__(self, connection: Connection, body: Body | None, *, keep_alive: bool) -> None:
        self.connection = connection
        self.body = body
        self.keep_alive = keep_alive
        self.complete = body is None
        self.answer: Answer | None = None
        self.held = 0
        self.cost = 0

    def __repr__(self) -> str:
        state = "complete" if self.complete else f"receiving {self.body!r}"
        return f"<{type(self).__name__} {state}>"

    def begin(self) -> None:
        """Has the request answered, by `Connection.answered`, now or later."""
        raise NotImplementedError

    def cancel(self) -> None:
        """Nobody waits for the reply any more."""


class InferExchange(Exchange):
    """An inference: a `RestCall` that is the sink of its own reply. request: the body, if it is there already."""

    __slots__ = ("_ended", "deadline", "head", "received", "request", "under_way")

    def __init__(
        self, connection: Connection, head: InferHead, body: Body | None, now: int, request: Buffer | None = None
    ) -> None:
        self.connection = connection  # not by way of super(): there is one of these for each request
        self.body = body
        self.keep_alive = head.keep_alive
        self.complete = body is None
        self.answer = None
        self.held = self.cost = 0
        self.head = head
        self.received = now
        self.deadline = now + head.timeout_ns if head.timeout_ns else 0
        self.request = request
        self.under_way: Cancellable | None = None
        self._ended = False

    @property
    def door(self) -> str:
        """See `messages.ReplySink`."""
        return f"{self.connection.server.scheme}:{self.head.target.path}"

    @property
    def traceparent(self) -> bytes:
        """See `messages.ReplySink`."""
        return self.head.traceparent

    @property
    def tracestate(self) -> bytes:
        """See `messages.ReplySink`."""
        return self.head.tracestate

    def begin(self) -> None:
        """See `Exchange`."""
        if self.body is not None:
            self.request = self.body.take()
            self.body = None
            self.received = self.connection.now
        if self.head.coding:
            packed, self.request = self.request or b"", None
            limit = self.connection.server.max_message
            self._in_thread(partial(inflate, packed, self.head.coding, limit), self._inflated)
        else:
            self.connection.server.infer(self)

    def reply(self, message: Any) -> None:  # noqa: ANN401
        """See `messages.ReplySink`. message: header fields and body."""
        self.under_way = None
        coding = self.head.reply_coding
        if not coding:
            self._reply(message)
        elif len(message) < _LARGE:
            self._reply(compress(message, coding))
        else:
            self._in_thread(partial(compress, message, coding), self._reply)

    def _inflated(self, body: bytes) -> None:
        self.request = body
        self.connection.server.infer(self)

    def _reply(self, message: bytes) -> None:
        if self._ended:
            return
        self._ended = True
        server = self.connection.server
        server.counts.http_requests[_OK] += 1
        if server.leaving:
            self.connection.close_after(self)
        opening = server.openings.ok if self.keep_alive else server.openings.ok_close
        self.connection.answered(self, opening + message if len(message) < _LARGE else (opening, message))

    def fail(self, error: BaseException) -> None:
        """See `messages.ReplySink`."""
        if self._ended:
            return
        self._ended = True
        self.under_way = None
        self.request = None
        server = self.connection.server
        status, message, fields = refusal_of(error)
        server.counts.http_requests["infer", status] += 1
        if server.leaving:
            self.connection.close_after(self)
        self.connection.answered(self, server.openings.refusal(status, message, fields, close=not self.keep_alive))

    def _in_thread(self, call: Callable[[], bytes], then: Callable[[bytes], None]) -> None:
        """Goes on with the result of a call that takes its time and leaves the interpreter to others meanwhile."""

        def back(future: asyncio.Future[bytes]) -> None:
            error = future.exception()
            if self._ended:
                return
            if error is None:
                then(future.result())
            else:
                self.connection.server.counts.refused[reason_of(error)] += 1
                self.fail(error)

        self.connection.loop.run_in_executor(None, call).add_done_callback(back)

    def cancel(self) -> None:
        """See `Exchange`."""
        self._ended = True
        self.request = None
        if self.under_way is not None:
            self.under_way.cancel()
            self.under_way = None


class Refusal(Exchange):
    """What is said to a request that goes no further; nothing more is read behind it."""

    __slots__ = ("_error",)

    def __init__(self, connection: Connection, error: BaseException) -> None:
        super().__init__(connection, None, keep_alive=False)
        self._error = error

    def begin(self) -> None:
        """See `Exchange`."""
        server = self.connection.server
        status, message, fields = refusal_of(self._error)
        server.counts.http_requests["none", status] += 1
        self.connection.answered(self, server.openings.refusal(status, message, fields, close=True))


class AppExchange(Exchange):
    """A request for the ASGI application, run by uvicorn's cycle in a task of its own. scope: ASGI's."""

    __slots__ = ("_cycle", "_scope")

    concurrent = False

    def __init__(self, connection: Connection, scope: dict[str, Any], body: Body, *, keep_alive: bool) -> None:
        super().__init__(connection, body, keep_alive=keep_alive)
        self._scope = scope
        self._cycle: RequestResponseCycle | None = None

    def begin(self) -> None:
        """See `Exchange`."""
        server = self.connection.server
        assert self.body is not None
        if server.leaving:
            self.connection.close_after(self)
        cycle = self._cycle = RequestResponseCycle(
            scope=self._scope,  # type: ignore[arg-type]
            transport=self.connection.transport,
            flow=self.connection.flow,  # type: ignore[arg-type]
            logger=logging.getLogger("uvicorn.error"),
            access_logger=logging.getLogger("uvicorn.access"),
            access_log=False,
            default_headers=server.openings.fields,
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=self.keep_alive,
            on_response=self._on_response,
        )
        cycle.body = bytearray(self.body.take())
        cycle.more_body = False
        cycle.message_event.set()
        self.body = None
        server.run(self.connection.loop, cycle.run_asgi(server.app))

    def _on_response(self) -> None:
        self.keep_alive = self.keep_alive and self._cycle is not None and self._cycle.keep_alive
        self.connection.answered(self, b"")

    def cancel(self) -> None:
        """See `Exchange`. The application runs to its end, and its reply goes nowhere."""
        if self._cycle is not None:
            self._cycle.disconnected = True
            self._cycle.message_event.set()
